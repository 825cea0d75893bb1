/**
 * For how long, at least, blobs that no reference has named have been here, by the monotonic clock. The time in their records is
 * another process's, or that of a clock that has jumped since: an upload in hand would look abandoned (I29).
 */
import type { IndexChange } from './index.ts'

/** There are as many as uploads are in hand, and those that were abandoned lately. */
const countMax = 100_000

export class UnconfirmedAges {
  readonly #countMax: number
  /** Index key -> since when, oldest first. */
  readonly #since = new Map<string, number>()
  /** What is not in the map is here since then, or longer. */
  #othersSince = 0

  constructor(limit = countMax) {
    this.#countMax = limit
  }

  /** The index was opened: what is in it may have come a moment before. */
  begin(now: number): void {
    this.#since.clear()
    this.#othersSince = now
  }

  /** These changes are in the index now. */
  changed(changes: readonly IndexChange[], now: number): void {
    for (const { type, key } of changes) {
      if (!key.startsWith('u/')) continue
      if (type === 'del') this.#since.delete(key)
      else if (!this.#since.has(key)) this.#since.set(key, now)
    }
    for (const [key, since] of this.#since) {
      if (this.#since.size <= this.#countMax) return
      this.#since.delete(key)
      this.#othersSince = since
    }
  }

  /** In ms. */
  age(key: string, now: number): number {
    return now - (this.#since.get(key) ?? this.#othersSince)
  }
}
