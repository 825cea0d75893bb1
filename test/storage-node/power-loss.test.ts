import { join } from 'node:path'
import { cp, mkdir, rm } from 'node:fs/promises'
import { isDeepStrictEqual } from 'node:util'
import t from 'tap'
import type { ReferenceRecord } from '../../shared/record.ts'
import { blobName } from '../../storage-node/blob-name.ts'
import { findReference } from '../../storage-node/lists.ts'
import type { Shard } from '../../storage-node/shard.ts'
import { figure } from '../support/figures.ts'
import { type OpenMode, type StoreFile, nodeFs } from '../../storage-node/store-fs.ts'
import { touchBlob } from '../../storage-node/touch.ts'
import { never, type TestBlob, testBlob, testReference } from './fixtures.ts'
import { appendBlob, appendReference, openShard, putFile, readBlob } from './open-shard.ts'
import { RecordingFs } from './recording-fs.ts'

interface Story {
  readonly small: TestBlob[]
  readonly large: TestBlob[]
  readonly references: ReferenceRecord[]
}

/** Concurrent small and large writes, references, drops, over several segments; each acknowledged where a client would be. */
async function tell(fs: RecordingFs, folder: string): Promise<Story> {
  const small = Array.from({ length: 8 }, (_, index) => testBlob(500 + index * 7000, index))
  const large = Array.from({ length: 3 }, (_, index) => testBlob(70_000 + index * 200_000, index))
  const references = [...small, ...large].map((blob, index) => testReference(`path/${index % 4}`, index + 1, blob))
  const shard = await openShard(fs, folder, { segmentBytesMax: 40_000 })
  const write = async (index: number) => {
    const blob = small[index] as TestBlob
    await appendBlob(shard, blob)
    fs.acknowledge(`small ${index}`)
    await appendReference(shard, references[index] as ReferenceRecord)
    fs.acknowledge(`reference ${index}`)
  }
  await Promise.all([write(0), write(1), write(2)])
  await Promise.all([
    write(3),
    ...large.map(async (blob, index) => {
      await putFile(fs, shard, blob)
      fs.acknowledge(`large ${index}`)
    }),
  ])
  await shard.drop(small[0] as TestBlob, 'deleted')
  fs.acknowledge('dropped small 0')
  await Promise.all([write(4), write(5), shard.checkpoint()])
  await shard.drop(large[0] as TestBlob, 'moved')
  fs.acknowledge('dropped large 0')
  const corrupt = blobName(large[1] as TestBlob)
  await shard.quarantine(corrupt, (await shard.locate(corrupt)) ?? never(), 'told so')
  fs.acknowledge('quarantined large 1')
  await Promise.all([write(6), write(7)])
  await shard.close()
  return { small, large, references }
}

/** What is not as promised; empty if all is. */
async function findProblems(shard: Shard, story: Story, acknowledged: readonly string[]): Promise<string[]> {
  const problems: string[] = []
  if (shard.health.state === 'failed') return [`shard failed: ${shard.health.reason}`]
  const gone = new Set<string>()
  if (acknowledged.includes('dropped small 0')) gone.add('small 0')
  if (acknowledged.includes('dropped large 0')) gone.add('large 0')
  if (acknowledged.includes('quarantined large 1')) gone.add('large 1')
  // What is on its way out may be there or not.
  const leaving = new Set(['small 0', 'large 0', 'large 1'])
  for (const kind of ['small', 'large'] as const) {
    for (const [index, blob] of story[kind].entries()) {
      const name = `${kind} ${index}`
      const found = await readBlob(shard, blob)
      if (found !== undefined && !found.equals(blob.body)) problems.push(`${name} has wrong bytes`)
      if (found !== undefined && (await touchBlob(shard, blobName(blob))) !== 'held')
        problems.push(`${name} is not held`)
      if (found !== undefined && gone.has(name)) problems.push(`${name} came back`)
      if (found === undefined && acknowledged.includes(name) && !leaving.has(name)) problems.push(`${name} is lost`)
    }
  }
  for (let path = 0; path < 4; path += 1) {
    const indices = story.references.flatMap((_, index) => (index % 4 === path && index < 8 ? [index] : []))
    const promised = indices.filter(index => acknowledged.includes(`reference ${index}`)).at(-1)
    const first = story.references[path] as ReferenceRecord
    const found = await findReference(shard, first.partition, `raw/path/${path}`).catch(() => undefined)
    if (promised !== undefined && (found?.version ?? 0) < promised + 1) problems.push(`reference ${promised} is lost`)
    const expected = found === undefined ? undefined : story.references[found.version - 1]
    if (found !== undefined && !isDeepStrictEqual(found, expected)) problems.push(`reference ${path} differs`)
  }
  return problems
}

