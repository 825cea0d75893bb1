import { setTimeout as sleep } from 'node:timers/promises'
import type { Urgency } from './background.ts'

/** What all that a node pulls from others has together: so many pulls at once, and so many bytes a second. Who comes first goes first, the urgent before all others. */
export class TransferLimit {
  readonly #bytesPerSec: number
  readonly #now: () => number
  readonly #waiting: Record<Urgency, (() => void)[]> = { urgent: [], usual: [] }
  #free: number
  /** When what was let go ahead has used up its time. */
  #paidUntil = -Infinity

  /** `now`: monotonic milliseconds. */
  constructor(pullsAtOnce: number, bytesPerSec: number, now: () => number) {
    this.#free = pullsAtOnce
    this.#bytesPerSec = bytesPerSec
    this.#now = now
  }

  /** Rejects as `work` does, or before it with the signal's reason. */
  async run<Result>(
    bytes: number,
    { urgency = 'usual', signal }: { readonly urgency?: Urgency; readonly signal: AbortSignal },
    work: () => Promise<Result>,
  ): Promise<Result> {
    if (this.#free > 0) this.#free -= 1
    else await new Promise<void>(resolve => this.#waiting[urgency].push(resolve))
    try {
      signal.throwIfAborted()
      const waitMs = this.#charge(bytes)
      if (waitMs > 0) await sleep(waitMs, undefined, { signal })
      return await work()
    } finally {
      const next = this.#waiting.urgent.shift() ?? this.#waiting.usual.shift()
      if (next === undefined) this.#free += 1
      else next()
    }
  }

  /** How long it has to wait: for those before it, not for itself. */
  #charge(bytes: number): number {
    const now = this.#now()
    const startAt = Math.max(now, this.#paidUntil)
    this.#paidUntil = startAt + (bytes / this.#bytesPerSec) * 1_000
    return startAt - now
  }
}
