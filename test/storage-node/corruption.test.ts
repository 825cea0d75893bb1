import { readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { encodeRecord, type ShardRecord } from '../../shared/record.ts'
import { type FolderAnswer, wirePath } from '../../shared/wire.ts'
import {
  encodeSegmentHead,
  findNonce,
  newNonce,
  type ReadAt,
  type ScanEvent,
  scanSegment,
  segmentHeadBytes,
} from '../../storage-node/log-segment.ts'
import { eventually } from '../support/eventually.ts'
import { blobFrame, recovered, shardA, startNode, type TestBlob, testBlob, testReference } from './fixtures.ts'

type Started = Awaited<ReturnType<typeof startNode>>

const inMemory =
  (segment: Buffer): ReadAt =>
  async (target, position) =>
    segment.copy(target, 0, Math.min(position, segment.length))

async function scan(segment: Buffer): Promise<ScanEvent[]> {
  const nonce = await findNonce(inMemory(segment), 1)
  if (nonce === undefined) return []
  const events: ScanEvent[] = []
  for await (const event of scanSegment(inMemory(segment), { segment: 1, nonce, start: segmentHeadBytes })) {
    events.push(event)
  }
  return events
}

const textOf = (records: ShardRecord[]): string[] => records.map(record => JSON.stringify(record))

async function recordsOf(segment: Buffer): Promise<string[]> {
  return textOf((await scan(segment)).flatMap(event => (event.kind === 'record' ? [event.logged.record] : [])))
}

/** A segment, and where its entries end. */
function smallSegment(frames: Buffer[]): { segment: Buffer; ends: number[] } {
  const nonce = newNonce()
  const parts = [encodeSegmentHead(1, nonce)]
  const ends: number[] = []
  let end = segmentHeadBytes
  for (const frame of frames) {
    parts.push(nonce, frame)
    end += nonce.length + frame.length
    ends.push(end)
  }
  return { segment: Buffer.concat(parts), ends }
}

function someFrames(): Buffer[] {
  const blob = testBlob(60)
  const { partition, digest, generation } = blob
  return [
    blobFrame(blob),
    encodeRecord(testReference('a', 1, blob)),
    encodeRecord({ kind: 'drop', partition, digest, generation, reason: 'deleted', time: 1 }),
    blobFrame(testBlob(30)),
    encodeRecord(testReference('a', 2)),
  ]
}

t.test('I35: whichever byte of a log is flipped, no other record is lost and none is misread', async t => {
  const { segment, ends } = smallSegment(someFrames())
  const whole = await recordsOf(segment)
  t.equal(whole.length, 5)
  const problems: string[] = []
  for (let at = 0; at < segment.length; at += 1) {
    const flipped = Buffer.from(segment)
    flipped[at] = (flipped[at] ?? 0) ^ (1 << (at % 8))
    const found = await recordsOf(flipped)
    const hit = ends.findIndex(end => at < end)
    const expected = at < segmentHeadBytes ? whole : whole.filter((_, index) => index !== hit)
    if (JSON.stringify(found) !== JSON.stringify(expected)) problems.push(`flip at ${at}: ${found.length} records`)
  }
  t.same(problems, [])
})

t.test('I35: a log cut off anywhere keeps every record before the cut and reports the rest as cut off', async t => {
  const { segment, ends } = smallSegment(someFrames())
  const whole = await recordsOf(segment)
  const problems: string[] = []
  for (let length = 0; length <= segment.length; length += 1) {
    const events = await scan(segment.subarray(0, length))
    const found = textOf(events.flatMap(event => (event.kind === 'record' ? [event.logged.record] : [])))
    const expected = ends.filter(end => end <= length).length
    if (JSON.stringify(found) !== JSON.stringify(whole.slice(0, expected))) problems.push(`cut at ${length}`)
    const last = events.at(-1)
    if (length < segmentHeadBytes || last?.kind !== 'end') continue
    const tail = [segmentHeadBytes, ...ends].includes(length) ? 'clean' : 'truncated'
    if (last.tail !== tail) problems.push(`cut at ${length} is ${last.tail}`)
  }
  t.same(problems, [])
})

t.test(
  'I35: a forged record inside a blob is never taken for one, whatever happens to the record around it',
  async t => {
    const forged = encodeRecord(testReference('secret', 99))
    const nonce = newNonce()
    const body = Buffer.concat([forged, nonce, forged, encodeSegmentHead(1, nonce), nonce, forged])
    const { segment, ends } = smallSegment([blobFrame(testBlob(body)), blobFrame(testBlob(5))])
    const found = new Set<number>()
    for (let at = segmentHeadBytes; at < (ends[0] ?? 0); at += 1) {
      const flipped = Buffer.from(segment)
      flipped[at] = (flipped[at] ?? 0) ^ (1 << (at % 8))
      const records = await recordsOf(flipped)
      found.add(records.length)
      if (records.some(record => record.includes('secret'))) t.fail(`flip at ${at}`)
    }
    t.same([...found], [1], 'only the blob behind it')
  },
)

t.test('a damaged record in the middle of a log costs that record only, also when the index is rebuilt', async t => {
  const first = await startNode(t)
  const blobs = [testBlob(5000), testBlob(5000), testBlob(5000)] as const
  for (const blob of blobs) await first.client.appendBlob(shardA, blob)
  await first.close(0)
  await flip(segmentOf(first), await offsetIn(segmentOf(first), blobs[1]))
  await rm(join(first.folder, shardA, 'index'), { recursive: true })
  const again = await startNode(t, {}, { folder: first.folder })
  const statuses = await Promise.all(blobs.map(async blob => (await again.client.get(shardA, blob)).status))
  t.same(statuses, [200, 404, 200])
  t.equal(await again.client.appendBlob(shardA, blobs[1]), 'ok', 'a repair brings it back')
  t.same((await again.client.get(shardA, blobs[1])).body, blobs[1].body)
})

t.test('an index that is gone or garbage is rebuilt from the log', async t => {
  const first = await startNode(t)
  const small = testBlob(100)
  const large = testBlob(300_000)
  const reference = testReference('p', 4, small)
  await first.client.appendBlob(shardA, small)
  await first.client.put(shardA, large)
  await first.client.appendReference(shardA, reference)
  await first.close(0)
  const index = join(first.folder, shardA, 'index')
  for (const damage of ['gone', 'garbage', 'no manifest'] as const) {
    if (damage === 'gone') await rm(index, { recursive: true })
    else {
      for (const name of await readdir(index)) {
        if (damage === 'garbage' || name.startsWith('MANIFEST')) await writeFile(join(index, name), 'garbage')
      }
    }
    const again = await startNode(t, {}, { folder: first.folder })
    t.same((await again.client.get(shardA, small)).body, small.body, damage)
    t.same((await again.client.get(shardA, large)).body, large.body, damage)
    const path = `${wirePath.references(shardA, reference.partition)}?key=raw%2Fp`
    t.same((await again.client.call('GET', path)).json, reference, damage)
    await again.close(0)
  }
})

t.test('I5: a small blob with a flipped bit is never served, and healed by a new copy', async t => {
  const node = await startNode(t)
  const blob = testBlob(5000)
  const other = testBlob(5000)
  await node.client.appendBlob(shardA, blob)
  await node.client.appendBlob(shardA, other)
  await flip(segmentOf(node), await offsetIn(segmentOf(node), blob))
  const answer = await node.client.get(shardA, blob)
  t.equal(answer.status, 500)
  t.equal(answer.json['code'], 'BLOB_CORRUPT')
  await isGone(t, node, blob)
  t.same((await node.client.get(shardA, other)).body, other.body)
  t.equal(await node.client.appendBlob(shardA, blob), 'ok')
  t.same((await node.client.get(shardA, blob)).body, blob.body)
})

t.test('I24: touch does not count a corrupt or missing copy', async t => {
  const node = await startNode(t)
  const small = testBlob(5000)
  const [shortened, removed] = [testBlob(100_000), testBlob(100_000)] as const
  await node.client.appendBlob(shardA, small)
  await flip(segmentOf(node), await offsetIn(segmentOf(node), small))
  for (const blob of [shortened, removed]) await node.client.put(shardA, blob)
  await truncate(fileOf(node, shortened), 99_999)
  await rm(fileOf(node, removed))
  const items = [small, shortened, removed].map(blob => ({ ...blob, body: undefined, shard: shardA }))
  t.same((await node.client.post(wirePath.touch, { items })).json, { results: ['missing', 'missing', 'missing'] })
})

const damages: Record<string, (path: string) => Promise<void>> = {
  'a flipped bit in the first block': path => flip(path, 1000),
  'a flipped bit in a later block': path => flip(path, 2_500_000),
  'a flipped bit in the last byte': path => flip(path, 2_999_999),
  'a zeroed block': async path => {
    const file = await open(path, 'r+')
    await file.write(Buffer.alloc(262_144), 0, 262_144, 524_288)
    await file.close()
  },
  'a cut-off end': path => truncate(path, 2_999_000),
  'no bytes': path => truncate(path, 0),
  'the content of another blob': path => writeFile(path, testBlob(3_000_000).body),
  'no file': path => rm(path),
}

for (const [damage, doIt] of Object.entries(damages)) {
  t.test(`I5: a large blob with ${damage} is never served complete, and the copy is put aside`, async t => {
    const node = await startNode(t)
    const blob = testBlob(3_000_000)
    await node.client.put(shardA, blob)
    await doIt(fileOf(node, blob))
    const answer = await node.client.get(shardA, blob).catch(() => undefined)
    t.not(answer?.status, 200, 'an error, or a connection that breaks off')
    await isGone(t, node, blob)
    const kept = damage === 'no file' ? 0 : 1
    // It is not served any more from the moment it is found; its bytes are moved behind that.
    const quarantined = async () => (await readdir(join(node.folder, shardA, 'quarantine'))).length === kept
    await eventually('the bytes are kept as evidence', quarantined)
    t.equal((await node.client.put(shardA, blob)).status, 200, 'a new copy')
    t.ok((await node.client.get(shardA, blob)).body.equals(blob.body))
  })
}

t.test('I5: a range touches only whole verified blocks', async t => {
  const node = await startNode(t)
  const blob = testBlob(1_000_000)
  await node.client.put(shardA, blob)
  await flip(fileOf(node, blob), 300_000)
  const good = await node.client.get(shardA, blob, { range: 'bytes=600000-' })
  t.equal(good.status, 206)
  t.ok(good.body.equals(blob.body.subarray(600_000)))
  const bad = await node.client.get(shardA, blob, { range: 'bytes=290000-290001' })
  t.equal(bad.status, 500, 'the bytes asked for are good, their block is not')
})

t.test('I5: rot in the block checksums of a blob is rot of the blob', async t => {
  const node = await startNode(t)
  const blob = testBlob(600_000)
  await node.client.put(shardA, blob)
  const segment = await readFile(segmentOf(node))
  await flip(segmentOf(node), segment.length - 5)
  t.match((await node.client.get(shardA, blob)).json, { code: 'BLOB_CORRUPT' })
  await isGone(t, node, blob)
})

t.test('a damaged reference is an error and not a wrong answer, and a repair replaces it', async t => {
  const node = await startNode(t)
  const reference = testReference('some/path', 3, testBlob(10))
  await node.client.appendReference(shardA, reference)
  await recovered(node.client, shardA)
  await flip(segmentOf(node), (await readFile(segmentOf(node))).length - 10)
  const path = `${wirePath.references(shardA, reference.partition)}?key=raw%2Fsome%2Fpath`
  t.match((await node.client.call('GET', path)).json, { code: 'RECORD_DAMAGED' })
  t.match((await node.client.call('GET', path)).json, { code: 'SHARD_RECOVERING' }, 'it does not pass for absent (I7)')
  await node.client.appendReference(shardA, reference)
  t.same((await node.client.call('GET', path)).json, reference)
})

t.test('a damaged reference is no part of a folder: first it is an error, then the shard has none', async t => {
  const node = await startNode(t)
  await node.client.appendReference(shardA, testReference('some/a', 3, testBlob(10)))
  await node.client.appendReference(shardA, testReference('some/b', 4, testBlob(10)))
  await flip(segmentOf(node), (await readFile(segmentOf(node))).length - 10)
  const question = { folder: 'raw/some/', start: 'raw/some/', limit: 9 }
  await recovered(node.client, shardA)
  t.match((await node.client.post(wirePath.folder(shardA), question)).json, { code: 'RECORD_DAMAGED' })
  t.match((await node.client.post(wirePath.folder(shardA), question)).json, { code: 'SHARD_RECOVERING' })
  await recovered(node.client, shardA)
  const { references } = (await node.client.post(wirePath.folder(shardA), question)).json as unknown as FolderAnswer
  t.match(references, [{ key: 'raw/some/a', version: 3 }])
  t.equal(references.length, 1)
})

t.test('damaged fencing tokens stop the commands of the primary, not reads and writes', async t => {
  const node = await startNode(t)
  const blob = testBlob(10)
  await node.client.appendBlob(shardA, blob)
  const order = { shard: shardA, reason: 'deleted', blobs: [{ ...blob, body: undefined }] }
  await node.client.post(wirePath.drop, { ...order, blobs: [] }, { 'holdfast-fence': 'primary:5' })
  await node.close(0)
  await flip(join(node.folder, 'state', 'fences.json'), 20)
  const again = await startNode(t, {}, { folder: node.folder })
  t.match((await again.client.post(wirePath.drop, order, { 'holdfast-fence': 'primary:6' })).json, {
    code: 'RECORD_DAMAGED',
  })
  t.equal((await again.client.get(shardA, blob)).status, 200)
  t.equal(await again.client.appendBlob(shardA, testBlob(10)), 'ok')
})

function fileOf(node: Started, blob: TestBlob): string {
  return join(node.folder, shardA, 'blobs', '0a3', `${blob.digest}.${blob.generation}`)
}

function segmentOf(node: Started): string {
  return join(node.folder, shardA, 'log', '00000001.log')
}

async function offsetIn(path: string, blob: TestBlob): Promise<number> {
  return (await readFile(path)).indexOf(blob.body) + 100
}

/** In place, so that descriptors kept open see it. */
async function flip(path: string, offset: number): Promise<void> {
  const file = await open(path, 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, offset)
  byte[0] = (byte[0] ?? 0) ^ 0x04
  await file.write(byte, 0, 1, offset)
  await file.close()
}

/** Now, after the quarantine is durable, and after a restart. */
async function isGone(t: Test, node: Started, blob: TestBlob): Promise<void> {
  for (let attempt = 0; attempt < 3; attempt += 1) {
    t.match((await node.client.get(shardA, blob)).json, { code: 'BLOB_NOT_FOUND' })
    await sleep(10)
  }
  const { json } = await node.client.call('GET', wirePath.blobs(shardA, blob.partition))
  t.notOk((json['blobs'] as { digest: string }[]).some(({ digest }) => digest === blob.digest))
}

t.test('a quarantined copy stays out of sight after a restart', async t => {
  const node = await startNode(t)
  const [small, large] = [testBlob(1000), testBlob(100_000)] as const
  await node.client.appendBlob(shardA, small)
  await node.client.put(shardA, large)
  await flip(segmentOf(node), await offsetIn(segmentOf(node), small))
  await flip(fileOf(node, large), 5)
  await Promise.all([node.client.get(shardA, small), node.client.get(shardA, large)])
  await node.close()
  for (const withIndex of [true, false]) {
    if (!withIndex) await rm(join(node.folder, shardA, 'index'), { recursive: true })
    const again = await startNode(t, {}, { folder: node.folder })
    for (const blob of [small, large]) t.match((await again.client.get(shardA, blob)).json, { code: 'BLOB_NOT_FOUND' })
    await again.close(0)
  }
})

t.test('a disk that is not mounted, or another one in its place, fails its shard and not the node', async t => {
  const node = await startNode(t, { markerCheckMs: 20 })
  const blob = testBlob(1000)
  await node.client.appendBlob(shardA, blob)
  const folder = join(node.folder, shardA)
  const stateOf = async () => {
    const { json } = await node.client.call('GET', wirePath.status)
    return (json['shards'] as { state: string }[]).map(({ state }) => state).join(' ')
  }
  const until = async (expected: string) => {
    for (let attempt = 0; attempt < 500 && (await stateOf()) !== expected; attempt += 1) await sleep(10)
    t.equal(await stateOf(), expected)
  }
  await rename(join(folder, 'holdfast.json'), join(folder, 'away.json'))
  await until('failed ok')
  t.match((await node.client.get(shardA, blob)).json, { code: 'SHARD_FAILED' })
  t.match(await node.client.appendBlob(shardA, blob), { code: 'SHARD_FAILED' })
  await rename(join(folder, 'away.json'), join(folder, 'holdfast.json'))
  await until('ok ok')
  t.same((await node.client.get(shardA, blob)).body, blob.body)
  const marker = await readFile(join(folder, 'holdfast.json'), 'utf8')
  await writeFile(join(folder, 'holdfast.json'), marker.replace('"a-1"', '"a-9"'))
  await until('failed ok')
  await writeFile(join(folder, 'holdfast.json'), marker)
  await until('ok ok')
  t.equal(await node.client.appendBlob(shardA, testBlob(10)), 'ok')
})

t.test('the empty folder of a shard that was there before is not set up again unless that is asked for', async t => {
  const node = await startNode(t)
  await node.close(0)
  await rename(join(node.folder, shardA), join(node.folder, 'unmounted'))
  const again = await startNode(t, {}, { folder: node.folder })
  t.match((await again.client.call('GET', wirePath.status)).json, { shards: [{ state: 'failed' }, { state: 'ok' }] })
  await again.close(0)
  const replaced = await startNode(t, { replacedShards: [shardA] }, { folder: node.folder })
  t.match((await replaced.client.call('GET', wirePath.status)).json, { shards: [{ state: 'ok' }, { state: 'ok' }] })
  t.equal(await replaced.client.appendBlob(shardA, testBlob(10)), 'ok')
})

t.test('I25: a file put in the place of another is read anew, though the old one is still open', async t => {
  const node = await startNode(t)
  const { client } = node
  const blob = testBlob(300_000)
  t.equal((await client.put(shardA, blob)).status, 200)
  t.same((await client.get(shardA, blob)).body, blob.body)
  const [file = ''] = (await readdir(join(node.folder, shardA, 'blobs'), { recursive: true })).filter(name => name.includes(blob.digest)) // prettier-ignore
  const path = join(node.folder, shardA, 'blobs', file)
  await writeFile(`${path}.other`, Buffer.alloc(blob.bytes))
  await rename(`${path}.other`, path)
  const answer = await client.call('GET', wirePath.verify(shardA, blob))
  t.match(answer.json, { state: 'corrupt' })
})
