/**
 * Uploads of one shard: received into temporary files, then committed or dropped. What is staged lives in memory and in tmp/
 * only: a crash or a restart forgets it, and the proxy, which has no answer, goes elsewhere.
 */
import type { IncomingMessage } from 'node:http'
import { HoldfastError } from '../shared/errors.ts'
import type { BlobKey, UploadAnswer } from '../shared/wire.ts'
import type { Urgency } from './background.ts'
import { blobName } from './blob-name.ts'
import type { Shard } from './shard.ts'
import { type FinishedFile, StagedFile } from './staged-file.ts'
import { errnoOf, type StoreFs } from './store-fs.ts'

interface Upload {
  readonly staged: StagedFile
  readonly from: 'proxy' | 'node'
  finished: FinishedFile | undefined
  committing: Promise<void> | undefined
  /** Where a commit moves its file; stays when the commit is over. */
  blobPath: string | undefined
  /** Monotonic. */
  touchedAt: number
}

/** What can be read of an upload. */
export interface WrittenUpload {
  readonly path: string
  readonly bytes: number
  /** Where to look when there is no file under `path`; undefined: it is gone. */
  readonly movedTo: (path: string) => string | undefined
}

export interface CommitOrder extends BlobKey {
  readonly bytes: number
  readonly blockCrcs: Buffer
  readonly confirmed?: true
}

/** Ids of aborted uploads that are remembered; an upload comes at most seconds after its abort. */
const abortedCountMax = 10_000
/** What is complete is committed at once, unless its proxy died or waits for a slower replica. */
const commitWithinMs = 10_000

export class Uploads {
  readonly #fs: StoreFs
  readonly #shard: Shard
  readonly #uploads = new Map<string, Upload>()
  /**
   * An abort may overtake its upload, which comes over another connection: what begins afterwards (or is just making its file) must
   * not stay behind, complete and with nobody to commit it. Ids are never used twice. The oldest are forgotten first.
   */
  readonly #aborted = new Set<string>()

  constructor(fs: StoreFs, shard: Shard) {
    this.#fs = fs
    this.#shard = shard
  }

  get count(): number {
    return this.#uploads.size
  }

  /** Is one of a proxy in flight, or staged so lately that its commit may be on its way? */
  get isAwaited(): boolean {
    const since = this.#shard.clock.monotonic() - commitWithinMs
    return [...this.#uploads.values()].some(
      ({ from, finished, touchedAt }) => from === 'proxy' && (finished === undefined || touchedAt > since),
    )
  }

  /**
   * Receives a body; resolves when it is written and flushed. A body that breaks off, stalls or is too large leaves nothing.
   * `expectedBytes` is what the shard must have room for (INSUFFICIENT_STORAGE).
   */
  async receive(id: string, body: IncomingMessage, expectedBytes: number | undefined): Promise<UploadAnswer> {
    const upload = await this.#begin(id, expectedBytes, 'proxy')
    try {
      await this.#pump(body, upload.staged)
      return await this.#finish(upload)
    } catch (error) {
      await this.abort(id)
      throw error instanceof HoldfastError ? error : this.#shard.writeError(error)
    }
  }

