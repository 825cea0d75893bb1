/** JSON bodies of the wire, checked field by field: digests and generations become file names (I40). */
import { bundleCountMax } from '../shared/bundle.ts'
import { HoldfastError } from '../shared/errors.ts'
import { parseShardId, type ShardId } from '../shared/ids.ts'
import type {
  BlobKey,
  BundleRequest,
  DropRequest,
  EntriesRequest,
  FolderRequest,
  ReferencesRequest,
  TouchRequest,
  TransferRequest,
  VersionsRequest,
} from '../shared/wire.ts'
import { isBlobKey, pathKeyBytesMax } from './append.ts'
import { partitionCount } from '../shared/partition.ts'
import type { CommitOrder } from './uploads.ts'

type Fields = Record<string, unknown>

/** Of what a client says where a page begins, any longer path is behind every other one. */
const startBytesMax = 4 * pathKeyBytesMax
const itemCountMax = 10_000
const sourceCountMax = 32
const sourceUrlPattern = /^https?:\/\/[^/?#@\s]{1,255}$/

export function parseTouch(fields: Fields): TouchRequest {
  return { items: list(fields['items']).map(item => ({ ...blobKeyOf(item), shard: shardOf(item['shard']) })) }
}

export function parseDrop(fields: Fields): DropRequest {
  const { reason } = fields as { reason?: unknown }
  if (reason !== 'deleted' && reason !== 'moved') throw bad('reason')
  return { shard: shardOf(fields['shard']), reason, blobs: list(fields['blobs']).map(blobKeyOf) }
}

export function parseTransfer(fields: Fields): TransferRequest {
  const blobs = list(fields['blobs']).map(blob => {
    const sources = list(blob['sources']).map(source => {
      const url = source['url']
      if (typeof url !== 'string' || !sourceUrlPattern.test(url)) throw bad('source url')
      return { url, shard: shardOf(source['shard']) }
    })
    if (sources.length > sourceCountMax) throw bad('sources')
    return { ...blobKeyOf(blob), bytes: bytesOf(blob['bytes']), sources }
  })
  return { shard: shardOf(fields['shard']), blobs }
}

export function parseBundle(fields: Fields): BundleRequest {
  const blobs = list(fields['blobs']).map(blobKeyOf)
  if (blobs.length > bundleCountMax) throw bad('list')
  return { blobs }
}

export function parseVersions(fields: Fields): VersionsRequest {
  return { shard: shardOf(fields['shard']), ...parseReferences(fields) }
}

export function parseReferences(fields: Fields): ReferencesRequest {
  const references = list(fields['references']).map(({ partition, key }) => {
    if (!isPartition(partition) || typeof key !== 'string' || Buffer.byteLength(key) > pathKeyBytesMax) {
      throw bad('reference')
    }
    return { partition, key }
  })
  return { references }
}

export function parseEntries(fields: Fields): EntriesRequest {
  const lists = list(fields['lists']).map(({ partition, of }): EntriesRequest['lists'][number] => {
    if (!isPartition(partition) || (of !== 'blobs' && of !== 'references')) throw bad('list')
    return { partition, of }
  })
  const limit = fields['limit']
  if (!Number.isSafeInteger(limit) || Number(limit) < 1) throw bad('limit')
  return { lists, limit: Number(limit) }
}

export function parseFolder({ folder, start, limit, deep }: Fields): FolderRequest {
  if (typeof folder !== 'string' || !folder.endsWith('/') || Buffer.byteLength(folder) > pathKeyBytesMax) {
    throw bad('folder')
  }
  if (typeof start !== 'string' || !start.startsWith(folder) || Buffer.byteLength(start) > startBytesMax) {
    throw bad('start')
  }
  if (!Number.isSafeInteger(limit) || Number(limit) < 1) throw bad('limit')
  return { folder, start, limit: Number(limit), deep: deep === true }
}

const isPartition = (value: unknown): value is number =>
  Number.isInteger(value) && Number(value) >= 0 && Number(value) < partitionCount

export function parseCommit(fields: Fields): CommitOrder {
  const table = fields['blockCrcs']
  if (typeof table !== 'string') throw bad('blockCrcs')
  return { ...blobKeyOf(fields), bytes: bytesOf(fields['bytes']), blockCrcs: Buffer.from(table, 'base64') }
}

function blobKeyOf(fields: Fields): BlobKey {
  const { partition, digest, generation } = fields as unknown as BlobKey
  if (!isBlobKey({ partition, digest, generation })) throw bad('blob')
  return { partition, digest, generation }
}

function shardOf(value: unknown): ShardId {
  const shard = typeof value === 'string' ? parseShardId(value) : undefined
  if (shard === undefined) throw bad('shard')
  return shard
}

function bytesOf(value: unknown): number {
  if (!Number.isSafeInteger(value) || Number(value) < 0) throw bad('bytes')
  return Number(value)
}

function list(value: unknown): Fields[] {
  if (!Array.isArray(value) || value.length > itemCountMax) throw bad('list')
  if (value.some(item => typeof item !== 'object' || item === null)) throw bad('list')
  return value as Fields[]
}

function bad(what: string): HoldfastError {
  return new HoldfastError('BAD_REQUEST', `the request has no valid ${what}`)
}
