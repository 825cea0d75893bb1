import { rm, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import fc from 'fast-check'
import t from 'tap'
import type { ReferenceRecord } from '../../shared/record.ts'
import { blobName } from '../../storage-node/blob-name.ts'
import { chooseSegment, Compaction } from '../../storage-node/compact.ts'
import type { StorageNodeLimits } from '../../storage-node/config.ts'
import { findReference } from '../../storage-node/lists.ts'
import type { ShardIndex } from '../../storage-node/index.ts'
import type { Shard } from '../../storage-node/shard.ts'
import { readMarker } from '../../storage-node/shard-marker.ts'
import { nodeFs, type StoreFs } from '../../storage-node/store-fs.ts'
import { never, shardA, startNode, type TestBlob, testBlob, testReference } from './fixtures.ts'
import { appendBlob, appendReference, openShard, putFile, readBlob } from './open-shard.ts'
import { FaultyFs } from './faulty-fs.ts'
import { RecordingFs } from './recording-fs.ts'
import { eventually } from '../support/eventually.ts'

const small: Partial<StorageNodeLimits> = {
  segmentBytesMax: 6_000,
  compactDeadRatioMin: 0.5,
  compactBytesPerSec: 1e9,
  compactHoldMs: 0,
}

const openSmall = (fs: StoreFs, folder: string, limits: Partial<StorageNodeLimits> = {}): Promise<Shard> =>
  openShard(fs, folder, { ...small, ...limits })

const compaction = (fs: StoreFs, shard: Shard): Compaction => new Compaction({ fs, shard })

async function logBytes(shard: Shard): Promise<number> {
  let sum = 0
  for (const name of await nodeFs.list(shard.files.log)) sum += (await nodeFs.size(join(shard.files.log, name))) ?? 0
  return sum
}

/** What a shard should have, told by what was acknowledged. */
class Model {
  readonly blobs: TestBlob[] = []
  readonly held = new Set<TestBlob>()
  readonly references = new Map<string, ReferenceRecord>()

  async problems(shard: Shard): Promise<string[]> {
    if (shard.health.state !== 'ok') return [`the shard is ${shard.health.state}: ${shard.health.reason}`]
    const problems: string[] = []
    for (const [index, blob] of this.blobs.entries()) {
      const found = await readBlob(shard, blob)
      if (this.held.has(blob) && found === undefined) problems.push(`blob ${index} is lost`)
      else if (!this.held.has(blob) && found !== undefined) problems.push(`blob ${index} came back`)
      else if (found !== undefined && !found.equals(blob.body)) problems.push(`blob ${index} is another`)
    }
    for (const [path, expected] of this.references) {
      const found = await findReference(shard, expected.partition, `raw/${path}`).catch((error: Error) => error.message)
      if (!isDeepStrictEqual(found, expected)) problems.push(`reference ${path} is ${JSON.stringify(found)}`)
    }
    return problems
  }
}

type Step =
  | { readonly do: 'small' | 'write-again' | 'drop' | 'corrupt'; readonly which: number }
  | { readonly do: 'put' | 'delete'; readonly path: number; readonly which: number }
  | { readonly do: 'large' | 'compact' | 'reopen' | 'rebuild' | 'checkpoint' }

const which = fc.nat(1000)
const stepArbitrary: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant('small' as const), which }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('drop' as const), which }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('write-again' as const), which }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('corrupt' as const), which }) },
  { weight: 16, arbitrary: fc.record({ do: fc.constant('put' as const), path: fc.nat(5), which }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('delete' as const), path: fc.nat(5), which }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('large' as const, 'checkpoint' as const) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('compact' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom('reopen' as const, 'rebuild' as const) }) },
)

class Player {
  readonly model = new Model()
  shard: Shard
  freed = 0
  #compaction: Compaction
  readonly #folder: string
  #version = 0

  constructor(shard: Shard, folder: string) {
    this.shard = shard
    this.#compaction = compaction(nodeFs, shard)
    this.#folder = folder
  }

