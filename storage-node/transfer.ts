/**
 * Pulls blobs from other nodes onto a shard of this one, under the same rules as an upload: nothing is held before it is
 * durable, and nothing is accepted that does not hash to its digest.
 */
import { createHash, hash, randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { type Dispatcher, request } from 'undici'
import { atMost } from '../shared/at-most.ts'
import { HoldfastError, toHoldfastError } from '../shared/errors.ts'
import { inlineBlobBytesMax } from '../shared/record.ts'
import { type TransferAnswer, type TransferRequest, wirePath } from '../shared/wire.ts'
import { blobName } from './blob-name.ts'
import { toWireError } from './http-answer.ts'
import { newRecord } from './log.ts'
import type { Shard } from './shard.ts'
import type { Uploads } from './uploads.ts'

export interface TransferDeps {
  readonly shard: Shard
  readonly uploads: Uploads
  readonly dispatcher: Dispatcher
  /** The Authorization header of the wire. */
  readonly authorization: string
  readonly concurrency: number
  readonly signal: AbortSignal
}
type WantedBlob = TransferRequest['blobs'][number]
type Source = WantedBlob['sources'][number]

/** Pulls what is missing, a few at a time; results in the order of the request. Never rejects. */
export async function transferBlobs(deps: TransferDeps, blobs: readonly WantedBlob[]): Promise<TransferAnswer> {
  const results = await atMost(deps.concurrency, blobs, blob =>
    transferBlob(deps, blob).catch((error: unknown) => toWireError(toHoldfastError(error))),
  )
  return { results }
}

async function transferBlob(deps: TransferDeps, blob: WantedBlob): Promise<'copied' | 'held'> {
  if ((await deps.shard.locate(blobName(blob))) !== undefined) return 'held'
  let last = new HoldfastError('REPLICAS_UNREACHABLE', 'no source was named')
  for (const source of blob.sources) {
    try {
      await pull(deps, blob, source)
      return 'copied'
    } catch (thrown) {
      last = sourceError(thrown, source)
      // Another source would not help a shard that takes nothing.
      if (last.code !== 'REPLICAS_UNREACHABLE' && last.code !== 'CHECKSUM_MISMATCH') break
    }
  }
  throw last
}

async function pull(deps: TransferDeps, blob: WantedBlob, source: Source): Promise<void> {
  const { partition, digest, generation, bytes } = blob
  const url = new URL(wirePath.blob(source.shard, partition, digest, generation), source.url)
  const { statusCode, headers, body } = await request(url, {
    headers: { authorization: deps.authorization },
    dispatcher: deps.dispatcher,
    signal: deps.signal,
  })
  if (statusCode !== 200 || headers['content-length'] !== String(bytes)) {
    await body.dump()
    throw new HoldfastError('REPLICAS_UNREACHABLE', 'the source does not have the blob', { status: statusCode })
  }
  if (bytes <= inlineBlobBytesMax) await keepSmall(deps.shard, blob, Buffer.from(await body.arrayBuffer()))
  else await keepLarge(deps, blob, body)
}

async function keepSmall(shard: Shard, blob: WantedBlob, payload: Buffer): Promise<void> {
  const { partition, digest, generation, bytes } = blob
  if (payload.length !== bytes || hash('sha256', payload) !== digest) throw mismatch(blob)
  const fixed = { crc: crc32(payload), time: shard.clock.now(), confirmed: true } as const
  await shard.append(newRecord({ kind: 'blob', partition, digest, generation, bytes, ...fixed }, payload))
}

async function keepLarge({ uploads }: TransferDeps, blob: WantedBlob, body: AsyncIterable<Buffer>): Promise<void> {
  const sha256 = createHash('sha256')
  async function* hashed() {
    for await (const chunk of body) {
      sha256.update(chunk)
      yield chunk
    }
  }
  const id = newUploadId()
  const { bytes, blockCrcs } = await uploads.receiveFrom(id, hashed(), blob.bytes)
  if (bytes !== blob.bytes || sha256.digest('hex') !== blob.digest) {
    await uploads.abort(id)
    throw mismatch(blob)
  }
  await uploads.commit(id, { ...blob, blockCrcs, confirmed: true })
}

function newUploadId(): string {
  const digits = '0123456789abcdefghijklmnopqrstuv'
  return `u${Array.from(randomBytes(25), byte => digits.charAt(byte & 31)).join('')}`
}

function sourceError(thrown: unknown, { url, shard }: Source): HoldfastError {
  if (thrown instanceof HoldfastError) return thrown
  return new HoldfastError('REPLICAS_UNREACHABLE', 'the source broke off', { url, shard }, { cause: thrown })
}

function mismatch({ digest }: WantedBlob): HoldfastError {
  return new HoldfastError('CHECKSUM_MISMATCH', 'the source sent other bytes than the digest says', { digest })
}
