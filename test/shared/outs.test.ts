/** Who is taken out and in again: the brakes hold for any cluster and any failure, and nothing but what is long away goes out. */
import fc from 'fast-check'
import t from 'tap'
import { type ClusterMap, copiesOf, decodeClusterMap, encodeClusterMap } from '../../shared/cluster-map.ts'
import { buildClusterMap } from '../../shared/placement.ts'
import { planChanges, type TopologyChange } from '../../shared/placement/changes.ts'
import {
  agree,
  decideIns,
  decideOuts,
  inShare,
  inShareMin,
  noAgreement,
  soonestOutMs,
} from '../../shared/placement/outs.ts'
import { settlePartitions } from '../../shared/placement/transition.ts'
import { partitionCount } from '../../shared/partition.ts'
import { evenSpec, topologyOf } from './topologies.ts'

const six = buildClusterMap(topologyOf(evenSpec(6, 3)))
const outAfter = { nodeMs: 1_000, diskMs: 999 }
const seed = Number(process.env['SEED'] ?? Date.now() % 2 ** 31)
t.comment(`seed ${seed}`)

/** Only the fields that are looked at: tables for hundreds of clusters would take minutes. */
const world = fc
  .record({
    replicas: fc.integer({ min: 1, max: 7 }),
    nodes: fc.array(
      fc.record({
        zone: fc.constantFrom('za', 'zb', 'zc', 'zd'),
        shards: fc.array(fc.record({ weight: fc.constantFrom(0, 0.5, 1, 1, 2), failedMs: ageOf(), isOut: rarely() }), {
          minLength: 1,
          maxLength: 3,
        }),
        downMs: ageOf(),
      }),
      { minLength: 1, maxLength: 12 },
    ),
    /** A zone that fails as a whole. */
    dark: fc.option(fc.constantFrom('za', 'zb', 'zc', 'zd')),
  })
  .map(({ replicas, nodes: specs, dark }) => {
    const nodes = specs.map(({ zone }, index) => ({ id: `n${index}`, zone }))
    const shards = specs.flatMap(({ shards }, index) =>
      shards.map(({ weight, isOut }, disk) => ({
        ...{ id: `n${index}-${disk}`, node: `n${index}` },
        ...(isOut && weight > 0 ? { weight: 0, out: { weight, since: 1, auto: true } } : { weight }),
      })),
    )
    const map = { replicas, nodes, shards, copies: copiesOf(replicas, shards as never) } as unknown as ClusterMap
    const away = { nodes: new Map<string, number>(), shards: new Map<string, number>() }
    specs.forEach(({ zone, downMs, shards }, index) => {
      if (zone === dark) away.nodes.set(`n${index}`, 5_000)
      else if (downMs !== null) away.nodes.set(`n${index}`, downMs)
      shards.forEach(({ failedMs }, disk) => {
        if (failedMs !== null) away.shards.set(`n${index}-${disk}`, failedMs)
      })
    })
    return { map, away }
  })

function ageOf() {
  return fc.option(fc.constantFrom(10, 999, 1_000, 2_000, 5_000), { freq: 2 })
}
function rarely() {
  return fc.integer({ min: 0, max: 9 }).map(number => number === 0)
}

t.test('nothing goes out that is not away for long enough, and each that is either goes or says why not', t => {
  fc.assert(
    fc.property(world, ({ map, away }) => {
      const { shards, refusals } = decideOuts(map, away, outAfter)
      for (const shard of map.shards) {
        const nodeMs = away.nodes.get(shard.node)
        const diskMs = away.shards.get(shard.id) ?? 0
        const isLate = nodeMs === undefined ? diskMs >= outAfter.diskMs : nodeMs >= outAfter.nodeMs
        const due = shard.weight > 0 && isLate
        const subject = nodeMs === undefined ? `shard ${shard.id}` : `node ${shard.node}`
        const isRefused = refusals.some(one => one.subject === subject)
        if (shards.includes(shard.id) && !due) throw new Error(`${shard.id} is not due`)
        if (due && shards.includes(shard.id) === isRefused) throw new Error(`${shard.id} is forgotten, or both`)
      }
    }),
    { seed, numRuns: 2_000 },
  )
  t.end()
})

t.test('0 is never, not at once: with nodes that are never taken out, disks are, and neither decision is rushed', t => {
  t.equal(soonestOutMs({ nodeMs: 600_000, diskMs: 60_000 }), 60_000)
  t.equal(soonestOutMs({ nodeMs: 0, diskMs: 60_000 }), 60_000)
  t.equal(soonestOutMs({ nodeMs: 0, diskMs: 0 }), Infinity)
  const failed = { nodes: new Map([['n1', 9_000]]), shards: new Map([['n2-s0', 9_000]]) }
  t.same(decideOuts(six, failed, { nodeMs: 0, diskMs: 1_000 }).shards, ['n2-s0'])
  t.same(decideOuts(six, failed, { nodeMs: 1_000, diskMs: 0 }).shards, ['n1-s0'])
  t.end()
})

