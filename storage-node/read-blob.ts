/**
 * Blobs on their way out. Small ones: one read into a pooled buffer, checked, one write. Larger ones: two buffers of
 * 1 MiB, the next read under way while the last write drains. Every block's CRC-32 is compared before its first byte
 * leaves (I5); a copy that fails is quarantined on the spot. Promises and closures are avoided on the small path:
 * they are a good part of what a 1 KiB answer costs.
 */
import type { ServerResponse } from 'node:http'
import { crc32 } from 'node:zlib'
import { HoldfastError } from '../shared/errors.ts'
import { blockBytes, inlineBlobBytesMax } from '../shared/record.ts'
import type { Urgency } from './background.ts'
import { BufferPool } from './buffer-pool.ts'
import { type ByteRange, parseRange } from './byte-range.ts'
import type { BlobLocation } from './index.ts'
import type { OpenFile } from './open-files.ts'
import type { Shard } from './shard.ts'
import { errnoOf, readFully } from './store-fs.ts'

const chunkBytes = 1024 * 1024
const blocksPerChunk = chunkBytes / blockBytes

const smallBuffers = new BufferPool(inlineBlobBytesMax, 64)
const chunkBuffers = new BufferPool(chunkBytes, 16)
/** Below this a slice of Node's own slab is as cheap as a pooled buffer, and needs no giving back. */
const unpooledBytesMax = 4096

export interface BlobRequest {
  readonly shard: Shard
  /** `<ppp>/<digest>.<generation>`, checked. */
  readonly name: string
  readonly rangeHeader: string | undefined
  readonly headOnly: boolean
  /** Another node copies it; undefined: a client waits. */
  readonly background: Urgency | undefined
  /** Blocks leave without a look: that node compares the sha256 of all of them, and asks again if it is another one. */
  readonly unverified: boolean
  /** Value of the epoch header of the answer. */
  readonly epoch: string
  readonly response: ServerResponse
  /** Answers with an error. */
  readonly onError: (response: ServerResponse, error: unknown) => void
}

/** One shard's copy of a blob. */
type Copy = Pick<BlobRequest, 'shard' | 'name'>

/** Answers with the blob, a part of it, or an error. Returns at once. */
export function sendBlob(request: BlobRequest): void {
  const location = request.shard.cachedLocation(request.name)
  if (location !== undefined && request.shard.health.state !== 'failed') sendLocated(request, location)
  else {
    onDisk(request, () => request.shard.locate(request.name)).then(
      found => (found === undefined ? fail(request, notFound()) : sendLocated(request, found)),
      (error: unknown) => fail(request, error),
    )
  }
}

/** Looks something small up: also for another node that is too little to have a turn of its own. */
function onDisk<Result>({ shard, background }: BlobRequest, look: () => Promise<Result>): Promise<Result> {
  return background === undefined ? shard.clients.during(look) : look()
}

function sendLocated(request: BlobRequest, location: BlobLocation): void {
  let range: ByteRange | undefined
  try {
    if (request.rangeHeader !== undefined) range = parseRange(request.rangeHeader, location.bytes)
  } catch (error) {
    return fail(request, error)
  }
  if (request.headOnly || location.bytes === 0) {
    writeHead(request, location, range)
    request.response.end()
  } else if (location.kind === 'inline') sendInline(request, location, range)
  else sendFile(request, location, range).catch((error: unknown) => fail(request, error))
}

function writeHead(
  { response, name, epoch }: BlobRequest,
  { bytes }: BlobLocation,
  range: ByteRange | undefined,
): void {
  const etag = `"${name.slice(4, 68)}"`
  if (range === undefined) {
    response.writeHead(200, ['Content-Length', String(bytes), 'ETag', etag, 'holdfast-epoch', epoch])
    return
  }
  const { first, last } = range
  response.writeHead(206, [
    ...['Content-Length', String(last - first + 1), 'ETag', etag, 'holdfast-epoch', epoch],
    ...['Content-Range', `bytes ${first}-${last}/${bytes}`],
  ])
}

function sendInline(request: BlobRequest, location: BlobLocation, range: ByteRange | undefined): void {
  const { shard } = request
  const path = shard.segmentPath(location.segment)
  const open = shard.openFiles.use(path)
  if (open !== undefined) readInline(request, location, range, open)
  else {
    openSegmentOf(request, location).then(
      opened => readInline(request, location, range, opened),
      (error: unknown) => fail(request, error),
    )
  }
}

