/**
 * The codec of manifests: a head line in the clear (how to read the rest), then JSON lines compressed with zlib, then the sha256 of all
 * that. Order of the lines: what the backup is, repositories, users, cleanup policies, settings of tasks, blobs in the order of their digests, artifacts in the order of
 * repository and path, and the end with its counts. Pure but for zlib; memory: a few chunks.
 */
import { createHash } from 'node:crypto'
import { Readable, type Transform } from 'node:stream'
import { TextDecoder } from 'node:util'
import { createDeflate, createInflate } from 'node:zlib'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { type Digest, type Generation, parseDigest } from '../../shared/ids.ts'
import type { CleanupPolicy } from '../metadata/cleanup-types.ts'
import type { Repository, TaskSettings, User } from '../metadata/types.ts'
import type { BackupCounts } from './types.ts'

const headLine = Buffer.from('{"holdfast":"manifest","format":1}\n')
const trailerBytes = 32
/** Longer than any line: 4 KiB of path, attributes as large as a request can carry. */
const lineCharsMax = 16 * 1024 * 1024
const bufferedCharsMin = 64 * 1024

export interface ManifestStart {
  readonly kind: 'backup'
  readonly id: string
  readonly clusterId: string
  readonly incarnation: string
  readonly time: number
  /** Of Holdfast, when it was made. */
  readonly version: string
}
/** Without `upstream` in those of releases that knew none. */
export type ManifestRepository = { readonly kind: 'repository' } & Omit<Repository, 'id' | 'upstream'> &
  Partial<Pick<Repository, 'upstream'>>
export type ManifestUser = { readonly kind: 'user' } & User
export type ManifestPolicy = { readonly kind: 'policy' } & CleanupPolicy
export type ManifestTask = { readonly kind: 'task' } & TaskSettings
export interface ManifestBlob {
  readonly kind: 'blob'
  readonly digest: Digest
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
  /** Where it was when the backup was made. */
  readonly generation: Generation
  readonly partition: number
}
export interface ManifestArtifact {
  readonly kind: 'artifact'
  readonly repository: string
  readonly path: string
  readonly digest: Digest
  readonly bytes: number
  readonly version: number
  readonly contentType: string | null
  readonly attributes: Readonly<Record<string, unknown>>
  readonly createdBy: string
  readonly createdAt: number
  readonly updatedAt: number
}
export type ManifestEnd = { readonly kind: 'end' } & BackupCounts
export type ManifestEntry =
  ManifestStart | ManifestRepository | ManifestUser | ManifestPolicy | ManifestTask | ManifestBlob | ManifestArtifact

const order = ['backup', 'repository', 'user', 'policy', 'task', 'blob', 'artifact', 'end'] as const
const nothing: BackupCounts = { repositories: 0, users: 0, artifacts: 0, blobs: 0, bytes: 0 }

export function count(counts: BackupCounts, entry: ManifestEntry): BackupCounts {
  switch (entry.kind) {
    case 'backup':
    case 'policy':
    case 'task':
      return counts
    case 'repository':
      return { ...counts, repositories: counts.repositories + 1 }
    case 'user':
      return { ...counts, users: counts.users + 1 }
    case 'artifact':
      return { ...counts, artifacts: counts.artifacts + 1 }
    case 'blob':
      return { ...counts, blobs: counts.blobs + 1, bytes: counts.bytes + entry.bytes }
  }
}

/** `onEnd` hears what was in it, once all has been taken. */
export async function* encodeManifest(
  entries: AsyncIterable<ManifestEntry>,
  onEnd: (counts: BackupCounts) => void = () => {},
): AsyncGenerator<Buffer> {
  const sha256 = createHash('sha256')
  let counts = nothing
  const lines = async function* (): AsyncGenerator<Buffer> {
    let text = ''
    for await (const entry of entries) {
      counts = count(counts, entry)
      text += JSON.stringify(entry) + '\n'
      if (text.length < bufferedCharsMin) continue
      yield Buffer.from(text, 'utf8')
      text = ''
    }
    yield Buffer.from(text + JSON.stringify({ kind: 'end', ...counts } satisfies ManifestEnd) + '\n', 'utf8')
  }
  sha256.update(headLine)
  yield headLine
  for await (const chunk of through(lines(), createDeflate())) {
    sha256.update(chunk)
    yield chunk
  }
  yield sha256.digest()
  onEnd(counts)
}

