const sampleCount = 128
const refreshEvery = 16

/** Time to first byte of one node: a mean that follows quickly, and the 95th percentile of the last 128 answers. */
export class LatencyDigest {
  readonly #samples = new Float64Array(sampleCount)
  #count = 0
  #p95: number
  #mean: number

  /** `guessMs` stands in until there are answers. */
  constructor(guessMs = 200) {
    this.#p95 = guessMs
    this.#mean = guessMs
  }

  /** Exponentially weighted, one tenth for each new answer. */
  get meanMs(): number {
    return this.#mean
  }

  get p95Ms(): number {
    return this.#p95
  }

  add(ms: number): void {
    this.#samples[this.#count % sampleCount] = ms
    this.#mean = this.#count === 0 ? ms : this.#mean + (ms - this.#mean) / 10
    this.#count += 1
    // Sorting 128 numbers for each 16 answers costs less than a microsecond an answer.
    if (this.#count % refreshEvery !== 0) return
    const sorted = this.#samples.slice(0, Math.min(this.#count, sampleCount)).sort()
    this.#p95 = sorted[Math.floor((sorted.length - 1) * 0.95)] ?? this.#p95
  }
}
