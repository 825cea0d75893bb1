import { HoldfastError, toHoldfastError } from '../../shared/errors.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import { runChanges, type Change, type ChangeRow } from './commit-changes.ts'
import { isRetryable, sqlState, unavailable } from './sql-errors.ts'
import type { Queryable } from './statement.ts'

/** Beyond this the caller hears OVERLOADED: at 2,500 commits a second it is less than half a second's work. */
const waitingMax = 1_000
/** What one transaction takes; more would make the first wait for the last. */
const groupMax = 64
/** How often a group that lost a deadlock is tried again. */
const triesMax = 3

export interface CommitQueueOptions {
  readonly database: Queryable
  /** Transactions at once. While they wait for the disk, the next groups gather. */
  readonly lanes: number
  /** A commit that has no outcome after this is reported as METADATA_UNAVAILABLE. */
  readonly timeoutMs: number
}

interface Item {
  readonly change: Change
  settled: boolean
  resolve(row: ChangeRow): void
  reject(error: Error): void
}

/**
 * Groups the changes of concurrent callers into transactions: one round trip, one fsync for all. Nobody waits for a
 * group to fill: a free lane takes what is there. Each change keeps its own outcome; a change that PostgreSQL cannot
 * take at all (an impossible text) fails alone.
 */
export class CommitQueue {
  readonly #options: CommitQueueOptions
  #waiting: Item[] = []
  #busy = 0

  constructor(options: CommitQueueOptions) {
    this.#options = options
  }

  /** Rejects with METADATA_UNAVAILABLE when the outcome is unknown: the change may have happened. */
  submit(change: Change): Promise<ChangeRow> {
    if (this.#waiting.length >= waitingMax) {
      return Promise.reject(new HoldfastError('OVERLOADED', 'too many commits wait for the database', { waitingMax }))
    }
    return new Promise((resolve, reject) => {
      const timer = new PatientTimer()
      timer.set(this.#options.timeoutMs, () => item.reject(unavailable('no outcome of the commit in time')))
      const settle = (): boolean => {
        if (item.settled) return false
        timer.clear()
        return (item.settled = true)
      }
      const item: Item = {
        change,
        settled: false,
        resolve: row => settle() && resolve(row),
        reject: error => settle() && reject(error),
      }
      this.#waiting.push(item)
      // Callers that arrive in the same turn of the event loop share a group.
      if (this.#busy < this.#options.lanes) queueMicrotask(() => this.#fillLanes())
    })
  }

  /** The database went away: what has not been sent is told at once. */
  rejectWaiting(error: HoldfastError): void {
    for (const item of this.#waiting.splice(0)) item.reject(error)
  }

  #fillLanes(): void {
    while (this.#busy < this.#options.lanes && this.#waiting.length > 0) {
      this.#busy++
      void this.#lane()
    }
  }

  async #lane(): Promise<void> {
    while (this.#waiting.length > 0) {
      const group = this.#waiting.splice(0, groupMax).filter(item => !item.settled)
      if (group.length > 0) await this.#commit(group)
    }
    this.#busy--
  }

  async #commit(group: readonly Item[]): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        const rows = await runChanges(
          this.#options.database,
          group.map(item => item.change),
          'trash',
        )
        group.forEach((item, index) => item.resolve(rows[index]!))
        return
      } catch (error) {
        if (isRetryable(error) && attempt < triesMax) continue
        if (group.length === 1 || !provesRollback(error)) {
          for (const item of group) item.reject(toHoldfastError(error))
          return
        }
        for (const item of group) await this.#commit([item])
        return
      }
    }
  }
}

/** An error that PostgreSQL itself raised about the statement; anything else leaves the outcome unknown. */
function provesRollback(error: unknown): boolean {
  return error instanceof HoldfastError && error.code !== 'METADATA_UNAVAILABLE' && sqlState(error.cause) !== undefined
}
