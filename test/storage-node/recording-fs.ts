/**
 * A file system that remembers every change, and can then build what a power cut at any instant may have left: the method of ALICE
 * (Pillai et al., OSDI 2014). Only what was flushed is certain. Of the rest each change may be there or not, by itself,
 * and a write may be there in part.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { nodeFs, type OpenMode, type StoreFile, type StoreFs } from '../../storage-node/store-fs.ts'

type Change =
  | { kind: 'create' | 'unlink'; path: string; inode: number }
  | { kind: 'makeFolder' | 'removeFolder'; path: string }
  | { kind: 'rename'; from: string; path: string; inode: number }
  | { kind: 'write'; inode: number; position: number; data: Buffer }
  | { kind: 'truncate'; inode: number; bytes: number }
  /** Guarantees the changes of that file, or of that folder's entries, before `upTo`. */
  | { kind: 'datasync'; inode: number; upTo: number }
  | { kind: 'syncFolder'; path: string; upTo: number }
  /** Something was promised to a client. */
  | { kind: 'ack'; what: string }

/** How to treat what was not flushed: all lost, all there, or a coin for each. */
export type Unflushed = 'lost' | 'kept' | (() => number)

export class RecordingFs implements StoreFs {
  readonly changes: Change[] = []
  readonly #root: string
  readonly #inodes = new Map<string, number>()
  #nextInode = 1

  constructor(root: string) {
    this.#root = root
  }

  /** Notes that from here on `what` must survive everything. */
  acknowledge(what: string): void {
    this.changes.push({ kind: 'ack', what })
  }

  acknowledged(count: number): string[] {
    return this.changes.slice(0, count).flatMap(change => (change.kind === 'ack' ? [change.what] : []))
  }

