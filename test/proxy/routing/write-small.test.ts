import { createHash } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { inlineBlobBytesMax } from '../../../shared/record.ts'
import type { Digest, ShardId } from '../../../shared/ids.ts'
import { isHoldfastError } from '../../../shared/errors.ts'
import { parseAnswer } from '../../../proxy/routing/wire-connection.ts'
import { holders, startWriteCluster, type WriteCluster, zonesHolding } from '../../support/write-cluster.ts'

const hex = (algorithm: string, body: Buffer): string => createHash(algorithm).update(body).digest('hex')
const checksumsOf = (body: Buffer) => ({
  digest: hex('sha256', body) as Digest,
  md5: hex('md5', body),
  sha1: hex('sha1', body),
})
const write = (cluster: WriteCluster, partition: number, body: Buffer) =>
  cluster.writer.writeSmall(partition, body, checksumsOf(body))

t.test('I2: a small blob is on all owners, byte-identical, when it is acknowledged', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  for (const body of [Buffer.alloc(0), Buffer.from('hello'), Buffer.alloc(inlineBlobBytesMax, 'x')]) {
    const written = await write(cluster, 11, body)
    t.same(holders(cluster, written, body).sort(), [...cluster.view.current().owners(11)].sort())
    t.same(
      { missing: written.missing, handoffs: written.handoffs, bytes: written.bytes },
      { missing: [], handoffs: [], bytes: body.length },
    )
    t.match(written, checksumsOf(body))
  }
  t.match(
    (await cluster.writer.writeSmall(11, Buffer.from('x'), checksumsOf(Buffer.from('x')), 'abcdefghijkl' as never))
      .generation,
    'abcdefghijkl',
  )
})

t.test('a thousand writes at once travel in few batches over few connections', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const bodies = Array.from({ length: 1000 }, (_, i) => Buffer.from(`body ${i}`.repeat(100)))
  const written = await Promise.all(bodies.map((body, i) => write(cluster, i, body)))
  bodies.forEach((body, i) => t.equal(holders(cluster, written[i] as never, body).length, 3))
  for (const node of cluster.nodes) {
    t.ok(node.appendBatches <= 12, `${node.appendBatches} batches`)
    t.ok(node.connections <= 2, `${node.connections} connections`)
  }
})

t.test(
  'I30: a frozen node delays small writes by little, the copies go to a handoff once it is known to hang',
  async t => {
    const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a'])
    const frozen = cluster.node(cluster.view.current().owners(5)[0] as ShardId)
    frozen.freeze()
    const delays: number[] = []
    for (let i = 0; i < 30; i += 1) {
      const startedAt = performance.now()
      const written = await write(cluster, 5, Buffer.from(`write ${i}`))
      delays.push(performance.now() - startedAt)
      t.ok(holders(cluster, written, Buffer.from(`write ${i}`)).length >= 2)
      t.ok(written.missing.length === 1 || written.handoffs.length === 0)
    }
    t.ok(Math.max(...delays) < 500, `at most ${Math.max(...delays).toFixed()} ms`)
    await new Promise(resolve => setTimeout(resolve, 1_100))
    const startedAt = performance.now()
    const written = await write(cluster, 5, Buffer.from('later'))
    t.ok(performance.now() - startedAt < 20 || written.handoffs.length === 1, 'the silent node is not even asked')
    t.equal(written.handoffs.length, 1)
  },
)

t.test('I30: with R = 2 a frozen owner is needed: a handoff is written beside it within a second', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { replicas: 2 })
  const [owner] = cluster.view.current().owners(5)
  cluster.node(owner as ShardId).freeze()
  const startedAt = performance.now()
  const written = await write(cluster, 5, Buffer.from('r2'))
  t.ok(performance.now() - startedAt < 1_000, `${(performance.now() - startedAt).toFixed()} ms`)
  t.same(written.missing, [owner])
  t.equal(written.handoffs.length, 1)
  t.equal(zonesHolding(cluster, holders(cluster, written, Buffer.from('r2'))), 2)
})

