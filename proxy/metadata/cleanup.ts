import { HoldfastError } from '../../shared/errors.ts'
import type { CleanupCandidate, CleanupConditions, CleanupPolicy, CleanupStore, Download } from './cleanup-types.ts'
import { runChanges } from './commit-changes.ts'
import type { Database } from './database.ts'
import { fenced } from './leaders.ts'
import { repositoryLockClass } from './repositories.ts'
import { type Queryable, statement } from './statement.ts'
import type { DeletedArtifact, Repository } from './types.ts'

interface PolicyRow {
  readonly name: string
  readonly repositories: string[] | null
  readonly conditions: CleanupConditions
  readonly enabled: boolean
}

const list = statement<PolicyRow>(
  'cleanup-list',
  'SELECT name, repositories, conditions, enabled FROM cleanup_policies ORDER BY name',
)
const create = statement<{ name: string }>(
  'cleanup-create',
  `INSERT INTO cleanup_policies (name, repositories, conditions, enabled, changed_by) VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (name) DO NOTHING RETURNING name`,
)
const change = statement<{ name: string }>(
  'cleanup-change',
  `UPDATE cleanup_policies SET repositories = $2, conditions = $3, enabled = $4, changed_by = $5, changed_at = now()
  WHERE name = $1 RETURNING name`,
)
const drop = statement<{ name: string }>('cleanup-drop', 'DELETE FROM cleanup_policies WHERE name = $1 RETURNING name')
const facts = statement<{ now: number; since: string | null }>(
  'cleanup-facts',
  `SELECT now() AS now, (SELECT value FROM settings WHERE key = 'downloads_recorded_since') AS since`,
)
/** 'OFFSET 0': downloads are looked up for each artifact of the page. A merge of both tables would read those of the whole repository. */
const candidates = statement<{
  path: string
  digest: CleanupCandidate['digest']
  version: number
  bytes: number
  updated_at: number
  written_at: number | null
  downloaded_at: number | null
}>(
  'cleanup-candidates',
  `SELECT a.path, a.digest, a.version, b.bytes, a.updated_at, CASE WHEN a.restored_version = a.version THEN a.written_at END AS written_at,
    d.day::timestamp AT TIME ZONE 'UTC' AS downloaded_at
  FROM artifacts a JOIN blobs b ON b.digest = a.digest
  LEFT JOIN LATERAL (
    SELECT day FROM downloads d WHERE d.repository_id = a.repository_id AND d.path = a.path OFFSET 0) d ON true
  WHERE a.repository_id = $1 AND a.digest IS NOT NULL AND a.path > $2 ORDER BY a.path LIMIT $3`,
)
/** As everything that locks artifacts: a repository cannot be deleted meanwhile. */
const lockRepository = statement(
  'cleanup-lock-repository',
  `SELECT pg_advisory_xact_lock_shared(${repositoryLockClass}, $1)`,
)
/** Those that are as they were judged, and stay so until the transaction ends. In path order, as commits lock them. */
const lockUnchanged = statement<{ path: string }>(
  'cleanup-lock-unchanged',
  `SELECT a.path FROM artifacts a JOIN unnest($2::text[], $3::bigint[]) AS d (path, version) ON d.path = a.path AND d.version = a.version
  WHERE a.repository_id = $1 AND a.digest IS NOT NULL ORDER BY a.path FOR NO KEY UPDATE OF a`,
)
/** What stands there already is left alone: a row lock each would be a write, too. */
const record = statement(
  'record-downloads',
  `INSERT INTO downloads AS d (repository_id, path, day)
  SELECT n.repository_id, n.path, (now() AT TIME ZONE 'UTC')::date
  FROM unnest($1::integer[], $2::text[]) AS n (repository_id, path)
  WHERE NOT EXISTS (SELECT FROM downloads o WHERE o.repository_id = n.repository_id AND o.path = n.path
    AND o.day >= (now() AT TIME ZONE 'UTC')::date)
  ORDER BY n.repository_id, n.path COLLATE "C"
  ON CONFLICT (repository_id, path) DO UPDATE SET day = excluded.day WHERE d.day < excluded.day`,
)
const forget = statement<{ repository_id: number; path: string }>(
  'forget-downloads',
  `WITH page AS MATERIALIZED (
    SELECT repository_id, path FROM downloads WHERE (repository_id, path) > ($1, $2 COLLATE "C")
    ORDER BY repository_id, path LIMIT $3),
  forgotten AS (
    DELETE FROM downloads d USING page p WHERE d.repository_id = p.repository_id AND d.path = p.path AND NOT EXISTS (
      SELECT FROM artifacts a WHERE a.repository_id = p.repository_id AND a.path = p.path AND a.digest IS NOT NULL OFFSET 0))
  SELECT repository_id, path FROM page ORDER BY repository_id DESC, path DESC LIMIT 1`,
)

