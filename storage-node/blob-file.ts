/**
 * The folders of a shard and the moves between them. A move is durable when both folders are flushed; a blob's file counts
 * only once its record is in the log, which is the caller's part.
 */
import { join } from 'node:path'
import { crashPoint } from './crash-point.ts'
import type { StoreFs } from './store-fs.ts'
import { isTrashSlice } from './trash.ts'

const folders = ['log', 'blobs', 'tmp', 'trash', 'quarantine'] as const

export class ShardFiles {
  readonly folder: string
  readonly #fs: StoreFs
  /** Folders known to be there and durable: a folder is flushed into its parent once, not with every blob. */
  readonly #ready = new Set<string>()

  constructor(fs: StoreFs, folder: string) {
    this.#fs = fs
    this.folder = folder
  }

  get log(): string {
    return join(this.folder, 'log')
  }

  get index(): string {
    return join(this.folder, 'index')
  }

  get reserve(): string {
    return join(this.folder, 'reserve')
  }

  /** `name` is `<ppp>/<digest>.<generation>`, checked where it came in. */
  blob(name: string): string {
    return join(this.folder, 'blobs', name)
  }

  /** Length of the blob's file; undefined: there is none. */
  size(name: string): Promise<number | undefined> {
    return this.#fs.size(this.blob(name))
  }

  temporary(upload: string): string {
    return join(this.folder, 'tmp', upload)
  }

  get trash(): string {
    return join(this.folder, 'trash')
  }

  get blobs(): string {
    return join(this.folder, 'blobs')
  }

  /** Creates what is missing of the layout. */
  async create(): Promise<void> {
    for (const name of folders) await this.#fs.makeFolder(join(this.folder, name))
    await this.#fs.syncFolder(this.folder)
  }

  /** A complete, flushed temporary file becomes the blob's file, durably. */
  async commit(upload: string, name: string): Promise<void> {
    const folder = join(this.folder, 'blobs', name.slice(0, 3))
    await this.#prepare(folder, this.blobs)
    await this.#fs.rename(this.temporary(upload), this.blob(name))
    crashPoint('commit.afterRename')
    await this.#fs.syncFolder(folder)
    crashPoint('commit.afterDirSync')
  }

  /** Moves a blob's file to that slice of the trash. False if there was no file. */
  async discard(name: string, slice: string): Promise<boolean> {
    const folder = join(this.trash, slice)
    await this.#prepare(folder, this.trash)
    return this.#move(name, join(folder, fileName(name)), folder)
  }

  /** Moves a corrupt blob's file where nobody serves it from. False if there was no file. */
  async quarantine(name: string, now: Date): Promise<boolean> {
    return this.#move(name, this.quarantined(quarantineName(name, now)), this.quarantined(''))
  }

  /** Puts the bytes of a corrupt blob that has no file of its own there. */
  async keepInQuarantine(name: string, bytes: Buffer, now: Date): Promise<void> {
    const path = this.quarantined(quarantineName(name, now))
    await this.#fs.unlink(path)
    const file = await this.#fs.open(path, 'create')
    try {
      await file.write([bytes], 0)
      await file.datasync()
    } finally {
      await file.close()
    }
    await this.#fs.syncFolder(this.quarantined(''))
  }

  /** The folder of corrupt copies, or a file in it. */
  quarantined(file: string): string {
    return join(this.folder, 'quarantine', file)
  }

  listQuarantine(): Promise<string[]> {
    return this.#fs.list(this.quarantined(''))
  }

  removeQuarantined(file: string): Promise<void> {
    return this.#fs.unlink(this.quarantined(file))
  }

  /** Partitions that have a folder. */
  async blobFolders(): Promise<string[]> {
    return (await this.#fs.list(this.blobs)).filter(name => /^[0-9a-f]{3}$/.test(name))
  }

  blobsIn(partition: string): Promise<string[]> {
    return this.#fs.list(join(this.blobs, partition))
  }

  /** Empties the folder of uploads: none of them can be committed any more. */
  async clearTemporary(): Promise<void> {
    const folder = join(this.folder, 'tmp')
    for (const name of await this.#fs.list(folder)) await this.#fs.unlink(join(folder, name))
  }

  /** Slices of time that have a folder in the trash. */
  async trashSlices(): Promise<string[]> {
    return (await this.#fs.list(this.trash)).filter(isTrashSlice)
  }

  async countTrash(slice: string): Promise<number> {
    return (await this.#fs.list(join(this.trash, slice))).length
  }

  /** Unlinks everything thrown away then. */
  async emptyTrash(slice: string): Promise<number> {
    const folder = join(this.trash, slice)
    const names = await this.#fs.list(folder)
    for (const name of names) await this.#fs.unlink(join(folder, name))
    this.#ready.delete(folder)
    await this.#fs.removeFolder(folder)
    return names.length
  }

  async #move(name: string, target: string, targetFolder: string): Promise<boolean> {
    if ((await this.#fs.size(this.blob(name))) === undefined) return false
    await this.#fs.rename(this.blob(name), target)
    crashPoint('drop.afterRename')
    await this.#fs.syncFolder(targetFolder)
    await this.#fs.syncFolder(join(this.blobs, name.slice(0, 3)))
    return true
  }

  async #prepare(folder: string, parent: string): Promise<void> {
    if (this.#ready.has(folder)) return
    await this.#fs.makeFolder(folder)
    // Also when it was there: whoever made it may have been cut off before this.
    await this.#fs.syncFolder(parent)
    this.#ready.add(folder)
  }
}

const fileName = (name: string): string => name.slice(4)

const quarantineName = (name: string, now: Date): string => `${name.slice(0, 3)}.${fileName(name)}.${now.getTime()}`

/** Which copy a file of the quarantine is, and when it was put there; undefined: it is something else. */
export function parseQuarantineName(file: string): { name: string; time: number } | undefined {
  const match = /^([0-9a-f]{3})\.([0-9a-f]{64}\.[0-9a-z]{12})\.(\d{1,15})$/.exec(file)
  return match === null ? undefined : { name: `${match[1]}/${match[2]}`, time: Number(match[3]) }
}
