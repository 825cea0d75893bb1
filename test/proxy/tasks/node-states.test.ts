/** The primary's decisions about nodes that are away, with proxies, nodes and a database that are a function each. */
import t from 'tap'
import type { Member, MemberReport } from '../../../proxy/coordination/types.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import type { NodeHealth } from '../../../proxy/routing/health.ts'
import { NodeStates } from '../../../proxy/tasks/node-states.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { partitionCount } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import type { ShardState } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'
import { silent } from '../artifacts/fixtures.ts'

const outAfter = { nodeMs: 5_000, diskMs: 2_000 }
const map = buildClusterMap(topologyOf(evenSpec(6, 3)))
const seesDown: MemberReport = { down: ['n4'], suspect: [] }
const seesAll: MemberReport = { down: [], suspect: [] }

interface Asked {
  readonly params: unknown
  readonly token: number | undefined
}

function world(clusterMap = map) {
  const asked: Asked[] = []
  const facts = {
    now: 0,
    reports: [seesDown, seesDown] as (MemberReport | undefined)[] | undefined,
    database: true,
    isBusy: false,
    bytesFree: 1e12,
    bytes: 1_000,
    failed: new Set<string>(),
    term: new AbortController(),
  }
  const away = (): void => {
    if (!facts.database) throw new HoldfastError('METADATA_UNAVAILABLE', 'the database is away')
  }
  const states = new NodeStates({
    coordinator: {
      knownMembers: async () => facts.reports?.map((report, index): Member => ({ ...member(index), report })),
    },
    metadata: {
      loadClusterMap: async () => {
        away()
        return undefined // none that is newer
      },
      jobs: {
        agenda: async () => ({ now: 0, jobs: [], active: facts.isBusy ? [{ job: 'rebalance' } as never] : [] }),
        enqueue: async ({ params }, token) => {
          asked.push({ params, token })
          return {} as never
        },
      },
    },
    view: new ClusterView(clusterMap),
    health: {
      nodes: () =>
        map.nodes.map(({ id, zone }): NodeHealth => {
          const state = (facts.failed.has(id) ? 'failed' : 'ok') as ShardState
          const shard = { id: `${id}-s0`, state, weight: 1, bytesTotal: 1e12, bytesFree: facts.bytesFree, bytesFreeMin: 1e9 } // prettier-ignore
          const isDown = facts.reports?.[0]?.down.includes(id) === true
          const status = { node: id, zone, shards: [shard], state: 'up', epoch: 1 } as never
          return { node: id, state: isDown ? 'down' : 'up', draining: false, status }
        }),
    },
    clients: {
      ofShard: () => ({
        requestJson: async <Answer>(_method: string, path: string): Promise<Answer> => {
          const set = { count: 1, hash: '0'.repeat(16) }
          const partitions = Array.from({ length: partitionCount }, (_, partition) => ({ partition, blobs: set, references: set })) // prettier-ignore
          const entries = [{ key: `${'a'.repeat(64)}.1`, bytes: facts.bytes, time: 1 }]
          return (path.includes('/entries/') ? { entries } : { partitions }) as Answer
        },
      }),
    },
    log: silent,
    now: () => facts.now,
    outAfter,
  })
  const look = async (atMs: number): Promise<void> => {
    facts.now = atMs
    await states.step({ token: 7, signal: facts.term.signal })
  }
  return { asked, facts, states, look }
}

const member = (index: number): Member => ({ id: `p${index}`, role: 'proxy', address: '', version: '', startedAt: 0 })

t.test('what all proxies see down for long enough is asked to go out, with the token of the term (I27)', async t => {
  const { asked, states, look } = world()
  await look(0)
  await look(4_999)
  t.same(asked, [])
  await look(5_000)
  t.match(asked, [{ token: 7, params: { epoch: 1, changes: [{ op: 'out', shard: 'n4-s0', auto: true }] } }])
  t.same(states.refusals, [])
})

t.test('a primary that alone is cut off takes nothing out; nor while a proxy says nothing', async t => {
  const { asked, facts, look } = world()
  facts.reports = [seesDown, seesAll]
  for (let at = 0; at <= 20_000; at += 1_000) await look(at)
  facts.reports = [seesDown, undefined]
  for (let at = 21_000; at <= 40_000; at += 1_000) await look(at)
  t.same(asked, [])
})

t.test('no decision while coordination or the database is away, and the clock begins anew', async t => {
  for (const part of ['coordination', 'database'] as const) {
    const { asked, facts, look } = world()
    await look(0)
    if (part === 'coordination') facts.reports = undefined
    else facts.database = false
    await look(6_000).catch((error: unknown) => t.match(error, { code: 'METADATA_UNAVAILABLE' }))
    facts.reports = [seesDown, seesDown]
    facts.database = true
    await look(7_000)
    await look(11_999)
    t.same(asked, [], part)
    await look(12_000)
    t.equal(asked.length, 1)
  }
})

t.test('no room, a change under way and a lost zone are said, and hold it back', async t => {
  const { asked, facts, states, look } = world()
  facts.isBusy = true
  await look(0)
  await look(5_000)
  t.match(states.refusals, [/node n4 is not taken out: another change of topology/])
  facts.isBusy = false
  facts.bytes = 1e10
  await look(6_000)
  t.match(states.refusals, [/node n4 is not taken out: shard .* has no room/])
  t.equal(states.refusedBy('room'), 1)
  facts.bytes = 1_000
  await look(7_000)
  t.match(states.refusals, [/has no room/], 'not asked again at once')
  facts.reports = [{ down: ['n1', 'n4'], suspect: [] }, { down: ['n4', 'n1'], suspect: [] }] // prettier-ignore
  await look(12_000)
  t.match(states.refusals, [/node n4 is not taken out: .*zone z1/])
  t.same(asked, [])
  await states.ended()
  t.same(states.refusals, [])
})

t.test('a paused primary that wakes up asks for nothing; a disk that fails alone goes out alone', async t => {
  const { asked, facts, look } = world()
  facts.reports = [seesAll, seesAll]
  facts.failed.add('n2')
  await look(0)
  facts.term.abort(new Error('the lease ran out'))
  await t.rejects(look(5_000), /the lease ran out/)
  t.same(asked, [])
  facts.term = new AbortController()
  await look(20_000)
  t.match(asked, [{ params: { changes: [{ op: 'out', shard: 'n2-s0' }] } }])
})

t.test('a disk that its node calls failed goes out sooner than a node that is away', async t => {
  const { asked, facts, look } = world()
  facts.reports = [seesAll, seesAll]
  facts.failed.add('n2')
  await look(0)
  await look(1_999)
  t.same(asked, [])
  await look(2_000)
  t.match(asked, [{ params: { changes: [{ op: 'out', shard: 'n2-s0' }] } }])
})

t.test(
  'a disk that has failed is taken in again when it has been well for ten times as long as it took to go out',
  async t => {
    const out = { weight: 1, since: 1, auto: true }
    const { asked, facts, look } = world({
      ...map,
      shards: map.shards.map(one => (one.id === 'n2-s0' ? { ...one, weight: 0, out } : one)),
    })
    facts.reports = [seesAll, seesAll]
    await look(0)
    facts.failed.add('n2')
    await look(1_000)
    facts.failed.clear()
    await look(12_000)
    facts.failed.add('n2')
    await look(15_000)
    facts.failed.clear()
    await look(16_000)
    await look(34_999)
    t.same(asked, [], 'it failed again meanwhile')
    await look(35_000)
    t.match(asked, [{ params: { changes: [{ op: 'in', shard: 'n2-s0' }] } }])
  },
)
