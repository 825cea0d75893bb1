import { commitResultOf, runChanges, type Change } from './commit-changes.ts'
import type { Database } from './database.ts'
import { fenced } from './leaders.ts'
import { artifactOf, blobColumns, endOfPrefix, type ArtifactRow } from './rows.ts'
import { statement } from './statement.ts'
import type { Restored, TrashCursor, TrashEntry, TrashPlace, TrashStore } from './trash-types.ts'

interface TrashRow extends ArtifactRow {
  readonly id: number
  readonly deleted_by: string
  readonly deleted_at: number
  readonly expires_at: number
}

const columns = `t.id, t.deleted_by, t.deleted_at, t.expires_at, t.repository_id, t.path, t.version, t.content_type, t.attributes,
  t.created_by, t.created_at, t.updated_at, ${blobColumns}`
/** $2 to $3: the paths of a place, see `boundsOf`. */
const inPlace = `t.repository_id = $1 AND t.path >= $2 AND t.path < $3`

const list = statement<TrashRow>(
  'trash-list',
  `SELECT ${columns} FROM trash_refs t JOIN blobs b ON b.digest = t.digest
  WHERE ${inPlace} AND t.path >= $4 AND (t.path > $4 OR t.id < $5) ORDER BY t.path, t.id DESC LIMIT $6`,
)
const newest = statement<TrashRow>(
  'trash-newest',
  `SELECT ${columns} FROM (
    SELECT DISTINCT ON (t.path) t.* FROM trash_refs t WHERE ${inPlace} AND t.path > $4 ORDER BY t.path, t.id DESC LIMIT $5
  ) t JOIN blobs b ON b.digest = t.digest ORDER BY t.path`,
)
/** The versions $2 that were made of the entries $1 are as old as those. */
const keepTimes = statement(
  'trash-keep-times',
  `UPDATE artifacts a SET restored_version = r.version, written_at = t.updated_at
  FROM unnest($1::bigint[], $2::bigint[]) AS r (id, version) JOIN trash_refs t ON t.id = r.id
  WHERE a.repository_id = t.repository_id AND a.path = t.path AND a.version = r.version`,
)
const forget = statement('trash-forget', 'DELETE FROM trash_refs WHERE id = ANY ($1::bigint[])')
const purge = statement(
  'trash-purge',
  `DELETE FROM trash_refs WHERE id IN (SELECT t.id FROM trash_refs t WHERE ${inPlace} ORDER BY t.path LIMIT $4) RETURNING 1`,
)
const expire = statement<{ bytes: number }>(
  'trash-expire',
  `WITH gone AS (
    DELETE FROM trash_refs WHERE id IN (
      SELECT id FROM trash_refs WHERE expires_at < now() ORDER BY expires_at LIMIT $1)
    RETURNING digest)
  SELECT coalesce(b.bytes, 0) AS bytes FROM gone LEFT JOIN blobs b ON b.digest = gone.digest`,
)

export class TrashTables implements TrashStore {
  readonly #database: Database
  readonly #incarnation: () => string

  constructor(database: Database, incarnation: () => string) {
    this.#database = database
    this.#incarnation = incarnation
  }

  async list(place: TrashPlace, after: TrashCursor | undefined, limit: number): Promise<readonly TrashEntry[]> {
    const values = [...boundsOf(place), after?.path ?? '', after?.id ?? 0, limit]
    return (await this.#database.query(list, values)).map(entryOf)
  }

  async newest(place: TrashPlace, after: string, limit: number): Promise<readonly TrashEntry[]> {
    return (await this.#database.query(newest, [...boundsOf(place), after, limit])).map(entryOf)
  }

  async restore(
    entries: readonly TrashEntry[],
    how: Parameters<TrashStore['restore']>[1],
  ): Promise<readonly Restored[]> {
    if (entries.length === 0) return []
    const puts = entries.map(({ artifact }) => ({
      repositoryId: artifact.repositoryId,
      repository: how.repository,
      path: artifact.path,
      contentType: artifact.contentType,
      attributes: artifact.attributes,
      user: how.user,
      conditions: { absent: !how.overwrite, redeploy: how.redeploy },
      blob: artifact.blob,
      // The trash kept the copies alive and repaired: no need to touch them one by one.
      blobIs: 'existing' as const,
      missing: [],
      handoffs: [],
    }))
    return this.#database.transaction(async transaction => {
      const changes: Change[] = puts.map(put => ({ op: 'put', put }))
      const rows = await runChanges(transaction, changes, 'trash')
      const restored = entries.map((entry, index) => {
        return { entry, result: commitResultOf(puts[index]!, rows[index]!, this.#incarnation(), null) }
      })
      const back = restored.filter(({ result }) => 'artifact' in result)
      const made = restored.flatMap(({ entry, result }) =>
        'artifact' in result && result.outcome !== 'unchanged' ? [[entry.id, result.artifact.version] as const] : [],
      )
      await transaction.query(keepTimes, [made.map(([id]) => id), made.map(([, version]) => version)])
      await transaction.query(forget, [back.map(({ entry }) => entry.id)])
      return restored
    })
  }

  async purge(place: TrashPlace, limit: number): Promise<number> {
    return (await this.#database.query(purge, [...boundsOf(place), limit])).length
  }

  async expire(limit: number, token: number): Promise<{ entries: number; bytes: number }> {
    const rows = await fenced(this.#database, token, transaction => transaction.query(expire, [limit]))
    return { entries: rows.length, bytes: rows.reduce((sum, { bytes }) => sum + bytes, 0) }
  }
}

/** No path has a control character, so nothing lies between an artifact and itself with one. */
function boundsOf({ repositoryId, path }: TrashPlace): [number, string, string] {
  const isFolder = path === '' || path.endsWith('/')
  return [repositoryId, path, isFolder ? endOfPrefix(path) : `${path}\u0001`]
}

function entryOf(row: TrashRow): TrashEntry {
  return {
    id: row.id,
    artifact: artifactOf(row),
    deletedBy: row.deleted_by,
    deletedAt: row.deleted_at,
    expiresAt: row.expires_at,
  }
}
