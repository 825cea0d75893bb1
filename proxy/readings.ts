/** What the parts of a worker count by themselves, named for Prometheus (docs/metrics.md lists them). */
import type { ShardStatus } from '../shared/wire.ts'
import type { ArtifactWriter } from './artifacts/artifact-writer.ts'
import type { BodyCache } from './artifacts/body-cache.ts'
import type { PathCache } from './artifacts/path-cache.ts'
import type { Publisher } from './artifacts/publisher.ts'
import type { Resolver } from './artifacts/resolver.ts'
import type { Backups } from './backup/backups.ts'
import type { Coordinator } from './coordination/types.ts'
import type { Reading } from './http/metrics.ts'
import type { IdentityKeeper } from './identity/identity-keeper.ts'
import type { DatabaseGate } from './recovery/database-gate.ts'
import type { ReplicatedBlobReader } from './routing/blob-reader.ts'
import type { ClusterView } from './routing/cluster-view.ts'
import type { HealthTable } from './routing/health.ts'
import type { WriteContext } from './routing/write-context.ts'
import type { Jobs } from './tasks/jobs.ts'
import type { AntiEntropy } from './tasks/anti-entropy.ts'
import type { HeedLosses } from './tasks/heed-losses.ts'
import { brakes, type NodeStates } from './tasks/node-states.ts'
import type { Primary } from './tasks/primary.ts'
import type { ReclaimUploads } from './tasks/reclaim-uploads.ts'
import type { RepairCopies } from './tasks/repair-copies.ts'
import type { UpstreamCache } from './upstream/upstream-cache.ts'
import type { UpstreamClient } from './upstream/upstream-client.ts'

export interface CountedParts {
  readonly coordinator: Coordinator
  readonly view: ClusterView
  readonly health: HealthTable
  readonly cache: PathCache
  readonly bodies: BodyCache
  readonly reader: Pick<ReplicatedBlobReader, 'counters'>
  readonly writes: Pick<WriteContext, 'counters'>
  readonly writer: ArtifactWriter
  readonly publisher: Publisher
  readonly resolver: Resolver
  readonly primary: Primary
  readonly repair: RepairCopies
  readonly reclaim: ReclaimUploads
  readonly jobs: Pick<Jobs, 'known'>
  readonly antiEntropy: AntiEntropy
  readonly identity: Pick<IdentityKeeper, 'ageMs'>
  readonly backups: Pick<Backups, 'tallies'>
  readonly losses: HeedLosses
  readonly nodeStates: NodeStates
  readonly gate: Pick<DatabaseGate, 'problem'>
  readonly upstreams: Pick<UpstreamCache, 'counts'>
  readonly upstreamClient: Pick<UpstreamClient, 'requests' | 'failures'>
}

export function readings(parts: CountedParts): Reading[] {
  const common = [cluster(parts), caches(parts), reads(parts), writes(parts), upstreams(parts)]
  return [...common.flat(), ...tasks(parts), ...jobs(parts)]
}

/** `aggregator`: how the values of several workers become one. */
function gauge(
  name: string,
  help: string,
  read: () => number,
  aggregator: NonNullable<Reading['aggregator']> = 'sum',
): Reading {
  return { name: `holdfast_${name}`, help, type: 'gauge', aggregator, read }
}

function counter(name: string, help: string, read: () => number): Reading {
  return { name: `holdfast_${name}_total`, help, type: 'counter', read }
}

function upstreams({ upstreams: { counts }, upstreamClient }: CountedParts): Reading[] {
  return [
    counter('upstream_requests', 'Requests to upstreams', () => upstreamClient.requests),
    counter('upstream_failures', 'Of these: no answer, or none of use', () => upstreamClient.failures),
    counter('upstream_stored', 'Artifacts fetched from an upstream and stored', () => counts.stored),
    counter('upstream_confirmed', 'Copies whose upstream said that they are current', () => counts.confirmed),
    counter('upstream_stale', 'Answers with a copy whose upstream could not be asked', () => counts.stale),
    counter('upstream_healed', 'Blobs without a good copy that an upstream brought back', () => counts.healed),
  ]
}