t.test('I31: a full shard is left out, its neighbours take the copy; all full is INSUFFICIENT_STORAGE', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { shardsPerNode: 2 })
  const [full] = cluster.view.current().owners(5)
  cluster.node(full as ShardId).faults.refuseShard = { shard: full as string, code: 'INSUFFICIENT_STORAGE' }
  const written = await write(cluster, 5, Buffer.from('full'))
  t.same(written.missing, [full])
  t.equal(written.handoffs[0]?.split('-')[0], full?.split('-')[0], 'another disk of the same node')
  for (const node of cluster.nodes) node.faults.refuse = 'INSUFFICIENT_STORAGE'
  await t.rejects(write(cluster, 5, Buffer.from('none')), { code: 'INSUFFICIENT_STORAGE' })
  t.equal(cluster.nodes.flatMap(node => [...node.blobs]).length, 3)
})

t.test('a connection that the node had closed is replaced without anybody noticing', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  await write(cluster, 5, Buffer.from('one'))
  for (const node of cluster.nodes) {
    node.die()
    await node.start()
  }
  const written = await write(cluster, 5, Buffer.from('two'))
  t.equal(holders(cluster, written, Buffer.from('two')).length, 3)
})

t.test('two nodes of three gone: QUORUM_NOT_REACHED, soon', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  cluster.nodes[0]?.die()
  cluster.nodes[1]?.die()
  const startedAt = performance.now()
  await t.rejects(write(cluster, 5, Buffer.from('lonely')), { code: 'QUORUM_NOT_REACHED' })
  t.ok(performance.now() - startedAt < 1_000)
  for (let i = 0; i < 3; i += 1) cluster.health.checked(cluster.nodeId(0), undefined)
  for (let i = 0; i < 3; i += 1) cluster.health.checked(cluster.nodeId(1), undefined)
  t.throws(() => cluster.writer.admit(5, 10), { code: 'QUORUM_NOT_REACHED' })
})

t.test('a node that was just restarted takes the copy that nobody else can, before its checks call it up', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const [back, gone] = [cluster.nodeId(0), cluster.nodeId(1)]
  const good = { version: '0', wire: 1, clusterId: 'test', state: 'up', epoch: 1, shards: [] } as const
  cluster.health.checked(back, { ...good, node: back, zone: 'a' as never })
  for (let i = 0; i < 3; i += 1) cluster.health.checked(back, undefined)
  t.equal(cluster.health.state(back), 'down')
  cluster.nodes[1]?.die()
  for (let i = 0; i < 8; i += 1) {
    const body = Buffer.from(`write ${i}`)
    cluster.writer.admit(5, body.length)
    const written = await write(cluster, 5, body)
    t.equal(holders(cluster, written, body).length, 2)
  }
  const upload = async function* (): AsyncGenerator<Buffer> {
    for (let i = 0; i < 40; i += 1) yield Buffer.alloc(64 * 1024, i)
  }
  const options = {
    expectedBytes: undefined,
    bytesMax: undefined,
    requestId: 'r',
    signal: new AbortController().signal,
  }
  const staged = await cluster.writer.stage(5, upload(), options)
  t.equal((await staged.commit()).missing.length, 1)
  for (let i = 0; i < 3; i += 1) cluster.health.checked(gone, undefined)
  t.equal((await write(cluster, 5, Buffer.from('last'))).missing.length, 1, 'also when both are known to be down')
})

t.test('more than can wait for a node is refused as OVERLOADED, and it recovers', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  for (const node of cluster.nodes) node.faults.appendDelayMs = 300
  const body = Buffer.alloc(1024)
  const results = await Promise.allSettled(Array.from({ length: 6_000 }, (_, i) => write(cluster, i % 4096, body)))
  const refused = results.filter(result => result.status === 'rejected')
  t.ok(refused.length > 1_000, `${refused.length} refused`)
  t.ok(refused.every(({ reason }) => isHoldfastError(reason, 'OVERLOADED', 'QUORUM_NOT_REACHED')))
  for (const node of cluster.nodes) node.faults.appendDelayMs = undefined
  t.equal((await write(cluster, 9, body)).missing.length, 0)
})

