/** The state of the cluster as one proxy worker sees it: what `holdfast status` and GET /api/v1/status show. */
import { version } from '../shared/version.ts'
import type { ClusterStatus } from './api/schemas.ts'
import type { Resolver } from './artifacts/resolver.ts'
import type { Coordinator } from './coordination/types.ts'
import type { Metadata } from './metadata/types.ts'
import type { ClusterView } from './routing/cluster-view.ts'
import type { HealthTable, NodeHealth } from './routing/health.ts'
import type { JobControl } from './tasks/job-control.ts'
import { primaryRole } from './tasks/primary.ts'

export interface StatusParts {
  readonly metadata: Pick<Metadata, 'countRepairs'>
  readonly coordinator: Coordinator
  readonly view: ClusterView
  readonly health: HealthTable
  readonly resolver: Pick<Resolver, 'metadataAvailable'>
  readonly jobControl: Pick<JobControl, 'list'>
}

/** Never rejects for a part that is away: that is what it is there to tell. */
export async function clusterStatus({
  metadata,
  coordinator,
  view,
  health,
  resolver,
  jobControl,
}: StatusParts): Promise<ClusterStatus> {
  const [pendingRepairs, members, primary, tasks] = await Promise.all([
    metadata.countRepairs().catch(() => null),
    coordinator.members().catch(() => []),
    coordinator.holder(primaryRole).catch(() => undefined),
    jobControl.list().catch(() => undefined),
  ])
  const { map } = view.current()
  const known = new Map(health.nodes().map(node => [node.node, node]))
  const { up, reason } = coordinator.state()
  return {
    version,
    clusterId: map.clusterId,
    epoch: map.epoch,
    replicas: map.replicas,
    nodes: map.nodes.map(({ id, zone, url }) => ({
      id,
      zone,
      url,
      state: nodeState(known.get(id)),
      shards: map.shards
        .filter(shard => shard.node === id)
        .map(({ id: shard, weight }) => ({ id: shard, weight, ...shardState(known.get(id), shard) })),
    })),
    primary: primary ?? null,
    members: members.map(({ id, address, version: memberVersion, startedAt }) => ({
      id,
      address,
      version: memberVersion,
      startedAt,
    })),
    pendingRepairs,
    ...(tasks === undefined
      ? {}
      : { tasks: tasks.map(({ name, state, lastState, lastError }) => ({ name, state, lastState, lastError })) }),
    postgres: resolver.metadataAvailable && pendingRepairs !== null ? { up: true } : { up: false, reason: 'no answer' },
    coordination: { driver: coordinator.driver, up, ...(reason === undefined ? {} : { reason }) },
  }
}

function nodeState(node: NodeHealth | undefined): string {
  if (node === undefined) return 'unknown'
  return node.draining && node.state === 'up' ? 'draining' : node.state
}

function shardState(
  node: NodeHealth | undefined,
  shard: string,
): { state: string; reason?: string; bytesTotal?: number; bytesFree?: number } {
  const found = node?.status?.shards.find(({ id }) => id === shard)
  if (found === undefined) return { state: 'unknown' }
  const { state, reason, bytesTotal, bytesFree } = found
  return { state, bytesTotal, bytesFree, ...(reason === undefined ? {} : { reason }) }
}
