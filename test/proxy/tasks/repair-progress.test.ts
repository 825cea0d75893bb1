import fc from 'fast-check'
import t from 'tap'
import type { Digest } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { settlePartitions } from '../../../shared/placement/transition.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { RateMeter, remainingMs, repairProgress } from '../../../proxy/tasks/repair-progress.ts'

const backlog = {
  blobs: 90,
  references: 10,
  bytes: 9_000,
  due: 100,
  failing: 0,
  waiting: 0,
  oldestAgeMs: 1,
  shards: [],
}

t.test('a rate is that of the last minute, or since it began', async t => {
  const meter = new RateMeter()
  t.same(meter.perSec(5_000), { entries: 0, bytes: 0 })
  meter.add(10_000, 100, 1_000)
  t.same(meter.perSec(10_000), { entries: 100, bytes: 1_000 }, 'one moment counts as a second')
  meter.add(20_000, 100, 1_000)
  t.same(meter.perSec(20_000), { entries: 20, bytes: 200 })
  t.same(meter.perSec(75_000), { entries: 100 / 55, bytes: 1_000 / 55 }, 'the older part is forgotten')
  t.same(meter.perSec(90_000), { entries: 0, bytes: 0 })
})

t.test('a steady rate is measured as what it is, however it comes in pieces', async t => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5_000 }), fc.integer({ min: 1, max: 10_000 }), (everyMs, entries) => {
      const meter = new RateMeter()
      let now = 0
      for (; now <= 180_000; now += everyMs) meter.add(now, entries, 0)
      const expected = (entries / everyMs) * 1_000
      return Math.abs(meter.perSec(now).entries - expected) <= expected * 0.1 + entries / 50
    }),
    { numRuns: 50 },
  )
  t.pass()
})

t.test(
  'what is left takes as long as its entries or its bytes do, without those that wait for something else',
  async t => {
    const rates = { entriesPerSec: 10, bytesPerSec: 100 }
    t.equal(remainingMs(backlog, rates), 90_000, 'by bytes')
    t.equal(remainingMs(backlog, { ...rates, bytesPerSec: 9_000 }), 10_000, 'by entries')
    t.equal(remainingMs({ ...backlog, failing: 50 }, rates), 45_000)
    t.equal(remainingMs({ ...backlog, failing: 100 }, rates), null)
    t.equal(remainingMs({ ...backlog, failing: 20, waiting: 30 }, rates), 45_000)
    t.equal(remainingMs({ ...backlog, waiting: 100 }, rates), null, 'no time brings a disk back')
    t.equal(remainingMs(backlog, { ...rates, entriesPerSec: 0 }), null, 'nobody knows')
  },
)

const map = buildClusterMap(topologyOf(evenSpec(4, 3)))
const well = { view: new ClusterView(map), health: { state: () => 'up' as const, shardState: () => 'ok' as const } }

t.test('rates are those of the primary; without one the backlog is told all the same', async t => {
  const namesOf = async (digests: readonly Digest[]) => digests.map(digest => ({ digest, names: ['raw/a'] }))
  const metadata = { repairQueue: { backlog: async () => backlog, namesOf } }
  const repairs = { entriesPerSec: 10, bytesPerSec: 0, partitionsToCompare: 7, lostBlobs: 1, lost: ['d' as Digest] }
  const member = { id: 'a', role: 'proxy' as const, address: '', version: '', startedAt: 0 }
  const members = [member, { ...member, report: { down: [], suspect: [], repairs } }]
  t.match(await repairProgress({ ...well, metadata, coordinator: { members: async () => members } }), {
    ...repairs,
    lost: [{ digest: 'd', names: ['raw/a'] }],
    blobs: 90,
    remainingMs: 10_000,
  })
  const away = { members: () => Promise.reject(new Error('away')) }
  t.match(await repairProgress({ ...well, metadata, coordinator: away }), {
    blobs: 90,
    entriesPerSec: 0,
    remainingMs: null,
  })
})

t.test('owners that are away or failed are named, and what waits for them has no end', async t => {
  const asked: (readonly string[])[] = []
  const namesOf = async () => []
  const metadata = {
    repairQueue: {
      backlog: async (away: readonly string[] = []) => {
        asked.push(away)
        return { ...backlog, waiting: 100 }
      },
      namesOf,
    },
  }
  const repairs = { entriesPerSec: 10, bytesPerSec: 0, partitionsToCompare: 0, lostBlobs: 0, lost: [] }
  const member = { id: 'a', role: 'proxy' as const, address: '', version: '', startedAt: 0 }
  const coordinator = { members: async () => [{ ...member, report: { down: [], suspect: [], repairs } }] }
  const health = {
    state: (node: string) => (node === 'n3' ? ('down' as const) : ('up' as const)),
    shardState: (shard: string) => (shard === 'n1-s0' ? ('failed' as const) : ('ok' as const)),
  }
  const away = [
    { shard: 'n1-s0', state: 'failed', partitions: Number },
    { shard: 'n3-s0', state: 'down', partitions: Number },
  ]
  t.match(await repairProgress({ view: new ClusterView(map), health, metadata, coordinator }), {
    away,
    remainingMs: null,
  })
  t.same(asked, [['n1-s0', 'n3-s0']])
  const { next, moves } = planChanges(map, [{ op: 'out', shard: 'n3-s0', since: 1, auto: true }])
  const moved = moves.map(({ partition }) => partition)
  const out = await repairProgress({
    view: new ClusterView(settlePartitions(next, moved)),
    health,
    metadata,
    coordinator,
  })
  t.match(out.away, [{ shard: 'n1-s0' }], 'what is out owns nothing')
  t.equal(out.away.length, 1)
})