/** By name. */
export async function listPolicies(queryable: Queryable): Promise<readonly CleanupPolicy[]> {
  const rows = await queryable.query(list)
  return rows.map(({ name, repositories, conditions, enabled }) => ({ name, repositories, conditions, enabled }))
}

export class CleanupTables implements CleanupStore {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  listPolicies(): Promise<readonly CleanupPolicy[]> {
    return listPolicies(this.#database)
  }

  async createPolicy(policy: CleanupPolicy, user: string): Promise<void> {
    const [row] = await this.#database.query(create, valuesOf(policy, user))
    if (row === undefined) throw new HoldfastError('CONFLICT', `there is a policy '${policy.name}' already`)
  }

  async changePolicy(policy: CleanupPolicy, user: string): Promise<void> {
    const [row] = await this.#database.query(change, valuesOf(policy, user))
    if (row === undefined) throw new HoldfastError('NOT_FOUND', `no cleanup policy '${policy.name}'`)
  }

  async deletePolicy(name: string): Promise<boolean> {
    return (await this.#database.query(drop, [name])).length > 0
  }

  async facts(): Promise<{ now: number; recordedSince: number }> {
    const [row] = await this.#database.query(facts)
    // Without the mark nothing is known of downloads before now.
    return { now: row!.now, recordedSince: row!.since === null ? row!.now : Number(row!.since) }
  }

  async candidates(repositoryId: number, after: string, limit: number): Promise<readonly CleanupCandidate[]> {
    const rows = await this.#database.query(candidates, [repositoryId, after, limit])
    return rows.map(({ path, digest, version, bytes, updated_at, written_at, downloaded_at }) => {
      return { path, digest, version, bytes, updatedAt: updated_at, writtenAt: written_at, downloadedAt: downloaded_at }
    })
  }

  async remove(
    { id, name }: Pick<Repository, 'id' | 'name'>,
    doomed: readonly Pick<CleanupCandidate, 'path' | 'digest' | 'version'>[],
    user: string,
    token: number,
  ): Promise<readonly DeletedArtifact[]> {
    if (doomed.length === 0) return []
    return fenced(this.#database, token, async transaction => {
      await transaction.query(lockRepository, [id])
      const judged = [doomed.map(({ path }) => path), doomed.map(({ version }) => version)]
      // The others were written or deleted since they were judged: they stay as they are, also with the same bytes.
      const unchanged = new Set((await transaction.query(lockUnchanged, [id, ...judged])).map(({ path }) => path))
      const going = doomed.filter(({ path }) => unchanged.has(path))
      const changes = going.map(({ path, digest }) => {
        return { op: 'delete', delete: { repositoryId: id, repository: name, path, user, match: [digest] } } as const
      })
      const rows = changes.length === 0 ? [] : await runChanges(transaction, changes, 'trash')
      // Refused: its repository is gone.
      return rows.flatMap((row, index) =>
        row.outcome === 'deleted' && row.outbox_seq !== null
          ? [{ path: going[index]!.path, version: row.version, outboxSeq: row.outbox_seq }]
          : [],
      )
    })
  }

  async recordDownloads(downloads: readonly Download[]): Promise<void> {
    const values = [downloads.map(({ repositoryId }) => repositoryId), downloads.map(({ path }) => path)]
    await this.#database.query(record, values)
  }

  async forgetDownloads(after: Download, limit: number, token: number): Promise<Download | undefined> {
    const values = [after.repositoryId, after.path, limit]
    const [last] = await fenced(this.#database, token, transaction => transaction.query(forget, values))
    return last && { repositoryId: last.repository_id, path: last.path }
  }
}

function valuesOf({ name, repositories, conditions, enabled }: CleanupPolicy, user: string): unknown[] {
  return [name, repositories, JSON.stringify(conditions), enabled, user]
}
