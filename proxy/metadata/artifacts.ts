import type { Digest } from '../../shared/ids.ts'
import { deleteResultOf, runChanges } from './commit-changes.ts'
import type { Database } from './database.ts'
import {
  artifactColumns,
  artifactOf,
  blobColumns,
  blobOf,
  endOfPrefix,
  type ArtifactRow,
  type BlobRow,
} from './rows.ts'
import { statement } from './statement.ts'
import type { Artifact, Blob, DeletedArtifact } from './types.ts'
import { bytea } from './value-parsers.ts'

/** A tombstone names no blob, so the join leaves it out. */
const find = statement<ArtifactRow>(
  'find-artifact',
  `SELECT ${artifactColumns} FROM artifacts a JOIN blobs b ON b.digest = a.digest
  WHERE a.repository_id = $1 AND a.path = $2`,
)
/** The planner knows nothing of how many are wanted; 'OFFSET 0' makes each of them a look into the index. */
const findMany = statement<ArtifactRow & { ord: number }>(
  'find-artifacts',
  `SELECT wanted.ord, found.* FROM unnest($1::integer[], $2::text[]) WITH ORDINALITY AS wanted (repository_id, path, ord)
  CROSS JOIN LATERAL (SELECT ${artifactColumns} FROM artifacts a JOIN blobs b ON b.digest = a.digest
    WHERE a.repository_id = wanted.repository_id AND a.path = wanted.path OFFSET 0) found`,
)
const findBySha256 = statement<BlobRow>(
  'find-blob',
  `SELECT ${blobColumns} FROM blobs b WHERE b.digest = $1 AND b.state <> 'purging'`,
)
const findBySha1 = statement<BlobRow>(
  'find-blob-by-sha1',
  `SELECT ${blobColumns} FROM blobs b WHERE b.sha1 = $1 AND b.state <> 'purging' ORDER BY b.created_at LIMIT 1`,
)
/**
 * The row's lock is the collector's, too: it has the blob condemned for good before this, or finds the pin. A condemned one is live again;
 * it stays in `lost_names` until something names it.
 */
const pin = statement<{ digest: Digest }>(
  'pin-blob',
  `WITH kept AS (
    UPDATE blobs SET state = 'live', state_since = CASE state WHEN 'live' THEN state_since ELSE now() END
    WHERE digest = $1 AND generation = $2 AND state <> 'purging' RETURNING digest)
  INSERT INTO pins (digest, upload, expires_at) SELECT digest, $3, now() + interval '10 minutes' FROM kept
  ON CONFLICT (digest, upload) DO UPDATE SET expires_at = excluded.expires_at RETURNING digest`,
)
const readable = statement<{ readable: boolean }>(
  'digest-readable',
  'SELECT EXISTS (SELECT FROM artifacts WHERE digest = $1 AND repository_id = ANY ($2::integer[])) AS readable',
)
const listBelow = statement<ArtifactRow>(
  'list-artifacts',
  `SELECT ${artifactColumns} FROM artifacts a JOIN blobs b ON b.digest = a.digest
  WHERE a.repository_id = $1 AND a.digest IS NOT NULL AND a.path > greatest($2 COLLATE "C", $4) AND a.path < $3
  ORDER BY a.path LIMIT $5`,
)
/** Locked, so that each of them is there to be deleted. In path order, as commits lock them. */
const lockBelow = statement<{ path: string }>(
  'lock-folder',
  `SELECT path FROM artifacts
  WHERE repository_id = $1 AND digest IS NOT NULL AND path > $2 AND path < $3
  ORDER BY path LIMIT $4 FOR NO KEY UPDATE`,
)
/** Of the next $5 artifacts behind $4 below a folder; last_path is null when there are none. */
const countBelow = statement<{ count: number; last_path: string | null }>(
  'count-artifacts',
  `SELECT count(*) AS count, max(path) AS last_path FROM (
    SELECT path FROM artifacts
    WHERE repository_id = $1 AND digest IS NOT NULL AND path > greatest($2 COLLATE "C", $4) AND path < $3
    ORDER BY path LIMIT $5) page`,
)

export async function findArtifact(
  database: Database,
  repositoryId: number,
  path: string,
): Promise<Artifact | undefined> {
  const [row] = await database.read(find, [repositoryId, path])
  return row && artifactOf(row)
}

export async function findArtifacts(
  database: Database,
  wanted: readonly { readonly repositoryId: number; readonly path: string }[],
): Promise<readonly (Artifact | undefined)[]> {
  if (wanted.length === 0) return []
  const rows = await database.query(findMany, [wanted.map(one => one.repositoryId), wanted.map(one => one.path)])
  const found = new Map(rows.map(row => [Number(row.ord), artifactOf(row)]))
  return wanted.map((_, index) => found.get(index + 1))
}

export async function findBlob(
  database: Database,
  digest: { sha256: Digest } | { sha1: string },
): Promise<Blob | undefined> {
  const [row] =
    'sha256' in digest
      ? await database.read(findBySha256, [bytea(digest.sha256)])
      : await database.read(findBySha1, [bytea(digest.sha1)])
  return row && blobOf(row)
}

export async function pinBlob(
  database: Database,
  { digest, generation }: Pick<Blob, 'digest' | 'generation'>,
  upload: string,
): Promise<boolean> {
  return (await database.query(pin, [bytea(digest), generation, upload])).length > 0
}

export async function digestReadable(
  database: Database,
  digest: Digest,
  repositoryIds: readonly number[],
): Promise<boolean> {
  const [row] = await database.read(readable, [bytea(digest), repositoryIds])
  return row?.readable === true
}

export async function listArtifacts(
  database: Database,
  repositoryId: number,
  prefix: string,
  after: string,
  limit: number,
): Promise<readonly Artifact[]> {
  const rows = await database.query(listBelow, [repositoryId, prefix, endOfPrefix(prefix), after, limit])
  return rows.map(artifactOf)
}

export async function deleteFolder(
  database: Database,
  target: { repositoryId: number; repository: string; prefix: string; user: string },
  limit: number,
): Promise<readonly DeletedArtifact[]> {
  const { repositoryId, repository, prefix, user } = target
  return database.transaction(async transaction => {
    const bounds = [repositoryId, prefix, endOfPrefix(prefix)]
    const doomed = await transaction.query(lockBelow, [...bounds, limit])
    const deletions = doomed.map(({ path }) => ({ repositoryId, repository, path, user }))
    const changes = deletions.map(deletion => ({ op: 'delete', delete: deletion }) as const)
    if (changes.length === 0) return []
    const rows = await runChanges(transaction, changes, 'trash')
    return rows.map((row, index) => deleteResultOf(deletions[index]!, row)).filter(one => one !== undefined)
  })
}

/** How many of them are counted by one statement: some tens of milliseconds. */
const countedPage = 50_000

export async function countArtifacts(
  database: Database,
  repositoryId: number,
  prefix: string,
  most: number,
): Promise<number> {
  const bounds = [repositoryId, prefix, endOfPrefix(prefix)]
  let count = 0
  for (let after = ''; count < most;) {
    const limit = Math.min(countedPage, most - count)
    const [page] = await database.query(countBelow, [...bounds, after, limit])
    count += page!.count
    if (page!.last_path === null || page!.count < limit) break
    after = page!.last_path
  }
  return count
}
