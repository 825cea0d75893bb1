/** The cluster that is looked at: 3,000 disks, 10^9 artifacts. What is assumed of sizes and hardware stands here, and nowhere else. */
import type { MapNode, MapShard } from '../../shared/cluster-map.ts'
import { parseNodeId, parseShardId, parseZone } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import type { Topology } from '../../shared/placement.ts'

const KiB = 1024
const MiB = 1024 * KiB

export const artifacts = 1e9
export const replicas = 3
export const zones = 10
export const nodesPerZone = 25
export const disksPerNode = 12
export const shardCount = zones * nodesPerZone * disksPerNode

/** Share of the artifacts, bytes of each: descriptions and checksums, small and usual packages, images and installers. */
export const sizes: readonly (readonly [share: number, bytes: number])[] = [
  [0.45, 4 * KiB],
  [0.35, 100 * KiB],
  [0.17, 2 * MiB],
  [0.029, 20 * MiB],
  [0.001, 500 * MiB],
]
export const meanBytes = sizes.reduce((sum, [share, bytes]) => sum + share * bytes, 0)

/** Each artifact counts as a blob of its own: equal bytes under two paths only make it less. */
export const blobsPerPartition = artifacts / partitionCount
export const bytesPerPartition = blobsPerPartition * meanBytes
/** Copies of blobs, and of references, on one shard. */
export const entriesPerShard = (artifacts * replicas) / shardCount

/** What a hard disk takes or gives in long runs, and a node's network of 10 Gbit/s without its overhead; bytes a second. */
export const diskBytesPerSecond = 150e6
export const networkBytesPerSecond = 1.1e9

/** As in proxy/tasks/rebalance.ts: what each shard gets in a change of topology unless told otherwise; partitions at a time. */
export const changeBytesPerSecond = 64 * MiB
export const partitionsAtOnce = 64
/** As in proxy/topology/estimate.ts: bytes that a node takes for all its disks; small blobs and references a second, to one node and to all. */
export const nodeBytesPerSecond = 1024 * MiB
export const itemsPerNodeSecond = 800
export const itemsPerSecond = 8_000
/** As in storage-node/config.ts: copies get a tenth of the time of a disk that clients keep busy. */
export const backgroundBytesPerSecond = diskBytesPerSecond / 10
/** As in proxy/tasks/anti-entropy.ts: partitions whose names one step lists at the same time. */
export const suspectsAtOnce = 32

export function site(): Topology {
  const nodes: MapNode[] = []
  const shards: MapShard[] = []
  for (let zone = 0; zone < zones; zone += 1) {
    for (let index = 0; index < nodesPerZone; index += 1) {
      const name = `node-${pad(zone)}-${pad(index)}`
      nodes.push(nodeOf(name, `zone-${pad(zone)}`, zone * nodesPerZone + index))
      for (let disk = 0; disk < disksPerNode; disk += 1) shards.push(shardOf(name, disk))
    }
  }
  return { clusterId: 'scale', replicas, spread: 'strict', nodes, shards }
}

export const nodeUrl = (index: number): string => `http://10.20.${Math.floor(index / 250)}.${index % 250}:8090`
export const shardName = (node: string, disk: number): string => `${node}-disk-${pad(disk)}`

function nodeOf(name: string, zoneName: string, index: number): MapNode {
  return { id: known(parseNodeId(name)), zone: known(parseZone(zoneName)), url: nodeUrl(index) }
}

function shardOf(node: string, disk: number): MapShard {
  return { id: known(parseShardId(shardName(node, disk))), node: known(parseNodeId(node)), weight: 100 }
}

const pad = (value: number): string => String(value).padStart(2, '0')

export function known<Value>(value: Value | undefined): Value {
  if (value === undefined) throw new Error('this benchmark is wrong')
  return value
}
