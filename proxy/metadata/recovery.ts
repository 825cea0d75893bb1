/** Brings a database up to what the shards know. Nothing else writes meanwhile: the proxies keep a database that is behind out of use. */
import { encodeClusterMap, type ClusterMap } from '../../shared/cluster-map.ts'
import { HoldfastError } from '../../shared/errors.ts'
import type { ReferenceRecord } from '../../shared/record.ts'
import { callTimeoutMs, type Database } from './database.ts'
import { identityTableNames, type IdentityRow, type IdentityTableName, type IdentityTables } from './identity-tables.ts'
import { primaryRole } from './leaders.ts'
import { statement, type Queryable } from './statement.ts'

/** What tells whether a database is the one that wrote the shards. */
export interface IssuedVersions {
  readonly incarnation: string
  /** The highest version it has issued. */
  readonly issued: number
}

export interface RecoveryFacts extends IssuedVersions {
  /** Nothing was ever written: no artifact, no user, no cluster map. */
  readonly empty: boolean
}

export interface Merged {
  /** Paths that were brought up to date, with an artifact or as deleted; the others were known as they are. */
  readonly written: number
  readonly deleted: number
}

/** A reference of the repository with this id. */
export interface PlacedReference {
  readonly repositoryId: number
  readonly record: ReferenceRecord
}

const issuedSql = 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM artifact_versions'

export const loadIssued = statement<IssuedVersions>(
  'load-issued',
  `SELECT (${issuedSql}) AS issued, (SELECT value FROM settings WHERE key = 'incarnation') AS incarnation`,
)
const loadFacts = statement<RecoveryFacts>(
  'recovery-facts',
  `SELECT (SELECT value FROM settings WHERE key = 'incarnation') AS incarnation, (${issuedSql}) AS issued,
    NOT EXISTS (SELECT FROM artifacts) AND NOT EXISTS (SELECT FROM users) AND NOT EXISTS (SELECT FROM cluster_maps) AS empty`,
)
/**
 * Only what is newer than the row that is there. A blob's row follows the newest reference that names it, and lives: the bytes
 * were named by somebody after whatever this database had decided about them.
 */
