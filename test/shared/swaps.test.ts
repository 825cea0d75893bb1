/** Swaps for the sake of bytes: whatever the cluster and the sizes, the rules of placement hold and the fullest shard gets emptier. */
import fc from 'fast-check'
import t from 'tap'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { partitionCount } from '../../shared/partition.ts'
import { buildClusterMap, verifyTable } from '../../shared/placement.ts'
import { byteLoads, byteSpread } from '../../shared/placement/bytes.ts'
import { changedTopology, planChanges, type TopologyChange } from '../../shared/placement/changes.ts'
import { proposeSwaps, type Swap, swappedRatioMax, swapsMax } from '../../shared/placement/swaps.ts'
import { movesOf, settlePartitions, shardPartitions } from '../../shared/placement/transition.ts'
import { applyChange, change, evenSpec, settings, spec, type Spec, topologyOf } from './topologies.ts'

/** Lognormal, from a small generator of its own: the same sizes for the same seed. Only so many partitions have any. */
function sizes(seed: number, sigma: number, filled = partitionCount): Float64Array {
  let state = seed >>> 0
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return (state + 1) / 2 ** 32
  }
  const normal = (): number => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())
  const stride = Math.floor(partitionCount / filled)
  return Float64Array.from({ length: partitionCount }, (_, partition) =>
    partition % stride === seed % stride ? Math.floor(1e6 * Math.exp(sigma * normal())) : 0,
  )
}

/** With something to swap, mostly: several nodes in each zone. */
const wide: fc.Arbitrary<Spec> = fc
  .record({
    replicas: fc.integer({ min: 1, max: 3 }),
    zones: fc.integer({ min: 1, max: 3 }),
    nodes: fc.array(fc.array(fc.constantFrom(1, 1, 2, 0.5), { minLength: 1, maxLength: 2 }), { minLength: 4, maxLength: 9 }), // prettier-ignore
  })
  .map(({ replicas, zones, nodes }) => ({
    replicas,
    spread: 'strict',
    nodes: nodes.map((weights, i) => ({ name: `n${i}`, zone: `z${i % zones}`, weights })),
  }))

const swap = (swaps: readonly Swap[]): TopologyChange[] => (swaps.length === 0 ? [] : [{ op: 'swap', swaps }])
const calm = (map: ClusterMap): ClusterMap => settlePartitions(map, movesOf(map).map(({ partition }) => partition)) // prettier-ignore
const counts = (map: ClusterMap): string => JSON.stringify([...shardPartitions(map)].map(([id, { owned }]) => [id, owned])) // prettier-ignore
const totalOf = (bytes: Float64Array): number => bytes.reduce((sum, size) => sum + size, 0)

/** Throws unless `after`, made of `before` by these swaps, keeps what they must keep. */
function check(before: ClusterMap, after: ClusterMap, swaps: readonly Swap[], bytes: Float64Array): void {
  verifyTable(changedTopology(before, []), after.table, before)
  if (counts(before) !== counts(after)) throw new Error('other counts')
  const touched = swaps.flatMap(({ partition, other }) => [partition, other])
  if (new Set(touched).size !== touched.length) throw new Error('a partition is in two swaps')
  const zoneOf = new Map<string, string>(after.nodes.map(({ id, zone }) => [id, zone]))
  const zoneOfShard = new Map<string, string>(after.shards.map(({ id, node }) => [id, zoneOf.get(node) ?? '']))
  const moves = movesOf(after)
  for (const { from, to } of moves) {
    const [gone, come] = [from.filter(id => !to.includes(id)), to.filter(id => !from.includes(id))]
    if (gone.length !== 1 || come.length !== 1) throw new Error('two copies of a partition move at once')
    if (zoneOfShard.get(gone[0] ?? '') !== zoneOfShard.get(come[0] ?? '')) throw new Error('to another zone')
  }
  if (moves.length !== touched.length) throw new Error(`${moves.length} partitions move, ${touched.length} are swapped`)
  const moved = touched.reduce((sum, partition) => sum + (bytes[partition] ?? 0), 0)
  if (moved > totalOf(bytes) * before.copies * swappedRatioMax) throw new Error(`${moved} bytes move`)
  if (swaps.length > swapsMax) throw new Error(`${swaps.length} swaps`)
  const then = new Map(byteSpread(before, bytes).map(one => [one.zone, one.max]))
  for (const { zone, max } of byteSpread(after, bytes)) {
    if (max > (then.get(zone) ?? 0)) throw new Error(`zone ${zone}: ${then.get(zone)} -> ${max}`)
  }
}

t.test('I18, I19: swaps keep quotas, zones and distinct nodes, move little, and never fill the fullest', async t => {
  const parameters = settings<[Spec, number, number, number]>(16)
  t.comment(`seed ${parameters.seed}`)
  let better = 0
  fc.assert(
    fc.property(
      fc.oneof(spec, wide, wide),
      fc.nat(2 ** 31),
      fc.constantFrom(0.3, 1, 2.2),
      fc.constantFrom(12, 24, 100, partitionCount),
      (one, seed, sigma, filled) => {
        const map = buildClusterMap(topologyOf(one))
        const bytes = sizes(seed, sigma, filled)
        const swaps = proposeSwaps(map, bytes, new Set())
        if (JSON.stringify(proposeSwaps(map, bytes, new Set())) !== JSON.stringify(swaps)) throw new Error('others')
        better += swaps.length > 0 ? 1 : 0
        const next = planChanges(map, swap(swaps)).next
        check(map, next, swaps, bytes)
        const again = planChanges(map, swap(swaps)).next
        if (again.checksum !== next.checksum) throw new Error('I17: another table from the same swaps')
      },
    ),
    parameters,
  )
  t.comment(`${better} of ${parameters.numRuns} had anything to swap`)
})

