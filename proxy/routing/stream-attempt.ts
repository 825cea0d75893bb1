import type { HoldfastError } from '../../shared/errors.ts'
import type { BlobRead, ReadReceiver } from './node-reader.ts'
import { type ReadContext, startRead } from './read-deps.ts'
import type { Replica } from './replica-source.ts'
import type { BlobLocation, ByteRange } from './types.ts'

/** What an attempt tells; after `ended` or `failed` nothing more. */
export interface StreamOwner {
  /** True: the chunk is in the sink, and held until it was written. */
  delivered(attempt: StreamAttempt, chunk: Buffer): boolean
  ended(attempt: StreamAttempt): void
  failed(attempt: StreamAttempt, error: HoldfastError): void
}

/** One replica serving a stream from one position on. */
export class StreamAttempt implements ReadReceiver {
  readonly replica: Replica
  readonly hedge: boolean
  readonly startedAt: number
  readonly read: BlobRead
  /** Chunks that the sink has not taken yet. */
  held = 0
  readonly #owner: StreamOwner
  #reported = false

  constructor(
    owner: StreamOwner,
    context: ReadContext,
    replica: Replica,
    blob: BlobLocation,
    range: ByteRange | undefined,
    hedge: boolean,
  ) {
    this.#owner = owner
    this.replica = replica
    this.hedge = hedge
    this.startedAt = context.now()
    this.read = startRead(context, replica, blob, range, 'chunks', this)
  }

  /** The sink took the oldest chunk. */
  released(): void {
    this.held -= 1
    this.read.release()
  }

  /** Once: a node that stays silent does not fail again each second. */
  reportSilence(): void {
    if (!this.#reported) this.replica.client.report('failed')
    this.#reported = true
  }

  onChunk(chunk: Buffer): boolean {
    return this.#owner.delivered(this, chunk)
  }

  onEnd(): void {
    this.#owner.ended(this)
  }

  onError(error: HoldfastError): void {
    this.#owner.failed(this, error)
  }
}
