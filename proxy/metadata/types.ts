/**
 * What PostgreSQL knows, as the rest of the proxy sees it. All SQL stands in this folder; everyone else speaks these
 * types. Every method rejects with METADATA_UNAVAILABLE when PostgreSQL cannot be reached in time (2 s at most).
 */
import type { Digest, Generation } from '../../shared/ids.ts'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import type { CleanupPolicy, CleanupStore } from './cleanup-types.ts'
import type { CollectionStore } from './collection-types.ts'
import type { IdentityTables } from './identity-tables.ts'
import type { JobStore } from './job-types.ts'
import type { TrashStore } from './trash-types.ts'
import type { RecoveryTables } from './recovery.ts'
import type { RepairQueue } from './repair-queue.ts'

export type RedeployPolicy = 'allow' | 'once' | 'deny'

/** Where the artifacts of a repository of type 'proxy' come from. */
export interface Upstream {
  /** http:// or https://, ends in '/'; paths are appended. */
  readonly url: string
  /** For how long a copy of what may change is current; a path with a version in it never changes. */
  readonly maxAgeSeconds: number
  /** For how long the upstream's word counts that there is nothing. */
  readonly absentMaxAgeSeconds: number
}

export interface Repository {
  readonly id: number
  readonly name: string
  readonly format: 'raw'
  /** 'proxy': what was asked for of its upstream, kept; it is the repositories with an upstream. */
  readonly type: 'hosted' | 'proxy'
  readonly upstream: Upstream | null
  /** 'once': a path may be written once (identical bytes again are fine); 'deny': nothing may be written. */
  readonly redeploy: RedeployPolicy
  /** Largest artifact in bytes; null: no limit. */
  readonly artifactBytesMax: number | null
  readonly anonymousRead: boolean
  /** For how long what is deleted here can be restored; 0: not at all. Holds for deletions from then on. */
  readonly trashDays: number
}
export type RepositoryChange = Partial<
  Pick<Repository, 'redeploy' | 'artifactBytesMax' | 'anonymousRead' | 'trashDays' | 'upstream'>
>
export type NewRepository = Pick<Repository, 'name'> & RepositoryChange

export interface User {
  readonly name: string
  /** PHC string: argon2id or scrypt. */
  readonly passwordHash: string
  readonly admin: boolean
}

/** A blob as committed. The partition is the one it was born in, wherever its artifacts live. */
export interface Blob {
  readonly digest: Digest
  readonly generation: Generation
  readonly partition: number
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
}

export interface Artifact {
  readonly repositoryId: number
  readonly path: string
  /** Grows with every change of this path, also across deletion. */
  readonly version: number
  readonly blob: Blob
  readonly contentType: string | null
  readonly attributes: Readonly<Record<string, unknown>>
  /** Who wrote this version. */
  readonly createdBy: string
  /** Milliseconds since 1970, by PostgreSQL's clock: since when the path exists, and when this version was written. */
  readonly createdAt: number
  readonly updatedAt: number
}

/** What must hold of the path at the moment of commit; checked under the row's lock. */
export interface WriteConditions {
  /** If-None-Match: * */
  readonly absent?: boolean
  /** If-Match: one of these digests, or '*' for any. */
  readonly match?: readonly Digest[] | '*'
  /** 'once': refuse if the path exists with another digest. */
  readonly redeploy: RedeployPolicy
}

export interface CommitArtifact {
  readonly repositoryId: number
  readonly repository: string
  readonly path: string
  readonly contentType: string | null
  readonly attributes: Readonly<Record<string, unknown>>
  readonly user: string
  readonly conditions: WriteConditions
  readonly blob: Blob
  /**
   * 'new': the caller just made `blob` durable; becomes the row unless the digest is there already.
   * 'existing': the caller found this row and verified its copies; it must still be live with this generation.
   */
  readonly blobIs: 'new' | 'existing'
  /** Shards of the blob's partition that have no durable copy yet, and those that have one without owning it. */
  readonly missing: readonly string[]
  readonly handoffs: readonly string[]
}

export type CommitResult =
  | {
      readonly outcome: 'created' | 'replaced' | 'unchanged'
      readonly artifact: Artifact
      /**
       * Outbox entry to settle once the reference is on its owners. For 'unchanged' the entry of whoever wrote it, as long
       * as that is not settled: until then the reference may be on no majority, so append it before answering; else null.
       */
      readonly outboxSeq: number | null
      readonly incarnation: string
    }
  /** The digest has a live row of another generation: verify its copies, then commit with 'existing'. */
  | { readonly outcome: 'blob-exists'; readonly blob: Blob }
  /** 'existing' was collected meanwhile: write the bytes with a new generation, then commit with 'new'. */
  | { readonly outcome: 'blob-gone' }
  | {
      readonly outcome: 'refused'
      readonly reason: 'exists' | 'no-match' | 'redeploy'
      readonly current: Artifact | null
    }

