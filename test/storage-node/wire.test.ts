import { request as httpRequest } from 'node:http'
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import { encodeClusterMap, sealClusterMap, type ClusterMap } from '../../shared/cluster-map.ts'
import { parseNodeId, parseShardId, parseZone } from '../../shared/ids.ts'
import { encodeRecord } from '../../shared/record.ts'
import { type NodeStatus, type ShardStatus, wireAuthorization, wirePath } from '../../shared/wire.ts'
import { runStorageNode } from '../../storage-node/main.ts'
import { nodeFs, type StoreFs } from '../../storage-node/store-fs.ts'
import {
  type Answer,
  blobFrame,
  clusterId,
  never,
  NodeClient,
  nodeConfig,
  quiet,
  secret,
  shardA,
  shardB,
  startNode,
  testBlob,
  testReference,
  uploadId,
  recovered,
} from './fixtures.ts'

const partitionCount = 4096

function testMap(epoch: number, changes: Partial<ClusterMap> = {}): Buffer {
  const node = parseNodeId('a') ?? never()
  const zone = parseZone('zone-a') ?? never()
  const map = sealClusterMap({
    format: 1,
    clusterId,
    epoch,
    replicas: 1,
    spread: 'strict',
    nodes: [{ id: node, zone, url: 'http://127.0.0.1:1' }],
    shards: [{ id: parseShardId('a-1') ?? never(), node, weight: 1 }],
    table: new Uint16Array(partitionCount),
    copies: 1,
    ...changes,
  })
  return Buffer.from(encodeClusterMap(map))
}

function refused(t: Test, answer: Answer, status: number, code: string): void {
  t.equal(answer.status, status, answer.body.toString())
  t.equal(answer.json['code'], code)
  t.type(answer.json['message'], 'string')
}

t.test('status tells who and how the node is', async t => {
  const { client } = await startNode(t)
  const { status, json } = await client.call('GET', wirePath.status)
  t.equal(status, 200)
  t.match(json, { wire: 1, clusterId, node: 'a', zone: 'zone-a', state: 'up', epoch: 0 })
  t.match(json['shards'], [
    { id: 'a-1', state: 'ok', weight: 1, bytesTotal: Number, bytesFree: Number },
    { id: 'a-2', state: 'ok' },
  ])
})

t.test('without the cluster secret every route answers 401 and does nothing', async t => {
  const { client } = await startNode(t)
  const blob = testBlob(100)
  await client.appendBlob(shardA, blob)
  const id = uploadId()
  const routes: [string, string][] = [
    ['GET', wirePath.status],
    ['POST', wirePath.append],
    ['POST', wirePath.touch],
    ['POST', wirePath.transfer],
    ['POST', wirePath.drop],
    ['POST', wirePath.bundle(shardA)],
    ['GET', wirePath.clusterMap],
    ['PUT', wirePath.clusterMap],
    ['GET', wirePath.blob(shardA, blob.partition, blob.digest, blob.generation)],
    ['GET', wirePath.blobs(shardA, 1)],
    ['GET', wirePath.references(shardA, 1)],
    ['PUT', wirePath.upload(shardA, id)],
    ['GET', wirePath.upload(shardA, id)],
    ['DELETE', wirePath.upload(shardA, id)],
    ['POST', wirePath.commit(shardA, id)],
    ['GET', wirePath.unconfirmed(shardA)],
    ['GET', '/nowhere'],
  ]
  for (const [method, path] of routes) {
    const body = method === 'GET' ? undefined : 'x'
    for (const authorization of ['', 'Bearer wrong', wireAuthorization('another secret'), `Bearer ${secret}`]) {
      refused(t, await client.call(method, path, body, { authorization }), 401, 'WIRE_UNAUTHORIZED')
    }
  }
})

t.test('a small blob is served whole, in part, and as a head', async t => {
  const { client } = await startNode(t)
  for (const bytes of [0, 1, 4096, 4097, 65_536]) {
    const blob = testBlob(bytes)
    t.equal(await client.appendBlob(shardA, blob), 'ok')
    const answer = await client.get(shardA, blob)
    t.equal(answer.status, 200)
    t.same(answer.body, blob.body)
    t.equal(answer.headers['content-length'], String(bytes))
    t.equal(answer.headers['etag'], `"${blob.digest}"`)
    t.equal(answer.headers['holdfast-epoch'], '0')
    t.equal(answer.headers['date'], undefined)
    const path = wirePath.blob(shardA, blob.partition, blob.digest, blob.generation)
    const head = await client.call('HEAD', path)
    t.equal(head.headers['content-length'], String(bytes))
    t.equal(head.body.length, 0)
  }
})

t.test('ranges of blobs in the log and in files', async t => {
  const { client } = await startNode(t)
  const small = testBlob(10_000)
  const large = testBlob(2_500_000)
  await client.appendBlob(shardA, small)
  t.equal((await client.put(shardA, large)).status, 200)
  t.same((await client.get(shardA, large)).body, large.body)
  const block = 262_144
  for (const blob of [small, large]) {
    const end = blob.bytes - 1
    const ranges = [
      [0, 0],
      [0, end],
      [17, 4000],
      [end, end],
      [5, undefined],
      [1, end + 1000],
      ...(blob === large
        ? [
            [block - 1, block],
            [block, 2 * block - 1],
            [4 * block - 1, 4 * block],
            [3, 8 * block + 1],
          ]
        : []),
    ]
    for (const [first = 0, last] of ranges) {
      const answer = await client.get(shardA, blob, { range: `bytes=${first}-${last ?? ''}` })
      const expected = blob.body.subarray(first, (last ?? end) + 1)
      t.equal(answer.status, 206)
      t.ok(answer.body.equals(expected), `${first}-${last}`)
      t.equal(answer.headers['content-range'], `bytes ${first}-${first + expected.length - 1}/${blob.bytes}`)
    }
    refused(t, await client.get(shardA, blob, { range: `bytes=${blob.bytes}-` }), 416, 'RANGE_NOT_SATISFIABLE')
    for (const range of ['bytes=-5', 'bytes=0-1,3-4', 'bytes=5-4', 'lines=1-2', 'bytes=a-b']) {
      refused(t, await client.get(shardA, blob, { range }), 400, 'BAD_REQUEST')
    }
  }
})

