/** One fault at a time, with the product's own times where the time is the promise. */
import { Redis } from 'ioredis'
import { fork } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { openCoordinator } from '../../../proxy/coordination/open-coordinator.ts'
import { defaultTimings } from '../../../proxy/coordination/timings.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { startTestRedis } from '../../support/redis.ts'
import type { WorkerSetup } from './cache-worker.ts'
import { execute, opener, postgresCluster, redisCluster, type Cluster } from './cluster.ts'
import { eventually, fastTimings, member, recordTold, silentLog, type OpenWorker } from './contract.ts'
import { builtFile } from '../../support/paths.ts'

const postgres = await startTestPostgres(t)
const redis = await startTestRedis(t)
const program = builtFile('test/proxy/coordination/cache-worker.ts')

async function timed(work: Promise<unknown>): Promise<number> {
  const from = performance.now()
  await work
  return performance.now() - from
}

async function onRedis(...command: [string, ...string[]]): Promise<void> {
  const client = new Redis(redis.url, { lazyConnect: true, retryStrategy: () => null })
  await client.connect()
  await client.call(...command)
  client.disconnect()
}

const slowOptions = { timings: defaultTimings }

for (const driver of ['postgres', 'redis'] as const) {
  const makeCluster = (): Promise<Cluster> =>
    driver === 'redis' ? redisCluster(postgres, redis) : postgresCluster(postgres)

  t.test(
    `I28, I37: ${driver} forgets all leases, and a writer waits until the forgotten ones have run out`,
    async t => {
      const cluster = await makeCluster()
      const openWorker = opener(async () => cluster)
      const [a, b] = [await openWorker(t, 'a', slowOptions), await openWorker(t, 'b', slowOptions)]
      await a.cache.invalidate(['warm'])
      const told = recordTold(b)
      for (let round = 0; round < 2; round++) {
        await eventually('both cache', () => a.cache.usable() && b.cache.usable())
        told.length = 0
        if (driver === 'redis') await redis.flushAll()
        else await execute(cluster.postgresUrl, 'truncate cache_leases')
        await a.cache.invalidate(['k'])
        t.ok(
          !b.cache.usable() || told.includes('all') || told.flat().includes('k'),
          'b cannot answer from an older entry',
        )
      }
    },
  )

  t.test(`I30: a frozen worker delays a write through ${driver} by 4.5 s at most, the next one not at all`, async t => {
    const cluster = await makeCluster()
    const openWorker = opener(async () => cluster)
    const a = await openWorker(t, 'a', slowOptions)
    const child = fork(program, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
    t.teardown(() => child.kill('SIGKILL'))
    await execute(cluster.postgresUrl, 'create table model (key int primary key, version int not null)')
    const setup: WorkerSetup = {
      ...cluster,
      member: member('frozen'),
      timings: defaultTimings,
      seed: 1,
      keys: 1,
      writePauseMs: 1e6,
      prepare: false,
    }
    child.send(setup)
    await eventually('it holds a lease', async () => (await a.members()).length === 2)
    await a.cache.invalidate(['warm'])
    child.kill('SIGSTOP')
    await eventually('it stands still', async () =>
      (await readFile(`/proc/${child.pid}/stat`, 'utf8')).includes(') T '),
    )
    const frozenAt = performance.now()
    await a.cache.invalidate(['k'])
    const waitedMs = performance.now() - frozenAt
    t.ok(waitedMs > 900 && waitedMs < 4_500, `waited ${Math.round(waitedMs)} ms`)
    t.ok((await timed(a.cache.invalidate(['k']))) < 500, 'it is revoked')
    child.kill('SIGCONT')
    await eventually('the thawed worker is back', async () => (await a.members()).length === 2)
    await eventually('and acknowledges again', async () => (await timed(a.cache.invalidate(['k']))) < 900)
  })

  t.test(`connections cut under ${driver}: the cache is emptied and used again`, async t => {
    const cluster = await makeCluster()
    const openWorker = opener(async () => cluster)
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    const told = recordTold(b)
    for (let round = 0; round < 3; round++) {
      await eventually('both cache', () => a.cache.usable() && b.cache.usable())
      told.length = 0
      const cut =
        driver === 'redis'
          ? onRedis('CLIENT', 'KILL', 'TYPE', 'pubsub')
          : execute(
              cluster.postgresUrl,
              `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'holdfast coordination' and datname = current_database()`,
            )
      await Promise.all([cut, a.cache.invalidate([`k${round}`])])
      t.ok(!b.cache.usable() || told.flat().includes(`k${round}`) || told.includes('all'), 'no older entry is used')
      await eventually('b was told all', () => told.includes('all'))
    }
  })

  t.test(`with ${driver}, a writer that dies between prepare and commit blocks a key for a while only`, async t => {
    const openWorker = opener(makeCluster)
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    await b.cache.invalidate(['warm'])
    await a.cache.prepare(['k'])
    const told = recordTold(b)
    await eventually('b caches other keys', () => b.cache.usable('other'))
    t.notOk(b.cache.usable('k'))
    await eventually('the mark ends', () => b.cache.usable('k'), 4 * fastTimings.markMs)
    t.ok(told.flat().includes('k'), 'what was read under the mark is dropped with it')
    t.ok((await timed(a.cache.invalidate(['k']))) < 500, 'late, it is told to everybody')
    t.ok(told.flat().filter(key => key === 'k').length >= 2)
  })

  t.test(`with ${driver}, a held role is renewed beyond its lease, and its holder may be asked for`, async t => {
    const openWorker = opener(makeCluster)
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    let term = await a.acquire('primary')
    await eventually('a is primary', async () => (term ??= await a.acquire('primary')) !== undefined)
    await sleep(fastTimings.roleTtlMs * 1.5)
    t.notOk(term?.signal.aborted)
    t.equal(await b.acquire('primary'), undefined)
    t.equal(await b.holder('primary'), 'a')
  })
}

/** Redis in trouble: nothing fails, one write waits for the leases, the next ones don't, and all comes back. */
async function redisOutage(t: Test, openWorker: OpenWorker, begin: () => unknown, end: () => unknown): Promise<void> {
  const [a, b] = [await openWorker(t, 'a', slowOptions), await openWorker(t, 'b', slowOptions)]
  await a.cache.invalidate(['warm'])
  const told = recordTold(b)
  await begin()
  const firstMs = await timed(a.cache.invalidate(['k']))
  t.ok(firstMs < 4_500, `the first write waited ${Math.round(firstMs)} ms`)
  t.notOk(b.cache.usable(), 'nobody caches')
  t.ok((await timed(a.cache.invalidate(['k']))) < 500, 'the next write need not wait')
  t.ok((await timed(b.cache.invalidate(['k']))) < 2_500, 'nor much one of another worker')
  t.equal(await a.acquire('primary'), undefined, 'tasks pause')
  t.match(a.state(), { up: false, reason: /redis|timed out/i, since: Number })
  await end()
  await eventually('caches are used again', () => a.cache.usable() && b.cache.usable(), 20_000)
  t.ok(told.includes('all'), 'emptied before')
  await a.cache.invalidate(['k'])
  t.ok((await timed(a.cache.invalidate(['k']))) < 500, 'all is as before')
  t.same(a.state().up, true)
}

t.test('I28: Redis is stopped and started', async t => {
  await redisOutage(
    t,
    opener(() => redisCluster(postgres, redis)),
    () => redis.stop(),
    () => redis.start(),
  )
})

t.test('I28: Redis freezes and thaws', async t => {
  await redisOutage(
    t,
    opener(() => redisCluster(postgres, redis)),
    () => redis.pause(),
    () => redis.resume(),
  )
})

t.test('a role ends in time when Redis dies, and is given away again when it is back', async t => {
  const openWorker = opener(() => redisCluster(postgres, redis))
  const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
  let term = await a.acquire('primary')
  await eventually('a is primary', async () => (term ??= await a.acquire('primary')) !== undefined)
  await redis.stop()
  const diedAt = performance.now()
  await eventually('the term ends', () => term?.signal.aborted === true)
  t.ok(performance.now() - diedAt < fastTimings.roleGiveUpMs + 300, 'within the time after which it gives up')
  t.equal(await b.acquire('primary'), undefined)
  await redis.start()
  await eventually('b is primary', async () => (await b.acquire('primary')) !== undefined)
  t.equal(await a.holder('primary'), 'b')
})

t.test('PostgreSQL away, Redis there: nobody can commit, so caches stay in use', async t => {
  const own = await startTestPostgres(t)
  const openWorker = opener(() => redisCluster(own, redis))
  const a = await openWorker(t, 'a')
  await eventually('it has joined', () => a.cache.usable())
  await own.stop()
  const until = performance.now() + 4 * fastTimings.leaseTtlMs
  let usable = 0
  let looks = 0
  for (; performance.now() < until; looks++) {
    if (a.cache.usable()) usable++
    await sleep(5)
  }
  t.ok(usable > looks * 0.8, `usable in ${usable} of ${looks} looks`)
  await own.start()
  await eventually('and after it', () => a.cache.usable())
})

t.test(
  'PostgreSQL frozen, Redis there: somebody may yet commit, so caches are bypassed, and Redis is not blamed',
  async t => {
    const own = await startTestPostgres(t)
    const openWorker = opener(() => redisCluster(own, redis))
    const a = await openWorker(t, 'a')
    await eventually('it has joined', () => a.cache.usable())
    await own.pause()
    await eventually('caches are bypassed', () => !a.cache.usable())
    await eventually('the reason is told', () => a.state().reason?.startsWith('PostgreSQL does not say ') === true)
    await own.resume()
    await eventually('caches are used again', () => a.cache.usable())
    t.equal(a.state().up, true)
  },
)

t.test(
  'PostgreSQL away without Redis: caches are bypassed, and an invalidation says that it could not be told',
  async t => {
    const own = await startTestPostgres(t)
    const openWorker = opener(() => postgresCluster(own))
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    const told = recordTold(b)
    await own.stop()
    await t.rejects(a.cache.invalidate(['k']), { code: 'COORDINATION_UNAVAILABLE' })
    t.notOk(a.cache.usable() || b.cache.usable())
    t.ok((await timed(a.cache.prepare(['k']))) < 1_500, 'prepare() never rejects')
    await own.start()
    await eventually('caches are used again', () => a.cache.usable() && b.cache.usable())
    await eventually('what was owed is told', () => told.flat().includes('k'))
  },
)

t.test('a worker starts with nothing there, says so, and works once the servers are', async t => {
  const own = await startTestPostgres(t)
  const cluster = await redisCluster(own, redis)
  await own.stop()
  await redis.stop()
  const a = await openCoordinator({
    ...cluster,
    member: member('a'),
    issueToken: async () => 1,
    log: silentLog,
    timings: fastTimings,
  })
  t.teardown(() => a.close())
  t.ok((await timed(a.start())) < 3_000)
  t.notOk(a.cache.usable())
  t.match(a.state(), { up: false, reason: String })
  t.equal(await a.acquire('primary'), undefined)
  t.equal(await a.holder('primary'), undefined)
  t.same(await a.members(), [member('a')])
  await own.start()
  await redis.start()
  await eventually('it works', () => a.cache.usable())
})

t.test('a password in the URL opens Redis and is never logged', async t => {
  const cluster = await redisCluster(postgres, redis)
  await onRedis('CONFIG', 'SET', 'requirepass', 'open sesame')
  t.teardown(async () => {
    await redis.stop()
    await redis.start()
  })
  const lines: string[] = []
  const keep = (fields: object, message: string): void => void lines.push(JSON.stringify(fields) + message)
  const log = { debug: keep, info: keep, warn: keep, error: keep }
  const open = async (password: string) => {
    const redisUrl = redis.url.replace('//', `//:${encodeURIComponent(password)}@`)
    const deps = { member: member(password.slice(0, 4)), issueToken: async () => 1, log, timings: fastTimings }
    const coordinator = await openCoordinator({ ...cluster, redisUrl, ...deps })
    t.teardown(() => coordinator.close())
    await coordinator.start()
    return coordinator
  }
  const [right, wrong] = [await open('open sesame'), await open('shut barley')]
  await eventually('the right one caches', () => right.cache.usable())
  t.notOk(wrong.cache.usable())
  await eventually('the failure is logged', () => lines.some(line => /WRONGPASS|AUTH/i.test(line)))
  t.notMatch(lines.join('\n'), /sesame|barley/)
})
