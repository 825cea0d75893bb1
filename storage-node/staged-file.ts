/**
 * A temporary file that takes a body of unknown length: chunks are gathered and written with one writev per MiB, without being
 * copied; block CRCs run along; every 64 MiB is flushed in the background so that the last flush is short.
 */
import assert from 'node:assert/strict'
import { crc32 } from 'node:zlib'
import { HoldfastError } from '../shared/errors.ts'
import { BlockCrcs } from '../shared/record.ts'
import { crashPoint } from './crash-point.ts'
import type { DiskUse } from './disk-use.ts'
import type { StoreFile, StoreFs } from './store-fs.ts'

const writeBytes = 1024 * 1024
const waitingBytesMax = 4 * writeBytes
const syncBytes = 64 * 1024 * 1024

export interface FinishedFile {
  readonly bytes: number
  readonly blockCrcs: Buffer
  /** CRC-32 of the table. */
  readonly crc: number
}

export class StagedFile {
  readonly #fs: StoreFs
  readonly #file: StoreFile
  readonly #clients: DiskUse | undefined
  readonly #crcs = new BlockCrcs()
  #waiting: Buffer[] = []
  #waitingBytes = 0
  #bytes = 0
  #writtenBytes = 0
  #syncedBytes = 0
  #writing: Promise<void> | undefined
  #syncing: Promise<void> = Promise.resolve()
  #error: Error | undefined
  #wakers: (() => void)[] = []
  #state: 'open' | 'finished' | 'aborted' = 'open'

  private constructor(fs: StoreFs, file: StoreFile, clients: DiskUse | undefined) {
    this.#fs = fs
    this.#file = file
    this.#clients = clients
  }

  /** `clients`: if it is one of them who waits. */
  static async create(fs: StoreFs, path: string, clients?: DiskUse): Promise<StagedFile> {
    return new StagedFile(fs, await fs.open(path, 'create'), clients)
  }

  /** Bytes taken so far. */
  get bytes(): number {
    return this.#bytes
  }

  /** Bytes that can be read from the file. */
  get writtenBytes(): number {
    return this.#writtenBytes
  }

  get path(): string {
    return this.#file.path
  }

  /** Why nothing more can be written. */
  get error(): Error | undefined {
    return this.#error
  }

  /** Takes a chunk, which must not be changed afterwards. False: wait for `drained` before the next one. */
  write(chunk: Buffer): boolean {
    assert(this.#state !== 'finished', 'no chunk comes behind the end')
    if (this.#error !== undefined || this.#state === 'aborted') return true
    this.#crcs.update(chunk)
    this.#bytes += chunk.length
    this.#waiting.push(chunk)
    this.#waitingBytes += chunk.length
    if (this.#waitingBytes >= writeBytes) this.#writing ??= this.#writeWaiting(writeBytes)
    return this.#waitingBytes < waitingBytesMax
  }

  /** Resolves when there is room again; also when writing has failed: `finish` says so. */
  drained(): Promise<void> {
    if (this.#waitingBytes < waitingBytesMax) return Promise.resolve()
    return new Promise(resolve => this.#wakers.push(resolve))
  }

  /** Resolves when everything so far is written, or writing has failed: what was given may be changed again. */
  async written(): Promise<void> {
    await this.#writing
    await this.#writeWaiting(1)
  }

  /** Resolves when everything so far is written and flushed, or writing has failed: `finish` says so. */
  async flushed(): Promise<void> {
    await this.written()
    await this.#syncInBackground()
    await this.#syncing
  }

  /** Everything written and flushed. Rejects with the disk's error, or the first of the flushes'; the file is of no use then. */
  async finish(): Promise<FinishedFile> {
    this.#state = 'finished'
    await this.#writing
    await this.#writeWaiting(1)
    await this.#syncing
    if (this.#error === undefined) await this.#onDisk(() => this.#file.datasync())
    if (this.#error !== undefined) throw this.#error
    crashPoint('upload.afterSync')
    await this.#file.close()
    const blockCrcs = this.#crcs.finish()
    return { bytes: this.#bytes, blockCrcs, crc: crc32(blockCrcs) }
  }

  /** Removes the file. Never rejects; what cannot be removed is removed by the next start. */
  async abort(): Promise<void> {
    if (this.#state === 'aborted') return
    this.#state = 'aborted'
    this.#error ??= new HoldfastError('UPLOAD_NOT_FOUND', 'the upload was aborted')
    await this.#writing
    await this.#syncing
    await this.#file.close().catch(() => undefined) // closed already, or a disk that fails
    await this.#fs.unlink(this.#file.path).catch(() => undefined)
  }

  /** Never rejects. */
  async #writeWaiting(bytesMin: number): Promise<void> {
    while (this.#waitingBytes >= bytesMin && this.#error === undefined) {
      const chunks = this.#waiting
      const bytes = this.#waitingBytes
      this.#waiting = []
      try {
        await this.#onDisk(() => this.#file.write(chunks, this.#writtenBytes))
        this.#writtenBytes += bytes
        if (this.#writtenBytes - this.#syncedBytes >= syncBytes) await this.#syncInBackground()
      } catch (error) {
        this.#error = error instanceof Error ? error : new Error(String(error))
      }
      this.#waitingBytes -= bytes
      this.#wake()
    }
    this.#writing = undefined
    if (this.#error !== undefined) this.#wake()
  }

  /** At most one flush under way: a disk slower than the network slows the network down. */
  async #syncInBackground(): Promise<void> {
    await this.#syncing
    this.#syncedBytes = this.#writtenBytes
    this.#syncing = this.#onDisk(() => this.#file.datasync()).catch((error: unknown) => {
      this.#error ??= error instanceof Error ? error : new Error(String(error))
    })
  }

  #onDisk(operation: () => Promise<void>): Promise<void> {
    return this.#clients === undefined ? operation() : this.#clients.during(operation)
  }

  #wake(): void {
    const wakers = this.#wakers
    this.#wakers = []
    for (const wake of wakers) wake()
  }
}
