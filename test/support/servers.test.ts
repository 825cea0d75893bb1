import { Redis } from 'ioredis'
import pg from 'pg'
import t from 'tap'
import { startTestPostgres } from './postgres.ts'
import { startTestRedis } from './redis.ts'

/** Long enough for an answer on a busy machine that would answer at all, short enough to wait for. */
const silenceMs = 300

t.test('a test PostgreSQL hands out databases, and can be paused, killed and started again', async t => {
  const server = await startTestPostgres(t)
  const [one, two] = [await server.createDatabase(), await server.createDatabase()]
  t.not(one, two)
  const connection = new pg.Client({ connectionString: one })
  connection.on('error', () => {}) // it is killed below
  await connection.connect()
  await connection.query('create table kept as select 42 as answer')
  const copy = new pg.Client({ connectionString: two })
  await copy.connect()
  await t.rejects(copy.query('select * from kept'), { code: '42P01' }, 'databases are apart')
  await copy.end()

  await server.pause()
  const answer = connection.query<{ answer: number }>('select answer from kept')
  const silence = new Promise<string>(resolve => setTimeout(resolve, silenceMs, 'silence'))
  t.equal(await Promise.race([answer, silence]), 'silence')
  await server.resume()
  t.strictSame((await answer).rows, [{ answer: 42 }])

  await server.kill()
  t.equal(server.pid, undefined)
  await server.start()
  const templated = new pg.Client({ connectionString: await server.createDatabase(one) })
  await templated.connect()
  t.strictSame((await templated.query('select answer from kept')).rows, [{ answer: 42 }])
  await templated.end()
  await server.stop()
  await server.start()
  t.type(server.pid, 'number')
})

t.test('a test Redis can be paused, emptied, stopped and started again', async t => {
  const server = await startTestRedis(t)
  const client = new Redis(server.url, { retryStrategy: () => 20 })
  client.on('error', () => {}) // it is stopped below
  t.teardown(() => client.disconnect())
  await client.set('key', 'value')
  server.pause()
  const answer = client.get('key')
  const silence = new Promise<string>(resolve => setTimeout(resolve, silenceMs, 'silence'))
  t.equal(await Promise.race([answer, silence]), 'silence')
  server.resume()
  t.equal(await answer, 'value')
  await server.flushAll()
  t.equal(await client.get('key'), null)
  await client.set('key', 'lost with the server')
  await server.stop()
  t.equal(server.pid, undefined)
  await server.start()
  t.equal(await client.get('key'), null, 'the same address')
})