  async play(step: Step): Promise<void> {
    const { model, shard } = this
    switch (step.do) {
      case 'small':
        return this.#write(testBlob(50 + step.which))
      case 'large': {
        const blob = testBlob(70_000)
        await putFile(nodeFs, shard, blob)
        return this.#held(blob)
      }
      case 'write-again': {
        const blob = model.blobs[step.which % Math.max(1, model.blobs.length)]
        return blob === undefined || blob.bytes > 65_536 ? undefined : this.#write(blob)
      }
      case 'drop':
      case 'corrupt': {
        const blob = model.blobs[step.which % Math.max(1, model.blobs.length)]
        if (blob === undefined) return
        if (step.do === 'drop') await shard.drop(blob, 'deleted')
        else if (model.held.has(blob)) {
          const location = (await shard.locate(blobName(blob))) ?? never()
          await shard.quarantine(blobName(blob), location, 'told so')
        }
        model.held.delete(blob)
        return
      }
      case 'put':
      case 'delete':
        return this.#reference(`path/${step.path}`, step.do === 'put' ? this.#any(step.which) : undefined)
      case 'checkpoint':
        return shard.checkpoint()
      case 'compact': {
        const before = this.#compaction.freedBytes
        await this.#compaction.run()
        this.freed += this.#compaction.freedBytes - before
        return
      }
      case 'reopen':
      case 'rebuild':
        return this.reopen(step.do === 'rebuild')
    }
  }

  async reopen(rebuild: boolean): Promise<void> {
    await this.shard.close()
    if (rebuild) await rm(this.shard.files.index, { recursive: true })
    this.shard = await openSmall(nodeFs, this.#folder)
    this.#compaction = compaction(nodeFs, this.shard)
  }

  async #write(blob: TestBlob): Promise<void> {
    await appendBlob(this.shard, blob)
    this.#held(blob)
  }

  #held(blob: TestBlob): void {
    if (!this.model.blobs.includes(blob)) this.model.blobs.push(blob)
    this.model.held.add(blob)
  }

  #any(index: number): TestBlob {
    return this.model.blobs[index % Math.max(1, this.model.blobs.length)] ?? testBlob(10)
  }

  async #reference(path: string, blob: TestBlob | undefined): Promise<void> {
    this.#version += 1
    const record = testReference(path, this.#version, blob)
    await appendReference(this.shard, record)
    this.model.references.set(path, JSON.parse(JSON.stringify(record)) as ReferenceRecord)
  }
}

t.test('whatever is written, dropped, compacted, reopened and rebuilt in any order: the same index', async t => {
  const root = t.testdir()
  let round = 0
  let freed = 0
  const property = fc.asyncProperty(fc.array(stepArbitrary, { minLength: 60, maxLength: 160 }), async steps => {
    const folder = join(root, `round-${round++}`)
    const player = new Player(await openSmall(nodeFs, folder), folder)
    try {
      for (const step of steps) {
        await player.play(step)
        if (step.do !== 'compact' && step.do !== 'reopen' && step.do !== 'rebuild') continue
        const problems = await player.model.problems(player.shard)
        if (problems.length > 0) throw new Error(`after ${step.do}: ${problems.join(', ')}`)
      }
      await player.play({ do: 'compact' })
      await player.reopen(true)
      const problems = await player.model.problems(player.shard)
      if (problems.length > 0) throw new Error(`at the end: ${problems.join(', ')}`)
      freed += player.freed
    } finally {
      await player.shard.close()
    }
  })
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  await fc.assert(property, { numRuns: 30, seed, endOnFailure: true })
  t.ok(freed > 0, `${freed} bytes were freed`)
})

