/** What was deleted comes back by the ordinary way of a commit: a new version, its reference on the shards, all caches told (I37). */
import type { Metadata } from '../metadata/types.ts'
import type { Restored, TrashCursor, TrashEntry } from '../metadata/trash-types.ts'
import type { Place } from './artifact-changes.ts'
import { announced } from './announced.ts'
import type { Publication, Publisher } from './publisher.ts'
import { referenceOf } from './reference.ts'

/** Artifacts restored in one transaction. */
const pageSize = 500
const purgedPage = 2_000
/** Refused paths that are told by name. */
const refusedMax = 100

/** 'exists': something else lives there. 'redeploy': the repository does not let it be replaced. 'gone': its bytes are. */
export type RestoreRefusal = 'exists' | 'redeploy' | 'gone'

export interface RestoreOutcome {
  readonly restored: number
  readonly refused: number
  /** The first hundred of those refused. */
  readonly refusals: readonly { readonly path: string; readonly reason: RestoreRefusal }[]
}

export interface TrashDeps {
  readonly metadata: { readonly trash: Pick<Metadata['trash'], 'list' | 'newest' | 'restore' | 'purge'> }
  readonly publisher: Pick<Publisher, 'prepare' | 'publish' | 'withdraw'>
}

export class Trash {
  readonly #deps: TrashDeps

  constructor(deps: TrashDeps) {
    this.#deps = deps
  }

  /**
   * The newest deletion of the path, or of each path below the folder. A path at which something lives is refused, unless `overwrite`
   * and the repository lets it be replaced; the others are restored all the same.
   */
  async restore({ repository, path }: Place, user: string, overwrite: boolean): Promise<RestoreOutcome> {
    const { trash } = this.#deps.metadata
    const place = { repositoryId: repository.id, path }
    // What lived here before needs no right to be written; what lives here now is protected as ever.
    const redeploy = repository.redeploy === 'allow' ? 'allow' : 'once'
    const how = { repository: repository.name, user, overwrite, redeploy } as const
    const refusals: { path: string; reason: RestoreRefusal }[] = []
    let [restored, refused] = [0, 0]
    for (let after = ''; ;) {
      const page = await trash.newest(place, after, pageSize)
      const last = page.at(-1)
      if (last === undefined) break
      for (const { entry, reason } of await this.#restorePage(page, how)) {
        if (reason === undefined) restored++
        else if (++refused <= refusedMax) refusals.push({ path: entry.artifact.path, reason })
      }
      after = last.artifact.path
    }
    return { restored, refused, refusals }
  }

  /** In the order of paths, each with its newest deletion first. */
  list({ repository, path }: Place, after: TrashCursor | undefined, limit: number): Promise<readonly TrashEntry[]> {
    return this.#deps.metadata.trash.list({ repositoryId: repository.id, path }, after, limit)
  }

  /** Forgets for good what the trash has of the path or folder; resolves with how many entries. */
  async purge({ repository, path }: Place): Promise<number> {
    const place = { repositoryId: repository.id, path }
    let count = 0
    for (;;) {
      const purged = await this.#deps.metadata.trash.purge(place, purgedPage)
      count += purged
      if (purged < purgedPage) return count
    }
  }

  async #restorePage(
    page: readonly TrashEntry[],
    how: Parameters<Metadata['trash']['restore']>[1],
  ): Promise<{ entry: TrashEntry; reason: RestoreRefusal | undefined }[]> {
    let outcomes: readonly Restored[] = []
    const keys = page.map(({ artifact }) => `${how.repository}/${artifact.path}`)
    await announced(this.#deps.publisher, keys, async () => {
      outcomes = await this.#deps.metadata.trash.restore(page, how)
      return outcomes.flatMap(one => publicationOf(how.repository, one))
    })
    return outcomes.map(({ entry, result }) => ({ entry, reason: refusalOf(result) }))
  }
}

function publicationOf(repository: string, { result }: Restored): readonly Publication[] {
  if (!('artifact' in result) || result.outboxSeq === null) return []
  return [{ record: referenceOf(repository, result.artifact, result.incarnation), outboxSeq: result.outboxSeq }]
}

function refusalOf(result: Restored['result']): RestoreRefusal | undefined {
  if ('artifact' in result) return undefined
  if (result.outcome !== 'refused') return 'gone'
  return result.reason === 'redeploy' ? 'redeploy' : 'exists'
}
