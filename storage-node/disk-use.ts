/** How much clients use a disk, or all disks of a node: what work in the background goes by (I34). */

export interface Use {
  /** Part of the last second or so in which an operation of a client was on the disk, 0 to 1. */
  readonly busy: number
  /** Since the last of them, ms. */
  readonly quietMs: number
}

/** Operations count while they are on the disk, not while a client takes or sends its bytes slowly. */
const memoryMs = 1_000

export class DiskUse {
  readonly #now: () => number
  readonly #whole: DiskUse | undefined
  #inFlight = 0
  #busy = 0
  #at: number
  #endedAt = -Infinity

  /** `whole`: what this disk is a part of. `now`: monotonic ms. */
  constructor(whole?: DiskUse, now = () => performance.now()) {
    this.#now = now
    this.#whole = whole
    this.#at = now()
  }

  /** Each has its `end`. */
  begin(): void {
    this.#whole?.begin()
    if (this.#inFlight === 0) this.#pass(this.#now())
    this.#inFlight += 1
  }

  end(): void {
    this.#whole?.end()
    if (this.#inFlight === 1) {
      const now = this.#now()
      this.#pass(now)
      this.#endedAt = now
    }
    this.#inFlight -= 1
  }

  async during<Result>(operation: () => Promise<Result>): Promise<Result> {
    this.begin()
    try {
      return await operation()
    } finally {
      this.end()
    }
  }

  get use(): Use {
    const now = this.#now()
    this.#pass(now)
    return { busy: this.#busy, quietMs: this.#inFlight > 0 ? 0 : now - this.#endedAt }
  }

  #pass(now: number): void {
    const kept = Math.exp((this.#at - now) / memoryMs)
    this.#busy = this.#busy * kept + (this.#inFlight > 0 ? 1 - kept : 0)
    this.#at = now
  }
}