t.test('I7: a shard that may lack something says of nothing that it is not there', async t => {
  const folder = t.testdir()
  const first = await startNode(t, {}, { folder })
  const { client } = first
  const statusOf = async (from = client): Promise<ShardStatus | undefined> =>
    ((await from.call('GET', wirePath.status)).json as unknown as NodeStatus).shards.find(({ id }) => id === shardA)
  const absent = `${wirePath.references(shardA, 1)}?key=raw%2Fx`
  const question = { folder: 'raw/', start: 'raw/', limit: 10 }
  const fence = { 'holdfast-fence': 'primary:7' }
  const { recovering = '' } = (await statusOf()) ?? {}
  t.match(recovering, /^[0-9a-f]{16}$/, 'a new disk')
  refused(t, await client.call('GET', absent), 503, 'SHARD_RECOVERING')
  refused(t, await client.post(wirePath.folder(shardA), question), 503, 'SHARD_RECOVERING')
  const reference = testReference('here', 3, testBlob(10))
  await client.appendReference(shardA, reference)
  const present = `${wirePath.references(shardA, reference.partition)}?key=raw%2Fhere`
  t.same((await client.call('GET', present)).json, reference, 'what it has it tells')

  refused(t, await client.post(wirePath.recovered(shardA), { recovering }), 400, 'BAD_REQUEST')
  refused(t, await client.post(wirePath.recovered(shardA), {}, fence), 400, 'BAD_REQUEST')
  refused(t, await client.post(wirePath.recovered(shardA), { recovering: 'another' }, fence), 409, 'CONFLICT')
  t.equal((await client.post(wirePath.recovered(shardA), { recovering }, fence)).status, 200)
  t.equal((await client.post(wirePath.recovered(shardA), { recovering }, fence)).status, 200, 'idempotent')
  refused(t, await client.call('GET', absent), 404, 'REFERENCE_NOT_FOUND')
  t.equal((await client.post(wirePath.folder(shardA), question)).status, 200)
  await first.close(0)

  const again = await startNode(t, {}, { folder })
  t.equal((await statusOf(again.client))?.recovering, undefined, 'for good')
  refused(t, await again.client.call('GET', absent), 404, 'REFERENCE_NOT_FOUND')
})

t.test('what is not there is 404 with the code that says what', async t => {
  const { client } = await startNode(t)
  const blob = testBlob(10)
  await client.appendBlob(shardA, blob)
  refused(t, await client.get(shardB, blob), 404, 'BLOB_NOT_FOUND')
  refused(t, await client.get(shardA, { ...blob, generation: testBlob(1).generation }), 404, 'BLOB_NOT_FOUND')
  refused(t, await client.get(shardA, { ...blob, partition: 1 }), 404, 'BLOB_NOT_FOUND')
  refused(t, await client.get(parseShardId('zzz') ?? never(), blob), 404, 'SHARD_UNKNOWN')
  const id = uploadId()
  refused(t, await client.commit(shardA, id, testBlob(100_000)), 404, 'UPLOAD_NOT_FOUND')
  refused(t, await client.call('GET', wirePath.upload(shardA, id)), 404, 'UPLOAD_NOT_FOUND')
  await recovered(client, shardA)
  refused(t, await client.call('GET', `${wirePath.references(shardA, 1)}?key=raw%2Fx`), 404, 'REFERENCE_NOT_FOUND')
  refused(t, await client.call('GET', wirePath.clusterMap), 404, 'NOT_FOUND')
  refused(t, await client.call('GET', '/v1/nothing'), 404, 'NOT_FOUND')
  refused(t, await client.call('GET', '/v2/status'), 404, 'NOT_FOUND')
  refused(t, await client.call('DELETE', wirePath.status), 405, 'METHOD_NOT_ALLOWED')
})

t.test('a batch is judged record by record', async t => {
  const { client } = await startNode(t)
  const good = testBlob(100)
  const other = testBlob(50)
  const { body, ...key } = testBlob(20)
  const unknownShard = parseShardId('nobody') ?? never()
  const reference = testReference('a', 1, good)
  const results = await client.append(
    [shardA, blobFrame(good)],
    [unknownShard, blobFrame(other)],
    [shardA, encodeRecord({ kind: 'blob', ...key, crc: 1, time: 1 }, body)],
    [shardA, blobFrame({ ...other, digest: good.digest })],
    [shardA, encodeRecord({ kind: 'drop', ...key, reason: 'deleted', time: 1 })],
    [shardA, encodeRecord({ ...reference, partition: (reference.partition + 1) % partitionCount })],
    [shardB, blobFrame(other)],
    [shardA, encodeRecord(reference)],
  )
  const codes = results.map(result => (result === 'ok' ? 'ok' : result.code))
  const expected = ['ok', 'SHARD_UNKNOWN', 'CHECKSUM_MISMATCH', 'CHECKSUM_MISMATCH', 'BAD_REQUEST', 'BAD_REQUEST']
  t.same(codes, [...expected, 'ok', 'ok'])
  t.same((await client.get(shardA, good)).body, good.body)
  t.same((await client.get(shardB, other)).body, other.body)
})

