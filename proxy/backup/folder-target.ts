/** Backups in a folder: a second disk, or a mount of another host. */
import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { link, mkdir, open, readdir, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { type BackupTarget, objectNamePattern } from './types.ts'

const readBytes = 256 * 1024

export class FolderTarget implements BackupTarget {
  readonly label: string
  readonly #folder: string
  /** Folders that are there, durably. */
  readonly #made = new Set<string>()

  constructor(folder: string) {
    this.#folder = resolve(folder)
    this.label = this.#folder
  }

  /** Written beside, synced, then linked to its name: whatever has a name is whole, and a name is never given twice. */
  async put(name: string, body: AsyncIterable<Buffer>): Promise<boolean> {
    const path = this.#pathOf(name)
    const temporary = join(this.#folder, 'tmp', randomBytes(12).toString('hex'))
    try {
      await this.#makeFolder(dirname(temporary))
      await this.#makeFolder(dirname(path))
      await writeDurably(temporary, body)
      await link(temporary, path)
      await syncFolder(dirname(path))
      return true
    } catch (error) {
      if (codeOf(error) === 'EEXIST') return false
      throw this.#translate(error, `${name} cannot be written`)
    } finally {
      await unlink(temporary).catch(() => {}) // never made, or a leftover that has no name
    }
  }

  async *get(name: string): AsyncIterable<Buffer> {
    try {
      yield* createReadStream(this.#pathOf(name), { highWaterMark: readBytes }) as AsyncIterable<Buffer>
    } catch (error) {
      throw this.#translate(error, `${name} cannot be read`)
    }
  }

  async list(folder: string): Promise<readonly string[]> {
    try {
      return await readdir(join(this.#folder, folder))
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return []
      throw this.#translate(error, `${folder} cannot be listed`)
    }
  }

  async remove(name: string): Promise<void> {
    try {
      await unlink(this.#pathOf(name))
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw this.#translate(error, `${name} cannot be removed`)
    }
  }

  #pathOf(name: string): string {
    if (!objectNamePattern.test(name)) throw new HoldfastError('PATH_INVALID', `'${name}' names no object of a backup`)
    return join(this.#folder, name)
  }

  async #makeFolder(folder: string): Promise<void> {
    if (this.#made.has(folder)) return
    if (folder !== this.#folder) await this.#makeFolder(dirname(folder))
    await mkdir(folder, { recursive: folder === this.#folder, mode: 0o700 }).catch((error: unknown) => {
      if (codeOf(error) !== 'EEXIST') throw error
    })
    await syncFolder(dirname(folder))
    this.#made.add(folder)
  }

  #translate(error: unknown, what: string): HoldfastError {
    if (isHoldfastError(error)) return error
    const code = codeOf(error)
    if (code === undefined) throw error
    const message = `backup target ${this.label}: ${what} (${code})`
    const kind =
      code === 'ENOENT' ? 'NOT_FOUND' : code === 'ENOSPC' || code === 'EDQUOT' ? 'INSUFFICIENT_STORAGE' : 'CONFLICT'
    return new HoldfastError(kind, message, { code }, { cause: error })
  }
}

async function writeDurably(path: string, body: AsyncIterable<Buffer>): Promise<void> {
  const file = await open(path, 'wx', 0o600)
  try {
    for await (const chunk of body) await file.writeFile(chunk)
    await file.sync()
  } finally {
    await file.close()
  }
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && !isHoldfastError(error)
    ? error.code
    : undefined
}
