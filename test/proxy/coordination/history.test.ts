/**
 * I37 and I28 under random faults: worker processes with real caches, and a checker of what they saw. Longer runs:
 * HOLDFAST_TEST_SECONDS; another run of the same faults: HOLDFAST_TEST_SEED.
 */
import { Redis } from 'ioredis'
import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { startTestPostgres, type TestPostgres } from '../../support/postgres.ts'
import { startTestRedis, type TestRedis } from '../../support/redis.ts'
import { randomOf, type WorkerEvent, type WorkerSetup } from './cache-worker.ts'
import { execute, postgresCluster, redisCluster, type Cluster } from './cluster.ts'
import { eventually, fastTimings, member } from './contract.ts'
import { builtFile } from '../../support/paths.ts'

const seconds = Number(process.env['HOLDFAST_TEST_SECONDS'] ?? 12)
const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
const keys = 6
/** Marks outlive what a frozen writer may spend between prepare and commit, as they do in the product. */
const timings = { ...fastTimings, markMs: 6_000 }
const program = builtFile('test/proxy/coordination/cache-worker.ts')

type Seen = Extract<WorkerEvent, { version: number }>
interface Fault {
  readonly name: string
  readonly run: () => Promise<void>
}

/**
 * Versions of a key are handed out by its row, so a history is linearizable exactly if nobody who began after somebody
 * else had ended saw an older version (or wrote one that is not newer). Writes whose outcome their writer never learned
 * (it was killed, or PostgreSQL did not answer) may take effect at any time, so what shows them proves nothing; without
 * `prepare` neither does what a read showed before the write was acknowledged.
 */
function firstViolation(history: readonly Seen[], prepared: boolean): string | undefined {
  for (let key = 0; key < keys; key++) {
    const ofKey = history.filter(one => one.key === key)
    const known = new Set(ofKey.filter(one => one.kind === 'write').map(one => one.version))
    const ended = ofKey.filter(one => one.kind === 'write' || (prepared && known.has(one.version)))
    ended.sort((a, b) => a.to - b.to)
    let at = 0
    let newest: Seen | undefined
    for (const one of [...ofKey].sort((a, b) => a.from - b.from)) {
      for (let next = ended[at]; next !== undefined && next.to < one.from; next = ended[++at]) {
        if (newest === undefined || next.version > newest.version) newest = next
      }
      if (newest === undefined) continue
      const stale = one.kind === 'write' ? one.version <= newest.version : one.version < newest.version
      if (stale) return `${JSON.stringify(one)} began after ${JSON.stringify(newest)} had ended`
    }
  }
  return undefined
}

class Workers {
  readonly events: WorkerEvent[] = []
  readonly #children: ChildProcess[] = []