function readInline(request: BlobRequest, location: BlobLocation, range: ByteRange | undefined, open: OpenFile): void {
  const { shard, response, background } = request
  const { bytes } = location
  const pooled = bytes > unpooledBytesMax
  if (background === undefined) shard.clients.begin()
  const buffer = pooled ? smallBuffers.take() : Buffer.allocUnsafe(bytes)
  open.file.readInto(buffer, 0, bytes, location.offset, (error, read) => {
    if (background === undefined) shard.clients.end()
    shard.openFiles.release(open)
    if (error !== null) return fail(request, readError(shard, error))
    const blob = buffer.subarray(0, bytes)
    if (read !== bytes || crc32(blob) !== location.crc)
      return fail(request, corrupt(request, location, 'checksum of the blob'))
    if (pooled) response.once('close', () => smallBuffers.give(buffer))
    writeHead(request, location, range)
    response.end(range === undefined ? blob : blob.subarray(range.first, range.last + 1))
  })
}

async function sendFile(request: BlobRequest, location: BlobLocation, range: ByteRange | undefined): Promise<void> {
  const { shard, name } = request
  const open = await openBlobFile(shard, name)
  try {
    if (!request.unverified) open.blockCrcs ??= await blockCrcsOf(request, location)
    const reader = new BlockReader(request, location, open, request.unverified ? undefined : open.blockCrcs)
    await sendChunks(request, location, range, reader)
  } finally {
    shard.openFiles.release(open)
  }
}

/** Opens the file of a blob that the index has. A file that is gone from a mounted disk is a lost copy, and noted as such. */
export async function openBlobFile(shard: Shard, name: string): Promise<OpenFile> {
  try {
    return await shard.openFiles.open(shard.files.blob(name))
  } catch (error) {
    throw await openError({ shard, name }, error, 'file is missing', () => true)
  }
}

/** Opens the log segment in which this copy, or its table, stands. A segment that is gone is a lost copy, in the same way. */
export async function openSegmentOf(copy: Copy, { segment }: BlobLocation): Promise<OpenFile> {
  const { shard } = copy
  try {
    return await shard.openFiles.open(shard.segmentPath(segment))
  } catch (error) {
    throw await openError(copy, error, 'log segment is missing', found => found.segment === segment)
  }
}

/** `isSame`: does the index still say that the copy is in the file that could not be opened? */
async function openError(
  { shard, name }: Copy,
  error: unknown,
  why: string,
  isSame: (location: BlobLocation) => boolean,
): Promise<HoldfastError> {
  if (errnoOf(error) !== 'ENOENT') return readError(shard, error)
  await shard.checkMarker()
  shard.health.checkReadable()
  // Dropped or moved while it was being looked up: nothing is wrong.
  const location = await shard.locate(name)
  if (location !== undefined && isSame(location) && !shard.isBusy(name)) {
    void shard.quarantine(name, location, why)
  }
  return notFound()
}

/** The same, and the file is looked for in its folder: a descriptor kept open would not tell that somebody removed it. */
export async function openPresentFile(shard: Shard, name: string): Promise<OpenFile> {
  const size = await shard.files.size(name).catch((error: unknown) => {
    throw readError(shard, error)
  })
  if (size === undefined) shard.openFiles.forget(shard.files.blob(name))
  return openBlobFile(shard, name)
}

/** The table stands in the log, in the blob's record. */
export async function blockCrcsOf(copy: Copy, location: BlobLocation): Promise<Buffer> {
  const { shard } = copy
  const open = await openSegmentOf(copy, location)
  try {
    const table = Buffer.alloc(Math.ceil(location.bytes / blockBytes) * 4)
    const read = await readFully(open.file, table, location.offset).catch((error: unknown) => {
      throw readError(shard, error)
    })
    if (read !== table.length || crc32(table) !== location.crc) throw corrupt(copy, location, 'block checksums')
    return table
  } finally {
    shard.openFiles.release(open)
  }
}

/** Reads blocks of one blob file, verified if it is given their CRCs. */
export class BlockReader {
  readonly #copy: Copy
  readonly #location: BlobLocation
  readonly #open: OpenFile
  readonly #blockCrcs: Buffer | undefined

  constructor(copy: Copy, location: BlobLocation, open: OpenFile, blockCrcs: Buffer | undefined) {
    this.#copy = copy
    this.#location = location
    this.#open = open
    this.#blockCrcs = blockCrcs
  }

