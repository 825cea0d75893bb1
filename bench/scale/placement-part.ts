/** The table: planning, the map's size, and what changes of topology move, beside the least possible. */
import { type ClusterMap, decodeClusterMap, encodeClusterMap, PlacementView } from '../../shared/cluster-map.ts'
import { partitionBits, partitionCount } from '../../shared/partition.ts'
import { buildClusterMap, planTable } from '../../shared/placement.ts'
import { planChanges, type TopologyChange, type TopologyPlan } from '../../shared/placement/changes.ts'
import { type Figure, figure, timed, weighed } from './measure.ts'
import {
  blobsPerPartition,
  bytesPerPartition,
  changeBytesPerSecond,
  disksPerNode,
  diskBytesPerSecond,
  itemsPerNodeSecond,
  itemsPerSecond,
  known,
  networkBytesPerSecond,
  nodeBytesPerSecond,
  backgroundBytesPerSecond,
  nodesPerZone,
  nodeUrl,
  partitionsAtOnce,
  replicas,
  shardCount,
  shardName,
  site,
  zones,
} from './site.ts'

/** One alone would drown in what else the process frees meanwhile. */
const copiesWeighed = 20

export async function placementPart(): Promise<Figure[]> {
  const topology = site()
  const first = await timed(() => planTable(topology, undefined))
  const { report } = first.result
  const map = buildClusterMap(topology, undefined)
  const figures = [
    figure('partitions', partitionCount, 'count', `2^${partitionBits}, fixed for every cluster`),
    figure('copies per shard', (partitionCount * replicas) / shardCount, 'count'),
    figure('first table: planning, CPU', first.cpuMs, 'ms'),
    figure(
      'fullest shard beside its share',
      report.shardBalance.max,
      'ratio',
      'the rest of the other disks stays empty',
    ),
    figure('emptiest shard beside its share', report.shardBalance.min, 'ratio'),
    figure('fullest node beside its share', report.nodeBalance.max, 'ratio'),
    figure('partitions with fewer zones than possible', report.spreadBroken, 'count'),
    ...finerTables(),
    ...(await mapFigures(map)),
  ]
  for (const [name, changes] of changesOf()) figures.push(...(await changeFigures(map, name, changes)))
  return figures
}

/** The same arithmetic for tables of more partitions, which the release cannot have. */
function finerTables(): Figure[] {
  return [14, 16, 18].flatMap(bits => {
    const share = (2 ** bits * replicas) / shardCount
    const table = (2 ** bits * replicas * 2 * 4) / 3
    return [
      figure(`2^${bits} partitions: fullest shard`, Math.ceil(share) / share, 'ratio', 'by arithmetic, not available'),
      figure(`2^${bits} partitions: table in the map`, table, 'bytes', 'by arithmetic, not available'),
    ]
  })
}

async function mapFigures(map: ClusterMap): Promise<Figure[]> {
  const encoded = await timed(() => repeat(5, () => encodeClusterMap(map)))
  const text = encoded.result
  const decoded = await timed(() => repeat(5, () => decodeClusterMap(text)))
  const maps = await weighed(() => Array.from({ length: copiesWeighed }, () => decodeClusterMap(text)))
  const made = await timed(() => new PlacementView(map))
  const views = await weighed(() => maps.result.map(one => new PlacementView(one)))
  const handoffs = await timed(() => weighed(() => askHandoffs(known(views.result[0]))))
  return [
    figure('map: encoded', Buffer.byteLength(text), 'bytes'),
    figure('map: encoding, CPU', encoded.cpuMs / 5, 'ms'),
    figure('map: decoding with all checks, CPU', decoded.cpuMs / 5, 'ms', 'every worker, when there is a newer one'),
    figure('map: decoded, in memory', maps.bytes / copiesWeighed, 'bytes', 'per worker'),
    figure('view of the map: making it, CPU', made.cpuMs, 'ms'),
    figure('view of the map: in memory', views.bytes / copiesWeighed, 'bytes', 'per worker'),
    figure('view: rings and kept handoffs of all partitions', handoffs.result.bytes, 'bytes', 'while nodes are away'),
    figure('handoffs of one partition, CPU', handoffs.cpuMs / partitionCount, 'ms', 'each time it is not kept'),
  ]
}

function askHandoffs(view: PlacementView): number {
  let count = 0
  for (let partition = 0; partition < partitionCount; partition += 1) count += view.handoffs(partition).length
  return count
}

function changesOf(): [name: string, changes: TopologyChange[]][] {
  const disks = Array.from({ length: disksPerNode }, (_, disk) => disk)
  const drained = (node: string): TopologyChange[] =>
    disks.map(disk => ({ op: 'weight', shard: shardName(node, disk), weight: 0 }))
  const zone = Array.from({ length: nodesPerZone }, (_, index) => `node-09-${String(index).padStart(2, '0')}`)
  const added = { op: 'add-node', node: 'node-added', zone: 'zone-03', url: nodeUrl(zones * nodesPerZone) } as const
  const shards = disks.map(disk => ({ op: 'add-shard', shard: shardName('node-added', disk), node: 'node-added', weight: 100 }) as const) // prettier-ignore
  return [
    ['+1 node', [added, ...shards]],
    ['-1 node', drained('node-04-07')],
    ['-1 zone', zone.flatMap(drained)],
  ]
}

