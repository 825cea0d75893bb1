/**
 * Abandoned uploads: a proxy made a blob durable on its shards and died before the commit. The nodes know which blobs no
 * reference ever named; PostgreSQL decides under lock whether one is alive, and fences it off for good if it is not (I8).
 */
import type { Logger } from 'pino'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { wirePath, type DropRequest, type UnconfirmedAnswer } from '../../shared/wire.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { NodeClient } from '../routing/node-client.ts'
import { primaryRole, type PrimaryTask, type Term } from './primary.ts'

const pageSize = 500
/** What will be no different with the next shard. */
const endsTheRound = ['METADATA_UNAVAILABLE', 'LEASE_LOST', 'STALE_TOKEN'] as const

export interface ReclaimDeps {
  readonly metadata: Pick<Metadata, 'reclaimUnconfirmed'>
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
  readonly view: Pick<ClusterView, 'current'>
  readonly log: Logger
  /** Age after which a blob without a reference counts as abandoned, in ms. */
  readonly abandonedMs: number
}

export class ReclaimUploads implements PrimaryTask {
  readonly name = 'reclaim-uploads'
  readonly pauseMs: number
  readonly #deps: ReclaimDeps
  reclaimed = 0

  constructor(deps: ReclaimDeps) {
    this.#deps = deps
    this.pauseMs = Math.max(1_000, Math.min(600_000, deps.abandonedMs / 4))
  }

  readonly step = async (term: Term): Promise<'idle'> => {
    for (const { id } of this.#deps.view.current().map.shards) {
      term.signal.throwIfAborted()
      try {
        await this.#reclaimShard(id, term)
      } catch (error) {
        // A shard that cannot be asked, or not changed, is asked again in the next round, and must not keep the others waiting.
        if (!isHoldfastError(error) || isHoldfastError(error, ...endsTheRound)) throw error
        this.#deps.log.debug({ err: error, shard: id }, 'abandoned uploads of a shard not reclaimed')
      }
    }
    return 'idle'
  }

  async #reclaimShard(shard: ShardId, term: Term): Promise<void> {
    const client = this.#deps.clients.ofShard(shard)
    let after: string | undefined
    do {
      const query = new URLSearchParams({ olderThanMs: String(this.#deps.abandonedMs), limit: String(pageSize) })
      if (after !== undefined) query.set('after', after)
      const path = `${wirePath.unconfirmed(shard)}?${query.toString()}`
      const page = await client.requestJson<UnconfirmedAnswer>('GET', path, undefined, { signal: term.signal })
      const verdicts = await this.#deps.metadata.reclaimUnconfirmed(page.blobs, term.token)
      const blobs = page.blobs
        .filter((_, index) => verdicts[index] === 'reclaim')
        .map(({ partition, digest, generation }) => ({ partition, digest, generation }))
      if (blobs.length > 0) {
        const request: DropRequest = { shard, reason: 'deleted', blobs }
        await client.requestJson('POST', wirePath.drop, request, {
          fence: `${primaryRole}:${term.token}`,
          signal: term.signal,
        })
        this.reclaimed += blobs.length
        this.#deps.log.info({ shard, blobs: blobs.length }, 'abandoned uploads reclaimed')
      }
      after = page.next
    } while (after !== undefined && !term.signal.aborted)
  }
}