t.test('I2: under random faults every acknowledged write has W copies in two zones', async t => {
  const seed = Date.now()
  t.comment(`seed ${seed}`)
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b'], { shardsPerNode: 2 })
  const fault = fc.constantFrom('none', 'none', 'full', 'dead', 'slow', 'failing')
  let acknowledged = 0
  await fc.assert(
    fc.asyncProperty(
      fc.array(fault, { minLength: 5, maxLength: 5 }),
      fc.integer({ min: 0, max: 4095 }),
      async (faults, partition) => {
        const dead = cluster.nodes.filter((_, i) => faults[i] === 'dead')
        cluster.nodes.forEach((node, i) => {
          node.faults = {
            refuse:
              faults[i] === 'full' ? 'INSUFFICIENT_STORAGE' : faults[i] === 'failing' ? 'SHARD_FAILED' : undefined,
            appendDelayMs: faults[i] === 'slow' ? 100 : undefined,
          }
        })
        for (const node of dead) node.die()
        const body = Buffer.from(JSON.stringify({ faults, partition }))
        try {
          const written = await write(cluster, partition, body)
          const held = holders(cluster, written, body)
          const owners = cluster.view.current().owners(partition)
          acknowledged += 1
          t.ok(
            new Set(held.map(shard => shard.split('-')[0])).size >= 2 && zonesHolding(cluster, held) >= 2,
            `${held.join()}`,
          )
          t.ok(owners.every(owner => held.includes(owner) || written.missing.includes(owner)))
        } catch (error) {
          t.ok(isHoldfastError(error, 'QUORUM_NOT_REACHED', 'INSUFFICIENT_STORAGE'), String(error))
          t.ok(faults.filter(fault => fault !== 'none' && fault !== 'slow').length >= 2, faults.join())
        } finally {
          for (const node of dead) await node.start()
          for (let i = 0; i < 5; i += 1) for (let n = 0; n < 2; n += 1) cluster.health.observe(cluster.nodeId(i), 'ok')
        }
      },
    ),
    { seed, numRuns: 60 },
  )
  t.ok(acknowledged > 10, `${acknowledged} acknowledged`)
})

t.test('I24: touch counts only what a shard says it holds', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a'])
  const written = await write(cluster, 5, Buffer.from('touched'))
  const owners = cluster.view.current().owners(5)
  t.match(await cluster.writer.touch(written), { missing: [], quorum: true })
  cluster.node(owners[0] as ShardId).blobs.clear()
  t.match(await cluster.writer.touch(written), { missing: [owners[0]], quorum: true })
  cluster.node(owners[1] as ShardId).die()
  const last = await cluster.writer.touch(written)
  t.same(last.held, [owners[2]])
  t.equal(last.quorum, false)
})

t.test('an answer of a node is taken whole, in pieces, in chunks, or not at all', async t => {
  const plain = Buffer.from('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}')
  t.match(parseAnswer(plain), { status: 200, keepAlive: true, body: Buffer.from('{}') })
  for (let i = 0; i < plain.length; i += 1) t.equal(parseAnswer(plain.subarray(0, i)), 'more')
  const chunked = Buffer.from(
    'HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n',
  )
  t.match(parseAnswer(chunked), { status: 503, keepAlive: false, body: Buffer.from('abcd') })
  for (let i = 0; i < chunked.length; i += 1) t.equal(parseAnswer(chunked.subarray(0, i)), 'more')
  for (const text of [
    'HTTP/1.0 200 OK\r\n\r\n',
    'HTTP/1.1 200 OK\r\n\r\n',
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n',
  ]) {
    t.equal(parseAnswer(Buffer.from(text)), 'nonsense')
  }
  t.equal(parseAnswer(Buffer.alloc(20_000, 'x')), 'nonsense')
})

t.test('a long command, or a long question, to a node that goes down is given up, not waited for', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const node = cluster.nodeId(0)
  cluster.nodes[0]?.freeze()
  const [target] = cluster.context.plan('blob', 3, 1).targets.filter(one => one.node === node)
  const { client } = cluster.context.uplink(target!)
  const command = client.requestJson('POST', '/v1/transfer', {}, { fence: 'primary:1', timeoutMs: 25_000 })
  const question = client.requestJson('GET', '/v1/summaries/x', undefined, { timeoutMs: 25_000, unlessDown: true })
  let isOver = false
  const down = { code: 'NODE_UNREACHABLE', data: { reason: 'NODE_DOWN' } }
  const ended = Promise.all([t.rejects(command, down), t.rejects(question, down)]).finally(() => (isOver = true))
  for (let checks = 0; checks < 10 && cluster.health.state(node) !== 'down'; checks += 1) {
    t.notOk(isOver, 'as long as it is not down')
    cluster.health.checked(node, undefined)
  }
  await ended
})