t.test('a damaged batch is refused as a whole, an oversized one too', async t => {
  const { client } = await startNode(t, { appendBytesMax: 100_000 })
  const blob = testBlob(100)
  const whole = Buffer.concat([Buffer.from([shardA.length]), Buffer.from(shardA), blobFrame(blob)])
  for (const damaged of [
    whole.subarray(0, -1),
    Buffer.concat([whole, Buffer.from('x')]),
    Buffer.concat([whole, Buffer.from([3]), Buffer.from('../')]),
  ]) {
    refused(t, await client.call('POST', wirePath.append, damaged), 400, 'RECORD_DAMAGED')
  }
  for (let at = 0; at < whole.length; at += 7) {
    const flipped = Buffer.from(whole)
    flipped[at] = (flipped[at] ?? 0) ^ 0x10
    const { status, json } = await client.call('POST', wirePath.append, flipped)
    const results = json['results'] as { code: string }[] | undefined
    t.ok(status === 400 || results?.[0]?.code === 'SHARD_UNKNOWN', `flip at ${at}`)
  }
  refused(t, await client.get(shardA, blob), 404, 'BLOB_NOT_FOUND')
  refused(t, await client.call('POST', wirePath.append, Buffer.alloc(100_001)), 413, 'TOO_LARGE')
})

t.test('the newest reference of a path wins, in whatever order they come', async t => {
  const { client } = await startNode(t)
  const blob = testBlob(10)
  const path = 'org/lib/1.0/lib ü.jar'
  const versions = [3, 1, 5, 4, 5]
  await Promise.all(versions.map(version => client.appendReference(shardA, testReference(path, version, blob))))
  t.equal(await client.appendReference(shardA, testReference(path, 2)), 'ok')
  const { partition } = testReference(path, 1)
  const url = `${wirePath.references(shardA, partition)}?key=${encodeURIComponent(`raw/${path}`)}`
  t.same((await client.call('GET', url)).json, testReference(path, 5, blob))
  t.equal(await client.appendReference(shardA, testReference(path, 6)), 'ok')
  t.match((await client.call('GET', url)).json, { op: 'delete', version: 6 })
})

t.test('references and blobs of a partition are listed page by page', async t => {
  const { client } = await startNode(t)
  const blobs = Array.from({ length: 7 }, () => testBlob(10, 5))
  await client.append(...blobs.map(blob => [shardA, blobFrame(blob)] as [typeof shardA, Buffer]))
  await client.appendBlob(shardA, testBlob(10, 6))
  const listed: unknown[] = []
  let after = ''
  for (let page = 0; page < 10; page += 1) {
    const { json } = await client.call('GET', `${wirePath.blobs(shardA, 5)}?limit=3${after}`)
    listed.push(...(json['blobs'] as unknown[]))
    if (json['next'] === undefined) break
    after = `&after=${encodeURIComponent(json['next'] as string)}`
  }
  const expected = blobs.map(({ partition, digest, generation, bytes }) => ({ partition, digest, generation, bytes }))
  t.same(
    listed,
    expected.sort((a, b) => (a.digest < b.digest ? -1 : 1)),
  )
  const reference = testReference('some/path', 9, testBlob(3))
  await client.appendReference(shardA, reference)
  const { json } = await client.call('GET', wirePath.references(shardA, reference.partition))
  t.same(json, { references: [reference] })
  refused(t, await client.call('GET', `${wirePath.blobs(shardA, 5)}?limit=x`), 400, 'BAD_REQUEST')
})

t.test('a blob is unconfirmed until a reference on its shard names it', async t => {
  const { client } = await startNode(t)
  const old = testBlob(10)
  const young = testBlob(10)
  const large = testBlob(100_000)
  await client.appendBlob(shardA, old)
  await sleep(600)
  await client.appendBlob(shardA, young)
  await client.put(shardA, large)
  const digests = async (olderThanMs: number) => {
    const { json } = await client.call('GET', `${wirePath.unconfirmed(shardA)}?olderThanMs=${olderThanMs}`)
    return (json['blobs'] as { digest: string; bytes: number; ageMs: number }[]).map(blob => blob.digest)
  }
  t.same(await digests(500), [old.digest])
  await sleep(5)
  t.same((await digests(0)).sort(), [old.digest, young.digest, large.digest].sort())
  await client.appendReference(shardA, testReference('p', 1, old))
  await client.appendReference(shardA, testReference('q', 1, large))
  t.same(await digests(0), [young.digest])
  await client.appendReference(shardB, testReference('r', 1, young))
  t.same(await digests(0), [young.digest], 'a reference on another shard says nothing here')
})

t.test('an upload becomes a blob by its commit, as often as that is asked', async t => {
  const { client, folder } = await startNode(t)
  const blob = testBlob(3_000_001)
  const id = uploadId()
  const staged = await client.upload(shardA, id, blob.body)
  t.equal(staged.bytes, blob.bytes)
  refused(t, await client.get(shardA, blob), 404, 'BLOB_NOT_FOUND')
  refused(t, await client.call('PUT', wirePath.upload(shardA, id), 'x'), 409, 'CONFLICT')
  const commits = await Promise.all([client.commit(shardA, id, blob), client.commit(shardA, id, blob)])
  t.same(
    commits.map(answer => answer.status),
    [200, 200],
  )
  t.equal((await client.commit(shardA, id, blob)).status, 200)
  t.same((await client.get(shardA, blob)).body, blob.body)
  const again = uploadId()
  await client.upload(shardA, again, blob.body)
  t.equal((await client.commit(shardA, again, blob)).status, 200, 'held already')
  t.same(await readdir(join(folder, shardA, 'tmp')), [])
  t.same(await readdir(join(folder, shardA, 'blobs', '0a3')), [`${blob.digest}.${blob.generation}`])
})

