import assert from 'node:assert/strict'
import type { PlacementView } from '../../shared/cluster-map.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { NodeId, ShardId } from '../../shared/ids.ts'
import { AppendBatcher } from './append-batcher.ts'
import type { ClusterView } from './cluster-view.ts'
import { Discards } from './discards.ts'
import type { HealthTable } from './health.ts'
import type { NodeClient, NodeClients } from './node-client.ts'
import { WireConnections } from './wire-connection.ts'
import { planWrite, type WritePlacement, type WritePlan, type WriteQuestion, type WriteTarget } from './write-plan.ts'

/** Everything that goes up to one storage node. */
export interface NodeUplink {
  readonly client: NodeClient
  readonly connections: WireConnections
  readonly appender: AppendBatcher
  /** For records that no client waits for: a node would take who sends them for one. */
  readonly backgroundAppender: AppendBatcher
}

/** Only grow; the metrics read them. */
export interface WriteCounters {
  /** Acknowledged with fewer than R copies on owners. */
  underReplicated: number
  /** Copies that went to a shard that is no owner. */
  handoffs: number
  /** Replicas that joined an upload after its first bytes. */
  lateJoins: number
  /** Replicas that left an upload: dead, frozen, too slow, refusing. */
  droppedReplicas: number
  /** Writes refused or failed for want of replicas. */
  quorumFailures: number
}

export interface WriteContextDeps {
  readonly view: ClusterView
  readonly health: HealthTable
  readonly clients: NodeClients
  /** Monotonic milliseconds. */
  readonly now?: () => number
  /** Fetches the newest cluster map, if there is a newer one. Never rejects. */
  readonly renewMap?: () => Promise<void>
}

/**
 * Whom to count on. 'lenient' also takes nodes that asked for no new work or have been silent for a second, 'hopeful' those, too, that
 * are down but were well lately: better than refusing the write.
 */
const leniencies = ['strict', 'lenient', 'hopeful'] as const
export type Leniency = (typeof leniencies)[number]

/** Where the copies of an acknowledged write are. */
export interface Copies {
  /** Owners without a durable copy. */
  readonly missing: readonly ShardId[]
  /** Shards that have one without being owners. */
  readonly handoffs: readonly ShardId[]
}

/** What all writes of one worker share: who can take them, and the ways to the nodes. */
export class WriteContext {
  readonly now: () => number
  readonly counters: WriteCounters = {
    underReplicated: 0,
    handoffs: 0,
    lateJoins: 0,
    droppedReplicas: 0,
    quorumFailures: 0,
  }
  /** Staged uploads whose nodes are told again to forget them. */
  readonly discards: Discards
  readonly #deps: WriteContextDeps
  readonly #uplinks = new Map<NodeId, NodeUplink>()

  constructor(deps: WriteContextDeps) {
    this.#deps = deps
    this.now = deps.now ?? (() => performance.now())
    this.discards = new Discards({
      now: this.now,
      isDown: node => this.isDown(node),
      uplink: target => this.uplink(target),
    })
  }

  /** Resolves when this worker has asked for the newest map. */
  async renewMap(): Promise<void> {
    await this.#deps.renewMap?.()
  }

  get placement(): PlacementView {
    return this.#deps.view.current()
  }

  /** The way to a node. Its client is asked for each time: a node that moved to another URL gets a new one. */
  uplink({ node, url, zone }: WriteTarget): NodeUplink {
    const client = this.#deps.clients.get({ id: node, url, zone })
    const known = this.#uplinks.get(node)
    if (known?.client === client) return known
    known?.appender.close()
    known?.backgroundAppender.close()
    const connections = new WireConnections(url)
    const uplink = {
      client,
      connections,
      appender: new AppendBatcher(client, connections, this.now),
      backgroundAppender: new AppendBatcher(client, connections, this.now, 'usual'),
    }
    this.#uplinks.set(node, uplink)
    return uplink
  }

  isDown(node: NodeId): boolean {
    return this.#deps.health.state(node) === 'down'
  }

  /** Which life of its process the node last answered from. What failed in an earlier one may do now. */
  runOf(node: NodeId): string | undefined {
    return this.#deps.health.run(node)
  }

  /**
   * Has the node answered its last health check? If so silence means a busy disk rather than a frozen process, and work
   * that is moved elsewhere would make a busy cluster busier still.
   */
  isLively({ node, shard }: WriteTarget): boolean {
    return this.#deps.health.state(node) === 'up' && this.#deps.health.shardStatus(shard) !== undefined
  }

