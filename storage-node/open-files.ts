import { LRUCache } from 'lru-cache'
import type { StoreFile, StoreFs } from './store-fs.ts'

/** A file kept open for reading. Whoever got it from `OpenFiles` gives it back with `release`. */
export interface OpenFile {
  readonly file: StoreFile
  users: number
  /** No longer in the cache: the last user closes it. */
  retired: boolean
  /** The block CRC table of a blob file, kept beside its descriptor once verified. */
  blockCrcs: Buffer | undefined
}

/** Descriptors kept open, least recently used closed first: opening a file costs three times the reading of 1 KiB. */
export class OpenFiles {
  readonly #fs: StoreFs
  readonly #files: LRUCache<string, OpenFile>
  readonly #opening = new Map<string, Promise<OpenFile>>()
  #generation = 0

  constructor(fs: StoreFs, countMax: number) {
    this.#fs = fs
    this.#files = new LRUCache({ max: countMax, dispose: open => this.#retire(open) })
  }

  /** The file if it is open already. */
  use(path: string): OpenFile | undefined {
    const open = this.#files.get(path)
    if (open !== undefined) open.users += 1
    return open
  }

  /** Opens it if need be; concurrent callers share one descriptor. Rejects with the error of open(2). */
  async open(path: string): Promise<OpenFile> {
    const kept = this.use(path)
    if (kept !== undefined) return kept
    let opening = this.#opening.get(path)
    if (opening === undefined) {
      opening = this.#open(path).finally(() => this.#opening.delete(path))
      this.#opening.set(path, opening)
    }
    const open = await opening
    // Retired in the meantime with no user left: its descriptor is gone.
    if (open.retired && open.users === 0) return this.open(path)
    open.users += 1
    return open
  }

  release(open: OpenFile): void {
    open.users -= 1
    if (open.retired && open.users === 0) closeQuietly(open.file)
  }

  /** The path means another file from now on. */
  forget(path: string): void {
    this.#generation += 1
    this.#files.delete(path)
  }

  clear(): void {
    this.#generation += 1
    this.#files.clear()
  }

  async #open(path: string): Promise<OpenFile> {
    const generation = this.#generation
    const file = await this.#fs.open(path, 'read')
    const open: OpenFile = { file, users: 0, retired: false, blockCrcs: undefined }
    if (generation === this.#generation) {
      this.#files.set(path, open)
      return open
    }
    // Renamed while it was being opened: good for those who wait, but not to be kept. Closed a turn later if unused.
    open.retired = true
    open.users += 1
    setImmediate(() => this.release(open))
    return open
  }

  #retire(open: OpenFile): void {
    open.retired = true
    if (open.users === 0) closeQuietly(open.file)
  }
}

function closeQuietly(file: StoreFile): void {
  // Nothing was written through it, so a failing close loses nothing.
  file.close().catch(() => undefined)
}