t.test('I19: later changes leave swaps as they are, and move no more than they would have', async t => {
  const parameters = settings<[Spec, number, typeof change extends fc.Arbitrary<infer C> ? C : never]>(8)
  t.comment(`seed ${parameters.seed}`)
  fc.assert(
    fc.property(fc.oneof(spec, wide), fc.nat(2 ** 31), change, (one, seed, later) => {
      const map = buildClusterMap(topologyOf(one))
      const swapped = calm(planChanges(map, swap(proposeSwaps(map, sizes(seed, 1.5), new Set()))).next)
      const same = planChanges(swapped, [])
      if (same.moves.length > 0) throw new Error(`${same.moves.length} partitions move for nothing`)
      const after = topologyOf(applyChange(one, later, 1))
      const [plain, moved] = [map, swapped].map(from => verifyTable(after, buildClusterMap(after, from).table, from).moves) // prettier-ignore
      if (moved! > plain! * 1.05 + 8) throw new Error(`${moved} instead of ${plain}`)
    }),
    parameters,
  )
})

t.test('with a change of topology: on top of it, and only of partitions that it does not move', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(9, 3)))
  const bytes = sizes(7, 1.5)
  const drain: TopologyChange = { op: 'weight', shard: 'n0-s0', weight: 0.5 }
  const plain = planChanges(map, [drain])
  const moving = new Set(plain.moves.map(({ partition }) => partition))
  const swaps = proposeSwaps(plain.next, bytes, moving)
  t.ok(swaps.length > 0)
  t.notOk(swaps.some(({ partition, other }) => moving.has(partition) || moving.has(other)))
  const both = planChanges(map, [drain, ...swap(swaps)])
  t.equal(both.moves.length, plain.moves.length + swaps.length * 2)
  t.equal(counts(both.next), counts(plain.next))
  t.equal(both.report.partitionsMovedTwice, plain.report.partitionsMovedTwice)
  const wrong = { partition: plain.moves[0]!.partition, from: 0, other: swaps[0]!.other, to: swaps[0]!.to }
  t.throws(() => planChanges(map, [drain, ...swap([wrong])]), { code: 'TOPOLOGY_INVALID' }, 'of one that moves anyway')
})

t.test('swaps that are none are refused, whatever table they were made for', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(6, 3)))
  const { partition, from, other, to } = proposeSwaps(map, sizes(3, 2), new Set())[0]!
  const stranger = map.shards.findIndex(({ node }) => map.nodes.find(({ id }) => id === node)?.zone !== map.nodes.find(({ id }) => id === map.shards[from]!.node)?.zone) // prettier-ignore
  for (const [wrong, why] of [
    [{ partition, from: to, other, to: from }, 'it does not own that'],
    [{ partition, from, other: partition, to }, 'the same partition'],
    [{ partition, from, other, to: from }, 'the same shard'],
    [{ partition, from, other, to: stranger }, 'another zone'],
    [{ partition, from, other, to: 999 }, 'no shard'],
    [{ partition: 4096, from, other, to }, 'no partition'],
  ] as const) {
    t.throws(() => planChanges(map, swap([wrong])), { code: 'TOPOLOGY_INVALID' }, why)
  }
  const good = { partition, from, other, to }
  t.throws(() => planChanges(map, swap([good, good])), { code: 'TOPOLOGY_INVALID' }, 'twice')
  t.equal(planChanges(map, swap([good])).moves.length, 2)
})

t.test('what it takes: the fullest of nine shards, 20,000 files of very different sizes', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(9, 3)))
  // About five files a partition: sums of few lognormal sizes.
  const bytes = new Float64Array(partitionCount)
  for (let file = 0; file < 5; file += 1)
    sizes(100 + file, 2.2).forEach((size, partition) => (bytes[partition]! += size))
  const worst = (one: ClusterMap): number => Math.max(...byteSpread(one, bytes).map(({ max }) => max))
  let current = map
  const found: string[] = [worst(map).toFixed(3)]
  for (let round = 0; round < 4; round += 1) {
    const swaps = proposeSwaps(current, bytes, new Set())
    if (swaps.length === 0) break
    const before = byteLoads(current, bytes).loads
    const next = planChanges(current, swap(swaps)).next
    check(current, next, swaps, bytes)
    current = calm(next)
    const moved = swaps.reduce((sum, one) => sum + bytes[one.partition]! + bytes[one.other]!, 0)
    const gained = Math.max(...before) - Math.max(...byteLoads(current, bytes).loads)
    t.ok(gained > 0)
    found.push(`${worst(current).toFixed(3)} by ${swaps.length} swaps, ${((100 * moved) / totalOf(bytes) / 3).toFixed(2)} % of all bytes`) // prettier-ignore
  }
  t.comment(found.join(' -> '))
  t.ok(worst(map) > 1.02, 'counts alone leave it uneven')
  t.ok(worst(current) < 1.011, 'and swaps do not')
})
