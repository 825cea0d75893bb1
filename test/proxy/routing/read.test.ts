import { randomBytes } from 'node:crypto'
import { setTimeout } from 'node:timers/promises'
import t from 'tap'
import { eventually } from '../../support/eventually.ts'
import type { Fault } from '../../support/fake-node.ts'
import { ReadBuffers } from '../../../shared/read-buffers.ts'
import { quickTimes, request, startCluster, startEdge, streamed } from './read-support.ts'

const kib = 1024
const mib = 1024 * kib

t.test('a blob of any size comes whole and in parts as it was stored', async t => {
  const cluster = await startCluster(t)
  for (const bytes of [0, 1, 1_000, 63 * kib, 64 * kib, 65 * kib, 256 * kib, 1 * mib]) {
    const body = randomBytes(bytes)
    const blob = cluster.put(body)
    t.ok((await cluster.reader.readWhole(blob)).equals(body), `${bytes} bytes whole`)
    const stream = await streamed(cluster.reader, blob)
    t.equal(stream.outcome, 'complete')
    t.ok(stream.body.equals(body), `${bytes} bytes streamed`)
  }
  const body = randomBytes(9 * mib + 17)
  const blob = cluster.put(body)
  t.ok((await streamed(cluster.reader, blob)).body.equals(body))
  for (const [first, last] of [
    [0, 0],
    [5, 1_000],
    [0, 9 * mib + 16],
    [mib, 8 * mib],
    [9 * mib, 9 * mib + 16],
  ] as const) {
    const part = await streamed(cluster.reader, blob, { first, last })
    t.ok(part.body.equals(body.subarray(first, last + 1)), `${first}-${last}`)
  }
  t.ok((await streamed(cluster.reader, blob, undefined, 5)).body.equals(body), 'a slow client gets the same')
  t.equal(cluster.reader.counters.retries + cluster.reader.counters.resumes, 0)
  t.same(cluster.bad, [])
})

t.test('concurrent whole reads of one blob share one request', async t => {
  const cluster = await startCluster(t)
  const body = randomBytes(1_000)
  const blob = cluster.put(body)
  const bodies = await Promise.all(Array.from({ length: 50 }, () => cluster.reader.readWhole(blob)))
  t.ok(bodies.every(found => found.equals(body)))
  t.equal(
    cluster.nodes.reduce((sum, node) => sum + node.requests.length, 0),
    1,
  )
  t.equal(cluster.reader.counters.sharedReads, 49)
})

t.test('whole reads beyond the memory limit wait, and are refused beyond the queue', async t => {
  const cluster = await startCluster(t, { wholeBytesAtOnceMax: 2_500, waitingMax: 3 })
  const bodies = Array.from({ length: 6 }, () => randomBytes(1_000))
  const blobs = bodies.map(body => cluster.put(body))
  const results = await Promise.allSettled(blobs.map(blob => cluster.reader.readWhole(blob)))
  t.same(
    results.map(result => (result.status === 'fulfilled' ? 'read' : (result.reason as { code: string }).code)),
    ['read', 'read', 'read', 'read', 'read', 'OVERLOADED'],
  )
})

