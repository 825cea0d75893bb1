/** Buffers of one size, used again: allocating (and collecting) one per answer costs more than reading into it. */
export class BufferPool {
  readonly bytes: number
  readonly #keepMax: number
  readonly #free: Buffer[] = []

  constructor(bytes: number, keepMax: number) {
    this.bytes = bytes
    this.#keepMax = keepMax
  }

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(this.bytes)
  }

  /** Only when nobody reads or writes it any more. */
  give(buffer: Buffer): void {
    if (this.#free.length < this.#keepMax) this.#free.push(buffer)
  }
}
