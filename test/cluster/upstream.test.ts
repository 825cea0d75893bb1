/** Repositories with an upstream on a real cluster: kept like anything else, and what all shards have lost comes from there again. */
import t, { type Test } from 'tap'
import type { Client } from '../support/client.ts'
import { startCluster, type Cluster, type ClusterOptions } from '../support/cluster.ts'
import { waitForFullCopies, waitUntilWhole } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { seededRandom, type Random } from '../support/random.ts'
import { flipBit } from '../support/shard-files.ts'
import { startUpstream, type UpstreamServer } from '../support/upstream-server.ts'

interface World {
  readonly cluster: Cluster
  readonly client: Client
  readonly upstream: UpstreamServer
}

async function start(t: Test, options: ClusterOptions = {}): Promise<World> {
  const upstream = await startUpstream(t)
  const proxyFlags = ['--upstream-allow', '127.0.0.1', '--hot-cache-bytes', '0', '--anti-entropy-ms', '1h']
  const cluster = await startCluster(t, { shardsPerNode: 1, proxyFlags, ...options })
  const client = cluster.client()
  const body = Buffer.from(JSON.stringify({ name: 'mirror', upstream: { url: upstream.url } }))
  const made = await client.request('POST', '/api/v1/repositories', { body, headers: { 'content-type': 'application/json' } }) // prettier-ignore
  t.equal(made.status, 201, made.body.toString())
  return { cluster, client, upstream }
}

/** A small artifact, kept in the log, one in a file, and one that is streamed; all on all shards. */
async function fill({ cluster, client, upstream }: World, random: Random): Promise<Map<string, Buffer>> {
  const bodies = new Map<string, Buffer>()
  for (const [name, bytes] of [
    ['small', 9_000],
    ['file', 200_000],
    ['large', 3_000_000],
  ] as const) {
    // prettier-ignore
    const body = random.bytes(bytes)
    upstream.files.set(`app/1.0/${name}`, body)
    bodies.set(`mirror/app/1.0/${name}`, body)
    const answer = await client.request('GET', `mirror/app/1.0/${name}`)
    if (answer.status !== 200 || !answer.body.equals(body)) throw new Error(`${name}: ${answer.status}`)
  }
  await waitForFullCopies(cluster, bodies.keys())
  return bodies
}

async function spoil({ cluster }: World, body: Buffer): Promise<void> {
  for (const shard of cluster.nodes.flatMap(node => node.shards)) {
    if (!(await flipBit(shard, body, 5_000))) throw new Error(`not on ${shard.id}`)
  }
}

t.test('I9, I25: all copies are bad: the reader gets what the upstream has, and the copies are back', async t => {
  const world = await start(t)
  const { cluster, client, upstream } = world
  const bodies = await fill(world, seededRandom(t))
  for (const body of bodies.values()) await spoil(world, body)
  const asked = upstream.asked.length
  for (const [path, body] of bodies) {
    const answer = await client.get(path)
    t.equal(answer.status, 200, `${path}: ${answer.body.subarray(0, 200).toString('latin1')}`)
    t.ok(answer.body.equals(body), path)
    figure(t, 'upstream.healed', answer.ms, 'ms')
  }
  t.equal(upstream.asked.length, asked + bodies.size, 'each was fetched once more')
  await waitForFullCopies(cluster, bodies.keys())
  for (const [path, body] of bodies) t.ok((await client.get(path)).body.equals(body), path)
  t.equal(upstream.asked.length, asked + bodies.size)
  t.strictSame(cluster.crashes(), [])
})

t.test('I9: what nobody reads is brought back by the primary; bytes that the upstream has changed are not', async t => {
  const world = await start(t)
  const { cluster, client, upstream } = world
  const bodies = await fill(world, seededRandom(t))
  for (const body of bodies.values()) await spoil(world, body)
  upstream.files.set('app/1.0/file', Buffer.alloc(200_000))
  for (const path of bodies.keys()) {
    // Every copy is looked at, as a scrub does.
    const query = new URLSearchParams({ path: path.slice('mirror/'.length) })
    const answer = await client.request('GET', `/api/v1/repositories/mirror/verify?${query.toString()}`)
    t.equal(answer.status, 200, answer.body.toString())
  }
  const good = [...bodies.keys()].filter(path => !path.endsWith('/file'))
  await waitForFullCopies(cluster, good)
  for (const path of good) t.ok((await client.get(path)).body.equals(bodies.get(path)!), path)
  t.equal(
    (await client.get('mirror/app/1.0/file')).status,
    503,
    'a version that has other bytes now is not taken for it',
  )
  await eventually('one is left', async () => (await client.metric('holdfast_hopeless_blobs')) === 1)
  t.strictSame(cluster.crashes(), [])
})

t.test(
  'I7, I15: without PostgreSQL kept artifacts are served from the shards, others pass through; nothing is invented',
  async t => {
    const world = await start(t)
    const { cluster, client, upstream } = world
    const random = seededRandom(t)
    const bodies = await fill(world, random)
    await waitUntilWhole(cluster)
    const fresh = random.bytes(2_000_000)
    upstream.files.set('app/2.0/new', fresh)
    await cluster.postgres.kill()
    const asked = upstream.asked.length
    for (const [path, body] of bodies) {
      const answer = await client.get(path)
      t.ok(answer.status === 200 && answer.body.equals(body), `${path}: ${answer.status}`)
    }
    t.equal(upstream.asked.length, asked, 'what is kept is not asked for')
    for (let time = 0; time < 2; time += 1) {
      const passed = await client.request('GET', 'mirror/app/2.0/new')
      t.ok(passed.status === 200 && passed.body.equals(fresh), `${passed.status}`)
      t.equal(passed.headers['holdfast-metadata'], 'upstream')
    }
    t.equal((await client.request('GET', 'mirror/app/2.0/none')).status, 404, 'the upstream says so')
    await cluster.postgres.start()
    await eventually('it is kept again', async () => {
      return (await client.request('GET', 'mirror/app/2.0/new')).headers['etag'] !== undefined
    })
    t.strictSame(cluster.crashes(), [])
  },
)

t.test('I6: two zones are away: what is kept comes from the upstream, checked against its digest', async t => {
  const world = await start(t)
  const { cluster, client, upstream } = world
  const bodies = await fill(world, seededRandom(t))
  for (const node of cluster.nodes) await node.process.kill()
  for (const [path, body] of bodies) {
    const answer = await client.request('GET', path, { timeoutMs: 20_000 })
    t.ok(answer.status === 200 && answer.body.equals(body), `${path}: ${answer.status}`)
  }
  upstream.files.set('app/1.0/large', Buffer.alloc(3_000_000))
  const other = await client.request('GET', 'mirror/app/1.0/large', { timeoutMs: 20_000 })
  t.not(other.status, 200, 'other bytes are no complete answer (I5)')
})
