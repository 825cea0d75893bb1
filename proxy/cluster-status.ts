/** The state of the cluster as one proxy worker sees it: what `holdfast status` and GET /api/v1/status show. */
import { version } from '../shared/version.ts'
import type { ClusterMap } from '../shared/cluster-map.ts'
import type { ClusterStatus } from './api/schemas.ts'
import type { Resolver } from './artifacts/resolver.ts'
import type { Coordinator, RepairReport } from './coordination/types.ts'
import type { Metadata } from './metadata/types.ts'
import type { DatabaseGate } from './recovery/database-gate.ts'
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
  readonly gate: Pick<DatabaseGate, 'problem'>
}

/** Never rejects for a part that is away: that is what it is there to tell. */
export async function clusterStatus({
  metadata,
  coordinator,
  view,
  health,
  resolver,
  jobControl,
  gate,
}: StatusParts): Promise<ClusterStatus> {
  const [pendingRepairs, members, primary, tasks] = await Promise.all([
    metadata.countRepairs().catch(() => null),
    coordinator.members().catch(() => []),
    coordinator.holder(primaryRole).catch(() => undefined),
    jobControl.list().catch(() => undefined),
  ])
  const { map } = view.current()
  const known = new Map(health.nodes().map(node => [node.node, node]))
  const refusedOuts = members.flatMap(({ report }) => report?.refusals ?? [])
  const repairs = members.map(({ report }) => report?.repairs).find(one => one !== undefined)
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
      ...nodeState(known.get(id), map, id),
      shards: map.shards
        .filter(shard => shard.node === id)
        .map(({ id: shard, weight, out }) => ({
          id: shard,
          weight,
          ...shardState(known.get(id), shard),
          ...(out === undefined ? {} : { out }),
        })),
    })),
    ...(refusedOuts.length === 0 ? {} : { refusedOuts }),
    primary: primary ?? null,
    members: members.map(({ id, address, version: memberVersion, startedAt }) => ({
      id,
      address,
      version: memberVersion,
      startedAt,
    })),
    pendingRepairs,
    ...(repairs === undefined ? {} : { repairs: summaryOf(repairs) }),
    ...(tasks === undefined
      ? {}
      : { tasks: tasks.map(({ name, state, lastState, lastError }) => ({ name, state, lastState, lastError })) }),
    postgres:
      resolver.metadataAvailable && pendingRepairs !== null
        ? { up: true }
        : { up: false, reason: gate.problem ?? 'no answer' },
    coordination: { driver: coordinator.driver, up, ...(reason === undefined ? {} : { reason }) },
  }
}

function summaryOf({ lost: _, ...summary }: RepairReport): NonNullable<ClusterStatus['repairs']> {
  return summary
}

/** With since when, in ms since 1970, where that is known. */
export function nodeState(
  node: NodeHealth | undefined,
  map: Pick<ClusterMap, 'shards'>,
  id: string,
): { state: string; since?: number } {
  const own = map.shards.filter(shard => shard.node === id && (shard.weight > 0 || shard.out !== undefined))
  const outs = own.flatMap(({ out }) => (out === undefined ? [] : [out.since]))
  if (own.length > 0 && outs.length === own.length) return { state: 'out', since: Math.max(...outs) }
  if (node === undefined) return { state: 'unknown' }
  if (node.draining && node.state === 'up') return { state: 'draining' }
  return {
    state: node.state,
    ...(node.silentMs === undefined ? {} : { since: Math.round(Date.now() - node.silentMs) }),
  }
}

function shardState(
  node: NodeHealth | undefined,
  shard: string,
): { state: string; reason?: string; recovering?: boolean; bytesTotal?: number; bytesFree?: number } {
  const found = node?.status?.shards.find(({ id }) => id === shard)
  if (found === undefined) return { state: 'unknown' }
  const { state, reason, recovering, bytesTotal, bytesFree } = found
  return {
    state,
    bytesTotal,
    bytesFree,
    ...(reason === undefined ? {} : { reason }),
    ...(recovering === undefined ? {} : { recovering: true }),
  }
}