t.test('I4: a power cut at any moment of a compaction takes nothing acknowledged', async t => {
  const root = t.testdir()
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  const random = mulberry32(seed)
  const live = join(root, 'live')
  await mkdir(live)
  const fs = new RecordingFs(live)
  const shard = await openSmall(fs, join(live, 'shard'))
  const model = new Model()
  // An old segment of which little is dead stays; what was dropped of it must stay dropped, wherever its drop goes.
  const old = Array.from({ length: 5 }, () => testBlob(900))
  for (const blob of old) await appendBlob(shard, blob)
  const blobs = Array.from({ length: 24 }, (_, index) => testBlob(600 + index * 40))
  for (const [index, blob] of blobs.entries()) {
    await appendBlob(shard, blob)
    const record = testReference(`path/${index % 5}`, index + 1, blob)
    await appendReference(shard, record)
    model.references.set(record.path, record)
  }
  const large = testBlob(70_000)
  await putFile(fs, shard, large)
  for (const [index, blob] of blobs.entries()) if (index % 3 !== 0) await shard.drop(blob, 'deleted')
  const [goes, comesBack, ...stay] = old as [TestBlob, TestBlob, ...TestBlob[]]
  await shard.drop(goes, 'deleted')
  // Dropped, then written again: its drop stands before it, and must not be carried behind it.
  await shard.drop(comesBack, 'deleted')
  for (let version = 100; version < 140; version += 1) await appendReference(shard, testReference('often', version))
  const often = testReference('often', 140)
  await appendReference(shard, often)
  model.references.set('often', often)
  await appendBlob(shard, comesBack)
  for (const blob of [comesBack, ...stay]) model.held.add(blob)
  model.blobs.push(...old)
  const [, again] = blobs as [TestBlob, TestBlob]
  await appendBlob(shard, again)
  model.blobs.push(...blobs, large)
  for (const [index, blob] of blobs.entries()) if (index % 3 === 0) model.held.add(blob)
  model.held.add(again)
  model.held.add(large)
  t.same(await model.problems(shard), [])
  const from = fs.changes.length
  const compact = compaction(fs, shard)
  await compact.run()
  t.ok(compact.freedBytes > 10_000, `${compact.freedBytes} bytes freed`)
  t.ok(fs.changes.slice(from).filter(change => change.kind === 'unlink').length > 2, 'several segments went')
  t.ok(await nodeFs.size(shard.segmentPath(1)), 'the first one stayed')
  t.equal(await nodeFs.size(shard.segmentPath(5)), undefined, 'one of drops and overwritten references went')
  await shard.close()
  for (let count = from; count <= fs.changes.length; count += 1) {
    for (const unflushed of ['lost', random, 'kept'] as const) {
      const target = join(root, `state-${count}`)
      await fs.materialise(target, count, unflushed)
      const state = await openSmall(nodeFs, join(target, 'shard'))
      const problems = await model.problems(state)
      if (problems.length > 0) t.fail(`after ${count} changes, unflushed ${String(unflushed)}: ${problems.join(', ')}`)
      await compaction(nodeFs, state).run()
      const after = await model.problems(state)
      if (after.length > 0) t.fail(`compacted after ${count} changes: ${after.join(', ')}`)
      await state.close()
      await rm(target, { recursive: true })
    }
  }
  t.pass(`${fs.changes.length - from + 1} moments`)
})

