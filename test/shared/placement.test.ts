import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import fc from 'fast-check'
import t from 'tap'
import { type ClusterMap, encodeClusterMap, PlacementView } from '../../shared/cluster-map.ts'
import { partitionCount } from '../../shared/partition.ts'
import { buildClusterMap, planTable, type Topology, verifyTable } from '../../shared/placement.ts'
import {
  applyChange,
  change,
  evenSpec,
  known,
  type NodeSpec,
  settings,
  spec,
  type Spec,
  topologyOf,
} from './topologies.ts'
import { builtFile } from '../support/paths.ts'

const total = (numbers: readonly number[]) => numbers.reduce((sum, number) => sum + number, 0)

/** Owners by name, straight from the bytes of the table: shares no code with what it checks. */
function ownersOf(map: ClusterMap): { shard: string; node: string; zone: string }[][] {
  const zones = new Map(map.nodes.map(node => [node.id, node.zone]))
  return Array.from({ length: partitionCount }, (_, partition) =>
    Array.from(map.table.slice(partition * map.copies, (partition + 1) * map.copies), index => {
      const shard = known(map.shards[index])
      return { shard: shard.id, node: shard.node, zone: known(zones.get(shard.node)) }
    }),
  )
}

function countBy<Item>(items: readonly Item[], of: (item: Item) => string): Map<string, number> {
  const counts = new Map<string, number>()
  for (const item of items) counts.set(of(item), (counts.get(of(item)) ?? 0) + 1)
  return counts
}

const isUsed = (node: NodeSpec) => node.weights.some(weight => weight > 0)

/** I18 in the words of the invariant, for the spread it allows. */
function checkSpread(spec: Spec, map: ClusterMap): void {
  const used = spec.nodes.filter(isUsed)
  const zones = new Set(used.map(node => node.zone)).size
  for (const owners of ownersOf(map)) {
    const nodes = new Set(owners.map(owner => owner.node))
    if (nodes.size !== Math.min(spec.replicas, used.length)) throw new Error(`${nodes.size} nodes`)
    const spread = new Set(owners.map(owner => owner.zone)).size
    if (spec.spread === 'strict' && spread !== Math.min(zones, nodes.size)) throw new Error(`${spread} zones`)
  }
}

/** Moves counted on names: pairs of partition and shard that were not there before. */
function movesBetween(before: ClusterMap, after: ClusterMap): number {
  const old = ownersOf(before)
  return total(
    ownersOf(after).map((owners, partition) => {
      const had = new Set(old[partition]?.map(owner => owner.shard))
      return owners.filter(owner => !had.has(owner.shard)).length
    }),
  )
}

t.test('I18: after any sequence of changes each partition is on R nodes and as many zones as there can be', async t => {
  const parameters = settings(25)
  t.comment(`seed ${parameters.seed}`)
  fc.assert(
    fc.property(spec, fc.array(change, { maxLength: 6 }), (first, changes) => {
      let current = first
      let map = buildClusterMap(topologyOf(current))
      checkSpread(current, map)
      changes.forEach((change, serial) => {
        current = applyChange(current, change, serial)
        const next = buildClusterMap(topologyOf(current), map)
        checkSpread(current, next)
        if (next.epoch !== map.epoch + 1) throw new Error('epoch')
        map = next
      })
    }),
    parameters,
  )
})

t.test('I19: equal nodes and equal shards differ by rounding only', async t => {
  for (const [count, zones, replicas] of [
    [9, 3, 3],
    [12, 4, 3],
    [4, 2, 3],
    [6, 2, 4],
    [5, 1, 2],
    [25, 5, 3],
  ] as const) {
    const topology = topologyOf({
      ...evenSpec(count, zones, replicas),
      nodes: evenSpec(count, zones).nodes.map(node => ({ ...node, weights: [1, 1] })),
    })
    const owners = ownersOf(buildClusterMap(topology)).flat()
    const perNode = [...countBy(owners, owner => owner.node).values()]
    const perShard = [...countBy(owners, owner => owner.shard).values()]
    t.strictSame([perNode.length, perShard.length], [count, count * 2])
    // Rounded per zone, then per node, then per shard: zones may differ by one, and nodes of one zone by one more.
    for (const counts of [perNode, perShard]) {
      t.ok(Math.max(...counts) - Math.min(...counts) <= 2, `${count} nodes in ${zones} zones: ${String(counts)}`)
    }
  }
})