t.test('I4, I23: whatever a power cut takes of what was not flushed, everything acknowledged is there', async t => {
  const folder = t.testdir()
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  const random = mulberry32(seed)
  const root = join(folder, 'live')
  await mkdir(root)
  const fs = new RecordingFs(root)
  const story = await tell(fs, join(root, 'shard'))
  t.comment(`${fs.changes.length} changes, ${fs.acknowledged(fs.changes.length).length} acknowledgements`)
  t.ok(
    fs.changes.filter(change => change.kind === 'create' && change.path.endsWith('.log')).length > 2,
    'rolled segments',
  )
  let states = 0
  for (let count = 0; count <= fs.changes.length; count += 1) {
    for (const unflushed of ['lost', random, ...(count % 4 === 0 ? (['kept'] as const) : [])] as const) {
      const target = join(folder, `state-${count}`)
      await fs.materialise(target, count, unflushed)
      const shard = await openShard(nodeFs, join(target, 'shard'))
      const problems = await findProblems(shard, story, fs.acknowledged(count))
      const after = testBlob(1234)
      await appendBlob(shard, after).catch((error: unknown) => problems.push(`takes no writes: ${String(error)}`))
      if (!(await readBlob(shard, after).catch(() => undefined))?.equals(after.body))
        problems.push('new write is not readable')
      await shard.close()
      if (problems.length > 0) {
        const how = typeof unflushed === 'string' ? unflushed : 'random'
        const last = JSON.stringify({ ...fs.changes[count - 1], data: undefined })
        t.fail(`after change ${count} (${last}), unflushed ${how}: ${problems.join(', ')}`)
      }
      await rm(target, { recursive: true })
      states += 1
    }
  }
  t.pass(`${states} states`)
  figure(t, 'power-loss.states', states, 'count')
  figure(t, 'power-loss.acknowledged', fs.acknowledged(fs.changes.length).length, 'count')
})

/** Flushes of the log can fail. */
class FailingFs extends RecordingFs {
  fails = false

  override async open(path: string, mode: OpenMode): Promise<StoreFile> {
    const file = await super.open(path, mode)
    const datasync = async (): Promise<void> => {
      if (this.fails && path.includes('/log/')) throw Object.assign(new Error('EIO: injected'), { code: 'EIO' })
      await file.datasync()
    }
    return { ...file, datasync }
  }
}

t.test('I23: what was refused by a failed fsync is gone for good once the shard takes writes again', async t => {
  const folder = t.testdir()
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  const random = mulberry32(seed)
  const root = join(folder, 'live')
  await mkdir(root)
  const fs = new FailingFs(root)
  const shard = await openShard(fs, join(root, 'shard'))
  const [kept, refused] = [testBlob(500), testBlob(500)] as const
  await appendBlob(shard, kept)
  fs.fails = true
  await t.rejects(shard.drop(kept, 'moved'), { code: 'SHARD_READ_ONLY' })
  await t.rejects(appendBlob(shard, refused), { code: 'SHARD_READ_ONLY' })
  fs.fails = false
  await shard.probe()
  const count = fs.changes.length
  t.equal(await touchBlob(shard, blobName(kept)), 'held', 'and whoever asked may count on it')
  await shard.close()
  for (let turn = 0; turn < 30; turn += 1) {
    const target = join(folder, `state-${turn}`)
    await fs.materialise(target, count, () => Math.round(random()))
    const state = await openShard(nodeFs, join(target, 'shard'))
    const found = [await readBlob(state, kept), await readBlob(state, refused)]
    await state.close()
    await rm(target, { recursive: true })
    if (!t.same(found, [kept.body, undefined])) return
  }
})

t.test('what a start finds in the log is flushed before anybody is told of it', async t => {
  const folder = t.testdir()
  const live = join(folder, 'live')
  const shard = await openShard(nodeFs, live)
  await appendBlob(shard, testBlob(500))
  await shard.close()
  const fs = new RecordingFs(live)
  const again = await openShard(fs, live)
  t.ok(fs.changes.some(change => change.kind === 'datasync'))
  await again.close()
})

t.test('I4: an index that lost everything since its checkpoint is brought up to date from the log', async t => {
  const folder = t.testdir()
  const shard = await openShard(nodeFs, join(folder, 'shard'), { segmentBytesMax: 40_000 })
  const before = Array.from({ length: 5 }, () => testBlob(20_000))
  for (const blob of before) await appendBlob(shard, blob)
  await shard.checkpoint()
  await cp(shard.files.index, join(folder, 'index'), { recursive: true })
  const after = Array.from({ length: 5 }, () => testBlob(20_000))
  for (const blob of after) await appendBlob(shard, blob)
  await shard.drop(before[0] as TestBlob, 'deleted')
  await shard.close()
  await rm(shard.files.index, { recursive: true })
  await cp(join(folder, 'index'), shard.files.index, { recursive: true })
  const again = await openShard(nodeFs, join(folder, 'shard'))
  t.teardown(() => again.close())
  t.equal(await again.locate(blobName(before[0] as TestBlob)), undefined, 'dropped')
  for (const blob of [...before.slice(1), ...after]) t.same(await readBlob(again, blob), blob.body)
})

t.test('an index of another log, or without a log, is rebuilt and not believed', async t => {
  const folder = t.testdir()
  const [one, two] = [join(folder, 'one'), join(folder, 'two')]
  const blobs = [testBlob(100), testBlob(100)] as const
  for (const [index, path] of [one, two].entries()) {
    const shard = await openShard(nodeFs, path)
    await appendBlob(shard, blobs[index] as TestBlob)
    await shard.close()
  }
  await rm(join(one, 'index'), { recursive: true })
  await cp(join(two, 'index'), join(one, 'index'), { recursive: true })
  const swapped = await openShard(nodeFs, one)
  t.same(await readBlob(swapped, blobs[0]), blobs[0].body)
  t.equal(await swapped.locate(blobName(blobs[1])), undefined)
  await swapped.close()
  await rm(join(two, 'log'), { recursive: true })
  const bare = await openShard(nodeFs, two)
  t.equal(await bare.locate(blobName(blobs[1])), undefined)
  await bare.close()
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
