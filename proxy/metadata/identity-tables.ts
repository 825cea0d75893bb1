/**
 * Repositories and users as rows, whatever columns they have: what a copy of them outside of this database is made of, and what
 * brings them back into an empty one.
 */
import type { Database } from './database.ts'
import { repositoryOf, type RepositoryRow } from './rows.ts'
import { statement } from './statement.ts'
import type { Repository, User } from './types.ts'

/** In the order in which they are restored. */
export const identityTableNames = ['repositories', 'users'] as const
export type IdentityTableName = (typeof identityTableNames)[number]
export type IdentityRow = Readonly<Record<string, unknown>>
export type IdentityTables = Readonly<Record<IdentityTableName, readonly IdentityRow[]>>

interface UserRow {
  readonly name: string
  readonly password_hash: string
  readonly admin: boolean
}

/** One statement, so that all is of one moment. */
const load = statement<{ tables: IdentityTables }>(
  'export-identity',
  `SELECT jsonb_build_object(
    'repositories', (SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY r.id), '[]') FROM repositories r),
    'users', (SELECT coalesce(jsonb_agg(to_jsonb(u) ORDER BY u.name), '[]') FROM users u)) AS tables`,
)

export async function exportIdentity(database: Database): Promise<IdentityTables> {
  const [row] = await database.query(load)
  return row!.tables
}

/** The rows in the words of the rest of the proxy. Pure. */
export function repositoriesIn(tables: IdentityTables): readonly Repository[] {
  return tables.repositories.map(row => repositoryOf(row as unknown as RepositoryRow))
}

export function usersIn(tables: IdentityTables): readonly User[] {
  return (tables.users as readonly unknown[] as readonly UserRow[]).map(row => ({
    name: row.name,
    passwordHash: row.password_hash,
    admin: row.admin,
  }))
}