t.test('a commit of other bytes than those that arrived is refused and leaves nothing', async t => {
  const { client, folder } = await startNode(t)
  const blob = testBlob(600_000)
  const flipped = Buffer.from(blob.body)
  flipped[300_000] = (flipped[300_000] ?? 0) ^ 1
  for (const arrived of [flipped, blob.body.subarray(0, -1), Buffer.concat([blob.body, Buffer.from('x')])]) {
    const id = uploadId()
    await client.upload(shardA, id, arrived)
    refused(t, await client.commit(shardA, id, blob), 409, 'CHECKSUM_MISMATCH')
    refused(t, await client.commit(shardA, id, blob), 404, 'UPLOAD_NOT_FOUND')
  }
  refused(t, await client.get(shardA, blob), 404, 'BLOB_NOT_FOUND')
  t.same(await readdir(join(folder, shardA, 'tmp')), [])
})

t.test('an upload that breaks off, or is given up, leaves nothing', async t => {
  const { client, folder, url } = await startNode(t)
  const tmp = join(folder, shardA, 'tmp')
  const id = uploadId()
  const { port } = new URL(url)
  const socket = connect(Number(port), '127.0.0.1')
  const head = `PUT ${wirePath.upload(shardA, id)} HTTP/1.1\r\nhost: x\r\nauthorization: ${wireAuthorization(secret)}\r\n`
  socket.write(`${head}content-length: 10000000\r\n\r\n`)
  socket.write(Buffer.alloc(3_000_000))
  await until(async () => (await readdir(tmp)).length === 1)
  socket.destroy()
  await until(async () => (await readdir(tmp)).length === 0)
  const other = uploadId()
  await client.upload(shardA, other, Buffer.alloc(100))
  t.equal((await client.call('DELETE', wirePath.upload(shardA, other))).status, 200)
  t.same(await readdir(tmp), [])
  t.equal((await client.call('DELETE', wirePath.upload(shardA, other))).status, 200, 'again')
})

t.test(
  'I8: an upload that comes behind its own abort leaves nothing, in whatever order the two are handled',
  async t => {
    const { client, folder } = await startNode(t)
    const late = uploadId()
    t.equal((await client.call('DELETE', wirePath.upload(shardA, late))).status, 200)
    refused(t, await client.call('PUT', wirePath.upload(shardA, late), Buffer.alloc(100)), 404, 'UPLOAD_NOT_FOUND')
    const statuses = new Set<number>()
    await Promise.all(
      Array.from({ length: 60 }, async () => {
        const id = uploadId()
        const putting = client.call('PUT', wirePath.upload(shardA, id), Buffer.alloc(200_000))
        const aborting = client.call('DELETE', wirePath.upload(shardA, id))
        statuses.add((await putting).status)
        t.equal((await aborting).status, 200)
      }),
    )
    t.comment(`answers: ${[...statuses].join()}`)
    t.same(await readdir(join(folder, shardA, 'tmp')), [])
  },
)

t.test('uploads that break off before their file is there leave nothing', async t => {
  const { client, folder, url } = await startNode(t)
  const { port } = new URL(url)
  const head = (id: string) =>
    `PUT ${wirePath.upload(shardA, id)} HTTP/1.1\r\nhost: x\r\nauthorization: ${wireAuthorization(secret)}\r\n`
  const sockets = Array.from({ length: 40 }, () => connect(Number(port), '127.0.0.1'))
  await Promise.all(sockets.map(socket => once(socket, 'connect')))
  // All in one turn: each is reset while the node opens its file.
  for (const socket of sockets) {
    socket.write(`${head(uploadId())}content-length: 1000000\r\n\r\n`, () => socket.resetAndDestroy())
  }
  await Promise.all(sockets.map(socket => once(socket, 'close')))
  // One that comes behind them: by its answer they have all begun.
  const last = uploadId()
  await client.upload(shardA, last, Buffer.alloc(100))
  await client.call('DELETE', wirePath.upload(shardA, last))
  await until(async () => (await readdir(join(folder, shardA, 'tmp'))).length === 0)
})

t.test('what an upload in flight has written so far can be read by a late joiner', async t => {
  const { client } = await startNode(t)
  const blob = testBlob(5_000_000)
  const id = uploadId()
  const body = new Readable({ read: () => undefined })
  const upload = client.call('PUT', wirePath.upload(shardA, id), body)
  body.push(blob.body.subarray(0, 3_000_000))
  const path = wirePath.upload(shardA, id)
  let answer: Answer | undefined
  await until(async () => {
    answer = await client.call('GET', path, undefined, { range: 'bytes=1000000-9999999' })
    return answer.status === 206 && answer.body.length > 1_000_000
  })
  t.ok(answer?.body.equals(blob.body.subarray(1_000_000, 1_000_000 + (answer?.body.length ?? 0))))
  refused(t, await client.commit(shardA, id, blob), 409, 'CONFLICT')
  body.push(blob.body.subarray(3_000_000))
  body.push(null)
  t.equal((await upload).status, 200)
  const rest = await client.call('GET', path, undefined, { range: 'bytes=2999999-' })
  t.same(rest.body, blob.body.subarray(2_999_999))
  t.equal((await client.commit(shardA, id, blob)).status, 200)
})