  async open(path: string, mode: OpenMode): Promise<StoreFile> {
    const name = relative(this.#root, path)
    const file = await nodeFs.open(path, mode)
    if (mode === 'create') {
      this.#inodes.set(name, this.#nextInode)
      this.changes.push({ kind: 'create', path: name, inode: this.#nextInode })
      this.#nextInode += 1
    }
    return this.#wrap(file, this.#inodes.get(name) ?? 0)
  }

  async rename(from: string, to: string): Promise<void> {
    const [source, target] = [relative(this.#root, from), relative(this.#root, to)]
    const inode = this.#inodes.get(source) ?? 0
    this.changes.push({ kind: 'rename', from: source, path: target, inode })
    this.#inodes.delete(source)
    this.#inodes.set(target, inode)
    await nodeFs.rename(from, to)
  }

  async unlink(path: string): Promise<void> {
    const name = relative(this.#root, path)
    const inode = this.#inodes.get(name)
    if (inode !== undefined) this.changes.push({ kind: 'unlink', path: name, inode })
    this.#inodes.delete(name)
    await nodeFs.unlink(path)
  }

  async makeFolder(path: string): Promise<boolean> {
    const made = await nodeFs.makeFolder(path)
    if (made) this.changes.push({ kind: 'makeFolder', path: relative(this.#root, path) })
    return made
  }

  async removeFolder(path: string): Promise<void> {
    this.changes.push({ kind: 'removeFolder', path: relative(this.#root, path) })
    await nodeFs.removeFolder(path)
  }

  async syncFolder(path: string): Promise<void> {
    const upTo = this.changes.length
    await nodeFs.syncFolder(path)
    this.changes.push({ kind: 'syncFolder', path: relative(this.#root, path), upTo })
  }

  list(path: string): Promise<string[]> {
    return nodeFs.list(path)
  }

  size(path: string): Promise<number | undefined> {
    return nodeFs.size(path)
  }

  space(path: string): Promise<{ bytesTotal: number; bytesFree: number }> {
    return nodeFs.space(path)
  }

  /** Writes into `target` what the disk may hold after the first `count` changes. */
  async materialise(target: string, count: number, unflushed: Unflushed): Promise<void> {
    const certain = this.#certain(count)
    const contents = new Map<number, Buffer>()
    const entries = new Map<string, number>()
    const folders = new Set<string>([''])
    for (const [index, change] of this.changes.slice(0, count).entries()) {
      const chance = certain.has(index) || unflushed === 'kept' ? 1 : unflushed === 'lost' ? 0 : unflushed()
      applyChange(change, chance, { contents, entries, folders })
    }
    await mkdir(target, { recursive: true })
    for (const folder of [...folders].sort()) {
      if (reachable(folder, folders)) await mkdir(join(target, folder), { recursive: true })
    }
    for (const [path, inode] of entries) {
      if (!reachable(dirname(path), folders)) continue
      await writeFile(join(target, path), contents.get(inode) ?? Buffer.alloc(0))
    }
  }

  /** Indices of the changes that a flush among the first `count` guarantees. */
  #certain(count: number): Set<number> {
    const certain = new Set<number>()
    for (const sync of this.changes.slice(0, count)) {
      if (sync.kind !== 'datasync' && sync.kind !== 'syncFolder') continue
      this.changes.slice(0, sync.upTo).forEach((change, index) => {
        if (sync.kind === 'datasync' && (change.kind === 'write' || change.kind === 'truncate')) {
          if (change.inode === sync.inode) certain.add(index)
        } else if (sync.kind === 'syncFolder' && isEntryChange(change) && folderOf(change.path) === sync.path) {
          certain.add(index)
        }
      })
    }
    return certain
  }

  #wrap(file: StoreFile, inode: number): StoreFile {
    const { changes } = this
    return {
      path: file.path,
      write(buffers, position) {
        changes.push({ kind: 'write', inode, position, data: Buffer.concat(buffers) })
        return file.write(buffers, position)
      },
      readInto: (target, offset, length, position, callback) =>
        file.readInto(target, offset, length, position, callback),
      async datasync() {
        const upTo = changes.length
        await file.datasync()
        changes.push({ kind: 'datasync', inode, upTo })
      },
      truncate(bytes) {
        changes.push({ kind: 'truncate', inode, bytes })
        return file.truncate(bytes)
      },
      size: () => file.size(),
      close: () => file.close(),
    }
  }
}

interface Disk {
  readonly contents: Map<number, Buffer>
  readonly entries: Map<string, number>
  readonly folders: Set<string>
}

/** `chance` 1: the change is there; 0: it is not; between: a write is there in part, another change from one half on. */
function applyChange(change: Change, chance: number, { contents, entries, folders }: Disk): void {
  if (change.kind === 'write') {
    const data = change.data.subarray(0, Math.floor(change.data.length * chance))
    if (data.length === 0) return
    const before = contents.get(change.inode) ?? Buffer.alloc(0)
    const after = Buffer.alloc(Math.max(before.length, change.position + data.length))
    before.copy(after)
    data.copy(after, change.position)
    contents.set(change.inode, after)
  } else if (chance < 0.5) return
  else if (change.kind === 'truncate') {
    contents.set(change.inode, (contents.get(change.inode) ?? Buffer.alloc(0)).subarray(0, change.bytes))
  } else if (change.kind === 'create') entries.set(change.path, change.inode)
  else if (change.kind === 'unlink' && entries.get(change.path) === change.inode) entries.delete(change.path)
  else if (change.kind === 'rename') {
    if (entries.get(change.from) === change.inode) entries.delete(change.from)
    entries.set(change.path, change.inode)
  } else if (change.kind === 'makeFolder') folders.add(change.path)
  else if (change.kind === 'removeFolder') folders.delete(change.path)
}

function isEntryChange(change: Change): change is Change & { path: string } {
  return ['create', 'unlink', 'rename', 'makeFolder', 'removeFolder'].includes(change.kind)
}

function folderOf(path: string): string {
  const folder = dirname(path)
  return folder === '.' ? '' : folder
}

function reachable(folder: string, folders: ReadonlySet<string>): boolean {
  if (folder === '' || folder === '.') return true
  return folders.has(folder) && reachable(folderOf(folder), folders)
}
