/** Reads a copy from its first to its last byte and compares everything there is to compare. */
import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { blockBytes } from '../shared/record.ts'
import type { VerifyAnswer } from '../shared/wire.ts'
import type { BlobLocation } from './index.ts'
import { BlockReader, blockCrcsOf, openBlobFile, openSegmentOf, readError } from './read-blob.ts'
import type { Shard } from './shard.ts'
import { isHoldfastError } from '../shared/errors.ts'
import { readFully } from './store-fs.ts'

const blocksAtOnce = 4

/** Reads so many bytes when it may. */
type Turn = <Result>(bytes: number, read: () => Promise<Result>) => Promise<Result>

/**
 * Is this copy good: length, CRC of every block, sha256? A bad one is put into quarantine before the answer. Rejects with
 * SHARD_FAILED when the disk does not answer: that says nothing about the copy. A large copy is read in several turns.
 */
export async function verifyBlob(
  shard: Shard,
  name: string,
  signal: AbortSignal,
  turn: Turn = (_, read) => read(),
): Promise<VerifyAnswer> {
  const location = await shard.locate(name)
  if (location === undefined) return { state: shard.isCorrupt(name) ? 'corrupt' : 'missing' }
  const { bytes } = location
  try {
    const problem = await (location.kind === 'inline' ? turn(bytes, () => checkInline(shard, location, name)) : checkFile(shard, location, name, signal, turn)) // prettier-ignore
    if (problem === undefined) return { state: 'good', bytes }
    await shard.quarantine(name, location, problem)
    return { state: 'corrupt', bytes, reason: problem }
  } catch (error) {
    if (isHoldfastError(error, 'BLOB_NOT_FOUND')) return { state: 'missing', reason: 'its file is missing' }
    if (isHoldfastError(error, 'BLOB_CORRUPT')) return { state: 'corrupt', bytes, reason: String(error.data['why']) }
    throw error
  }
}

async function checkInline(shard: Shard, location: BlobLocation, name: string) {
  const { bytes, offset, crc } = location
  const open = await openSegmentOf({ shard, name }, location)
  try {
    const blob = Buffer.allocUnsafe(bytes)
    const read = await readFully(open.file, blob, offset).catch((error: unknown) => {
      throw readError(shard, error)
    })
    if (read !== bytes || crc32(blob) !== crc) return 'checksum of the blob'
    return createHash('sha256').update(blob).digest('hex') === digestIn(name) ? undefined : 'sha256 of the blob'
  } finally {
    shard.openFiles.release(open)
  }
}

async function checkFile(shard: Shard, location: BlobLocation, name: string, signal: AbortSignal, turn: Turn) {
  // Anew: by now another file may stand under the name than the one that is kept open.
  shard.openFiles.forget(shard.files.blob(name))
  const open = await openBlobFile(shard, name)
  try {
    if ((await open.file.size()) !== location.bytes) return 'length of the file'
    open.blockCrcs ??= await blockCrcsOf({ shard, name }, location)
    const reader = new BlockReader({ shard, name }, location, open, open.blockCrcs)
    const sha256 = createHash('sha256')
    const buffer = Buffer.allocUnsafe(blocksAtOnce * blockBytes)
    const blockCount = Math.ceil(location.bytes / blockBytes)
    for (let block = 0; block < blockCount; block += blocksAtOnce) {
      signal.throwIfAborted()
      const count = Math.min(blocksAtOnce, blockCount - block)
      const bytes = Math.min(count * blockBytes, location.bytes - block * blockBytes)
      await turn(bytes, async () => sha256.update(await reader.read(buffer, block, count)))
    }
    return sha256.digest('hex') === digestIn(name) ? undefined : 'sha256 of the blob'
  } finally {
    shard.openFiles.release(open)
  }
}

/** Of `<ppp>/<digest>.<generation>`. */
const digestIn = (name: string): string => name.slice(4, 68)
