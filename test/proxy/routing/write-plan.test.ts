import fc from 'fast-check'
import t from 'tap'
import { PlacementView } from '../../../shared/cluster-map.ts'
import { HoldfastError, isHoldfastError } from '../../../shared/errors.ts'
import type { NodeId, ShardId, Zone } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { blobQuorum, referenceQuorum, referenceReadQuorum } from '../../../shared/quorum.ts'
import {
  likelyHandoffs,
  planWrite,
  reaches,
  replacementFor,
  type Writability,
  zonesOf,
} from '../../../proxy/routing/write-plan.ts'

const views = new Map<string, PlacementView>()

/** Kept: a table takes 100 ms to compute, a property asks for hundreds. */
function viewOf(zones: readonly string[], replicas: number, shardsPerNode = 1): PlacementView {
  const key = `${zones.join()} ${replicas} ${shardsPerNode}`
  let view = views.get(key)
  if (view === undefined) views.set(key, (view = newView(zones, replicas, shardsPerNode)))
  return view
}

function newView(zones: readonly string[], replicas: number, shardsPerNode: number): PlacementView {
  return new PlacementView(
    buildClusterMap({
      clusterId: 'test',
      replicas,
      spread: 'strict',
      nodes: zones.map((zone, i) => ({
        id: `n${i}` as NodeId,
        zone: zone as Zone,
        url: `http://10.0.0.1:${1000 + i}`,
      })),
      shards: zones.flatMap((_, i) =>
        Array.from({ length: shardsPerNode }, (_, s) => ({
          id: `n${i}-${s}` as ShardId,
          node: `n${i}` as NodeId,
          weight: 1,
        })),
      ),
    }),
  )
}

const plan = (placement: PlacementView, partition: number, states: Partial<Record<string, Writability>> = {}) =>
  planWrite({ placement, partition, kind: 'blob', writability: ({ shard }) => states[shard] ?? 'ok' })

t.test('the quorum table: W = min(2, R), references a majority, half of it in the last zone of an even R', async t => {
  t.same([1, 2, 3, 4, 5].map(blobQuorum), [1, 2, 2, 2, 2])
  t.same(
    [1, 2, 3, 4, 5].map(replicas => referenceQuorum(replicas, 2)),
    [1, 2, 2, 3, 3],
  )
  t.same(
    [1, 2, 3, 4, 5].map(replicas => referenceQuorum(replicas, 1)),
    [1, 2, 2, 2, 3],
  )
  t.same([1, 2, 3, 4, 5].map(referenceReadQuorum), [1, 1, 2, 2, 3])
})

t.test('all owners are well: they are the targets, and two zones are asked for', async t => {
  const view = viewOf(['a', 'b', 'c', 'a', 'b', 'c'], 3)
  const { targets, quorum, owners } = plan(view, 7)
  t.same(
    targets.map(({ shard }) => shard),
    view.owners(7),
  )
  t.same(owners, view.owners(7))
  t.same(quorum, { copiesMin: 2, zonesMin: 2 })
})

t.test('an owner that is down is replaced by the first handoff of its zone', async t => {
  const view = viewOf(['a', 'b', 'c', 'a', 'b', 'c', 'a', 'b', 'c'], 3)
  const lost = view.owners(7)[1] as ShardId
  const expected = view.handoffs(7).find(shard => view.zone(shard) === view.zone(lost))
  const { targets } = plan(view, 7, { [lost]: 'unavailable' })
  t.equal(targets.length, 3)
  t.equal(targets[2]?.shard, expected)
})

t.test('a failed disk is replaced on another shard of its node when no node is spare', async t => {
  const view = viewOf(['a', 'b', 'c'], 3, 2)
  const lost = view.owners(7)[0] as ShardId
  const { targets } = plan(view, 7, { [lost]: 'unavailable' })
  t.equal(targets.length, 3)
  t.equal(new Set(targets.map(({ node }) => node)).size, 3)
})

t.test('one zone left: two copies in it suffice; a two-node cluster that lost one refuses', async t => {
  const view = viewOf(['a', 'a', 'b', 'b'], 4)
  t.same(plan(view, 1, { 'n2-0': 'unavailable', 'n3-0': 'unavailable' }).quorum, { copiesMin: 2, zonesMin: 1 })
  const small = viewOf(['a', 'b'], 2)
  t.throws(() => plan(small, 1, { 'n0-0': 'unavailable' }), { code: 'QUORUM_NOT_REACHED' })
  t.throws(() => plan(small, 1, { 'n0-0': 'no-room' }), { code: 'INSUFFICIENT_STORAGE' })
  t.same(plan(viewOf(['a'], 1), 1).quorum, { copiesMin: 1, zonesMin: 1 })
})

