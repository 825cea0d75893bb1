/** What operators do to a topology, and what comes of it before anything moves. Pure. */
import { type ClusterMap, copiesOf, type MapNode, type MapShard, replicasMax } from '../cluster-map.ts'
import { HoldfastError } from '../errors.ts'
import { parseNodeId, parseShardId, parseZone } from '../ids.ts'
import { partitionCount } from '../partition.ts'
import { type PlacementReport, verifyTable } from '../placement.ts'
import { byId, type Topology } from './model.ts'
import type { Swap } from './swaps.ts'
import {
  beginTransition,
  countedNames,
  movesOf,
  partitionsOf,
  type PartitionMove,
  shardPartitions,
} from './transition.ts'

export type TopologyChange =
  | { readonly op: 'add-node'; readonly node: string; readonly zone: string; readonly url: string }
  | { readonly op: 'remove-node'; readonly node: string }
  | { readonly op: 'add-shard'; readonly shard: string; readonly node: string; readonly weight: number }
  /** Weight 0 drains the shard. */
  | { readonly op: 'weight'; readonly shard: string; readonly weight: number }
  | { readonly op: 'remove-shard'; readonly shard: string }
  /** So many copies of everything. */
  | { readonly op: 'replicas'; readonly replicas: number }
  /** It is away, and owns nothing until it is taken in again; see `ShardOut`. */
  | { readonly op: 'out'; readonly shard: string; readonly since: number; readonly auto: boolean }
  | { readonly op: 'in'; readonly shard: string }
  /** On top of all others: places are those of the map that comes of them. */
  | { readonly op: 'swap'; readonly swaps: readonly Swap[] }

/**
 * The topology after these changes, one after the other. NOT_FOUND, CONFLICT or BAD_REQUEST for one that cannot be made, TOPOLOGY_INVALID
 * for more copies than there are nodes to hold them.
 */
export function changedTopology(map: ClusterMap, changes: readonly TopologyChange[]): Topology {
  const nodes = new Map<string, MapNode>(map.nodes.map(node => [node.id, node]))
  const shards = new Map<string, MapShard>(map.shards.map(shard => [shard.id, shard]))
  let { replicas } = map
  for (const change of changes) {
    if (change.op === 'replicas') replicas = knownReplicas(change.replicas)
    else if (change.op !== 'swap') applyChange(map, nodes, shards, change)
  }
  const { clusterId, spread } = map
  const topology = { clusterId, replicas, spread, nodes: [...nodes.values()], shards: [...shards.values()] }
  const possible = copiesOf(replicas, topology.shards)
  if (replicas !== map.replicas && possible < replicas) {
    const text = `${replicas} copies need ${replicas} nodes with a shard that is not drained: there are ${possible}`
    throw new HoldfastError('TOPOLOGY_INVALID', text, { replicas, nodes: possible })
  }
  return topology
}

/** Two changes that say different things of the same shard, or of the number of copies: whichever came last would count, in silence. */
export function contradiction(
  changes: readonly TopologyChange[],
): readonly [TopologyChange, TopologyChange] | undefined {
  for (const [at, one] of changes.entries()) {
    const other = changes.slice(0, at).find(before => contradicts(before, one))
    if (other !== undefined) return [other, one]
  }
  return undefined
}

/** A shard may be added, or taken in, and reweighted in one go, and drained and removed. */
function contradicts(one: TopologyChange, other: TopologyChange): boolean {
  if (one.op === 'replicas') return other.op === 'replicas' && other.replicas !== one.replicas
  if (!('shard' in one) || !('shard' in other) || one.shard !== other.shard) return false
  const leaves = (change: TopologyChange): boolean =>
    change.op === 'out' || change.op === 'remove-shard' || (change.op === 'weight' && change.weight === 0)
  const weightsDiffer = one.op === 'weight' && other.op === 'weight' && one.weight !== other.weight
  return weightsDiffer || leaves(one) !== leaves(other)
}

