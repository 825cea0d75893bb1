/** Copies that rot where nobody looks: the scrub finds them, the primary hears of it, and a good copy is fetched. */
import { hash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { scrub } from '../../cli/scrub.ts'
import { parseDigest } from '../../shared/ids.ts'
import { wirePath, type LossListing, type ScrubAnswer, type ScrubStatus } from '../../shared/wire.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { askNode, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { seededRandom } from '../support/random.ts'
import { flipBit } from '../support/shard-files.ts'

const nodeFlags = [
  ...['--scrub-pause-ms', '100', '--scrub-save-ms', '1s'],
  ...['--scrub-bytes-per-sec-min', '1GiB', '--scrub-bytes-per-sec-max', '1GiB'],
]

async function run(cluster: Cluster, ...args: string[]): Promise<{ code: number; out: string }> {
  let out = ''
  const source = {
    args: [...args, '--url', cluster.proxies[0]!.url],
    env: { HOLDFAST_PASSWORD: cluster.adminPassword },
  }
  const code = await scrub(source, { out: text => (out += text), err: text => (out += text) })
  return { code, out }
}

async function scrubsOf(cluster: Cluster): Promise<readonly ScrubStatus[]> {
  const answers = await Promise.all(
    cluster.nodes.map(async node => {
      return JSON.parse(
        (await askNode(cluster, node, wirePath.scrub)).body.toString() || '{"shards":[]}',
      ) as ScrubAnswer
    }),
  )
  return answers.flatMap(({ shards }) => shards)
}

/** Every shard has finished a pass that began after now. */
async function scrubAll(cluster: Cluster): Promise<void> {
  await eventually('no pass is under way', async () => (await scrubsOf(cluster)).every(one => one.state === 'waiting'))
  const before = new Map((await scrubsOf(cluster)).map(one => [one.shard, one.last?.finishedAt ?? 0]))
  const started = await run(cluster, 'start')
  t.equal(started.code, 0, started.out)
  await eventually('every shard was read', async () => {
    return (await scrubsOf(cluster)).every(one => (one.last?.finishedAt ?? 0) > before.get(one.shard)!)
  })
}

t.test('I25: a flipped bit in one of many copies, small and large, is found by a scrub and healed', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { shardsPerNode: 1, nodeFlags, proxyFlags: ['--anti-entropy-ms', '1h'] })
  const client = cluster.client()
  const bodies = new Map<string, Buffer>()
  for (let index = 0; index < 30; index++) {
    const body = random.bytes(index % 3 === 0 ? 300_000 : 3_000 + index)
    bodies.set(`raw/rot/${index}`, body)
    t.equal((await client.put(`raw/rot/${index}`, body)).status, 201)
  }
  const paths = [...bodies.keys()]
  await waitForFullCopies(cluster, paths)
  await scrubAll(cluster)
  t.equal((await run(cluster, 'status')).code, 0, 'all is well')
  const victims = [random.pick(paths.filter((_, index) => index % 3 === 0)), random.pick(paths.filter((_, index) => index % 3 === 1))] // prettier-ignore
  const node = cluster.node('node-b')
  const shard = node.shards[0]!
  for (const path of victims) {
    const body = bodies.get(path)!
    t.ok(await flipBit(shard, body, random.pick([0, 77, body.length - 1])), `${path} is hit`)
  }
  await scrubAll(cluster)
  const found = (await scrubsOf(cluster)).find(one => one.shard === shard.id)
  t.equal(found?.last?.bad, 2, 'both are found, and nothing else')
  await waitForFullCopies(cluster, paths)
  await eventually('nothing is lost any more', async () => (await run(cluster, 'status')).code === 0)
  t.equal((await readdir(join(shard.folder, 'quarantine'))).length, 2, 'the bad copies are kept')
  for (const [path, body] of bodies) t.ok((await client.get(path)).body.equals(body), path)
  t.strictSame(cluster.crashes(), [])
})

t.test('I26: when every copy is bad nothing is deleted, reads say 503, and the blob is named', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { shardsPerNode: 1, nodeFlags, proxyFlags: ['--anti-entropy-ms', '1h', '--hot-cache-bytes', '0'] }) // prettier-ignore
  const client = cluster.client()
  const body = random.bytes(200_000)
  t.equal((await client.put('raw/gone', body)).status, 201)
  await waitForFullCopies(cluster, ['raw/gone'])
  const shards = cluster.nodes.flatMap(node => node.shards)
  for (const shard of shards) t.ok(await flipBit(shard, body, 5_000))
  await scrubAll(cluster)
  await eventually('the primary despairs', async () => (await client.metric('holdfast_hopeless_blobs')) === 1)
  t.equal((await client.get('raw/gone')).status, 503)
  const status = await run(cluster, 'status')
  t.equal(status.code, 1, status.out)
  for (const node of cluster.nodes) {
    const [shard] = node.shards
    t.equal((await readdir(join(shard!.folder, 'quarantine'))).length, 1, 'what is left of it is kept')
    const { losses } = JSON.parse(
      (await askNode(cluster, node, wirePath.losses(shard!.id))).body.toString(),
    ) as LossListing
    t.match(losses, [{ digest: parseDigest(hash('sha256', body)), why: /checksum of block 0/ }])
  }
  const logs = await readdir(join(cluster.folder, 'log'))
  const log = (await Promise.all(logs.map(name => readFile(join(cluster.folder, 'log', name), 'utf8')))).join('\n')
  t.match(log, new RegExp(`"digest":"${hash('sha256', body)}".*every copy of a blob is corrupt or missing`))
})

t.test('a scrub that is paused stays so, and one whose node is killed goes on where it was', async t => {
  const random = seededRandom(t)
  const slow = ['--scrub-pause-ms', '100', '--scrub-save-ms', '0', '--scrub-bytes-per-sec-min', '100000', '--scrub-bytes-per-sec-max', '100000'] // prettier-ignore
  const cluster = await startCluster(t, { shardsPerNode: 1, nodeFlags: slow })
  const client = cluster.client()
  const paths = Array.from({ length: 60 }, (_, index) => `raw/many/${index}`)
  for (const path of paths) t.equal((await client.put(path, random.bytes(9_000))).status, 201)
  await waitForFullCopies(cluster, paths)
  await run(cluster, 'start')
  const node = cluster.node('node-a')
  const passOf = async (): Promise<ScrubStatus['pass']> =>
    (await scrubsOf(cluster)).find(one => one.shard === node.shards[0]!.id)?.pass
  await eventually('some was read', async () => ((await passOf())?.blobs ?? 0) >= 10)
  const before = (await passOf())!
  await node.process.kill()
  await node.process.launch()
  await eventually('it goes on', async () => ((await passOf())?.blobs ?? 0) > before.blobs)
  const after = (await passOf())!
  t.equal(after.startedAt, before.startedAt, 'the same pass')
  t.equal((await run(cluster, 'pause', '--node', 'node-a')).code, 0)
  await node.process.kill()
  await node.process.launch()
  await eventually('it answers', async () => (await run(cluster, 'status')).code === 0)
  t.match((await run(cluster, 'status')).out, /node-a +\S+ +paused/)
  t.equal((await run(cluster, 'start', '--shard', 'nonsense')).code, 1)
  t.equal((await run(cluster, 'dance')).code, 2)
})
