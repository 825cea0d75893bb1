import t, { type Test } from 'tap'
import type { Client } from '../support/client.ts'
import { startCluster } from '../support/cluster.ts'
import { waitForFullCopies, waitUntilWhole } from '../support/copies.ts'
import { History } from '../support/history.ts'
import { Load, tallyText } from '../support/load.ts'
import { outages, waitForDatabase } from '../support/postgres-outages.ts'
import { seededRandom, type Random } from '../support/random.ts'
import { view } from '../support/topology.ts'

interface Known {
  readonly path: string
  readonly body: Buffer
}

/** Writes from both proxies, each read by one of them only: the other knows it from the shards alone. */
async function prepare(random: Random, clients: readonly Client[], name: string): Promise<Known[]> {
  const known = Array.from({ length: 24 }, (_, index) => ({
    path: `raw/${name}/${index}`,
    body: random.bytes(random.pick([0, 400, 60_000, 150_000, 2_000_000])),
  }))
  for (const [index, { path, body }] of known.entries()) {
    const answer = await clients[index % 2]!.put(path, body)
    if (answer.status !== 201) throw new Error(`${path}: ${answer.status}`)
    if (index % 3 > 0) await clients[index % 2]!.get(path)
  }
  return known
}

/** All that was known is served, marked as coming from caches or shards; writes are refused at once. */
async function withoutDatabase(
  t: Test,
  clients: readonly Client[],
  known: readonly Known[],
  gone: string,
): Promise<void> {
  const sources = new Map<string, number>()
  for (const client of clients) {
    for (const { path, body } of known) {
      const answer = await client.get(path)
      if (answer.status !== 200 || !answer.body.equals(body)) t.fail(`${path}: ${answer.status} ${answer.body.length}`)
      const source = String(answer.headers['holdfast-metadata'] ?? 'unmarked')
      sources.set(source, (sources.get(source) ?? 0) + 1)
    }
    const removed = await client.get(gone)
    t.equal(removed.status, 404, 'I16: what was deleted stays deleted')
    t.equal((await client.get('raw/never/there')).status, 404, 'what never was is absent')
    // The promise is 2 s; what takes longer than the client's patience of 4 s has no answer here, status 0.
    for (const answer of [
      await client.request('PUT', 'raw/new', { body: Buffer.from('new'), timeoutMs: 4_000 }),
      await client.request('PUT', 'raw/new-large', { body: Buffer.alloc(1_000_000), timeoutMs: 4_000 }),
      await client.request('DELETE', known[0]!.path, { timeoutMs: 4_000 }),
    ]) {
      t.equal(answer.status, 503, `a write is refused after ${answer.ms.toFixed(0)} ms`)
      t.match(answer.headers['retry-after'], /^\d+$/, 'and says when to come back')
    }
  }
  t.comment(`answers: ${JSON.stringify(Object.fromEntries(sources))}`)
  t.ok((sources.get('shards') ?? 0) > 0, 'some answers came from references on the shards')
}

/** The database is back when its server accepts connections: from then on everything works again within 5 s. */
async function recovered(t: Test, clients: readonly Client[], known: readonly Known[]): Promise<void> {
  const since = performance.now()
  await waitForDatabase(clients, `after-${since}`)
  for (const client of clients) t.equal((await client.get(known[0]!.path)).status, 200)
  t.comment(`recovered after ${(performance.now() - since).toFixed(0)} ms`)
}

t.test(
  'I15: PostgreSQL is away: what is known stays readable, writes are refused in time, and all comes back',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2 })
    await waitUntilWhole(cluster)
    const clients = [0, 1].map(proxy => cluster.client({ proxy }))
    for (const [name, begin, end] of outages) {
      await t.test(`PostgreSQL ${name}`, async t => {
        const known = await prepare(random, clients, name.replaceAll(' ', '-'))
        const gone = `raw/gone/${name.replaceAll(' ', '-')}`
        await clients[0]!.put(gone, random.bytes(500))
        t.equal((await clients[1]!.delete(gone)).status, 204)
        await begin(cluster)
        await withoutDatabase(t, clients, known, gone)
        const { run, ...shown } = await view(cluster, 0)
        t.match(shown, { change: null, shards: [{ state: 'up' }] }, 'the topology is shown')
        t.equal(run, undefined, 'but nobody knows whether it is being changed')
        await end(cluster)
        await recovered(t, clients, known)
        for (const client of clients)
          t.equal((await client.get('raw/new')).status, 404, 'what was refused never happened')
      })
    }
    t.strictSame(cluster.crashes(), [])
  },
)

t.test(
  'I1, I4, I7: PostgreSQL is killed under load: reads go on, and what was acknowledged is there afterwards',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2 })
    await waitUntilWhole(cluster)
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ proxy, history }))
    const load = new Load(t, { random, clients, smallPaths: 200 })
    await load.progress(60, 40)
    for (let round = 0; round < 2; round++) {
      load.phase('PostgreSQL killed')
      await cluster.postgres.kill()
      await load.progress(150, 0)
      t.comment(`away: ${tallyText(load.current)}`)
      load.phase('PostgreSQL back')
      await cluster.postgres.start()
      await load.progress(100, 60)
    }
    await load.stop()
    const unexpected = load.failures.filter(text => !/: (PUT|DELETE) \S+: 503 /.test(text))
    t.comment(`${load.failures.length} writes refused`)
    t.strictSame(unexpected.slice(0, 8), [], 'writes are refused with 503, no read fails')
    t.strictSame(load.wrong, [])
    const alive = await clients[0]!.presentOf(history.paths)
    t.strictSame(history.problems(), [])
    await waitForFullCopies(cluster, alive)
    t.strictSame(cluster.crashes(), [])
  },
)
