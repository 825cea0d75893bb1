import { hash } from 'node:crypto'
import pg from 'pg'
import t, { type Test } from 'tap'
import { basic, type Client } from '../support/client.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { unconfirmed, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { History } from '../support/history.ts'
import { Load, tallyText } from '../support/load.ts'
import { seededRandom, type Random } from '../support/random.ts'
import { RawConnection } from '../support/raw-http.ts'
import { blobFiles, stagedFiles } from '../support/shard-files.ts'

/** An upload that has sent a part of its body and holds still there. */
async function beginUpload(cluster: Cluster, path: string, body: Buffer, fraction: number): Promise<RawConnection> {
  const connection = await RawConnection.open(cluster.proxies[0]!.url)
  const head = [
    `PUT /repository/${path} HTTP/1.1`,
    'Host: holdfast',
    `Authorization: ${basic('admin', cluster.adminPassword)}`,
    `Content-Length: ${body.length}`,
  ]
  await connection.send(head.join('\r\n') + '\r\n\r\n')
  await connection.send(body.subarray(0, Math.floor(body.length * fraction)))
  return connection
}

t.test(
  'I8: a proxy is killed in the middle of uploads: nothing half-visible, the other one serves at once',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, proxyFlags: ['--abandoned-ms', '3000'] })
    const other = cluster.client({ proxy: 1 })
    const half = [0, 0.1, 0.5, 0.9, 0.999].flatMap((fraction, index) => [
      { path: `raw/half/small-${index}`, body: random.bytes(30_000), fraction },
      { path: `raw/half/large-${index}`, body: random.bytes(6_000_000), fraction },
    ])
    const uploads = await Promise.all(
      half.map(({ path, body, fraction }) => beginUpload(cluster, path, body, fraction)),
    )
    // The large ones have reached the shards.
    await eventually('staged bytes on the shards', async () => (await stagedFiles(cluster)).length >= 8)
    await cluster.proxies[0]!.process.kill()

    const body = random.bytes(100_000)
    const { status, ms } = await other.put('raw/meanwhile', body)
    t.equal(status, 201, `the other proxy takes a write at once (${ms.toFixed(0)} ms)`)
    for (const { path } of half) t.equal((await other.get(path)).status, 404, `${path} is not visible`)
    for (const upload of uploads) t.strictSame((await upload.answers()).length, 0, 'no upload was acknowledged')
    await eventually('no leftovers in tmp', async () => (await stagedFiles(cluster)).length === 0)
    t.same(await unconfirmed(cluster), [], 'nothing became a blob')

    await cluster.proxies[0]!.process.start()
    const first = cluster.client()
    for (const { path, body } of half) {
      t.equal((await first.put(path, body)).status, 201, `the same upload succeeds afterwards: ${path}`)
      t.equal((await other.get(path)).body.equals(body), true)
    }
    await waitForFullCopies(cluster, [...half.map(({ path }) => path), 'raw/meanwhile'])
  },
)

t.test(
  'I8: bytes that were durable when their proxy died before the commit stay invisible and are reclaimed',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, proxyFlags: ['--abandoned-ms', '3000'] })
    const other = cluster.client({ proxy: 1 })
    const kept = random.bytes(200_000)
    t.equal((await other.put('raw/kept', kept)).status, 201)
    const lost = [500, 60_000, 200_000, 3_000_000].map((size, index) => ({
      path: `raw/lost-${index}`,
      body: random.bytes(size),
    }))
    await withCommitsBlocked(cluster, async () => {
      const uploads = await Promise.all(lost.map(({ path, body }) => beginUpload(cluster, path, body, 1)))
      const digests = lost.map(({ body }) => hash('sha256', body))
      await eventually('all bytes durable, none committed', async () => {
        const found = new Set((await unconfirmed(cluster)).map(({ digest }) => digest))
        return digests.every(digest => found.has(digest))
      })
      await cluster.proxies[0]!.process.kill()
      for (const upload of uploads) upload.close()
    })
    for (const { path } of lost) t.equal((await other.get(path)).status, 404, `${path} is not visible`)
    await eventually('leftovers reclaimed', async () => (await unconfirmed(cluster)).length === 0, { withinMs: 60_000 })
    const files = await blobFiles(cluster)
    t.strictSame(
      files.filter(name => !name.includes(hash('sha256', kept))),
      [],
      'only committed bytes are left on the shards',
    )
    t.equal((await other.get('raw/kept')).status, 200)
    for (const { path, body } of lost)
      t.equal((await other.put(path, body)).status, 201, 'the same bytes may come again')
    await waitForFullCopies(cluster, ['raw/kept', ...lost.map(({ path }) => path)])
  },
)

t.test(
  'I1, I8, I32: proxies are killed again and again under load: what was acknowledged stays, copies come back',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2 })
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ history, proxy }))
    const load = new Load(t, { random, clients })
    await load.progress(40, 20)
    for (let round = 0; round < 4; round++) {
      const victim = cluster.proxies[round % 2]!
      const survivor = clients[(round + 1) % 2]!
      load.phase(`${victim.id} killed`)
      await victim.process.kill()
      // Requests in flight on the dead one fail; on the other one nothing does.
      await checkSurvivor(t, survivor, random)
      await victim.process.start()
      await load.progress(40, 20)
    }
    await load.stop()
    t.comment(tallyText(load.total), `${history.size} operations in the history`)
    const unexpected = load.failures.filter(text => !/: 0 /.test(text))
    t.strictSame(unexpected.slice(0, 10), [], 'a dead proxy cuts connections, nobody answers with an error')
    t.strictSame(load.wrong, [])
    await clients[1]!.getAll(history.paths)
    t.strictSame(history.problems(), [], 'I1, I37: every answer is explained by the acknowledged writes')
    const alive = await clients[0]!.presentOf(history.paths)
    await waitForFullCopies(cluster, alive)
    t.strictSame(cluster.crashes(), [])
  },
)

async function checkSurvivor(t: Test, client: Client, random: Random): Promise<void> {
  const path = `raw/survivor-${random.int(0, 1e9)}`
  t.equal((await client.put(path, random.bytes(1_000))).status, 201, 'the other proxy takes a write')
  t.equal((await client.get(path)).status, 200, 'and answers a read')
}

/** While `work` runs, PostgreSQL answers questions but commits no artifact; whoever waits for a commit then is cut off. */
async function withCommitsBlocked(cluster: Cluster, work: () => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: cluster.postgres.url })
  await client.connect()
  try {
    await client.query('BEGIN')
    await client.query('LOCK TABLE artifacts IN EXCLUSIVE MODE')
    await work()
    await client.query(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid <> pg_backend_pid()",
    )
    await client.query('ROLLBACK')
  } finally {
    await client.end()
  }
}
