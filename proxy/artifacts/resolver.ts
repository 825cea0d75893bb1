/**
 * Path -> artifact, from the best source there is now: this worker's cache under its lease, PostgreSQL, and while that is away
 * the references on the shards or an entry the cache still has. "Absent" is only ever said by a source that knows.
 */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import type { Artifact, Metadata, Repository } from '../metadata/types.ts'
import type { ReferenceStore } from '../routing/types.ts'
import { artifactOfReference } from './reference.ts'
import type { CachedPath, PathCache } from './path-cache.ts'

/** Where an answer came from; anything but 'current' is told to the client in `Holdfast-Metadata`. */
export type MetadataSource = 'current' | 'cache' | 'shards'

export interface Resolved {
  readonly entry: CachedPath
  readonly source: MetadataSource
}

/** How long a read waits for PostgreSQL before it turns to the shards, in ms. */
const metadataWaitMs = 1_000
/** Pause between probes while PostgreSQL is away, in ms. */
const probePauseMs = 250

export interface ResolverDeps {
  readonly metadata: Pick<Metadata, 'findArtifact' | 'ping'>
  readonly references: Pick<ReferenceStore, 'newest'>
  readonly cache: PathCache
  /** May the cache's entry of this key be used without asking PostgreSQL? */
  readonly leaseUsable: (key: string) => boolean
  readonly onMetadataState?: (available: boolean) => void
}

export class Resolver {
  readonly #deps: ResolverDeps
  #probe: NodeJS.Timeout | undefined
  #closed = false

  constructor(deps: ResolverDeps) {
    this.#deps = deps
  }

  /** False from the first read PostgreSQL did not answer until a probe succeeds. */
  get metadataAvailable(): boolean {
    return this.#probe === undefined
  }

  /** A cached answer that may be given without asking anybody. No I/O: for the hot path. */
  peek(key: string): CachedPath | undefined {
    return this.#deps.leaseUsable(key) ? this.#deps.cache.get(key) : undefined
  }

  /** Rejects with REPLICAS_UNREACHABLE or METADATA_UNAVAILABLE when nobody who knows can be reached (I7). */
  async resolve(repository: Repository, path: string): Promise<Resolved> {
    const key = `${repository.name}/${path}`
    const hit = this.peek(key)
    if (hit !== undefined) return { entry: hit, source: 'current' }
    if (this.metadataAvailable) {
      try {
        return { entry: await this.#fill(repository.id, key, path), source: 'current' }
      } catch (error) {
        if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
        this.metadataFailed()
      }
    }
    return this.#withoutMetadata(repository, key, path)
  }

  /**
   * The shards first: they know every acknowledged write (I3), while an entry kept without a lease may be older than a write of
   * another proxy that still reaches PostgreSQL. It is better than no answer, if it is one.
   */
  async #withoutMetadata(repository: Repository, key: string, path: string): Promise<Resolved> {
    try {
      const record = await this.#deps.references.newest(repository.name, path)
      const artifact = record === undefined ? undefined : artifactOfReference(record, repository.id)
      return { entry: { artifact: artifact ?? null }, source: 'shards' }
    } catch (error) {
      const kept = this.#deps.cache.get(key)
      if (kept?.artifact == null || !isHoldfastError(error)) throw error
      return { entry: kept, source: 'cache' }
    }
  }

  /** A read or write found PostgreSQL away: go on without it until a probe is answered. */
  metadataFailed(): void {
    if (this.#probe !== undefined || this.#closed) return
    this.#deps.onMetadataState?.(false)
    const probe = (): void => {
      this.#deps.metadata.ping().then(
        () => {
          this.#probe = undefined
          // Whatever was kept over the outage may be older than writes of other proxies.
          this.#deps.cache.invalidate('all')
          this.#deps.onMetadataState?.(true)
        },
        () => {
          if (!this.#closed) this.#probe = setTimeout(probe, probePauseMs)
        },
      )
    }
    this.#probe = setTimeout(probe, probePauseMs)
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#probe)
  }

  async #fill(repositoryId: number, key: string, path: string): Promise<CachedPath> {
    const ticket = this.#deps.cache.ticket(key)
    let artifact: Artifact | undefined
    try {
      artifact = await withDeadline(this.#deps.metadata.findArtifact(repositoryId, path))
    } catch (error) {
      this.#deps.cache.release(ticket)
      throw error
    }
    return this.#deps.cache.store(ticket, artifact ?? null)
  }
}

async function withDeadline<T>(work: Promise<T>): Promise<T> {
  const timer = new PatientTimer()
  const data = { waitedMs: metadataWaitMs }
  const late = new Promise<never>((_, reject) => {
    timer.set(metadataWaitMs, () =>
      reject(new HoldfastError('METADATA_UNAVAILABLE', 'the database did not answer in time', data)),
    )
  })
  try {
    return await Promise.race([work, late])
  } finally {
    timer.clear()
  }
}
