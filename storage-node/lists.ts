/** What a shard has: its references, and its blobs page by page. All reject with SHARD_FAILED when it cannot be read. */
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { decodeRecord, type ReferenceRecord } from '../shared/record.ts'
import { partitionName } from '../shared/partition.ts'
import type {
  BlobListing,
  LossListing,
  ReferenceListing,
  ReferencesRequest,
  UnconfirmedAnswer,
} from '../shared/wire.ts'
import { blobName, parseBlobName } from './blob-name.ts'
import {
  blobKey,
  decodeBlobLocation,
  decodeLoss,
  decodeReferenceLocation,
  type ListRange,
  type ReferenceLocation,
  referenceKey,
  timeText,
} from './index.ts'
import { readError } from './read-blob.ts'
import type { Shard } from './shard.ts'
import { errnoOf, readFully } from './store-fs.ts'

/** Records of a page, in the log: they may be 32 KiB each. */
const pageBytesMax = 4 * 1024 * 1024

export interface Page {
  /** `next` of the page before. */
  readonly after: string | undefined
  readonly limit: number
}

/**
 * The newest reference of a path. Rejects with REFERENCE_NOT_FOUND, RECORD_DAMAGED when this copy of it is, or SHARD_RECOVERING: it is
 * not here, but may have been.
 */
export async function findReference(shard: Shard, partition: number, key: string): Promise<ReferenceRecord> {
  shard.health.checkReadable()
  const indexKey = referenceKey(partitionName(partition), key)
  const value = await shard.lookUp(index => index.get(indexKey))
  if (value === undefined) {
    if (shard.identity.recovering !== undefined) throw recoveringError()
    throw new HoldfastError('REFERENCE_NOT_FOUND', 'no such reference on this shard')
  }
  const record = await readReference(shard, value)
  if (record !== undefined) return record
  if (!(await forgetReference(shard, indexKey, value))) return findReference(shard, partition, key)
  throw new HoldfastError('RECORD_DAMAGED', 'the record of this reference is damaged on this shard')
}

/** As `findReference` of each; null: it rejects, or what was found before it fills an answer. Rejects with SHARD_FAILED. */
export async function findReferences(
  shard: Shard,
  items: ReferencesRequest['references'],
): Promise<(ReferenceRecord | null)[]> {
  const found: (ReferenceRecord | null)[] = []
  let bytes = 0
  for (const { partition, key } of items) {
    const record = bytes < pageBytesMax ? await findOrNull(shard, partition, key) : null
    if (record !== null) bytes += JSON.stringify(record).length
    found.push(record)
  }
  return found
}

async function findOrNull(shard: Shard, partition: number, key: string): Promise<ReferenceRecord | null> {
  try {
    return await findReference(shard, partition, key)
  } catch (error) {
    if (!isHoldfastError(error) || error.code === 'SHARD_FAILED') throw error
    return null
  }
}

/** Nothing follows from what is not on this shard. */
export function recoveringError(): HoldfastError {
  return new HoldfastError(
    'SHARD_RECOVERING',
    'the shard may lack what it should have: its disk is new, or lost something',
  )
}

/**
 * The record of this reference is damaged: the index forgets it, so that the comparison with other shards finds it missing. False if
 * the index has another one since.
 */
export async function forgetReference(shard: Shard, indexKey: string, value: Buffer): Promise<boolean> {
  await shard.lostReference()
  if (!(await shard.forget(indexKey, value))) return false
  shard.damagedCount += 1
  shard.log.error({ key: indexKey }, 'damaged reference record')
  return true
}

/** Copies that were found corrupt or missing, and are not back. */
export async function listLosses(shard: Shard, page: Page): Promise<LossListing> {
  const prefix = 'l/'
  const entries = await listEntries(shard, { prefix }, page)
  const now = shard.clock.monotonic()
  const losses = entries.map(([key, value]) => {
    const heldMs = Math.floor(shard.entryAges.age(key, now))
    return { ...parseBlobName(key.slice(2)), ...decodeLoss(value), heldMs }
  })
  return { losses, ...nextPage(entries, page, prefix) }
}

