import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate, setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { type EntryListing, type LossListing, wirePath } from '../../shared/wire.ts'
import {
  type NodeClient,
  shardA,
  shardB,
  startNode,
  type TestBlob,
  testBlob,
  testReference,
  uploadId,
} from './fixtures.ts'
import { blobName } from '../../storage-node/blob-name.ts'
import { EntryAges } from '../../storage-node/entry-ages.ts'
import { Leftovers } from '../../storage-node/leftovers.ts'
import type { Shard } from '../../storage-node/shard.ts'
import { ShardIndex } from '../../storage-node/index.ts'
import { nodeFs } from '../../storage-node/store-fs.ts'
import { isTrashSlice, trashSlice } from '../../storage-node/trash.ts'
import { FaultyFs } from './faulty-fs.ts'
import { appendBlob, openShard, putFile } from './open-shard.ts'

const isLog = (path: string) => path.includes('/a-1/log/')
const isTemporary = (path: string) => path.includes('/a-1/tmp/')

async function stateOf(client: NodeClient): Promise<string> {
  const { json } = await client.call('GET', wirePath.status)
  return (json['shards'] as { state: string }[]).map(({ state }) => state).join(' ')
}

async function untilState(t: Test, client: NodeClient, expected: string): Promise<void> {
  for (let attempt = 0; attempt < 1000 && (await stateOf(client)) !== expected; attempt += 1) await sleep(5)
  t.equal(await stateOf(client), expected)
}

function dropOrder(...blobs: TestBlob[]) {
  return { shard: shardA, reason: 'deleted', blobs: blobs.map(blob => ({ ...blob, body: undefined })) }
}
const fence = { 'holdfast-fence': 'primary:1' }

t.test(
  'I23: what a failed fsync of the log covered is never acknowledged, the shard reads on and recovers',
  async t => {
    const fs = new FaultyFs()
    const { client, folder, close } = await startNode(t, { markerCheckMs: 30 }, { fs })
    const before = testBlob(1000)
    t.equal(await client.appendBlob(shardA, before), 'ok')
    fs.fails = (operation, path) => (operation === 'datasync' && (isLog(path) || isTemporary(path)) ? 'EIO' : undefined)
    const lost = Array.from({ length: 5 }, () => testBlob(1000))
    const results = await Promise.all(lost.map(blob => client.appendBlob(shardA, blob)))
    for (const result of results) t.match(result, { code: 'SHARD_READ_ONLY' })
    t.equal(await stateOf(client), 'read-only ok')
    t.same((await client.get(shardA, before)).body, before.body, 'reads go on')
    t.equal(await client.appendBlob(shardB, before), 'ok', 'the other shard too')
    t.match((await client.call('PUT', wirePath.upload(shardA, uploadId()), 'x')).json, { code: 'SHARD_READ_ONLY' })
    await sleep(100)
    t.equal(await stateOf(client), 'read-only ok', 'as long as the probe fails')
    for (const blob of lost) t.equal((await client.get(shardA, blob)).status, 404)
    fs.fails = () => undefined
    await untilState(t, client, 'ok ok')
    const after = testBlob(1000)
    t.equal(await client.appendBlob(shardA, after), 'ok')
    await close(0)
    const again = await startNode(t, {}, { folder })
    for (const blob of [before, after]) t.same((await again.client.get(shardA, blob)).body, blob.body)
    for (const blob of lost) t.equal((await again.client.get(shardA, blob)).status, 404, 'nothing refused comes back')
  },
)

t.test('I23: an upload whose fsync fails is refused and leaves nothing', async t => {
  const fs = new FaultyFs()
  const { client, folder } = await startNode(t, { markerCheckMs: 20 }, { fs })
  for (const operation of ['datasync', 'write', 'open'] as const) {
    fs.fails = (found, path) => (found === operation && isTemporary(path) ? 'EIO' : undefined)
    const id = uploadId()
    const refused = await client.call('PUT', wirePath.upload(shardA, id), Buffer.alloc(3_000_000))
    t.match(refused.json, { code: 'SHARD_READ_ONLY' }, operation)
    fs.fails = () => undefined
    t.same(
      (await readdir(join(folder, shardA, 'tmp'))).filter(name => name.startsWith('u')),
      [],
    )
    await untilState(t, client, 'ok ok')
    t.equal((await client.put(shardA, testBlob(100_000))).status, 200)
  }
})