t.test('I6: a node killed, frozen, refusing or corrupting in the middle of a body is replaced unseen', async t => {
  const body = randomBytes(3 * mib)
  const cases = {
    cut: { cutAt: mib + 5 },
    frozen: { freezeAt: mib + 5 },
    'cut before the body': { cutAt: 0 },
    'frozen before the body': { freezeAt: 0 },
    silent: { freezeHead: true },
    refusing: { refuse: { status: 500, code: 'INTERNAL' } },
    nonsense: { raw: 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n' },
    'another protocol': { raw: 'SSH-2.0-OpenSSH_9.2\r\n\r\n' },
    'no length': { raw: 'HTTP/1.1 200 OK\r\n\r\n' },
  } as const
  for (const [name, fault] of Object.entries(cases)) {
    const cluster = await startCluster(t)
    const blob = cluster.put(body)
    const [first, second] = cluster.nodes
    if (first === undefined || second === undefined) throw new Error('three nodes')
    first.fault = () => fault
    // The second one fails too, further on.
    second.fault = ({ range }) => (range === undefined || range.first > 0 ? { cutAt: 700_000 } : {})
    const startedAt = performance.now()
    const stream = await streamed(cluster.reader, blob)
    t.equal(stream.outcome, 'complete', name)
    t.ok(stream.body.equals(body), name)
    t.ok(performance.now() - startedAt < quickTimes.stallMs * 3 + 1_000, `${name}: no long silence`)
    await cluster.close()
  }
})

t.test('a small read survives the same faults', async t => {
  const body = randomBytes(40_000)
  for (const fault of [
    { cutAt: 0 },
    { cutAt: 20_000 },
    { freezeAt: 20_000 },
    { freezeHead: true },
    { corruptAt: 123 },
    { refuse: { status: 503, code: 'SHARD_FAILED' } },
    { raw: 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello' },
  ] as const) {
    const cluster = await startCluster(t)
    const blob = cluster.put(body)
    for (const node of cluster.nodes.slice(0, 2)) node.fault = () => fault
    t.ok((await cluster.reader.readWhole(blob)).equals(body), JSON.stringify(fault))
    await cluster.close()
  }
})

t.test('a missing copy on an owner is reported and the next one serves; handoffs may lack it', async t => {
  const cluster = await startCluster(t, { nodeCount: 5 })
  const body = randomBytes(2_000)
  const blob = cluster.put(body, 0, cluster.nodes.slice(2, 3))
  t.ok((await cluster.reader.readWhole(blob)).equals(body))
  t.same(
    cluster.bad.map(({ shard, reason }) => `${shard} ${reason}`),
    ['a-0 missing', 'b-0 missing'],
  )
  t.ok((await cluster.reader.readWhole(blob)).equals(body))
  t.equal(cluster.bad.length, 2, 'a shard that lacked it is asked last for a while')
})

t.test('I7: a blob that only a shard outside the owners has is found by asking all nodes', async t => {
  const cluster = await startCluster(t, { nodeCount: 8 })
  const body = randomBytes(2_000_000)
  const blob = cluster.put(body, 0, [])
  const order = cluster.view.current().handoffs(0)
  const last = order.at(-1)
  const holder = cluster.nodes.find(node => last !== undefined && node.shards.includes(last))
  if (holder === undefined || last === undefined) throw new Error('there are handoffs')
  holder.put(last, blob, body)
  t.ok((await streamed(cluster.reader, blob)).body.equals(body))
  t.equal(cluster.reader.counters.searches, 1)
})

t.test(
  'I7: when no replica can be reached the read is refused with REPLICAS_UNREACHABLE, whole or streamed',
  async t => {
    const cluster = await startCluster(t)
    const blob = cluster.put(randomBytes(1_000))
    await Promise.all(cluster.nodes.map(node => node.stop()))
    await t.rejects(cluster.reader.readWhole(blob), { code: 'REPLICAS_UNREACHABLE' })
    const stream = await streamed(cluster.reader, blob)
    t.match(stream, { outcome: 'refused', code: 'REPLICAS_UNREACHABLE' })
    await Promise.all(cluster.nodes.map(node => node.start()))
    t.equal((await cluster.reader.readWhole(blob)).length, 1_000, 'and served as soon as they are back')
  },
)

t.test('I5: bytes corrupted on the way are never delivered as a complete body', async t => {
  const cluster = await startCluster(t)
  const body = randomBytes(2 * mib)
  const blob = cluster.put(body)
  for (const node of cluster.nodes) node.fault = () => ({ corruptAt: 1_000_000 })
  const stream = await streamed(cluster.reader, blob)
  t.equal(stream.outcome, 'cut')
  t.ok(stream.body.length <= body.length - 256 * kib, 'the last block was held back')
  t.match(cluster.bad, [{ reason: 'corrupt' }])
  for (const node of cluster.nodes) node.fault = () => ({})
  t.ok((await streamed(cluster.reader, blob)).body.equals(body))
})

t.test('a body small enough to be held back whole is read elsewhere when it is corrupt', async t => {
  const cluster = await startCluster(t)
  const body = randomBytes(200_000)
  const blob = cluster.put(body)
  for (const node of cluster.nodes.slice(0, 2)) node.fault = () => ({ corruptAt: 77 })
  t.ok((await streamed(cluster.reader, blob)).body.equals(body))
})

t.test(
  'I7: the only good replica is read even if it was slow to begin and others were quicker, with corrupt bytes',
  async t => {
    const cluster = await startCluster(t)
    const body = randomBytes(200_000)
    const blob = cluster.put(body)
    const [good, ...others] = cluster.nodes
    good!.fault = () => ({ delayMs: 120 })
    for (const node of others) node.fault = () => ({ corruptAt: 77 })
    for (let turn = 0; turn < 6; turn++) {
      const { outcome, body: found } = await streamed(cluster.reader, blob)
      t.equal(outcome, 'complete')
      t.ok(found.equals(body))
    }
  },
)

t.test('I6: owners that failed early in a long stream are asked again before anybody who may have nothing', async t => {
  const cluster = await startCluster(t, { nodeCount: 4 })
  const body = randomBytes(6 * mib)
  const blob = cluster.put(body)
  const view = cluster.view.current()
  const owners = view.owners(blob.partition).map(shard => view.node(shard).id)
  const [first, second, third] = owners.map(owner => cluster.nodes.find(({ id }) => id === owner)!)
  const other = cluster.nodes.find(({ id }) => !owners.includes(id))
  let failures = 0
  const once = (fault: Fault) => {
    let isOver = false
    return (): Fault => {
      if (isOver) return {}
      isOver = true
      failures += 1
      return fault
    }
  }
  first!.fault = once({ cutAt: mib })
  second!.fault = once({ cutAt: mib })
  third!.fault = once({ freezeAt: mib })
  other!.fault = () => ({ freezeHead: true })
  const stream = await streamed(cluster.reader, blob)
  t.equal(stream.outcome, 'complete')
  t.ok(stream.body.equals(body))
  t.equal(failures, 3)
  t.equal(other!.requests.length, 0)
})

t.test('a stream that lost all replicas in the middle goes on when one is back', async t => {
  const cluster = await startCluster(t)
  const body = randomBytes(4 * mib)
  const blob = cluster.put(body)
  for (const node of cluster.nodes) node.fault = ({ range }) => ({ cutAt: range === undefined ? mib : 0 })
  const streaming = streamed(cluster.reader, blob)
  while (cluster.reader.counters.attempts < 6) await new Promise(resolve => setImmediate(resolve))
  for (const node of cluster.nodes) node.fault = () => ({})
  const stream = await streaming
  t.equal(stream.outcome, 'complete')
  t.ok(stream.body.equals(body))
})

t.test('a slow first byte is hedged, the quicker one wins, and the budget bounds it', async t => {
  const cluster = await startCluster(t)
  const blob = cluster.put(randomBytes(1_000))
  // None is so much slower than the others that it would be left alone; the first is asked first each time.
  for (const [index, node] of cluster.nodes.entries()) node.fault = () => ({ delayMs: index === 0 ? 150 : 65 })
  const count = 30
  for (let index = 0; index < count; index += 1) await cluster.reader.readWhole(blob)
  const { hedges, hedgesWon } = cluster.reader.counters
  t.ok(hedges >= 3 && hedges <= 5 + count * 0.05 + 3, `${hedges} hedges for ${count} reads`)
  t.ok(hedgesWon > 0)
})

t.test('one read that is lost to its hedge is enough to know that a shard is slow', async t => {
  const cluster = await startCluster(t, { times: { ...quickTimes, hedgeMsMin: 60 } })
  const blob = cluster.put(randomBytes(1_000))
  let asked = 0
  // Known to be quick so far.
  for (let index = 0; index < 30; index += 1) await cluster.reader.readWhole(blob)
  cluster.nodes[0]!.fault = () => (asked++, { delayMs: 5_000 })
  for (let index = 0; index < 50; index += 1) await cluster.reader.readWhole(blob)
  const { hedges, hedgesWon, probes } = cluster.reader.counters
  t.ok(hedgesWon >= 1)
  t.ok(asked - probes <= 2, `${asked} asked, ${probes} of them that nobody waits for; ${hedges} hedges`)
  t.ok(probes >= 1, 'it is looked at beside the reads')
})

t.test('a node that answers slowly is left alone until it is seen to be quick again', async t => {
  const cluster = await startCluster(t, { random: Math.random })
  const blobs = Array.from({ length: 12_000 }, () => cluster.put(randomBytes(100)))
  const [slow] = cluster.nodes
  let asked = 0
  const ask = async (count: number): Promise<number> => {
    asked = 0
    for (const blob of blobs.splice(0, count)) await cluster.reader.readWhole(blob)
    return asked
  }
  slow!.fault = () => (asked++, { delayMs: 200 })
  await ask(30)
  const { probes } = cluster.reader.counters
  const few = await ask(150)
  t.ok(few - (cluster.reader.counters.probes - probes) < 5, `${few} of 150`)
  slow!.fault = () => (asked++, {})
  // One byte a second finds out, some of them are needed.
  const again = await eventually('it is asked again', async () => (await ask(50)) > 10, { withinMs: 20_000 })
  t.ok(again)
})

t.test('a connection that the node closed while idle costs one retry on a fresh one, and no failure', async t => {
  const cluster = await startCluster(t)
  const body = randomBytes(1_000)
  const blob = cluster.put(body)
  for (const node of cluster.nodes) node.fault = () => ({ closeAfter: true })
  for (let index = 0; index < 50; index += 1) t.ok((await cluster.reader.readWhole(blob)).equals(body))
  const { retries, stalls } = cluster.reader.counters
  t.ok(retries <= stalls, 'a busy machine may be slow, but nothing failed')
})

t.test('a slow client is no reason to take a node for frozen', async t => {
  const cluster = await startCluster(t, { times: { ...quickTimes, stallMs: 400 } })
  const body = randomBytes(3 * mib)
  const blob = cluster.put(body)
  const stream = await streamed(cluster.reader, blob, undefined, 500)
  t.ok(stream.body.equals(body))
  t.match(cluster.reader.counters, { stalls: 0, resumes: 0 })
})

t.test('what a slow client has not taken yet is never overwritten, also when all bulk buffers are out', async t => {
  const buffers = new ReadBuffers(3)
  const cluster = await startCluster(t, { buffers })
  const body = randomBytes(900_000)
  const blob = cluster.put(body)
  const streams = await Promise.all(Array.from({ length: 8 }, () => streamed(cluster.reader, blob, undefined, 30)))
  t.ok(streams.every(stream => stream.outcome === 'complete' && stream.body.equals(body)))
  t.equal(buffers.outCount, 0, 'and every buffer comes back')
})

t.test('clients that leave mid-answer, three times the pool, leave the connections usable', async t => {
  const cluster = await startCluster(t, { readLimits: { openMax: 8, idleMax: 8, reservedForWhole: 2 } })
  const body = randomBytes(16 * mib)
  const blob = cluster.put(body)
  const url = await startEdge(t, cluster, blob)
  // Their reads could never end by themselves.
  for (const node of cluster.nodes) node.fault = () => ({ freezeAt: 14 * mib })
  for (let round = 0; round < 2; round += 1) {
    await Promise.all(
      Array.from({ length: 8 * 3 }, async () => {
        const response = await request(url)
        response.on('error', () => {}) // The cut is ours.
        // Unread, until the buffers between are full and the connection to the node has been paused.
        await setTimeout(40)
        response.destroy()
      }),
    )
  }
  for (const node of cluster.nodes) node.fault = () => ({})
  const response = await request(url)
  const chunks: Buffer[] = []
  for await (const chunk of response) chunks.push(chunk as Buffer)
  t.ok(Buffer.concat(chunks).equals(body))
  while ([...cluster.clients.all()].some(client => client.inFlight > 0))
    await new Promise(resolve => setImmediate(resolve))
  t.pass('nothing stays in flight')
})

t.test('a stream whose client left before the first byte rejects with the reason of its signal', async t => {
  const cluster = await startCluster(t)
  const blob = cluster.put(randomBytes(2 * mib))
  for (const node of cluster.nodes) node.fault = () => ({ freezeHead: true })
  const abort = new AbortController()
  const { CollectingSink } = await import('./read-support.ts')
  const streaming = cluster.reader.stream(blob, undefined, new CollectingSink(), {
    onStart: () => t.fail('nothing came'),
    signal: abort.signal,
  })
  abort.abort(new Error('gone'))
  await t.rejects(streaming, { message: 'gone' })
  t.ok([...cluster.clients.all()].every(client => client.inFlight === 0))
})
