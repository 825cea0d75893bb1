import type { Database } from './database.ts'
import { statement } from './statement.ts'
import type { AuditEntry, AuditLine, User } from './types.ts'

const find = statement<{ name: string; password_hash: string; admin: boolean }>(
  'find-user',
  'SELECT name, password_hash, admin FROM users WHERE name = $1',
)
const put = statement(
  'put-user',
  `INSERT INTO users (name, password_hash, admin) VALUES ($1, $2, $3)
  ON CONFLICT (name) DO UPDATE SET password_hash = excluded.password_hash, admin = excluded.admin, updated_at = now()`,
)
const append = statement(
  'append-audit',
  'INSERT INTO audit (user_name, action, subject, outcome, address) VALUES ($1, $2, $3, $4, $5)',
)

const list = statement<AuditLine>(
  'list-audit',
  `SELECT id, at, user_name AS "user", action, subject, outcome, address FROM audit
  WHERE id < $1 ORDER BY id DESC LIMIT $2`,
)

export async function findUser(database: Database, name: string): Promise<User | undefined> {
  const [row] = await database.read(find, [name])
  return row && { name: row.name, passwordHash: row.password_hash, admin: row.admin }
}

export async function putUser(database: Database, user: User): Promise<void> {
  await database.query(put, [user.name, user.passwordHash, user.admin])
}

export async function appendAudit(database: Database, entry: AuditEntry): Promise<void> {
  await database.query(append, [entry.user, entry.action, entry.subject, entry.outcome, entry.address])
}

export function listAudit(database: Database, before: number, limit: number): Promise<readonly AuditLine[]> {
  return database.read(list, [before, limit])
}
