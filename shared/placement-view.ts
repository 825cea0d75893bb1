import assert from 'node:assert/strict'
import { type ClusterMap, isSettled, type MapNode, type MapShard, replicasBefore, settledEntry } from './cluster-map.ts'
import type { ShardId, Zone } from './ids.ts'
import { partitionCount } from './partition.ts'
import { Ring } from './ring.ts'

/** Ring points per shard in the rings inside nodes: only order matters there, and large clusters have many such rings. */
const shardPoints = 32
/** Shard ids kept in each cache of handoff lists, over all partitions: 2 MiB of pointers. */
const cachedHandoffIdsMax = 262_144

/**
 * Lookups in one cluster map, built once per map. Every answer is the same in every process that holds the same map
 * (I17). Asking for a shard or partition that the map does not have is a bug and throws AssertionError; use `has` for
 * ids that came from outside.
 */
export class PlacementView {
  readonly map: ClusterMap
  readonly #shards: ReadonlyMap<ShardId, MapShard>
  readonly #nodes: ReadonlyMap<string, MapNode>
  /** Of the partitions that were asked about: a new map comes to every process, in the middle of its work. */
  readonly #owners: (readonly ShardId[] | undefined)[] = new Array<readonly ShardId[] | undefined>(partitionCount)
  /** The same, of those that are not settled. */
  readonly #previous = new Map<number, readonly ShardId[]>()
  #unsettled: readonly number[] | undefined
  /** Nodes with a shard of weight above 0, sorted by id; their shards likewise. Draining shards take no handoffs. */
  readonly #members: readonly { readonly id: string; readonly weight: number; readonly shards: readonly MapShard[] }[]
  readonly #handoffs = new Map<number, readonly ShardId[]>()
  /** Of the previous owners, where there are any. */
  readonly #handoffsBefore = new Map<number, readonly ShardId[]>()
  readonly #cachedMax: number
  #ring: Ring | undefined
  readonly #shardRings = new Map<string, Ring>()

  constructor(map: ClusterMap) {
    this.map = map
    this.#shards = new Map(map.shards.map(shard => [shard.id, shard]))
    this.#nodes = new Map(map.nodes.map(node => [node.id, node]))
    this.#members = membersOf(map)
    this.#cachedMax = Math.max(64, Math.floor(cachedHandoffIdsMax / map.shards.length))
  }

  /** Whether the map knows the shard. */
  has(id: string): id is ShardId {
    return this.#shards.has(id as ShardId)
  }

  shard(id: ShardId): MapShard {
    const shard = this.#shards.get(id)
    assert.ok(shard, `shard ${id} is not in the map of epoch ${this.map.epoch}`)
    return shard
  }

  /** The node that owns the shard. */
  node(shard: ShardId): MapNode {
    const node = this.#nodes.get(this.shard(shard).node)
    assert.ok(node)
    return node
  }

  zone(shard: ShardId): Zone {
    return this.node(shard).zone
  }

