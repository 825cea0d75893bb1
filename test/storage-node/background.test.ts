/** Work in the background beside clients: what it may take of a disk, and that all of it asks. */
import fc from 'fast-check'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { type NodeId, parseNodeId } from '../../shared/ids.ts'
import { type NodeStatus, type TransferAnswer, wireHeader, wirePath } from '../../shared/wire.ts'
import {
  Background,
  type BackgroundLimits,
  backgroundShare,
  restMs,
  type Situation,
  type Urgency,
} from '../../storage-node/background.ts'
import { defaultLimits } from '../../storage-node/config.ts'
import { DiskUse } from '../../storage-node/disk-use.ts'
import { busyPart, parseStat, ProcessorLoad } from '../../shared/processor-load.ts'
import { eventually } from '../support/eventually.ts'
import { shardA, startNode, testBlob } from './fixtures.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
t.comment(`HOLDFAST_TEST_SEED=${seed}`)

const MiB = 1024 * 1024
const part = fc.double({ min: 0, max: 1, noNaN: true })
const quiet = fc.oneof(fc.integer({ min: 0, max: 10_000 }), fc.constant(Infinity))
const situations = fc
  .record({ busy: part, nodeQuietMs: quiet, moreMs: quiet, load: part })
  .map(({ busy, nodeQuietMs, moreMs, load }): Situation => ({
    // Whoever is on the disk is on the node.
    disk: { busy, quietMs: nodeQuietMs + moreMs },
    node: { busy, quietMs: nodeQuietMs },
    load,
  }))
const limits = fc
  .record({
    backgroundPercent: fc.integer({ min: 1, max: 100 }),
    backgroundBytesPerSecMin: fc.integer({ min: 64 * 1024, max: 64 * MiB }),
    above: fc.integer({ min: 0, max: 1024 * MiB }),
  })
  .map(({ backgroundPercent, backgroundBytesPerSecMin, above }): BackgroundLimits => ({
    backgroundPercent,
    backgroundBytesPerSecMin,
    backgroundBytesPerSecMax: backgroundBytesPerSecMin + above,
  }))
const urgencies = fc.constantFrom<Urgency>('usual', 'urgent')

t.test('I34: the share is whole on an idle node, the least on a busy one, and the busier the smaller', async () => {
  fc.assert(
    fc.property(situations, limits, urgencies, part, (at, set, urgency, more) => {
      const share = backgroundShare(at, set, urgency)
      const least = set.backgroundPercent / 100
      if (share < least || share > 1) return false
      if (backgroundShare(at, set, 'urgent') < backgroundShare(at, set, 'usual')) return false
      if (at.node.quietMs >= 5_000) return share === 1
      const busier = { ...at, disk: { ...at.disk, busy: Math.min(1, at.disk.busy + more) } }
      const loaded = { ...at, load: Math.min(1, at.load + more) }
      if (backgroundShare(busier, set, urgency) > share || backgroundShare(loaded, set, urgency) > share) return false
      const isBusy = at.load >= 0.6 || (at.disk.quietMs < 5_000 && at.disk.busy >= 0.2)
      return !isBusy || Math.abs(share - Math.max(least, urgency === 'urgent' ? 0.5 : 0)) < 1e-9
    }),
    { seed, numRuns: 2_000 },
  )
})

t.test(
  'I34: never faster than allowed, within its share of the time, and never slower than the least rate',
  async () => {
    const operations = fc.array(
      fc.record({ bytes: fc.integer({ min: 0, max: 4 * MiB }), tookMs: fc.double({ min: 0, max: 500, noNaN: true }) }),
      { minLength: 1, maxLength: 200 },
    )
    fc.assert(
      fc.property(
        operations,
        fc.double({ min: 0.01, max: 1, noNaN: true }),
        limits,
        urgencies,
        (all, share, set, urgency) => {
          let [now, bytes, busyMs, counted] = [0, 0, 0, 0]
          for (const one of all) {
            now += one.tookMs + restMs(one, share, set, urgency)
            bytes += one.bytes
            busyMs += one.tookMs
            counted += Math.max(one.bytes, 256 * 1024)
          }
          const slack = 1e-6 * Math.max(1, now)
          const fastestMs = (bytes / set.backgroundBytesPerSecMax) * 1_000
          const slowestMs = (counted / set.backgroundBytesPerSecMin) * 1_000
          if (now + slack < fastestMs) return false
          // Slower than the least rate only by what the disk itself takes, or by the largest rate.
          if (now > busyMs + slowestMs + fastestMs + slack) return false
          return restMs({ bytes: 0, tookMs: 1e9 }, share, set, urgency) === 0
        },
      ),
      { seed, numRuns: 1_000 },
    )
  },
)