export interface DeletedArtifact {
  readonly path: string
  readonly version: number
  readonly outboxSeq: number
}

export interface FolderEntry {
  /** Name below the folder; folders without the trailing slash. */
  readonly name: string
  readonly kind: 'folder' | 'artifact'
  readonly bytes?: number
  readonly updatedAt?: number
  readonly digest?: Digest
}
export interface FolderPage {
  readonly entries: readonly FolderEntry[]
  /** Pass as `after` for the next page; absent on the last. */
  readonly next?: string
}

/** A committed change whose reference record may not be on a majority of its owners yet. */
export interface OutboxEntry {
  readonly seq: number
  readonly repository: string
  readonly artifact: Artifact | null
  readonly op: 'put' | 'delete'
  readonly path: string
  readonly version: number
  readonly user: string
  readonly time: number
}

/** A blob's row as comparisons of shards with the database need it. */
export interface InspectedBlob extends Blob {
  readonly state: 'live' | 'condemned' | 'purging'
  /** Since its row was made, by PostgreSQL's clock; a year at most. */
  readonly ageMs: number
  /** By an artifact, a deletion that can be undone, or an upload that is about to. */
  readonly named: boolean
}
export interface PathVersion {
  readonly version: number
  /** false: deleted. */
  readonly live: boolean
  readonly ageMs: number
}
/** What the database says about a path. */
export interface InspectedArtifact extends PathVersion {
  readonly repositoryId: number
  readonly repository: string
  readonly path: string
  /** Absent for a deleted path, and where the row of a living one's blob is lost. */
  readonly blob?: Blob & Pick<InspectedBlob, 'state'>
}

/** A blob, or the reference of a path, with fewer than R copies. */
export interface RepairEntry {
  readonly id: number
  readonly kind: 'blob' | 'reference'
  readonly partition: number
  /** kind 'blob' */
  readonly blob?: Blob
  /** kind 'reference': `repository/path` and its version. */
  readonly key?: string
  readonly version?: number
  readonly missing: readonly string[]
  readonly handoffs: readonly string[]
  readonly attempts: number
}

export interface PostponedRepair extends Pick<RepairEntry, 'id' | 'missing' | 'attempts'> {
  readonly retryMs: number
}

/** What a backup knows of how an artifact came about. */
export interface ArtifactHistory extends Pick<Artifact, 'path' | 'createdBy' | 'createdAt' | 'updatedAt'> {
  readonly repository: string
  readonly digest: Digest
}

/** A restore fills an empty cluster. Which one is under way stands in the database, so that it can be resumed, and no other begun. */
export interface RestoreStore {
  /** CONFLICT if the cluster is not empty, or another backup is being restored. 'resumed': this one was begun before. */
  begin(backup: string): Promise<'begun' | 'resumed'>
  /** Adds those that are not there yet; resolves with their names. CONFLICT if no restore is under way. */
  addUsers(users: readonly User[]): Promise<readonly string[]>
  /**
   * Gives artifacts that have these bytes the moments and the writer they had; none lies in the future. Resolves with how many there
   * were. Their references on the shards still say when they were restored. CONFLICT if no restore is under way.
   */
  setHistory(artifacts: readonly ArtifactHistory[]): Promise<number>
  end(): Promise<void>
}

/** Where this cluster has kept backups: such a place that is empty some day is one that is not mounted. */
export interface BackupTargetStore {
  /** `label`: of a BackupTarget. */
  isKnown(label: string): Promise<boolean>
  remember(label: string): Promise<void>
}

/** What a backup needs, all of one moment. */
export interface TaskSettings {
  readonly name: string
  /** Cron; 'default': the task's own; null: none. */
  readonly schedule: string | null
  readonly enabled: boolean
}

export interface MetadataSnapshot {
  /** When it was taken, by PostgreSQL's clock. */
  readonly time: number
  repositories(): Promise<readonly Repository[]>
  users(): Promise<readonly User[]>
  policies(): Promise<readonly CleanupPolicy[]>
  /** Those that were changed by somebody. */
  taskSettings(): Promise<readonly TaskSettings[]>
  /**
   * Blobs that artifacts name, with a digest above `after` ('' for all), in the order of their digests.
   * `without`: ids of repositories that are passed over, here and below.
   */
  namedBlobs(after: string, limit: number, without?: readonly number[]): Promise<readonly Blob[]>
  /** Artifacts behind `after`, in the order of repository id and path. */
  artifacts(
    after: { readonly repositoryId: number; readonly path: string },
    limit: number,
    without?: readonly number[],
  ): Promise<readonly Artifact[]>
}

