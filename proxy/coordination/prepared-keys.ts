/**
 * The writer's book of keys that it is about to change. A holder that acknowledged a `prepare` bypasses its cache for the
 * key until it hears of the end or `markMs` have passed, and drops the entry then; so a write committed before that
 * needs nothing from this holder afterwards.
 */
import { nameOf, type Holder } from './lease-store.ts'
import type { Timings } from './timings.ts'

interface Preparation {
  /** Writes of this worker under way for the key. */
  count: number
  openedAt: number
  /** Holder instances that keep the key marked, until `validUntil` of our monotonic clock. */
  holders: ReadonlySet<string>
  validUntil: number
}

export const nobody: ReadonlySet<string> = new Set()

export class PreparedKeys {
  readonly #timings: Timings
  readonly #open = new Map<string, Preparation>()

  constructor(timings: Timings) {
    this.#timings = timings
  }

  open(keys: readonly string[]): void {
    const openedAt = performance.now()
    for (const key of keys) {
      const { count = 0, holders = nobody, validUntil = openedAt } = this.#open.get(key) ?? {}
      this.#open.delete(key) // to the end: the oldest stand first
      this.#open.set(key, { count: count + 1, openedAt, holders, validUntil })
    }
    this.#forgetAbandoned()
  }

  /** The round that was sent at `sentAt` is over: each of these holders marked the keys, or cannot use its cache. */
  confirm(keys: readonly string[], holders: readonly Holder[], sentAt: number): void {
    const names = new Set(holders.map(nameOf))
    const validUntil = sentAt + this.#timings.markMs - this.#timings.leaseMarginMs
    for (const key of keys) {
      const found = this.#open.get(key)
      if (found !== undefined) Object.assign(found, { holders: names, validUntil })
    }
  }

  /** A write of these keys is committed, now or earlier. Answers with the holders that had all of them marked until now. */
  close(keys: readonly string[]): ReadonlySet<string> {
    const now = performance.now()
    let covered: ReadonlySet<string> | undefined
    for (const key of keys) {
      const found = this.#open.get(key)
      const holders = found !== undefined && now < found.validUntil ? found.holders : nobody
      covered = covered === undefined ? holders : intersection(covered, holders)
      if (found !== undefined && --found.count === 0) this.#open.delete(key)
    }
    return covered ?? nobody
  }

  /** What somebody who joins now must hear of. */
  get openKeys(): readonly string[] {
    return [...this.#open.keys()]
  }

  isOpen(key: string): boolean {
    return this.#open.has(key)
  }

  /** Writes that were prepared and never ended; one that does end after all waits for everybody, as if unprepared. */
  #forgetAbandoned(): void {
    const tooOld = performance.now() - 2 * this.#timings.markMs
    for (const [key, { openedAt }] of this.#open) {
      if (openedAt > tooOld) return
      this.#open.delete(key)
    }
  }
}

function intersection(a: ReadonlySet<string>, b: ReadonlySet<string>): ReadonlySet<string> {
  if (a === b) return a
  const both = new Set<string>()
  for (const name of a) if (b.has(name)) both.add(name)
  return both
}
