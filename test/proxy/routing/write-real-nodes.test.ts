/** The write side against real storage nodes, each a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Digest, ShardId } from '../../../shared/ids.ts'
import { partitionOf } from '../../../shared/partition.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { type NodeStatus, wirePath } from '../../../shared/wire.ts'
import { HealthChecker } from '../../../proxy/routing/health-checker.ts'
import type { WrittenBlob } from '../../../proxy/routing/types.ts'
import { testSecret } from '../../support/fake-write-node.ts'
import { writeSide } from '../../support/write-cluster.ts'
import { builtFile } from '../../support/paths.ts'

const main = builtFile('cli/main.ts')
const mib = 1024 * 1024

interface RealNode {
  readonly child: ChildProcess
  readonly url: string
  readonly folder: string
}

async function startNode(t: Test, folder: string, node: string, zone: string): Promise<RealNode> {
  mkdirSync(folder, { recursive: true })
  const args = ['--node', node, '--zone', zone, '--host', '127.0.0.1', '--port', '0', '--cluster-id', 'test']
  const shards = [0, 1].flatMap(i => ['--shard', `${node}-${i}=${join(folder, `shard${i}`)}`])
  const child = spawn(
    process.execPath,
    [main, 'storage-node', ...args, '--state-folder', join(folder, 'state'), ...shards],
    {
      env: { PATH: process.env['PATH'], HOLDFAST_SECRET: testSecret },
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  )
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  let output = ''
  for await (const chunk of child.stdout as AsyncIterable<Buffer>) {
    output += chunk.toString()
    const url = /"url":"([^"]+)"/.exec(output)?.[1]
    if (url !== undefined) return { child, url, folder }
  }
  throw new Error(`storage node ended: ${output}`)
}

async function startCluster(t: Test, zones: readonly string[], replicas: number) {
  // Before testdir(): tap removes the folder ahead of every teardown that was registered after it.
  t.teardown(() => undefined)
  const root = t.testdir()
  const nodes = await Promise.all(zones.map((zone, i) => startNode(t, join(root, `n${i}`), `n${i}`, zone)))
  const urls = nodes.map(({ url }) => url)
  const side = writeSide(urls, zones, replicas, 2)
  const checker = new HealthChecker(side)
  await checker.start()
  t.teardown(async () => {
    // A stopped node would keep the clients waiting.
    for (const { child } of nodes) child.kill('SIGKILL')
    await checker.close()
    side.context.close()
    await side.clients.close()
  })
  return { ...side, nodes, node: (shard: ShardId) => nodes[Number(shard.slice(1).split('-')[0])] as RealNode }
}

type Cluster = Awaited<ReturnType<typeof startCluster>>

/** The shards among these from which the whole blob can be read back, byte for byte. */
async function readable(cluster: Cluster, shards: readonly ShardId[], { partition, digest, generation }: WrittenBlob) {
  const found: ShardId[] = []
  for (const shard of shards) {
    const client = cluster.clients.ofShard(shard)
    const path = wirePath.blob(shard, partition, digest, generation)
    const answer = await client.control.request({ method: 'GET', path, headers: client.headers() })
    const hash = createHash('sha256')
    for await (const chunk of answer.body as AsyncIterable<Buffer>) hash.update(chunk)
    if (answer.statusCode === 200 && hash.digest('hex') === digest) found.push(shard)
  }
  return found
}

function temporaryFiles(cluster: Cluster): string[] {
  return cluster.nodes
    .filter(({ child }) => child.exitCode === null && child.signalCode === null)
    .flatMap(({ folder }) => [0, 1].flatMap(i => readdirSync(join(folder, `shard${i}`, 'tmp'))))
}

async function nothingStaysStaged(cluster: Cluster): Promise<boolean> {
  for (let i = 0; i < 250 && temporaryFiles(cluster).length > 0; i += 1)
    await new Promise(resolve => setTimeout(resolve, 20))
  return temporaryFiles(cluster).length === 0
}

const source = randomBytes(4 * mib)

/** A body that is never in memory as a whole; `at` is called with the bytes handed out so far. */
async function* body(bytes: number, at: (done: number) => void = () => undefined): AsyncGenerator<Buffer> {
  for (let done = 0; done < bytes; done += 65_536) {
    at(done)
    yield source.subarray(done % source.length, (done % source.length) + Math.min(65_536, bytes - done))
  }
}

const options = (expectedBytes: number | undefined) => ({
  expectedBytes,
  bytesMax: undefined,
  signal: new AbortController().signal,
  requestId: 'request-1',
})