async function changeFigures(map: ClusterMap, name: string, changes: readonly TopologyChange[]): Promise<Figure[]> {
  const planned = await timed(() => planChanges(map, changes))
  const plan = planned.result
  const { shards, nodes, clusterId, spread } = plan.next
  const table = await timed(() => planTable({ clusterId, replicas, spread, nodes, shards }, map))
  const { moves, movesMin, partitionsMovedTwice } = plan.report
  const bytes = moves * bytesPerPartition
  const text = Buffer.byteLength(encodeClusterMap(plan.next))
  return [
    figure(`${name}: planning the table, CPU`, table.cpuMs, 'ms'),
    figure(`${name}: the whole plan, CPU`, planned.cpuMs, 'ms', 'on the event loop of the worker that is asked'),
    figure(`${name}: copies moved`, moves, 'count', `least possible ${movesMin}; partitions moved twice ${partitionsMovedTwice}`), // prettier-ignore
    figure(`${name}: bytes to move`, bytes, 'bytes'),
    figure(`${name}: map during the change`, text, 'bytes'),
    ...(name === '-1 zone' ? [] : copyFigures(name, plan)),
  ]
}

/** How long the copying takes, by each limit alone: the largest of them is the time. */
function copyFigures(name: string, plan: TopologyPlan): Figure[] {
  const gone = new Set(plan.shards.filter(({ after, before }) => after === 0 && before > 0).map(({ shard }) => shard))
  const nodeOf = new Map<string, string>(plan.next.shards.map(({ id, node }) => [id, node]))
  const into = new Load()
  const outOf = new Load()
  const intoNode = new Load()
  const outOfNode = new Load()
  const pairs = new Set<string>()
  for (const { from, to } of plan.moves) {
    const sources = from.filter(shard => !gone.has(shard))
    for (const target of to.filter(shard => !from.includes(shard))) {
      into.add(target, 1)
      intoNode.add(known(nodeOf.get(target)), 1)
      for (const source of sources) {
        outOf.add(source, 1 / sources.length)
        outOfNode.add(known(nodeOf.get(source)), 1 / sources.length)
        pairs.add(`${nodeOf.get(source)} ${nodeOf.get(target)}`)
      }
    }
  }
  const copies = into.total
  const bytes = copies * bytesPerPartition
  const items = copies * blobsPerPartition * 2
  const disk = (Math.max(into.max, outOf.max) * bytesPerPartition) / diskBytesPerSecond
  const network = (Math.max(intoNode.max, outOfNode.max) * bytesPerPartition) / networkBytesPerSecond
  const throttled = `the default of ${changeBytesPerSecond / 2 ** 20} MiB/s for each shard`
  return [
    figure(`${name}: shards that receive, that send`, into.size, 'count', `${outOf.size} send; ${intoNode.size} nodes receive, ${outOfNode.size} send, ${pairs.size} pairs`), // prettier-ignore
    figure(`${name}: bytes into one node, at most`, intoNode.max * bytesPerPartition, 'bytes'),
    figure(`${name}: most copies into one shard`, into.max, 'count', `out of one: ${outOf.max.toFixed(2)}`),
    figure(`${name}: by the disks`, disk, 's', 'if everything ran at once'),
    figure(`${name}: by the network of a node`, network, 's', 'if everything ran at once'),
    figure(`${name}: by ${partitionsAtOnce} partitions at once`, bytes / (partitionsAtOnce * changeBytesPerSecond), 's', 'each at the rate of a shard'), // prettier-ignore
    figure(`${name}: by ${itemsPerNodeSecond} blobs and references a second of a node`, (intoNode.max * blobsPerPartition * 2) / itemsPerNodeSecond, 's', "the product's own estimate"), // prettier-ignore
    figure(`${name}: by ${itemsPerSecond} of the primary`, items / itemsPerSecond, 's', "the product's own estimate"),
    figure(`${name}: by the throttle`, (into.max * bytesPerPartition) / changeBytesPerSecond, 's', throttled),
    figure(`${name}: by what a node takes`, (intoNode.max * bytesPerPartition) / nodeBytesPerSecond, 's', `the default of ${nodeBytesPerSecond / 2 ** 20} MiB/s for all its shards`), // prettier-ignore
    figure(`${name}: where clients keep each disk busy`, (Math.max(into.max, outOf.max) * bytesPerPartition) / backgroundBytesPerSecond, 's', 'a tenth of the time of each, on both sides'), // prettier-ignore
  ]
}

class Load {
  readonly #of = new Map<string, number>()

  add(key: string, amount: number): void {
    this.#of.set(key, (this.#of.get(key) ?? 0) + amount)
  }

  get size(): number {
    return this.#of.size
  }

  get max(): number {
    return Math.max(0, ...this.#of.values())
  }

  get total(): number {
    return [...this.#of.values()].reduce((sum, amount) => sum + amount, 0)
  }
}

function repeat<Result>(times: number, action: () => Result): Result {
  for (let i = 1; i < times; i += 1) action()
  return action()
}