const merge = statement<{ written: number; deleted: number }>(
  'recovery-merge',
  `WITH newer AS MATERIALIZED (
    SELECT x.*, decode(x.digest, 'hex') AS raw_digest FROM jsonb_to_recordset($1) AS x (repository_id integer, path text, version bigint,
      digest text, generation text, partition smallint, bytes bigint, md5 text, sha1 text, content_type text, attributes jsonb,
      user_name text, at double precision)
    WHERE NOT EXISTS (SELECT FROM artifacts a
      WHERE a.repository_id = x.repository_id AND a.path = x.path AND a.version >= x.version)
  ), named AS (
    INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1)
    SELECT DISTINCT ON (n.raw_digest) n.raw_digest, n.generation, n.partition, n.bytes, decode(n.md5, 'hex'), decode(n.sha1, 'hex')
    FROM newer n WHERE n.digest IS NOT NULL
      AND NOT EXISTS (SELECT FROM artifacts a WHERE a.digest = n.raw_digest AND a.version > n.version)
    ORDER BY n.raw_digest, n.version DESC
    ON CONFLICT (digest) DO UPDATE SET generation = excluded.generation, partition = excluded.partition, bytes = excluded.bytes,
      md5 = excluded.md5, sha1 = excluded.sha1, state = 'live', state_since = now()
    WHERE blobs.generation <> excluded.generation OR blobs.state <> 'live'
  ), merged AS (
    INSERT INTO artifacts (repository_id, path, digest, version, content_type, attributes, created_by, created_at, updated_at,
      deleted_at, outbox_seq)
    SELECT n.repository_id, n.path, n.raw_digest, n.version, n.content_type, coalesce(n.attributes, '{}'), n.user_name,
      to_timestamp(n.at / 1000), to_timestamp(n.at / 1000), CASE WHEN n.digest IS NULL THEN to_timestamp(n.at / 1000) END, 0
    FROM newer n
    ON CONFLICT (repository_id, path) DO UPDATE SET digest = excluded.digest, version = excluded.version,
      content_type = excluded.content_type, attributes = excluded.attributes, created_by = excluded.created_by,
      created_at = CASE WHEN artifacts.digest IS NULL THEN excluded.created_at ELSE artifacts.created_at END,
      updated_at = excluded.updated_at, deleted_at = excluded.deleted_at, outbox_seq = 0
    WHERE artifacts.version < excluded.version
    RETURNING digest
  )
  SELECT count(digest) AS written, count(*) - count(digest) AS deleted FROM merged`,
)
const columnsOf = statement<{ name: string }>(
  'recovery-columns',
  `SELECT column_name AS name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1`,
)
const loadIds = statement<{ id: number; name: string }>('recovery-load-ids', 'SELECT id, name FROM repositories')
const forgetUsers = statement('recovery-forget-users', 'DELETE FROM users WHERE name <> ALL ($1::text[])')
const forgetPolicies = statement(
  'recovery-forget-policies',
  'DELETE FROM cleanup_policies WHERE name <> ALL ($1::text[])',
)
const raiseRepositoryIds = statement(
  'recovery-repository-ids',
  `SELECT setval(pg_get_serial_sequence('repositories', 'id'), greatest(max(id), $1::bigint, 1)) FROM repositories`,
)
const raiseVersions = statement(
  'recovery-versions',
  `SELECT setval('artifact_versions', greatest(last_value, $1::bigint)) FROM artifact_versions`,
)
const setIncarnation = statement('recovery-incarnation', `UPDATE settings SET value = $1 WHERE key = 'incarnation'`)
/** Above the highest that a node has seen: terms that never told a node anything had tokens, too. */
const tokensAhead = 1_000
const raiseToken = statement(
  'recovery-token',
  `INSERT INTO leaders AS l (role, token, holder, since) VALUES ('${primaryRole}', $1::bigint + ${tokensAhead}, 'recovery', now())
  ON CONFLICT (role) DO UPDATE SET token = greatest(l.token, $1::bigint) + ${tokensAhead}, holder = excluded.holder, since = excluded.since`,
)
const putMap = statement(
  'recovery-cluster-map',
  `INSERT INTO cluster_maps (epoch, map) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM cluster_maps WHERE epoch >= $1)`,
)

/** Of the connection, so that it ends with the process that has it. */
const recoveryLock = 4833
const tryLock = statement<{ locked: boolean }>(
  'recovery-lock',
  `SELECT pg_try_advisory_lock(${recoveryLock}) AS locked`,
)
const askLock = statement('recovery-lock-held', 'SELECT 1')

const primaryKeys: Readonly<Record<IdentityTableName, string>> = {
  repositories: 'id',
  users: 'name',
  cleanup_policies: 'name',
  jobs: 'name',
}

