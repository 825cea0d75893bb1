import type { Test } from 'tap'

/** Reproducible randomness of one test: the same seed gives the same faults, sizes and bytes in the same order. */
export class Random {
  readonly seed: number
  #state: number
  #pool: Buffer | undefined

  constructor(seed: number) {
    this.seed = seed
    this.#state = seed >>> 0
  }

  /** A float from 0 up to 1 (mulberry32). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let mixed = this.#state
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number from `min` to `max`, both included. */
  int(min: number, max: number): number {
    return min + Math.floor(this.next() * (max - min + 1))
  }

  pick<Item>(items: readonly Item[]): Item {
    const item = items[this.int(0, items.length - 1)]
    if (item === undefined) throw new Error('nothing to pick from')
    return item
  }

  shuffled<Item>(items: readonly Item[]): Item[] {
    const order = items.map(item => ({ item, rank: this.next() }))
    return order.sort((a, b) => a.rank - b.rank).map(({ item }) => item)
  }

  /** Bytes that no other call gives (but for a chance of 2^-64); large ones repeat a pool behind a unique head, for speed. */
  bytes(length: number): Buffer {
    this.#pool ??= this.#fill(Buffer.allocUnsafe(256 * 1024))
    const bytes = Buffer.allocUnsafe(length)
    for (let at = 0; at < length;) {
      const from = this.int(0, this.#pool.length - 1)
      at += this.#pool.copy(bytes, at, from)
    }
    this.#fill(bytes.subarray(0, Math.min(16, length)))
    return bytes
  }

  #fill(bytes: Buffer): Buffer {
    for (let at = 0; at < bytes.length; at++) bytes[at] = this.int(0, 255)
    return bytes
  }
}

/** Random with a fresh seed, or that of HOLDFAST_TEST_SEED; the seed is printed, so a failure can be repeated. */
export function seededRandom(t: Pick<Test, 'comment'>): Random {
  const given = Number(process.env['HOLDFAST_TEST_SEED'] ?? NaN)
  const seed = Number.isInteger(given) ? given : Math.floor(Math.random() * 2 ** 31)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  return new Random(seed)
}
