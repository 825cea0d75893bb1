import { hash } from 'node:crypto'
import pg from 'pg'
import t, { type Test } from 'tap'
import type { Client } from '../support/client.ts'
import { startCluster, type Cluster, type ProxyHandle } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { Load, tallyText } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'

/** Few paths, written through either proxy and read through both: where a stale cache would show. */
async function contend(t: Test, cluster: Cluster, writes: number): Promise<void> {
  const random = seededRandom(t)
  const history = new History()
  const clients = [0, 1].map(proxy => cluster.client({ proxy, history }))
  const paths = ['raw/hot/1', 'raw/hot/2', 'raw/hot/3']
  let left = writes
  const writer = async (): Promise<void> => {
    while (left-- > 0) {
      const path = random.pick(paths)
      const [here, there] = random.shuffled(clients) as [Client, Client]
      const body = random.bytes(random.pick([10, 2_000, 90_000]))
      const answer = random.next() < 0.1 ? await here.delete(path) : await here.put(path, body)
      if (answer.status !== 200 && answer.status !== 201 && answer.status !== 204 && answer.status !== 404) {
        t.fail(`a write failed: ${answer.status} ${answer.body.toString() || String(answer.error)}`)
      }
      // The history judges it: after the acknowledgement the other proxy must not know less.
      await there.get(path)
    }
  }
  let reading = true
  const reader = async (client: Client): Promise<void> => {
    while (reading) {
      const { status } = await client.get(random.pick(paths))
      if (status !== 200 && status !== 404) t.fail(`a read failed: ${status}`)
    }
  }
  const readers = clients.flatMap(client => [reader(client), reader(client)])
  await Promise.all([writer(), writer(), writer()])
  reading = false
  await Promise.all(readers)
  t.comment(`${history.size} operations on ${paths.length} paths`)
  t.strictSame(history.problems(), [], 'I37: the operations on each path have a linear order')
}

/** Nothing else writes: what the second proxy has just served from its cache must be gone when the first one answers. */
async function readYourWrites(t: Test, cluster: Cluster, rounds: number): Promise<void> {
  const random = seededRandom(t)
  const clients = [0, 1].map(proxy => cluster.client({ proxy }))
  let stale = 0
  for (let round = 0; round < rounds; round++) {
    const [here, there] = random.shuffled(clients) as [Client, Client]
    const body = random.bytes(500)
    const { status } = await here.put('raw/seen', body)
    if (status !== 200 && status !== 201) t.fail(`write ${round}: ${status}`)
    const seen = await there.get('raw/seen')
    if (!seen.body.equals(body)) stale++
    await there.get('raw/seen')
  }
  t.equal(stale, 0, 'a write through one proxy is visible through the other before its acknowledgement')
}

t.test('I37: two proxies that coordinate through PostgreSQL', async t => {
  const cluster = await startCluster(t, { proxies: 2 })
  await readYourWrites(t, cluster, 60)
  await contend(t, cluster, 150)
})

t.test('two proxies that coordinate through Redis', async t => {
  const cluster = await startCluster(t, { proxies: 2, redis: true })
  await t.test('I37: reads through one see the writes through the other', async t => {
    await readYourWrites(t, cluster, 60)
    await contend(t, cluster, 150)
  })
  await t.test(
    'I28, I37: Redis is flushed, killed, hung and back: no request fails, none answers from the past',
    async t => {
      const random = seededRandom(t)
      const history = new History()
      const clients = [0, 1].map(proxy => cluster.client({ history, proxy }))
      const load = new Load(t, { random, clients, smallPaths: 20, largePaths: 2 })
      const { redis } = cluster
      const faults: [string, () => unknown, () => unknown][] = [
        ['flushed', () => redis.flushAll(), () => redis.flushAll()],
        ['killed', () => redis.stop(), () => redis.start()],
        ['hung', () => redis.pause(), () => redis.resume()],
      ]
      await load.progress(40, 20)
      for (const [name, begin, end] of faults) {
        load.phase(`Redis ${name}`)
        await begin()
        await load.progress(80, 40)
        figure(t, 'redis.read', load.current.readMsMax, 'ms')
        figure(t, 'redis.write', load.current.writeMsMax, 'ms')
        load.phase(`Redis ${name}, and back`)
        await end()
        await load.progress(60, 30)
        t.comment(`${name}: ${tallyText(load.current)}`)
        t.strictSame(load.takeFailures(), [], `no request fails while Redis is ${name}`)
      }
      await load.stop()
      t.strictSame(load.wrong, [])
      t.strictSame(history.problems(), [])
      for (const client of clients) {
        await eventually('the caches are used again', async () => (await client.metric('holdfast_cache_lease')) === 1)
      }
      await waitForFullCopies(cluster, await clients[0]!.presentOf(history.paths))
    },
  )
  await t.test(
    'I27, I30: the primary is stopped past its lease: another one takes over, and it changes nothing when it wakes',
    async t => {
      await primaryStopped(t, cluster)
    },
  )
  t.strictSame(cluster.crashes(), [])
})

