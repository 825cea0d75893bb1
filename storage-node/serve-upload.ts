/** What an upload, still in flight or staged, has on disk so far: a replica that joins late pulls its beginning from here. */
import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { HoldfastError } from '../shared/errors.ts'
import { parseRange } from './byte-range.ts'
import { readError } from './read-blob.ts'
import type { OpenFile } from './open-files.ts'
import type { Shard } from './shard.ts'
import { errnoOf, readFully } from './store-fs.ts'
import type { WrittenUpload } from './uploads.ts'

const chunkBytes = 1024 * 1024

/**
 * Answers with the range as far as it is written. Not verified against checksums here: whoever commits what was built on
 * it compares the whole block CRC table.
 */
export async function serveUpload(
  shard: Shard,
  upload: WrittenUpload,
  rangeHeader: string | undefined,
  response: ServerResponse,
): Promise<void> {
  const { first, last } = parseRange(rangeHeader ?? 'bytes=0-', upload.bytes)
  const { open, path } = await openWritten(shard, upload)
  const closed = new AbortController()
  response.once('close', () => closed.abort())
  try {
    response.writeHead(206, ['Content-Length', String(last - first + 1), 'Content-Range', `bytes ${first}-${last}/*`])
    for (let at = first; at <= last && !response.destroyed; at += chunkBytes) {
      const chunk = Buffer.allocUnsafe(Math.min(chunkBytes, last + 1 - at))
      if ((await readFully(open.file, chunk, at)) !== chunk.length) throw new Error('the upload shrank')
      if (!response.write(chunk)) {
        const stall = AbortSignal.timeout(shard.limits.stallMs)
        await once(response, 'drain', { signal: AbortSignal.any([closed.signal, stall]) })
      }
    }
    response.end()
  } catch {
    // The client left, or the upload did: the length that was announced tells the other side that this is not all.
    response.destroy()
  } finally {
    shard.openFiles.release(open)
    shard.openFiles.forget(path)
  }
}

/**
 * Its own descriptor: the file may be moved or unlinked at any time, and is never read twice. A commit that has begun since the look-up
 * may have moved it already: it is the blob's file then, whose bytes are the same.
 */
async function openWritten(shard: Shard, upload: WrittenUpload): Promise<{ open: OpenFile; path: string }> {
  for (let path: string | undefined = upload.path; path !== undefined; path = upload.movedTo(path)) {
    try {
      return { open: await shard.openFiles.open(path), path }
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw readError(shard, error)
    }
  }
  throw new HoldfastError('UPLOAD_NOT_FOUND', 'no such upload on this shard')
}
