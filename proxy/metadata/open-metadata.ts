import type { Logger } from 'pino'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import type { Digest } from '../../shared/ids.ts'
import * as artifacts from './artifacts.ts'
import { loadClusterMap, publishClusterMap } from './cluster-maps.ts'
import {
  commitResultOf,
  deleteResultOf,
  runChanges,
  type Change,
  type ChangeRow,
  type DeleteArtifact,
} from './commit-changes.ts'
import { CleanupTables } from './cleanup.ts'
import { CollectionTables } from './collection.ts'
import { CommitQueue } from './commit-queue.ts'
import { callTimeoutMs, Database } from './database.ts'
import { exportIdentity, type IdentityTables } from './identity-tables.ts'
import { ensureIdentity, type Identity } from './identity.ts'
import { JobTables } from './jobs.ts'
import * as inspection from './inspection.ts'
import { issueToken, newestToken } from './leaders.ts'
import { listFolder } from './list-folder.ts'
import { migrate } from './migrate.ts'
import { migrations } from './migrations/index.ts'
import type { Migration } from './migrations/migration.ts'
import { pendingOutbox, settleOutbox } from './outbox.ts'
import { type IssuedVersions, loadIssued, RecoveryTables } from './recovery.ts'
import { RepairQueue } from './repair-queue.ts'
import * as repairs from './repairs.ts'
import * as repositories from './repositories.ts'
import { BackupTargets } from './backup-targets.ts'
import { Restores } from './restores.ts'
import { readSnapshot } from './snapshot.ts'
import { TrashTables } from './trash.ts'
import type * as types from './types.ts'
import * as users from './users.ts'

const poolSizeDefault = 8
/** Transactions of commits at once: while one waits for the disk, the next one gathers and runs. */
const commitLanes = 2

export interface MetadataOptions {
  /**
   * `postgres://user:password@host:port/name`, also with several hosts (the first that is no standby is used) or with
   * sockets (`postgres:///name?host=/folder`); or `pglite:<folder>`.
   */
  readonly url: string
  readonly log: Logger
  /** Connections for statements, 8 unless told; two more serve pipelined reads. */
  readonly poolSize?: number
  /** The cluster this database must belong to; a new database is given it, or a random one. */
  readonly clusterId?: string
  /**
   * true: resolve although PostgreSQL is away; calls reject with METADATA_UNAVAILABLE until it is there. `incarnation`
   * is empty and `clusterId` is the one given until then.
   */
  readonly startWithout?: boolean
  /**
   * Asked at each connect, before anything else may use the database, and by `recheck`. Rejecting with METADATA_UNAVAILABLE keeps it out of
   * use as if it were away, until a later attempt is admitted.
   */
  readonly admit?: (issued: () => Promise<IssuedVersions>) => Promise<void>
  /** For tests: another schema. */
  readonly migrations?: readonly Migration[]
}

/**
 * Connects, brings the schema up to date, and finds out which database this is. Rejects with METADATA_UNAVAILABLE,
 * SCHEMA_UNSUPPORTED (a newer or altered schema), CONFIG_INVALID (a database of another cluster, a malformed URL) or
 * DATA_IN_USE (pglite), leaving nothing open.
 */
export async function openMetadata(options: MetadataOptions): Promise<types.Metadata> {
  const metadata = new PostgresMetadata(options)
  try {
    await metadata.start()
  } catch (error) {
    if (options.startWithout !== true || !isHoldfastError(error, 'METADATA_UNAVAILABLE')) {
      await metadata.close()
      throw error
    }
    options.log.warn({ err: error }, 'database away at start: artifacts can be read, not written')
  }
  return metadata
}

class PostgresMetadata implements types.Metadata {
  readonly #database: Database
  readonly #commits: CommitQueue
  readonly jobs: JobTables
  readonly collection: CollectionTables
  readonly trash: TrashTables
  readonly repairQueue: RepairQueue
  readonly restores: Restores
  readonly backupTargets: BackupTargets
  readonly cleanup: CleanupTables
  readonly recovery: RecoveryTables
  readonly #admit: MetadataOptions['admit']
  readonly #awayListeners: (() => void)[] = []
  #identity: Identity

