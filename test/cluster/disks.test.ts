import { open, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Client } from '../support/client.ts'
import { startCluster, type NodeHandle } from '../support/cluster.ts'
import { shardState, verifyCopies, waitForFullCopies } from '../support/copies.ts'
import { mountSmallDisk, noMounts, noTracing, tamperWithDisk } from '../support/disks.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { seededRandom, type Random } from '../support/random.ts'
import { strangeNames } from '../support/shard-files.ts'

const [mountless, traceless] = await Promise.all([noMounts(), noTracing()])

interface Known {
  readonly path: string
  readonly body: Buffer
}

/** Every path gives its bytes, whole and in part. A wrong byte throws; anything else but 200 is a failure. */
async function readAll(t: Test, client: Client, known: readonly Known[], what: string): Promise<void> {
  for (const { path, body } of known) {
    const whole = await client.get(path)
    if (whole.status !== 200 || !whole.body.equals(body)) t.fail(`${what}: GET ${path}: ${whole.status}`)
    if (body.length < 10) continue
    const first = body.length >> 2
    const part = await client.request('GET', path, { headers: { range: `bytes=${first}-${body.length - 2}` } })
    if (part.status !== 206 || !part.body.equals(body.subarray(first, -1))) {
      t.fail(`${what}: range of ${path}: ${part.status}`)
    }
  }
}

// ---- full disk

t.test(
  'I31: a disk is full: uploads go elsewhere while two nodes have room, then 507; reads and deletes go on',
  { skip: mountless },
  async t => {
    const random = seededRandom(t)
    const sizes: Record<string, string> = { 'node-a-1': '40m', 'node-b-1': '110m', 'node-c-1': '110m' }
    const shardFolder = (shard: string): Promise<string> => mountSmallDisk(t, sizes[shard] ?? '100m')
    const cluster = await startCluster(t, { shardsPerNode: 1, shardFolder })
    const client = cluster.client()
    const known: Known[] = []
    let refused: string | undefined
    for (let index = 0; refused === undefined && index < 100; index++) {
      const one = { path: `raw/fill/${index}`, body: random.bytes(random.pick([20_000, 3_000_000])) }
      const answer = await client.put(one.path, one.body)
      if (answer.status === 201) known.push(one)
      else refused = `${answer.status} ${answer.body.toString()}`
    }
    const bytes = known.reduce((sum, { body }) => sum + body.length, 0)
    t.comment(`${known.length} uploads of ${bytes} bytes, then ${refused}`)
    t.ok(bytes > 60e6, 'uploads went on long after the smallest disk was full')
    t.match(refused, /^507 .*INSUFFICIENT_STORAGE/, 'with two disks full there is no room')
    await readAll(t, client, known, 'full')
    for (const { path } of known.splice(0, 5)) {
      t.equal((await client.delete(path)).status, 204, 'deletes go on')
      t.equal((await client.get(path)).status, 404)
    }
    await cluster.node('node-b').process.restart()
    await cluster.allNodesUp()
    await readAll(t, client, known, 'after a restart on a full disk')
    for (const { path } of known) {
      const { corrupt, blobs } = await verifyCopies(cluster, path)
      if (corrupt.length > 0 || blobs.length < 2) t.fail(`${path}: on ${blobs.join()}, corrupt on ${corrupt.join()}`)
    }
    t.strictSame(await strangeNames(cluster), [])
    t.strictSame(cluster.crashes(), [])
  },
)

// ---- fsync fails

