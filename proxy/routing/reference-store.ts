import { setTimeout as sleep } from 'node:timers/promises'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionOf } from '../../shared/partition.ts'
import { encodeRecord, type ReferenceRecord } from '../../shared/record.ts'
import { referenceReadQuorum } from '../../shared/quorum.ts'
import { type ReferenceAnswer, wirePath } from '../../shared/wire.ts'
import type { ClusterView } from './cluster-view.ts'
import type { HealthTable } from './health.ts'
import type { NodeClients } from './node-client.ts'
import { replicateRecord } from './record-replication.ts'
import type { ReferenceStore } from './types.ts'
import { underNewestMap, type WriteContext } from './write-context.ts'
import { likelyHandoffs, placementsOf } from './write-plan.ts'

/** PostgreSQL is down and a reader waits: a silent owner counts as not reachable. */
const askTimeoutMs = 1_500
/** Once enough owners have answered the others get so long to name a newer version. */
const graceMs = 200

/** What a shard said about a path: its newest reference, or that it has none. */
type Word = ReferenceRecord | 'none'

export interface ReferenceStoreDeps {
  readonly context: WriteContext
  readonly view: ClusterView
  readonly health: HealthTable
  readonly clients: NodeClients
}

/** References on the shards: written with every artifact, read when PostgreSQL cannot be asked. */
export class ShardReferences implements ReferenceStore {
  readonly #deps: ReferenceStoreDeps

  constructor(deps: ReferenceStoreDeps) {
    this.#deps = deps
  }

  async append(record: ReferenceRecord): Promise<{ readonly missing: readonly ShardId[] }> {
    const frame = encodeRecord(record)
    const { context } = this.#deps
    const { partition } = record
    for (;;) {
      let placement = context.placement
      const reached = await underNewestMap(context, () => {
        placement = context.placement
        return Promise.all(
          // A partition whose owners are changing counts on the majority of both.
          placementsOf(placement, partition).map(one => replicateRecord(context, 'reference', partition, frame, one)),
        )
      })
      // What was planned by a map that is no longer the newest may have gone to nobody that is asked from now on.
      if (context.placement !== placement && !sameOwners(context.placement, placement, partition)) continue
      return { missing: [...new Set(reached.flatMap(({ missing }) => missing))] }
    }
  }

  async appendTo(record: ReferenceRecord, shards: readonly ShardId[]): Promise<ReadonlySet<ShardId>> {
    const frame = encodeRecord(record)
    const view = this.#deps.view.current()
    const done = new Set<ShardId>()
    const sent = shards.map(shard => {
      const { id: node, url, zone } = view.node(shard)
      const { backgroundAppender } = this.#deps.context.uplink({ shard, node, url, zone })
      return new Promise<void>(resolve => {
        backgroundAppender.append(shard, frame, error => {
          if (error === undefined) done.add(shard)
          resolve()
        })
      })
    })
    await Promise.all(sent)
    return done
  }

  async newest(repository: string, path: string): Promise<ReferenceRecord | undefined> {
    const view = this.#deps.view.current()
    const partition = partitionOf(repository, path)
    const placements = placementsOf(view, partition)
    const sets = placements.map(one => {
      const owners = one.owners(partition)
      return { owners, ownersMin: Math.min(owners.length, referenceReadQuorum(one.map.replicas)) }
    })
    const handoffs = placements.flatMap(one => likelyHandoffs(one, partition, shard => this.#readable(shard)))
    const suffix = `?key=${encodeURIComponent(`${repository}/${path}`)}`
    const words = new Map<ShardId, Word>()
    const abort = new AbortController()
    const asked = [...new Set([...sets.flatMap(({ owners }) => owners), ...handoffs])].map(async shard => {
      const word = await this.#ask(shard, wirePath.references(shard, partition) + suffix, abort.signal)
      if (word !== undefined) words.set(shard, word)
    })
    await this.#enough(asked, () =>
      sets.every(({ owners, ownersMin }) => {
        const { answered, needed } = countOwners(words, owners, ownersMin)
        return answered >= needed
      }),
    )
    abort.abort()
    // While the owners change, an answer takes enough of the old and of the new ones; the newest word of all is the answer.
    return sets.map(({ owners, ownersMin }) => judge(words, owners, ownersMin))[0]
  }

  /** Down nodes are asked too (owners only): they may be up again, and asking costs nothing when they are not. */
  async #ask(shard: ShardId, path: string, signal: AbortSignal): Promise<Word | undefined> {
    try {
      const client = this.#deps.clients.ofShard(shard)
      return await client.requestJson<ReferenceAnswer>('GET', path, undefined, { timeoutMs: askTimeoutMs, signal })
    } catch (error) {
      // Unreachable, failed, cancelled: no word of this shard. The health table has heard of it.
      return isHoldfastError(error, 'REFERENCE_NOT_FOUND') ? 'none' : undefined
    }
  }

  #readable(shard: ShardId): boolean {
    const { view, health } = this.#deps
    return health.state(view.current().node(shard).id) !== 'down' && health.shardState(shard) !== 'failed'
  }

  /** Waits for all answers, but not longer than a grace once `enough` holds. */
  async #enough(asked: readonly Promise<void>[], enough: () => boolean): Promise<void> {
    const all = Promise.all(asked)
    const inGrace = new AbortController()
    const quorum = new Promise<void>(resolve => {
      for (const answer of asked) void answer.then(() => enough() && resolve())
    })
    // The first branch always ends (each request has a time limit), so nothing is left waiting.
    const grace = quorum.then(() => sleep(graceMs, undefined, { signal: inGrace.signal })).catch(() => undefined)
    await Promise.race([all, grace])
    inGrace.abort()
  }
}

function sameOwners(a: PlacementView, b: PlacementView, partition: number): boolean {
  const text = (view: PlacementView): string => [...view.allOwners(partition)].sort().join()
  return text(a) === text(b)
}

/** The newest of what the shards said. Throws REPLICAS_UNREACHABLE when too few owners answered. */
export function judge(
  words: ReadonlyMap<ShardId, Word>,
  owners: readonly ShardId[],
  ownersMin: number,
): ReferenceRecord | undefined {
  const { answered, needed } = countOwners(words, owners, ownersMin)
  if (answered < needed) {
    throw new HoldfastError('REPLICAS_UNREACHABLE', 'too few owners answered', { answered, needed })
  }
  let newest: ReferenceRecord | undefined
  for (const word of words.values()) {
    if (word !== 'none' && (newest === undefined || word.version > newest.version)) newest = word
  }
  return newest?.op === 'put' ? newest : undefined
}

/** That a path is absent takes the word of two owners (I7): with R = 2 one may have been away when it was written. */
function countOwners(
  words: ReadonlyMap<ShardId, Word>,
  owners: readonly ShardId[],
  ownersMin: number,
): { answered: number; needed: number } {
  const found = [...words.values()].some(word => word !== 'none')
  const answered = owners.filter(owner => words.has(owner)).length
  return { answered, needed: found ? ownersMin : Math.max(ownersMin, Math.min(2, owners.length)) }
}
