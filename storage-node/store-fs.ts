/**
 * The few file-system calls a storage node makes, behind one narrow interface: tests record them, replay every state a
 * power cut may leave, and inject full disks and failing fsyncs. Errors are node:fs's own, with their `code`.
 */
import * as fs from 'node:fs'
import { dirname } from 'node:path'

export interface StoreFile {
  readonly path: string
  /** Writes all of the buffers at `position`, in one system call where the kernel lets it. */
  write(buffers: readonly Buffer[], position: number): Promise<void>
  /** One read of at most `length` bytes into `target[offset..]`; the hot path, hence a callback. */
  readInto(target: Buffer, offset: number, length: number, position: number, callback: ReadCallback): void
  /** Data and length are durable when it resolves. A failed one must never be repeated on the same data. */
  datasync(): Promise<void>
  truncate(bytes: number): Promise<void>
  size(): Promise<number>
  /** Closing twice does nothing. */
  close(): Promise<void>
}
export type ReadCallback = (error: NodeJS.ErrnoException | null, bytesRead: number) => void

/** 'create' fails if the file exists. */
export type OpenMode = 'read' | 'create' | 'update'

export interface StoreFs {
  readonly open: (path: string, mode: OpenMode) => Promise<StoreFile>
  readonly rename: (from: string, to: string) => Promise<void>
  /** Resolves also when there is no such file. */
  readonly unlink: (path: string) => Promise<void>
  /** Creates the folder (not its parents); false if it was there. Durable only after `syncFolder` of its parent. */
  readonly makeFolder: (path: string) => Promise<boolean>
  /** Removes an empty folder. */
  readonly removeFolder: (path: string) => Promise<void>
  readonly syncFolder: (path: string) => Promise<void>
  /** Names in the folder, sorted; empty if there is no such folder. */
  readonly list: (path: string) => Promise<string[]>
  /** Length of the file, or undefined if there is none. */
  readonly size: (path: string) => Promise<number | undefined>
  readonly space: (path: string) => Promise<{ bytesTotal: number; bytesFree: number }>
}

const openFlags = { read: 'r', create: 'wx+', update: 'r+' } as const

class NodeFile implements StoreFile {
  readonly path: string
  readonly #fd: number
  #closed = false

  constructor(path: string, fd: number) {
    this.path = path
    this.#fd = fd
  }

  async write(buffers: readonly Buffer[], position: number): Promise<void> {
    let rest = buffers
    let at = position
    for (;;) {
      const written = await this.#writev(rest, at)
      at += written
      rest = skip(rest, written)
      if (rest.length === 0) return
    }
  }

  #writev(buffers: readonly Buffer[], position: number): Promise<number> {
    return new Promise((resolve, reject) => {
      fs.writev(this.#fd, buffers, position, (error, written) => (error === null ? resolve(written) : reject(error)))
    })
  }

  readInto(target: Buffer, offset: number, length: number, position: number, callback: ReadCallback): void {
    fs.read(this.#fd, target, offset, length, position, callback)
  }

  datasync(): Promise<void> {
    return call(done => fs.fdatasync(this.#fd, done))
  }

  truncate(bytes: number): Promise<void> {
    return call(done => fs.ftruncate(this.#fd, bytes, done))
  }

  size(): Promise<number> {
    return new Promise((resolve, reject) => {
      fs.fstat(this.#fd, (error, stats) => (error === null ? resolve(stats.size) : reject(error)))
    })
  }

  close(): Promise<void> {
    // A second close could hit the descriptor's next owner.
    if (this.#closed) return Promise.resolve()
    this.#closed = true
    return call(done => fs.close(this.#fd, done))
  }
}

/** The real file system. */
export const nodeFs: StoreFs = {
  open: (path, mode) =>
    new Promise((resolve, reject) => {
      fs.open(path, openFlags[mode], 0o600, (error, fd) =>
        error === null ? resolve(new NodeFile(path, fd)) : reject(error),
      )
    }),
  rename: (from, to) => fs.promises.rename(from, to),
  unlink: path => ignoring('ENOENT', fs.promises.unlink(path)),
  async makeFolder(path) {
    try {
      await fs.promises.mkdir(path, { mode: 0o700 })
      return true
    } catch (error) {
      if (errnoOf(error) === 'EEXIST') return false
      throw error
    }
  },
  removeFolder: path => ignoring('ENOENT', fs.promises.rmdir(path)),
  async syncFolder(path) {
    const folder = await fs.promises.open(path, 'r')
    try {
      await folder.sync()
    } finally {
      await folder.close()
    }
  },
  async list(path) {
    try {
      return (await fs.promises.readdir(path)).sort()
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return []
      throw error
    }
  },
  async size(path) {
    try {
      return (await fs.promises.stat(path)).size
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return undefined
      throw error
    }
  },
  async space(path) {
    const { bsize, blocks, bavail } = await fs.promises.statfs(path)
    return { bytesTotal: bsize * blocks, bytesFree: bsize * bavail }
  },
}

/** The system's error code, `ENOSPC`; undefined for what is no system error. */
export function errnoOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

/** Fills `target` from `position`; returns how many bytes there were before the end of the file. */
export async function readFully(file: StoreFile, target: Buffer, position: number): Promise<number> {
  let filled = 0
  while (filled < target.length) {
    const bytes = await new Promise<number>((resolve, reject) => {
      file.readInto(target, filled, target.length - filled, position + filled, (error, read) =>
        error === null ? resolve(read) : reject(error),
      )
    })
    if (bytes === 0) break
    filled += bytes
  }
  return filled
}

/** Creates a folder and what is missing above it, durably. */
export async function makeFolders(store: StoreFs, path: string): Promise<void> {
  try {
    if (!(await store.makeFolder(path))) return
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT' || dirname(path) === path) throw error
    await makeFolders(store, dirname(path))
    await store.makeFolder(path)
  }
  await store.syncFolder(dirname(path))
}

/** The whole of a small file, or undefined if there is none. */
export async function readSmallFile(store: StoreFs, path: string, bytesMax: number): Promise<Buffer | undefined> {
  let file
  try {
    file = await store.open(path, 'read')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
  try {
    const target = Buffer.allocUnsafe(Math.min(await file.size(), bytesMax))
    return target.subarray(0, await readFully(file, target, 0))
  } finally {
    await file.close()
  }
}

/** Puts a small file in place as a whole: a crash leaves the old content or the new one, durable on resolve. */
export async function replaceFile(store: StoreFs, path: string, content: Buffer): Promise<void> {
  const temporary = `${path}.new`
  await store.unlink(temporary)
  const file = await store.open(temporary, 'create')
  try {
    await file.write([content], 0)
    await file.datasync()
  } finally {
    await file.close()
  }
  await store.rename(temporary, path)
  await store.syncFolder(dirname(path))
}

function call(start: (done: (error: Error | null) => void) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    start(error => (error === null ? resolve() : reject(error)))
  })
}

async function ignoring(code: string, action: Promise<void>): Promise<void> {
  try {
    await action
  } catch (error) {
    if (errnoOf(error) !== code) throw error
  }
}

/** What is left of the buffers behind the first `bytes`. */
function skip(buffers: readonly Buffer[], bytes: number): readonly Buffer[] {
  let rest = bytes
  let index = 0
  for (const buffer of buffers) {
    if (rest < buffer.length) break
    rest -= buffer.length
    index += 1
  }
  const first = buffers[index]
  if (first === undefined) return []
  return rest === 0 ? buffers.slice(index) : [first.subarray(rest), ...buffers.slice(index + 1)]
}
