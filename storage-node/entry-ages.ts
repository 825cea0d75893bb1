/**
 * For how long, at least, the index has had these: blobs that no reference has named, and losses; by the monotonic clock. The time in
 * their records is another process's, or that of a clock that has jumped since: an upload in hand would look abandoned (I29). Not by
 * their places in the log, as of all other copies (log-marks.ts): a loss has none.
 */
import type { IndexChange } from './index.ts'

/** There are as many as uploads are in hand, those that were abandoned lately, and what the disk has lost. */
const countMax = 100_000

export class EntryAges {
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
      if (!key.startsWith('u/') && !key.startsWith('l/')) continue
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