for (const operation of ['rename', 'syncFolder'] as const) {
  t.test(
    `I23: a commit whose ${operation} fails is not acknowledged, and can be tried again as a new upload`,
    async t => {
      const fs = new FaultyFs()
      const { client } = await startNode(t, { markerCheckMs: 20 }, { fs })
      const blob = testBlob(100_000)
      fs.fails = (found, path) => (found === operation && path.includes('/a-1/blobs') ? 'EIO' : undefined)
      t.match((await client.put(shardA, blob)).json, { code: 'SHARD_READ_ONLY' })
      t.equal((await client.get(shardA, blob)).status, 404)
      fs.fails = () => undefined
      await untilState(t, client, 'ok ok')
      t.equal((await client.put(shardA, blob)).status, 200)
      t.same((await client.get(shardA, blob)).body, blob.body)
    },
  )
}

t.test('an unreadable sector is an error, not a missing or corrupt blob', async t => {
  const fs = new FaultyFs()
  const { client } = await startNode(t, {}, { fs })
  const [small, large] = [testBlob(1000), testBlob(100_000)] as const
  await client.appendBlob(shardA, small)
  await client.put(shardA, large)
  fs.fails = (operation, path) => (operation === 'read' && /\/(log|blobs)\//.test(path) ? 'EIO' : undefined)
  for (const blob of [small, large]) t.match((await client.get(shardA, blob)).json, { code: 'SHARD_FAILED' })
  fs.fails = () => undefined
  for (const blob of [small, large]) t.same((await client.get(shardA, blob)).body, blob.body)
})

t.test('I31: on a full disk blobs are refused while references and drops use the reserve', async t => {
  const fs = new FaultyFs()
  let isFull = false
  const limits = { reserveBytes: 1_000_000, diskCheckMs: 1_000_000, markerCheckMs: 30 }
  const { client, folder } = await startNode(t, limits, { fs })
  const [small, large] = [testBlob(1000), testBlob(100_000)] as const
  await client.appendBlob(shardA, small)
  await client.put(shardA, large)
  const hasReserve = async () => (await readdir(join(folder, shardA))).includes('reserve')
  t.ok(await hasReserve())
  fs.fails = (operation, path) => (isFull && operation === 'write' && path.includes('/a-1/') ? 'ENOSPC' : undefined)
  const reserveWasFreed = async () => {
    while (await hasReserve()) await sleep(1)
    isFull = false
  }
  isFull = true
  const [refused, reference] = await Promise.all([
    client.appendBlob(shardA, testBlob(1000)),
    client.appendReference(shardA, testReference('p', 1, small)),
    reserveWasFreed(),
  ])
  t.match(refused, { code: 'INSUFFICIENT_STORAGE' })
  t.ok(reference === 'ok' || reference.code === 'INSUFFICIENT_STORAGE', 'the shim may free it a moment late')
  t.equal(await stateOf(client), 'full ok')
  t.match(await client.appendBlob(shardA, testBlob(10)), { code: 'INSUFFICIENT_STORAGE' })
  t.match((await client.call('PUT', wirePath.upload(shardA, uploadId()), 'x')).json, { code: 'INSUFFICIENT_STORAGE' })
  t.equal(await client.appendReference(shardA, testReference('p', 2, small)), 'ok')
  t.same((await client.get(shardA, small)).body, small.body)
  t.same((await client.get(shardA, large)).body, large.body)
  t.same((await client.post(wirePath.drop, dropOrder(large), fence)).json, { results: ['dropped'] })
})

t.test('an upload announced larger than the room is refused before its body', async t => {
  const fs = new FaultyFs()
  fs.space = async () => ({ bytesTotal: 1_000_000_000, bytesFree: 60_000_000 })
  const { client } = await startNode(t, {}, { fs })
  const header = { 'holdfast-expected-bytes': '20000000' }
  const refused = await client.call('PUT', wirePath.upload(shardA, uploadId()), 'x', header)
  t.equal(refused.status, 507)
  t.equal((await client.call('PUT', wirePath.upload(shardA, uploadId()), 'x')).status, 200)
})

t.test('I31: a real disk that runs full refuses blobs, keeps what it has, deletes, and takes blobs again', async t => {
  // Not in t.testdir(): that is removed before the disk can be unmounted.
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-disk-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const disk = join(folder, shardA)
  await mkdir(disk)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', disk], { stdio: 'pipe' })
  } catch {
    t.comment('not allowed to mount: covered by the shim above only')
    return
  }
  t.teardown(() => void execFileSync('umount', ['--lazy', disk]))
  const limits = { reserveBytes: 256 * 1024 * 1024, diskCheckMs: 20, markerCheckMs: 50, trashHoldMs: 30 }
  const node = await startNode(t, limits, { folder })
  const { client } = node
  const kept: TestBlob[] = []
  let refusals = 0
  for (let round = 0; round < 800 && refusals < 6; round += 1) {
    const blob = testBlob(round % 2 === 0 ? 60_000 : 900_000)
    const answer = blob.bytes > 65_536 ? await putLarge(client, blob) : await client.appendBlob(shardA, blob)
    if (answer === 'ok') kept.push(blob)
    else {
      t.match(answer, { code: 'INSUFFICIENT_STORAGE' })
      if (blob.bytes <= 65_536) refusals += 1
    }
  }
  t.equal(refusals, 6)
  await untilState(t, client, 'full ok')
  t.equal(await client.appendBlob(shardB, testBlob(1000)), 'ok', 'the other disk has room')
  for (const blob of kept) t.ok((await client.get(shardA, blob)).body.equals(blob.body))
  for (let version = 1; version < 50; version += 1) {
    t.equal(await client.appendReference(shardA, testReference('p', version, kept[0])), 'ok')
  }
  const large = kept.filter(blob => blob.bytes > 65_536)
  const gone = large.slice(0, large.length / 2)
  const dropped = await client.post(wirePath.drop, dropOrder(...gone), fence)
  t.same(
    dropped.json['results'],
    gone.map(() => 'dropped'),
  )
  await untilState(t, client, 'ok ok')
  let taken: unknown
  for (let attempt = 0; attempt < 500 && taken !== 'ok'; attempt += 1) {
    taken = await putLarge(client, testBlob(900_000))
    if (taken !== 'ok') await sleep(10) // the trash is still being emptied
  }
  t.equal(taken, 'ok')
  await node.close(0)
  const again = await startNode(t, limits, { folder })
  for (const blob of kept) {
    const answer = await again.client.get(shardA, blob)
    t.equal(answer.status, gone.includes(blob) ? 404 : 200)
  }
  await again.close(0)
})

