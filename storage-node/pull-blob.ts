/** One blob from another node, by an ordinary read of it: a large one, or a small one of a node that sends no bundles yet. */
import { createHash, hash, randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { Dispatcher } from 'undici'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { inlineBlobBytesMax } from '../shared/record.ts'
import { type TransferRequest, wirePath } from '../shared/wire.ts'
import type { Urgency } from './background.ts'
import { newRecord } from './log.ts'
import type { Shard } from './shard.ts'
import type { SourceReader } from './source-reader.ts'
import type { Uploads } from './uploads.ts'

export interface PullDeps {
  readonly shard: Shard
  readonly uploads: Uploads
  /** For single blobs. */
  readonly reader: SourceReader
  /** For bundles. */
  readonly dispatcher: Dispatcher
  /** The Authorization header of the wire. */
  readonly authorization: string
  readonly urgency: Urgency
  readonly signal: AbortSignal
}
export type WantedBlob = TransferRequest['blobs'][number]
export type Source = WantedBlob['sources'][number]

/** Resolves when the copy is durable. Rejects with the shard's refusal, CHECKSUM_MISMATCH, or what the connection broke with. */
export async function pullBlob(deps: PullDeps, blob: WantedBlob, { url, shard }: Source): Promise<void> {
  const { partition, digest, generation, bytes } = blob
  const path = wirePath.blob(shard, partition, digest, generation)
  const pieces = (verified: boolean) =>
    deps.reader.pieces({ url, path, bytes, urgency: deps.urgency, verified }, deps.signal)
  if (bytes > inlineBlobBytesMax) {
    try {
      return await keepLarge(deps, blob, pieces(false))
    } catch (error) {
      if (!isHoldfastError(error, 'CHECKSUM_MISMATCH')) throw error
      // On its way, or on the disk over there: asked to look, the source puts a bad copy into quarantine.
      return keepLarge(deps, blob, pieces(true))
    }
  }
  let payload = Buffer.alloc(0)
  for await (const piece of pieces(true)) payload = Buffer.from(piece)
  return keepSmall(deps, blob, payload)
}

/** What broke a pull, as the node that asked is told it. */
export function sourceError(thrown: unknown, { url, shard }: Source): HoldfastError {
  if (thrown instanceof HoldfastError && thrown.code !== 'RECORD_DAMAGED') return thrown
  return new HoldfastError('REPLICAS_UNREACHABLE', 'the source broke off', { url, shard }, { cause: thrown })
}

/** Another source would not help a shard that takes nothing. */
export function isOfSource({ code }: HoldfastError): boolean {
  return code === 'REPLICAS_UNREACHABLE' || code === 'CHECKSUM_MISMATCH'
}

export function mismatch({ digest }: Pick<WantedBlob, 'digest'>): HoldfastError {
  return new HoldfastError('CHECKSUM_MISMATCH', 'the source sent other bytes than the digest says', { digest })
}

async function keepSmall(deps: PullDeps, blob: WantedBlob, payload: Buffer): Promise<void> {
  const { shard } = deps
  const { partition, digest, generation, bytes } = blob
  if (payload.length !== bytes || hash('sha256', payload) !== digest) throw mismatch(blob)
  const fixed = { crc: crc32(payload), time: shard.clock.now(), confirmed: true } as const
  const record = newRecord({ kind: 'blob', partition, digest, generation, bytes, ...fixed }, payload)
  await shard.background.run(bytes, deps, () => shard.append(record))
}

async function keepLarge(deps: PullDeps, blob: WantedBlob, pieces: AsyncIterable<Buffer>): Promise<void> {
  const sha256 = createHash('sha256')
  async function* hashed() {
    for await (const piece of pieces) {
      sha256.update(piece)
      yield piece
    }
  }
  const id = newUploadId()
  const { shard, uploads } = deps
  const { bytes, blockCrcs } = await uploads.receiveFrom(id, hashed(), blob.bytes, deps)
  if (bytes !== blob.bytes || sha256.digest('hex') !== blob.digest) {
    await uploads.abort(id)
    throw mismatch(blob)
  }
  await shard.background.run(blockCrcs.length, deps, () => uploads.commit(id, { ...blob, blockCrcs, confirmed: true }))
}

function newUploadId(): string {
  const digits = '0123456789abcdefghijklmnopqrstuv'
  return `u${Array.from(randomBytes(25), byte => digits.charAt(byte & 31)).join('')}`
}