  constructor(options: MetadataOptions) {
    const { url, log, poolSize = poolSizeDefault, clusterId, admit, migrations: known = migrations } = options
    this.#admit = admit
    this.#identity = { clusterId: clusterId ?? '', incarnation: '' }
    this.#database = new Database(
      { url, poolSize, commitLanes },
      {
        log,
        prepare: async session => {
          await migrate(session, known, log)
          const identity = await ensureIdentity(session, clusterId)
          await admit?.(async () => (await session.query(loadIssued, [], callTimeoutMs))[0]!)
          this.#identity = identity
        },
        onDown: error => {
          this.#commits.rejectWaiting(error)
          for (const listener of this.#awayListeners) listener()
        },
      },
    )
    this.jobs = new JobTables(this.#database)
    this.collection = new CollectionTables(this.#database)
    this.cleanup = new CleanupTables(this.#database)
    this.repairQueue = new RepairQueue(this.#database)
    this.trash = new TrashTables(this.#database, () => this.incarnation)
    this.restores = new Restores(this.#database)
    this.backupTargets = new BackupTargets(this.#database)
    this.recovery = new RecoveryTables(this.#database)
    this.#commits = new CommitQueue({
      database: { query: (sql, values) => this.#database.commit(sql, values) },
      lanes: commitLanes,
      timeoutMs: callTimeoutMs,
    })
  }

  start(): Promise<void> {
    return this.#database.start()
  }

  close(): Promise<void> {
    return this.#database.close()
  }

  async ping(): Promise<void> {
    await this.#database.ping()
  }

  get available(): boolean {
    return this.#database.available
  }

  onAway(listener: () => void): void {
    this.#awayListeners.push(listener)
  }

  async recheck(): Promise<void> {
    if (!this.available) return
    try {
      await this.#admit?.(async () => (await this.#database.query(loadIssued))[0]!)
    } catch (error) {
      if (isHoldfastError(error, 'METADATA_UNAVAILABLE') && error.data['behind'] === true) this.#database.suspend(error)
      throw error
    }
  }

  get incarnation(): string {
    return this.#identity.incarnation
  }

  get clusterId(): string {
    return this.#identity.clusterId
  }

  listRepositories = (): Promise<readonly types.Repository[]> => repositories.listRepositories(this.#database)
  createRepository = (repository: types.NewRepository): Promise<types.Repository> =>
    repositories.createRepository(this.#database, repository)
  changeRepository = (name: string, change: types.RepositoryChange, force?: boolean): Promise<types.Repository> =>
    repositories.changeRepository(this.#database, name, change, force)
  deleteRepository = (name: string): Promise<void> => repositories.deleteRepository(this.#database, name)

  exportIdentity = (): Promise<IdentityTables> => exportIdentity(this.#database)
  findUser = (name: string): Promise<types.User | undefined> => users.findUser(this.#database, name)
  putUser = (user: types.User): Promise<void> => users.putUser(this.#database, user)
  audit = (entry: types.AuditEntry): Promise<void> => users.appendAudit(this.#database, entry)
  listAudit = (before: number, limit: number): Promise<readonly types.AuditLine[]> =>
    users.listAudit(this.#database, before, limit)

  findArtifact = (repositoryId: number, path: string): Promise<types.Artifact | undefined> =>
    artifacts.findArtifact(this.#database, repositoryId, path)
  findArtifacts = (
    wanted: Parameters<types.Metadata['findArtifacts']>[0],
  ): Promise<readonly (types.Artifact | undefined)[]> => artifacts.findArtifacts(this.#database, wanted)
  findBlob = (digest: { sha256: Digest } | { sha1: string }): Promise<types.Blob | undefined> =>
    artifacts.findBlob(this.#database, digest)
  pinBlob = (blob: Pick<types.Blob, 'digest' | 'generation'>, upload: string): Promise<boolean> =>
    artifacts.pinBlob(this.#database, blob, upload)
  digestReadable = (digest: Digest, repositoryIds: readonly number[]): Promise<boolean> =>
    artifacts.digestReadable(this.#database, digest, repositoryIds)
  listFolder = (repositoryId: number, prefix: string, after: string, limit: number): Promise<types.FolderPage> =>
    listFolder(this.#database, repositoryId, prefix, after, limit)
  listArtifacts = (
    repositoryId: number,
    prefix: string,
    after: string,
    limit: number,
  ): Promise<readonly types.Artifact[]> => artifacts.listArtifacts(this.#database, repositoryId, prefix, after, limit)
  countArtifacts = (repositoryId: number, prefix: string, most: number): Promise<number> =>
    artifacts.countArtifacts(this.#database, repositoryId, prefix, most)
  deleteFolder = (
    target: Parameters<types.Metadata['deleteFolder']>[0],
    limit: number,
  ): Promise<readonly types.DeletedArtifact[]> => artifacts.deleteFolder(this.#database, target, limit)

  async commitArtifact(put: types.CommitArtifact): Promise<types.CommitResult> {
    const row = await this.#commits.submit({ op: 'put', put })
    return this.#resultOf(put, row)
  }

  async deleteArtifact(
    target: Omit<DeleteArtifact, 'match'>,
    conditions: Pick<types.WriteConditions, 'match'> = {},
  ): Promise<types.DeletedArtifact | undefined> {
    const deletion = { ...target, ...conditions }
    return deleteResultOf(deletion, await this.#commits.submit({ op: 'delete', delete: deletion }))
  }

  async commitArtifacts(
    commits: readonly types.CommitArtifact[],
    deletes: readonly DeleteArtifact[] = [],
  ): Promise<{ results: readonly types.CommitResult[]; deleted: readonly types.DeletedArtifact[] }> {
    const changes: Change[] = [
      ...commits.map(put => ({ op: 'put' as const, put })),
      ...deletes.map(deletion => ({ op: 'delete' as const, delete: deletion })),
    ]
    if (changes.length === 0) return { results: [], deleted: [] }
    try {
      const rows = await this.#database.transaction(async transaction => {
        const done = await runChanges(transaction, changes, 'final')
        const failed = done.filter(row => refusedOutcomes.has(row.outcome))
        if (failed.length > 0) throw new Refused(failed)
        return done
      })
      const results = await Promise.all(commits.map((put, index) => this.#resultOf(put, rows[index]!)))
      const deleted = deletes.map((target, index) => deleteResultOf(target, rows[commits.length + index]!))
      return { results, deleted: deleted.filter(one => one !== undefined) }
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      const results = error.rows.map(async row => {
        const put = commits[row.ord]
        return put === undefined ? deleteResultOf(deletes[row.ord - commits.length]!, row) : this.#resultOf(put, row)
      })
      return { results: (await Promise.all(results)).filter(isCommitResult), deleted: [] }
    }
  }

  settleOutbox = (seqs: readonly number[]): Promise<void> => settleOutbox(this.#database, seqs)
  pendingOutbox = (olderThanMs: number, limit: number): Promise<readonly types.OutboxEntry[]> =>
    pendingOutbox(this.#database, olderThanMs, limit)
  addRepairs = (entries: Parameters<types.Metadata['addRepairs']>[0]): Promise<void> =>
    repairs.addRepairs(this.#database, entries)
  dueRepairs = (limit: number, missingMin?: number): Promise<readonly types.RepairEntry[]> =>
    repairs.dueRepairs(this.#database, limit, missingMin)
  finishRepair = (id: number, token: number): Promise<void> => repairs.finishRepair(this.#database, id, token)
  postponeRepairs = (later: Parameters<types.Metadata['postponeRepairs']>[0], token: number): Promise<void> =>
    repairs.postponeRepairs(this.#database, later, token)
  countRepairs = (): Promise<number> => repairs.countRepairs(this.#database)
  finishRepairs = (ids: readonly number[], token: number): Promise<void> =>
    repairs.finishRepairs(this.#database, ids, token)
  inspectBlobs = (digests: readonly Digest[]): Promise<readonly types.InspectedBlob[]> =>
    inspection.inspectBlobs(this.#database, digests)
  upstreamNames = (digest: Digest): Promise<readonly types.Artifact[]> =>
    inspection.upstreamNames(this.#database, digest)
  pageOfBlobs = (after: string, limit: number): Promise<readonly types.Blob[]> =>
    inspection.pageOfBlobs(this.#database, after, limit)
  inspectVersions = (
    paths: Parameters<types.Metadata['inspectVersions']>[0],
  ): Promise<readonly (types.PathVersion | undefined)[]> => inspection.inspectVersions(this.#database, paths)
  pageOfReferences = (
    after: Parameters<types.Metadata['pageOfReferences']>[0],
    limit: number,
  ): Promise<readonly types.InspectedArtifact[]> => inspection.pageOfReferences(this.#database, after, limit)
  reclaimUnconfirmed = (
    blobs: Parameters<types.Metadata['reclaimUnconfirmed']>[0],
    token: number,
  ): Promise<readonly ('live' | 'reclaim')[]> => repairs.reclaimUnconfirmed(this.#database, blobs, token)

  snapshot = <T>(work: (snapshot: types.MetadataSnapshot) => Promise<T>): Promise<T> =>
    this.#database.snapshot(queryable => readSnapshot(queryable, work))

  issueToken = (role: string, holder: string): Promise<number> => issueToken(this.#database, role, holder)
  newestToken = (role: string): Promise<number> => newestToken(this.#database, role)
  loadClusterMap = (newerThan = 0): Promise<ClusterMap | undefined> => loadClusterMap(this.#database, newerThan)
  publishClusterMap = (map: ClusterMap, token: number): Promise<boolean> =>
    publishClusterMap(this.#database, map, token)

  async #resultOf(put: types.CommitArtifact, row: ChangeRow): Promise<types.CommitResult> {
    const current = row.outcome === 'refused' ? await this.findArtifact(put.repositoryId, put.path) : undefined
    return commitResultOf(put, row, this.#identity.incarnation, current ?? null)
  }
}

const refusedOutcomes: ReadonlySet<ChangeRow['outcome']> = new Set([
  'refused',
  'blob-exists',
  'blob-gone',
  'no-repository',
])

/** Carries the refused changes out of the transaction that they roll back. */
class Refused extends Error {
  readonly rows: readonly ChangeRow[]

  constructor(rows: readonly ChangeRow[]) {
    super('refused')
    this.rows = rows
  }
}

function isCommitResult(result: types.CommitResult | types.DeletedArtifact | undefined): result is types.CommitResult {
  return result !== undefined && 'outcome' in result
}