t.test('I19: shares follow weights within rounding when zones leave the choice', async t => {
  const parameters = settings<[number[]]>(10)
  t.comment(`seed ${parameters.seed}`)
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 12, maxLength: 12 }), weights => {
      const nodes = weights.map((weight, i) => ({ name: `n${i}`, zone: 'one', weights: [weight] }))
      const topology = topologyOf({ replicas: 3, spread: 'strict', nodes })
      const counts = countBy(ownersOf(buildClusterMap(topology)).flat(), owner => owner.node)
      const share = (partitionCount * 3) / total(weights)
      weights.forEach((weight, i) => {
        const off = Math.abs((counts.get(`n${i}`) ?? 0) - weight * share)
        if (off >= 1) throw new Error(`n${i} is off by ${off}`)
      })
    }),
    parameters,
  )
})

t.test('I19: adding a node or a shard moves the least possible within 1 %, and no partition twice', async t => {
  const cases: [Spec, NodeSpec][] = [
    [evenSpec(9, 3), { name: 'x', zone: 'z0', weights: [1] }],
    [evenSpec(9, 3), { name: 'x', zone: 'z9', weights: [1] }],
    [evenSpec(12, 4), { name: 'x', zone: 'z1', weights: [1] }],
    [evenSpec(4, 2), { name: 'x', zone: 'z0', weights: [1] }],
    [evenSpec(4, 2, 2), { name: 'x', zone: 'z0', weights: [1] }],
    [evenSpec(3, 3), { name: 'x', zone: 'z0', weights: [1] }],
    [evenSpec(10, 1), { name: 'x', zone: 'z0', weights: [2] }],
    [evenSpec(20, 5), { name: 'x', zone: 'z0', weights: [1, 1] }],
  ]
  for (const [before, node] of cases) {
    const first = buildClusterMap(topologyOf(before))
    const topology = topologyOf({ ...before, nodes: [...before.nodes, node] })
    const { report } = planTable(topology, first)
    const next = buildClusterMap(topology, first)
    t.equal(movesBetween(first, next), report.moves, 'the report counts what moves')
    t.ok(report.moves <= report.movesMin * 1.01, `${report.moves} of ${report.movesMin} into ${node.zone}`)
    const old = ownersOf(first)
    const into = new Set(
      ownersOf(next).flatMap((owners, partition) => {
        const had = new Set(old[partition]?.map(owner => owner.shard))
        return owners.filter(owner => !had.has(owner.shard)).map(owner => owner.node)
      }),
    )
    if (before.nodes.length >= 9) t.strictSame([...into], ['x'], 'only to what was added')
    t.equal(report.partitionsMovedTwice, 0)
  }
})

t.test(
  'I19: whatever the numbers of nodes, zones and replicas, an added equal node moves the least within 1 %',
  async t => {
    const parameters = settings<[number, number, number, number]>(25)
    t.comment(`seed ${parameters.seed}`)
    const count = (min: number, max: number) => fc.integer({ min, max })
    fc.assert(
      fc.property(count(4, 20), count(1, 6), count(1, 4), count(0, 6), (nodes, zones, replicas, zone) => {
        const before = evenSpec(nodes, zones, replicas)
        const after = { ...before, nodes: [...before.nodes, { name: 'x', zone: `z${zone}`, weights: [1] }] }
        const { report } = planTable(topologyOf(after), buildClusterMap(topologyOf(before)))
        if (report.moves > report.movesMin * 1.01) throw new Error(`${report.moves} of ${report.movesMin}`)
      }),
      parameters,
    )
  },
)

t.test('random weights: an added node costs its quota and at most 5 % more', async t => {
  const parameters = settings<[Spec, number[]]>(15)
  t.comment(`seed ${parameters.seed}`)
  const wide = fc.record({
    replicas: fc.constantFrom(2, 3),
    spread: fc.constant('strict' as const),
    nodes: fc
      .array(fc.array(fc.constantFrom(1, 2, 3), { minLength: 1, maxLength: 3 }), { minLength: 12, maxLength: 15 })
      .map(all => all.map((weights, i) => ({ name: `n${i}`, zone: `z${i % 4}`, weights }))),
  })
  fc.assert(
    fc.property(wide, fc.array(fc.constantFrom(1, 2), { minLength: 1, maxLength: 3 }), (before, weights) => {
      const first = buildClusterMap(topologyOf(before))
      const after = { ...before, nodes: [...before.nodes, { name: 'x', zone: 'z0', weights }] }
      const { report } = planTable(topologyOf(after), first)
      if (report.moves > report.movesMin * 1.05) throw new Error(`${report.moves} of ${report.movesMin}`)
    }),
    parameters,
  )
})

