import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { blobName } from '../../storage-node/blob-name.ts'
import { Compaction } from '../../storage-node/compact.ts'
import type { StorageNodeLimits } from '../../storage-node/config.ts'
import { listLosses } from '../../storage-node/lists.ts'
import { Scrub } from '../../storage-node/scrub.ts'
import { readScrubState, scrubIsDue, scrubRate } from '../../storage-node/scrub-state.ts'
import { newRecord } from '../../storage-node/log.ts'
import type { Shard } from '../../storage-node/shard.ts'
import { nodeFs, type StoreFs } from '../../storage-node/store-fs.ts'
import { FaultyFs } from './faulty-fs.ts'
import { never, shardA, startNode, type TestBlob, testBlob, testReference } from './fixtures.ts'
import { appendBlob, openShard, putFile } from './open-shard.ts'

const dayMs = 86_400_000

interface World {
  shard: Shard
  scrub: Scrub
  readonly folder: string
  readonly clock: { wall: number; mono: number }
  /** Closes and opens again, as another process would. */
  restart(rebuild?: boolean): Promise<void>
}

async function world(t: Test, limits: Partial<StorageNodeLimits> = {}, fs: StoreFs = nodeFs): Promise<World> {
  const folder = t.testdir()
  const clock = { wall: Date.parse('2030-01-01T00:00:00Z'), mono: 1_000 }
  const fast = { scrubBytesPerSecMin: 1e12, scrubBytesPerSecMax: 1e12, ...limits }
  const open = async (): Promise<Pick<World, 'shard' | 'scrub'>> => {
    const shard = await openShard(fs, folder, fast, { now: () => clock.wall, monotonic: () => clock.mono })
    return { shard, scrub: new Scrub({ fs, shard }) }
  }
  const made: World = {
    ...(await open()),
    folder,
    clock,
    async restart(rebuild = false) {
      await made.shard.close()
      if (rebuild)
        for (const name of await nodeFs.list(join(folder, 'index'))) await nodeFs.unlink(join(folder, 'index', name))
      Object.assign(made, await open())
    },
  }
  t.teardown(() => made.shard.close())
  return made
}

async function flipBit(shard: Shard, blob: TestBlob, random: number): Promise<void> {
  const location = await shard.locate(blobName(blob))
  if (location === undefined) throw new Error('not there')
  const isFile = location.kind === 'file'
  const path = isFile ? shard.files.blob(blobName(blob)) : shard.segmentPath(location.segment)
  const content = await readFile(path)
  const at = (isFile ? 0 : location.offset) + (random % blob.bytes)
  content[at] = (content[at] ?? 0) ^ (1 << (random % 8))
  await writeFile(path, content)
}

/** Path of the segment that the next records go to; everything before is sealed. */
async function segmentOfNext(shard: Shard): Promise<string> {
  const filler = testBlob(4_000, 5)
  await appendBlob(shard, filler)
  await shard.drop(filler, 'deleted')
  return shard.segmentPath(shard.currentSegment)
}

t.test('I25: whichever bit of whichever blob is flipped, one pass finds it and nothing else', async t => {
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  const { shard, scrub, clock } = await world(t)
  const small = Array.from({ length: 30 }, (_, index) => testBlob(10 + index * 1_000, index * 100))
  const large = Array.from({ length: 8 }, (_, index) => testBlob(70_000 + index * 150_000, index * 300 + 7))
  for (const blob of small) await appendBlob(shard, blob)
  for (const blob of large) await putFile(nodeFs, shard, blob)
  let random = seed
  const bad = new Set<TestBlob>()
  for (let round = 0; round < 6; round += 1) {
    random = (random * 48_271 + 11) % 2_147_483_647
    const among = (round % 2 === 0 ? small : large).filter(blob => !bad.has(blob))
    const victim = among[random % among.length] as TestBlob
    await flipBit(shard, victim, random)
    bad.add(victim)
    clock.wall += 20 * dayMs
    await scrub.run()
    const { last, losses } = scrub.status
    t.equal(last?.bad, 1, `round ${round}: one is found`)
    t.equal(last?.blobs, small.length + large.length - round)
    t.equal(losses, bad.size)
    t.equal(await shard.locate(blobName(victim)), undefined, 'it is not served')
  }
  const listed = (await listLosses(shard, { after: undefined, limit: 100 })).losses
  t.same(new Set(listed.map(loss => blobName(loss))), new Set([...bad].map(blobName)))
  t.match(listed[0]?.why, /checksum/)
  t.equal((await shard.files.listQuarantine()).length, bad.size, 'all bad copies are kept as evidence, small ones too')
})