t.test('I2, I31: whatever is down or full, the plan covers two zones if two can take the write', async t => {
  const seed = Date.now()
  t.comment(`seed ${seed}`)
  const states: Writability[] = ['ok', 'ok', 'ok', 'no-room', 'unavailable']
  const cluster = fc.record({
    zones: fc.constantFrom('a', 'ab', 'aa', 'aab', 'abc', 'aabb', 'abcabc', 'aaabc').map(text => text.split('')),
    replicas: fc.constantFrom(1, 2, 3, 4),
    shardsPerNode: fc.constantFrom(1, 2),
    partition: fc.integer({ min: 0, max: 4095 }),
    states: fc.array(fc.constantFrom(...states), { minLength: 14, maxLength: 14 }),
  })
  fc.assert(
    fc.property(cluster, ({ zones, replicas, shardsPerNode, partition, states }) => {
      const view = viewOf(zones, replicas, shardsPerNode)
      const stateOf = (shard: string): Writability =>
        states[view.map.shards.findIndex(({ id }) => id === shard)] ?? 'ok'
      const nodesWith = (...wanted: Writability[]) =>
        new Set(view.map.shards.filter(({ id }) => wanted.includes(stateOf(id))).map(({ node }) => node))
      const usable = nodesWith('ok')
      const copiesMin = Math.min(2, replicas)
      try {
        const { targets, quorum } = planWrite({
          placement: view,
          partition,
          kind: 'blob',
          writability: ({ shard }) => stateOf(shard),
        })
        const zonesUsable = new Set(view.map.nodes.filter(({ id }) => usable.has(id)).map(({ zone }) => zone)).size
        return (
          targets.every(({ shard }) => stateOf(shard) === 'ok') &&
          new Set(targets.map(({ node }) => node)).size === targets.length &&
          targets.length === Math.min(replicas, usable.size) &&
          quorum.copiesMin === copiesMin &&
          quorum.zonesMin === Math.min(2, copiesMin, zonesUsable) &&
          reaches(quorum, targets)
        )
      } catch (error) {
        const code = nodesWith('ok', 'no-room').size >= copiesMin ? 'INSUFFICIENT_STORAGE' : 'QUORUM_NOT_REACHED'
        return error instanceof HoldfastError && isHoldfastError(error, code) && usable.size < copiesMin
      }
    }),
    { seed, numRuns: 3_000 },
  )
})

t.test('readers look where writers go for an owner that is lost in each zone', async () => {
  const layouts = ['a,b,c,a,b,c', 'a,b,c,a,b,c,a,b,c,a,b', 'a,a,b,b,b,c,d', 'a,b,a,b,a,b,a', 'a,a,a,a,a']
  fc.assert(
    fc.property(
      fc.constantFrom(...layouts),
      fc.integer({ min: 0, max: 4_095 }),
      fc.array(fc.boolean(), { minLength: 11, maxLength: 11 }),
      fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
      (zones, partition, away, lost) => {
        const view = viewOf(zones.split(','), 3)
        const states: Partial<Record<string, Writability>> = {}
        const zonesHit = new Set<Zone>()
        view.owners(partition).forEach((owner, at) => {
          if (zonesHit.has(view.zone(owner)) || lost[at] !== true) return
          zonesHit.add(view.zone(owner))
          states[owner] = 'unavailable'
        })
        // Others that are away stay away.
        view.handoffs(partition).forEach((shard, at) => {
          if (away[at] === true) states[shard] = 'unavailable'
        })
        const there = view.handoffs(partition).filter(shard => states[shard] === undefined)
        // Where a zone has none, those for its owner are in the way of another's: too many faults to have a rule for.
        fc.pre([...zonesHit].every(zone => there.some(shard => view.zone(shard) === zone)))
        const likely = likelyHandoffs(view, partition, shard => there.includes(shard))
        let targets: readonly ShardId[] = []
        try {
          targets = plan(view, partition, states).targets.map(({ shard }) => shard)
        } catch (error) {
          if (!isHoldfastError(error, 'QUORUM_NOT_REACHED')) throw error
        }
        const handoffs = targets.filter(shard => view.handoffs(partition).includes(shard))
        return handoffs.every(shard => likely.includes(shard))
      },
    ),
    { numRuns: 500 },
  )
})

t.test('a replacement goes to another zone only when the copies would all be in one', async t => {
  const target = (shard: string, zone: string) => ({
    shard: shard as ShardId,
    node: shard as unknown as NodeId,
    url: '',
    zone: zone as Zone,
  })
  const spares = [target('a2', 'a'), target('b2', 'b'), target('c2', 'c')]
  t.equal(replacementFor(target('b1', 'b'), [target('a1', 'a')], spares)?.shard, 'b2')
  t.equal(replacementFor(target('a3', 'a'), [target('a1', 'a')], spares)?.shard, 'b2')
  t.equal(replacementFor(target('a3', 'a'), [target('a1', 'a'), target('c1', 'c')], spares)?.shard, 'a2')
  t.equal(replacementFor(target('d1', 'd'), [target('a2', 'a'), target('c1', 'c')], spares)?.shard, 'b2')
  t.equal(zonesOf([]), 0)
})