function knownReplicas(replicas: number): number {
  if (Number.isInteger(replicas) && replicas >= 1 && replicas <= replicasMax) return replicas
  throw new HoldfastError('BAD_REQUEST', `the number of copies must be 1 to ${replicasMax}`, { replicas })
}

function applyChange(
  map: ClusterMap,
  nodes: Map<string, MapNode>,
  shards: Map<string, MapShard>,
  change: Exclude<TopologyChange, { readonly op: 'replicas' | 'swap' }>,
): void {
  switch (change.op) {
    case 'add-node': {
      const [id, zone] = [parseNodeId(change.node), parseZone(change.zone)]
      if (id === undefined || zone === undefined) throw new HoldfastError('BAD_REQUEST', 'node id or zone not allowed')
      if (nodes.has(id)) throw new HoldfastError('CONFLICT', `node ${id} is in the cluster already`, { node: id })
      nodes.set(id, { id, zone, url: change.url })
      return
    }
    case 'remove-node': {
      known(nodes, change.node, 'node')
      for (const { id, node } of shards.values()) {
        if (node !== change.node) continue
        mustBeEmpty(map, id)
        shards.delete(id)
      }
      nodes.delete(change.node)
      return
    }
    case 'add-shard': {
      const [id, node] = [parseShardId(change.shard), parseNodeId(change.node)]
      if (id === undefined || node === undefined) throw new HoldfastError('BAD_REQUEST', 'shard id not allowed')
      known(nodes, node, 'node')
      if (shards.has(id)) throw new HoldfastError('CONFLICT', `shard ${id} is in the cluster already`, { shard: id })
      shards.set(id, { id, node, weight: change.weight })
      return
    }
    case 'weight': {
      // Whoever gives it a weight has decided about it: nobody takes it in by itself any more.
      const { id, node } = known(shards, change.shard, 'shard')
      shards.set(id, { id, node, weight: change.weight })
      return
    }
    case 'out': {
      const { id, node, weight, out } = known(shards, change.shard, 'shard')
      if (weight === 0) {
        const text = `shard ${id} is ${out === undefined ? 'drained' : 'out'} already`
        throw new HoldfastError('CONFLICT', text, { shard: id })
      }
      shards.set(id, { id, node, weight: 0, out: { weight, since: change.since, auto: change.auto } })
      return
    }
    case 'in': {
      const { id, node, out } = known(shards, change.shard, 'shard')
      if (out === undefined) throw new HoldfastError('CONFLICT', `shard ${id} is not out`, { shard: id })
      shards.set(id, { id, node, weight: out.weight })
      return
    }
    case 'remove-shard':
      known(shards, change.shard, 'shard')
      mustBeEmpty(map, change.shard)
      shards.delete(change.shard)
  }
}

function known<Item>(items: ReadonlyMap<string, Item>, id: string, what: string): Item {
  const item = items.get(id)
  if (item === undefined) throw new HoldfastError('NOT_FOUND', `no ${what} '${id}' in the cluster`, { [what]: id })
  return item
}

function mustBeEmpty(map: ClusterMap, shard: string): void {
  const { owned, leaving } = partitionsOf(map, shard)
  if (owned + leaving === 0) return
  const text = `shard ${shard} still owns ${owned + leaving} partitions: drain it, and wait until the change is settled`
  throw new HoldfastError('CONFLICT', text, { shard, partitions: owned + leaving })
}

export interface ShardPlan {
  readonly shard: string
  readonly node: string
  readonly zone: string
  readonly weight: number
  /** Partitions it owns, before and after; how many it is to get, and to give away. */
  readonly before: number
  readonly after: number
  readonly gains: number
  readonly losses: number
}

