/** The contents of a folder, from the best source there is now: PostgreSQL, and while that is away the references on the shards. */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { behind } from '../../shared/key-order.ts'
import type { FolderEntry, FolderPage, Metadata, Repository } from '../metadata/types.ts'
import type { FolderContents, FolderStore } from '../routing/types.ts'
import type { MetadataSource, Resolver } from './resolver.ts'

/** Without PostgreSQL each takes up to a second of CPU of every storage node. */
const withoutMetadataMax = 4

export interface ListedFolder {
  readonly page: FolderPage
  readonly source: MetadataSource
}

export interface FoldersDeps {
  readonly metadata: Pick<Metadata, 'listFolder'>
  readonly resolver: Pick<Resolver, 'metadataAvailable' | 'metadataFailed'>
  readonly shards: FolderStore
}

export class Folders {
  readonly #deps: FoldersDeps
  #withoutMetadata = 0

  constructor(deps: FoldersDeps) {
    this.#deps = deps
  }

  /**
   * Entries behind `after` (`next` of the page before, or '') of the folder `path`, which is '' or ends in '/'. Rejects with
   * REPLICAS_UNREACHABLE, METADATA_UNAVAILABLE or OVERLOADED when nobody who knows all of them can be asked.
   */
  async list(
    repository: Repository,
    path: string,
    { after, limit, signal }: { readonly after: string; readonly limit: number; readonly signal: AbortSignal },
  ): Promise<ListedFolder> {
    const { metadata, resolver } = this.#deps
    if (resolver.metadataAvailable) {
      try {
        return { page: await metadata.listFolder(repository.id, path, after, limit), source: 'current' }
      } catch (error) {
        if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
        resolver.metadataFailed()
      }
    }
    if (this.#withoutMetadata >= withoutMetadataMax) {
      throw new HoldfastError('OVERLOADED', 'too many listings at once while the database is away')
    }
    this.#withoutMetadata += 1
    try {
      const folder = `${repository.name}/${path}`
      const start = after === '' ? folder : behind(folder + after)
      return { page: pageOf(folder, await this.#deps.shards.list(folder, start, limit, signal)), source: 'shards' }
    } finally {
      this.#withoutMetadata -= 1
    }
  }
}

/** As PostgreSQL would give it. */
function pageOf(folder: string, { children, more }: FolderContents): FolderPage {
  const entries = children.map(({ key, digest, bytes, time }): FolderEntry => {
    const name = key.slice(folder.length)
    if (digest === undefined) return { name: name.slice(0, -1), kind: 'folder' }
    return {
      name,
      kind: 'artifact',
      digest,
      ...(bytes === undefined ? {} : { bytes }),
      ...(time === undefined ? {} : { updatedAt: time }),
    }
  })
  const last = children.at(-1)
  return { entries, ...(more && last !== undefined ? { next: last.key.slice(folder.length) } : {}) }
}
