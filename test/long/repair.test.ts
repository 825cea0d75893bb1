/** Disks that are lost, copies that rot, nodes that were away: everything has R good copies again, and nobody had to ask for it. */
import { hash } from 'node:crypto'
import { open, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import t from 'tap'
import { dispersion, fsck, verify } from '../../cli/copies.ts'
import type { FsckReport, VerificationView } from '../../proxy/api/schemas.ts'
import { partitionOf } from '../../shared/partition.ts'
import { wirePath } from '../../shared/wire.ts'
import type { Client } from '../support/client.ts'
import { startCluster, type Cluster, type NodeHandle } from '../support/cluster.ts'
import { askNode, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { seededRandom } from '../support/random.ts'

async function verified(client: Client, path: string): Promise<VerificationView> {
  const slash = path.indexOf('/')
  const answer = await client.request('GET', `/api/v1/repositories/${path.slice(0, slash)}/verify?path=${encodeURIComponent(path.slice(slash + 1))}`) // prettier-ignore
  if (answer.status !== 200) throw new Error(`verify ${path}: ${answer.status} ${answer.body.toString()}`)
  return JSON.parse(answer.body.toString()) as VerificationView
}

/** Runs a command of the CLI against the cluster, in this process. */
async function run(
  cluster: Cluster,
  command: typeof verify,
  args: readonly string[],
): Promise<{ code: number; out: string }> {
  let out = ''
  const source = {
    args: [...args, '--url', cluster.proxies[0]!.url],
    env: { HOLDFAST_PASSWORD: cluster.adminPassword },
  }
  const code = await command(source, { out: text => (out += text), err: text => (out += text) })
  return { code, out }
}

async function sql(cluster: Cluster, statement: string): Promise<void> {
  const database = new pg.Client({ connectionString: cluster.postgres.url })
  await database.connect()
  try {
    await database.query(statement)
  } finally {
    await database.end()
  }
}

async function blobFileOf(node: NodeHandle, digest: string): Promise<string | undefined> {
  for (const { folder } of node.shards) {
    const names = await readdir(join(folder, 'blobs'), { recursive: true })
    const name = names.find(one => one.includes(digest))
    if (name !== undefined) return join(folder, 'blobs', name)
  }
  return undefined
}

t.test('I9: a disk that was lost and replaced by an empty one is full again, bytes and references', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { proxyFlags: ['--anti-entropy-ms', '1h'] })
  const client = cluster.client()
  const paths: string[] = []
  for (let index = 0; index < 120; index++) {
    const path = `raw/disk/${index}`
    t.equal((await client.put(path, random.bytes(random.pick([0, 500, 20_000, 200_000, 1_500_000])))).status, 201)
    paths.push(path)
  }
  await waitForFullCopies(cluster, paths)
  await eventually('the first round is over', async () => {
    return (await client.metric('holdfast_anti_entropy_rounds_total')) >= 1 && (await client.metric('holdfast_anti_entropy_partitions_left')) === 0 // prettier-ignore
  })
  const node = cluster.node('node-b')
  const lost = node.shards[0]!
  await node.process.kill()
  await rm(lost.folder, { recursive: true, force: true })
  // Nothing more was written, so nothing but the comparison can know what is missing.
  const before = await client.metric('holdfast_anti_entropy_repairs_total')
  await node.process.launch({ extra: ['--replaced-shard', lost.id] })
  const replacedAt = performance.now()
  await waitForFullCopies(cluster, paths)
  figure(t, 'disk-lost.full-again', performance.now() - replacedAt, 'ms')
  for (const path of paths) {
    const found = await verified(client, path)
    if (!found.healthy) t.fail(`${path}: ${JSON.stringify(found)}`)
  }
  t.ok((await client.metric('holdfast_anti_entropy_repairs_total')) > before, 'the repairs were found by comparison')
  t.ok((await client.metric('holdfast_repaired_copies_total')) > 0, 'bytes came back')
  t.ok((await client.metric('holdfast_repaired_references_total')) > 0, 'references came back')
  const spread = await run(cluster, dispersion, ['--full'])
  t.equal(spread.code, 0, spread.out)
  t.strictSame(cluster.crashes(), [])
})

