import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import t, { type Test } from 'tap'
import { metadata } from '../../cli/metadata.ts'
import { openIdentity } from '../../proxy/identity/sealed-identity.ts'
import type { Client } from '../support/client.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { waitUntilWhole } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { waitForDatabase } from '../support/postgres-outages.ts'
import { seededRandom, type Random } from '../support/random.ts'

async function sql(url: string, ...statements: string[]): Promise<pg.QueryResult> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    let result: pg.QueryResult | undefined
    for (const text of statements) result = await client.query(text)
    return result!
  } finally {
    await client.end()
  }
}

const other = (url: string, name: string): string => url.replace(/@\/[^?]*\?/, `@/${name}?`)
const nameIn = (url: string): string => /@\/([^?]*)\?/.exec(url)![1]!

/** Another database takes the place of the cluster's while everybody runs; `source` undefined: an empty one. */
async function exchangeDatabase({ postgres: { url } }: Cluster, source: string | undefined): Promise<void> {
  const name = nameIn(url)
  await sql(
    other(url, 'template1'),
    `ALTER DATABASE "${name}" ALLOW_CONNECTIONS false`,
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${name}'`,
    `ALTER DATABASE "${name}" RENAME TO "${name}_before_${Date.now()}"`,
    source === undefined ? `CREATE DATABASE "${name}"` : `ALTER DATABASE "${source}" RENAME TO "${name}"`,
  )
}

/** A copy of the database as it is now; everybody loses its connections for a moment. */
async function copyDatabase({ postgres: { url } }: Cluster, copy: string): Promise<void> {
  const name = nameIn(url)
  await sql(
    other(url, 'template1'),
    `ALTER DATABASE "${name}" ALLOW_CONNECTIONS false`,
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${name}'`,
    `CREATE DATABASE "${copy}" TEMPLATE "${name}"`,
    `ALTER DATABASE "${name}" ALLOW_CONNECTIONS true`,
  )
}

async function run(cluster: Cluster, args: readonly string[], env: Record<string, string> = {}) {
  let [out, err] = ['', '']
  const write = { out: (text: string) => void (out += text), err: (text: string) => void (err += text) }
  const nodes = cluster.nodes.map(({ url }) => url).join(',')
  const secrets = { HOLDFAST_SECRET: cluster.secret, HOLDFAST_POSTGRES_URL: cluster.postgres.url }
  const code = await metadata({ args: [...args, '--storage-nodes', nodes], env: { ...secrets, ...env } }, write)
  return { code, out, err }
}

/** Writes, overwrites and deletes at random; what was acknowledged last of each path. */
async function change(
  t: Test,
  clients: readonly Client[],
  random: Random,
  known: Map<string, string | null>,
  count: number,
) {
  for (let index = 0; index < count; index++) {
    const client = clients[index % clients.length]!
    const path = `${random.pick(['raw', 'open'])}/some/${random.pick(['a', 'b', 'ä'])}/${Math.floor(random.next() * 60)}`
    if (known.get(path) != null && random.next() < 0.3) {
      const answer = await client.delete(encodeURI(path))
      if (answer.status !== 204) t.fail(`DELETE ${path}: ${answer.status}`)
      known.set(path, null)
    } else {
      const answer = await client.put(encodeURI(path), random.bytes(random.pick([0, 3, 200, 70_000])))
      if (answer.status !== 201 && answer.status !== 200) t.fail(`PUT ${path}: ${answer.status}`)
      known.set(path, String(answer.headers['etag']))
    }
  }
}

async function differences(client: Client, known: ReadonlyMap<string, string | null>): Promise<string[]> {
  const wrong: string[] = []
  for (const [path, etag] of known) {
    const answer = await client.get(encodeURI(path))
    const found = answer.status === 200 ? answer.headers['etag'] : answer.status === 404 ? null : answer.status
    if (found !== etag) wrong.push(`${path}: ${String(found)} instead of ${etag}`)
  }
  return wrong
}

async function createRepository(client: Client, settings: Record<string, unknown>): Promise<number> {
  const body = Buffer.from(JSON.stringify(settings))
  const headers = { 'content-type': 'application/json' }
  return (await client.request('POST', '/api/v1/repositories', { body, headers })).status
}

/** The version of the copy of users and repositories that is on the shards; undefined: there is none. */
async function identityVersion({ postgres: { url } }: Cluster): Promise<unknown> {
  const { rows } = await sql(
    url,
    `SELECT a.version FROM artifacts a JOIN repositories r ON r.id = a.repository_id WHERE r.name = '.holdfast'`,
  )
  return (rows[0] as { version: unknown } | undefined)?.version
}