  /** The partition's owners on distinct nodes, in ring order: the first owner is of no particular node or zone. */
  owners(partition: number): readonly ShardId[] {
    const known = this.#owners[partition]
    if (known !== undefined) return known
    assert.ok(partition >= 0 && partition < partitionCount, `partition ${partition} does not exist`)
    return (this.#owners[partition] = this.#row(this.map, partition))
  }

  /** Who owned the partition before the change of topology under way; undefined: it is settled, only `owners` count. */
  previousOwners(partition: number): readonly ShardId[] | undefined {
    const { previous } = this.map
    if (previous === undefined || isSettled(previous, partition)) return undefined
    let owners = this.#previous.get(partition)
    if (owners === undefined) this.#previous.set(partition, (owners = this.#row(previous, partition)))
    return owners
  }

  /** Partitions that are not settled, in order. */
  unsettled(): readonly number[] {
    return (this.#unsettled ??= unsettledOf(this.map))
  }

  /**
   * The shards that have every blob of the partition, as far as its owners do: those that own it and owned it before, or all that owned
   * it before; the owners where it is settled.
   */
  sources(partition: number): readonly ShardId[] {
    const previous = this.previousOwners(partition)
    if (previous === undefined) return this.owners(partition)
    const kept = this.owners(partition).filter(shard => previous.includes(shard))
    return kept.length > 0 ? kept : previous
  }

  /** Owners, and previous owners where the partition is not settled: who may be asked about it. */
  allOwners(partition: number): readonly ShardId[] {
    const owners = this.owners(partition)
    const previous = this.previousOwners(partition)
    return previous === undefined ? owners : [...owners, ...previous.filter(shard => !owners.includes(shard))]
  }

  /** This view with the previous owners in the place of the owners, and R of their time, for what counts on both. */
  before(): Pick<PlacementView, 'map' | 'owners' | 'handoffs' | 'siblings' | 'node'> {
    return {
      map: { ...this.map, replicas: replicasBefore(this.map) },
      owners: partition => this.previousOwners(partition) ?? this.owners(partition),
      handoffs: partition => {
        const previous = this.previousOwners(partition)
        if (previous === undefined) return this.handoffs(partition)
        return this.#cachedHandoffs(this.#handoffsBefore, partition, previous)
      },
      siblings: (partition, owner) => this.siblings(partition, owner),
      node: shard => this.node(shard),
    }
  }

  /**
   * Shards that may take a write for an owner that is down: those of all nodes without an owner, in ring order; first
   * the best shard of each node, then the second best of each, and so on. Shards of weight 0 are never among them.
   */
  handoffs(partition: number): readonly ShardId[] {
    return this.#cachedHandoffs(this.#handoffs, partition, this.owners(partition))
  }

  /** The other shards of the owner's node with weight above 0, in ring order: its last resort when no node is spare. */
  siblings(partition: number, owner: ShardId): readonly ShardId[] {
    const node = this.shard(owner).node
    const member = this.#members.find(({ id }) => id === node)
    return member === undefined ? [] : this.#shardOrder(partition, member).filter(id => id !== owner)
  }

  #row({ table, copies }: Pick<ClusterMap, 'table' | 'copies'>, partition: number): readonly ShardId[] {
    const owners: ShardId[] = []
    for (let place = partition * copies; place < (partition + 1) * copies; place += 1) {
      const shard = this.map.shards[table[place] ?? settledEntry]
      assert.ok(shard)
      owners.push(shard.id)
    }
    return owners
  }

  #cachedHandoffs(
    cache: Map<number, readonly ShardId[]>,
    partition: number,
    owners: readonly ShardId[],
  ): readonly ShardId[] {
    const cached = cache.get(partition)
    if (cached !== undefined) return cached
    const found = this.#findHandoffs(partition, owners)
    if (cache.size >= this.#cachedMax) {
      for (const oldest of cache.keys()) {
        cache.delete(oldest)
        break
      }
    }
    cache.set(partition, found)
    return found
  }

  #findHandoffs(partition: number, owners: readonly ShardId[]): readonly ShardId[] {
    const taken = new Set<string>(owners.map(id => this.shard(id).node))
    this.#ring ??= new Ring(this.#members)
    const perNode: (readonly ShardId[])[] = []
    for (const index of this.#ring.order(partition)) {
      const member = this.#members[index]
      if (member !== undefined && !taken.has(member.id)) perNode.push(this.#shardOrder(partition, member))
    }
    const depth = perNode.reduce((most, shards) => Math.max(most, shards.length), 0)
    return Array.from({ length: depth }, (_, rank) => perNode.flatMap(shards => shards[rank] ?? [])).flat()
  }

  #shardOrder(partition: number, member: { readonly id: string; readonly shards: readonly MapShard[] }): ShardId[] {
    let ring = this.#shardRings.get(member.id)
    if (ring === undefined) this.#shardRings.set(member.id, (ring = new Ring(member.shards, shardPoints)))
    return ring.order(partition).flatMap(index => member.shards[index]?.id ?? [])
  }
}

function unsettledOf({ previous }: ClusterMap): readonly number[] {
  const partitions: number[] = []
  for (let partition = 0; previous !== undefined && partition < partitionCount; partition += 1) {
    if (!isSettled(previous, partition)) partitions.push(partition)
  }
  return partitions
}

function membersOf(map: ClusterMap): { id: string; weight: number; shards: MapShard[] }[] {
  const members = new Map<string, { id: string; weight: number; shards: MapShard[] }>()
  for (const { id } of map.nodes) members.set(id, { id, weight: 0, shards: [] })
  for (const shard of map.shards) {
    const member = members.get(shard.node)
    assert.ok(member)
    if (shard.weight === 0) continue
    member.weight += shard.weight
    member.shards.push(shard)
  }
  return [...members.values()].filter(member => member.weight > 0)
}