  /** The question behind a plan. */
  question(
    kind: WriteQuestion['kind'],
    partition: number,
    bytes: number,
    leniency: Leniency = 'strict',
    placement: WritePlacement = this.placement,
  ): WriteQuestion {
    const lenient = leniency !== 'strict'
    const { health } = this.#deps
    return {
      placement,
      partition,
      kind,
      writability: ({ node, shard }) => {
        const down = health.state(node) === 'down'
        if (down && !(leniency === 'hopeful' && health.mayBeBack(node))) return 'unavailable'
        if (!lenient && (health.draining(node) || this.#uplinks.get(node)?.appender.stalled === true))
          return 'unavailable'
        const state = health.shardState(shard)
        if (down ? state === 'ok' : health.writable(node, shard, bytes)) return 'ok'
        // Full disks keep a reserve for references: deletes go on (I31).
        if (kind === 'reference' && (state === 'ok' || state === 'full')) return 'ok'
        return state === 'ok' || state === 'full' ? 'no-room' : 'unavailable'
      },
    }
  }

  /** Plans a write of `bytes`. Throws QUORUM_NOT_REACHED or INSUFFICIENT_STORAGE. */
  plan(
    kind: WriteQuestion['kind'],
    partition: number,
    bytes: number,
    placement: WritePlacement = this.placement,
  ): WritePlan {
    for (const leniency of leniencies) {
      try {
        return planWrite(this.question(kind, partition, bytes, leniency, placement))
      } catch (error) {
        if (!isHoldfastError(error) || leniency === 'hopeful') {
          this.counters.quorumFailures += 1
          throw error
        }
      }
    }
    assert.fail('the last question is answered or thrown')
  }

  /**
   * What an acknowledged write reached, by the owners of this moment, and counts it: whoever planned it by an older map has its copies
   * brought to the new owners.
   */
  copies(partition: number, durable: readonly WriteTarget[], placement: WritePlacement = this.placement): Copies {
    const owners = placement.owners(partition)
    const missing = owners.filter(owner => !durable.some(({ shard }) => shard === owner))
    const handoffs = durable.map(({ shard }) => shard).filter(shard => !owners.includes(shard))
    if (missing.length > 0) this.counters.underReplicated += 1
    this.counters.handoffs += handoffs.length
    return { missing, handoffs }
  }

  /** The error of a write that found too few replicas, after what went wrong with each. */
  failure(partition: number, copies: number, reasons: readonly HoldfastError[]): HoldfastError {
    this.counters.quorumFailures += 1
    const data = { partition, copies, reasons: reasons.map(({ code }) => code).slice(0, 16) }
    const options = { cause: reasons[0] }
    if (
      reasons.length > 0 &&
      reasons.every(error => isHoldfastError(error, 'INSUFFICIENT_STORAGE', 'SHARD_READ_ONLY'))
    ) {
      return new HoldfastError('INSUFFICIENT_STORAGE', 'too few shards have room', data, options)
    }
    if (reasons.some(({ code }) => code === 'OVERLOADED')) {
      return new HoldfastError('OVERLOADED', 'storage nodes have too much to do', data, options)
    }
    return new HoldfastError('QUORUM_NOT_REACHED', 'too few storage nodes took the write', data, options)
  }

  /** Takes no new records, and cuts connections. Call it when no write is in flight any more. */
  close(): void {
    this.discards.close()
    for (const { appender, backgroundAppender, connections } of this.#uplinks.values()) {
      appender.close()
      backgroundAppender.close()
      connections.destroy()
    }
    this.#uplinks.clear()
  }
}

/** Attempts of a write whose proxy knows less of the topology than the nodes. */
const mapTriesMax = 3

/** Runs `write`; if nodes refused it because a newer map is about (I22), once more when that is here. */
export async function underNewestMap<Result>(
  context: Pick<WriteContext, 'renewMap' | 'placement'>,
  write: () => Promise<Result>,
): Promise<Result> {
  for (let tries = 1; ; tries += 1) {
    const { epoch } = context.placement.map
    try {
      return await write()
    } catch (error) {
      const reasons = isHoldfastError(error) ? error.data['reasons'] : undefined
      if (!Array.isArray(reasons) || !reasons.includes('STALE_EPOCH') || tries === mapTriesMax) throw error
      if (context.placement.map.epoch === epoch) await context.renewMap()
      if (context.placement.map.epoch === epoch) throw error
    }
  }
}
