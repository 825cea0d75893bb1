import { artifactColumns, artifactOf, type ArtifactRow } from './rows.ts'
import type { Database } from './database.ts'
import { statement } from './statement.ts'
import type { OutboxEntry } from './types.ts'

/** Not worth an fsync: an entry that comes back after a crash is replayed once more, which changes nothing. */
const settle = statement(
  'settle-outbox',
  `WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
  DELETE FROM outbox USING relaxed WHERE seq = ANY ($1::bigint[])`,
)

interface PendingRow extends ArtifactRow {
  readonly seq: number
  readonly repository: string
  readonly owed_path: string
  readonly owed_version: number
  readonly op: OutboxEntry['op']
  readonly user_name: string
  readonly owed_at: number
  readonly superseded: boolean
}
const pending = statement<PendingRow>(
  'pending-outbox',
  `SELECT o.seq, o.repository, o.path AS owed_path, o.version AS owed_version, o.op, o.user_name, o.created_at AS owed_at,
    a.version IS DISTINCT FROM o.version AS superseded, ${artifactColumns}
  FROM outbox o
    LEFT JOIN artifacts a ON a.repository_id = o.repository_id AND a.path = o.path
    LEFT JOIN blobs b ON b.digest = a.digest
  WHERE o.created_at <= now() - $1 * interval '1 millisecond'
  ORDER BY o.seq LIMIT $2`,
)

export async function settleOutbox(database: Database, seqs: readonly number[]): Promise<void> {
  if (seqs.length > 0) await database.query(settle, [seqs])
}

/**
 * What is still owed to the shards. Entries of versions that were overwritten since are settled here: the later version
 * has, or had, an entry of its own, and of two references the higher version wins.
 */
export async function pendingOutbox(
  database: Database,
  olderThanMs: number,
  limit: number,
): Promise<readonly OutboxEntry[]> {
  for (;;) {
    const rows = await database.query(pending, [olderThanMs, limit])
    const superseded = rows.filter(row => row.superseded)
    await settleOutbox(
      database,
      superseded.map(row => row.seq),
    )
    const current = rows.filter(row => !row.superseded)
    if (current.length > 0 || rows.length < limit) return current.map(entryOf)
  }
}

function entryOf(row: PendingRow): OutboxEntry {
  return {
    seq: row.seq,
    repository: row.repository,
    artifact: row.op === 'put' ? artifactOf(row) : null,
    op: row.op,
    path: row.owed_path,
    version: row.owed_version,
    user: row.user_name,
    time: row.owed_at,
  }
}