function cluster(parts: CountedParts): Reading[] {
  const { coordinator, view, health, resolver, primary, identity, losses, nodeStates, gate } = parts
  return [
    gauge('epoch', 'Epoch of the cluster map this worker uses', () => view.current().map.epoch, 'min'),
    gauge('primary', '1 while this worker is primary', () => (primary.token === undefined ? 0 : 1), 'max'),
    gauge('metadata_available', '1 while PostgreSQL answers', () => (resolver.metadataAvailable ? 1 : 0), 'min'),
    gauge(
      'metadata_behind',
      '1 while the database is older than what the shards know, and out of use',
      () => (gate.problem === undefined ? 0 : 1),
      'max',
    ),
    gauge(
      'identity_age_seconds',
      'Since PostgreSQL last confirmed the copy of users and repositories that is used while it is away',
      () => (identity.ageMs ?? 0) / 1_000,
      'max',
    ),
    gauge('coordination_available', '1 while coordination answers', () => (coordinator.state().up ? 1 : 0), 'min'),
    {
      name: 'holdfast_node_up',
      help: '1 for a storage node that is up, 0.5 suspect, 0 down',
      type: 'gauge',
      labels: ['node'],
      aggregator: 'min',
      read: () =>
        health.nodes().map(({ node, state }) => ({ labels: { node }, value: { up: 1, suspect: 0.5, down: 0 }[state] })),
    },
    {
      name: 'holdfast_shard_free_bytes',
      help: 'Free bytes of each shard, as last heard',
      type: 'gauge',
      labels: ['shard', 'state'],
      aggregator: 'min',
      read: () =>
        health.nodes().flatMap(({ status }) =>
          (status?.shards ?? []).map(shard => ({
            labels: { shard: shard.id, state: shard.state },
            value: shard.bytesFree,
          })),
        ),
    },
    shardGauge('dead_bytes', 'Bytes of the log that wait for a compaction', health, shard => shard.deadBytes),
    shardGauge('lost_copies', 'Copies found corrupt or missing, and not back', health, shard => shard.losses),
    shardGauge(
      'recovering',
      '1 while it is not known to have all that it should: its disk is new, or lost something',
      health,
      shard => (shard.recovering === undefined ? 0 : 1),
    ),
    shardGauge('scrub_done_ratio', 'Part of the scrub under way that is done', health, shard => shard.scrub?.done),
    shardGauge('scrub_finished_timestamp_seconds', 'When everything was last read', health, shard =>
      shard.scrub?.finishedAt === undefined ? undefined : shard.scrub.finishedAt / 1000,
    ),
    shardGauge('background_share', "Part of a disk's time that work in the background may take now", health, shard => {
      return shard.background?.share
    }),
    shardGauge('background_bytes', "Read and written by it since the node's start", health, shard => {
      return shard.background?.bytes
    }),
    {
      name: 'holdfast_shard_out',
      help: '1 for a shard that is out: its copies are made anew elsewhere until it is back',
      type: 'gauge',
      labels: ['shard'],
      aggregator: 'max',
      read: () =>
        view.current().map.shards.map(({ id, out }) => ({ labels: { shard: id }, value: out === undefined ? 0 : 1 })),
    },
    {
      name: 'holdfast_out_refused',
      help: 'Nodes and disks that are away long enough to be taken out, and are not, by the brake that holds',
      type: 'gauge',
      labels: ['brake'],
      aggregator: 'max',
      read: () => brakes.map(brake => ({ labels: { brake }, value: nodeStates.refusedBy(brake) })),
    },
    gauge('hopeless_blobs', 'Blobs of which no owner has a good copy', () => losses.hopelessCount),
    counter('node_ejections', 'Storage nodes ejected for failing requests', () => health.ejectionCount),
  ]
}

function caches({ coordinator, cache, bodies }: CountedParts): Reading[] {
  return [
    gauge('cache_lease', '1 while the path cache may be used', () => (coordinator.cache.usable() ? 1 : 0), 'min'),
    gauge('path_cache_entries', 'Paths remembered', () => cache.size),
    counter('path_cache_hits', 'Paths found in the cache', () => cache.hits),
    counter('path_cache_misses', 'Paths not found in the cache', () => cache.misses),
    gauge('hot_cache_bytes', 'Bytes of small bodies in memory', () => bodies.bytes),
    counter('hot_cache_hits', 'Bodies found in memory', () => bodies.hits),
    counter('hot_cache_misses', 'Bodies not found in memory', () => bodies.misses),
  ]
}

function reads({ reader: { counters } }: CountedParts): Reading[] {
  return [
    counter('replica_reads', 'Reads from storage nodes that clients asked for', () => counters.reads),
    counter('replica_attempts', 'Requests to storage nodes for them', () => counters.attempts),
    counter('hedges', 'Second replicas asked because the first was slow', () => counters.hedges),
    counter('slow_probes', 'Bytes read to see whether a shard that was slow is quick again', () => counters.probes),
    counter('retries', 'Other replicas asked before the first byte, after a failure', () => counters.retries),
    counter('resumes', 'Other replicas asked in the middle of a body', () => counters.resumes),
    counter('corrupt_bodies', 'Bodies whose digest did not match', () => counters.corruptBodies),
    counter('cut_streams', 'Downloads cut because no replica could go on', () => counters.cutStreams),
    counter('unreachable_reads', 'Reads refused because no replica could be reached', () => counters.unreachable),
    counter('replica_read_bytes', 'Bytes received from storage nodes', () => counters.bytes),
  ]
}

