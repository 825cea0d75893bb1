import { HoldfastError } from '../../shared/errors.ts'
import type { Database } from './database.ts'
import { statement } from './statement.ts'
import type { ArtifactHistory, RestoreStore, User } from './types.ts'
import { bytea } from './value-parsers.ts'

/** What every new cluster has (first-start.ts), and what a cluster keeps for itself, is as good as nothing. */
const contents = statement<{ artifacts: boolean; repositories: boolean; users: boolean }>(
  'restore-contents',
  `SELECT
    EXISTS (SELECT FROM repositories r WHERE r.name NOT LIKE '.%'
      AND EXISTS (SELECT FROM artifacts a WHERE a.repository_id = r.id AND a.digest IS NOT NULL)) AS artifacts,
    EXISTS (SELECT FROM repositories r WHERE r.name NOT LIKE '.%' AND r.name <> 'raw') AS repositories,
    EXISTS (SELECT FROM users u WHERE u.name <> 'admin') AS users`,
)
const current = statement<{ value: string }>('restore-current', `SELECT value FROM settings WHERE key = 'restore'`)
const begin = statement<{ value: string }>(
  'restore-begin',
  `INSERT INTO settings (key, value) VALUES ('restore', $1) ON CONFLICT (key) DO NOTHING RETURNING value`,
)
const end = statement('restore-end', `DELETE FROM settings WHERE key = 'restore'`)
const addUsers = statement<{ name: string }>(
  'restore-users',
  `INSERT INTO users (name, password_hash, admin) SELECT * FROM unnest($1::text[], $2::text[], $3::boolean[])
  ON CONFLICT (name) DO NOTHING RETURNING name`,
)

const setHistory = statement(
  'restore-history',
  `UPDATE artifacts a SET created_by = h.created_by, created_at = least(to_timestamp(h.created_at / 1000), now()),
    updated_at = least(to_timestamp(h.updated_at / 1000), now())
  FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::double precision[], $6::double precision[])
      AS h (repository, path, digest, created_by, created_at, updated_at)
    JOIN repositories r ON r.name = h.repository
  WHERE a.repository_id = r.id AND a.path = h.path AND a.digest = h.digest
  RETURNING 1`,
)

export class Restores implements RestoreStore {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  async begin(backup: string): Promise<'begun' | 'resumed'> {
    if ((await this.#current()) === undefined) {
      const [found] = await this.#database.query(contents)
      const full = Object.entries(found ?? {}).filter(([, there]) => there)
      if (full.length > 0) {
        const what = full.map(([name]) => name).join(' and ')
        throw new HoldfastError('CONFLICT', `this cluster is not empty, it has ${what}: restore into a new one`)
      }
      if ((await this.#database.query(begin, [backup])).length > 0) return 'begun'
    }
    const other = await this.#current()
    if (other === backup) return 'resumed'
    throw new HoldfastError(
      'CONFLICT',
      `backup ${other ?? ''} is being restored here: finish that, or use a new cluster`,
    )
  }

  async addUsers(users: readonly User[]): Promise<readonly string[]> {
    if ((await this.#current()) === undefined) throw new HoldfastError('CONFLICT', 'no restore is under way')
    const rows = await this.#database.query(addUsers, [
      users.map(user => user.name),
      users.map(user => user.passwordHash),
      users.map(user => user.admin),
    ])
    return rows.map(({ name }) => name)
  }

  async setHistory(artifacts: readonly ArtifactHistory[]): Promise<number> {
    if ((await this.#current()) === undefined) throw new HoldfastError('CONFLICT', 'no restore is under way')
    const rows = await this.#database.query(setHistory, [
      artifacts.map(({ repository }) => repository),
      artifacts.map(({ path }) => path),
      artifacts.map(({ digest }) => bytea(digest)),
      artifacts.map(({ createdBy }) => createdBy),
      artifacts.map(({ createdAt }) => createdAt),
      artifacts.map(({ updatedAt }) => updatedAt),
    ])
    return rows.length
  }

  async end(): Promise<void> {
    await this.#database.query(end)
  }

  async #current(): Promise<string | undefined> {
    const [row] = await this.#database.query(current)
    return row?.value
  }
}
