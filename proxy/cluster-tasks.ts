/** What the cluster's primary does, each part with what it needs: the tasks that always run, and those with a schedule. */
import type { Logger } from 'pino'
import { ProcessorLoad } from '../shared/processor-load.ts'
import { version } from '../shared/version.ts'
import type { ArtifactWriter } from './artifacts/artifact-writer.ts'
import type { Publisher } from './artifacts/publisher.ts'
import type { Repositories } from './artifacts/repositories.ts'
import { type Backups, backupsOf } from './backup/backups.ts'
import { Throttle } from './backup/blob-source.ts'
import type { ProxyConfig } from './config.ts'
import type { Coordinator, MemberReport } from './coordination/types.ts'
import type { CollectionAges } from './metadata/collection-types.ts'
import type { Metadata } from './metadata/types.ts'
import type { ReplicatedBlobReader } from './routing/blob-reader.ts'
import type { ClusterView } from './routing/cluster-view.ts'
import type { HealthTable } from './routing/health.ts'
import type { NodeClients } from './routing/node-client.ts'
import type { ShardReferences } from './routing/reference-store.ts'
import { AntiEntropy } from './tasks/anti-entropy.ts'
import { backup } from './tasks/backup.ts'
import { Calm } from './tasks/calm.ts'
import { cleanup } from './tasks/cleanup.ts'
import { collectGarbage } from './tasks/collect-garbage.ts'
import { drillBackup } from './tasks/drill-backup.ts'
import { emptyTrash } from './tasks/empty-trash.ts'
import { HealFromUpstream } from './tasks/heal-from-upstream.ts'
import { HeedLosses } from './tasks/heed-losses.ts'
import { housekeeping } from './tasks/housekeeping.ts'
import { JobControl } from './tasks/job-control.ts'
import type { Job } from './tasks/job.ts'
import { Jobs } from './tasks/jobs.ts'
import { keepIdentity } from './tasks/keep-identity.ts'
import { NodeStates, reportOf } from './tasks/node-states.ts'
import { Primary } from './tasks/primary.ts'
import { rebalance } from './tasks/rebalance.ts'
import { ReclaimUploads } from './tasks/reclaim-uploads.ts'
import { RepairCopies } from './tasks/repair-copies.ts'
import { replayOutbox } from './tasks/replay-outbox.ts'
import { leftoverAgeMsMin } from './tasks/unnamed-blobs.ts'
import { verifyBackup } from './tasks/verify-backup.ts'
import { followAddresses } from './topology/first-map.ts'
import type { MapKeeper } from './topology/map-keeper.ts'
import type { UpstreamCache } from './upstream/upstream-cache.ts'

/** Blobs without a good copy that the primary names each second. */
const lostNamed = 10

export interface TaskParts {
  readonly config: ProxyConfig
  readonly log: Logger
  /** The file that serves `holdfast`, for what runs as a process of its own. */
  readonly program: string
  /** Monotonic, ms. */
  readonly now: () => number
  readonly metadata: Metadata
  readonly coordinator: Coordinator
  readonly view: ClusterView
  readonly keeper: MapKeeper
  readonly health: HealthTable
  readonly clients: NodeClients
  readonly references: ShardReferences
  readonly reader: ReplicatedBlobReader
  readonly writer: ArtifactWriter
  readonly publisher: Publisher
  readonly repositories: Repositories
  readonly upstreams: UpstreamCache
}

export interface ClusterTasks {
  readonly primary: Primary
  readonly repair: RepairCopies
  readonly reclaim: ReclaimUploads
  readonly antiEntropy: AntiEntropy
  readonly losses: HeedLosses
  readonly nodeStates: NodeStates
  readonly jobs: Jobs
  readonly jobControl: JobControl
  readonly backups: Backups
  readonly collectionAges: CollectionAges
  /** What this worker says to the others, as primary with what it knows of repairs. */
  readonly report: () => MemberReport
}

/** Not started. */
export function clusterTasks(parts: TaskParts): ClusterTasks {
  const { config, log, program, now, metadata, coordinator, view, keeper, health, clients } = parts
  const { references, reader, writer, publisher, repositories, upstreams } = parts
  const calm = new Calm({ health, load: new ProcessorLoad().load, now })
  const repair = new RepairCopies({ metadata, references, clients, view, health, log, now })
  const reclaim = new ReclaimUploads({ metadata, clients, view, log, abandonedMs: config.abandonedMs })
  const collectionAges = { minAgeMs: config.gcMinAgeMs, holdMs: config.gcHoldMs }
  const leftoverAgeMs = Math.max(config.gcMinAgeMs, leftoverAgeMsMin)
  const incarnation = (): string => metadata.incarnation
  const backups = backupsOf(config, metadata)
  const throttle = new Throttle(config.backupBytesPerSecond, now)
  const definitions: readonly Job[] = [
    backup({ ...backups, metadata, reader, throttle, keep: config.backupKeep, now: Date.now, version }),
    verifyBackup({ ...backups, throttle }),
    drillBackup({ target: config.backupTarget, credentialsFile: config.backupCredentialsFile, program }),
    housekeeping(metadata),
    emptyTrash(metadata),
    rebalance({ metadata, view, clients, references, calm, now, leftoverAgeMs }),
    cleanup({ metadata, publisher }),
    collectGarbage({ metadata, collection: metadata.collection, incarnation, view, clients, ages: collectionAges }),
  ]
  const jobControl = new JobControl(metadata.jobs, definitions)
  const antiEntropy = new AntiEntropy({
    metadata,
    clients,
    view,
    health,
    calm,
    log,
    now,
    roundMs: config.antiEntropyMs,
  })
  const losses = new HeedLosses({ metadata, clients, view, health, log, now })
  const heal = new HealFromUpstream({ losses, metadata, repositories, upstreams, now })
  const jobs = new Jobs({ store: metadata.jobs, jobs: definitions, log, now })
  const outAfter = { nodeMs: config.outAfterMs, diskMs: config.diskOutAfterMs }
  const nodeStates = new NodeStates({ coordinator, metadata, view, health, clients, log, now, outAfter })
  const primary = new Primary({
    coordinator,
    prepare: () => keeper.adoptNewest(),
    tasks: [
      keeper.distribution,
      followAddresses({ metadata, view, health, log }, config),
      replayOutbox({ metadata, publisher }),
      keepIdentity({ metadata, writer, secret: config.secret }),
      repair,
      reclaim,
      antiEntropy,
      losses,
      heal,
      nodeStates,
      jobs,
    ],
    log,
  })
  const report = (): MemberReport => {
    const lost = losses.hopeless()
    const partitionsToCompare = antiEntropy.partitionsLeft
    const repairs = { ...repair.rate, partitionsToCompare, lostBlobs: lost.length, lost: lost.slice(0, lostNamed) }
    return reportOf(health, { refusals: nodeStates.refusals, ...(primary.token === undefined ? {} : { repairs }) })
  }
  return {
    primary,
    repair,
    reclaim,
    antiEntropy,
    losses,
    nodeStates,
    jobs,
    jobControl,
    backups,
    collectionAges,
    report,
  }
}