function writes({ writes: { counters }, writer, publisher }: CountedParts): Reading[] {
  return [
    counter('under_replicated_writes', 'Writes acknowledged with fewer than R copies', () => writer.underReplicated),
    counter(
      'under_replicated_references',
      'References acknowledged with fewer than R copies',
      () => publisher.underReplicated,
    ),
    counter('deduplicated_writes', 'Writes whose bytes were there already', () => writer.deduplicated),
    counter('handoffs', 'Copies written to a shard that is no owner', () => counters.handoffs),
    counter('late_joins', 'Replicas that joined an upload in mid-body', () => counters.lateJoins),
    counter('dropped_replicas', 'Replicas that left an upload', () => counters.droppedReplicas),
    counter('quorum_failures', 'Writes refused or failed for want of replicas', () => counters.quorumFailures),
  ]
}

function tasks({ repair, reclaim, antiEntropy, backups: { tallies } }: CountedParts): Reading[] {
  return [
    counter('backup_copied_bytes', 'Bytes this worker copied to the backup target', () => tallies.copiedBytes),
    counter('backup_copied_blobs', 'Blobs this worker copied to the backup target', () => tallies.copiedBlobs),
    gauge(
      'backup_last_bytes',
      'Bytes of all blobs of the last backup this worker made',
      () => tallies.lastBytes,
      'max',
    ),
    gauge(
      'backup_last_timestamp_seconds',
      'Moment that the last backup this worker made shows',
      () => tallies.lastTime / 1_000,
      'max',
    ),
    counter('repaired_copies', 'Missing copies this worker brought home as primary', () => repair.copied),
    counter('repaired_bytes', 'Bytes of them', () => repair.copiedBytes),
    counter('repaired_references', 'Missing references this worker brought home as primary', () => repair.appended),
    gauge('repairs_waiting', 'Repairs in the queue, as the primary last saw it', () => antiEntropy.waiting, 'max'),
    counter('anti_entropy_rounds', 'Comparisons of all partitions that were begun', () => antiEntropy.rounds),
    gauge('anti_entropy_partitions_left', 'Partitions still to be compared', () => antiEntropy.partitionsLeft),
    counter('anti_entropy_partitions_compared', 'Partitions compared', () => antiEntropy.compared),
    counter('anti_entropy_partitions_differing', 'Partitions whose owners differed', () => antiEntropy.differing),
    counter('anti_entropy_repairs', 'Repairs queued for differences', () => antiEntropy.queued),
    counter('reclaimed_uploads', 'Abandoned uploads this worker reclaimed as primary', () => reclaim.reclaimed),
  ]
}

/** Told by the primary alone: others do not know, and would go on telling what was. */
function jobs({ jobs: source }: CountedParts): Reading[] {
  type Known = NonNullable<Jobs['known']>
  type Row = Known['rows'][number]
  const perTask = (
    name: string,
    help: string,
    valueOf: (row: Row, active: Known['active']) => number | null,
  ): Reading => ({
    name: `holdfast_task_${name}`,
    help,
    type: 'gauge',
    labels: ['task'],
    aggregator: 'max',
    read: () =>
      (source.known?.rows ?? []).flatMap(row => {
        const value = valueOf(row, source.known?.active ?? [])
        return value === null ? [] : [{ labels: { task: row.name }, value }]
      }),
  })
  return [
    perTask('running', '1 while a run of the task is going on', ({ name }, active) =>
      active.some(run => run.job === name && run.state === 'running') ? 1 : 0,
    ),
    perTask('failed', '1 if the last run of the task failed', row => (row.lastState === 'failed' ? 1 : 0)),
    perTask('last_success_timestamp_seconds', 'When the task last succeeded', ({ lastSuccessAt }) =>
      lastSuccessAt === null ? null : lastSuccessAt / 1_000,
    ),
    perTask('last_duration_seconds', 'How long the last run of the task took', ({ lastDurationMs }) =>
      lastDurationMs === null ? null : lastDurationMs / 1_000,
    ),
  ]
}

/** Of each shard, as last heard; nothing for shards that do not tell. */
function shardGauge(
  name: string,
  help: string,
  health: HealthTable,
  valueOf: (shard: ShardStatus) => number | undefined,
): Reading {
  return {
    name: `holdfast_shard_${name}`,
    help,
    type: 'gauge',
    labels: ['shard'],
    aggregator: 'max',
    read: () =>
      health.nodes().flatMap(({ status }) =>
        (status?.shards ?? []).flatMap(shard => {
          const value = valueOf(shard)
          return value === undefined ? [] : [{ labels: { shard: shard.id }, value }]
        }),
      ),
  }
}
