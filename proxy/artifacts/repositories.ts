import type { Metadata, Repository } from '../metadata/types.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'

/** Cache key (for invalidation between proxies) of the list of repositories; no path can have it. */
export const repositoriesKey = '!repositories'

/** How old the list may be while this worker holds no cache lease, in ms. */
const unleasedAgeMsMax = 1_000

export interface RepositoriesDeps {
  readonly metadata: Pick<Metadata, 'listRepositories'>
  readonly leaseUsable: () => boolean
  /** Monotonic, ms. */
  readonly now: () => number
  /** What is remembered of them for an outage; proxy/identity's IdentityKeeper fits. */
  readonly memory?: { repositories(): readonly Repository[] | undefined; readonly outdated: boolean }
}

/** Repositories of Holdfast's own begin with a dot, which no client can say: they are not told. */
export const isInternal = ({ name }: Pick<Repository, 'name'>): boolean => name.startsWith('.')

/**
 * The repositories as this worker knows them. Changed through `repositoriesKey` invalidations; without a cache lease re-read at
 * most a second after it was last read; kept while PostgreSQL is away.
 */
export class Repositories {
  readonly #deps: RepositoriesDeps
  #byName = new Map<string, Repository>()
  #readAt = Number.NEGATIVE_INFINITY
  /** Grows with each invalidation; a list is current if none came since its reading began. */
  #version = 0
  #readVersion = -1
  /** Until this time the list is used as it is, although it is not current: PostgreSQL did not answer. */
  #keptUntil = Number.NEGATIVE_INFINITY
  #reading: Promise<void> | undefined

  constructor(deps: RepositoriesDeps) {
    this.#deps = deps
  }

  /** The repository if the list may be used without a look at PostgreSQL; 'ask' otherwise. No I/O: for the hot path. */
  peek(name: string): Repository | undefined | 'ask' {
    return this.#fresh() ? this.#byName.get(name) : 'ask'
  }

  /** Rejects with REPOSITORY_NOT_FOUND, or METADATA_UNAVAILABLE if PostgreSQL is away and the list was never read. */
  async get(name: string): Promise<Repository> {
    const repository = (await this.all()).get(name)
    if (repository === undefined)
      throw new HoldfastError('REPOSITORY_NOT_FOUND', `no repository '${name}'`, { repository: name })
    return repository
  }

  async all(): Promise<ReadonlyMap<string, Repository>> {
    if (!this.#fresh()) {
      await (this.#reading ??= this.#readOnce())
    }
    return this.#byName
  }

  invalidate(): void {
    this.#version++
    // A read that began before the invalidation may bring the old list: nobody new may wait for it.
    this.#reading = undefined
  }

  #fresh(): boolean {
    const now = this.#deps.now()
    if (now < this.#keptUntil) return true
    return this.#readVersion === this.#version && (this.#deps.leaseUsable() || now - this.#readAt < unleasedAgeMsMax)
  }

  #readOnce(): Promise<void> {
    const reading = this.#read().finally(() => {
      if (this.#reading === reading) this.#reading = undefined
    })
    return reading
  }

  async #read(): Promise<void> {
    const readAt = this.#deps.now()
    const version = this.#version
    try {
      const list = await this.#deps.metadata.listRepositories()
      if (version < this.#readVersion) return // a later reading was quicker
      this.#use(list)
      this.#readAt = readAt
      this.#readVersion = version
      this.#keptUntil = Number.NEGATIVE_INFINITY
    } catch (error) {
      if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
      this.#remember(error)
      // Not by the lease: an invalidation that could not be followed must not be forgotten.
      this.#keptUntil = this.#deps.now() + unleasedAgeMsMax
    }
  }

  /** PostgreSQL is away: what was read before, else what an earlier run left; of something too old only what everybody may read. */
  #remember(error: Error): void {
    const { memory } = this.#deps
    if (this.#readAt === Number.NEGATIVE_INFINITY) {
      const list = memory?.repositories()
      if (list === undefined) throw error
      this.#use(list)
    }
    if (memory?.outdated === true) this.#use([...this.#byName.values()].filter(one => one.anonymousRead))
  }

  #use(list: readonly Repository[]): void {
    this.#byName = new Map(list.filter(one => !isInternal(one)).map(repository => [repository.name, repository]))
  }
}
