/** Connections to PostgreSQL: opened again, given up in time, and what their errors may say. */
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import pg from 'pg'
import { pino } from 'pino'
import t from 'tap'
import { Database } from '../../../proxy/metadata/database.ts'
import { Pool } from '../../../proxy/metadata/pool.ts'
import { Session } from '../../../proxy/metadata/session.ts'
import { translateError } from '../../../proxy/metadata/sql-errors.ts'
import { type Queryable, statement } from '../../../proxy/metadata/statement.ts'
import { parseServers } from '../../../proxy/postgres-servers.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { silent } from '../artifacts/fixtures.ts'
import { open } from './fixtures.ts'

const server = await startTestPostgres(t)
const url = await server.createDatabase()

t.test('closing takes no longer because the server froze just before', async t => {
  const metadata = await open(t, url)
  await metadata.listRepositories()
  await server.pause()
  t.teardown(() => server.resume())
  const closed = metadata.close().then(() => 'closed')
  t.equal(
    await Promise.race([closed, sleep(4_000, 'waits', { ref: false })]),
    'closed',
    'half a second of politeness, and a busy machine',
  )
})

t.test('when no connection can be had, each waiter gets an attempt', async t => {
  const session = { broken: false, openedAt: performance.now() } as unknown as Session
  let attempts = 0
  const pool = new Pool({
    sessionsMax: 2,
    open: async () => {
      if (++attempts <= 3) throw new HoldfastError('METADATA_UNAVAILABLE', 'too many clients', { sqlState: '53300' })
      return session
    },
  })
  const startedAt = performance.now()
  const fates = await Promise.allSettled(
    Array.from({ length: 6 }, () => pool.acquire(20_000).then(one => pool.release(one))),
  )
  t.same(
    fates.map(({ status }) => status === 'fulfilled'),
    [false, false, false, true, true, true],
  )
  t.ok(performance.now() - startedAt < 10_000, 'nobody waited for his time-out')
})

t.test('what PostgreSQL quotes of a row is nowhere in an error', async t => {
  const metadata = await open(t, url)
  await metadata.listRepositories()
  const events = { answered: () => {}, lost: () => {} }
  const session = await Session.open(parseServers(url), { timeoutMs: 10_000, pipeline: false }, events)
  t.teardown(() => session.close())
  const hash = '$argon2id$v=19$m=65536$verysecret'
  const insert = statement('', 'INSERT INTO users (name, password_hash, admin) VALUES ($1, $2, NULL)')
  const error = await session.query(insert, ['ann', hash], 10_000).then(
    () => t.fail('accepted'),
    (thrown: unknown) => thrown,
  )
  t.match(error, { code: 'INTERNAL', data: { sqlState: '23502' } })
  let logged = ''
  const log = pino({}, { write: text => void (logged += text) })
  log.error({ err: error, cause: (error as Error).cause }, 'refused')
  t.match(logged, /users|not-null/)
  for (const shown of [logged, inspect(error, { depth: 10, showHidden: true })]) t.notMatch(shown, /verysecret/)
})

t.test('a transaction that was left waiting until the server gave it up is done once more, and once', async t => {
  const database = new Database(
    { url, poolSize: 4, commitLanes: 1 },
    { log: silent, prepare: async () => {}, onDown: () => {} },
  )
  t.teardown(() => database.close())
  await database.start()
  await database.query(statement('', 'CREATE TABLE done (at integer)'))
  const insert = statement('', 'INSERT INTO done VALUES (1)')
  const count = statement<{ count: number }>('', 'SELECT count(*)::int AS count FROM done')
  let tries = 0
  await database.transaction(async transaction => {
    await transaction.query(insert)
    // As a process without a processor would.
    if (++tries === 1) for (const until = performance.now() + 1_500; performance.now() < until;);
    await transaction.query(insert)
  })
  t.equal(tries, 2)
  t.same(await database.query(count), [{ count: 2 }])

  let closed = 0
  const closes = async (transaction: Queryable): Promise<void> => {
    closed++
    await transaction.query(statement('', 'SELECT pg_terminate_backend(pg_backend_pid())'))
  }
  await t.rejects(database.transaction(closes), { code: 'METADATA_UNAVAILABLE' })
  t.ok(closed <= 2, 'not again and again')
})

t.test('a login that PostgreSQL refuses says whose it is, and which setting to look at', async t => {
  const wrong = url.replace('//holdfast@', '//nosuch:s3cret@')
  const events = { answered: () => {}, lost: () => {} }
  const opening = Session.open(parseServers(wrong), { timeoutMs: 10_000, pipeline: false }, events)
  const message = /^PostgreSQL refuses the login \(role "nosuch" does not exist\): .* HOLDFAST_POSTGRES_URL$/
  await t.rejects(opening, { code: 'CONFIG_INVALID', message })
  const error = await opening.catch((error: unknown) => error)
  t.notMatch(inspect(error, { depth: 9 }), /s3cret/)
  const refused = Object.assign(new pg.DatabaseError('password authentication failed for user "ann"', 9, 'error'), {
    code: '28P01',
  })
  t.match(translateError(refused, 'connect'), { code: 'CONFIG_INVALID', message: /user "ann"\): look at/ })
})