export class RecoveryTables {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  /**
   * No other process recovers this database meanwhile: CONFLICT while one does. `check` rejects with METADATA_UNAVAILABLE when the
   * connection that has the lock was lost, so that another one may have begun.
   */
  async exclusively<T>(work: (check: () => Promise<void>) => Promise<T>): Promise<T> {
    if (this.#database.isFolder) return work(() => Promise.resolve())
    return this.#database.apart(async session => {
      const [row] = await session.query(tryLock, [], callTimeoutMs)
      if (row?.locked !== true) {
        throw new HoldfastError(
          'CONFLICT',
          'another catch-up or rebuild of this database is under way: wait for its end',
        )
      }
      return work(async () => void (await session.query(askLock, [], callTimeoutMs)))
    })
  }

  async facts(): Promise<RecoveryFacts> {
    const [row] = await this.#database.query(loadFacts)
    return row!
  }

  /** Idempotent; a row that is as new or newer stays as it is. */
  async merge(references: readonly PlacedReference[]): Promise<Merged> {
    if (references.length === 0) return { written: 0, deleted: 0 }
    const [row] = await this.#database.query(merge, [JSON.stringify(references.map(rowOf))])
    return row!
  }

  /** The tables become this copy of them; repositories that are not in it stay, and the settings of tasks. */
  async restoreIdentity(tables: IdentityTables): Promise<void> {
    await this.#database.transaction(async transaction => {
      await transaction.query(forgetUsers, [tables.users.map(row => row['name'])])
      // One that was deleted since would delete artifacts again.
      if (tables.cleanup_policies !== undefined)
        await transaction.query(forgetPolicies, [tables.cleanup_policies.map(row => row['name'])])
      const repositories = withFreeIds(tables.repositories, await transaction.query(loadIds))
      for (const table of identityTableNames) {
        await restore(transaction, table, table === 'repositories' ? repositories : (tables[table] ?? []))
      }
      await transaction.query(raiseRepositoryIds, [0])
    })
  }

  /** From here on the database is in front of the shards: versions, the fencing token, the cluster map, and its new incarnation. */
  async finish(end: {
    readonly version: number
    readonly incarnation: string
    readonly token: number
    readonly map: ClusterMap
  }): Promise<void> {
    await this.#database.transaction(async transaction => {
      await transaction.query(raiseToken, [end.token])
      await transaction.query(putMap, [end.map.epoch, encodeClusterMap(end.map)])
      await transaction.query(raiseVersions, [end.version])
      await transaction.query(setIncarnation, [end.incarnation])
    })
  }
}

/**
 * Names decide: a repository that is here keeps its id, with the artifacts under it; another one gets the id that it had, unless that is
 * taken here. (An older copy of the database has a repository that was deleted and created again since, or names found on the shards
 * were given ids before the copy of them could be read.) Pure.
 */
export function withFreeIds(
  wanted: readonly IdentityRow[],
  here: readonly { readonly id: number; readonly name: string }[],
): readonly IdentityRow[] {
  const idOf = new Map(here.map(({ id, name }) => [name, id]))
  const taken = new Set(here.map(({ id }) => id))
  let next = Math.max(0, ...taken, ...wanted.map(row => Number(row['id']))) + 1
  return wanted.map(row => {
    const id = idOf.get(String(row['name']))
    if (id !== undefined) return { ...row, id }
    return taken.has(Number(row['id'])) ? { ...row, id: next++ } : row
  })
}

/** By the columns that this schema and the copy both have: they may be of different releases. */
async function restore(transaction: Queryable, table: IdentityTableName, rows: readonly IdentityRow[]): Promise<void> {
  if (rows.length === 0) return
  const known = (await transaction.query(columnsOf, [table])).map(({ name }) => name)
  const columns = known.filter(name => rows.every(row => Object.hasOwn(row, name)))
  const list = columns.map(name => `"${name}"`).join(', ') // of this database's own catalog
  const key = primaryKeys[table]
  const changed = columns.filter(name => name !== key)
  const changes = changed.map(name => `"${name}" = excluded."${name}"`).join(', ')
  const sql = `INSERT INTO ${table} (${list}) OVERRIDING SYSTEM VALUE SELECT ${list} FROM jsonb_populate_recordset(NULL::${table}, $1)
    ON CONFLICT (${key}) DO UPDATE SET ${changes}`
  await transaction.query(statement('', sql), [JSON.stringify(rows)])
}

function rowOf({ repositoryId, record }: PlacedReference): Record<string, unknown> {
  const { path, version, user, time, blob, contentType = null, attributes = {} } = record
  return {
    repository_id: repositoryId,
    path,
    version,
    user_name: user,
    at: time,
    content_type: contentType,
    attributes,
    ...(record.op === 'put' && blob !== undefined ? blob : {}),
  }
}