t.test('what a commit moves away between the look-up and the opening of its file can still be read', async t => {
  // Each pauses where it is told to, once.
  const pauses = new Map<string, { reached: () => void; resumed: Promise<void> }>()
  const pause = (what: string) => {
    let resume = (): void => undefined
    const resumed = new Promise<void>(resolve => (resume = resolve))
    const reached = new Promise<void>(resolve => pauses.set(what, { reached: resolve, resumed }))
    return { reached, resume }
  }
  const pass = async (what: string) => {
    const found = pauses.get(what)
    pauses.delete(what)
    found?.reached()
    await found?.resumed
  }
  const fs: StoreFs = {
    ...nodeFs,
    open: async (path, mode) => {
      if (mode === 'read' && path.includes('/tmp/')) await pass('open')
      return nodeFs.open(path, mode)
    },
    syncFolder: async path => {
      if (path.includes('/blobs/')) await pass('sync')
      await nodeFs.syncFolder(path)
    },
  }
  const { client } = await startNode(t, {}, { fs })
  const stage = async () => {
    const blob = testBlob(300_000)
    const id = uploadId()
    await client.upload(shardA, id, blob.body)
    return { blob, id, read: () => client.call('GET', wirePath.upload(shardA, id)) }
  }
  const moved = await stage()
  const syncing = pause('sync')
  const commit = client.commit(shardA, moved.id, moved.blob)
  await syncing.reached
  const during = await moved.read()
  syncing.resume()
  t.equal((await commit).status, 200)
  t.same([during.status, during.body], [206, moved.blob.body], 'moved, and not yet a blob')
  refused(t, await moved.read(), 404, 'UPLOAD_NOT_FOUND')
  t.same((await client.get(shardA, moved.blob)).body, moved.blob.body)

  const overtaken = await stage()
  const opening = pause('open')
  const read = overtaken.read()
  await opening.reached
  t.equal((await client.commit(shardA, overtaken.id, overtaken.blob)).status, 200)
  opening.resume()
  t.same((await read).body, overtaken.blob.body, 'looked up before the commit')

  const dropped = await stage()
  const reopening = pause('open')
  const late = dropped.read()
  await reopening.reached
  await client.call('DELETE', wirePath.upload(shardA, dropped.id))
  reopening.resume()
  refused(t, await late, 404, 'UPLOAD_NOT_FOUND')
})

t.test('a refused upload is answered at once, its body drained, its connection kept', async t => {
  const { url } = await startNode(t)
  const { port } = new URL(url)
  const socket = connect(Number(port), '127.0.0.1')
  t.teardown(() => socket.destroy())
  const authorization = `authorization: ${wireAuthorization(secret)}\r\n`
  let received = ''
  socket.setEncoding('latin1')
  socket.on('data', (text: string) => (received += text))
  socket.write(`PUT ${wirePath.upload(parseShardId('nobody') ?? never(), uploadId())} HTTP/1.1\r\nhost: x\r\n`)
  socket.write(`${authorization}content-length: 5000000\r\n\r\n`)
  await until(() => received.includes('SHARD_UNKNOWN'))
  t.match(received, /^HTTP\/1.1 404/)
  socket.write(Buffer.alloc(5_000_000))
  received = ''
  socket.write(`GET ${wirePath.status} HTTP/1.1\r\nhost: x\r\n${authorization}\r\n`)
  await until(() => received.includes('"wire":1'))
  t.match(received, /^HTTP\/1.1 200/)
})

t.test('touch: held, missing, unavailable', async t => {
  const { client } = await startNode(t)
  const small = testBlob(10)
  const large = testBlob(200_000)
  await client.appendBlob(shardA, small)
  await client.put(shardB, large)
  const item = (blob: typeof small, shard: string) => ({ ...blob, body: undefined, shard })
  const items = [item(small, shardA), item(large, shardB), item(large, shardA), item(small, 'nobody')]
  t.same((await client.post(wirePath.touch, { items })).json, { results: ['held', 'held', 'missing', 'unavailable'] })
})

t.test(
  'I27: commands of the primary need its fencing token, and an older one is refused even after a restart',
  async t => {
    const { client, folder, close } = await startNode(t)
    const blobs = [testBlob(10), testBlob(100_000), testBlob(10)] as const
    await client.appendBlob(shardA, blobs[0])
    await client.put(shardA, blobs[1])
    await client.appendBlob(shardA, blobs[2])
    const order = (...dropped: { body: Buffer }[]) => ({
      shard: shardA,
      reason: 'deleted',
      blobs: dropped.map(blob => ({ ...blob, body: undefined })),
    })
    refused(t, await client.post(wirePath.drop, order(blobs[0])), 400, 'BAD_REQUEST')
    refused(t, await client.post(wirePath.drop, order(blobs[0]), { 'holdfast-fence': 'primary' }), 400, 'BAD_REQUEST')
    const dropped = await client.post(wirePath.drop, order(blobs[0], blobs[1]), { 'holdfast-fence': 'primary:7' })
    t.same(dropped.json, { results: ['dropped', 'dropped'] })
    refused(t, await client.get(shardA, blobs[0]), 404, 'BLOB_NOT_FOUND')
    refused(t, await client.get(shardA, blobs[1]), 404, 'BLOB_NOT_FOUND')
    const today = (await readdir(join(folder, shardA, 'trash')))[0] ?? ''
    t.same(await readdir(join(folder, shardA, 'trash', today)), [`${blobs[1].digest}.${blobs[1].generation}`])
    refused(t, await client.post(wirePath.drop, order(blobs[2]), { 'holdfast-fence': 'primary:6' }), 409, 'STALE_TOKEN')
    await close(0)
    const again = await startNode(t, {}, { folder })
    const stale = await again.client.post(wirePath.drop, order(blobs[2]), { 'holdfast-fence': 'primary:6' })
    refused(t, stale, 409, 'STALE_TOKEN')
    t.equal((await again.client.get(shardA, blobs[2])).status, 200)
    const repeated = await again.client.post(wirePath.drop, order(...blobs), { 'holdfast-fence': 'primary:7' })
    t.same(repeated.json, { results: ['missing', 'missing', 'dropped'] })
  },
)

