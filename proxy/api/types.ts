/** What the API needs of the rest of the proxy, as narrow as it can be: the tests hand in fakes of a few lines. */
import type { Logger } from 'pino'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import type { Authenticator } from '../access/authenticator.ts'
import type { Passwords } from '../access/passwords.ts'
import type { Backups } from '../backup/backups.ts'
import type { Trash } from '../artifacts/trash.ts'
import type { ClientAddresses } from '../http/client-address.ts'
import type { CleanupPolicy, CleanupStore } from '../metadata/cleanup-types.ts'
import type { CollectionAges, CollectionStore } from '../metadata/collection-types.ts'
import type { Inspection } from '../inspection/inspection.ts'
import type { Metadata, Repository, RestoreStore } from '../metadata/types.ts'
import type { CleanupPreview } from '../tasks/cleanup.ts'
import type { JobControl } from '../tasks/job-control.ts'
import type { TopologyControl } from '../topology/topology-control.ts'
import type { RepairProgress } from '../tasks/repair-progress.ts'
import type { ScrubControl } from '../tasks/scrub-control.ts'
import type { ClusterStatus } from './schemas.ts'

/** A path in a repository: an artifact, or a folder with its trailing '/' ('' is the whole repository). */
export interface ArtifactPlace {
  readonly repository: Repository
  readonly path: string
}

/** Changes of artifacts that move no bytes; proxy/artifacts' ArtifactChanges fits. */
export interface ArtifactOperations {
  /** ARTIFACT_NOT_FOUND if there is none. */
  deleteArtifact(place: ArtifactPlace, user: string): Promise<void>
  /** Everything below the folder; resolves with how many there were. ARTIFACT_NOT_FOUND if none; CONFLICT if so many have to be confirmed. */
  deleteFolder(place: ArtifactPlace, user: string, confirmed?: number): Promise<number>
  /** Resolves with how many artifacts were copied or moved. */
  transfer(kind: 'copy' | 'move', from: ArtifactPlace, to: ArtifactPlace, user: string): Promise<number>
}

export interface ApiDeps {
  readonly authenticator: Pick<Authenticator, 'authenticate'>
  /** The client's address, for limits and audit. */
  readonly addressOf: ClientAddresses['of']
  readonly passwords: Pick<Passwords, 'hash'>
  readonly metadata: Pick<
    Metadata,
    'createRepository' | 'changeRepository' | 'deleteRepository' | 'findUser' | 'putUser' | 'audit' | 'listAudit'
  >
  /** The repositories as this worker knows them; proxy/artifacts' Repositories fits. */
  readonly repositories: { all(): Promise<ReadonlyMap<string, Repository>> }
  readonly artifacts: ArtifactOperations
  readonly trash: Pick<Trash, 'list' | 'restore' | 'purge'>
  readonly cleanup: Pick<CleanupStore, 'listPolicies' | 'createPolicy' | 'changePolicy' | 'deletePolicy'>
  readonly previewCleanup: (policy: CleanupPolicy) => Promise<CleanupPreview>
  readonly tasks: JobControl
  readonly backups: Pick<Backups, 'list'>
  readonly restores: RestoreStore
  readonly topology: Pick<TopologyControl, 'show' | 'plan' | 'apply' | 'pause' | 'resume' | 'abort'>
  readonly collection: Pick<CollectionStore, 'disarmed' | 'disarm' | 'arm' | 'counted' | 'explain'>
  readonly collectionAges: CollectionAges
  /**
   * Tells every worker, this one included, that what these keys name has changed (`repositoriesKey`, `userKey(name)`); resolves
   * when none can act on the older state any more.
   */
  readonly announce: (keys: readonly string[]) => Promise<void>
  readonly inspection: Inspection
  readonly scrubs: Pick<ScrubControl, 'status' | 'command'>
  readonly repairs: {
    progress(): Promise<RepairProgress>
    /** How many waited. */
    runNow(): Promise<number>
  }
  readonly status: () => Promise<ClusterStatus>
  /** The newest map this worker knows; undefined before the first. */
  readonly clusterMap: () => ClusterMap | undefined
  readonly log: Pick<Logger, 'error' | 'warn'>
  /** Of Holdfast. */
  readonly version: string
}