async function putLarge(client: NodeClient, blob: TestBlob): Promise<unknown> {
  const id = uploadId()
  const upload = await client.call('PUT', wirePath.upload(shardA, id), blob.body)
  if (upload.status !== 200) return upload.json
  const commit = await client.commit(shardA, id, blob)
  return commit.status === 200 ? 'ok' : commit.json
}

t.test('I29: no jump of the clock empties the trash or drops an upload before its hold', async t => {
  const hour = 3_600_000
  const clock = { wall: Date.now(), passed: 0, now: () => clock.wall, monotonic: () => clock.passed }
  const holds = { stagedHoldMs: 24 * hour, trashHoldMs: 24 * hour }
  const { client, folder, node } = await startWithNode(t, holds, clock)
  const blob = testBlob(100_000)
  await client.put(shardA, blob)
  const id = uploadId()
  await client.upload(shardA, id, Buffer.alloc(10))
  await client.post(wirePath.drop, dropOrder(blob), fence)
  const trashCount = async () => {
    const trash = join(folder, shardA, 'trash')
    const days = await readdir(trash)
    return (await Promise.all(days.map(day => readdir(join(trash, day))))).flat().length
  }
  const tick = async () => {
    for (const served of node.shards.values()) {
      await served.uploads.expire()
      await served.trash.empty()
    }
  }
  const isStaged = async () => (await client.call('GET', wirePath.upload(shardA, id))).status === 206
  await tick()
  clock.wall += 48 * hour
  await tick()
  t.equal(await trashCount(), 1, 'a jump ahead')
  t.ok(await isStaged())
  clock.wall -= 96 * hour
  clock.passed += 25 * hour
  await tick()
  t.equal(await trashCount(), 1, 'a jump back: the wall clock says it is too early')
  t.notOk(await isStaged(), 'staged bytes were promised to nobody')
  clock.wall += 100 * hour
  await tick()
  t.equal(await trashCount(), 0, 'both clocks agree')
})

