/** Small blobs from another node, many with one request (shared/bundle.ts), each checked and durable before it counts. */
import { hash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { type Dispatcher, request } from 'undici'
import { type BundleBlob, BundleReader } from '../shared/bundle.ts'
import { HoldfastError, toHoldfastError } from '../shared/errors.ts'
import { type BundleRequest, wireHeader, wirePath } from '../shared/wire.ts'
import { blobName } from './blob-name.ts'
import { newRecord } from './log.ts'
import { isOfSource, mismatch, type PullDeps, type Source, sourceError, type WantedBlob } from './pull-blob.ts'
import type { Shard } from './shard.ts'

/** By the clock of another node; what is further off than this gets a time of our own. */
const clockDriftMsMax = 60_000

/** Durable with one flush of the log, and one turn of the disk. */
const groupBytes = 1024 * 1024

/** 'single': the source has it, but sends it only by itself. */
export type BundleOutcome = 'copied' | 'single' | HoldfastError

/**
 * Outcomes in the order of the blobs. A blob that the source cannot give keeps none of the others from coming, nor does a stream that breaks
 * off take back what came before. Where this shard takes no more, the rest is not even read. Never rejects.
 */
export async function pullBundle(
  deps: PullDeps,
  blobs: readonly WantedBlob[],
  source: Source,
): Promise<readonly BundleOutcome[]> {
  const bundle = new Bundle(deps, blobs)
  let rest: BundleOutcome
  try {
    rest = await receive(deps, bundle, blobs, source)
  } catch (thrown) {
    rest = sourceError(thrown, source)
  }
  await bundle.flush()
  return bundle.outcomes(rest)
}

/** Resolves with the outcome of those that the source did not mention. */
async function receive(
  { shard, authorization, urgency, dispatcher, signal }: PullDeps,
  bundle: Bundle,
  blobs: readonly WantedBlob[],
  source: Source,
): Promise<BundleOutcome> {
  const bytes = blobs.reduce((sum, blob) => sum + blob.bytes, 0)
  shard.health.checkWritable('blob', bytes)
  const order: BundleRequest = {
    blobs: blobs.map(({ partition, digest, generation }) => ({ partition, digest, generation })),
  }
  const { statusCode, body } = await request(new URL(wirePath.bundle(source.shard), source.url), {
    method: 'POST',
    headers: { authorization, 'content-type': 'application/json', [wireHeader.background]: urgency },
    body: JSON.stringify(order),
    dispatcher,
    signal,
  })
  if (statusCode !== 200) return refusalOf(statusCode, body)
  const reader = new BundleReader()
  for await (const chunk of body as AsyncIterable<Buffer>) {
    for (const item of reader.push(chunk)) bundle.take(item)
    if (bundle.isFull) await bundle.flush()
    // Leaving the loop cuts the connection.
    if (bundle.refused !== undefined) return bundle.refused
  }
  reader.finish()
  return new HoldfastError('REPLICAS_UNREACHABLE', 'the source left the blob out', { ...source })
}

/** A node of an earlier release has no such route. */
async function refusalOf(status: number, body: Dispatcher.ResponseData['body']): Promise<BundleOutcome> {
  const answer = (await body.json().catch(() => undefined)) as { code?: unknown } | undefined // not of a node of ours
  if (answer?.code === 'NOT_FOUND' || answer?.code === 'METHOD_NOT_ALLOWED') return 'single'
  return new HoldfastError('REPLICAS_UNREACHABLE', 'the source gives nothing', { status, code: answer?.code })
}

class Bundle {
  readonly #deps: PullDeps
  readonly #shard: Shard
  readonly #blobs: readonly WantedBlob[]
  readonly #indexes: ReadonlyMap<string, number>
  readonly #outcomes: (Promise<BundleOutcome> | BundleOutcome | undefined)[]
  /** Received, and not yet written. */
  #group: { readonly index: number; readonly blob: WantedBlob; readonly item: BundleBlob }[] = []
  #groupBytes = 0
  /** Why this shard takes no more. */
  refused: HoldfastError | undefined

  constructor(deps: PullDeps, blobs: readonly WantedBlob[]) {
    this.#deps = deps
    this.#shard = deps.shard
    this.#blobs = blobs
    this.#indexes = new Map(blobs.map((blob, index) => [blobName(blob), index]))
    this.#outcomes = blobs.map(() => undefined)
  }

  /** Throws RECORD_DAMAGED if the source speaks of what it was not asked for. */
  take(item: ReturnType<BundleReader['push']>[number]): void {
    if ('record' in item) {
      const index = this.#indexes.get(blobName(item.record))
      const blob = index === undefined ? undefined : this.#blobs[index]
      if (index === undefined || blob === undefined) throw unasked()
      if (this.#outcomes[index] !== undefined) return
      this.#group.push({ index, blob, item })
      this.#groupBytes += item.payload.length
      return
    }
    const { index, code } = item
    if (index >= this.#blobs.length) throw unasked()
    const error = new HoldfastError('REPLICAS_UNREACHABLE', 'the source does not have the blob', { code })
    this.#outcomes[index] ??= code === 'TOO_LARGE' ? 'single' : error
  }

  get isFull(): boolean {
    return this.#groupBytes >= groupBytes
  }

  /** Writes what has come, in one turn; resolves when that has begun. Never rejects. */
  async flush(): Promise<void> {
    const group = this.#group
    const bytes = this.#groupBytes
    this.#group = []
    this.#groupBytes = 0
    if (group.length === 0) return
    const { urgency, signal, shard } = this.#deps
    const done = await shard.background.begin(urgency, signal).catch(() => undefined) // the node shuts down
    if (done === undefined) return
    const kept: Promise<BundleOutcome>[] = []
    for (const { index, blob, item } of group) {
      if (this.#outcomes[index] === undefined) kept.push((this.#outcomes[index] = this.#keep(blob, item)))
    }
    void Promise.all(kept).then(() => done(bytes))
  }

  /** When all that came is durable or refused. */
  async outcomes(rest: BundleOutcome): Promise<readonly BundleOutcome[]> {
    return Promise.all(this.#outcomes.map(async outcome => (await outcome) ?? rest))
  }

  /** Never rejects. */
  async #keep(blob: WantedBlob, { record, payload, frame, payloadOffset }: BundleBlob): Promise<BundleOutcome> {
    const isWhole = record.bytes === blob.bytes && payload.length === blob.bytes && record.crc === crc32(payload)
    if (!isWhole || hash('sha256', payload) !== blob.digest) return mismatch(blob)
    try {
      const now = this.#shard.clock.now()
      const isFit = record.confirmed === true && Math.abs(record.time - now) <= clockDriftMsMax
      const { partition, digest, generation, bytes } = blob
      const own = { kind: 'blob', partition, digest, generation, bytes, crc: record.crc, confirmed: true } as const
      await this.#shard.append(isFit ? { record, frame, payloadOffset } : newRecord({ ...own, time: now }, payload))
      return 'copied'
    } catch (thrown) {
      const error = toHoldfastError(thrown)
      if (!isOfSource(error)) this.refused ??= error
      return error
    }
  }
}

function unasked(): HoldfastError {
  return new HoldfastError('RECORD_DAMAGED', 'the source sent what it was not asked for')
}