t.test('a drained shard empties onto its equals, a removed node too, and nothing else moves', async t => {
  const before = evenSpec(12, 4)
  const first = buildClusterMap(topologyOf(before))
  const drained = topologyOf({ ...before, nodes: before.nodes.map((n, i) => (i === 5 ? { ...n, weights: [0] } : n)) })
  const second = buildClusterMap(drained, first)
  t.notOk(
    ownersOf(second)
      .flat()
      .some(owner => owner.node === 'n5'),
  )
  t.equal(second.shards.length, 12, 'the drained shard stays in the map')
  t.equal(movesBetween(first, second), countBy(ownersOf(first).flat(), owner => owner.node).get('n5'))
  const removed = topologyOf({ ...before, nodes: before.nodes.filter((_, i) => i !== 5) })
  const third = buildClusterMap(removed, second)
  t.equal(movesBetween(second, third), 0, 'to drain and then remove costs nothing more than to drain')
})

t.test('a shard drained beside others on its node moves only what it held', async t => {
  const before = { ...evenSpec(6, 3), nodes: evenSpec(6, 3).nodes.map(node => ({ ...node, weights: [1, 1, 1] })) }
  const first = buildClusterMap(topologyOf(before))
  const nodes = before.nodes.map((node, i) => (i === 0 ? { ...node, weights: [0, 1, 1] } : node))
  const { report } = planTable(topologyOf({ ...before, nodes }), first)
  t.ok(report.moves <= report.movesMin * 1.01, `${report.moves} of ${report.movesMin}`)
})

t.test(
  'of zones of different size that would round alike, the one that holds the extra partition keeps it',
  async t => {
    const nodes = [
      { name: 'n0', zone: 'za', weights: [1] },
      { name: 'n1', zone: 'zc', weights: [1, 1, 1.25] },
      { name: 'n2', zone: 'za', weights: [1] },
      { name: 'n3', zone: 'zb', weights: [1, 1, 2] },
      { name: 'n4', zone: 'za', weights: [0.5, 2, 0] },
    ]
    const topology = topologyOf({ replicas: 1, spread: 'strict', nodes })
    t.equal(planTable(topology, buildClusterMap(topology)).report.moves, 0)
  },
)

t.test('planning again moves nothing, and a new address moves nothing', async t => {
  const parameters = settings<[Spec]>(15)
  t.comment(`seed ${parameters.seed}`)
  fc.assert(
    fc.property(spec, spec => {
      const topology = topologyOf(spec)
      const first = buildClusterMap(topology)
      const moved = { ...topology, nodes: topology.nodes.map(node => ({ ...node, url: 'http://10.9.9.9:1' })) }
      const second = buildClusterMap(moved, first)
      if (!Buffer.from(first.table.buffer).equals(Buffer.from(second.table.buffer))) throw new Error('table changed')
      if (first.checksum === second.checksum) throw new Error('checksum did not change')
    }),
    parameters,
  )
})

t.test('fewer nodes than replicas: each partition is on every node, and the third node gets everything', async t => {
  const two = buildClusterMap(topologyOf(evenSpec(2, 2)))
  t.equal(two.copies, 2)
  const three = buildClusterMap(topologyOf(evenSpec(3, 3)), two)
  t.equal(three.copies, 3)
  t.equal(movesBetween(two, three), partitionCount)
  const back = buildClusterMap(topologyOf(evenSpec(2, 2)), three)
  t.equal(movesBetween(three, back), 0)
})

t.test('a small zone: strict keeps it in every partition, balanced relieves it and says what that costs', async t => {
  const nodes = Array.from({ length: 7 }, (_, i) => ({
    name: `n${i}`,
    zone: i === 0 ? 'z0' : `z${1 + (i % 2)}`,
    weights: [1],
  }))
  const strict = planTable(topologyOf({ replicas: 3, spread: 'strict', nodes }), undefined).report
  t.equal(strict.spreadBroken, 0)
  t.ok(strict.nodeBalance.max > 2, 'the only node of its zone holds every partition')
  const balanced = planTable(topologyOf({ replicas: 3, spread: 'balanced', nodes }), undefined).report
  t.ok(balanced.nodeBalance.max < 1.001)
  const least = partitionCount - Math.ceil((partitionCount * 3) / 7)
  t.ok(balanced.spreadBroken - least <= 1, `${balanced.spreadBroken} where balance needs ${least}`)
})

t.test('R=4 over two zones is two and two, not three and one', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(8, 2, 4)))
  t.ok(ownersOf(map).every(owners => owners.filter(owner => owner.zone === 'z0').length === 2))
})

t.test('the first owner is as often in one zone as in another', async t => {
  const first = countBy(ownersOf(buildClusterMap(topologyOf(evenSpec(9, 3)))), owners => known(owners[0]).zone)
  for (const count of first.values()) t.ok(count > partitionCount / 5 && count < partitionCount / 2, String(count))
})

