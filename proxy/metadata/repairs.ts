import assert from 'node:assert/strict'
import type { Database } from './database.ts'
import { fenced } from './leaders.ts'
import { blobOf, type BlobRow } from './rows.ts'
import { statement } from './statement.ts'
import type { Blob, Metadata, RepairEntry } from './types.ts'
import { bytea } from './value-parsers.ts'

interface RepairRow extends BlobRow {
  readonly id: number
  readonly kind: RepairEntry['kind']
  readonly subject: string
  readonly owed_partition: number
  readonly owed_version: number | null
  readonly missing: string[]
  readonly handoffs: string[]
  readonly attempts: number
  readonly moot: boolean
}

const add = statement('add-repairs-1', 'SELECT add_repairs_1($1)')
const dueWhere = (condition: string): string => `
  SELECT r.id, r.kind, r.subject, r.partition AS owed_partition, r.version AS owed_version, r.missing, r.handoffs, r.attempts,
    r.kind = 'blob' AND b.digest IS NULL AS moot,
    b.digest, b.generation, b.partition, b.bytes, b.md5, b.sha1
  FROM repairs r LEFT JOIN blobs b ON b.digest = r.digest AND b.generation = r.generation AND b.state <> 'purging'
  WHERE r.due_at <= now() AND ${condition} ORDER BY r.due_at, r.created_at LIMIT $1`
const due = statement<RepairRow>('due-repairs', dueWhere('true'))
/** The number stands there for its index (migration 16). */
const urgent = statement<RepairRow>(
  'urgent-repairs',
  dueWhere('cardinality(r.missing) >= 2 AND cardinality(r.missing) >= $2'),
)
const remove = statement('remove-repairs', 'DELETE FROM repairs WHERE id = ANY ($1::bigint[])')
const postpone = statement(
  'postpone-repairs',
  `UPDATE repairs r SET due_at = now() + p.retry_ms * interval '1 millisecond', missing = p.missing, attempts = p.attempts
  FROM jsonb_to_recordset($1) AS p (id bigint, retry_ms bigint, missing text[], attempts integer) WHERE r.id = p.id`,
)
const count = statement<{ count: number }>('count-repairs', 'SELECT count(*) AS count FROM repairs')
const reclaim = statement<{ verdict: 'live' | 'reclaim' }>(
  'reclaim-unconfirmed-1',
  'SELECT verdict FROM reclaim_unconfirmed_1($1) ORDER BY ord',
)

/** Merges with what is known of the same blob or reference. */
export async function addRepairs(
  database: Database,
  repairs: readonly Omit<RepairEntry, 'id' | 'attempts'>[],
): Promise<void> {
  if (repairs.length > 0) await database.query(add, [JSON.stringify(repairs.map(encodeRepair))])
}

/** Repairs of blobs that were collected meanwhile are dropped here. With `missingMin` from 2 on: of what is missing in so many places. */
export async function dueRepairs(database: Database, limit: number, missingMin = 0): Promise<readonly RepairEntry[]> {
  for (;;) {
    const rows = await (missingMin < 2 ? database.query(due, [limit]) : database.query(urgent, [limit, missingMin]))
    const moot = rows.filter(row => row.moot).map(row => row.id)
    if (moot.length > 0) await database.query(remove, [moot])
    const current = rows.filter(row => !row.moot)
    if (current.length > 0 || rows.length < limit) return current.map(repairOf)
  }
}

export function finishRepair(database: Database, id: number, token: number): Promise<void> {
  return finishRepairs(database, [id], token)
}

export async function finishRepairs(database: Database, ids: readonly number[], token: number): Promise<void> {
  if (ids.length > 0) await fenced(database, token, transaction => transaction.query(remove, [ids]))
}

export async function postponeRepairs(
  database: Database,
  repairs: Parameters<Metadata['postponeRepairs']>[0],
  token: number,
): Promise<void> {
  if (repairs.length === 0) return
  const items = repairs.map(({ id, retryMs, missing, attempts }) => ({ id, retry_ms: retryMs, missing, attempts }))
  await fenced(database, token, transaction => transaction.query(postpone, [JSON.stringify(items)]))
}

export async function countRepairs(database: Database): Promise<number> {
  const [row] = await database.query(count)
  return row!.count
}

export async function reclaimUnconfirmed(
  database: Database,
  blobs: readonly Pick<Blob, 'digest' | 'generation' | 'partition' | 'bytes'>[],
  token: number,
): Promise<readonly ('live' | 'reclaim')[]> {
  const items = blobs.map(({ digest, generation, partition, bytes }, ord) => ({
    ord,
    digest: bytea(digest),
    generation,
    partition,
    bytes,
  }))
  return fenced(database, token, async transaction => {
    const rows = await transaction.query(reclaim, [JSON.stringify(items)])
    return rows.map(row => row.verdict)
  })
}

function encodeRepair(repair: Omit<RepairEntry, 'id' | 'attempts'>): Record<string, unknown> {
  const { kind, partition, blob, key, version, missing, handoffs } = repair
  if (kind === 'reference') {
    assert(key !== undefined && version !== undefined, 'a reference has a key and a version')
    return { kind, subject: key, partition, version, missing, handoffs }
  }
  assert(blob !== undefined, 'the repair of a blob names it')
  const { digest, generation } = blob
  return { kind, subject: `${digest}.${generation}`, partition, digest: bytea(digest), generation, missing, handoffs }
}

function repairOf(row: RepairRow): RepairEntry {
  const { id, kind, missing, handoffs, attempts } = row
  const common = { id, kind, partition: row.owed_partition, missing, handoffs, attempts }
  if (kind === 'blob') return { ...common, blob: blobOf(row) }
  return { ...common, key: row.subject, version: row.owed_version! }
}
