/**
 * Repositories, users, cleanup policies and the settings of tasks as rows, whatever columns they have: what a copy of them outside of this
 * database is made of, and what brings them back into an empty one.
 */
import type { Database } from './database.ts'
import { repositoryOf, type RepositoryRow } from './rows.ts'
import { statement } from './statement.ts'
import type { Repository, User } from './types.ts'

/** In the order in which they are restored. */
export const identityTableNames = ['repositories', 'users', 'cleanup_policies', 'jobs'] as const
export type IdentityTableName = (typeof identityTableNames)[number]
export type IdentityRow = Readonly<Record<string, unknown>>
/** Copies of earlier releases have the first two only. */
export type IdentityTables = Readonly<Record<'repositories' | 'users', readonly IdentityRow[]>> & {
  readonly [Name in 'cleanup_policies' | 'jobs']?: readonly IdentityRow[]
}

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
    'users', (SELECT coalesce(jsonb_agg(to_jsonb(u) ORDER BY u.name), '[]') FROM users u),
    'cleanup_policies', (SELECT coalesce(jsonb_agg(to_jsonb(c) ORDER BY c.name), '[]') FROM cleanup_policies c),
    'jobs', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', j.name, 'schedule', j.schedule, 'enabled', j.enabled) ORDER BY j.name), '[]')
      FROM jobs j WHERE j.schedule IS NOT NULL OR NOT j.enabled)) AS tables`,
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