t.test(
  'I34: a tenth of the time where that is more than the least rate, sixteen times the least for the last copy',
  async t => {
    const set = { backgroundBytesPerSecMin: MiB, backgroundBytesPerSecMax: 1024 * MiB }
    t.equal(Math.round(restMs({ bytes: MiB, tookMs: 10 }, 0.1, set)), 90)
    t.equal(Math.round(restMs({ bytes: MiB, tookMs: 200 }, 0.1, set)), 800, '1 MiB a second')
    t.equal(Math.round(restMs({ bytes: MiB, tookMs: 40 }, 0.1, set, 'urgent')), 23, '16 MiB a second')
    t.equal(Math.round(restMs({ bytes: MiB, tookMs: 200 }, 0.1, set, 'urgent')), 0, 'slower than that by itself')
    t.equal(Math.round(restMs({ bytes: 100, tookMs: 50 }, 0.1, set)), 200, 'reads of little: 4 a second')
    t.equal(Math.round(restMs({ bytes: MiB, tookMs: 0 }, 1, set)), 1)
  },
)

t.test(
  'use of a disk: busy while operations are on it, forgotten within seconds; the node is as busy as any disk',
  async t => {
    let now = 0
    const node = new DiskUse(undefined, () => now)
    const [one, other] = [new DiskUse(node, () => now), new DiskUse(node, () => now)]
    t.same(one.use, { busy: 0, quietMs: Infinity })
    one.begin()
    one.begin()
    now = 10_000
    t.ok(one.use.busy > 0.99)
    one.end()
    now = 20_000
    t.equal(one.use.quietMs, 0)
    one.end()
    now = 21_000
    t.ok(one.use.busy > 0.3 && one.use.busy < 0.4)
    t.equal(one.use.quietMs, 1_000)
    t.same(node.use, one.use)
    t.same(other.use, { busy: 0, quietMs: Infinity })
    await t.rejects(other.during(() => Promise.reject(new Error('disk'))))
    t.equal(other.use.quietMs, 0)
  },
)

t.test('I34: processors are busy with what others do as well, and not with waiting for disks', async t => {
  const stat = (...fields: number[]) => parseStat(`cpu  ${fields.join(' ')}\ncpu0 1 2 3 4\n`)
  const before = stat(100, 10, 40, 800, 50, 0, 0, 0, 7, 7)
  t.same(before, { all: 1_000, idle: 850 })
  t.equal(busyPart(before, stat(130, 20, 50, 820, 70, 4, 3, 3)), 0.6)
  t.equal(busyPart(before, stat(100, 10, 40, 900, 100)), 0)
  t.same(stat(1, 2, 3, 4), { all: 10, idle: 4 }, 'of an old kernel')
  t.equal(parseStat('intr 1 2 3'), undefined)
  t.equal(parseStat('cpu  1 2 3'), undefined)
  t.equal(busyPart(undefined, before), 0)
  t.equal(busyPart(before, before), 0)
  fc.assert(
    fc.property(fc.array(fc.nat(), { minLength: 16, maxLength: 16 }), fields => {
      const part = busyPart(stat(...fields.slice(0, 8)), stat(...fields.slice(8)))
      return part >= 0 && part <= 1
    }),
    { seed },
  )
  const meter = new ProcessorLoad()
  t.equal(meter.load(), 0, 'not known yet')
  await eventually('the load of this process is seen', () => {
    const end = performance.now() + 100
    while (performance.now() < end);
    return meter.load() > 0.3
  })
})

const calm: Situation = { disk: { busy: 0, quietMs: Infinity }, node: { busy: 0, quietMs: Infinity }, load: 0 }
const busy: Situation = { disk: { busy: 1, quietMs: 0 }, node: { busy: 1, quietMs: 0 }, load: 0 }

t.test('I34: one operation at a time while clients use the disk, as many as there are without them', async t => {
  for (const [situation, mostWanted] of [
    [busy, 1],
    [calm, 12],
  ] as const) {
    const background = new Background(() => situation, { ...defaultLimits, backgroundBytesPerSecMin: 1024 * MiB })
    let [running, most] = [0, 0]
    const operation = async () => {
      most = Math.max(most, (running += 1))
      await sleep(2)
      running -= 1
    }
    await Promise.all(Array.from({ length: 12 }, () => background.run(1_000, {}, operation)))
    t.equal(most, mostWanted)
    t.equal(background.bytes, 12_000)
  }
})