async function primaryOf(cluster: Cluster): Promise<ProxyHandle> {
  return eventually(
    'a primary',
    async () => {
      for (const [index, proxy] of cluster.proxies.entries()) {
        const client = cluster.client({ proxy: index, timeoutMs: 1_000 })
        if ((await client.metric('holdfast_primary')) === 1) return proxy
      }
      return undefined
    },
    { withinMs: 40_000, everyMs: 250 },
  )
}

async function primaryStopped(t: Test, cluster: Cluster): Promise<void> {
  const random = seededRandom(t)
  const first = await primaryOf(cluster)
  const tokenBefore = await newestToken(cluster)
  const other = cluster.client({ proxy: cluster.proxies.findIndex(proxy => proxy !== first) })
  // Repairs are due: whoever is primary has something to do.
  await cluster.nodes[0]!.process.kill()
  const bodies = Array.from({ length: 20 }, (_, index) => ({
    path: `raw/term/${index}`,
    body: random.bytes(index % 2 ? 300 : 100_000),
  }))
  for (const { path, body } of bodies) t.equal((await other.put(path, body)).status, 201)
  first.process.stop()
  const stoppedAt = performance.now()
  await cluster.nodes[0]!.process.start()
  // Only a write that has to wait for the hung proxy's cache lease to run out takes longer; the client's patience bounds it.
  const { status, ms } = await other.put('raw/term/hung', random.bytes(300))
  t.equal(status, 201, `a write with one proxy hung (${ms.toFixed(0)} ms)`)
  const token = await eventually(
    'a new term',
    async () => {
      const now = await newestToken(cluster)
      return now > tokenBefore && now
    },
    { withinMs: 40_000 },
  )
  figure(t, 'primary-paused.new-term', performance.now() - stoppedAt, 'ms')
  figure(t, 'primary-paused.write', ms, 'ms')
  await waitForFullCopies(cluster, [...bodies.map(({ path }) => path), 'raw/term/hung'])
  const before = await everything(cluster)
  first.process.cont()
  const woken = cluster.client({ proxy: cluster.proxies.indexOf(first) })
  await eventually('the old primary knows', async () => (await woken.metric('holdfast_primary')) === 0)
  for (const { path, body } of bodies) {
    t.equal((await woken.get(path)).headers['etag'], `"${hash('sha256', body)}"`, 'and serves what is true')
  }
  t.equal(await newestToken(cluster), token, 'the new term goes on')
  t.strictSame(await everything(cluster), before, 'the old primary changed nothing')
  t.equal((await woken.put('raw/term/woken', random.bytes(300))).status, 201, 'it takes writes again')
}

async function query(cluster: Cluster, text: string): Promise<Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: cluster.postgres.url })
  await client.connect()
  try {
    return (await client.query<Record<string, unknown>>(text)).rows
  } finally {
    await client.end()
  }
}

async function newestToken(cluster: Cluster): Promise<number> {
  const [row] = await query(cluster, "SELECT token::int FROM leaders WHERE role = 'primary'")
  return Number(row?.['token'] ?? 0)
}

/** The rows a primary could touch. */
async function everything(cluster: Cluster): Promise<unknown> {
  return {
    artifacts: await query(cluster, 'SELECT * FROM artifacts ORDER BY repository_id, path'),
    blobs: await query(cluster, 'SELECT * FROM blobs ORDER BY digest'),
    maps: await query(cluster, 'SELECT epoch FROM cluster_maps ORDER BY epoch'),
  }
}

t.test('wrong passwords are counted by all proxies together', async t => {
  const cluster = await startCluster(t, { proxies: 2 })
  const guessers = [0, 1].map(proxy => cluster.client({ proxy, password: 'wrong' }))
  let guesses = 0
  const guess = async (proxy: number): Promise<number> => (guesses++, (await guessers[proxy]!.get('raw/secret')).status)
  for (let i = 0; i < 10; i++) t.equal(await guess(i % 2), 401, 'five at each proxy')
  for (const proxy of [0, 1]) await eventually('blocked', async () => (await guess(proxy)) === 429, { everyMs: 200 })
  t.ok(guesses <= 16, `${guesses} guesses until both refused; counting alone, each takes ten and refuses the next`)
  t.ok(await cluster.client({ proxy: 1 }).metric('holdfast_node_up'), 'nobody else is')
})