for (const replicas of [3, 2]) {
  t.test(
    `I2: kill -9 of an owner in the middle of 100 MB, R = ${replicas}: two zones have every byte, no rest`,
    async t => {
      const cluster = await startCluster(t, ['a', 'b', 'c'], replicas)
      const victim = cluster.node(cluster.view.current().owners(9)[0] as ShardId)
      let maxRss = 0
      const chunks = body(100_000_000, done => {
        maxRss = Math.max(maxRss, process.memoryUsage().rss)
        if (done > 50_000_000 && !victim.child.killed) victim.child.kill('SIGKILL')
      })
      const staged = await cluster.writer.stage(9, chunks, options(replicas === 3 ? 100_000_000 : undefined))
      const written = await staged.commit()
      t.equal(written.missing.length, 1)
      t.equal(written.handoffs.length, replicas === 3 ? 0 : 1)
      const owners = cluster.view.current().owners(9)
      const claimed = [...owners.filter(owner => !written.missing.includes(owner)), ...written.handoffs]
      t.same(await readable(cluster, claimed, written), claimed)
      t.equal(new Set(claimed.map(shard => cluster.view.current().zone(shard))).size, 2)
      t.ok(await nothingStaysStaged(cluster), temporaryFiles(cluster).join())
      t.comment(`rss at most ${(maxRss / mib).toFixed()} MiB, ${JSON.stringify(cluster.context.counters)}`)
    },
  )
}

t.test('I30: SIGSTOP of a needed owner in the middle of a body delays the upload by less than 6 s', async t => {
  const cluster = await startCluster(t, ['a', 'b', 'c'], 2)
  const victim = cluster.node(cluster.view.current().owners(9)[0] as ShardId)
  let stoppedAt = 0
  const chunks = body(60_000_000, done => {
    if (done > 20_000_000 && stoppedAt === 0) {
      victim.child.kill('SIGSTOP')
      stoppedAt = performance.now()
    }
  })
  let longestMs = 0
  let last = performance.now()
  async function* watched(): AsyncGenerator<Buffer> {
    for await (const chunk of chunks) {
      longestMs = Math.max(longestMs, performance.now() - last)
      last = performance.now()
      yield chunk
    }
  }
  const written = await (await cluster.writer.stage(9, watched(), options(60_000_000))).commit()
  t.ok(longestMs < 6_000, `the client was held for ${longestMs.toFixed()} ms`)
  t.equal(written.handoffs.length, 1)
  const owners = cluster.view
    .current()
    .owners(9)
    .filter(owner => !written.missing.includes(owner))
  t.equal((await readable(cluster, [...owners, ...written.handoffs], written)).length, 2)
})

t.test('I8: a client that hangs up leaves nothing on the nodes; an abort neither', async t => {
  const cluster = await startCluster(t, ['a', 'b', 'c'], 3)
  const hangsUp = body(20_000_000, done => {
    if (done > 10_000_000) throw new Error('client left')
  })
  await t.rejects(cluster.writer.stage(9, hangsUp, options(20_000_000)), { message: 'client left' })
  await (await cluster.writer.stage(9, body(5_000_000), options(undefined))).abort()
  t.ok(await nothingStaysStaged(cluster), temporaryFiles(cluster).join())
})

t.test('small blobs, references and touches on real nodes; a second commit under another generation', async t => {
  const cluster = await startCluster(t, ['a', 'b', 'c'], 3)
  const owners = cluster.view.current().owners(9)
  const small = randomBytes(1000)
  const digest = createHash('sha256').update(small).digest('hex') as Digest
  const written = await cluster.writer.writeSmall(9, small, { digest, md5: 'm', sha1: 's' })
  t.same(written.missing, [])
  t.same(await readable(cluster, owners, written), owners)
  t.match(await cluster.writer.touch(written), { missing: [], quorum: true })
  t.match(await cluster.writer.touch({ ...written, partition: 10 }), { held: [], quorum: false })

  const staged = await cluster.writer.stage(9, body(3_000_000), options(3_000_000))
  t.same(await readable(cluster, owners, await staged.commit()), owners)
  const again = await staged.commit({ generation: written.generation, partition: 10 })
  t.same(again.missing, [])
  t.same(await readable(cluster, cluster.view.current().owners(10), again), cluster.view.current().owners(10))
  t.ok(await nothingStaysStaged(cluster))
})

t.test('I34: records that the primary copies make nobody a client of the node, those of a write do', async t => {
  const cluster = await startCluster(t, ['a', 'b', 'c'], 3)
  const shares = async (): Promise<readonly (number | undefined)[]> => {
    const found = await Promise.all(
      cluster.map.nodes.map(
        async node => (await cluster.clients.get(node).probe(wirePath.status, 5_000)) as NodeStatus,
      ),
    )
    return found.flatMap(({ shards }) => shards.map(({ background }) => background?.share))
  }
  const partition = partitionOf('raw', 'copied')
  const owners = cluster.view.current().owners(partition)
  const record: ReferenceRecord = {
    kind: 'reference', partition, repository: 'raw', path: 'copied', version: 1, op: 'delete', incarnation: 'one', time: 1, user: 'admin',
  } // prettier-ignore
  t.equal((await cluster.references.appendTo(record, owners)).size, 3)
  const path = `${wirePath.references(owners[0]!, partition)}?key=${encodeURIComponent('raw/copied')}`
  await cluster.clients.ofShard(owners[0]!).requestJson('GET', path, undefined, { background: 'usual' })
  t.same(await shares(), [1, 1, 1, 1, 1, 1])
  await cluster.references.append({ ...record, version: 2 })
  // More of them where the processors are busy.
  t.ok((await shares()).filter(share => (share ?? 1) < 1).length >= 3)
})