t.test('a missing file, a file without a record, an unreadable one and a damaged reference are found', async t => {
  const fs = new FaultyFs()
  const { shard, scrub } = await world(t, {}, fs)
  const large = Array.from({ length: 4 }, (_, index) => testBlob(70_000, index)) as [
    TestBlob,
    TestBlob,
    TestBlob,
    TestBlob,
  ]
  for (const blob of large) await putFile(nodeFs, shard, blob)
  const reference = testReference('p', 1, large[3])
  await shard.append(newRecord(reference))
  const [missing, unreadable, good] = large
  await nodeFs.unlink(shard.files.blob(blobName(missing)))
  fs.fails = (operation, path) => (operation === 'read' && path.includes(unreadable.digest) ? 'EIO' : undefined)
  const stray = join(shard.files.blobs, '000', `${'ab'.repeat(32)}.0123456789ab`)
  await writeFile(stray, 'left by a crash')
  const [segment] = await nodeFs.list(shard.files.log)
  const path = join(shard.files.log, segment as string)
  const content = await readFile(path)
  content[content.length - 5] = (content[content.length - 5] ?? 0) ^ 1
  await writeFile(path, content)
  await scrub.run()
  t.match(scrub.status.last, { bad: 3, leftovers: 1 })
  const losses = (await listLosses(shard, { after: undefined, limit: 100 })).losses
  t.same(new Set(losses.map(blobName)), new Set([missing, unreadable].map(blobName)))
  t.equal(await nodeFs.size(stray), undefined)
  t.ok(await shard.locate(blobName(good)))
})

t.test('log segments that are gone or cannot be read end no scrub, and what was in them can come home', async t => {
  const fs = new FaultyFs()
  const { shard, scrub, clock } = await world(t, { segmentBytesMax: 4_000 }, fs)
  const blobs = [testBlob(3_000, 1), testBlob(3_000, 2), testBlob(3_000, 3)] as const
  const [inMissing, , last] = blobs
  const large = testBlob(70_000, 4)
  await appendBlob(shard, inMissing)
  await putFile(nodeFs, shard, large)
  await shard.append(newRecord(testReference('in a missing segment', 1, inMissing)))
  await appendBlob(shard, blobs[1])
  const unreadable = await segmentOfNext(shard)
  for (const path of ['one', 'two']) await shard.append(newRecord(testReference(path, 1, last)))
  await appendBlob(shard, last)
  const missing = shard.segmentPath(1)
  t.not(unreadable, missing)
  await nodeFs.unlink(missing)
  fs.fails = (operation, path) => (operation === 'read' && path === unreadable ? 'EIO' : undefined)
  await scrub.run()
  t.ok(scrub.status.last, 'it has come to its end')
  const losses = (await listLosses(shard, { after: undefined, limit: 100 })).losses
  t.ok(losses.some(loss => blobName(loss) === blobName(inMissing)))
  t.ok(
    losses.some(loss => blobName(loss) === blobName(large)),
    'its table is gone',
  )
  t.match(losses.find(loss => blobName(loss) === blobName(inMissing))?.why, /segment is missing/)
  const references = await shard.lookUp(index => index.list({ prefix: 'r/', limit: 10 }))
  t.equal(references.length, 0, 'the comparison with other shards brings them back')
  fs.fails = () => undefined
  for (const blob of blobs) if (await shard.isLost(blobName(blob))) await appendBlob(shard, blob)
  await putFile(nodeFs, shard, large)
  t.equal(shard.lossCount, 0)
  clock.wall += 20 * dayMs
  await scrub.run()
  t.match(scrub.status.last, { blobs: 4, bad: 0 })
})

t.test('what two save at once is both saved', async t => {
  const { shard, scrub, folder } = await world(t)
  await Promise.all([scrub.expireQuarantine(), scrub.command('pause'), scrub.expireQuarantine()])
  t.equal(scrub.status.state, 'paused', 'by one who has read nothing before')
  await scrub.command('start')
  t.equal((await readScrubState(nodeFs, folder)).paused, false)
  await Promise.all([scrub.command('pause'), scrub.expireQuarantine(), scrub.expireQuarantine()])
  t.equal(scrub.status.state, 'paused')
  t.equal((await readScrubState(nodeFs, folder)).paused, true)
  const after = new Scrub({ fs: nodeFs, shard })
  await after.run()
  t.equal(after.status.state, 'paused')
})