t.test('the trash gives room back slice by slice, also while more comes all the time', async t => {
  const hour = 3_600_000
  const clock = { wall: Date.UTC(2026, 4, 3, 10, 59), passed: 0, now: () => clock.wall, monotonic: () => clock.passed }
  const { client, folder, node } = await startWithNode(t, { trashHoldMs: 24 * hour }, clock)
  const trash = join(folder, shardA, 'trash')
  const ofEarlierRelease = '2026-05-02'
  await mkdir(join(trash, ofEarlierRelease))
  await writeFile(join(trash, ofEarlierRelease, 'some blob'), '')
  const slices: string[] = []
  for (let hours = 0; hours <= 49; hours += 1) {
    const blob = testBlob(70_000)
    await client.put(shardA, blob)
    await client.post(wirePath.drop, dropOrder(blob), fence)
    await node.shards.get(shardA)!.trash.empty()
    slices.push((await readdir(trash)).sort().join(' '))
    clock.wall += hour
    clock.passed += hour
  }
  t.equal(slices[0], '2026-05-02 2026-05-03T10:00')
  t.match(slices[23], /^2026-05-02 2026-05-03T10:00 2026-05-03T11:00 /)
  t.match(slices[24], /^2026-05-03T10:00 2026-05-03T11:00 /, 'a day after it was first seen')
  t.match(slices[25], /^2026-05-03T11:00 /, 'a day after the end of its hour')
  t.equal(slices[49]!.split(' ').length, 25)
})

t.test('what is thrown away goes into the slice of its time, which is no longer than the hold', t => {
  const time = fc.integer({ min: 0, max: Date.UTC(2100, 0) })
  fc.assert(
    fc.property(time, fc.integer({ min: 0, max: 100 * 3_600_000 }), (now, holdMs) => {
      const slice = trashSlice(now, holdMs)
      const begins = Date.parse(`${slice}Z`)
      return (
        isTrashSlice(slice) && begins <= now && now - begins < Math.max(60_000, Math.min(3_600_000, holdMs)) + 60_000
      )
    }),
  )
  t.end()
})

t.test('I29: no clock, be it of a proxy or the node, makes an upload in hand look abandoned', async t => {
  const hour = 3_600_000
  const clock = { wall: Date.now(), passed: 0, now: () => clock.wall, monotonic: () => clock.passed }
  const { client, node } = await startWithNode(t, {}, clock)
  const abandoned = async () => {
    const { json } = await client.call('GET', `${wirePath.unconfirmed(shardA)}?olderThanMs=${hour}`)
    return (json['blobs'] as { digest: string }[]).map(({ digest }) => digest).sort()
  }
  const byProxy = testBlob(10)
  await client.appendBlob(shardA, byProxy, clock.wall - 48 * hour)
  t.same(await abandoned(), [], 'the clock of its proxy is two days late')
  const large = testBlob(100_000)
  await client.put(shardA, large)
  clock.wall += 48 * hour
  t.same(await abandoned(), [], 'the clock of the node jumps ahead')
  clock.passed += hour
  const young = testBlob(10)
  await client.appendBlob(shardA, young, clock.wall - 48 * hour)
  t.same(await abandoned(), [byProxy.digest, large.digest].sort(), 'both clocks agree')
  for (const { shard } of node.shards.values()) await shard.reopen()
  t.same(await abandoned(), [], 'nobody knows how long they had been there')
  clock.passed += hour
  t.same(await abandoned(), [byProxy.digest, large.digest, young.digest].sort())
  await client.appendReference(shardA, testReference('p', 1, large))
  t.same(await abandoned(), [byProxy.digest, young.digest].sort())
})

