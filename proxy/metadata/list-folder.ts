import assert from 'node:assert/strict'
import type { Digest } from '../../shared/ids.ts'
import type { Database } from './database.ts'
import { endOfPrefix } from './rows.ts'
import { statement } from './statement.ts'
import type { FolderEntry, FolderPage } from './types.ts'

interface EntryRow {
  readonly name: string
  readonly folder: boolean
  readonly bytes: number | null
  readonly updated_at: number | null
  readonly digest: Digest | null
}

/**
 * Walks the index from entry to entry: after an artifact to the next path, after a folder behind all that is in it
 * ('0' follows '/'). So a page costs one index probe per entry, however much lies below. $3 is the first possible path,
 * $4 the end of the folder, $5 the length of its prefix in characters.
 */
const next = (from: string): string => `
  SELECT a.path, strpos(substr(a.path, $4 + 1), '/') AS slash, a.digest, a.updated_at
  FROM artifacts a WHERE a.repository_id = $1 AND a.digest IS NOT NULL AND a.path >= ${from} AND a.path < $5
  ORDER BY a.path LIMIT 1`
const walk = statement<EntryRow>(
  'list-folder',
  `WITH RECURSIVE walk AS (
    (${next('$2::text')})
    UNION ALL
    SELECT n.* FROM walk w CROSS JOIN LATERAL (
      ${next(`CASE WHEN w.slash = 0 THEN w.path || chr(1) ELSE left(w.path, $4 + w.slash - 1) || '0' END`)}
    ) n
  ), page AS MATERIALIZED (SELECT * FROM walk LIMIT $3)
  SELECT CASE WHEN p.slash = 0 THEN substr(p.path, $4 + 1) ELSE substr(p.path, $4 + 1, p.slash - 1) END AS name,
    p.slash > 0 AS folder,
    CASE WHEN p.slash = 0 THEN b.bytes END AS bytes,
    CASE WHEN p.slash = 0 THEN p.updated_at END AS updated_at,
    CASE WHEN p.slash = 0 THEN p.digest END AS digest
  FROM page p LEFT JOIN blobs b ON p.slash = 0 AND b.digest = p.digest
  ORDER BY p.path`,
)

/** Entries in byte order of their names, folders as if they ended in '/'. */
export async function listFolder(
  database: Database,
  repositoryId: number,
  prefix: string,
  after: string,
  limit: number,
): Promise<FolderPage> {
  assert(limit >= 1, 'a page has room for an entry')
  const bounds = { start: prefix + startAfter(after), end: endOfPrefix(prefix) }
  const rows = await database.query(walk, [repositoryId, bounds.start, limit + 1, [...prefix].length, bounds.end])
  const page = rows.slice(0, limit)
  const last = page.at(-1)
  const entries = page.map(entryOf)
  if (rows.length <= limit || last === undefined) return { entries }
  return { entries, next: last.folder ? `${last.name}/` : last.name }
}

/** The first name that may follow: behind everything in a folder `a/`, or the next possible name after an artifact. */
function startAfter(after: string): string {
  if (after === '') return '\u0001'
  return after.endsWith('/') ? `${after.slice(0, -1)}0` : `${after}\u0001`
}

function entryOf({ name, folder, bytes, updated_at, digest }: EntryRow): FolderEntry {
  if (folder) return { name, kind: 'folder' }
  assert(bytes !== null && updated_at !== null && digest !== null, 'an artifact names a blob')
  return { name, kind: 'artifact', bytes, updatedAt: updated_at, digest }
}
