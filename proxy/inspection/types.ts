/** Reports on copies, as the API gives them out. All are made from PostgreSQL and the shards themselves, never from a cache. */
import type { Logger } from 'pino'
import type { Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { BlobLocation } from '../routing/types.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { ContentsDeps } from '../tasks/shard-contents.ts'

export interface InspectionDeps extends ContentsDeps {
  readonly metadata: Pick<
    Metadata,
    | 'findArtifact'
    | 'listRepositories'
    | 'inspectBlobs'
    | 'pageOfBlobs'
    | 'inspectVersions'
    | 'pageOfReferences'
    | 'addRepairs'
  >
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'state' | 'shardState'>
  readonly reportBadCopy: (location: BlobLocation, shard: ShardId, reason: 'missing' | 'corrupt') => void
  readonly log: Pick<Logger, 'debug'>
  /** Age after which bytes that nobody names are no longer an upload under way, in ms. */
  readonly abandonedMs: number
}