t.test(
  'I23, I24: every flush of one node fails: uploads succeed on others, and nothing acknowledged leans on it',
  { skip: traceless },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { shardsPerNode: 1 })
    const client = cluster.client()
    const node = cluster.node('node-b')
    const known: Known[] = []
    const write = async (name: string): Promise<void> => {
      for (const size of [0, 700, 60_000, 200_000, 2_000_000]) {
        const one = { path: `raw/flush/${name}-${size}`, body: random.bytes(size) }
        const answer = await client.put(one.path, one.body)
        t.equal(answer.status, 201, `${one.path} ${answer.body.toString()}`)
        known.push(one)
      }
    }
    await write('before')
    const mend = await tamperWithDisk(t, node.process.pid, { error: 'EIO' })
    await write('broken')
    await eventually('it says read-only', async () => (await shardState(cluster, node)) === 'read-only')
    await write('read-only')
    await readAll(t, client, known, 'while flushes fail')
    await node.process.kill()
    await readAll(t, client, known, 'after the node with the broken disk died')
    await mend()
    await node.process.start()
    await cluster.allNodesUp()
    t.equal(await shardState(cluster, node), 'ok')
    await write('after')
    await waitForFullCopies(
      cluster,
      known.map(({ path }) => path),
    )
    t.strictSame(cluster.crashes(), [])
  },
)

t.test('I23: a disk whose flushes failed for a while is used again without a restart', { skip: traceless }, async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { shardsPerNode: 1 })
  const client = cluster.client()
  const node = cluster.node('node-b')
  const paths: string[] = []
  const write = async (): Promise<void> => {
    for (const size of [700, 200_000]) {
      const path = `raw/again/${paths.length}`
      t.equal((await client.put(path, random.bytes(size))).status, 201)
      paths.push(path)
    }
  }
  await write()
  const mend = await tamperWithDisk(t, node.process.pid, { error: 'EIO' })
  await write()
  await eventually('read-only', async () => (await shardState(cluster, node)) === 'read-only')
  await mend()
  await eventually('ok again', async () => (await shardState(cluster, node)) === 'ok', { withinMs: 40_000 })
  await write()
  await waitForFullCopies(cluster, paths)
})

// ---- damaged files

async function flipByte(file: string, position: number): Promise<void> {
  const handle = await open(file, 'r+')
  try {
    const byte = Buffer.alloc(1)
    await handle.read(byte, 0, 1, position)
    byte[0] = (byte[0] ?? 0) ^ 0x10
    await handle.write(byte, 0, 1, position)
  } finally {
    await handle.close()
  }
}

async function blobFile(node: NodeHandle, digest: string): Promise<string> {
  const folder = join(node.shards[0]!.folder, 'blobs')
  const names = await readdir(folder, { recursive: true })
  const name = names.find(one => one.includes(digest))
  if (name === undefined) throw new Error(`${node.id} has no file of ${digest}`)
  return join(folder, name)
}

const damages: Record<string, (random: Random, file: string, size: number) => Promise<unknown>> = {
  'one bit flipped': (random, file, size) => flipByte(file, random.int(0, size - 1)),
  'the last byte flipped': (_, file, size) => flipByte(file, size - 1),
  truncated: (random, file, size) => truncate(file, random.int(1, size - 1)),
  emptied: (_, file) => truncate(file, 0),
  'a block of zeros': async (random, file, size) => {
    const handle = await open(file, 'r+')
    await handle.write(Buffer.alloc(4096), 0, 4096, random.int(0, (size >> 12) - 1) * 4096)
    await handle.close()
  },
  'other bytes of the same length': (random, file, size) => writeFile(file, random.bytes(size)),
  'grown at the end': (_, file) => writeFile(file, 'more', { flag: 'a' }),
  removed: (_, file) => rm(file),
}

t.test('I5, I7, I25: damaged blob files are never served, and are mended from good copies', async t => {
  const random = seededRandom(t)
  // Nothing from memory: every read comes from a disk. The proxy stands in zone a and prefers its node.
  const cluster = await startCluster(t, { shardsPerNode: 1, proxyFlags: ['--hot-cache-bytes', '0'] })
  const client = cluster.client()
  const near = cluster.node('node-a')
  const known: Known[] = []
  for (const name of Object.keys(damages)) {
    for (const size of [100_000, 900_000, 3_300_000]) {
      const one = { path: `raw/damage/${encodeURIComponent(name)}-${size}`, body: random.bytes(size) }
      const { status, headers } = await client.put(one.path, one.body)
      t.equal(status, 201)
      await damages[name]!(random, await blobFile(near, String(headers['x-checksum-sha256'])), size)
      known.push(one)
    }
  }
  await readAll(t, client, known, 'one copy damaged')
  const readAt = performance.now()
  t.comment(`${await client.metric('holdfast_repaired_copies_total')} copies repaired so far`)
  await waitForFullCopies(
    cluster,
    known.map(({ path }) => decodeURIComponent(path)),
  )
  figure(t, 'damage.healed', performance.now() - readAt, 'ms')
  await readAll(t, client, known, 'mended')
  t.strictSame(await strangeNames(cluster), [])
  t.strictSame(cluster.crashes(), [])
})

