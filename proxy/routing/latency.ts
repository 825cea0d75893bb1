const sampleCount = 128
const refreshEvery = 16

/** Time to first byte of one node: the 95th percentile of the last 128 answers. */
export class LatencyDigest {
  readonly #samples = new Float64Array(sampleCount)
  #count = 0
  #p95: number

  /** `guessMs` stands in until there are answers. */
  constructor(guessMs = 200) {
    this.#p95 = guessMs
  }

  get p95Ms(): number {
    return this.#p95
  }

  add(ms: number): void {
    this.#samples[this.#count % sampleCount] = ms
    this.#count += 1
    // Sorting 128 numbers for each 16 answers costs less than a microsecond an answer.
    if (this.#count % refreshEvery !== 0) return
    const sorted = this.#samples.slice(0, Math.min(this.#count, sampleCount)).sort()
    this.#p95 = sorted[Math.floor((sorted.length - 1) * 0.95)] ?? this.#p95
  }
}

/** Time to first byte of one shard, exponentially weighted, one tenth for each new answer; 0 until there is one. */
export class LatencyMean {
  #ms = 0

  get ms(): number {
    return this.#ms
  }

  add(ms: number): void {
    this.#ms = this.#ms === 0 ? ms : this.#ms + (ms - this.#ms) / 10
  }

  /** A probe of a shard that clients are kept from: a few quick ones in a row are enough, for there are not many of them. */
  addProbe(ms: number): void {
    this.#ms = (this.#ms + ms) / 2
  }

  /**
   * It was not waited for to the end: that tells something only if it was long. Then at once, for each read that waits for a slow shard
   * before that is known is one of a client; and as twice of it, since who has taken so long without an answer is not about to give one.
   */
  addAtLeast(ms: number): void {
    if (ms > this.#ms) this.#ms = Math.max(this.#ms, 2 * ms)
  }
}
