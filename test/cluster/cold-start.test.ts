import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { openIdentity } from '../../proxy/identity/sealed-identity.ts'
import { Client } from '../support/client.ts'
import { startCluster } from '../support/cluster.ts'
import { waitUntilWhole } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { waitForDatabase } from '../support/postgres-outages.ts'
import { seededRandom } from '../support/random.ts'

t.test(
  'I15: a proxy that starts while PostgreSQL and Redis are down serves what was there, and refuses writes',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, redis: true })
    const admin = cluster.client({ proxy: 1 })
    const json = { 'content-type': 'application/json' }
    const made = await admin.request('POST', '/api/v1/repositories', {
      body: Buffer.from(JSON.stringify({ name: 'open', anonymousRead: true })),
      headers: json,
    })
    t.equal(made.status, 201, made.body.toString())
    const known = new Map<string, string>()
    for (let index = 0; index < 30; index++) {
      const path = `${index % 2 === 0 ? 'raw' : 'open'}/some/${index % 20}`
      const answer = await admin.put(path, random.bytes(random.pick([0, 300, 70_000, 1_500_000])))
      t.ok(answer.status === 201 || answer.status === 200)
      known.set(path, String(answer.headers['etag']))
    }
    await admin.put('open/gone', Buffer.from('gone'))
    t.equal((await admin.delete('open/gone')).status, 204)

    const [proxy] = cluster.proxies
    const file = join(proxy!.stateFolder, 'identity.sealed')
    await eventually(
      'the change is in the copy',
      async () =>
        openIdentity(cluster.secret, await readFile(file)).tables.repositories.some(({ name }) => name === 'open'),
      { withinMs: 10_000 },
    )
    t.equal((await stat(file)).mode & 0o777, 0o600)
    const sealed = (await readFile(file)).toString('latin1')
    t.notMatch(sealed, /admin|argon2|scrypt/, 'nothing can be read in it')

    await waitUntilWhole(cluster)
    await proxy!.process.kill()
    await cluster.postgres.stop()
    await cluster.redis.stop()
    const startedAt = performance.now()
    await proxy!.process.start()
    figure(t, 'cold-start.serving', performance.now() - startedAt, 'ms')
    const client = cluster.client({ proxy: 0 })
    const anonymous = cluster.client({ proxy: 0, anonymous: true })
    const wrong = new Client(proxy!.url, { password: 'wrong' })
    t.teardown(() => wrong.close())
    for (const [path, etag] of known) {
      const answer = await client.get(path)
      t.equal(answer.status, 200, path)
      t.equal(answer.headers['etag'], etag, 'the same version')
      t.equal(answer.headers['holdfast-metadata'], 'shards')
      t.equal((await anonymous.get(path)).status, path.startsWith('open/') ? 200 : 401)
    }
    t.equal((await client.get('open/gone')).status, 404)
    t.equal((await client.request('GET', 'open/never', { headers: { accept: 'text/html' } })).status, 404)
    t.equal((await client.get('nowhere/never')).status, 404)
    const listed = await client.request('GET', 'open/some/', { headers: { accept: 'application/json' } })
    t.equal(listed.status, 200, 'listings come from the shards, too')
    t.equal(listed.headers['holdfast-metadata'], 'shards')
    for (const method of ['PUT', 'DELETE']) {
      const answer = await client.request(method, 'raw/some/0', {
        body: method === 'PUT' ? Buffer.from('x') : undefined,
      })
      t.equal(answer.status, 503)
      t.match(answer.headers['retry-after'], /^\d+$/)
    }
    const ready = await client.request('GET', '/readyz')
    t.equal(ready.status, 200)
    t.match(ready.body.toString(), /the database is away: reads only, with users and repositories as of 0 min ago/)
    const statuses: number[] = []
    for (let tries = 0; tries < 12; tries++) statuses.push((await wrong.get('raw/some/0')).status)
    t.equal(statuses[0], 401)
    t.equal(statuses.at(-1), 429, 'failed logins are limited')

    await cluster.postgres.start()
    const backAt = performance.now()
    await waitForDatabase([client], 'after')
    figure(t, 'cold-start.writes-back', performance.now() - backAt, 'ms')
    t.strictSame(cluster.crashes(), [])
  },
)
