/** Backups in a folder: a second disk, or a mount of another host. */
import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { link, mkdir, open, readdir, rename, stat, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { type BackupTarget, isObjectName, objectNamePattern, type PutOptions } from './types.ts'

const readBytes = 256 * 1024
const temporaryPattern = /^[0-9a-f]{24}$/
/** What a disk says of one file that it cannot give any more, or that is no file; the last two: checksums of file systems. */
const damagedFile = /^(EIO|EISDIR|ELOOP|EILSEQ|Unknown system error -(74|117))$/
const noLinks = new Set(['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'])

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
  async put(name: string, body: AsyncIterable<Buffer>, { signal }: PutOptions = {}): Promise<boolean> {
    const path = this.#pathOf(name)
    const temporary = join(this.#folder, 'tmp', randomBytes(12).toString('hex'))
    try {
      await this.#makeFolder(dirname(temporary))
      await this.#makeFolder(dirname(path))
      await writeDurably(temporary, body, signal)
      await giveName(temporary, path)
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
      const what = `${name} cannot be read`
      const code = codeOf(error)
      if (code === undefined || !damagedFile.test(code)) throw this.#translate(error, what)
      const message = `backup target ${this.label}: ${what} (${code})`
      throw new HoldfastError('BACKUP_DAMAGED', message, { code }, { cause: error })
    }
  }

  async list(folder: string): Promise<readonly string[]> {
    try {
      const found = await readdir(join(this.#folder, folder), { withFileTypes: true })
      return found.filter(one => one.isFile() && isObjectName(folder, one.name)).map(({ name }) => name)
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

  async tidy(olderThanMs: number): Promise<number> {
    const folder = join(this.#folder, 'tmp')
    let removed = 0
    try {
      const names = await readdir(folder).catch((error: unknown) => {
        if (codeOf(error) !== 'ENOENT') throw error
        return []
      })
      for (const name of names.filter(name => temporaryPattern.test(name))) {
        const found = await stat(join(folder, name)).catch(() => undefined) // gone meanwhile
        if (found === undefined || found.mtimeMs > Date.now() - olderThanMs) continue
        await unlink(join(folder, name))
        removed++
      }
      return removed
    } catch (error) {
      throw this.#translate(error, 'what was left in tmp cannot be removed')
    }
  }

  #pathOf(name: string): string {
    if (!objectNamePattern.test(name)) throw new HoldfastError('PATH_INVALID', `'${name}' names no object of a backup`)
    return join(this.#folder, name)
  }

  async #makeFolder(folder: string): Promise<void> {
    if (this.#made.has(folder)) return
    if (folder === this.#folder) return this.#mustExist()
    await this.#makeFolder(dirname(folder))
    await mkdir(folder, { mode: 0o700 }).catch((error: unknown) => {
      if (codeOf(error) !== 'EEXIST') throw error
    })
    await syncFolder(dirname(folder))
    this.#made.add(folder)
  }

  /** Making it would fill the disk under a mount point, some night when the mount is missing. */
  async #mustExist(): Promise<void> {
    const found = await stat(this.#folder).catch((error: unknown) => {
      if (codeOf(error) !== 'ENOENT') throw error
      return undefined
    })
    if (found?.isDirectory() === true) return
    const what = found === undefined ? 'does not exist: make it, or mount what belongs there' : 'is no folder'
    throw new HoldfastError('CONFLICT', `the folder of backups ${this.label} ${what}`)
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

async function writeDurably(path: string, body: AsyncIterable<Buffer>, signal: AbortSignal | undefined): Promise<void> {
  const file = await open(path, 'wx', 0o600)
  try {
    for await (const chunk of body) {
      signal?.throwIfAborted()
      await file.writeFile(chunk)
    }
    await file.sync()
  } finally {
    await file.close()
  }
}

/** Rejects with EEXIST if the name is taken. */
async function giveName(temporary: string, path: string): Promise<void> {
  try {
    await link(temporary, path)
  } catch (error) {
    if (!noLinks.has(codeOf(error) ?? '')) throw error
    // Some mounts of other hosts have no links. Two who take one name at once would write the same there (or, for the claim, one of
    // them finds out when it is read again).
    const taken = await stat(path).then(() => true, (error: unknown) => codeOf(error) !== 'ENOENT') // prettier-ignore
    if (taken) throw Object.assign(new Error(`${path} exists`), { code: 'EEXIST' })
    await rename(temporary, path)
  }
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } catch (error) {
    // That is how file systems say that they have no such thing.
    if (codeOf(error) !== 'EINVAL') throw error
  } finally {
    await handle.close()
  }
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && !isHoldfastError(error)
    ? error.code
    : undefined
}