async function start(t: Test) {
  const cluster = await startCluster(t, { proxies: 2, shardsPerNode: 1 })
  const clients = [0, 1].map(proxy => cluster.client({ proxy }))
  await waitUntilWhole(cluster)
  t.equal(await createRepository(clients[0]!, { name: 'open', anonymousRead: true }), 201)
  return { cluster, clients, random: seededRandom(t), known: new Map<string, string | null>() }
}

t.test('I13: a database that was restored from an older copy is not used until it has caught up', async t => {
  const { cluster, clients, random, known } = await start(t)
  await change(t, clients, random, known, 80)
  await copyDatabase(cluster, 'old_copy')
  await waitForDatabase(clients, 'copied')
  await change(t, clients, random, known, 150)
  await exchangeDatabase(cluster, 'old_copy')

  const [client] = clients
  await eventually('the proxies know', async () => (await client!.metric('holdfast_metadata_behind')) === 1)
  const refused = await client!.request('PUT', 'raw/refused', { body: Buffer.from('x') })
  t.equal(refused.status, 503)
  t.match(refused.body.toString(), /metadata catch-up/)
  t.match((await client!.request('GET', '/readyz')).body.toString(), /metadata catch-up/)
  for (const one of clients) t.strictSame(await differences(one, known), [], 'reads know better than the database')

  t.equal((await run(cluster, ['rebuild'])).code, 1, 'it is not empty')
  const behindAt = performance.now()
  const caughtUp = await run(cluster, ['catch-up'])
  t.equal(caughtUp.code, 0, caughtUp.err)
  t.comment(caughtUp.out)
  await waitForDatabase(clients, 'after')
  figure(t, 'database-old.back', performance.now() - behindAt, 'ms')
  for (const one of clients) {
    t.strictSame(await differences(one, known), [], 'every acknowledged write and deletion is there')
  }
  await change(t, clients, random, known, 60)
  t.strictSame(await differences(client!, known), [])
  t.match((await client!.request('GET', '/api/v1/gc')).body.toString(), /"armed":false/)
  const again = await run(cluster, ['catch-up', '--json'])
  t.equal(again.code, 0, again.err)
  t.match(JSON.parse(again.out), { written: 0, deleted: 0, withoutBytesCount: 0 })
  await waitForDatabase(clients, 'again')
  t.strictSame(await differences(client!, known), [])
  t.strictSame(cluster.crashes(), [])
})

t.test('I14: an empty database is filled from the shards alone', async t => {
  const { cluster, clients, random, known } = await start(t)
  await change(t, clients, random, known, 250)
  const { stateFolder } = cluster.proxies[0]!
  const first = await eventually('users and repositories are on the shards', () => identityVersion(cluster))
  t.equal(await createRepository(clients[0]!, { name: 'late' }), 201)
  // Its step looks at the tables after the one that wrote the first copy, hence after 'open' was made.
  await eventually('and once more', async () => (await identityVersion(cluster)) !== first, { withinMs: 40_000 })
  const [lost, ...rest] = [...known].filter(([, etag]) => etag !== null)
  t.ok(lost !== undefined && rest.length > 10)
  await exchangeDatabase(cluster, undefined)
  const [client] = clients
  await eventually('the proxies know', async () => (await client!.metric('holdfast_metadata_behind')) === 1)
  t.strictSame(await differences(client!, known), [], 'reads go on')

  const emptyAt = performance.now()
  const rebuilt = await run(cluster, ['rebuild'])
  t.equal(rebuilt.code, 0, rebuilt.err)
  t.comment(rebuilt.out)
  t.notMatch(rebuilt.out, /password|made anew/)
  await waitForDatabase(clients, 'rebuilt')
  figure(t, 'database-lost.back', performance.now() - emptyAt, 'ms')
  figure(t, 'database-lost.paths', known.size, 'count')
  for (const one of clients) t.strictSame(await differences(one, known), [], 'the same path -> digest map')
  const anonymous = cluster.client({ anonymous: true })
  const open = [...known].find(([path, etag]) => path.startsWith('open/') && etag !== null)![0]
  t.equal((await anonymous.get(encodeURI(open))).status, 200, 'repositories have their settings')
  t.equal((await anonymous.get('raw/rebuilt/0')).status, 401)
  await change(t, clients, random, known, 60)
  // A proxy that starts afresh knows the new database only.
  await cluster.proxies[0]!.process.restart()
  t.strictSame(await differences(client!, known), [])
  t.match((await client!.request('GET', '/api/v1/gc')).body.toString(), /"armed":false/)
  const armed = await client!.request('POST', '/api/v1/gc/arm', {
    body: Buffer.from('{}'),
    headers: { 'content-type': 'application/json' },
  })
  t.equal(armed.status, 200)
  await eventually('the new identity is kept', async () => {
    const sealed = await readFile(join(stateFolder, 'identity.sealed'))
    return openIdentity(cluster.secret, sealed).incarnation.startsWith('r1~')
  })
  t.strictSame(cluster.crashes(), [])
})
