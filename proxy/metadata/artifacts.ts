import type { Digest } from '../../shared/ids.ts'
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
const findBySha256 = statement<BlobRow>(
  'find-blob',
  `SELECT ${blobColumns} FROM blobs b WHERE b.digest = $1 AND b.state <> 'purging'`,
)
const findBySha1 = statement<BlobRow>(
  'find-blob-by-sha1',
  `SELECT ${blobColumns} FROM blobs b WHERE b.sha1 = $1 AND b.state <> 'purging' ORDER BY b.created_at LIMIT 1`,
)
const readable = statement<{ readable: boolean }>(
  'digest-readable',
  'SELECT EXISTS (SELECT FROM artifacts WHERE digest = $1 AND repository_id = ANY ($2::integer[])) AS readable',
)
const listBelow = statement<ArtifactRow>(
  'list-artifacts',
  `SELECT ${artifactColumns} FROM artifacts a JOIN blobs b ON b.digest = a.digest
  WHERE a.repository_id = $1 AND a.digest IS NOT NULL AND a.path > greatest($2, $3)
  ORDER BY a.path LIMIT $4`,
)
const listBelowUntil = statement<ArtifactRow>(
  'list-artifacts-until',
  `SELECT ${artifactColumns} FROM artifacts a JOIN blobs b ON b.digest = a.digest
  WHERE a.repository_id = $1 AND a.digest IS NOT NULL AND a.path > greatest($2 COLLATE "C", $3) AND a.path < $5
  ORDER BY a.path LIMIT $4`,
)
/** Locks in path order, as commits do. */
const deleteBelow = statement<{ path: string; version: number; outbox_seq: number }>(
  'delete-folder',
  `WITH doomed AS MATERIALIZED (
    SELECT path FROM artifacts
    WHERE repository_id = $1 AND digest IS NOT NULL AND path > $3 AND ($4::text IS NULL OR path < $4)
    ORDER BY path LIMIT $6 FOR NO KEY UPDATE
  ), deleted AS (
    UPDATE artifacts a SET digest = NULL, version = greatest(a.version + 1, nextval('artifact_versions')),
      content_type = NULL, attributes = '{}', updated_at = clock_timestamp(), deleted_at = clock_timestamp(),
      outbox_seq = nextval('outbox_seqs')
    FROM doomed WHERE a.repository_id = $1 AND a.path = doomed.path AND a.digest IS NOT NULL
    RETURNING a.path, a.version, a.outbox_seq, a.updated_at
  ), owed AS (
    INSERT INTO outbox (seq, repository_id, repository, path, op, version, user_name, created_at)
    SELECT outbox_seq, $1, $2, path, 'delete', version, $5, updated_at FROM deleted
  )
  SELECT path, version, outbox_seq FROM deleted ORDER BY path`,
)

export async function findArtifact(
  database: Database,
  repositoryId: number,
  path: string,
): Promise<Artifact | undefined> {
  const [row] = await database.read(find, [repositoryId, path])
  return row && artifactOf(row)
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
  const end = endOfPrefix(prefix)
  const rows =
    end === undefined
      ? await database.query(listBelow, [repositoryId, prefix, after, limit])
      : await database.query(listBelowUntil, [repositoryId, prefix, after, limit, end])
  return rows.map(artifactOf)
}

export async function deleteFolder(
  database: Database,
  target: { repositoryId: number; repository: string; prefix: string; user: string },
  limit: number,
): Promise<readonly DeletedArtifact[]> {
  const { repositoryId, repository, prefix, user } = target
  const values = [repositoryId, repository, prefix, endOfPrefix(prefix) ?? null, user, limit]
  const rows = await database.query(deleteBelow, values)
  return rows.map(row => ({ path: row.path, version: row.version, outboxSeq: row.outbox_seq }))
}
