/** Transfers between real nodes: in bundles and singly, with copies that rot, sources and targets that die, and disks that are full. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type NodeId, parseNodeId, type ShardId } from '../../shared/ids.ts'
import { type TransferAnswer, wirePath } from '../../shared/wire.ts'
import { runStorageNode } from '../../storage-node/main.ts'
import { TransferLimit } from '../../storage-node/transfer-limit.ts'
import { blobName } from '../../storage-node/blob-name.ts'
import { FaultyFs } from './faulty-fs.ts'
import {
  blobFrame,
  NodeClient,
  nodeConfig,
  quiet,
  shardA,
  shardB,
  startNode,
  type TestBlob,
  testBlob,
} from './fixtures.ts'

type Node = Awaited<ReturnType<typeof startNode>>
type Source = { url: string; shard: ShardId }
const fence = { 'holdfast-fence': 'primary:1' }
const nodeB = { node: parseNodeId('b') as NodeId }

async function pair(t: Test, deps: { fs?: FaultyFs } = {}): Promise<{ source: Node; target: Node; root: string }> {
  const root = t.testdir({ one: {}, two: {} })
  const source = await startNode(t, {}, { folder: join(root, 'one') })
  const target = await startNode(t, { ...nodeB, diskCheckMs: 50 }, { folder: join(root, 'two'), ...deps })
  return { source, target, root }
}

const orderOf = (blobs: readonly TestBlob[], sources: readonly Source[]) => ({
  shard: shardB,
  blobs: blobs.map(blob => ({ ...blob, body: undefined, sources })),
})

async function transfer(
  target: Node,
  blobs: readonly TestBlob[],
  ...sources: Source[]
): Promise<TransferAnswer['results']> {
  const answer = await target.client.post(wirePath.transfer, orderOf(blobs, sources), fence)
  if (answer.status !== 200) throw new Error(`transfer: ${answer.status} ${answer.body.toString()}`)
  return (answer.json as unknown as TransferAnswer).results
}

async function fill(node: Node, blobs: readonly TestBlob[], shard: ShardId = shardA): Promise<void> {
  await Promise.all(
    blobs.map(async blob => {
      if (blob.bytes <= 65_536) return node.client.appendBlob(shard, blob)
      return node.client.put(shard, blob)
    }),
  )
}

async function holds(node: Node, blob: TestBlob): Promise<boolean> {
  const answer = await node.client.get(shardB, blob)
  return answer.status === 200 && answer.body.equals(blob.body)
}

/** Something that answers requests for bundles in its own way; the rest goes to the node behind it. Counts what is asked. */
async function inFrontOf(
  t: Test,
  node: Node,
  answer: (request: IncomingMessage, response: ServerResponse) => boolean | Promise<boolean>,
): Promise<Source & { asked: string[] }> {
  const asked: string[] = []
  const server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url?.split('/').slice(1, 3).join('/')}`)
    void (async () => {
      if (await answer(request, response)) return
      const headers = { authorization: request.headers.authorization ?? '' }
      const chunks: Buffer[] = []
      for await (const chunk of request) chunks.push(chunk as Buffer)
      const body = chunks.length === 0 ? undefined : Buffer.concat(chunks)
      const found = await node.client.call(request.method ?? 'GET', request.url ?? '', body, headers)
      response.writeHead(found.status, { 'content-length': found.body.length })
      response.end(found.body)
    })()
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, shard: shardA, asked }
}

const some = (count: number, bytes = 3_000): TestBlob[] => Array.from({ length: count }, () => testBlob(bytes))

/** Flips a bit of a blob that has a file of its own. */
async function rotFile(folder: string, blob: TestBlob): Promise<void> {
  const file = await open(join(folder, shardA, 'blobs', blobName(blob)), 'r+')
  const at = blob.bytes - 7
  await file.write(Buffer.of(blob.body[at]! ^ 1), 0, 1, at)
  await file.close()
}

/** Flips a bit of the blob where it stands in the log. */
async function rot(folder: string, blob: TestBlob): Promise<void> {
  for (const name of await readdir(join(folder, shardA, 'log'))) {
    const file = await open(join(folder, shardA, 'log', name), 'r+')
    const content = await file.readFile()
    const at = content.indexOf(blob.body)
    if (at >= 0) await file.write(Buffer.of(content[at + 10]! ^ 1), 0, 1, at + 10)
    await file.close()
    if (at >= 0) return
  }
  throw new Error('the blob is not in the log')
}

t.test('small blobs come in bundles, large ones by themselves, and all are there', async t => {
  const { source, target } = await pair(t)
  const relay = await inFrontOf(t, source, () => false)
  const blobs = [
    ...some(300),
    testBlob(0),
    testBlob(65_536),
    testBlob(65_537),
    testBlob(3_000_000),
    ...some(150, 40_000),
  ]
  await fill(source, blobs)
  const results = await transfer(target, [...blobs, blobs[0] as TestBlob], relay)
  t.same(new Set(results), new Set(['copied']))
  for (const blob of blobs) if (!(await holds(target, blob))) t.fail(`${blob.digest} of ${blob.bytes} bytes`)
  const bundles = relay.asked.filter(one => one === 'POST v1/bundle').length
  t.equal(relay.asked.length - bundles, 2, 'only the large ones are asked for singly')
  t.ok(bundles <= 4, `${bundles} bundles`)
  t.same(new Set(await transfer(target, blobs, relay)), new Set(['held']))
  const { json } = await target.client.call('GET', `${wirePath.unconfirmed(shardB)}?olderThanMs=0`)
  t.same(json, { blobs: [] }, 'the primary knows who refers to them')
})

t.test('I25: a corrupt copy is not sent but put aside; the others go on, and it comes from elsewhere', async t => {
  const { source, target, root } = await pair(t)
  const blobs = some(40)
  const [bad, absent] = [blobs[7]!, blobs[9]!]
  await fill(
    source,
    blobs.filter(blob => blob !== absent),
  )
  await rot(join(root, 'one'), bad)
  const from = { url: source.url, shard: shardA }
  const results = await transfer(target, blobs, from)
  t.match(results[7], { code: 'REPLICAS_UNREACHABLE', data: { code: 'BLOB_CORRUPT' } })
  t.match(results[9], { code: 'REPLICAS_UNREACHABLE', data: { code: 'BLOB_NOT_FOUND' } })
  t.equal(results.filter(result => result === 'copied').length, 38)
  t.equal((await source.client.get(shardA, bad)).status, 404, 'the source has put it aside')
  await fill(source, [bad, absent], shardB)
  t.same(await transfer(target, [bad, absent], from, { url: source.url, shard: shardB }), ['copied', 'copied'])
  t.ok(await holds(target, bad))
})

t.test('I25: a large copy that is corrupt is found by who copies it, put aside, and comes from elsewhere', async t => {
  const { source, target, root } = await pair(t)
  const bad = testBlob(3_000_000)
  await fill(source, [bad])
  await rotFile(join(root, 'one'), bad)
  const from = { url: source.url, shard: shardA }
  t.match(await transfer(target, [bad], from), [{ code: 'REPLICAS_UNREACHABLE' }])
  t.notOk(await holds(target, bad))
  t.equal((await source.client.get(shardA, bad)).status, 404, 'the source has put it aside')
  await fill(source, [bad], shardB)
  t.same(await transfer(target, [bad], from, { url: source.url, shard: shardB }), ['copied'])
  t.ok(await holds(target, bad))
})

t.test('I5: a large copy that is damaged on its way is asked for once more, and checked before it is sent', async t => {
  const { source, target } = await pair(t)
  const blob = testBlob(3_000_000)
  await fill(source, [blob])
  const asked: (string | undefined)[] = []
  const relay = await inFrontOf(t, source, (request, response) => {
    if (request.method !== 'GET') return false
    asked.push(request.headers['holdfast-unverified'] as string | undefined)
    if (asked.length > 1) return false
    const damaged = Buffer.from(blob.body)
    damaged[2_000_000]! ^= 1
    response.end(damaged)
    return true
  })
  t.same(await transfer(target, [blob], relay), ['copied'])
  t.same(asked, ['sha256', undefined])
  t.ok(await holds(target, blob))
  t.equal((await source.client.get(shardA, blob)).status, 200, 'nothing was wrong with the copy')
})

t.test('a source that dies in the middle: what came stays, the rest comes from the next one', async t => {
  const { source, target } = await pair(t)
  const blobs = some(200, 10_000)
  await fill(source, blobs)
  const dying = await inFrontOf(t, source, async (request, response) => {
    if (!request.url?.startsWith('/v1/bundle')) return false
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const whole = await source.client.call('POST', wirePath.bundle(shardA), Buffer.concat(chunks))
    response.writeHead(200)
    response.write(whole.body.subarray(0, whole.body.length / 2), () => response.destroy())
    return true
  })
  const alone = await transfer(target, blobs, dying)
  const copied = alone.filter(result => result === 'copied').length
  t.ok(copied > 50 && copied < 150, `${copied} of 200 came`)
  t.match(
    alone.find(result => result !== 'copied'),
    { code: 'REPLICAS_UNREACHABLE' },
  )
  const again = await transfer(target, blobs, dying, { url: source.url, shard: shardA })
  t.equal(again.filter(result => result === 'held').length, copied, 'what came is not asked for again')
  t.equal(again.filter(result => result === 'copied').length, 200 - copied)
  for (const blob of blobs) if (!(await holds(target, blob))) t.fail(blob.digest)
})

t.test('I5: bytes that are not those of the digest are not believed, nor what was not asked for', async t => {
  const { source, target } = await pair(t)
  const blobs = some(3)
  const [first, second] = blobs as [TestBlob, TestBlob, TestBlob]
  await fill(source, blobs)
  const answers = {
    'other bytes': blobFrame({ ...first, body: second.body }),
    'a blob nobody asked for': blobFrame(testBlob(100)),
  }
  for (const [what, frame] of Object.entries(answers)) {
    const lying = await inFrontOf(t, source, (_, response) => {
      response.end(Buffer.concat([Buffer.of(0), frame, Buffer.of(2)]))
      return true
    })
    const results = await transfer(target, blobs, lying)
    t.notOk(results.includes('copied'), what)
    t.match(results[0], { code: what === 'other bytes' ? 'CHECKSUM_MISMATCH' : 'REPLICAS_UNREACHABLE' })
    t.notOk(await holds(target, first))
  }
})

t.test('I36: what is deleted while it is being pulled does not come back with the pull', async t => {
  const { source, target } = await pair(t)
  const blobs = [testBlob(900), testBlob(300_000), testBlob(800)]
  await fill(source, blobs)
  const [small, large] = blobs as [TestBlob, TestBlob, TestBlob]
  const deleted = {
    shard: shardB,
    reason: 'deleted',
    blobs: [small, large].map(blob => ({ ...blob, body: undefined })),
  }
  // The collector of garbage tells the target just when the source is about to answer.
  const relay = await inFrontOf(t, source, async () => {
    const { status } = await target.client.post(wirePath.drop, deleted, fence)
    t.equal(status, 200)
    return false
  })
  const results = await transfer(target, blobs, relay)
  t.match(results, [{ code: 'REPLICAS_UNREACHABLE' }, { code: 'REPLICAS_UNREACHABLE' }, 'copied'])
  t.same(await Promise.all(blobs.map(blob => holds(target, blob))), [false, false, true])
  t.match(await transfer(target, blobs, { url: source.url, shard: shardA }), [{ code: 'REPLICAS_UNREACHABLE' }, { code: 'REPLICAS_UNREACHABLE' }, 'held'], 'nor with a later one') // prettier-ignore
})

t.test('a source of an earlier release is asked for one blob after the other', async t => {
  const { source, target } = await pair(t)
  const old = await inFrontOf(t, source, (request, response) => {
    if (!request.url?.startsWith('/v1/bundle')) return false
    request.resume()
    response.writeHead(404).end('{"code":"NOT_FOUND","message":"no such route"}')
    return true
  })
  const blobs = some(10)
  await fill(source, blobs)
  t.same(new Set(await transfer(target, blobs, old)), new Set(['copied']))
  t.equal(old.asked.filter(one => one === 'GET v1/blobs').length, 10)
})

t.test(
  'I5: of a large blob that breaks off, or has other bytes, nothing is left; it comes from the next source',
  async t => {
    const { source, target, root } = await pair(t)
    const blobs = [testBlob(5_000_000), testBlob(5_000_000)]
    await fill(source, blobs)
    const [cut] = blobs as [TestBlob, TestBlob]
    const bad = await inFrontOf(t, source, (request, response) => {
      const isCut = request.url?.includes(cut.digest) === true
      response.writeHead(200, { 'content-length': 5_000_000 })
      if (isCut) response.write(cut.body.subarray(0, 3_000_000), () => response.destroy())
      else response.end(Buffer.concat([cut.body.subarray(0, 4_999_999), Buffer.of(1)]))
      return true
    })
    const good = { url: source.url, shard: shardA }
    const alone = await transfer(target, blobs, bad)
    t.match(alone, [{ code: 'REPLICAS_UNREACHABLE' }, { code: 'CHECKSUM_MISMATCH' }])
    t.same(await readdir(join(root, 'two', shardB, 'tmp')), [])
    for (const blob of blobs) t.notOk(await holds(target, blob))
    t.same(await transfer(target, blobs, bad, good), ['copied', 'copied'])
    for (const blob of blobs) t.ok(await holds(target, blob))
  },
)

t.test('a target whose disk is full says so for what it does not take, and takes it when there is room', async t => {
  const fs = new FaultyFs()
  const { source, target } = await pair(t, { fs })
  const blobs = [...some(80), testBlob(500_000)]
  await fill(source, blobs)
  fs.fails = (operation, path) => (operation === 'write' && path.includes(shardB) ? 'ENOSPC' : undefined)
  const from = { url: source.url, shard: shardA }
  const results = await transfer(target, blobs, from, from)
  t.same(
    [...new Set(results.map(result => (typeof result === 'string' ? result : result.code)))],
    ['INSUFFICIENT_STORAGE'],
  )
  for (const blob of blobs) if (await holds(target, blob)) t.fail('what was refused is held')
  fs.fails = () => undefined
  const deadline = Date.now() + 20_000
  let later = results
  while (later.some(result => typeof result !== 'string') && Date.now() < deadline) {
    await new Promise(resolve => setTimeout(resolve, 20))
    later = await transfer(target, blobs, from)
  }
  t.same(
    [...new Set(later)].filter(result => result !== 'held'),
    ['copied'],
  )
  for (const blob of blobs) if (!(await holds(target, blob))) t.fail(blob.digest)
})

t.test('I23: a target that dies in the middle has what it has whole, and goes on from there', async t => {
  const root = t.testdir({ one: {}, two: {} })
  const source = await startNode(t, {}, { folder: join(root, 'one') })
  const folder = join(root, 'two')
  const blobs = [...some(400, 20_000), ...some(4, 1_000_000)]
  await fill(source, blobs)
  const from = { url: source.url, shard: shardA }
  const running = await runStorageNode(nodeConfig(folder, { ...nodeB, transferBytesPerSec: 20_000_000 }), quiet, {})
  const client = new NodeClient(running.url)
  const cut = client.post(wirePath.transfer, orderOf(blobs, [from]), fence).catch(() => undefined)
  const deadline = Date.now() + 20_000
  const listed = async (): Promise<unknown[]> => {
    return (await client.call('GET', wirePath.blobs(shardB, 0x0a3))).json['blobs'] as unknown[]
  }
  while ((await listed()).length === 0 && Date.now() < deadline) await new Promise(resolve => setImmediate(resolve))
  await Promise.all([cut, running.close(0)])
  await client.close()
  const again = await startNode(t, nodeB, { folder })
  const results = await transfer(again, blobs, from)
  t.same([...new Set(results)].sort(), ['copied', 'held'])
  for (const blob of blobs) if (!(await holds(again, blob))) t.fail(blob.digest)
  t.same(await readdir(join(folder, shardB, 'tmp')), [])
})

t.test('I40: a bundle is given only for names of blobs, to the shard that is asked', async t => {
  const { client } = await startNode(t)
  const blob = testBlob(10)
  await client.appendBlob(shardA, blob)
  const post = (path: string, ...blobs: object[]) => client.post(path, { blobs })
  const good = { ...blob, body: undefined }
  t.equal((await post(wirePath.bundle(shardA), good)).status, 200)
  t.equal((await post(wirePath.bundle(shardA), { ...good, digest: '../../x' })).status, 400)
  t.equal((await post(wirePath.bundle(shardA), { ...good, generation: '../../../../x' })).status, 400)
  t.equal((await post(wirePath.bundle(shardA), ...Array.from({ length: 1_025 }, () => good))).status, 400)
  t.match((await post('/v1/bundle/nobody', good)).json, { code: 'SHARD_UNKNOWN' })
  t.equal((await client.call('POST', wirePath.bundle(shardA), '{}', { authorization: 'Bearer x' })).status, 401)
})

t.test('what a node pulls has so many slots and so many bytes a second, together', async t => {
  let now = 0
  const limit = new TransferLimit(2, 1_000_000, () => now)
  const { signal } = new AbortController()
  let running = 0
  let most = 0
  const ends: (() => void)[] = []
  const work = () =>
    new Promise<void>(resolve => {
      most = Math.max(most, (running += 1))
      ends.push(() => {
        running -= 1
        resolve()
      })
    })
  const all = Array.from({ length: 6 }, () => limit.run(1, { signal }, work))
  const done = Promise.all(all)
  while (ends.length < 6 || running > 0) {
    now += 1
    ends.splice(0).forEach(end => end())
    await new Promise(resolve => setTimeout(resolve, 1))
    if (running === 0 && ends.length === 0) break
  }
  await done
  t.equal(most, 2)
  now += 1_000
  await limit.run(50_000, { signal }, async () => undefined)
  const began = performance.now()
  await limit.run(1, { signal }, async () => undefined)
  t.ok(performance.now() - began >= 40, 'it waits until those before it have used up their time')
  await t.rejects(limit.run(1, { signal: AbortSignal.abort() }, work), { name: 'AbortError' })
})
