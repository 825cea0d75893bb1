import { nodeFs, type StoreFile, type StoreFs } from '../../storage-node/store-fs.ts'

export type Operation = 'open' | 'write' | 'read' | 'datasync' | 'rename' | 'syncFolder' | 'truncate'

/** The real file system, failing where `fails` says so. */
export class FaultyFs implements StoreFs {
  /** The system error that this operation on this path shall fail with. */
  fails: (operation: Operation, path: string) => string | undefined = () => undefined
  space: StoreFs['space'] = path => nodeFs.space(path)
  readonly unlink = nodeFs.unlink
  readonly makeFolder = nodeFs.makeFolder
  readonly removeFolder = nodeFs.removeFolder
  readonly list = nodeFs.list
  readonly size = nodeFs.size

  async open(path: string, mode: 'read' | 'create' | 'update'): Promise<StoreFile> {
    this.#check('open', path)
    return this.#wrap(await nodeFs.open(path, mode))
  }

  async rename(from: string, to: string): Promise<void> {
    this.#check('rename', to)
    await nodeFs.rename(from, to)
  }

  async syncFolder(path: string): Promise<void> {
    this.#check('syncFolder', path)
    await nodeFs.syncFolder(path)
  }

  #check(operation: Operation, path: string): void {
    const code = this.fails(operation, path)
    if (code !== undefined) throw Object.assign(new Error(`${code}: injected, ${operation} '${path}'`), { code })
  }

  #wrap(file: StoreFile): StoreFile {
    const { path } = file
    return {
      path,
      write: async (buffers, position) => {
        this.#check('write', path)
        await file.write(buffers, position)
      },
      readInto: (target, offset, length, position, callback) => {
        try {
          this.#check('read', path)
        } catch (error) {
          setImmediate(callback, error as NodeJS.ErrnoException, 0)
          return
        }
        file.readInto(target, offset, length, position, callback)
      },
      datasync: async () => {
        this.#check('datasync', path)
        await file.datasync()
      },
      truncate: async bytes => {
        this.#check('truncate', path)
        await file.truncate(bytes)
      },
      size: () => file.size(),
      close: () => file.close(),
    }
  }
}
