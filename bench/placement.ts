/**
 * What placement costs and how good it is: balance, zone spread, moves beside the least possible, planning time.
 * Every table is verified before its figures are printed.
 */
import { arch, cpus, platform } from 'node:os'
import { pathToFileURL } from 'node:url'
import {
  type ClusterMap,
  decodeClusterMap,
  encodeClusterMap,
  type MapNode,
  type MapShard,
} from '../shared/cluster-map.ts'
import { parseNodeId, parseShardId, parseZone } from '../shared/ids.ts'
import { buildClusterMap, planTable, type Topology } from '../shared/placement.ts'

interface Scenario {
  readonly name: string
  readonly before: Topology
  readonly after: readonly (readonly [change: string, topology: Topology])[]
}

/** Prints a markdown table; takes about ten seconds. */
export async function benchPlacement(): Promise<void> {
  const machine = `${cpus().length} x ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${platform()} ${arch()}`
  console.log(`Placement: 4,096 partitions, one thread, Node ${process.version}, ${machine}\n`)
  console.log(
    '| topology | node max/share | node min/share | shard max/share | shard min/share | broken spread | moved | least | twice | plan ms | map KiB |',
  )
  console.log('|---|---|---|---|---|---|---|---|---|---|---|')
  for (const { name, before, after } of scenarios()) {
    const first = row(name, before, undefined)
    for (const [change, topology] of after) row(change, topology, first)
    // Lets other work of the process run between topologies that take seconds.
    await new Promise(resolve => setImmediate(resolve))
  }
}

function row(name: string, topology: Topology, previous: ClusterMap | undefined): ClusterMap {
  const start = performance.now()
  const { table, report } = planTable(topology, previous)
  const milliseconds = performance.now() - start
  const text = encodeClusterMap(buildClusterMap(topology, previous))
  const percent = (moves: number) => `${((100 * moves) / table.length).toFixed(2)} %`
  const cells = [
    name,
    report.nodeBalance.max.toFixed(4),
    report.nodeBalance.min.toFixed(4),
    report.shardBalance.max.toFixed(4),
    report.shardBalance.min.toFixed(4),
    report.spreadBroken,
    percent(report.moves),
    percent(report.movesMin),
    report.partitionsMovedTwice,
    milliseconds.toFixed(0),
    (text.length / 1024).toFixed(0),
  ]
  console.log(`| ${cells.join(' | ')} |`)
  return decodeClusterMap(text)
}

function scenarios(): Scenario[] {
  const nine = cluster(9, 3)
  const twelve = cluster(12, 4)
  const four = cluster(4, 2)
  const fourTwice = cluster(4, 2, { replicas: 2 })
  const uneven = cluster(9, 3)
  const sixty = cluster(60, 5)
  const shards300 = cluster(60, 5, { shardsEach: 5 })
  const shards3000 = cluster(300, 5, { shardsEach: 10 })
  return [
    {
      name: '9 nodes / 3 zones',
      before: nine,
      after: [
        ['+ 1 node in zone 1', grow(nine, 'z0')],
        ['+ 1 node in zone 1, balanced', grow({ ...nine, spread: 'balanced' }, 'z0')],
        ['+ 1 node as zone 4', grow(nine, 'z3')],
        ['- 1 node', shrink(nine)],
      ],
    },
    { name: '12 nodes / 4 zones', before: twelve, after: [['+ 1 node', grow(twelve, 'z0')]] },
    { name: '4 nodes / 2 zones', before: four, after: [['+ 1 node', grow(four, 'z0')]] },
    {
      name: '4 nodes / 2 zones, R=2',
      before: fourTwice,
      after: [
        ['+ 1 node', grow(fourTwice, 'z0')],
        ['+ 1 node, balanced', grow({ ...fourTwice, spread: 'balanced' }, 'z0')],
      ],
    },
    {
      name: '3+3+3+1 nodes / 4 zones',
      before: grow(uneven, 'z3'),
      after: [['- 1 node', shrink(grow(uneven, 'z3'))]],
    },
    { name: '30 nodes / 3 zones', before: cluster(30, 3), after: [['+ 1 node', grow(cluster(30, 3), 'z0')]] },
    {
      name: '60 nodes / 5 zones',
      before: sixty,
      after: [
        ['+ 1 node', grow(sixty, 'z0')],
        ['- 1 node', shrink(sixty)],
      ],
    },
    {
      name: '300 shards: 60 nodes x 5 / 5 zones',
      before: shards300,
      after: [
        ['+ 1 node', grow(shards300, 'z0')],
        ['+ 1 shard on a node', addShard(shards300)],
        ['drain 1 shard', drain(shards300)],
      ],
    },
    {
      name: '3,000 shards: 300 nodes x 10 / 5 zones',
      before: shards3000,
      after: [
        ['+ 1 node', grow(shards3000, 'z0')],
        ['- 1 node', shrink(shards3000)],
      ],
    },
  ]
}

interface Shape {
  readonly replicas?: number
  readonly shardsEach?: number
}

function cluster(nodeCount: number, zoneCount: number, { replicas = 3, shardsEach = 1 }: Shape = {}): Topology {
  let topology: Topology = { clusterId: 'bench', replicas, spread: 'strict', nodes: [], shards: [] }
  for (let i = 0; i < nodeCount; i += 1) topology = addNode(topology, `n${i}`, `z${i % zoneCount}`, shardsEach)
  return topology
}

function addNode(topology: Topology, name: string, zoneName: string, shardsEach: number): Topology {
  const id = known(parseNodeId(name))
  const node: MapNode = { id, zone: known(parseZone(zoneName)), url: 'http://127.0.0.1:9000' }
  const shards = Array.from({ length: shardsEach }, (_, i): MapShard => shardOf(id, i))
  return { ...topology, nodes: [...topology.nodes, node], shards: [...topology.shards, ...shards] }
}

const shardOf = (node: MapNode['id'], index: number): MapShard => ({
  id: known(parseShardId(`${node}-s${index}`)),
  node,
  weight: 1,
})

function grow(topology: Topology, zoneName: string): Topology {
  return addNode(topology, 'added', zoneName, topology.shards.length / topology.nodes.length)
}

/** Without the first node and its shards. */
function shrink(topology: Topology): Topology {
  const gone = topology.nodes[0]?.id
  return {
    ...topology,
    nodes: topology.nodes.filter(({ id }) => id !== gone),
    shards: topology.shards.filter(({ node }) => node !== gone),
  }
}

function addShard(topology: Topology): Topology {
  return { ...topology, shards: [...topology.shards, shardOf(known(topology.nodes[0]).id, 99)] }
}

function drain(topology: Topology): Topology {
  return { ...topology, shards: topology.shards.map((shard, index) => (index === 0 ? { ...shard, weight: 0 } : shard)) }
}

function known<Value>(value: Value | undefined): Value {
  if (value === undefined) throw new Error('a scenario of this benchmark is wrong')
  return value
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await benchPlacement()
