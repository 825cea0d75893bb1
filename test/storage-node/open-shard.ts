/** One shard without its node: opened, written and read below the wire. */
import { crc32 } from 'node:zlib'
import type { ReferenceRecord } from '../../shared/record.ts'
import { blobName } from '../../storage-node/blob-name.ts'
import { defaultLimits, type StorageNodeLimits } from '../../storage-node/config.ts'
import { newRecord } from '../../storage-node/log.ts'
import { type Clock, Shard } from '../../storage-node/shard.ts'
import { StagedFile } from '../../storage-node/staged-file.ts'
import { nodeFs, readFully, type StoreFs } from '../../storage-node/store-fs.ts'
import { blockCrcs, quiet, shardA, type TestBlob, uploadId } from './fixtures.ts'

const marker = { format: 1, clusterId: 'test', node: 'a', shard: shardA } as const
const realClock: Clock = { now: () => Date.now(), monotonic: () => performance.now() }

export async function openShard(
  fs: StoreFs,
  folder: string,
  limits: Partial<StorageNodeLimits> = {},
  clock = realClock,
): Promise<Shard> {
  const deps = { fs, log: quiet, clock, limits: { ...defaultLimits, reserveBytes: 0, ...limits } }
  const shard = new Shard(deps, { id: shardA, folder, weight: 1 })
  await shard.start(marker, true)
  return shard
}

export function appendBlob(shard: Shard, { body, ...key }: TestBlob, time = Date.now()): Promise<void> {
  return shard.append(newRecord({ kind: 'blob', ...key, crc: crc32(body), time }, body))
}

export function appendReference(shard: Shard, record: ReferenceRecord): Promise<void> {
  return shard.append(newRecord(record))
}

export async function putFile(fs: StoreFs, shard: Shard, blob: TestBlob): Promise<void> {
  const id = uploadId()
  const staged = await StagedFile.create(fs, shard.files.temporary(id))
  staged.write(blob.body)
  await staged.finish()
  await shard.commitFile(id, { ...blob, blockCrcs: blockCrcs(blob.body) })
}

/** The blob's bytes, or undefined if the shard does not have it. */
export async function readBlob(shard: Shard, blob: TestBlob): Promise<Buffer | undefined> {
  const location = await shard.locate(blobName(blob))
  if (location === undefined) return undefined
  const path = location.kind === 'file' ? shard.files.blob(blobName(blob)) : shard.segmentPath(location.segment)
  const file = await nodeFs.open(path, 'read')
  const bytes = Buffer.alloc(location.bytes)
  await readFully(file, bytes, location.kind === 'file' ? 0 : location.offset)
  await file.close()
  return bytes
}
