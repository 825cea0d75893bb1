import { LRUCache } from 'lru-cache'
import type { Digest } from '../../shared/ids.ts'

/** Bodies of small hot blobs by digest: immutable, so never stale. Bounded in bytes. */
export class BodyCache {
  readonly #bodies: LRUCache<Digest, Buffer>
  readonly bodyBytesMax: number
  hits = 0
  misses = 0

  constructor(options: { bytesMax: number; bodyBytesMax: number }) {
    this.bodyBytesMax = Math.min(options.bodyBytesMax, options.bytesMax)
    this.#bodies = new LRUCache({
      maxSize: Math.max(1, options.bytesMax),
      // An empty body still costs an entry; lru-cache wants a positive size.
      sizeCalculation: body => body.length + 256,
    })
  }

  get(digest: Digest): Buffer | undefined {
    const body = this.#bodies.get(digest)
    if (body === undefined) this.misses++
    else this.hits++
    return body
  }

  /** Keeps the buffer itself: the caller must not write to it any more. Larger bodies are not kept. */
  put(digest: Digest, body: Buffer): void {
    if (body.length > this.bodyBytesMax) return
    // A small view would pin the whole slab it was cut from; such a body gets memory of its own.
    const slack = body.buffer.byteLength - body.length
    this.#bodies.set(digest, slack > body.length ? ownCopy(body) : body)
  }

  get bytes(): number {
    return this.#bodies.calculatedSize
  }
}

function ownCopy(body: Buffer): Buffer {
  const copy = Buffer.allocUnsafeSlow(body.length)
  body.copy(copy)
  return copy
}
