import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ReplicaUpload } from './replica-upload.ts'
import { wireErrorOf } from './wire-errors.ts'
import type { NodeUplink } from './write-context.ts'
import type { WriteTarget } from './write-plan.ts'

/** While a replica joins the client is held: if nothing moves for so long, the write is given up. */
const progressMsMax = { frozen: 10_000, lively: 25_000 }
/** A source or a joiner that is silent for so long is left for another one. A lively one (see `isLively`) may be busy. */
const silenceMsMax = { frozen: 3_000, lively: 8_000 }
/** When no source has the bytes any more, and none is about to become a blob, which is another source. */
const goneMsMax = 2_000
const joinerBehindMax = 1024 * 1024
const notYetMs = 50

/** Where bytes can be read back: an upload, staged or still running, or a blob. */
export interface ByteSource {
  readonly uplink: NodeUplink
  readonly target: WriteTarget
  readonly path: string
  /** Its node is asked to make it a blob: what it does not have under this path it may soon have under another. */
  readonly committing?: boolean
}

export interface CopyOptions {
  /** Bytes of the body, from its start, that the joiner needs. */
  readonly bytes: number
  /** Asked again for each attempt: sources may die meanwhile. */
  readonly sources: () => readonly ByteSource[]
  readonly now: () => number
  readonly isLively: (target: WriteTarget) => boolean
  readonly changed: (ms: number) => Promise<void>
  readonly signal: AbortSignal
}

/**
 * Gives a late joiner the first `bytes` of a body from any replica that has them. False: the joiner failed, another one
 * may be tried. Rejects with QUORUM_NOT_REACHED when no source is left, nothing has moved for 10 s, or no source has the bytes any more.
 */
export async function copyInto(joiner: ReplicaUpload, options: CopyOptions): Promise<boolean> {
  const forgotten = new Set<string>()
  let at = 0
  let progressAt = options.now()
  let cause: unknown
  for (let attempt = 0; at < options.bytes; attempt += 1) {
    const known = options.sources()
    const sources = known.filter(({ path }) => !forgotten.has(path))
    const hopes = known.filter(({ path, committing }) => committing === true || !forgotten.has(path))
    if (known.length === 0 || options.now() - progressAt > patienceWith(hopes, options)) {
      const data = { at, bytes: options.bytes, sources: known.length, forgotten: forgotten.size }
      throw new HoldfastError('QUORUM_NOT_REACHED', 'no replica could hand over what it has', data, { cause })
    }
    const source = sources[attempt % sources.length]
    const before = at
    try {
      for await (const chunk of source === undefined ? [] : readFrom(source, at, options)) {
        joiner.write(chunk)
        at += chunk.length
        progressAt = options.now()
        if (!(await hasRoom(joiner, options))) return false
      }
    } catch (error) {
      cause = error
      // Whatever is wrong with this source: the next one, or the same again, until nothing moves any more.
      options.signal.throwIfAborted()
      if (source !== undefined && hasForgotten(error)) forgotten.add(source.path)
    }
    if (joiner.failed) return false
    // A running upload may not have written as far as it has been sent.
    if (at === before) await options.changed(notYetMs)
  }
  return !joiner.failed
}

function patienceWith(hopes: readonly ByteSource[], { isLively }: CopyOptions): number {
  if (hopes.length === 0) return goneMsMax
  return hopes.some(({ target }) => isLively(target)) ? progressMsMax.lively : progressMsMax.frozen
}

/** A node that was started again has forgotten its uploads, and will not remember. */
const hasForgotten = (error: unknown): boolean =>
  isHoldfastError(error, 'UPLOAD_NOT_FOUND') || isHoldfastError(error, 'BLOB_NOT_FOUND')

/** Waits until the joiner has taken most of what it got; false when it failed or went silent. */
async function hasRoom(joiner: ReplicaUpload, options: CopyOptions): Promise<boolean> {
  const { now, changed, signal } = options
  const limitMs = silenceOf(joiner.target, options)
  while (!joiner.failed && joiner.behind > joinerBehindMax) {
    signal.throwIfAborted()
    if (now() - joiner.progressAt > limitMs) {
      const { node, shard } = joiner.target
      joiner.fail(new HoldfastError('NODE_UNREACHABLE', 'joiner takes no bytes', { node, shard, reason: 'TIMEOUT' }))
    } else {
      await changed(100)
    }
  }
  return !joiner.failed
}

const silenceOf = (target: WriteTarget, { isLively }: CopyOptions): number =>
  isLively(target) ? silenceMsMax.lively : silenceMsMax.frozen

async function* readFrom(source: ByteSource, from: number, options: CopyOptions): AsyncGenerator<Buffer> {
  const { uplink, path, target } = source
  const limitMs = silenceOf(target, options)
  const answer = await uplink.client.uploads.request({
    method: 'GET',
    path,
    headers: { ...uplink.client.headers(), range: `bytes=${from}-${options.bytes - 1}` },
    signal: options.signal,
    headersTimeout: limitMs,
    bodyTimeout: limitMs,
  })
  if (answer.statusCode === 416) return void (await answer.body.dump()) // not so far yet
  if (answer.statusCode !== 206 && !(answer.statusCode === 200 && from === 0)) {
    throw wireErrorOf(await answer.body.text(), answer.statusCode, { node: target.node })
  }
  let left = options.bytes - from
  for await (const chunk of answer.body as AsyncIterable<Buffer>) {
    if (left === 0) return
    const wanted = chunk.length > left ? chunk.subarray(0, left) : chunk
    left -= wanted.length
    yield wanted
  }
}
