/** The scrubs of all shards, seen and steered from any proxy. The nodes do the work and keep its state. */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { MapNode } from '../../shared/cluster-map.ts'
import type { ShardId } from '../../shared/ids.ts'
import { type ScrubAction, type ScrubAnswer, type ScrubRequest, type ScrubStatus, wirePath } from '../../shared/wire.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { NodeClient } from '../routing/node-client.ts'

const timeoutMs = 5_000

export interface ScrubControlDeps {
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'shardStatus'>
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
}

/** Those meant; without any: all. */
export interface ScrubTarget {
  readonly node?: string
  readonly shard?: string
}

export interface ShardScrub extends Omit<ScrubStatus, 'state' | 'losses'> {
  readonly node: string
  /** Failed: its disk is gone, or gives no answers; its node does. */
  readonly state: ScrubStatus['state'] | 'failed' | 'unknown'
  readonly losses?: number
  /** Why nothing is known of it, or why it failed. */
  readonly reason?: string
}

export class ScrubControl {
  readonly #deps: ScrubControlDeps

  constructor(deps: ScrubControlDeps) {
    this.#deps = deps
  }

  /** Of each shard in the map; NOT_FOUND for a target that is no node or shard. Those that do not answer are 'unknown', also if they had failed before. */
  async status(target: ScrubTarget = {}): Promise<readonly ShardScrub[]> {
    const { map } = this.#deps.view.current()
    const wanted = this.#shardsOf(target)
    const nodes = map.nodes.filter(node => wanted.some(shard => shard.node === node.id))
    const answers = await Promise.all(nodes.map(node => this.#ask(node)))
    return answers.flat().filter(({ shard }) => wanted.some(({ id }) => id === shard))
  }

  /** Starts or pauses; resolves with how they are then. A shard that refuses is 'failed' or 'unknown', with the reason. */
  async command(action: ScrubAction, target: ScrubTarget): Promise<readonly ShardScrub[]> {
    const body: ScrubRequest = { action }
    return Promise.all(
      this.#shardsOf(target).map(async ({ id, node }): Promise<ShardScrub> => {
        try {
          const client = this.#deps.clients.ofShard(id)
          return { node, ...(await client.requestJson<ScrubStatus>('POST', wirePath.scrubOf(id), body, { timeoutMs })) }
        } catch (error) {
          return unknown(node, id, error)
        }
      }),
    )
  }

  #shardsOf({ node, shard }: ScrubTarget) {
    const found = this.#deps.view.current().map.shards.filter(one => {
      return (node === undefined || one.node === node) && (shard === undefined || one.id === shard)
    })
    if (found.length === 0) throw new HoldfastError('NOT_FOUND', 'no such shard or node', { node, shard })
    return found
  }

  async #ask(node: MapNode): Promise<readonly ShardScrub[]> {
    const shards = this.#deps.view.current().map.shards.filter(shard => shard.node === node.id)
    const [first] = shards
    if (first === undefined) return []
    try {
      const client = this.#deps.clients.ofShard(first.id)
      const answer = await client.requestJson<ScrubAnswer>('GET', wirePath.scrub, undefined, { timeoutMs })
      return answer.shards.map(one => ({ node: node.id, ...one, ...this.#failure(one.shard) }))
    } catch (error) {
      return shards.map(({ id }) => unknown(node.id, id, error))
    }
  }

  /** A node answers for a disk that it has lost, too: the pass waits, and nothing is known to be bad. */
  #failure(shard: ShardId): Pick<ShardScrub, 'state' | 'reason'> | undefined {
    const { state, reason } = this.#deps.health.shardStatus(shard) ?? {}
    return state === 'failed' ? { state, ...(reason === undefined ? {} : { reason }) } : undefined
  }
}

function unknown(node: string, shard: ShardId, error: unknown): ShardScrub {
  if (!isHoldfastError(error)) throw error
  return { node, shard, state: error.code === 'SHARD_FAILED' ? 'failed' : 'unknown', reason: error.code }
}