/** Who changed what, or was refused, and from where. */
export interface AuditEntry {
  readonly user: string
  readonly action: string
  readonly subject: string
  /** 'done', or why it was refused. */
  readonly outcome: string
  readonly address: string
}
export interface AuditLine extends AuditEntry {
  readonly id: number
  /** Milliseconds since 1970, by the clock of PostgreSQL. */
  readonly at: number
}

export interface Metadata {
  /** Random id of this database, made when it was created or rebuilt. */
  readonly incarnation: string
  readonly clusterId: string

  listRepositories(): Promise<readonly Repository[]>
  createRepository(repository: NewRepository): Promise<Repository> // CONFLICT if the name is taken
  /** REPOSITORY_NOT_FOUND. CONFLICT for an upstream where there are artifacts and was no upstream, unless `force`. */
  changeRepository(name: string, change: RepositoryChange, force?: boolean): Promise<Repository>
  /** Refuses with CONFLICT while artifacts are in it. */
  deleteRepository(name: string): Promise<void>

  /** Repositories and users as they are stored, for a copy of them elsewhere. */
  exportIdentity(): Promise<IdentityTables>
  findUser(name: string): Promise<User | undefined>
  putUser(user: User): Promise<void>
  audit(entry: AuditEntry): Promise<void>
  /** Entries with a smaller id, newest first. */
  listAudit(before: number, limit: number): Promise<readonly AuditLine[]>

  /** One indexed, pipelined read. */
  findArtifact(repositoryId: number, path: string): Promise<Artifact | undefined>
  /** The same for many, with one question; in their order. */
  findArtifacts(
    wanted: readonly { readonly repositoryId: number; readonly path: string }[],
  ): Promise<readonly (Artifact | undefined)[]>
  /** The live row of a digest, if any; checksum deploy may know only the sha1. */
  findBlob(digest: { sha256: Digest } | { sha1: string }): Promise<Blob | undefined>
  /**
   * Keeps this generation from being collected for ten minutes, whoever names it then; one that was condemned is live again. False: it is
   * gone, or goes for good. `upload`: the same again is the same pin.
   */
  pinBlob(blob: Pick<Blob, 'digest' | 'generation'>, upload: string): Promise<boolean>
  /** May some artifact in one of these repositories be read that names this digest? */
  digestReadable(digest: Digest, repositoryIds: readonly number[]): Promise<boolean>
  /**
   * The commit point of a write: one round trip, calls at once are grouped into a transaction, each with its own outcome.
   * METADATA_UNAVAILABLE leaves open whether it happened: the same call again is harmless unless others wrote the path since.
   * REPOSITORY_NOT_FOUND if the repository was deleted; OVERLOADED if too many wait.
   */
  commitArtifact(commit: CommitArtifact): Promise<CommitResult>
  /**
   * One transaction for many paths (copy or move of a folder, multi-file upload): all or nothing. If any is refused,
   * nothing is written and `results` tells only of those that were. Its deletions are those of a move: they leave no trash.
   * PRECONDITION_FAILED, with nothing written, if what is to be deleted is none of `match`.
   */
  commitArtifacts(
    commits: readonly CommitArtifact[],
    deletes?: readonly ({ repositoryId: number; repository: string; path: string; user: string } & Pick<
      WriteConditions,
      'match'
    >)[],
  ): Promise<{ results: readonly CommitResult[]; deleted: readonly DeletedArtifact[] }>
  /** Into the trash; leaves a tombstone row that keeps the version growing. undefined: there was nothing. */
  deleteArtifact(
    target: { repositoryId: number; repository: string; path: string; user: string },
    conditions?: Pick<WriteConditions, 'match'>,
  ): Promise<DeletedArtifact | undefined> // PRECONDITION_FAILED
  /** Deletes up to `limit` artifacts below `prefix` (which ends in '/'), oldest name first, into the trash. */
  deleteFolder(
    target: { repositoryId: number; repository: string; prefix: string; user: string },
    limit: number,
  ): Promise<readonly DeletedArtifact[]>
  /** Artifacts below a prefix; counting ends at `most`. */
  countArtifacts(repositoryId: number, prefix: string, most: number): Promise<number>
  listFolder(repositoryId: number, prefix: string, after: string, limit: number): Promise<FolderPage>
  /** Artifacts below a prefix in path order, for recursive copy and move; `after` is the last path of the page before. */
  listArtifacts(repositoryId: number, prefix: string, after: string, limit: number): Promise<readonly Artifact[]>

