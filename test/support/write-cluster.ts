import type { Test } from 'tap'
import { partitionName } from '../../shared/partition.ts'
import { buildClusterMap } from '../../shared/placement.ts'
import type { NodeId, ShardId, Zone } from '../../shared/ids.ts'
import { ReplicatedBlobWriter } from '../../proxy/routing/blob-writer.ts'
import { ClusterView } from '../../proxy/routing/cluster-view.ts'
import { HealthTable } from '../../proxy/routing/health.ts'
import { NodeClients } from '../../proxy/routing/node-client.ts'
import { ShardReferences } from '../../proxy/routing/reference-store.ts'
import { WriteContext } from '../../proxy/routing/write-context.ts'
import { FakeWriteNode, testSecret } from './fake-write-node.ts'

export interface WriteCluster {
  /** In the order of the given zones. */
  readonly nodes: readonly FakeWriteNode[]
  readonly view: ClusterView
  readonly health: HealthTable
  readonly context: WriteContext
  readonly writer: ReplicatedBlobWriter
  readonly references: ShardReferences
  readonly node: (shard: ShardId) => FakeWriteNode
  readonly nodeId: (index: number) => NodeId
}

/** Fake nodes, one for each zone named (a zone may be named more than once), with the write side in front of them. */
export async function startWriteCluster(
  t: Test,
  zones: readonly string[],
  { replicas = 3, shardsPerNode = 1 }: { replicas?: number; shardsPerNode?: number } = {},
): Promise<WriteCluster> {
  const nodes = await Promise.all(zones.map(() => new FakeWriteNode().start()))
  const urls = nodes.map(({ url }) => url)
  const side = writeSide(urls, zones, replicas, shardsPerNode)
  t.teardown(async () => {
    for (const node of nodes) {
      node.thaw()
      node.die()
    }
    side.context.close()
    await side.clients.close()
  })
  return {
    ...side,
    nodes,
    node: shard => nodes[Number(shard.slice(1).split('-')[0])] as FakeWriteNode,
    nodeId: index => `n${index}` as NodeId,
  }
}

/** The write side in front of nodes `n0`, `n1`… at these URLs, their shards named `n0-0`, `n0-1`… */
export function writeSide(
  urls: readonly string[],
  zones: readonly string[],
  replicas: number,
  shardsPerNode: number,
  secret = testSecret,
) {
  const map = buildClusterMap({
    clusterId: 'test',
    replicas,
    spread: 'strict',
    nodes: urls.map((url, i) => ({ id: `n${i}` as NodeId, zone: zones[i] as Zone, url })),
    shards: urls.flatMap((_, i) =>
      Array.from({ length: shardsPerNode }, (_, s) => ({
        id: `n${i}-${s}` as ShardId,
        node: `n${i}` as NodeId,
        weight: 1,
      })),
    ),
  })
  const view = new ClusterView(map)
  const health = new HealthTable({ now: () => performance.now() })
  const clients = new NodeClients({ clusterSecret: secret, view, health })
  const context = new WriteContext({ view, health, clients })
  const writer = new ReplicatedBlobWriter({ context })
  const references = new ShardReferences({ context, view, health, clients })
  return { map, view, health, clients, context, writer, references }
}

/** Which shards hold exactly these bytes durably. */
export function holders(
  cluster: WriteCluster,
  blob: { partition: number; digest: string; generation: string },
  bytes: Buffer,
): ShardId[] {
  const suffix = `/${partitionName(blob.partition)}/${blob.digest}.${blob.generation}`
  return cluster.nodes.flatMap(node =>
    [...node.blobs].flatMap(([key, held]) =>
      key.endsWith(suffix) && held.equals(bytes) ? [key.slice(0, -suffix.length) as ShardId] : [],
    ),
  )
}

export function zonesHolding(cluster: WriteCluster, shards: readonly ShardId[]): number {
  return new Set(shards.map(shard => cluster.view.current().zone(shard))).size
}
