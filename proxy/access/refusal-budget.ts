/**
 * How many refusals of strangers one worker writes into the audit log. Anybody can make them by the million, and each is a row and a
 * statement of the database that everybody shares; what stands in the log after a hundred says no more than what came before.
 */
import type { Logger } from 'pino'

const atOnceMax = 100
const perSecond = 10

export class RefusalBudget {
  readonly #log: Pick<Logger, 'warn'>
  readonly #now: () => number
  #left = atOnceMax
  #countedAt: number
  #omitted = 0

  /** `now`: monotonic, in ms. */
  constructor(log: Pick<Logger, 'warn'>, now: () => number) {
    this.#log = log
    this.#now = now
    this.#countedAt = now()
  }

  /** May one more be written down? How many were not is told with the next that is. */
  take(): boolean {
    const at = this.#now()
    this.#left = Math.min(atOnceMax, this.#left + ((at - this.#countedAt) * perSecond) / 1000)
    this.#countedAt = at
    if (this.#left < 1) {
      this.#omitted++
      return false
    }
    this.#left--
    if (this.#omitted > 0) this.#log.warn({ omitted: this.#omitted }, 'refusals of strangers are not in the audit log')
    this.#omitted = 0
    return true
  }
}