t.test('overwritten and deleted artifacts give their space back, and readers meanwhile notice nothing', async t => {
  const node = await startNode(t, {
    segmentBytesMax: 300_000,
    compactPauseMs: 20,
    compactHoldMs: 50,
    compactBytesPerSec: 1e9,
  })
  const kept: TestBlob[] = []
  const dropped: TestBlob[] = []
  for (let round = 0; round < 40; round += 1) {
    const blobs = Array.from({ length: 10 }, () => testBlob(6_000))
    await Promise.all(blobs.map(blob => node.client.appendBlob(shardA, blob)))
    kept.push(...blobs.slice(0, 1))
    dropped.push(...blobs.slice(1))
  }
  const reading = { on: true }
  const problems: string[] = []
  const reader = async (): Promise<void> => {
    for (let turn = 0; reading.on; turn += 1) {
      const blob = kept[turn % kept.length] as TestBlob
      const answer = await node.client.get(shardA, blob)
      if (answer.status !== 200 || !answer.body.equals(blob.body)) problems.push(`${answer.status}`)
    }
  }
  const readers = [reader(), reader(), reader()]
  for (let at = 0; at < dropped.length; at += 90) {
    const orders = dropped.slice(at, at + 90).map(blob => ({ ...blob, body: undefined }))
    await node.client.post('/v1/drop', { shard: shardA, reason: 'deleted', blobs: orders }, { 'holdfast-fence': 'x:1' })
  }
  const folder = join(node.folder, shardA, 'log')
  const bytes = async (): Promise<number> => {
    const sizes = (await nodeFs.list(folder)).map(name => nodeFs.size(join(folder, name)))
    return (await Promise.all(sizes)).reduce<number>((sum, size) => sum + (size ?? 0), 0)
  }
  const before = await bytes()
  const deadline = performance.now() + 20_000
  while ((await bytes()) > 900_000 && performance.now() < deadline) await new Promise(done => setTimeout(done, 20))
  reading.on = false
  await Promise.all(readers)
  t.comment(`${before} bytes before, ${await bytes()} after`)
  t.ok((await bytes()) <= 900_000, 'the disk has it back')
  t.same(problems, [])
  for (const blob of dropped.slice(0, 20)) t.equal((await node.client.get(shardA, blob)).status, 404)
  await node.close(0)
  await rm(join(node.folder, shardA, 'index'), { recursive: true })
  const again = await startNode(t, {}, { folder: node.folder })
  for (const blob of kept) t.same((await again.client.get(shardA, blob)).body, blob.body, 'also with an index rebuilt')
  for (const blob of dropped) t.equal((await again.client.get(shardA, blob)).status, 404, 'and no more than that')
})

t.test('a segment with a damaged record that the index still names is kept', async t => {
  const folder = t.testdir()
  const shard = await openSmall(nodeFs, folder)
  t.teardown(() => shard.close())
  const blobs = Array.from({ length: 12 }, () => testBlob(1_500))
  for (const blob of blobs) await appendBlob(shard, blob)
  for (const blob of blobs.slice(1, 5)) await shard.drop(blob, 'deleted')
  const location = await shard.locate(blobName(blobs[0] as TestBlob))
  const path = shard.segmentPath(location?.segment ?? 0)
  const file = await nodeFs.open(path, 'update')
  // In the header of its record: the blob itself is whole, and can be read.
  await file.write([Buffer.from('X')], (location?.offset ?? 0) - 20)
  await file.close()
  await compaction(nodeFs, shard).run()
  t.same(await readBlob(shard, blobs[0] as TestBlob), blobs[0]?.body)
  t.ok(await nodeFs.size(path), 'its segment is there')
  for (const blob of blobs.slice(5)) t.same(await readBlob(shard, blob), blob.body)
})

t.test('a full disk is compacted with the help of the reserve, if that gives back more than it takes', async t => {
  const folder = t.testdir()
  const fs = new FaultyFs()
  let free = 1e9
  fs.space = async () => ({ bytesTotal: 1e9, bytesFree: free })
  const shard = await openSmall(fs, folder, { reserveBytes: 4_000_000, segmentBytesMax: 100_000, freeBytesMin: 0 })
  t.teardown(() => shard.close())
  const blobs = Array.from({ length: 40 }, () => testBlob(20_000))
  for (const blob of blobs) await appendBlob(shard, blob)
  for (const [index, blob] of blobs.entries()) if (index % 5 !== 0) await shard.drop(blob, 'deleted')
  free = 0
  await shard.health.measure()
  // The disk takes nothing until the reserve is gone.
  fs.fails = (operation, path) => (operation === 'write' && path.includes('/log/') && free === 0 ? 'ENOSPC' : undefined)
  const unlink = nodeFs.unlink
  Object.assign(fs, {
    unlink: async (path: string) => {
      await unlink(path)
      if (path.endsWith('reserve') || path.endsWith('.log')) free += 3_000_000
    },
  })
  await t.rejects(appendBlob(shard, testBlob(100)), { code: 'INSUFFICIENT_STORAGE' })
  const before = await logBytes(shard)
  await compaction(fs, shard).run()
  t.ok((await logBytes(shard)) < before / 2, `${before} -> ${await logBytes(shard)}`)
  for (const [index, blob] of blobs.entries()) if (index % 5 === 0) t.same(await readBlob(shard, blob), blob.body)
})