  settleOutbox(seqs: readonly number[]): Promise<void>
  /** Entries older than `olderThanMs`, lowest first. */
  pendingOutbox(olderThanMs: number, limit: number): Promise<readonly OutboxEntry[]>
  addRepairs(repairs: readonly Omit<RepairEntry, 'id' | 'attempts'>[]): Promise<void>
  /** Repairs that are due, oldest first; with `missingMin` from 2 on, of what so many owners lack. */
  dueRepairs(limit: number, missingMin?: number): Promise<readonly RepairEntry[]>
  /** Done: gone. Otherwise due again after `retryMs`, with what is still missing, and how often it was tried. Fenced by the primary's token. */
  finishRepair(id: number, token: number): Promise<void>
  postponeRepairs(repairs: readonly PostponedRepair[], token: number): Promise<void>
  countRepairs(): Promise<number>
  /** Many at once, all or none; those that have grown since they were read stay. */
  finishRepairs(ids: readonly number[], token: number): Promise<void>

  /** Those of these digests (500 at most) that have a row, in whatever state. */
  inspectBlobs(digests: readonly Digest[]): Promise<readonly InspectedBlob[]>
  /** Artifacts that name this digest in repositories with an upstream; ten at most. */
  upstreamNames(digest: Digest): Promise<readonly Artifact[]>
  /** Live blobs with a digest above `after` ('' for all), in the order of their digests. */
  pageOfBlobs(after: string, limit: number): Promise<readonly Blob[]>
  /** Newest version of each path (500 at most), deleted ones included; undefined: never heard of. */
  inspectVersions(
    paths: readonly { readonly repository: string; readonly path: string }[],
  ): Promise<readonly (PathVersion | undefined)[]>
  /** Artifacts and tombstones behind `after`, in the order of repository id and path. */
  pageOfReferences(
    after: { readonly repositoryId: number; readonly path: string },
    limit: number,
  ): Promise<readonly InspectedArtifact[]>
  /**
   * For blobs that nodes hold but no reference ever confirmed: which of them have a live row ('live'), and which are
   * now fenced off so that no later commit can bring them to life ('reclaim'). LEASE_LOST if the token is not the newest.
   */
  reclaimUnconfirmed(
    blobs: readonly Pick<Blob, 'digest' | 'generation' | 'partition' | 'bytes'>[],
    token: number,
  ): Promise<readonly ('live' | 'reclaim')[]>

  /** Next fencing token for a role (I27): waits for transactions that still hold the old one. */
  issueToken(role: string, holder: string): Promise<number>
  newestToken(role: string): Promise<number>

  /** The newest map; undefined if there is none of a later epoch than `newerThan` (0 unless told), which costs one look at an index. */
  loadClusterMap(newerThan?: number): Promise<ClusterMap | undefined>
  /** Compare-and-set on the epoch: false if another map of this epoch or later is there. */
  publishClusterMap(map: ClusterMap, token: number): Promise<boolean>

  /**
   * Reads that all see one moment. While `work` lasts PostgreSQL cannot clean up behind updates: read, page by page, and do nothing
   * that takes long in between.
   */
  snapshot<T>(work: (snapshot: MetadataSnapshot) => Promise<T>): Promise<T>

  /** Jobs of the primary, their runs and logs. */
  readonly jobs: JobStore
  /** What a restore from a backup needs. */
  readonly restores: RestoreStore
  readonly backupTargets: BackupTargetStore
  /** Which blobs are unused, and their end. */
  readonly collection: CollectionStore
  /** What people ask of the queue of repairs. */
  readonly repairQueue: Pick<RepairQueue, keyof RepairQueue>
  /** What was deleted and can be restored. */
  readonly trash: TrashStore
  /** Cleanup policies, and when artifacts were downloaded. */
  readonly cleanup: CleanupStore

  /** Brings a database up to what the shards know. */
  readonly recovery: Pick<RecoveryTables, keyof RecoveryTables>

  /** False from the moment PostgreSQL is known to be away until it is back. */
  readonly available: boolean
  /**
   * Called each time PostgreSQL is found away: at once when it refuses, 1.3 s after its last answer when it stands still. Calls
   * in flight are rejected then, later ones at once.
   */
  onAway(listener: () => void): void
  /** Takes the database out of use if it is not admitted any more. Rejects with METADATA_UNAVAILABLE. */
  recheck(): Promise<void>
  /** Resolves when PostgreSQL answers; used by readiness. */
  ping(): Promise<void>
  close(): Promise<void>
}
