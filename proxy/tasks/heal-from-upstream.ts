/**
 * Blobs of which no shard has a good copy any more (`HeedLosses` knows them) come back from the upstream, where an artifact of a repository
 * with one names them. What has none is left to an operator.
 */
import type { Digest } from '../../shared/ids.ts'
import type { Metadata, Repository } from '../metadata/types.ts'
import { isProxy, type UpstreamCache } from '../upstream/upstream-cache.ts'
import type { HeedLosses } from './heed-losses.ts'
import type { PrimaryTask, Term } from './primary.ts'

const againMsMin = 60_000
const againMsMax = 3_600_000
/** Tried in one step: each may take as long as its bytes do. */
const perStep = 4

export interface HealDeps {
  readonly losses: Pick<HeedLosses, 'hopeless'>
  readonly metadata: Pick<Metadata, 'upstreamNames'>
  readonly repositories: { all(): Promise<ReadonlyMap<string, Repository>> }
  readonly upstreams: Pick<UpstreamCache, 'heal'>
  /** Monotonic, ms. */
  readonly now: () => number
}

export class HealFromUpstream implements PrimaryTask {
  readonly name = 'heal-from-upstream'
  readonly pauseMs = 2_000
  readonly #deps: HealDeps
  readonly #tried = new Map<Digest, { readonly at: number; readonly pauseMs: number }>()

  constructor(deps: HealDeps) {
    this.#deps = deps
  }

  readonly step = async ({ signal }: Term): Promise<'idle'> => {
    const hopeless = new Set(this.#deps.losses.hopeless())
    for (const digest of this.#tried.keys()) if (!hopeless.has(digest)) this.#tried.delete(digest)
    const due = [...hopeless].filter(digest => this.#isDue(digest)).slice(0, perStep)
    for (const digest of due) {
      signal.throwIfAborted()
      const before = this.#tried.get(digest)
      const pauseMs = before === undefined ? againMsMin : Math.min(againMsMax, 2 * before.pauseMs)
      this.#tried.set(digest, { at: this.#deps.now(), pauseMs })
      await this.#heal(digest, signal)
    }
    return 'idle'
  }

  readonly ended = (): Promise<void> => {
    this.#tried.clear()
    return Promise.resolve()
  }

  #isDue(digest: Digest): boolean {
    const tried = this.#tried.get(digest)
    return tried === undefined || this.#deps.now() - tried.at >= tried.pauseMs
  }

  /** By the first of its names that brings it. */
  async #heal(digest: Digest, signal: AbortSignal): Promise<void> {
    const { metadata, repositories, upstreams } = this.#deps
    const all = [...(await repositories.all()).values()]
    for (const artifact of await metadata.upstreamNames(digest)) {
      signal.throwIfAborted()
      const repository = all.find(({ id }) => id === artifact.repositoryId)
      if (repository === undefined || !isProxy(repository)) continue
      const healed = await upstreams.heal(repository, artifact)
      // What may change at one name can have become something else there, and be at another as it was.
      if (typeof healed === 'object' && healed.blob.digest === digest) return
    }
  }
}
