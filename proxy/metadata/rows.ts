/** Rows as PostgreSQL returns them, and what the rest of the proxy makes of them. Pure. */
import assert from 'node:assert/strict'
import type { Digest, Generation } from '../../shared/ids.ts'
import type { Artifact, Blob, Repository } from './types.ts'

export interface BlobRow {
  readonly digest: Digest
  readonly generation: Generation
  readonly partition: number
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
}

export interface ArtifactRow extends BlobRow {
  readonly repository_id: number
  readonly path: string
  readonly version: number
  readonly content_type: string | null
  readonly attributes: Record<string, unknown>
  readonly created_by: string
  readonly created_at: number
  readonly updated_at: number
}

export interface RepositoryRow {
  readonly id: number
  readonly name: string
  readonly format: 'raw'
  readonly redeploy: Repository['redeploy']
  readonly artifact_bytes_max: number | null
  readonly anonymous_read: boolean
  readonly trash_days: number
  /** Absent in copies of the table that a release without upstreams made. */
  readonly upstream?: Repository['upstream']
}

/**
 * What names a blob `b`. 'OFFSET 0' makes each of them a look into an index for the blob in hand; without it PostgreSQL may prefer to hash or
 * sort all names there are, for a page of some hundred blobs.
 */
export const naming = {
  artifact: 'EXISTS (SELECT FROM artifacts a WHERE a.digest = b.digest OFFSET 0)',
  trash: 'EXISTS (SELECT FROM trash_refs t WHERE t.digest = b.digest OFFSET 0)',
  pin: 'EXISTS (SELECT FROM pins p WHERE p.digest = b.digest AND p.expires_at > now() OFFSET 0)',
} as const

export const blobColumns = 'b.digest, b.generation, b.partition, b.bytes, b.md5, b.sha1'
/** Of artifacts `a` joined with their blobs `b`. */
export const artifactColumns = `a.repository_id, a.path, a.version, a.content_type, a.attributes, a.created_by,
  a.created_at, a.updated_at, ${blobColumns}`
export const repositoryColumns = 'id, name, format, redeploy, artifact_bytes_max, anonymous_read, trash_days, upstream'

export function blobOf(row: BlobRow): Blob {
  const { digest, generation, partition, bytes, md5, sha1 } = row
  return { digest, generation, partition, bytes, md5, sha1 }
}

export function artifactOf(row: ArtifactRow): Artifact {
  return {
    repositoryId: row.repository_id,
    path: row.path,
    version: row.version,
    blob: blobOf(row),
    contentType: row.content_type,
    attributes: row.attributes,
    createdBy: row.created_by,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
  }
}

export function repositoryOf(row: RepositoryRow): Repository {
  const { upstream = null } = row
  return {
    id: row.id,
    name: row.name,
    format: row.format,
    type: upstream === null ? 'hosted' : 'proxy',
    upstream,
    redeploy: row.redeploy,
    artifactBytesMax: row.artifact_bytes_max,
    anonymousRead: row.anonymous_read,
    trashDays: row.trash_days,
  }
}

/** Behind every path there can be: the last character there is, more often than an entry of an index has room for it. */
const behindAllPaths = '\u{10ffff}'.repeat(700)

/**
 * Where the paths below `prefix` end, as an exclusive bound ('0' follows '/'). Also for a whole repository: a bound that may be absent
 * (`$3 IS NULL OR path < $3`) is none to an index, which is then read to its end for the last page of every folder.
 */
export function endOfPrefix(prefix: string): string {
  assert(prefix === '' || prefix.endsWith('/'), 'a prefix ends in a slash')
  return prefix === '' ? behindAllPaths : `${prefix.slice(0, -1)}0`
}