t.test('I17: another process, given the topology in another order, computes the same map and handoffs', async t => {
  const before = topologyOf({ ...evenSpec(7, 3), nodes: evenSpec(7, 3).nodes.map(n => ({ ...n, weights: [1, 0.25] })) })
  const after = topologyOf({
    ...evenSpec(8, 3),
    nodes: evenSpec(8, 3).nodes.map((n, i) => ({ ...n, weights: i === 2 ? [0, 3] : [1, 0.25] })),
  })
  const turned = (topology: Topology) => ({
    ...topology,
    nodes: topology.nodes.toReversed(),
    shards: topology.shards.toReversed(),
  })
  const child = builtFile('test/shared/placement-child.ts')
  const argument = JSON.stringify([turned(before), turned(after)])
  const { stdout } = await promisify(execFile)(process.execPath, [child, argument], {
    maxBuffer: 1 << 24,
  })
  const map = buildClusterMap(after, buildClusterMap(before))
  const view = new PlacementView(map)
  const found = JSON.parse(stdout) as { map: string; handoffs: string[][] }
  t.equal(found.map, encodeClusterMap(map))
  t.strictSame(
    found.handoffs,
    [0, 1, 0xabc].map(partition => view.handoffs(partition)),
  )
})

t.test('a table that breaks a rule is refused before it is published', async t => {
  const topology = topologyOf(evenSpec(9, 3))
  const { table } = planTable(topology, undefined)
  const swapped = (edit: (table: Uint16Array) => void) => {
    const copy = table.slice()
    edit(copy)
    return copy
  }
  const refused = (broken: Uint16Array, why: RegExp) =>
    t.throws(() => verifyTable(topology, broken, undefined), { code: 'TOPOLOGY_INVALID', message: why })
  refused(
    swapped(copy => (copy[1] = known(copy[0]))),
    /twice on node/,
  )
  refused(
    swapped(copy => (copy[0] = 9)),
    /does not exist/,
  )
  refused(table.slice(3), /entries/)
  // n0 and n3 are in zone z0: a partition without n3 that gets it beside n0 loses a zone.
  const partition = Array.from({ length: partitionCount }, (_, p) => p).find(p =>
    table.slice(p * 3, p * 3 + 3).includes(0),
  )
  const at = known(partition) * 3
  const foreign = [0, 1, 2].find(i => known(table[at + i]) % 3 !== 0)
  refused(
    swapped(copy => (copy[at + known(foreign)] = 3)),
    /lose spread/,
  )
  refused(
    swapped(copy => (copy[at + [0, 1, 2].findIndex(i => table[at + i] === 0)] = 3)),
    /quota/,
  )
})

t.test('a topology that can be no map is refused with every reason', async t => {
  const topology = topologyOf(evenSpec(3, 3))
  const first = known(topology.shards[0])
  const refused = (change: Partial<Topology>, problem: RegExp) =>
    t.throws(() => buildClusterMap({ ...topology, ...change }), { code: 'TOPOLOGY_INVALID', message: problem })
  refused({ replicas: 0 }, /replicas/)
  refused({ shards: [] }, /weight above 0/)
  refused({ shards: [first, first] }, /named twice/)
  refused({ shards: [{ ...first, weight: -1 }] }, /weight/)
  refused({ shards: [{ ...first, weight: Number.NaN }] }, /weight/)
  refused({ shards: [{ ...first, weight: 0.0001 }] }, /weight/)
  refused({ shards: [{ ...first, node: 'elsewhere' as never }] }, /unknown node/)
  refused({ nodes: topology.nodes.map(node => ({ ...node, url: 'ftp://x' })) }, /url/)
  refused({ nodes: topology.nodes.map(node => ({ ...node, zone: '..' as never })) }, /zone/)
  const map = buildClusterMap(topology)
  t.throws(() => buildClusterMap({ ...topology, clusterId: 'other' }, map), { code: 'TOPOLOGY_INVALID' })
})

t.test('60 nodes with 300 shards are planned within three seconds', async t => {
  const nodes = evenSpec(60, 5).nodes.map(node => ({ ...node, weights: [1, 1, 1, 1, 1] }))
  const topology = topologyOf({ ...evenSpec(60, 5), nodes })
  const first = buildClusterMap(topology)
  const start = performance.now()
  const { report } = planTable(topologyOf({ ...evenSpec(60, 5), nodes: nodes.slice(1) }), first)
  t.ok(performance.now() - start < 3_000)
  t.ok(report.moves <= report.movesMin * 1.01)
})