t.test('transfer pulls blobs from other nodes, verified, and asks the next source when one fails', async t => {
  const root = t.testdir({ one: {}, two: {} })
  const source = await startNode(t, {}, { folder: join(root, 'one') })
  const target = await startNode(t, { node: parseNodeId('b') ?? never() }, { folder: join(root, 'two') })
  const blobs = [testBlob(1000), testBlob(2_000_000), testBlob(0), testBlob(70_000)] as const
  for (const blob of blobs.slice(0, 3)) {
    t.equal(
      await (blob.bytes > 65_536 ? client200(source.client.put(shardA, blob)) : source.client.appendBlob(shardA, blob)),
      'ok',
    )
  }
  const good = { url: source.url, shard: shardA }
  const bad = [
    { url: 'http://127.0.0.1:1', shard: shardA },
    { url: source.url, shard: shardB },
  ]
  const order = {
    shard: shardB,
    blobs: blobs.map(blob => ({ ...blob, body: undefined, sources: [...bad, good] })),
  }
  refused(t, await target.client.post(wirePath.transfer, order), 400, 'BAD_REQUEST')
  const first = (await target.client.post(wirePath.transfer, order, { 'holdfast-fence': 'primary:1' })).json['results']
  t.match(first, ['copied', 'copied', 'copied', { code: 'REPLICAS_UNREACHABLE' }])
  const second = (await target.client.post(wirePath.transfer, order, { 'holdfast-fence': 'primary:1' })).json['results']
  t.match(second, ['held', 'held', 'held', { code: 'REPLICAS_UNREACHABLE' }])
  for (const blob of blobs.slice(0, 3)) t.same((await target.client.get(shardB, blob)).body, blob.body)
  const { json } = await target.client.call('GET', `${wirePath.unconfirmed(shardB)}?olderThanMs=0`)
  t.same(json, { blobs: [] }, 'the primary knows who refers to them')
})

t.test('a source that sends other bytes than the digest says is not believed', async t => {
  const root = t.testdir({ one: {}, two: {} })
  const source = await startNode(t, {}, { folder: join(root, 'one') })
  const target = await startNode(t, {}, { folder: join(root, 'two') })
  const blob = testBlob(100_000)
  const other = testBlob(100_000)
  // A commit compares checksums with the proxy's and trusts its digest; so a lying proxy makes such a copy.
  const id = uploadId()
  await source.client.upload(shardA, id, other.body)
  t.equal(
    (await source.client.commit(shardA, id, { ...other, digest: blob.digest, generation: blob.generation })).status,
    200,
  )
  const order = { shard: shardA, blobs: [{ ...blob, body: undefined, sources: [{ url: source.url, shard: shardA }] }] }
  const { json } = await target.client.post(wirePath.transfer, order, { 'holdfast-fence': 'primary:1' })
  t.match(json['results'], [{ code: 'CHECKSUM_MISMATCH' }])
  refused(t, await target.client.get(shardA, blob), 404, 'BLOB_NOT_FOUND')
  t.same(await readdir(join(root, 'two', shardA, 'tmp')), [])
})

t.test('the cluster map only grows, survives a restart, and must be of this cluster', async t => {
  const { client, folder, close } = await startNode(t)
  t.equal((await client.call('PUT', wirePath.clusterMap, testMap(3))).status, 200)
  t.same((await client.call('GET', wirePath.clusterMap)).body, testMap(3))
  t.equal((await client.call('PUT', wirePath.clusterMap, testMap(3))).status, 200, 'the same again')
  const fence = (token: number) => ({ 'holdfast-fence': `primary:${token}` })
  t.equal((await client.call('PUT', wirePath.clusterMap, testMap(3), fence(9))).status, 200)
  const drop = JSON.stringify({ shard: shardA, reason: 'moved', blobs: [] })
  refused(t, await client.call('POST', wirePath.drop, drop, fence(8)), 409, 'STALE_TOKEN')
  refused(t, await client.call('PUT', wirePath.clusterMap, testMap(3), fence(8)), 409, 'STALE_TOKEN')
  refused(t, await client.call('PUT', wirePath.clusterMap, testMap(2)), 409, 'STALE_EPOCH')
  refused(t, await client.call('PUT', wirePath.clusterMap, testMap(3, { replicas: 2 })), 409, 'STALE_EPOCH')
  refused(
    t,
    await client.call('PUT', wirePath.clusterMap, testMap(4, { clusterId: 'other' })),
    400,
    'CLUSTER_MAP_INVALID',
  )
  const broken = Buffer.from(testMap(4).toString().replace('"epoch":4', '"epoch":5'))
  refused(t, await client.call('PUT', wirePath.clusterMap, broken), 400, 'CLUSTER_MAP_INVALID')
  await close(0)
  const again = await startNode(t, {}, { folder })
  t.same((await again.client.call('GET', wirePath.clusterMap)).body, testMap(3))
  t.equal((await again.client.call('GET', wirePath.status)).headers['holdfast-epoch'], '3')
})

