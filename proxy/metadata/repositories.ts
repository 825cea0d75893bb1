import { HoldfastError } from '../../shared/errors.ts'
import type { Database } from './database.ts'
import { repositoryColumns, repositoryOf, type RepositoryRow } from './rows.ts'
import { statement, type Queryable } from './statement.ts'
import type { NewRepository, Repository, RepositoryChange, Upstream } from './types.ts'

/** What needs a repository to be empty against commits into it: the class of the advisory lock that commit_changes_2 shares. */
export const repositoryLockClass = 4832
const trashDaysDefault = 7

const list = statement<RepositoryRow>(
  'list-repositories',
  `SELECT ${repositoryColumns} FROM repositories ORDER BY name`,
)
const create = statement<RepositoryRow>(
  'create-repository',
  `INSERT INTO repositories (name, redeploy, artifact_bytes_max, anonymous_read, trash_days, upstream)
  VALUES ($1, $2, $3, $4, $5, $6::jsonb)
  ON CONFLICT (name) DO NOTHING RETURNING ${repositoryColumns}`,
)
const change = statement<RepositoryRow>(
  'change-repository',
  `UPDATE repositories SET redeploy = coalesce($2, redeploy),
    artifact_bytes_max = CASE WHEN $3::boolean THEN $4::bigint ELSE artifact_bytes_max END,
    anonymous_read = coalesce($5, anonymous_read), trash_days = coalesce($6, trash_days),
    upstream = CASE WHEN $7::boolean THEN $8::jsonb ELSE upstream END
  WHERE name = $1 RETURNING ${repositoryColumns}`,
)
const find = statement<{ id: number; proxied: boolean }>(
  'find-repository',
  'SELECT id, upstream IS NOT NULL AS proxied FROM repositories WHERE name = $1',
)
const lock = statement('lock-repository', `SELECT pg_advisory_xact_lock(${repositoryLockClass}, $1)`)
const hasArtifacts = statement<{ used: boolean }>(
  'repository-has-artifacts',
  'SELECT EXISTS (SELECT FROM artifacts WHERE repository_id = $1 AND digest IS NOT NULL) AS used',
)
const remove = statement('delete-repository', 'DELETE FROM repositories WHERE id = $1')

export async function listRepositories(database: Queryable): Promise<readonly Repository[]> {
  const rows = await database.query(list)
  return rows.map(repositoryOf)
}

export async function createRepository(database: Database, repository: NewRepository): Promise<Repository> {
  const { name, redeploy = 'allow', artifactBytesMax = null, anonymousRead = false } = repository
  const { trashDays = trashDaysDefault, upstream = null } = repository
  const values = [name, redeploy, artifactBytesMax, anonymousRead, trashDays, jsonOf(upstream)]
  const [row] = await database.query(create, values)
  if (row === undefined) throw new HoldfastError('CONFLICT', `there is a repository '${name}' already`, { name })
  return repositoryOf(row)
}

/** `force`: an upstream may be given although there are artifacts, which its own will take the place of. */
export async function changeRepository(
  database: Database,
  name: string,
  wanted: RepositoryChange,
  force = false,
): Promise<Repository> {
  if (wanted.upstream == null || force) return update(database, name, wanted)
  return database.transaction(async transaction => {
    const [repository] = await transaction.query(find, [name])
    if (repository === undefined) throw notFound(name)
    if (!repository.proxied) {
      await transaction.query(lock, [repository.id])
      const [row] = await transaction.query(hasArtifacts, [repository.id])
      if (row?.used !== false) throw ownArtifacts(name)
    }
    return update(transaction, name, wanted)
  })
}

async function update(database: Queryable, name: string, wanted: RepositoryChange): Promise<Repository> {
  const { redeploy = null, artifactBytesMax, anonymousRead = null, trashDays = null, upstream } = wanted
  const size = [artifactBytesMax !== undefined, artifactBytesMax ?? null]
  const source = [upstream !== undefined, jsonOf(upstream ?? null)]
  const [row] = await database.query(change, [name, redeploy, ...size, anonymousRead, trashDays, ...source])
  if (row === undefined) throw notFound(name)
  return repositoryOf(row)
}

/** Waits for commits in flight into the repository. Tombstones stay: their ids are never used again. */
export async function deleteRepository(database: Database, name: string): Promise<void> {
  await database.transaction(async transaction => {
    const [repository] = await transaction.query(find, [name])
    if (repository === undefined) throw notFound(name)
    await transaction.query(lock, [repository.id])
    const [row] = await transaction.query(hasArtifacts, [repository.id])
    if (row?.used !== false) throw new HoldfastError('CONFLICT', `repository '${name}' is not empty`, { name })
    await transaction.query(remove, [repository.id])
  })
}

/** As a parameter, null is SQL's and not JSON's. */
function jsonOf(upstream: Upstream | null): string | null {
  return upstream === null ? null : JSON.stringify(upstream)
}

function ownArtifacts(name: string): HoldfastError {
  const message = `repository '${name}' has artifacts of its own, which an upstream's would replace for good: create another repository for the upstream, or force it ("force": true, --force)`
  return new HoldfastError('CONFLICT', message, { name })
}

function notFound(name: string): HoldfastError {
  return new HoldfastError('REPOSITORY_NOT_FOUND', `no repository '${name}'`, { name })
}