t.test('never a whole zone, never below 75 % of nodes and weight, never fewer copies', t => {
  let outs = 0
  const held = { zone: 0, share: 0, copies: 0 }
  fc.assert(
    fc.property(world, ({ map, away }) => {
      const { shards, refusals } = decideOuts(map, away, outAfter)
      for (const { brake } of refusals) held[brake] += 1
      if (shards.length === 0) return
      outs += 1
      const after = map.shards.map(shard => (shards.includes(shard.id) ? { ...shard, weight: 0 } : shard))
      if (inShare(map.shards, after) < inShareMin) throw new Error('too little is in')
      if (copiesOf(map.replicas, after) < map.copies) throw new Error('too few nodes are in')
      const zoneOf = (node: string) => map.nodes.find(({ id }) => id === node)?.zone
      for (const id of shards) {
        const zone = zoneOf(map.shards.find(shard => shard.id === id)?.node ?? '')
        const isThere = after.some(
          one => zoneOf(one.node) === zone && one.weight > 0 && !away.nodes.has(one.node) && !away.shards.has(one.id),
        )
        if (!isThere) throw new Error(`zone ${zone} is lost with ${id}`)
      }
    }),
    { seed, numRuns: 3_000 },
  )
  t.ok(outs > 100 && Object.values(held).every(count => count > 10), `${outs} outs; ${JSON.stringify(held)} refused`)
  t.end()
})

const away = (...nodes: string[]) => ({ nodes: new Map(nodes.map(node => [node, 1_000])), shards: new Map() })

t.test('of six nodes in three zones one goes out, a zone never, and each refusal names its brake', t => {
  t.same(decideOuts(six, away('n4'), outAfter), { shards: ['n4-s0'], refusals: [] })
  t.match(decideOuts(six, away('n1', 'n4'), outAfter), {
    shards: [],
    refusals: [
      { subject: 'node n1', brake: 'zone' },
      { subject: 'node n4', brake: 'zone' },
    ],
  })
  const brief = { nodes: new Map([['n1', 1_000], ['n4', 1]]), shards: new Map() } // prettier-ignore
  t.match(decideOuts(six, brief, outAfter), { shards: [], refusals: [{ brake: 'zone' }] }, 'a zone fails bit by bit')
  t.match(decideOuts(six, away('n0', 'n1'), outAfter), {
    shards: ['n0-s0'],
    refusals: [{ subject: 'node n1', brake: 'share', text: /only 66 %/ }],
  })
  const three = buildClusterMap(topologyOf(evenSpec(4, 1, 4)))
  t.match(decideOuts(three, away('n0'), outAfter), { shards: [], refusals: [{ brake: 'copies' }] })
  t.end()
})

t.test('out and in again: the map remembers the weight, and the old owner gets back most of what it owned', t => {
  const change = (op: 'out' | 'in'): TopologyChange =>
    op === 'in' ? { op, shard: 'n4-s0' } : { op, shard: 'n4-s0', since: 17, auto: true }
  const all = Array.from({ length: partitionCount }, (_, partition) => partition)
  const planned = planChanges(six, [change('out')])
  t.same(planned.problems, [])
  const out = settlePartitions(planned.next, all)
  t.match(out.shards[4], { id: 'n4-s0', weight: 0, out: { weight: 1, since: 17, auto: true } })
  t.same(decodeClusterMap(encodeClusterMap(out)), out)
  t.throws(() => planChanges(out, [change('out')]), { code: 'CONFLICT' })
  t.throws(() => planChanges(six, [change('in')]), { code: 'CONFLICT' })
  t.same(
    decideIns(out, new Map([['n4', 10]]), () => true, 10),
    ['n4-s0'],
  )
  t.same(
    decideIns(out, new Map([['n4', 9]]), () => true, 10),
    [],
    'not yet',
  )
  t.same(
    decideIns(out, new Map([['n4', 10]]), () => false, 10),
    [],
    'its disk is ill',
  )
  const back = settlePartitions(planChanges(out, [change('in')]).next, all)
  t.same(back.shards, six.shards)
  const ownedBy = (map: ClusterMap) => new Set(all.filter(one => map.table.subarray(one * 3, one * 3 + 3).includes(4)))
  const [before, after] = [ownedBy(six), ownedBy(back)]
  const kept = [...after].filter(partition => before.has(partition)).length
  t.ok(kept > 0.7 * before.size, `${kept} of ${before.size} partitions are where they were`)
  const drained = planChanges(out, [{ op: 'weight', shard: 'n4-s0', weight: 0 }]).next
  t.equal(drained.shards[4]?.out, undefined, 'who drains it has given it up')
  const byHand = planChanges(six, [{ op: 'out', shard: 'n4-s0', since: 17, auto: false }]).next
  t.same(
    decideIns(byHand, new Map([['n4', 10]]), () => true, 10),
    [],
    'what somebody took out is left to them',
  )
  t.end()
})

t.test(
  'proxies agree: who is cut off alone takes nothing out, who is unsure holds the clock, who differs resets it',
  t => {
    const [down, up, unsure] = [
      { down: ['n1'], suspect: [] },
      { down: [], suspect: [] },
      { down: [], suspect: ['n1'] },
    ]
    const first = agree(noAgreement, ['n1'], [down, down], 100)
    t.same([...first.now.down], [['n1', 100]])
    const second = agree(first.all, ['n1'], [down, down], 300)
    t.same([...second.now.down], [['n1', 100]], 'since the first look')
    const doubt = agree(second.all, ['n1'], [down, unsure], 400)
    t.same([...doubt.now.down], [], 'nothing is decided now')
    t.same([...agree(doubt.all, ['n1'], [down, down], 500).now.down], [['n1', 100]], 'and the clock went on')
    const mute = agree(second.all, ['n1'], [down, undefined], 400)
    t.same([...mute.now.down], [], 'one that says nothing, of an older release or just started')
    const contrary = agree(second.all, ['n1'], [down, up], 400)
    t.same([...contrary.all.down, ...contrary.now.down], [])
    t.same([...agree(contrary.all, ['n1'], [down, down], 500).now.down], [['n1', 500]])
    t.same([...agree(first.all, ['n1'], [], 500).now.down], [], 'nobody is nobody')
    t.same([...agree(noAgreement, ['n1'], [up, up], 7).now.up], [['n1', 7]])
    t.end()
  },
)