/**
 * The entries in their order. Rejects with BACKUP_DAMAGED for whatever is not exactly what `encodeManifest` made; that may be known
 * only at the end: act on a manifest only after it was read to its end once.
 */
export async function* decodeManifest(bytes: AsyncIterable<Buffer>): AsyncGenerator<ManifestEntry, void> {
  let counts = nothing
  let last: (typeof order)[number] | undefined
  for await (const line of linesOf(through(bodyOf(bytes), createInflate()))) {
    const entry = parseEntry(line)
    const rank = order.indexOf(entry.kind)
    if (last === undefined ? rank !== 0 : rank === 0 || rank < order.indexOf(last) || last === 'end')
      throw damaged('order')
    last = entry.kind
    if (entry.kind === 'end') {
      const same = (Object.keys(nothing) as (keyof BackupCounts)[]).every(key => entry[key] === counts[key])
      if (!same) throw damaged('counts')
      continue
    }
    counts = count(counts, entry)
    yield entry
  }
  if (last !== 'end') throw damaged('no end')
}

/** What is between head line and trailer; checks both. */
async function* bodyOf(bytes: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const sha256 = createHash('sha256')
  let head: Buffer | undefined = Buffer.alloc(0)
  let tail: Buffer = Buffer.alloc(0)
  for await (const chunk of bytes) {
    let rest = chunk
    if (head !== undefined) {
      head = Buffer.concat([head, chunk])
      if (head.length < headLine.length) continue
      if (!head.subarray(0, headLine.length).equals(headLine)) throw damaged('head')
      sha256.update(headLine)
      rest = head.subarray(headLine.length)
      head = undefined
    }
    tail = Buffer.concat([tail, rest])
    const body = tail.subarray(0, Math.max(0, tail.length - trailerBytes))
    tail = tail.subarray(body.length)
    if (body.length === 0) continue
    sha256.update(body)
    yield body
  }
  if (head !== undefined || !tail.equals(sha256.digest())) throw damaged('checksum')
}

async function* through(input: AsyncIterable<Buffer>, stream: Transform): AsyncGenerator<Buffer> {
  const source = Readable.from(input, { objectMode: true, highWaterMark: 2 })
  // An error on either side ends the other; which of them was first is what is told.
  let failure: unknown
  source.on('error', error => {
    failure ??= error
    stream.destroy(error)
  })
  source.pipe(stream)
  try {
    yield* stream as AsyncIterable<Buffer>
  } catch (error) {
    const first = failure ?? error
    if (isHoldfastError(first) || !isZlibError(first)) throw first
    throw damaged('compression', first)
  } finally {
    source.destroy()
    stream.destroy()
  }
}

async function* linesOf(chunks: AsyncIterable<Buffer>): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  let text = ''
  for await (const chunk of chunks) {
    text += decodeText(decoder, chunk)
    const lines = text.split('\n')
    text = lines.pop() ?? ''
    if (text.length > lineCharsMax) throw damaged('a line without end')
    yield* lines
  }
  if (text !== '') throw damaged('half a line')
}

function decodeText(decoder: TextDecoder, chunk: Buffer): string {
  try {
    return decoder.decode(chunk, { stream: true })
  } catch (error) {
    throw damaged('text', error)
  }
}

/** The checksum proves that we wrote it; what becomes a name or a number is looked at all the same (I40). */
function parseEntry(line: string): ManifestEntry | ManifestEnd {
  let entry: Record<string, unknown>
  try {
    entry = JSON.parse(line) as Record<string, unknown>
  } catch (error) {
    throw damaged('a line that is no JSON', error)
  }
  const { kind, digest, bytes, repository, path } = entry
  const known = order.some(one => one === kind)
  const hasDigest = kind === 'blob' || kind === 'artifact'
  const goodDigest = typeof digest === 'string' && parseDigest(digest) !== undefined && Number.isSafeInteger(bytes)
  const goodPlace = kind !== 'artifact' || (typeof repository === 'string' && typeof path === 'string')
  if (!known || (hasDigest && !goodDigest) || !goodPlace) throw damaged('an unknown line')
  return entry as unknown as ManifestEntry | ManifestEnd
}

const isZlibError = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' && /^Z_|^ERR_/.test(error.code)

function damaged(what: string, cause?: unknown): HoldfastError {
  return new HoldfastError('BACKUP_DAMAGED', `the manifest is damaged (${what})`, {}, { cause })
}
