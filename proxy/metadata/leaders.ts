import { HoldfastError } from '../../shared/errors.ts'
import type { Database } from './database.ts'
import { statement, type Queryable } from './statement.ts'

/** The role whose token the primary's tasks carry. */
export const primaryRole = 'primary'

const issue = statement<{ token: number }>(
  'issue-token',
  `INSERT INTO leaders AS l (role, token, holder, since) VALUES ($1, 1, $2, now())
  ON CONFLICT (role) DO UPDATE SET token = l.token + 1, holder = excluded.holder, since = excluded.since
  RETURNING token`,
)
const newest = statement<{ token: number }>('newest-token', 'SELECT token FROM leaders WHERE role = $1')
const share = statement<{ token: number }>('share-token', 'SELECT token FROM leaders WHERE role = $1 FOR SHARE')
const own = statement<{ token: number }>('own-token', 'SELECT token FROM leaders WHERE role = $1 FOR NO KEY UPDATE')

/** Waits for transactions under the old token; one whose process hangs is ended by the server after a second. */
export async function issueToken(database: Database, role: string, holder: string): Promise<number> {
  const [row] = await database.query(issue, [role, holder])
  return row!.token
}

/** 0: none was ever issued. */
export async function newestToken(database: Database, role: string): Promise<number> {
  const [row] = await database.query(newest, [role])
  return row?.token ?? 0
}

/**
 * A transaction that only the primary with the newest token gets to commit (I27). It holds the token's row, so a
 * takeover waits for its end or it sees the new token; 'exclusive' also keeps out the primary's own other work.
 */
export function fenced<T>(
  database: Database,
  token: number,
  work: (transaction: Queryable) => Promise<T>,
  mode: 'shared' | 'exclusive' = 'shared',
): Promise<T> {
  return database.transaction(async transaction => {
    const [row] = await transaction.query(mode === 'shared' ? share : own, [primaryRole])
    if (row?.token !== token) {
      throw new HoldfastError('LEASE_LOST', 'another process is primary now', { token, newest: row?.token })
    }
    return work(transaction)
  })
}
