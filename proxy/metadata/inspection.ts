/** What comparisons of shards with the database ask it: many rows at a time, by key or page by page, never a whole table. */
import type { Digest, Generation } from '../../shared/ids.ts'
import type { Database } from './database.ts'
import { artifactColumns, artifactOf, type ArtifactRow, blobColumns, blobOf, naming, type BlobRow } from './rows.ts'
import { statement } from './statement.ts'
import type { Artifact, InspectedArtifact, InspectedBlob, PathVersion } from './types.ts'
import { bytea } from './value-parsers.ts'

interface InspectedRow extends BlobRow {
  readonly state: InspectedBlob['state']
  readonly age_ms: number
  readonly named: boolean
}
interface VersionRow {
  readonly version: number | null
  readonly live: boolean
  readonly age_ms: number | null
}
interface ReferenceRow extends Partial<BlobRow> {
  readonly repository_id: number
  readonly repository: string
  readonly path: string
  readonly version: number
  readonly live: boolean
  readonly age_ms: number
  readonly state: InspectedBlob['state'] | null
}

/** A year at most: enough to compare with, and it fits an integer. */
const ageOf = (column: string): string =>
  `least(extract(epoch FROM clock_timestamp() - ${column}) * 1000, 31536000000)::bigint`

const inspect = statement<InspectedRow>(
  'inspect-blobs',
  `SELECT ${blobColumns}, b.state, ${ageOf('b.created_at')} AS age_ms,
    ${naming.artifact} OR ${naming.trash} OR ${naming.pin} AS named
  FROM blobs b WHERE b.digest = ANY ($1::bytea[])`,
)
const page = statement<BlobRow>(
  'page-of-blobs',
  `SELECT ${blobColumns} FROM blobs b WHERE b.digest > $1 AND b.state = 'live' ORDER BY b.digest LIMIT $2`,
)
const upstreamNamed = statement<ArtifactRow>(
  'upstream-names',
  `SELECT ${artifactColumns} FROM artifacts a JOIN blobs b ON b.digest = a.digest
  JOIN repositories r ON r.id = a.repository_id AND r.upstream IS NOT NULL WHERE a.digest = $1 LIMIT 10`,
)
const versions = statement<VersionRow>(
  'inspect-versions',
  `SELECT a.version, a.digest IS NOT NULL AS live, ${ageOf('a.updated_at')} AS age_ms
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (repository, path, ord)
  LEFT JOIN repositories r ON r.name = wanted.repository
  LEFT JOIN artifacts a ON a.repository_id = r.id AND a.path = wanted.path
  ORDER BY wanted.ord`,
)
const references = statement<ReferenceRow>(
  'page-of-references',
  `SELECT a.repository_id, r.name AS repository, a.path, a.version, a.digest IS NOT NULL AS live,
    ${ageOf('a.updated_at')} AS age_ms, b.state, ${blobColumns}
  FROM artifacts a JOIN repositories r ON r.id = a.repository_id LEFT JOIN blobs b ON b.digest = a.digest
  WHERE (a.repository_id, a.path) > ($1, $2 COLLATE "C") ORDER BY a.repository_id, a.path LIMIT $3`,
)

/** Those of these digests that have a row, in whatever state. */
export async function inspectBlobs(database: Database, digests: readonly Digest[]): Promise<readonly InspectedBlob[]> {
  const rows = await database.query(inspect, [digests.map(bytea)])
  return rows.map(row => ({ ...blobOf(row), state: row.state, ageMs: row.age_ms, named: row.named }))
}

/** Artifacts that name this digest in repositories with an upstream; ten at most. */
export async function upstreamNames(database: Database, digest: Digest): Promise<readonly Artifact[]> {
  return (await database.query(upstreamNamed, [bytea(digest)])).map(artifactOf)
}

/** Live blobs in the order of their digests. */
export async function pageOfBlobs(database: Database, after: string, limit: number) {
  return (await database.query(page, [bytea(after), limit])).map(blobOf)
}

/** The newest version of each path, deleted ones included; undefined: the database has never heard of it. */
export async function inspectVersions(
  database: Database,
  paths: readonly { readonly repository: string; readonly path: string }[],
): Promise<readonly (PathVersion | undefined)[]> {
  const rows = await database.query(versions, [paths.map(one => one.repository), paths.map(one => one.path)])
  return rows.map(({ version, live, age_ms: ageMs }) =>
    version === null ? undefined : { version, live, ageMs: ageMs ?? 0 },
  )
}

/** Artifacts and tombstones in the order of repository and path. */
export async function pageOfReferences(
  database: Database,
  after: { readonly repositoryId: number; readonly path: string },
  limit: number,
): Promise<readonly InspectedArtifact[]> {
  const rows = await database.query(references, [after.repositoryId, after.path, limit])
  return rows.map(row => ({
    repositoryId: row.repository_id,
    repository: row.repository,
    path: row.path,
    version: row.version,
    live: row.live,
    ageMs: row.age_ms,
    ...(row.state === null || row.state === undefined
      ? {}
      : { blob: { ...blobOf(row as BlobRow & { generation: Generation }), state: row.state } }),
  }))
}
