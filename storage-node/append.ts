/** The body of an append request: what is in it, and whether each record may rest on a shard. */
import { hash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { HoldfastError } from '../shared/errors.ts'
import { isDigest, parseGeneration, parseShardId, type ShardId } from '../shared/ids.ts'
import { partitionCount, partitionOf } from '../shared/partition.ts'
import { type BlobRecord, decodeRecord, inlineBlobBytesMax, type ReferenceRecord } from '../shared/record.ts'
import { pathKey } from './apply-records.ts'
import type { NewRecord } from './log.ts'

export interface AppendItem extends NewRecord {
  /** As sent; unknown shards are found out later. */
  readonly shard: ShardId
  /** Why this record is refused; the others of the batch are not. */
  readonly problem: HoldfastError | undefined
}

/** A key is a LevelDB key and part of a URL. */
export const pathKeyBytesMax = 8 * 1024

/**
 * Takes a batch apart. Throws RECORD_DAMAGED if any frame is cut off or fails its checksum: where one ends the next
 * begins, so nothing behind it could be trusted. What a whole record says is judged item by item.
 */
export function parseAppend(body: Buffer): AppendItem[] {
  const items: AppendItem[] = []
  let offset = 0
  while (offset < body.length) {
    const idBytes = body[offset] ?? 0
    const frameStart = offset + 1 + idBytes
    const shard = parseShardId(body.toString('latin1', offset + 1, frameStart))
    if (shard === undefined) throw damaged(offset)
    const decoded = decodeRecord(body, frameStart)
    if (typeof decoded === 'string') throw damaged(offset)
    const { record, payload, end } = decoded
    const frame = body.subarray(frameStart, end)
    const problem = problemOf(record, payload)
    items.push({ shard, record, frame, payloadOffset: decoded.payloadOffset - frameStart, problem })
    offset = end
  }
  return items
}

/** `sha256(payload)` is checked too: 40 us for the largest, and no mistake of a sender can put wrong bytes under a digest. */
function problemOf(record: NewRecord['record'], payload: Buffer): HoldfastError | undefined {
  if (record.kind === 'blob') return blobProblem(record, payload)
  if (record.kind === 'reference') return referenceProblem(record)
  return new HoldfastError('BAD_REQUEST', `records of kind ${record.kind} are written by nodes only`)
}

function blobProblem(record: BlobRecord, payload: Buffer): HoldfastError | undefined {
  const { partition, digest, generation, bytes, crc } = record
  if (!isBlobKey({ partition, digest, generation }) || !isTime(record.time)) return badRecord('blob')
  if (bytes !== payload.length || bytes > inlineBlobBytesMax) return badRecord('blob length')
  if (crc !== crc32(payload) || hash('sha256', payload) !== digest) {
    return new HoldfastError('CHECKSUM_MISMATCH', 'the payload is not what the record says', { digest })
  }
  return undefined
}

function referenceProblem(record: ReferenceRecord): HoldfastError | undefined {
  const { repository, path, op, version, incarnation, time, blob } = record
  if (typeof repository !== 'string' || typeof path !== 'string' || typeof incarnation !== 'string') {
    return badRecord('reference')
  }
  if (repository === '' || repository.includes('/') || Buffer.byteLength(pathKey(record)) > pathKeyBytesMax) {
    return badRecord('reference path')
  }
  if (record.partition !== partitionOf(repository, path)) return badRecord('reference partition')
  if (!Number.isSafeInteger(version) || version < 1 || !isTime(time)) return badRecord('reference version')
  if (op === 'delete') return blob === undefined ? undefined : badRecord('reference: a delete names no blob')
  if (op !== 'put' || blob === undefined || !isBlobKey(blob)) return badRecord('reference blob')
  return undefined
}

/** Is this what may name a blob? Also for what came as JSON. */
export function isBlobKey(key: { partition: unknown; digest: unknown; generation: unknown }): boolean {
  const { partition, digest, generation } = key
  if (typeof partition !== 'number' || typeof digest !== 'string' || typeof generation !== 'string') return false
  if (!Number.isInteger(partition) || partition < 0 || partition >= partitionCount) return false
  return isDigest(digest) && parseGeneration(generation) !== undefined
}

/** What fits the 48 bits an index entry has for it. */
const isTime = (time: unknown): boolean => Number.isSafeInteger(time) && Number(time) >= 0 && Number(time) < 2 ** 47

function badRecord(what: string): HoldfastError {
  return new HoldfastError('BAD_REQUEST', `not a valid record: ${what}`)
}

function damaged(offset: number): HoldfastError {
  return new HoldfastError('RECORD_DAMAGED', 'the batch is damaged; nothing of it was written', { offset })
}
