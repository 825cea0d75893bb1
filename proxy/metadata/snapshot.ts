/** The whole database as of one moment, page by page: for backups. */
import { listPolicies } from './cleanup.ts'
import { listRepositories } from './repositories.ts'
import { artifactColumns, artifactOf, type ArtifactRow, blobColumns, blobOf, type BlobRow } from './rows.ts'
import { statement, type Queryable } from './statement.ts'
import type { MetadataSnapshot } from './types.ts'
import { bytea } from './value-parsers.ts'

const clock = statement<{ time: number }>('snapshot-time', 'SELECT now() AS time')
const users = statement<{ name: string; password_hash: string; admin: boolean }>(
  'snapshot-users',
  'SELECT name, password_hash, admin FROM users ORDER BY name',
)
const taskSettings = statement<{ name: string; schedule: string | null; enabled: boolean }>(
  'snapshot-task-settings',
  'SELECT name, schedule, enabled FROM jobs WHERE schedule IS NOT NULL OR NOT enabled ORDER BY name',
)
const namedBlobs = statement<BlobRow>(
  'snapshot-named-blobs',
  `SELECT ${blobColumns} FROM blobs b
  WHERE b.digest > $1
    AND EXISTS (SELECT FROM artifacts a WHERE a.digest = b.digest AND a.repository_id <> ALL ($3::integer[]) OFFSET 0)
  ORDER BY b.digest LIMIT $2`,
)
const artifacts = statement<ArtifactRow>(
  'snapshot-artifacts',
  `SELECT ${artifactColumns} FROM artifacts a JOIN blobs b ON b.digest = a.digest
  WHERE (a.repository_id, a.path) > ($1, $2 COLLATE "C") AND a.digest IS NOT NULL AND a.repository_id <> ALL ($4::integer[])
  ORDER BY a.repository_id, a.path LIMIT $3`,
)

/** `queryable`: a transaction that sees one moment. */
export async function readSnapshot<T>(
  queryable: Queryable,
  work: (snapshot: MetadataSnapshot) => Promise<T>,
): Promise<T> {
  const [now] = await queryable.query(clock)
  return work({
    time: now!.time,
    repositories: () => listRepositories(queryable),
    users: async () => {
      const rows = await queryable.query(users)
      return rows.map(row => ({ name: row.name, passwordHash: row.password_hash, admin: row.admin }))
    },
    policies: () => listPolicies(queryable),
    taskSettings: async () => {
      const rows = await queryable.query(taskSettings)
      // In the table, null is the task's own, and '' is none.
      return rows.map(row => ({ ...row, schedule: row.schedule === '' ? null : (row.schedule ?? 'default') }))
    },
    namedBlobs: async (after, limit, without = []) =>
      (await queryable.query(namedBlobs, [bytea(after), limit, without])).map(blobOf),
    artifacts: async (after, limit, without = []) =>
      (await queryable.query(artifacts, [after.repositoryId, after.path, limit, without])).map(artifactOf),
  })
}