t.test('I29: for how long a shard has had a blob, or has missed it, is told by its monotonic clock alone', async t => {
  const hour = 3_600_000
  const clock = { wall: Date.now(), passed: 0, now: () => clock.wall, monotonic: () => clock.passed }
  const { client, node } = await startWithNode(t, {}, clock)
  const { shard } = node.shards.get(shardA)!
  const held = async () => {
    const { json } = await client.call('GET', `${wirePath.entries(shardA, 0x0a3)}?of=blobs`)
    return new Map((json as unknown as EntryListing).entries.map(({ key, heldMs }) => [key.slice(0, 64), heldMs]))
  }
  const missed = async () => {
    const { json } = await client.call('GET', wirePath.losses(shardA))
    return (json as unknown as LossListing).losses.map(({ heldMs }) => heldMs)
  }
  const [late, early, large] = [testBlob(10), testBlob(0), testBlob(100_000)]
  await client.appendBlob(shardA, late, clock.wall - 48 * hour)
  clock.wall += 48 * hour
  await client.put(shardA, large)
  clock.wall -= 96 * hour
  clock.passed = 5_000
  await client.appendBlob(shardA, early, clock.wall + 96 * hour)
  clock.passed = 7_000
  const ages = await held()
  t.same([late, large, early].map(({ digest }) => ages.get(digest)), [7_000, 7_000, 2_000]) // prettier-ignore
  // What a reference has named is as old as before.
  await client.appendReference(shardA, testReference('p', 1, late))
  t.equal((await held()).get(late.digest), 7_000)

  const name = blobName(late)
  await shard.quarantine(name, (await shard.locate(name))!, 'a test')
  clock.wall += 96 * hour
  clock.passed = 8_000
  t.same(await missed(), [1_000])
  await shard.reopen()
  clock.passed = 8_500
  t.same(await missed(), [500], 'nobody knows for how long before the start')
  t.same([...(await held()).values()], [500, 500])
})

t.test('ages of unconfirmed blobs take bounded memory and are never more than the truth', t => {
  const ages = new EntryAges(2)
  ages.begin(100)
  const put = (key: string, now: number) => ages.changed([{ type: 'put', key, value: Buffer.alloc(0) }], now)
  put('u/1', 110)
  put('b/1', 110)
  put('u/2', 120)
  put('u/1', 125)
  t.same([ages.age('u/0', 200), ages.age('u/1', 200), ages.age('u/2', 200)], [100, 90, 80])
  put('u/3', 130)
  t.same([ages.age('u/0', 200), ages.age('u/1', 200), ages.age('u/2', 200)], [90, 90, 80])
  ages.changed([{ type: 'del', key: 'u/2' }], 140)
  put('u/4', 150)
  t.same([ages.age('u/3', 200), ages.age('u/4', 200)], [70, 50])
  t.end()
})

t.test('I36: a file without a record is moved to the trash, whatever has a record stays', async t => {
  const before = await startNode(t)
  const { folder } = before
  const blob = testBlob(100_000)
  await before.client.put(shardA, blob)
  await before.close(0)
  const blobs = join(folder, shardA, 'blobs', '0a3')
  const leftover = `${'ab'.repeat(32)}.000000000000`
  await writeFile(join(blobs, leftover), 'left by a crash')
  // They are looked for once after a start.
  const { client, close } = await startNode(t, { stagedHoldMs: 30 }, { folder })
  const busy = Array.from({ length: 5 }, () => testBlob(80_000))
  await Promise.all(busy.map(other => client.put(shardA, other)))
  for (let attempt = 0; attempt < 500 && (await readdir(blobs)).includes(leftover); attempt += 1) await sleep(10)
  t.same((await readdir(blobs)).length, 6)
  const trash = join(folder, shardA, 'trash')
  t.same(await readdir(join(trash, (await readdir(trash))[0] ?? '')), [leftover])
  for (const kept of [blob, ...busy]) t.same((await client.get(shardA, kept)).body, kept.body)
  // It writes every 30 ms: the folder could not be removed under it.
  await close(0)
})

