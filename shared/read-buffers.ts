/** What the kernel reads into. One set per worker, so that idle connections hold no memory of their own. */

/** Small answers fit with their head; whatever is in it is copied out before the callback returns. */
const sharedBytes = 64 * 1024
/** Large transfers: half the system calls of 256 KiB, and beyond 512 KiB nothing more is won. */
export const bulkBytes = 512 * 1024
/** Used instead when all bulk buffers are out: slower transfers, but memory stays where it is. */
const spareBytes = 64 * 1024

export class ReadBuffers {
  /** Shared by all connections: reads are handled one after the other, each before the next begins. */
  readonly shared = Buffer.allocUnsafeSlow(sharedBytes)
  readonly #bulkCountMax: number
  readonly #idleCountMax: number
  readonly #idle: Buffer[] = []
  #out = 0

  /** At most `bulkCountMax` bulk buffers exist at once (64 MiB), of which at most `idleCountMax` are kept unused (8 MiB). */
  constructor(bulkCountMax = 128, idleCountMax = 16) {
    this.#bulkCountMax = bulkCountMax
    this.#idleCountMax = idleCountMax
  }

  /** Bulk buffers handed out and not yet given back. */
  get outCount(): number {
    return this.#out
  }

  /** Only `BufferPair` calls it. */
  take(): Buffer {
    if (this.#out >= this.#bulkCountMax) return Buffer.allocUnsafeSlow(spareBytes)
    this.#out += 1
    return this.#idle.pop() ?? Buffer.allocUnsafeSlow(bulkBytes)
  }

  /** Only `BufferPair` calls it. `seen`: somebody may still look at the buffer, so it is left to the garbage collector. */
  give(buffer: Buffer, seen: boolean): void {
    if (buffer.length !== bulkBytes) return
    this.#out -= 1
    if (!seen && this.#idle.length < this.#idleCountMax) this.#idle.push(buffer)
  }
}

/**
 * The two buffers of one transfer, each taken when first needed. Chunks are views into them in turn; a chunk is *held* from
 * when it is handed on until `release`, in order. With two held the connection must not read.
 */
export class BufferPair {
  readonly #owner: ReadBuffers
  #next: Buffer | undefined
  #other: Buffer | undefined
  #held = 0
  #finished = false

  constructor(owner: ReadBuffers) {
    this.#owner = owner
  }

  get held(): number {
    return this.#held
  }

  /** Where the next read goes: free of held chunks as long as fewer than two are held. */
  next(): Buffer {
    return (this.#next ??= this.#owner.take())
  }

  isNext(buffer: Buffer): boolean {
    return this.#next === buffer
  }

  /** A chunk was handed on: a view into the next buffer, or (`copied`) a copy that lives by itself. */
  hold(copied: boolean): void {
    this.#held += 1
    if (copied) return
    const used = this.#next
    this.#next = this.#other
    this.#other = used
  }

  /** The chunk just handed on is done with already, whatever happens to older ones: its buffer is the next again. */
  unhold(copied: boolean): void {
    this.#held -= 1
    if (copied) return
    const used = this.#other
    this.#other = this.#next
    this.#next = used
  }

  /** The receiver of the oldest held chunk no longer needs it. */
  release(): void {
    this.#held -= 1
    if (this.#finished && this.#held === 0) this.#giveBack(false)
  }

  /** Nothing will be read into the pair any more; the buffers go back once nothing is held. */
  finish(): void {
    this.#finished = true
    if (this.#held === 0) this.#giveBack(false)
  }

  /** The same where `release` may never come: its receiver is gone, and a write of it may still be under way. */
  abandon(): void {
    this.#finished = true
    this.#giveBack(this.#held > 0)
  }

  #giveBack(seen: boolean): void {
    if (this.#next !== undefined) this.#owner.give(this.#next, seen)
    if (this.#other !== undefined) this.#owner.give(this.#other, seen)
    this.#next = this.#other = undefined
  }
}