t.test('I5, I26: two copies damaged: the third is served; all damaged: an error, never wrong bytes', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { shardsPerNode: 1, proxyFlags: ['--hot-cache-bytes', '0'] })
  const client = cluster.client()
  for (const size of [100_000, 2_500_000]) {
    for (const copies of [2, 3]) {
      const path = `raw/bad-${copies}-${size}`
      const body = random.bytes(size)
      const { headers } = await client.put(path, body)
      // The same byte everywhere: of copies that are bad in different blocks a reader gets a good whole.
      const position = random.int(0, size - 1)
      for (const node of random.shuffled(cluster.nodes).slice(0, copies)) {
        await flipByte(await blobFile(node, String(headers['x-checksum-sha256'])), position)
      }
      const answer = await client.get(path)
      if (copies === 2) t.equal(answer.body.equals(body), true, 'the good copy is served')
      else t.not(answer.status, 200, `no complete answer without a good copy (${answer.status})`)
      const again = await client.get(path)
      t.equal(again.status, copies === 2 ? 200 : 503, 'and the same is true afterwards: bad copies are 503, not 404')
    }
  }
  t.strictSame(cluster.crashes(), [])
})

// ---- damaged logs

async function newestLog(node: NodeHandle): Promise<string> {
  const folder = join(node.shards[0]!.folder, 'log')
  const names = (await readdir(folder)).filter(name => name.endsWith('.log')).sort()
  return join(folder, names.at(-1)!)
}

t.test(
  'I5, I35: a damaged log gives no wrong answer: bytes flipped in records, a torn end, rubbish behind it, a lost index',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { shardsPerNode: 1, proxyFlags: ['--hot-cache-bytes', '0'] })
    const client = cluster.client()
    const near = cluster.node('node-a')
    const known: Known[] = []
    const write = async (count: number): Promise<void> => {
      for (let index = 0; index < count; index++) {
        const one = { path: `raw/log/${known.length}`, body: random.bytes(random.pick([10, 3_000, 60_000])) }
        t.equal((await client.put(one.path, one.body)).status, 201)
        known.push(one)
      }
    }
    await write(40)
    const file = await newestLog(near)
    const text = await readFile(file)
    for (const { body } of known.slice(0, 10)) {
      const at = text.indexOf(body)
      if (at >= 0) await flipByte(file, at + random.int(0, body.length - 1))
    }
    await readAll(t, client, known, 'payloads flipped under a running node')
    await waitForFullCopies(
      cluster,
      known.map(({ path }) => path),
    )

    const harm: [string, () => Promise<unknown>][] = [
      ['a torn end', async () => truncate(file, (await readFile(file)).length - random.int(1, 200))],
      ['rubbish behind the end', async () => writeFile(await newestLog(near), random.bytes(500), { flag: 'a' })],
      [
        'the index lost and bytes flipped anywhere in the log',
        async () => {
          await rm(join(near.shards[0]!.folder, 'index'), { recursive: true })
          const { length } = await readFile(file)
          for (let count = 0; count < 5; count++) await flipByte(file, random.int(0, length - 1))
        },
      ],
    ]
    for (const [name, act] of harm) {
      await near.process.kill()
      await act()
      await near.process.start()
      await cluster.allNodesUp()
      await readAll(t, client, known, name)
      await write(5)
      for (const { path } of known) {
        const { corrupt } = await verifyCopies(cluster, path)
        if (corrupt.length > 0) t.fail(`${name}: ${path} is corrupt on ${corrupt.join()}`)
      }
      t.pass(name)
    }
    t.strictSame(cluster.crashes(), [])
  },
)