t.test('a sealed segment of which the index has not everything yet is not judged', async t => {
  const shard = await openSmall(nodeFs, t.testdir())
  t.teardown(() => shard.close())
  const gone = testBlob(1_000)
  await appendBlob(shard, gone)
  await shard.drop(gone, 'deleted')
  const lookUp = shard.lookUp.bind(shard)
  let apply: () => void = () => undefined
  const mayApply = new Promise<void>(resolve => (apply = resolve))
  // The next one to use the index is the one who brings it up to date.
  shard.lookUp = async <Result>(use: (index: ShardIndex) => Promise<Result>) => {
    shard.lookUp = lookUp
    await mayApply
    return lookUp(use)
  }
  const [fills, behind] = [testBlob(5_000), testBlob(1_000)] as const
  const appended = Promise.all([appendBlob(shard, fills), appendBlob(shard, behind)])
  await eventually('the segment is sealed', async () => ((await nodeFs.size(shard.segmentPath(2))) ?? 0) > 1_000)
  const compact = compaction(nodeFs, shard)
  await compact.run()
  t.equal(compact.deadBytes, 0)
  apply()
  await appended
  await compact.run()
  for (const blob of [fills, behind]) t.same(await readBlob(shard, blob), blob.body)
})

t.test('nothing is copied before the marker says that the shard is written in the way of compactions', async t => {
  const fs = new FaultyFs()
  const folder = t.testdir()
  const shard = await openSmall(fs, folder)
  t.teardown(() => shard.close())
  const blobs = Array.from({ length: 12 }, () => testBlob(1_500))
  for (const blob of blobs) await appendBlob(shard, blob)
  for (const blob of blobs.slice(1, 8)) await shard.drop(blob, 'deleted')
  const before = await logBytes(shard)
  fs.fails = (operation, path) => (operation === 'open' && path.endsWith('holdfast.json.new') ? 'EIO' : undefined)
  await t.rejects(compaction(fs, shard).run(), { code: 'SHARD_READ_ONLY' })
  t.equal(await logBytes(shard), before)
  t.match(await readMarker(nodeFs, folder), { format: 1 })
  fs.fails = () => undefined
  await shard.probe()
  const compact = compaction(fs, shard)
  await compact.run()
  t.ok(compact.freedBytes > 0)
  t.match(await readMarker(nodeFs, folder), { format: 2 })
})

t.test('a loss that ends while its record is being moved does not come back', async t => {
  const shard = await openSmall(nodeFs, t.testdir())
  t.teardown(() => shard.close())
  const lost = testBlob(1_000)
  await appendBlob(shard, lost)
  await shard.quarantine(blobName(lost), (await shard.locate(blobName(lost))) ?? never(), 'told so')
  for (const blob of Array.from({ length: 8 }, () => testBlob(1_500))) {
    await appendBlob(shard, blob)
    await shard.drop(blob, 'deleted')
  }
  const isLost = shard.isLost.bind(shard)
  let looks = 0
  shard.isLost = async name => {
    const found = await isLost(name)
    // The survey was the first to look, the one who copies the second.
    if (name === blobName(lost) && ++looks === 2) await shard.drop(lost, 'deleted')
    return found
  }
  await compaction(nodeFs, shard).run()
  t.ok(looks > 2)
  t.equal(await isLost(blobName(lost)), false)
  t.equal(shard.lossCount, 0)
})

t.test('the segment of which most is dead is chosen, and none that is hardly worth it', async t => {
  const facts = (segment: number, bytes: number, neededBytes: number) => ({ segment, bytes, neededBytes })
  t.equal(chooseSegment([facts(1, 100, 70), facts(2, 100, 30), facts(3, 10, 4)], 0.4)?.segment, 2)
  t.equal(chooseSegment([facts(1, 100, 61), facts(2, 0, 0)], 0.4), undefined)
})

function mulberry32(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let value = Math.imul(state ^ (state >>> 15), 1 | state)
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value
    return ((value ^ (value >>> 14)) >>> 0) / 4_294_967_296
  }
}