t.test('the urgent go first; who gives up leaves the queue; what fails keeps nobody waiting', async t => {
  const background = new Background(() => busy, defaultLimits)
  const order: string[] = []
  const done = await background.begin()
  const gone = new AbortController()
  const run = (name: string, urgency: Urgency, signal?: AbortSignal) =>
    background.run(1, { urgency, ...(signal === undefined ? {} : { signal }) }, async () => {
      order.push(name)
      if (name === 'b') throw new Error('disk')
    })
  const all = [
    run('a', 'usual'),
    run('b', 'usual'),
    run('left', 'usual', gone.signal),
    run('c', 'urgent'),
    run('d', 'urgent'),
  ]
  gone.abort(new Error('left'))
  done(1)
  const ends = await Promise.allSettled(all)
  t.same(order, ['c', 'd', 'a', 'b'])
  t.same(
    ends.map(end => (end.status === 'rejected' ? (end.reason as Error).message : 'ok')),
    ['ok', 'disk', 'left', 'ok', 'ok'],
  )
  await t.rejects(background.begin('usual', AbortSignal.abort(new Error('too late'))), /too late/)
})

t.test('I34: work on a disk in use takes its share of the time, and its full speed when clients have gone', async t => {
  let situation = busy
  const background = new Background(() => situation, {
    ...defaultLimits,
    backgroundPercent: 25,
    backgroundBytesPerSecMin: 1,
  })
  const began = performance.now()
  for (let count = 0; count < 5; count += 1) await background.run(MiB, {}, () => sleep(20))
  const usedMs = performance.now() - began
  t.ok(usedMs >= 4 * 80 + 20 - 15, `5 x 20 ms at a quarter of the time took ${usedMs} ms`)
  situation = calm
  await background.run(0, {}, () => sleep(1))
  const calmSince = performance.now()
  await Promise.all(Array.from({ length: 5 }, () => background.run(MiB, {}, () => sleep(20))))
  t.ok(performance.now() - calmSince < usedMs / 2)
})

t.test(
  'I34: what other nodes fetch and bring, and the scrub, go by the budget; what clients ask for does not',
  async t => {
    const root = t.testdir({ one: {}, two: {} })
    const source = await startNode(
      t,
      { scrubPauseMs: 50, scrubBytesPerSecMin: 1e9, scrubBytesPerSecMax: 1e9 },
      { folder: join(root, 'one') },
    )
    const target = await startNode(t, { node: parseNodeId('b') as NodeId }, { folder: join(root, 'two') })
    await source.client.post(wirePath.scrubOf(shardA), { action: 'pause' })
    const stateOf = async ({ client }: typeof source) => {
      const status = (await client.call('GET', wirePath.status)).json as unknown as NodeStatus
      return status.shards.find(({ id }) => id === shardA)?.background
    }
    const blobs = [...Array.from({ length: 20 }, () => testBlob(50_000)), testBlob(3 * MiB)]
    const total = blobs.reduce((sum, { bytes }) => sum + bytes, 0)
    for (const blob of blobs) {
      if (blob.bytes <= 65_536) await source.client.appendBlob(shardA, blob)
      else await source.client.put(shardA, blob)
    }
    t.equal((await stateOf(source))?.bytes, 0, 'a client brought them')
    t.ok(((await stateOf(source))?.share ?? 1) < 1)
    t.equal((await stateOf(target))?.share, 1)
    const order = { shard: shardA, blobs: blobs.map(({ body: _, ...blob }) => ({ ...blob, sources: [{ url: source.url, shard: shardA }] })) } // prettier-ignore
    for (const urgency of ['urgent', 'usual']) {
      const headers = { 'holdfast-fence': 'primary:1', [wireHeader.background]: urgency }
      const { results } = (await target.client.post(wirePath.transfer, order, headers))
        .json as unknown as TransferAnswer
      t.ok(results.every(result => result === (urgency === 'urgent' ? 'copied' : 'held')))
    }
    t.ok(((await stateOf(source))?.bytes ?? 0) >= total, 'read')
    t.ok(((await stateOf(target))?.bytes ?? 0) >= total, 'written')
    t.equal((await stateOf(target))?.share, 1, 'no client of the target')
    const touched = { items: blobs.map(({ body: _, bytes: _bytes, ...blob }) => ({ ...blob, shard: shardA })) }
    await target.client.post(wirePath.touch, touched, { [wireHeader.background]: 'usual' })
    t.equal((await stateOf(target))?.share, 1, 'nor is the primary one that asks what is there')
    await target.client.post(wirePath.touch, touched)
    t.ok(((await stateOf(target))?.share ?? 1) < 1, 'a proxy that writes is')
    const before = (await stateOf(source))?.bytes ?? 0
    for (const blob of blobs) t.equal((await source.client.get(shardA, blob)).status, 200)
    t.equal((await stateOf(source))?.bytes, before)
    // Again and again: it may first go on with a pass that had begun, over the empty shard, before it was paused.
    while (((await stateOf(source))?.bytes ?? 0) < before + total) {
      await source.client.post(wirePath.scrubOf(shardA), { action: 'start' })
      await sleep(50)
    }
    t.pass('scrubbed')
  },
)