t.test('a node without a cluster joins the one whose map it is given first', async t => {
  const folder = t.testdir()
  const { clusterId: known, ...config } = nodeConfig(folder)
  t.equal(known, clusterId)
  const running = await runStorageNode(config, quiet)
  const client = new NodeClient(running.url)
  t.match((await client.call('GET', wirePath.status)).json, { clusterId: '', shards: [{ state: 'failed' }, {}] })
  t.match(await client.appendBlob(shardA, testBlob(1)), { code: 'SHARD_FAILED' })
  t.equal((await client.call('PUT', wirePath.clusterMap, testMap(1))).status, 200)
  t.match((await client.call('GET', wirePath.status)).json, { clusterId, shards: [{ state: 'ok' }, { state: 'ok' }] })
  t.equal(await client.appendBlob(shardA, testBlob(1)), 'ok')
  await client.close()
  await running.close(0)
  const again = await runStorageNode(config, quiet)
  await again.close(0)
  await t.rejects(runStorageNode({ ...config, clusterId: 'other' }, quiet), { code: 'CONFIG_INVALID' })
})

t.test('two processes never serve one folder', async t => {
  const { folder } = await startNode(t)
  await t.rejects(runStorageNode(nodeConfig(folder), quiet), { code: 'DATA_IN_USE' })
  const moved = nodeConfig(folder, { stateFolder: join(folder, 'other-state') })
  await t.rejects(runStorageNode(moved, quiet), { code: 'DATA_IN_USE' })
})

t.test('I40: ids and paths of a hostile request never leave their folders', async t => {
  const { client, folder } = await startNode(t)
  const before = await tree(folder)
  const digest = 'a'.repeat(64)
  const paths = [
    ['GET', `/v1/blobs/a-1/0a3/..%2f..%2fholdfast.json`],
    ['GET', `/v1/blobs/a-1/../${digest}.aaaaaaaaaaaa`],
    ['GET', `/v1/blobs/../0a3/${digest}.aaaaaaaaaaaa`],
    ['GET', `/v1/blobs/a-1/0A3/${digest}.aaaaaaaaaaaa`],
    ['GET', `/v1/blobs/a-1/0a3/${digest}./etc/passwd`],
    ['GET', `/v1/blobs/a-1/0a3/${'A'.repeat(64)}.aaaaaaaaaaaa`],
    ['PUT', '/v1/uploads/a-1/../../../x'],
    ['PUT', '/v1/uploads/a-1/..%2f..%2fx'],
    ['PUT', '/v1/uploads/a-1/u%2e%2e'],
    ['PUT', `/v1/uploads/a-1/u${'A'.repeat(25)}`],
    ['PUT', `/v1/uploads/a-1/u${'a'.repeat(26)}`],
    ['DELETE', '/v1/uploads/a-1/..'],
    ['GET', '/v1/references/a-1/xyz'],
    ['GET', '/v1/unconfirmed/..'],
    ['GET', '/v1/constructor'],
    ['GET', '/v1/__proto__'],
  ] as const
  for (const [method, path] of paths) {
    const { status } = await raw(client.url, method, path)
    t.ok(status >= 400 && status < 500, `${method} ${path}: ${status}`)
  }
  const keys = [
    { partition: 1, digest: '../../x', generation: 'aaaaaaaaaaaa' },
    { partition: 1, digest, generation: '../aaaaaaaaa' },
    { partition: '../', digest, generation: 'aaaaaaaaaaaa' },
    { partition: 4096, digest, generation: 'aaaaaaaaaaaa' },
    { partition: -1, digest, generation: 'aaaaaaaaaaaa' },
    { partition: 1.5, digest, generation: 'aaaaaaaaaaaa' },
    { partition: 1, digest: [digest], generation: 'aaaaaaaaaaaa' },
    { partition: 1, digest: { length: 64 }, generation: 'aaaaaaaaaaaa' },
  ]
  const fence = { 'holdfast-fence': 'primary:1' }
  for (const key of keys) {
    refused(t, await client.post(wirePath.touch, { items: [{ ...key, shard: shardA }] }), 400, 'BAD_REQUEST')
    const drop = { shard: shardA, reason: 'deleted', blobs: [key] }
    refused(t, await client.post(wirePath.drop, drop, fence), 400, 'BAD_REQUEST')
    const id = uploadId()
    await client.upload(shardA, id, Buffer.alloc(0))
    refused(t, await client.post(wirePath.commit(shardA, id), { ...key, bytes: 0, blockCrcs: '' }), 400, 'BAD_REQUEST')
    await client.call('DELETE', wirePath.upload(shardA, id))
    const hostile = { kind: 'blob', ...key, bytes: 0, crc: 0, time: 1 } as unknown as Parameters<typeof encodeRecord>[0]
    t.match((await client.append([shardA, encodeRecord(hostile)]))[0], { code: 'BAD_REQUEST' })
  }
  for (const body of ['', '[]', 'null', '{', '{"items":1}', '{"items":[null]}']) {
    refused(t, await client.call('POST', wirePath.touch, body), 400, 'BAD_REQUEST')
  }
  t.same(await tree(folder), before)
})

