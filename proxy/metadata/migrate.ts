import { hash } from 'node:crypto'
import type { Logger } from 'pino'
import { HoldfastError } from '../../shared/errors.ts'
import type { Migration } from './migrations/migration.ts'
import type { Session } from './session.ts'
import { statement } from './statement.ts'

/** Waiting for another proxy's migrations and running our own; far beyond what they take. */
const migrationTimeoutMs = 60_000
/**
 * Whoever waits for the lock of a table makes everybody wait behind it. So a step that cannot have it, for a backup reads the table, gives
 * up for now, and the proxies of the release before go on.
 */
const lockTimeoutMs = 500
/** Key of the advisory lock under which one process at a time changes the schema. */
const lockKey = 4831

/** A step as the database remembers it. */
export interface AppliedMigration {
  readonly number: number
  readonly name: string
  readonly schema: number
  readonly checksum: string
}

export function checksumOf(migration: Migration): string {
  return hash('sha256', migration.sql)
}

/**
 * Steps still to apply, by number. Pure. Throws SCHEMA_UNSUPPORTED if a known step was applied with other text, or if the
 * database is more than one schema version ahead: the release in between is needed to get there.
 */
export function planMigrations(
  known: readonly Migration[],
  applied: readonly AppliedMigration[],
): readonly Migration[] {
  const done = new Map(applied.map(one => [one.number, one]))
  for (const migration of known) {
    const found = done.get(migration.number)?.checksum
    const expected = checksumOf(migration)
    if (found !== undefined && found !== expected) {
      throw new HoldfastError(
        'SCHEMA_UNSUPPORTED',
        `migration ${migration.number} (${migration.name}) was applied to this database with other text`,
        { number: migration.number, expected, found },
      )
    }
  }
  const ours = Math.max(0, ...known.map(one => one.schema))
  const theirs = Math.max(0, ...applied.map(one => one.schema))
  if (theirs > ours + 1) {
    throw new HoldfastError(
      'SCHEMA_UNSUPPORTED',
      `the database has schema ${theirs}; this release knows ${ours} and works with ${ours + 1} at most: upgrade it`,
      { found: theirs, known: ours },
    )
  }
  return known.filter(one => !done.has(one.number)).sort((a, b) => a.number - b.number)
}

/**
 * Brings the schema up to date, once however many proxies start together. All or nothing. Rejects with METADATA_UNAVAILABLE if a table is in
 * use for longer: worth another attempt.
 */
export async function migrate(session: Session, known: readonly Migration[], log: Logger): Promise<void> {
  if ((await tableExists(session)) && planMigrations(known, await loadApplied(session)).length === 0) return
  await run(
    session,
    `BEGIN; SET LOCAL statement_timeout = ${migrationTimeoutMs - 5_000}; SELECT pg_advisory_xact_lock(${lockKey})`,
  )
  try {
    await run(session, `SET LOCAL lock_timeout = ${lockTimeoutMs}`)
    await run(
      session,
      `CREATE TABLE IF NOT EXISTS schema_migrations (
        number integer PRIMARY KEY, name text NOT NULL, schema integer NOT NULL, phase text NOT NULL,
        checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`,
    )
    for (const migration of planMigrations(known, await loadApplied(session))) {
      await run(session, migration.sql)
      const { number, name, schema, phase } = migration
      await session.query(recordApplied, [number, name, schema, phase, checksumOf(migration)], migrationTimeoutMs)
      log.info({ number, name, phase }, 'database schema migrated')
    }
    await run(session, 'COMMIT')
  } catch (error) {
    if (!session.broken) await run(session, 'ROLLBACK')
    throw error
  }
}

const tableThere = statement<{ there: boolean }>('', `SELECT to_regclass('schema_migrations') IS NOT NULL AS there`)
const listApplied = statement<AppliedMigration>('', 'SELECT number, name, schema, checksum FROM schema_migrations')
const recordApplied = statement(
  '',
  'INSERT INTO schema_migrations (number, name, schema, phase, checksum) VALUES ($1, $2, $3, $4, $5)',
)

async function run(session: Session, sql: string): Promise<void> {
  await session.query(statement('', sql), [], migrationTimeoutMs)
}

async function tableExists(session: Session): Promise<boolean> {
  const [row] = await session.query(tableThere, [], migrationTimeoutMs)
  return row?.there === true
}

async function loadApplied(session: Session): Promise<readonly AppliedMigration[]> {
  return session.query(listApplied, [], migrationTimeoutMs)
}
