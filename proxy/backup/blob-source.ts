/** The bytes of a blob as the cluster serves them: verified, from whichever replica is well, and with a limit to how fast. */
import { Transform } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { isHoldfastError, toHoldfastError } from '../../shared/errors.ts'
import type { Metadata } from '../metadata/types.ts'
import { wholeBytesMax } from '../routing/blob-reader.ts'
import type { BlobLocation, BlobReader } from '../routing/types.ts'

/** Lets so many bytes a second pass, for all who share it; bursts of a second. */
export class Throttle {
  readonly #bytesPerSecond: number
  readonly #now: () => number
  #free: number

  /** `now`: monotonic milliseconds. */
  constructor(bytesPerSecond: number, now: () => number) {
    this.#bytesPerSecond = bytesPerSecond
    this.#now = now
    this.#free = now()
  }

  /** Resolves when they may pass; rejects with the signal's reason. */
  async pass(bytes: number, signal: AbortSignal): Promise<void> {
    const now = this.#now()
    this.#free = Math.max(this.#free, now - 1_000) + (bytes / this.#bytesPerSecond) * 1_000
    if (this.#free > now) await sleep(this.#free - now, undefined, { signal }).catch(() => {}) // looked at next
    signal.throwIfAborted()
  }
}

export interface BlobSourceDeps {
  readonly reader: BlobReader
  readonly metadata: Pick<Metadata, 'findBlob'>
  readonly throttle: Throttle
}

/** The blob's bytes, to be taken once. The iterable rejects before its end unless all of them came and have the digest. */
export async function* blobBytes(
  { reader, throttle }: BlobSourceDeps,
  blob: BlobLocation,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  if (blob.bytes <= wholeBytesMax) {
    await throttle.pass(blob.bytes, signal)
    yield await reader.readWhole(blob, signal)
    return
  }
  // The reader uses its buffers again once the callback is called.
  const pipe = new Transform({
    transform: (chunk: Buffer, _, callback) => callback(null, Buffer.from(chunk)),
  })
  const reading = reader.stream(blob, undefined, pipe, { onStart: () => {}, signal })
  const failed = reading.catch((error: unknown) => void pipe.destroy(toHoldfastError(error)))
  let bytes = 0
  try {
    for await (const chunk of pipe as AsyncIterable<Buffer>) {
      bytes += chunk.length
      await throttle.pass(chunk.length, signal)
      yield chunk
    }
  } finally {
    pipe.destroy()
    await failed
  }
  if (bytes !== blob.bytes) throw new Error(`${bytes} of ${blob.bytes} bytes of ${blob.digest}`)
}

/** Where the blob is now: it may have been collected and uploaded again since. */
export async function currentLocation({ metadata }: BlobSourceDeps, blob: BlobLocation): Promise<BlobLocation> {
  return (await metadata.findBlob({ sha256: blob.digest })) ?? blob
}

/** Is it the blob that cannot be had, and not the run or the target that ended? */
export const isUnreadable = (error: unknown): boolean =>
  isHoldfastError(error, 'REPLICAS_UNREACHABLE', 'BLOB_NOT_FOUND', 'BLOB_CORRUPT')