  /** The same for bytes from another node, a piece of 1 MiB at most in each turn of the disk (background.ts). A piece is written when the next is asked for. */
  async receiveFrom(
    id: string,
    pieces: AsyncIterable<Buffer>,
    expectedBytes: number,
    turn: { readonly urgency?: Urgency; readonly signal?: AbortSignal } = {},
  ): Promise<FinishedFile> {
    const { background } = this.#shard
    const upload = await this.#begin(id, expectedBytes, 'node')
    try {
      for await (const piece of pieces) {
        const write = () => this.#writePiece(upload.staged, piece, background.share(turn.urgency))
        await background.run(piece.length, turn, write)
      }
      await background.run(0, turn, () => this.#finish(upload))
    } catch (error) {
      await this.abort(id)
      throw error
    }
    if (upload.finished === undefined) throw new HoldfastError('UPLOAD_NOT_FOUND', 'the upload was aborted')
    return upload.finished
  }

  /** Of an upload in flight or being committed, too; its hold begins anew. UPLOAD_NOT_FOUND. */
  written(id: string): WrittenUpload {
    const upload = this.#uploads.get(id)
    if (upload === undefined) throw notFound(id)
    upload.touchedAt = this.#shard.clock.monotonic()
    const { path, writtenBytes: bytes } = upload.staged
    return { path, bytes, movedTo: from => (from === path ? upload.blobPath : undefined) }
  }

  /**
   * Makes a staged upload a blob (idempotent). CHECKSUM_MISMATCH if bytes or table differ from what arrived: the upload is gone
   * then. UPLOAD_NOT_FOUND unless the blob is already held.
   */
  async commit(id: string, order: CommitOrder): Promise<void> {
    const upload = this.#uploads.get(id)
    if (upload === undefined) {
      const held = await this.#shard.locate(blobName(order))
      if (held?.bytes === order.bytes) return
      throw notFound(id)
    }
    if (upload.finished === undefined) throw new HoldfastError('CONFLICT', 'the upload is not complete', { id })
    upload.blobPath ??= this.#shard.files.blob(blobName(order))
    upload.committing ??= this.#commit(id, upload.finished, order)
    await upload.committing
  }

  /** Drops an upload, in flight, staged, or still to come. Resolves also if there is none. */
  async abort(id: string): Promise<void> {
    this.#aborted.add(id)
    if (this.#aborted.size > abortedCountMax)
      for (const oldest of this.#aborted) {
        this.#aborted.delete(oldest)
        break
      }
    const upload = this.#uploads.get(id)
    if (upload === undefined || upload.committing !== undefined) return
    this.#uploads.delete(id)
    await upload.staged.abort()
  }

  /** Drops what was staged, and then neither committed nor read, for `stagedHoldMs`. */
  async expire(): Promise<void> {
    const before = this.#shard.clock.monotonic() - this.#shard.limits.stagedHoldMs
    for (const [id, upload] of this.#uploads) {
      if (upload.finished !== undefined && upload.touchedAt < before) await this.abort(id)
    }
  }

  async abortAll(): Promise<void> {
    for (const id of [...this.#uploads.keys()]) await this.abort(id)
  }

  async #begin(id: string, expectedBytes: number | undefined, from: Upload['from']): Promise<Upload> {
    this.#checkLength(expectedBytes ?? 0)
    this.#shard.health.checkWritable('blob', expectedBytes)
    if (this.#uploads.has(id)) throw exists(id)
    if (this.#aborted.has(id)) throw notFound(id)
    let staged
    try {
      const clients = from === 'proxy' ? this.#shard.clients : undefined
      staged = await StagedFile.create(this.#fs, this.#shard.files.temporary(id), clients)
    } catch (error) {
      // Another one of this id is just making its file: a mistake of the caller, and nothing about the disk.
      if (errnoOf(error) === 'EEXIST') throw exists(id)
      throw this.#shard.writeError(error)
    }
    if (this.#aborted.has(id)) {
      await staged.abort()
      throw notFound(id)
    }
    const touchedAt = this.#shard.clock.monotonic()
    const upload = { staged, from, finished: undefined, committing: undefined, blobPath: undefined, touchedAt }
    this.#uploads.set(id, upload)
    return upload
  }

  /** On a disk that clients use it is flushed at once: a later flush of many pieces would be in their way for long. */
  async #writePiece(staged: StagedFile, piece: Buffer, share: number): Promise<void> {
    this.#checkLength(staged.bytes + piece.length)
    staged.write(piece)
    await (share < 1 ? staged.flushed() : staged.written())
    if (staged.error !== undefined) throw this.#shard.writeError(staged.error)
  }

  #pump(body: IncomingMessage, staged: StagedFile): Promise<void> {
    return new Promise((resolve, reject) => {
      const stall = setTimeout(
        () => body.destroy(new HoldfastError('REQUEST_TIMEOUT', 'the body stalled')),
        this.#shard.limits.stallMs,
      )
      const fail = (error: Error) => {
        clearTimeout(stall)
        body.off('data', onData).resume()
        reject(error)
      }
      const onData = (chunk: Buffer) => {
        stall.refresh()
        if (staged.error !== undefined) return fail(staged.error)
        if (staged.bytes + chunk.length > this.#shard.limits.blobBytesMax) return fail(tooLarge())
        if (staged.write(chunk)) return
        body.pause()
        void staged.drained().then(() => {
          stall.refresh()
          body.resume()
        })
      }
      body.on('data', onData)
      body.once('end', () => {
        clearTimeout(stall)
        resolve()
      })
      body.once('error', cause => fail(new HoldfastError('BAD_REQUEST', 'the body broke off', {}, { cause })))
      body.once('close', () => fail(new HoldfastError('BAD_REQUEST', 'the body broke off')))
      // It broke off while the file was being made: there will be no event any more.
      if (body.destroyed) fail(new HoldfastError('BAD_REQUEST', 'the body broke off'))
    })
  }

  async #finish(upload: Upload): Promise<UploadAnswer> {
    let finished
    try {
      finished = await upload.staged.finish()
    } catch (error) {
      throw this.#shard.writeError(error)
    }
    upload.finished = finished
    upload.touchedAt = this.#shard.clock.monotonic()
    return { bytes: finished.bytes, crc: finished.crc }
  }

  async #commit(id: string, finished: FinishedFile, order: CommitOrder): Promise<void> {
    const upload = this.#uploads.get(id)
    try {
      if (finished.bytes !== order.bytes || !finished.blockCrcs.equals(order.blockCrcs)) {
        throw new HoldfastError('CHECKSUM_MISMATCH', 'the bytes that arrived are not those that were sent', {
          expected: order.bytes,
          found: finished.bytes,
        })
      }
      await this.#shard.commitFile(id, order)
    } finally {
      // Committed or of no more use: a commit that failed half-way leaves nothing to try again with.
      this.#uploads.delete(id)
      await upload?.staged.abort()
    }
  }

  #checkLength(bytes: number): void {
    if (bytes > this.#shard.limits.blobBytesMax) throw tooLarge()
  }
}

function tooLarge(): HoldfastError {
  return new HoldfastError('TOO_LARGE', 'the blob is larger than a shard takes')
}

function exists(id: string): HoldfastError {
  return new HoldfastError('CONFLICT', 'an upload of this id exists', { id })
}

function notFound(id: string): HoldfastError {
  return new HoldfastError('UPLOAD_NOT_FOUND', 'no such upload on this shard', { id })
}