t.test('I25: verify finds a flipped bit, puts the copy into quarantine, and it is healed', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { shardsPerNode: 1 })
  const client = cluster.client()
  const body = random.bytes(700_000)
  t.equal((await client.put('raw/bit', body)).status, 201)
  await waitForFullCopies(cluster, ['raw/bit'])
  const good = await run(cluster, verify, ['raw/bit'])
  t.equal(good.code, 0, good.out)
  t.match(good.out, /3 good copies of 3/)
  const node = cluster.node('node-c')
  const file = (await blobFileOf(node, hash('sha256', body)))!
  const handle = await open(file, 'r+')
  const byte = Buffer.alloc(1)
  await handle.read(byte, 0, 1, 300_000)
  byte[0] = byte[0]! ^ 4
  await handle.write(byte, 0, 1, 300_000)
  await handle.close()
  const bad = await run(cluster, verify, ['raw/bit'])
  t.equal(bad.code, 1, bad.out)
  t.match(bad.out, /node-c .*corrupt .*checksum of block 1/)
  t.equal((await readdir(join(node.shards[0]!.folder, 'quarantine'))).length, 1, 'the bad copy is kept as evidence')
  await waitForFullCopies(cluster, ['raw/bit'])
  const healed = await run(cluster, verify, ['raw/bit'])
  t.equal(healed.code, 0, healed.out)
  t.equal((await run(cluster, verify, ['raw/none'])).code, 1)
  t.equal((await run(cluster, verify, ['raw'])).code, 2)
})

t.test(
  'I16: what was deleted while a node was away does not come back with it, even if the repair was forgotten',
  async t => {
    const cluster = await startCluster(t, { shardsPerNode: 1, proxyFlags: ['--anti-entropy-ms', '1h'] })
    const client = cluster.client()
    const paths = Array.from({ length: 8 }, (_, index) => `raw/gone/${index}`)
    for (const path of paths) t.equal((await client.put(path, Buffer.from(path))).status, 201)
    await waitForFullCopies(cluster, paths)
    const node = cluster.node('node-a')
    await node.process.kill()
    for (const path of paths) t.equal((await client.delete(path)).status, 204)
    await sql(cluster, 'DELETE FROM repairs')
    // Younger changes are left to their writers.
    await sql(cluster, `UPDATE artifacts SET updated_at = updated_at - interval '1 minute'`)
    await node.process.start()
    for (const path of paths) {
      const name = path.slice(4)
      const url = `${wirePath.references(node.shards[0]!.id, partitionOf('raw', name))}?key=${encodeURIComponent(path)}`
      await eventually(`the tombstone of ${path} is on node-a`, async () => {
        const { status, body } = await askNode(cluster, node, url)
        return status === 200 && (JSON.parse(body.toString()) as { op: string }).op === 'delete'
      })
    }
    for (const path of paths) t.equal((await client.get(path)).status, 404)
  },
)

t.test(
  'I36: fsck finds nothing in a healthy cluster, names what is missing and what is too much, and repairs',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, {
      shardsPerNode: 1,
      proxyFlags: ['--anti-entropy-ms', '1h', '--abandoned-ms', '1s'],
    })
    const client = cluster.client()
    const bodies = new Map<string, Buffer>()
    for (let index = 0; index < 30; index++) bodies.set(`raw/fsck/${index}`, random.bytes(random.pick([100, 100_000])))
    for (const [path, body] of bodies) t.equal((await client.put(path, body)).status, 201)
    await waitForFullCopies(cluster, bodies.keys())
    await sql(cluster, `UPDATE artifacts SET updated_at = updated_at - interval '1 minute'`)
    const clean = await eventually('quiescence', async () => {
      const found = await run(cluster, fsck, [])
      return found.code === 0 ? found : undefined
    })
    // One more than ours, if the primary has put its copy of users and repositories there by now.
    t.match(clean.out, /3[01] paths and 9[03] copies on shards checked/)

    // All copies of one large blob are gone; another path is forgotten by the database.
    const [lostPath] = [...bodies].find(([, body]) => body.length === 100_000)!
    const digest = hash('sha256', bodies.get(lostPath)!)
    for (const node of cluster.nodes) await rm((await blobFileOf(node, digest))!)
    const [forgotten] = [...bodies.keys()].filter(path => path !== lostPath)
    await sql(cluster, `DELETE FROM artifacts WHERE path = '${forgotten!.slice(4)}'`)
    const broken = await run(cluster, fsck, ['--json', '--repair'])
    t.equal(broken.code, 1, broken.out)
    const { problems, queued } = JSON.parse(broken.out) as { problems: { problem: string; count: number; names: { name: string }[] }[]; queued: number } // prettier-ignore
    const of = (kind: FsckReport['findings'][number]['problem']) => problems.find(({ problem }) => problem === kind)
    t.match(of('reference-without-bytes'), { count: 1, names: [{ name: lostPath }] })
    t.match(of('bytes-without-reference'), { count: 3, names: [{ name: new RegExp(hash('sha256', bodies.get(forgotten!)!)) }] }) // prettier-ignore
    t.equal(queued, 1, 'the lost copies are looked for')
  },
)