  /** Whole blocks from `block` on into `target`, as many as fit and there are. Rejects with BLOB_CORRUPT. */
  async read(target: Buffer, block: number, blockCount: number): Promise<Buffer> {
    const start = block * blockBytes
    const chunk = target.subarray(0, Math.min(blockCount * blockBytes, this.#location.bytes - start))
    const read = await readFully(this.#open.file, chunk, start).catch((error: unknown) => {
      throw readError(this.#copy.shard, error)
    })
    if (read !== chunk.length) throw corrupt(this.#copy, this.#location, 'file is too short')
    if (this.#blockCrcs === undefined) return chunk
    for (let at = 0, index = block; at < chunk.length; at += blockBytes, index += 1) {
      if (crc32(chunk.subarray(at, at + blockBytes)) !== this.#blockCrcs.readUInt32LE(index * 4)) {
        throw corrupt(this.#copy, this.#location, `checksum of block ${index}`)
      }
    }
    return chunk
  }
}

async function sendChunks(
  request: BlobRequest,
  location: BlobLocation,
  range: ByteRange | undefined,
  reader: BlockReader,
): Promise<void> {
  const { response, shard, background } = request
  const left = new AbortController()
  if (background !== undefined) {
    response.once('close', () => left.abort(new HoldfastError('BAD_REQUEST', 'nobody takes the blob any more')))
  }
  const { first, last } = range ?? { first: 0, last: location.bytes - 1 }
  const lastBlock = Math.floor(last / blockBytes)
  const readAt = (block: number, buffer: Buffer): Promise<Buffer> => {
    const read = () => reader.read(buffer, block, Math.min(blocksPerChunk, lastBlock + 1 - block))
    if (background === undefined) return shard.clients.during(read)
    return shard.background.run(buffer.length, { urgency: background, signal: left.signal }, read)
  }
  const writer = new ResponseWriter(response, shard.limits.stallMs)
  let buffer = chunkBuffers.take()
  let spare: Buffer | undefined
  let block = Math.floor(first / blockBytes)
  let flushed = Promise.resolve(true)
  let reading = readAt(block, buffer)
  try {
    for (;;) {
      const chunk = await reading
      const start = block * blockBytes
      const part = chunk.subarray(Math.max(0, first - start), last + 1 - start)
      if (!response.headersSent) writeHead(request, location, range)
      block += blocksPerChunk
      if (block > lastBlock) {
        if ((await flushed) && (await writer.end(part))) chunkBuffers.give(buffer)
        return
      }
      if (!(await flushed)) return
      flushed = writer.write(part)
      const next = spare ?? chunkBuffers.take()
      spare = buffer
      buffer = next
      reading = readAt(block, buffer)
      // Awaited at the top of the loop; until then its rejection is nobody's.
      reading.catch(() => undefined)
    }
  } finally {
    // Of a client that left, the kernel may still hold the buffers: those are left to the garbage collector.
    if (spare !== undefined && (await flushed)) chunkBuffers.give(spare)
  }
}

/** Writes that say when their buffer is free again, and whether anybody is still there. */
export class ResponseWriter {
  readonly #response: ServerResponse
  readonly #stallMs: number
  #settle: ((open: boolean) => void) | undefined

  constructor(response: ServerResponse, stallMs: number) {
    this.#response = response
    this.#stallMs = stallMs
    // 'drain' and write callbacks may never come once the client is gone; 'close' always does.
    response.once('close', () => this.#settle?.(response.writableFinished))
  }

  write(chunk: Buffer): Promise<boolean> {
    return this.#send(done => this.#response.write(chunk, done))
  }

  end(chunk: Buffer): Promise<boolean> {
    return this.#send(done => this.#response.end(chunk, () => done(null)))
  }

  #send(start: (done: (error?: Error | null) => void) => void): Promise<boolean> {
    if (this.#response.destroyed) return Promise.resolve(false)
    return new Promise(resolve => {
      const timer = setTimeout(() => this.#response.destroy(), this.#stallMs)
      this.#settle = open => {
        clearTimeout(timer)
        this.#settle = undefined
        resolve(open)
      }
      start(error => this.#settle?.(error === undefined || error === null))
    })
  }
}

function fail(request: BlobRequest, error: unknown): void {
  request.onError(request.response, error)
}

function notFound(): HoldfastError {
  return new HoldfastError('BLOB_NOT_FOUND', 'this shard does not have the blob')
}

function corrupt({ shard, name }: Copy, location: BlobLocation, why: string): HoldfastError {
  void shard.quarantine(name, location, why)
  return new HoldfastError('BLOB_CORRUPT', 'the copy on this shard is corrupt', { why })
}

/** Nothing is known about the copy when the disk does not answer; the disk is looked at more closely. */
export function readError(shard: Shard, error: unknown): HoldfastError {
  if (error instanceof HoldfastError) return error
  shard.log.error({ err: error }, 'reading failed')
  void shard.checkMarker()
  return new HoldfastError('SHARD_FAILED', 'reading failed', { errno: errnoOf(error) }, { cause: error })
}