t.test('a loss is known until the copy is back or nobody wants it, also after a rebuild and a compaction', async t => {
  const limits = { segmentBytesMax: 5_000, compactHoldMs: 0, compactDeadRatioMin: 0.1, compactBytesPerSec: 1e12 }
  const here = await world(t, limits)
  const blobs = Array.from({ length: 6 }, () => testBlob(1_000)) as [TestBlob, TestBlob, ...TestBlob[]]
  for (const blob of blobs) await appendBlob(here.shard, blob)
  const names = async (): Promise<string[]> =>
    (await listLosses(here.shard, { after: undefined, limit: 100 })).losses.map(blobName).sort()
  for (const name of blobs.slice(0, 3).map(blobName)) {
    await here.shard.quarantine(name, (await here.shard.locate(name)) ?? never(), 'told so')
  }
  const expected = blobs.slice(0, 3).map(blobName).sort()
  t.same(await names(), expected)
  for (const blob of Array.from({ length: 12 }, () => testBlob(1_000))) {
    await appendBlob(here.shard, blob)
    await here.shard.drop(blob, 'deleted')
  }
  const compact = new Compaction({ fs: nodeFs, shard: here.shard })
  await compact.run()
  t.ok(compact.freedBytes > 10_000)
  t.same(await names(), expected, 'compacted')
  await here.restart(true)
  t.same(await names(), expected, 'rebuilt')
  t.equal(here.shard.lossCount, 3)
  await appendBlob(here.shard, blobs[0])
  t.same(
    await names(),
    expected.filter(name => name !== blobName(blobs[0])),
    'one is back',
  )
  t.equal(await here.shard.drop(blobs[1], 'deleted'), 'missing')
  t.equal((await names()).length, 1, 'one is not wanted')
  const left = await names()
  await new Compaction({ fs: nodeFs, shard: here.shard }).run()
  await here.restart(true)
  t.same(await names(), left)
  t.equal(here.shard.lossCount, 1)
})

t.test(
  'I25, I26, I29: a corrupt copy is deleted 7 days on by both clocks, and only when a good one is back',
  async t => {
    const here = await world(t)
    const [back, gone, unwanted] = [testBlob(70_000), testBlob(70_000), testBlob(300)]
    await putFile(nodeFs, here.shard, back)
    await putFile(nodeFs, here.shard, gone)
    await appendBlob(here.shard, unwanted)
    for (const name of [back, gone, unwanted].map(blobName)) {
      await here.shard.quarantine(name, (await here.shard.locate(name)) ?? never(), 'told so')
    }
    await putFile(nodeFs, here.shard, back)
    await here.shard.drop(unwanted, 'deleted')
    const kept = async (): Promise<number> => {
      await here.scrub.expireQuarantine()
      return (await here.shard.files.listQuarantine()).length
    }
    t.equal(await kept(), 3)
    here.clock.wall += 60 * dayMs
    t.equal(await kept(), 3, 'a clock that jumps ahead deletes nothing')
    here.clock.wall -= 120 * dayMs
    here.clock.mono += 4 * dayMs
    t.equal(await kept(), 3, 'nor one that jumps back')
    await here.restart()
    here.clock.mono = 50
    t.equal(await kept(), 3, 'the time before a restart counts')
    here.clock.mono += 2 * dayMs
    here.clock.wall += 120 * dayMs
    t.equal(await kept(), 3, '6 days of service')
    here.clock.mono += 1.1 * dayMs
    t.equal(await kept(), 1, 'replaced, or wanted by nobody')
    t.match((await here.shard.files.listQuarantine())[0], gone.digest, 'the only copy of a blob stays')
    here.clock.mono += 400 * dayMs
    here.clock.wall += 400 * dayMs
    t.equal(await kept(), 1, 'however long')
  },
)