/** Of one partition, or of all. Damaged ones are left out, and logged. */
export async function listReferences(shard: Shard, partition: number | 'all', page: Page): Promise<ReferenceListing> {
  const prefix = partition === 'all' ? 'r/' : referenceKey(partitionName(partition), '')
  const entries = await listEntries(shard, { prefix }, page)
  const references: ReferenceRecord[] = []
  let bytes = 0
  for (const [key, value] of entries) {
    const record = await readEntry(shard, key, value)
    if (record !== undefined) references.push(record)
    else shard.log.error({ key }, 'damaged reference record')
    bytes += decodeReferenceLocation(value)?.frameBytes ?? 0
    if (bytes >= pageBytesMax) return { references, next: key.slice(prefix.length) }
  }
  return { references, ...nextPage(entries, page, prefix) }
}

/** The record of this entry, or of what is in its place by now: a compaction may have moved it. Undefined if it is damaged. */
export async function readEntry(shard: Shard, indexKey: string, value: Buffer): Promise<ReferenceRecord | undefined> {
  const record = await readReference(shard, value)
  if (record !== undefined) return record
  const now = await shard.lookUp(index => index.get(indexKey))
  return now === undefined || now.equals(value) ? undefined : readEntry(shard, indexKey, now)
}

export async function listBlobs(shard: Shard, partition: number, page: Page): Promise<BlobListing> {
  const prefix = blobKey(`${partitionName(partition)}/`)
  const entries = await listEntries(shard, { prefix }, page)
  const blobs = entries.map(([key, value]) => {
    return { ...parseBlobName(key.slice(2)), bytes: decodeBlobLocation(value)?.bytes ?? 0 }
  })
  return { blobs: blobs.filter(blob => !shard.isCorrupt(blobName(blob))), ...nextPage(entries, page, prefix) }
}

/**
 * Blobs that no reference has named, in the order of the times in their records. Only those that have been here for so long by the
 * monotonic clock, too; of what an earlier run of this process has left nothing is older than this run.
 */
export async function listUnconfirmed(shard: Shard, olderThanMs: number, page: Page): Promise<UnconfirmedAnswer> {
  const now = shard.clock.now()
  const monotonicNow = shard.clock.monotonic()
  const prefix = 'u/'
  const entries = await listEntries(shard, { prefix, before: `${prefix}${timeText(now - olderThanMs)}/` }, page)
  const blobs: UnconfirmedAnswer['blobs'][number][] = []
  for (const [key] of entries) {
    const heldMs = shard.entryAges.age(key, monotonicNow)
    if (heldMs < olderThanMs) continue
    const [time = '', partition = '', file = ''] = key.slice(prefix.length).split('/')
    const name = `${partition}/${file}`
    const location = await shard.locate(name)
    if (location === undefined) continue
    blobs.push({
      ...parseBlobName(name),
      bytes: location.bytes,
      ageMs: Math.max(0, Math.min(now - Number(time), heldMs)),
    })
  }
  return { blobs, ...nextPage(entries, page, prefix) }
}

function listEntries(
  shard: Shard,
  range: Pick<ListRange, 'prefix' | 'before'>,
  { after, limit }: Page,
): Promise<[string, Buffer][]> {
  shard.health.checkReadable()
  const start = after === undefined ? {} : { after: range.prefix + after }
  return shard.lookUp(index => index.list({ ...range, ...start, limit }))
}

function nextPage(entries: readonly [string, Buffer][], { limit }: Page, prefix: string): { next?: string } {
  const last = entries.at(-1)
  return last === undefined || entries.length < limit ? {} : { next: last[0].slice(prefix.length) }
}

/** The record from the log, or undefined if it is damaged or its segment is gone. Rejects with SHARD_FAILED. */
export async function readReference(shard: Shard, value: Buffer): Promise<ReferenceRecord | undefined> {
  const location = decodeReferenceLocation(value)
  if (location === undefined) return undefined
  try {
    return await readRecord(shard, location)
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw readError(shard, error)
    await shard.checkMarker()
    shard.health.checkReadable()
    return undefined
  }
}

async function readRecord(shard: Shard, { segment, frameOffset, frameBytes }: ReferenceLocation) {
  const open = await shard.openFiles.open(shard.segmentPath(segment))
  try {
    const frame = Buffer.allocUnsafe(frameBytes)
    const bytes = await readFully(open.file, frame, frameOffset)
    const decoded = decodeRecord(frame.subarray(0, bytes))
    return typeof decoded === 'string' || decoded.record.kind !== 'reference' ? undefined : decoded.record
  } finally {
    shard.openFiles.release(open)
  }
}