  async start(setup: WorkerSetup): Promise<ChildProcess> {
    const child = fork(program, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
    this.#children.push(child)
    const ready = new Promise<void>(resolve => {
      child.on('message', event => {
        if ((event as WorkerEvent).kind === 'ready') resolve()
        else this.events.push(event as WorkerEvent)
      })
    })
    child.send(setup)
    await ready
    return child
  }

  async stop(): Promise<void> {
    for (const child of this.#children.splice(0)) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const exited = once(child, 'exit')
      if (child.connected) child.send('stop')
      const timer = setTimeout(() => child.kill('SIGKILL'), 20_000)
      await exited
      clearTimeout(timer)
    }
  }

  kill(): void {
    for (const child of this.#children) child.kill('SIGKILL')
  }

  of<Kind extends WorkerEvent['kind']>(kind: Kind): Extract<WorkerEvent, { kind: Kind }>[] {
    return this.events.filter((one): one is Extract<WorkerEvent, { kind: Kind }> => one.kind === kind)
  }
}

async function history(t: Test, cluster: Cluster, makeFaults: (workers: Workers, children: ChildProcess[]) => Fault[]) {
  if (!existsSync(program)) throw new Error('build first: npx tsc -b')
  t.comment(`seed ${seed} (HOLDFAST_TEST_SEED)`)
  await execute(cluster.postgresUrl, 'create table model (key int primary key, version int not null)')
  await execute(cluster.postgresUrl, `insert into model select k, 0 from generate_series(0, ${keys - 1}) k`)
  const random = randomOf(seed)
  const workers = new Workers()
  t.teardown(() => workers.kill())
  const setup = (at: number): WorkerSetup => ({
    ...cluster,
    member: member(`worker-${at}-${Math.floor(random() * 1e9)}`),
    timings,
    seed: seed + at,
    keys,
    writePauseMs: 15,
    prepare: true,
    role: 'primary',
  })
  const children = await Promise.all([0, 1, 2].map(at => workers.start(setup(at))))
  const restart: Fault = {
    name: 'kill -9 and start of a worker',
    run: async () => {
      const at = Math.floor(random() * children.length)
      children[at]?.kill('SIGKILL')
      children[at] = await workers.start(setup(at))
    },
  }
  const freeze: Fault = {
    name: 'SIGSTOP of a worker past its lease',
    run: async () => {
      const child = children[Math.floor(random() * children.length)]
      child?.kill('SIGSTOP')
      await sleep(200 + random() * 2 * fastTimings.leaseTtlMs)
      child?.kill('SIGCONT')
    },
  }
  const faults = [restart, freeze, ...makeFaults(workers, children)]
  const counts = new Map<string, number>()
  const end = performance.now() + seconds * 1_000
  while (performance.now() < end) {
    const fault = faults[Math.floor(random() * faults.length)]
    if (fault === undefined) break
    counts.set(fault.name, (counts.get(fault.name) ?? 0) + 1)
    await fault.run()
    await sleep(random() * 1_200)
  }
  await sleep(2 * fastTimings.suspendMs)
  const lateFrom = workers.events.length
  await eventually('caches are used again after the last fault', () =>
    workers.events.slice(lateFrom).some(one => one.kind === 'read' && one.cached),
  )
  await workers.stop()

  const [reads, writes, failed] = [workers.of('read'), workers.of('write'), workers.of('failed')]
  const cached = reads.filter(one => one.cached).length
  const slowest = Math.max(...writes.map(one => one.waitedMs))
  t.comment(`faults: ${JSON.stringify([...counts])}`)
  t.comment(`${reads.length} reads (${cached} cached), ${writes.length} writes, slowest wait ${Math.round(slowest)} ms`)
  t.comment(
    `${failed.length} failed: ${[...new Set(failed.map(one => `${one.what}: ${one.reason}`))].slice(0, 5).join('; ')}`,
  )
  t.equal(firstViolation([...reads, ...writes], true), undefined, 'no stale read')
  t.ok(cached > reads.length / 20, 'caches were used')
  t.ok(writes.length > seconds * 5, 'writes went on')
  const terms = workers.of('term').sort((a, b) => a.from - b.from)
  const overlap = terms.find((term, at) => at > 0 && term.from < (terms[at - 1]?.to ?? 0))
  t.equal(overlap, undefined, 'no two workers held the role at the same time')
  t.ok(terms.length > 0, 'the role was held')
  return { failed, slowest }
}

function postgresFaults(postgres: TestPostgres, random: () => number): Fault[] {
  return [
    {
      name: 'frozen postgres',
      run: async () => {
        await postgres.pause()
        await sleep(random() * 2 * fastTimings.leaseTtlMs)
        await postgres.resume()
      },
    },
    {
      name: 'kill -9 and start of postgres',
      run: async () => {
        await postgres.kill()
        await sleep(random() * 500)
        await postgres.start()
      },
    },
    {
      name: 'coordination connections cut',
      run: async () => {
        await execute(
          postgres.url,
          `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'holdfast coordination' and random() < 0.6`,
        ).catch(() => undefined) // it may be starting
      },
    },
  ]
}

function redisFaults(redis: TestRedis, random: () => number): Fault[] {
  const cut = async (...filter: string[]): Promise<void> => {
    const client = new Redis(redis.url, { lazyConnect: true, retryStrategy: () => null })
    await client.connect()
    await client.call('CLIENT', 'KILL', ...filter)
    client.disconnect()
  }
  return [
    { name: 'FLUSHALL', run: () => redis.flushAll() },
    { name: 'subscriptions cut', run: () => cut('TYPE', 'pubsub') },
    { name: 'redis connections cut', run: () => cut('SKIPME', 'yes', 'TYPE', 'normal') },
    {
      name: 'frozen redis',
      run: async () => {
        redis.pause()
        await sleep(random() * 3 * fastTimings.leaseTtlMs)
        redis.resume()
      },
    },
    {
      name: 'kill -9 and start of redis',
      run: async () => {
        await redis.stop()
        await sleep(random() * 3 * fastTimings.leaseTtlMs)
        await redis.start()
      },
    },
  ]
}

t.test('I37: with PostgreSQL alone, no read is stale, whatever is killed, cut or frozen', async t => {
  const postgres = await startTestPostgres(t)
  const random = randomOf(seed ^ 1)
  await history(t, await postgresCluster(postgres), () => postgresFaults(postgres, random))
})

t.test('I28, I37: with Redis, no read is stale and no write fails, whatever happens to Redis', async t => {
  const [postgres, redis] = [await startTestPostgres(t), await startTestRedis(t)]
  const random = randomOf(seed ^ 2)
  const result = await history(t, await redisCluster(postgres, redis), () => redisFaults(redis, random))
  t.same(result.failed, [], 'nothing failed')
  t.ok(result.slowest < 4_500, 'no write waited long')
})

t.test('I37: with Redis and PostgreSQL both in trouble, no read is stale', async t => {
  const [postgres, redis] = [await startTestPostgres(t), await startTestRedis(t)]
  const random = randomOf(seed ^ 3)
  const cluster = await redisCluster(postgres, redis)
  await history(t, cluster, () => [...redisFaults(redis, random), ...postgresFaults(postgres, random)])
})
