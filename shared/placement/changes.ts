/** What operators do to a topology, and what comes of it before anything moves. Pure. */
import { type ClusterMap, copiesOf, type MapNode, type MapShard } from '../cluster-map.ts'
import { HoldfastError } from '../errors.ts'
import { parseNodeId, parseShardId, parseZone } from '../ids.ts'
import { partitionCount } from '../partition.ts'
import { type PlacementReport, verifyTable } from '../placement.ts'
import { byId, type Topology } from './model.ts'
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

/** The topology after these changes, one after the other. NOT_FOUND, CONFLICT or BAD_REQUEST for one that cannot be made. */
export function changedTopology(map: ClusterMap, changes: readonly TopologyChange[]): Topology {
  const nodes = new Map<string, MapNode>(map.nodes.map(node => [node.id, node]))
  const shards = new Map<string, MapShard>(map.shards.map(shard => [shard.id, shard]))
  for (const change of changes) applyChange(map, nodes, shards, change)
  const { clusterId, replicas, spread } = map
  return { clusterId, replicas, spread, nodes: [...nodes.values()], shards: [...shards.values()] }
}

function applyChange(
  map: ClusterMap,
  nodes: Map<string, MapNode>,
  shards: Map<string, MapShard>,
  change: TopologyChange,
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
    case 'weight':
      shards.set(change.shard, { ...known(shards, change.shard, 'shard'), weight: change.weight })
      return
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
  /** Fewest zones any partition is in, before and after. */
  readonly zones: { readonly before: number; readonly after: number }
  /** Why it should not be done, or only by somebody who insists. */
  readonly problems: string[]
}

/** Throws as `changedTopology` and `beginTransition` do. */
export function planChanges(map: ClusterMap, changes: readonly TopologyChange[]): TopologyPlan {
  const topology = changedTopology(map, changes)
  const next = beginTransition(map, topology)
  const moves = movesOf(next)
  const report = verifyTable(topology, next.table, map)
  const copiesBefore = map.copies
  const copiesAfter = copiesOf(topology.replicas, topology.shards)
  const zones = { before: fewestZones(map), after: fewestZones(next) }
  const problems: string[] = []
  if (copiesAfter < copiesBefore) {
    problems.push(`only ${copiesAfter} nodes would be left for ${copiesBefore} copies of everything`)
  }
  if (zones.after < zones.before) problems.push(`copies would be in ${zones.after} zones instead of ${zones.before}`)
  return { epoch: map.epoch, next, moves, report, shards: shardPlans(map, next, moves), zones, problems }
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