export interface TopologyPlan {
  /** The map it starts from. */
  readonly epoch: number
  readonly next: ClusterMap
  readonly moves: readonly PartitionMove[]
  readonly report: PlacementReport
  readonly shards: ShardPlan[]
  /** Copies wanted of everything, before and after. */
  readonly replicas: { readonly before: number; readonly after: number }
  /** Fewest zones any partition is in, before and after. */
  readonly zones: { readonly before: number; readonly after: number }
  /** Why it should not be done, or only by somebody who insists. */
  readonly problems: string[]
}

/** Throws as `changedTopology` and `beginTransition` do. */
export function planChanges(map: ClusterMap, changes: readonly TopologyChange[]): TopologyPlan {
  const topology = changedTopology(map, changes)
  const swaps = changes.flatMap(change => (change.op === 'swap' ? change.swaps : []))
  const next = beginTransition(map, topology, swaps)
  const moves = movesOf(next)
  const report = verifyTable(topology, next.table, map)
  const replicas = { before: map.replicas, after: topology.replicas }
  const zones = { before: fewestZones(map), after: fewestZones(next) }
  const problems = [...lossProblems(map, next, zones), ...replicaProblems(replicas, zones.after)]
  return { epoch: map.epoch, next, moves, report, shards: shardPlans(map, next, moves), replicas, zones, problems }
}

/** Copies or zones that nobody asked to have fewer of. */
function lossProblems(map: ClusterMap, next: ClusterMap, zones: TopologyPlan['zones']): string[] {
  const problems: string[] = []
  const [copiesWanted, zonesWanted] = [Math.min(map.copies, next.replicas), Math.min(zones.before, next.replicas)]
  if (next.copies < copiesWanted) {
    problems.push(`only ${next.copies} nodes would be left for ${copiesWanted} copies of everything`)
  }
  if (zones.after < zonesWanted) problems.push(`copies would be in ${zones.after} zones instead of ${zonesWanted}`)
  return problems
}

function replicaProblems({ before, after }: TopologyPlan['replicas'], zones: number): string[] {
  if (after > before && zones < after) {
    const together = Math.ceil(after / zones)
    return [`${after} copies in ${zones === 1 ? 'one zone' : `${zones} zones`}: a zone that is lost takes up to ${together} of them with it`] // prettier-ignore
  }
  return after < before && after === 1 ? ['a single copy of everything would be left: a lost disk loses data'] : []
}

/** One pass over shards and moves: there may be thousands of each, and a worker that serves waits for it. */
function shardPlans(map: ClusterMap, next: ClusterMap, moves: readonly PartitionMove[]): ShardPlan[] {
  const nodes = new Map<string, MapNode>([...map.nodes, ...next.nodes].map(node => [node.id, node]))
  const left = new Set<string>(next.shards.map(({ id }) => id))
  const gone = map.shards.filter(({ id }) => !left.has(id)).map(shard => ({ ...shard, weight: 0 }))
  const [before, after] = [shardPartitions(map), shardPartitions(next)]
  const gains = countedNames(moves.map(({ from, to }) => to.filter(id => !from.includes(id))))
  const losses = countedNames(moves.map(({ from, to }) => from.filter(id => !to.includes(id))))
  return [...next.shards, ...gone].sort(byId).map(({ id, node, weight }) => ({
    shard: id,
    node,
    zone: nodes.get(node)?.zone ?? '',
    weight,
    before: before.get(id)?.owned ?? 0,
    after: after.get(id)?.owned ?? 0,
    gains: gains.get(id) ?? 0,
    losses: losses.get(id) ?? 0,
  }))
}

function fewestZones(map: ClusterMap): number {
  const zones = new Map<string, string>(map.nodes.map(({ id, zone }) => [id, zone]))
  let fewest = Infinity
  for (let partition = 0; partition < partitionCount; partition += 1) {
    const row = map.table.subarray(partition * map.copies, (partition + 1) * map.copies)
    const found = new Set(Array.from(row, place => zones.get(map.shards[place]?.node ?? '')))
    fewest = Math.min(fewest, found.size)
  }
  return fewest
}
