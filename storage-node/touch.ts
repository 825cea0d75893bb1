import { crc32 } from 'node:zlib'
import type { TouchAnswer } from '../shared/wire.ts'
import type { BlobLocation } from './index.ts'
import { openPresentFile, openSegmentOf } from './read-blob.ts'
import type { Shard } from './shard.ts'
import { readFully } from './store-fs.ts'

/**
 * Does the shard hold this blob, durably (I24)? A record in the index was flushed before it got there. A small blob is
 * read and checked; of a file, existence and length are, its blocks being checked by every read.
 */
export async function touchBlob(shard: Shard, name: string): Promise<TouchAnswer['results'][number]> {
  try {
    const location = await shard.locate(name)
    if (location === undefined) return 'missing'
    return (await (location.kind === 'inline' ? holdsInline : holdsFile)(shard, name, location)) ? 'held' : 'missing'
  } catch (error) {
    shard.log.debug({ err: error, blob: name }, 'touch failed')
    return shard.health.state === 'failed' ? 'unavailable' : 'missing'
  }
}

async function holdsInline(shard: Shard, name: string, location: BlobLocation): Promise<boolean> {
  const open = await openSegmentOf({ shard, name }, location)
  try {
    const blob = Buffer.allocUnsafe(location.bytes)
    const read = await readFully(open.file, blob, location.offset)
    if (read === blob.length && crc32(blob) === location.crc) return true
    void shard.quarantine(name, location, 'checksum of the blob')
    return false
  } finally {
    shard.openFiles.release(open)
  }
}

async function holdsFile(shard: Shard, name: string, location: BlobLocation): Promise<boolean> {
  const open = await openPresentFile(shard, name)
  try {
    if ((await open.file.size()) === location.bytes) return true
    void shard.quarantine(name, location, 'length of the file')
    return false
  } finally {
    shard.openFiles.release(open)
  }
}
