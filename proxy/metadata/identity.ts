import { randomUUID } from 'node:crypto'
import { HoldfastError } from '../../shared/errors.ts'
import type { Session } from './session.ts'
import { statement } from './statement.ts'

/** Which cluster a database belongs to, and which life of the database this is. */
export interface Identity {
  readonly clusterId: string
  readonly incarnation: string
}

const timeoutMs = 1_900
const insertOnce = statement(
  'insert-settings',
  `INSERT INTO settings (key, value) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (key) DO NOTHING`,
)
const load = statement<{ key: string; value: string }>(
  'load-identity',
  `SELECT key, value FROM settings WHERE key IN ('cluster_id', 'incarnation')`,
)

/** Reads the identity; a new database is given one. CONFIG_INVALID if it belongs to another cluster than `clusterId`. */
export async function ensureIdentity(session: Session, clusterId: string | undefined): Promise<Identity> {
  const found = (await read(session)) ?? (await create(session, clusterId))
  if (clusterId !== undefined && found.clusterId !== clusterId) {
    throw new HoldfastError('CONFIG_INVALID', 'the database belongs to another cluster', {
      expected: clusterId,
      found: found.clusterId,
    })
  }
  return found
}

async function create(session: Session, clusterId: string | undefined): Promise<Identity> {
  const values = [clusterId ?? randomUUID(), randomUUID()]
  await session.query(insertOnce, [['cluster_id', 'incarnation'], values], timeoutMs)
  return (await read(session))!
}

async function read(session: Session): Promise<Identity | undefined> {
  const rows = await session.query(load, [], timeoutMs)
  const clusterId = rows.find(row => row.key === 'cluster_id')?.value
  const incarnation = rows.find(row => row.key === 'incarnation')?.value
  if (clusterId === undefined || incarnation === undefined) return undefined
  return { clusterId, incarnation }
}
