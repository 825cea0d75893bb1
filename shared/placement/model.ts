import type { ClusterMap, MapNode, MapShard } from '../cluster-map.ts'
import { copiesOf } from '../cluster-map.ts'

/** What an operator decides; everything else about a map is computed. Nodes and shards may come in any order. */
export interface Topology {
  readonly clusterId: string
  readonly replicas: number
  readonly spread: ClusterMap['spread']
  readonly nodes: readonly MapNode[]
  /** Weight 0 drains a shard: it stays in the map and owns nothing. */
  readonly shards: readonly MapShard[]
}

/**
 * The part of a topology that can own partitions, as indices: shards of weight above 0, their nodes, their zones, each
 * list sorted by id, so that equal topologies give equal models.
 */
export interface Model {
  readonly copies: number
  readonly spread: ClusterMap['spread']
  readonly zones: readonly { readonly name: string; readonly nodes: readonly number[] }[]
  readonly nodes: readonly {
    readonly id: string
    readonly zone: number
    readonly weight: number
    readonly shards: readonly number[]
  }[]
  /** `index` is the shard's place in the sorted list of all shards, which the table refers to. */
  readonly shards: readonly {
    readonly id: string
    readonly index: number
    readonly node: number
    readonly weight: number
  }[]
}

/** Code units, not the locale: the same order on every machine. */
export function byId(a: { readonly id: string }, b: { readonly id: string }): number {
  return a.id < b.id ? -1 : a.id > b.id ? 1 : 0
}

/** The topology with nodes and shards in the order of a map. */
export function sortTopology(topology: Topology): Topology {
  return { ...topology, nodes: [...topology.nodes].sort(byId), shards: [...topology.shards].sort(byId) }
}

/** The model of a sorted topology without problems. */
export function modelOf(topology: Topology): Model {
  const usable = topology.shards.map((shard, index) => ({ ...shard, index })).filter(shard => shard.weight > 0)
  const used = new Set<string>(usable.map(shard => shard.node))
  const mapNodes = topology.nodes.filter(node => used.has(node.id))
  const zoneNames = [...new Set(mapNodes.map(node => node.zone))].sort()
  const nodeIndex = new Map<string, number>(mapNodes.map((node, index) => [node.id, index]))
  const shards = usable.map(({ id, index, node, weight }) => ({ id, index, node: nodeIndex.get(node) ?? 0, weight }))
  const shardsOf = group(mapNodes.length, shards, shard => shard.node)
  const nodes = mapNodes.map(({ id, zone }, index) => {
    const own = shardsOf[index] ?? []
    const weight = own.reduce((sum, shard) => sum + (shards[shard]?.weight ?? 0), 0)
    return { id, zone: zoneNames.indexOf(zone), weight, shards: own }
  })
  const nodesOf = group(zoneNames.length, nodes, node => node.zone)
  const zones = zoneNames.map((name, index) => ({ name, nodes: nodesOf[index] ?? [] }))
  return { copies: copiesOf(topology.replicas, topology.shards), spread: topology.spread, zones, nodes, shards }
}

function group<Item>(count: number, items: readonly Item[], of: (item: Item) => number): number[][] {
  const groups = Array.from({ length: count }, (): number[] => [])
  items.forEach((item, index) => groups[of(item)]?.push(index))
  return groups
}