t.test('a header cannot make a record another one than its kind says', async t => {
  const { client } = await startNode(t)
  const blob = testBlob(10)
  await client.appendBlob(shardA, blob)
  const { body, ...key } = testBlob(10)
  const frame = encodeRecord({ kind: 'blob', ...key, crc: 0, time: 1 }, body)
  const text = frame.toString('latin1').replace('"time":1', '"kind":"drop"')
  t.not(text, frame.toString('latin1'))
  const results = await client
    .append([shardA, encodeRecord({ ...key, kind: 'reference' } as unknown as Parameters<typeof encodeRecord>[0])])
    .catch(() => 'refused')
  t.match(results, [{ code: 'BAD_REQUEST' }])
  t.same((await client.get(shardA, blob)).body, blob.body)
})

t.test('I39: a draining node says so, goes on until that is heard and its uploads are committed, and ends', async t => {
  const { client, folder, close } = await startNode(t)
  const blob = testBlob(2_000_000)
  const id = uploadId()
  const body = new Readable({ read: () => undefined })
  const upload = client.call('PUT', wirePath.upload(shardA, id), body)
  body.push(blob.body.subarray(0, 1_000_000))
  await until(async () => (await readdir(join(folder, shardA, 'tmp'))).length === 1)
  const { run } = (await client.call('GET', wirePath.status)).json
  let closed = false
  const closing = close(20_000).then(() => (closed = true))
  const startedAt = performance.now()
  t.match((await client.call('GET', wirePath.status)).json, { state: 'draining', run })
  t.type(run, 'string')
  const late = testBlob(100_000)
  await client.put(shardA, late)
  t.ok((await client.get(shardA, late)).body.equals(late.body), 'who has not heard it is served as ever')
  await until(async () => {
    const path = wirePath.upload(shardA, uploadId())
    const { status } = await client.call('PUT', path, late.body)
    await client.call('DELETE', path)
    return status === 503
  })
  t.ok(performance.now() - startedAt > 1_500, 'until everybody has')
  body.push(blob.body.subarray(1_000_000))
  body.push(null)
  t.equal((await upload).status, 200)
  await sleep(200)
  t.equal(closed, false, 'what was received will be committed')
  await client.commit(shardA, id, blob)
  await closing
  t.ok(performance.now() - startedAt < 10_000)
  await t.rejects(client.call('GET', wirePath.status), 'takes no connections')
})

t.test('what does not end in time is cut off', async t => {
  const { client, close, folder } = await startNode(t)
  const body = new Readable({ read: () => undefined })
  const upload = client.call('PUT', wirePath.upload(shardA, uploadId()), body)
  body.push(Buffer.alloc(10))
  upload.catch(() => undefined)
  await until(async () => (await readdir(join(folder, shardA, 'tmp'))).length === 1)
  await close(50)
  await t.rejects(upload)
  t.same(await readdir(join(folder, shardA, 'tmp')), [])
})

t.test('a client that stalls in its upload is cut off', async t => {
  const { client, folder } = await startNode(t, { stallMs: 100 })
  const body = new Readable({ read: () => undefined })
  body.push(Buffer.alloc(10))
  await t.rejects(client.call('PUT', wirePath.upload(shardA, uploadId()), body))
  await until(async () => (await readdir(join(folder, shardA, 'tmp'))).length === 0)
})

t.test('clients that leave in the middle of an answer cost nothing that lasts', async t => {
  const { client, url } = await startNode(t, { openFileCountMax: 2 })
  const blobs = [testBlob(5_000_000), testBlob(3_000_000), testBlob(4_000_000)] as const
  for (const blob of blobs) await client.put(shardA, blob)
  const { port } = new URL(url)
  for (let round = 0; round < 60; round += 1) {
    const blob = blobs[round % 3] ?? blobs[0]
    const path = wirePath.blob(shardA, blob.partition, blob.digest, blob.generation)
    const socket = connect(Number(port), '127.0.0.1')
    socket.write(`GET ${path} HTTP/1.1\r\nhost: x\r\nauthorization: ${wireAuthorization(secret)}\r\n\r\n`)
    await once(socket, 'data')
    socket.destroy()
  }
  const answers = await Promise.all(blobs.flatMap(blob => [client.get(shardA, blob), client.get(shardA, blob)]))
  answers.forEach((answer, index) => t.ok(answer.body.equals(blobs[index >> 1]?.body ?? Buffer.alloc(0))))
})

t.test('more uploads at once than allowed are refused', async t => {
  const { client } = await startNode(t, { uploadCountMax: 1 })
  const body = new Readable({ read: () => undefined })
  const id = uploadId()
  const upload = client.call('PUT', wirePath.upload(shardA, id), body)
  body.push(Buffer.alloc(10))
  await until(async () => (await client.call('GET', wirePath.upload(shardA, id))).status !== 404)
  refused(t, await client.call('PUT', wirePath.upload(shardA, uploadId()), 'x'), 503, 'OVERLOADED')
  body.push(null)
  t.equal((await upload).status, 200)
})

async function client200(answer: Promise<Answer>): Promise<'ok' | number> {
  const { status } = await answer
  return status === 200 ? 'ok' : status
}

/** A request whose path reaches the node as it is written here. */
async function raw(url: string, method: string, path: string): Promise<{ status: number }> {
  const { port } = new URL(url)
  const request = httpRequest({ port, method, path, headers: { authorization: wireAuthorization(secret) } })
  request.end()
  const [response] = (await once(request, 'response')) as [{ statusCode: number; resume(): void }]
  response.resume()
  return { status: response.statusCode }
}

async function tree(folder: string): Promise<string[]> {
  const names = await readdir(folder, { recursive: true })
  // LevelDB renames its own files as it likes.
  return names.filter(name => !/\/index\/|\/lock\/|\.log$/.test(name)).sort()
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 10_000
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error('what the test waits for did not happen')
    await sleep(5)
  }
}