t.test('a pass is paused, goes on after a restart where it was, and the next one waits for its day', async t => {
  const here = await world(t, { scrubSaveMs: 0, scrubBytesPerSecMin: 40_000, scrubBytesPerSecMax: 40_000 })
  const blobs = Array.from({ length: 60 }, (_, index) => testBlob(2_000, index * 60))
  for (const blob of blobs) await appendBlob(here.shard, blob)
  const running = here.scrub.run()
  while ((here.scrub.status.pass?.blobs ?? 0) < 5) await new Promise(done => setTimeout(done, 20))
  await here.scrub.command('pause')
  await running
  t.equal(here.scrub.status.state, 'paused')
  await here.restart()
  await here.scrub.run()
  t.equal(here.scrub.status.state, 'paused', 'it stays paused')
  const before = (await readScrubState(nodeFs, here.folder)).pass
  t.ok(before !== undefined && before.blobs >= 5 && before.blobs < 30, `${before?.blobs} blobs`)
  await here.scrub.command('start')
  const again = new Scrub({ fs: nodeFs, shard: here.shard })
  const going = again.run()
  while ((again.status.pass?.blobs ?? 0) <= (before?.blobs ?? 0)) await new Promise(done => setTimeout(done, 20))
  t.equal(again.status.pass?.startedAt, before?.startedAt, 'the same pass')
  again.stop()
  await going
  await writeFile(join(here.folder, 'scrub.json'), 'rot')
  const fresh = new Scrub({ fs: nodeFs, shard: here.shard })
  t.equal((await readScrubState(nodeFs, here.folder)).pass, undefined, 'a rotten file costs the place only')
  fresh.stop()
})

t.test('the rate is what the period asks for, within bounds, whatever the wall clock does', async t => {
  const bounds = { bytesPerSecMin: 10, bytesPerSecMax: 1_000 }
  const rate = (bytesLeft: number, elapsedMs: number) => scrubRate({ bytesLeft, elapsedMs, periodMs: 100_000 }, bounds)
  t.equal(rate(8_000, 0), 100)
  t.equal(rate(4_000, 40_000), 100)
  t.equal(rate(1, 0), 10)
  t.equal(rate(1e9, 0), 1_000)
  t.equal(rate(8_000, -1e12), 100, 'a clock that jumped back')
  t.equal(rate(8_000, 1e12), 1_000, 'a clock that jumped ahead')
  const state = { paused: false, servedMs: 0, quarantined: {} }
  const last = { startedAt: 1_000, finishedAt: 2_000, blobs: 0, bytes: 0, bad: 0, leftovers: 0 }
  t.equal(scrubIsDue(state, 0, 100, 0), true)
  t.equal(scrubIsDue({ ...state, last }, 1_050, 100, 0), false)
  t.equal(scrubIsDue({ ...state, last }, 1_090, 100, 0), true)
  t.equal(scrubIsDue({ ...state, last }, 1_085, 100, 1), true, 'each shard on its own day')
})

t.test('the wire tells losses and scrubs, and starts and pauses them', async t => {
  const node = await startNode(t, { scrubPauseMs: 20, scrubBytesPerSecMin: 1e12, scrubBytesPerSecMax: 1e12 })
  const blob = testBlob(100_000)
  await node.client.put(shardA, blob)
  const path = join(node.folder, shardA, 'blobs', blobName(blob))
  const scrubOf = async (): Promise<Record<string, unknown>> =>
    ((await node.client.call('GET', '/v1/scrub')).json['shards'] as Record<string, unknown>[])[0] ?? {}
  const finished = async (): Promise<number> => {
    const { last } = (await scrubOf()) as { last?: { finishedAt: number } }
    return last?.finishedAt ?? 0
  }
  while ((await finished()) === 0) await new Promise(done => setTimeout(done, 20))
  const content = await readFile(path)
  content[99_999] = (content[99_999] ?? 0) ^ 128
  await writeFile(path, content)
  const before = await finished()
  t.equal((await node.client.post(`/v1/scrub/${shardA}`, { action: 'start' })).status, 200)
  while ((await finished()) === before) await new Promise(done => setTimeout(done, 20))
  t.match((await node.client.call('GET', `/v1/losses/${shardA}`)).json, {
    losses: [{ digest: blob.digest, why: /block 0/ }],
  })
  t.match((await node.client.call('GET', '/v1/status')).json, {
    shards: [{ losses: 1, scrub: { state: 'waiting' } }, {}],
  })
  t.equal((await node.client.post(`/v1/scrub/${shardA}`, { action: 'pause' })).status, 200)
  t.match(await scrubOf(), { state: 'paused' })
  t.equal((await node.client.post(`/v1/scrub/${shardA}`, { action: 'dance' })).status, 400)
  t.equal((await node.client.post('/v1/scrub/a-9', { action: 'start' })).status, 404)
})