t.test('a look for leftovers ends with its node, and the process stays until then', async t => {
  const looked: string[] = []
  const files = {
    blobFolders: () => Promise.resolve(['001', '002', '003']),
    blobsIn: (folder: string) => Promise.resolve((looked.push(folder), [])),
  }
  const leftovers = new Leftovers({ files } as unknown as Shard)
  const timers = (): number => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
  const before = timers()
  const looking = leftovers.clear()
  await setImmediate()
  t.equal(timers(), before + 1, 'its pause keeps the process')
  leftovers.stop()
  await looking
  t.same(looked, ['001'])
})

async function startWithNode(t: Test, limits: object, clock: { now(): number; monotonic(): number }) {
  const { StorageNode } = await import('../../storage-node/node.ts')
  const { WireServer } = await import('../../storage-node/server.ts')
  const { nodeFs } = await import('../../storage-node/store-fs.ts')
  const { NodeClient: Client, nodeConfig, quiet } = await import('./fixtures.ts')
  const folder = t.testdir()
  const node = new StorageNode(nodeConfig(folder, limits), { fs: nodeFs, log: quiet, clock, version: '0' })
  await node.start()
  const server = new WireServer(node, quiet)
  const client = new Client(await server.listen())
  t.teardown(async () => {
    await client.close()
    await server.close(0)
    await node.close()
  })
  return { client, folder, node }
}

/** The next write of an index fails like this; after it they are as they were. */
function failOneWrite(t: Test, code: string): void {
  const write = Object.getOwnPropertyDescriptor(ShardIndex.prototype, 'write')!
  const restore = () => Object.defineProperty(ShardIndex.prototype, 'write', write)
  t.teardown(restore)
  const value = () => {
    restore()
    return Promise.reject(Object.assign(new Error('no'), { code }))
  }
  Object.defineProperty(ShardIndex.prototype, 'write', { ...write, value })
}

t.test(
  'a group that the index did not take is not passed over: index and log say the same, before and after',
  async t => {
    for (const code of ['LEVEL_IO_ERROR', 'LEVEL_CORRUPTION']) {
      const folder = join(t.testdir(), code)
      const shard = await openShard(nodeFs, folder)
      const [kept, next, later] = [testBlob(100), testBlob(100), testBlob(100)]
      await appendBlob(shard, kept)
      // What only an index that is made anew does not have.
      const stray = [{ type: 'put', key: 'z/stray', value: Buffer.from('x') }] as const
      await shard.lookUp(index => index.write(stray))
      failOneWrite(t, code)
      const dropped = t.rejects(shard.drop(kept, 'moved'), { code: 'SHARD_FAILED' })
      await setImmediate()
      const second = t.rejects(appendBlob(shard, next), { code: 'SHARD_FAILED' })
      await Promise.all([dropped, second])
      await shard.checkpoint()
      await shard.reopen()
      t.equal(shard.health.state, 'ok')
      const hasStray = (await shard.lookUp(index => index.get('z/stray'))) !== undefined
      t.equal(
        hasStray,
        code === 'LEVEL_IO_ERROR',
        `${code}: rot alone has the index made anew, whatever failed behind it`,
      )
      await appendBlob(shard, later)
      const held = async (from: Shard) => Promise.all([kept, next, later].map(async one => (await from.locate(blobName(one))) !== undefined)) // prettier-ignore
      const served = await held(shard)
      t.same(served, [false, true, true], 'as the log says')
      await shard.close()
      await rm(join(folder, 'index'), { recursive: true })
      const again = await openShard(nodeFs, folder)
      t.same(await held(again), served)
      await again.close()
    }
  },
)

t.test('a large blob whose record finds no room leaves no file', async t => {
  const folder = t.testdir()
  const fs = new FaultyFs()
  const shard = await openShard(fs, folder)
  await appendBlob(shard, testBlob(10))
  fs.fails = (operation, path) => (operation === 'write' && path.includes('/log/') ? 'ENOSPC' : undefined)
  for (let round = 0; round < 2; round += 1) {
    await t.rejects(putFile(fs, shard, testBlob(3_000_000)), { code: 'INSUFFICIENT_STORAGE' })
    await shard.health.measure()
  }
  fs.fails = () => undefined
  t.same(await readdir(join(folder, 'blobs', '0a3')), [])
  await shard.close()
})
