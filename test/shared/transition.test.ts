import fc from 'fast-check'
import t from 'tap'
import {
  type ClusterMap,
  copiesOf,
  decodeClusterMap,
  encodeClusterMap,
  PlacementView,
  sealClusterMap,
} from '../../shared/cluster-map.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import { partitionCount } from '../../shared/partition.ts'
import { buildClusterMap, verifyTable } from '../../shared/placement.ts'
import { changedTopology, planChanges } from '../../shared/placement/changes.ts'
import { roomProblems, type ShardRoom } from '../../shared/placement/room.ts'
import {
  abortTransition,
  beginTransition,
  movesOf,
  partitionsOf,
  refuseOlderWrites,
  settlePartitions,
} from '../../shared/placement/transition.ts'
import { blobQuorum } from '../../shared/quorum.ts'
import { applyChange, change, evenSpec, settings, spec, type Spec, topologyOf } from './topologies.ts'

/** Which shards hold a blob of each partition: a model of the disks, moved by the rules of the maps. */
type Disks = Set<string>[]

function disksOf(map: ClusterMap): Disks {
  const view = new PlacementView(map)
  return Array.from({ length: partitionCount }, (_, partition) => new Set<string>(view.owners(partition)))
}

/** Everything a reader may be told to ask for it has, and enough of them. */
function check(map: ClusterMap, disks: Disks, aborted = false): void {
  const view = new PlacementView(map)
  disks.forEach((holders, partition) => {
    const asked = view.allOwners(partition).filter(shard => holders.has(shard))
    const copies = Math.min(map.copies, map.previous?.copies ?? map.copies)
    if (asked.length < Math.min(blobQuorum(map.replicas), copies)) throw new Error(`${partition}: ${asked.length} left`)
    // After an abort the previous owners are the targets that were given up: readers go on to the others.
    if (!aborted && !view.sources(partition).every(shard => holders.has(shard)))
      throw new Error(`${partition}: a source lacks it`)
  })
}

/** Undefined where the number of copies changed, and the shards there are now do not give the old one. */
function abortIfPossible(map: ClusterMap): ClusterMap | undefined {
  const { copies = 0, replicas = copies } = map.previous ?? {}
  const isPossible = copies === map.copies || copiesOf(replicas, map.shards) === copies
  try {
    const back = abortTransition(map)
    if (!isPossible) throw new Error('aborted, although the shards do not give so many copies')
    return back
  } catch (error) {
    if (isPossible || !isHoldfastError(error, 'TOPOLOGY_INVALID')) throw error
    return undefined
  }
}

/** Drains before it removes, as operators have to. */
function withoutRemovals(before: Spec, after: Spec): Spec {
  const nodes = before.nodes.map(node => {
    const weights = after.nodes.find(one => one.name === node.name)?.weights ?? []
    const zone = after.nodes.find(one => one.name === node.name)?.zone ?? node.zone
    return { ...node, zone, weights: Array.from({ length: Math.max(weights.length, node.weights.length) }, (_, i) => weights[i] ?? 0) } // prettier-ignore
  })
  return {
    ...after,
    nodes: [...nodes, ...after.nodes.filter(({ name }) => !before.nodes.some(one => one.name === name))],
  }
}

t.test('I20, I21: any sequence of changes, settled or aborted anywhere, keeps W copies where readers look', async t => {
  const parameters = settings<[Spec, (typeof change extends fc.Arbitrary<infer C> ? C : never)[], number[]]>(8)
  t.comment(`seed ${parameters.seed}`)
  fc.assert(
    fc.property(
      spec,
      fc.array(change, { minLength: 1, maxLength: 3 }),
      fc.array(fc.nat(4), { minLength: 12, maxLength: 12 }),
      (first, changes, dice) => {
        let current = first
        let map = buildClusterMap(topologyOf(current))
        const disks = disksOf(map)
        let die = 0
        changes.forEach((one, serial) => {
          current = withoutRemovals(current, applyChange(current, one, serial))
          map = beginTransition(map, topologyOf(current))
          check(map, disks)
          let aborted = false
          for (let step = 0; map.previous !== undefined; step += 1) {
            const roll = dice[die++ % dice.length] ?? 0
            const back = roll === 4 && step < 3 ? abortIfPossible(map) : undefined
            if (back !== undefined) {
              // Of another number of copies settled partitions are moved too: whoever aborts that goes back from targets again.
              aborted = back.copies !== map.copies || !aborted
              map = back
              current = { ...current, replicas: map.replicas }
            }
            const moves = movesOf(map)
            const some = moves.filter((_, index) => step > 4 || index % (roll + 2) === 0)
            for (const { partition, from, to } of some) {
              if (!aborted && !from.every(shard => disks[partition]?.has(shard)))
                throw new Error('an old owner has lost it')
              for (const shard of to) disks[partition]?.add(shard)
            }
            map = settlePartitions(map, some.map(({ partition }) => partition)) // prettier-ignore
            for (const { partition, to } of some) {
              for (const shard of [...(disks[partition] ?? [])])
                if (!to.includes(shard)) disks[partition]?.delete(shard)
            }
            check(map, disks, aborted)
          }
          const view = new PlacementView(map)
          const stray = disks.findIndex(
            (holders, partition) => holders.size !== map.copies || !view.owners(partition).every(id => holders.has(id)),
          )
          if (stray >= 0) throw new Error(`${stray}: copies where no owner is, or none where one is`)
        })
      },
    ),
    parameters,
  )
})

t.test('I19: a change names exactly the moves of its table, and they are the fewest', async t => {
  const before = buildClusterMap(topologyOf(evenSpec(6, 3)))
  const spec = evenSpec(6, 3)
  const grown = { ...spec, nodes: [...spec.nodes, { name: 'n9', zone: 'z0', weights: [1] }] }
  const next = beginTransition(before, topologyOf(grown))
  const report = verifyTable(topologyOf(grown), next.table, before)
  const moved = movesOf(next).reduce((sum, { from, to }) => sum + to.filter(id => !from.includes(id)).length, 0)
  t.equal(moved, report.moves)
  t.equal(report.moves, report.movesMin)
})

t.test('a map in the middle of a change survives its way through text, and damage to it is found', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(4, 2)))
  const changes = [{ op: 'weight', shard: 'n0-s0', weight: 0 }] as const
  const begun = refuseOlderWrites(beginTransition(map, changedTopology(map, changes)))
  t.equal(begun.writesFrom, map.epoch + 1)
  const text = encodeClusterMap(begun)
  t.strictSame(decodeClusterMap(text), begun)
  t.throws(() => decodeClusterMap(text.replace('"since":2', '"since":1')), { code: 'CLUSTER_MAP_INVALID' })
  t.throws(() => decodeClusterMap(text.replace('"previous":', '"previously":')), { code: 'CLUSTER_MAP_INVALID' })
  t.notMatch(encodeClusterMap(map), /previous|writesFrom/, 'maps of a calm cluster are as they ever were')
  const settled = settlePartitions(begun, movesOf(begun).map(({ partition }) => partition)) // prettier-ignore
  t.equal(settled.previous, undefined)
  t.equal(settled.writesFrom, begun.writesFrom, 'older writes stay refused')
})

t.test('one change at a time, and nothing is removed that still owns anything', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(4, 2)))
  const drain = [{ op: 'weight', shard: 'n0-s0', weight: 0 }] as const
  const remove = [{ op: 'remove-node', node: 'n0' }] as const
  const { owned } = partitionsOf(map, 'n0-s0')
  t.throws(() => planChanges(map, remove), { code: 'CONFLICT', message: new RegExp(`owns ${owned} partitions`) })
  const begun = beginTransition(map, changedTopology(map, drain))
  t.throws(() => planChanges(begun, drain), { code: 'CONFLICT' }, 'another change is under way')
  t.throws(() => changedTopology(begun, remove), { code: 'CONFLICT' }, 'it has not handed over yet')
  const settled = settlePartitions(begun, movesOf(begun).map(({ partition }) => partition)) // prettier-ignore
  const gone = planChanges(settled, remove)
  t.same([gone.moves.length, gone.problems], [0, []])
  t.throws(() => planChanges(map, [{ op: 'remove-shard', shard: 'nobody' }]), { code: 'NOT_FOUND' })
})

t.test('a plan says what it would cost in copies and zones', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(3, 3)))
  const { problems, shards } = planChanges(map, [{ op: 'weight', shard: 'n0-s0', weight: 0 }])
  t.match(problems, [/2 nodes would be left for 3 copies/, /2 zones instead of 3/])
  t.match(shards[0], { shard: 'n0-s0', before: partitionCount, after: 0, losses: partitionCount })
})

t.test('I17, I18, I19: one copy more is only added, one fewer only taken away, whatever the cluster', async t => {
  const parameters = settings<[number, number, number]>(8)
  t.comment(`seed ${parameters.seed}`)
  fc.assert(
    fc.property(fc.integer({ min: 2, max: 12 }), fc.integer({ min: 1, max: 4 }), fc.nat(3), (count, zones, die) => {
      const replicas = 1 + (die % (count - 1))
      const spec = evenSpec(count, zones, replicas)
      const map = buildClusterMap(topologyOf(spec))
      const more = planChanges(map, [{ op: 'replicas', replicas: replicas + 1 }])
      const added = more.moves.filter(
        ({ from, to }) => from.every(id => to.includes(id)) && to.length === from.length + 1,
      )
      if (added.length !== partitionCount || more.report.moves !== partitionCount) throw new Error('not only additions')
      const again = beginTransition(map, topologyOf({ ...spec, nodes: [...spec.nodes], replicas: replicas + 1 }))
      if (again.checksum !== more.next.checksum) throw new Error('another table from the same topology')
      const grown = settlePartitions(more.next, more.moves.map(({ partition }) => partition)) // prettier-ignore
      const fewer = planChanges(grown, [{ op: 'replicas', replicas }])
      const taken = fewer.moves.filter(
        ({ from, to }) => to.every(id => from.includes(id)) && from.length === to.length + 1,
      )
      if (taken.length !== partitionCount || fewer.report.moves !== 0) throw new Error('not only removals')
    }),
    parameters,
  )
})

t.test('a number of copies that nodes or zones cannot hold is refused, and what it means is said', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(4, 2, 2)))
  const plan = (replicas: number) => planChanges(map, [{ op: 'replicas', replicas }])
  t.throws(() => plan(5), { code: 'TOPOLOGY_INVALID', message: /5 copies need 5 nodes .* there are 4/ })
  for (const wrong of [0, 17, 1.5]) t.throws(() => plan(wrong), { code: 'BAD_REQUEST' }, String(wrong))
  t.match(plan(3), { replicas: { before: 2, after: 3 }, problems: [/3 copies in 2 zones: .* up to 2 of them/] })
  t.match(plan(1).problems, [/a single copy/])
  t.equal(plan(2).moves.length, 0)
  const three = buildClusterMap(topologyOf(evenSpec(6, 3, 3)))
  t.same(planChanges(three, [{ op: 'replicas', replicas: 2 }]).problems, [], 'fewer zones are what was asked for')
  const added = { op: 'add-node', node: 'n9', zone: 'z9', url: 'http://10.0.0.1:9100' } as const
  const shard = { op: 'add-shard', shard: 'n9-s0', node: 'n9', weight: 1 } as const
  t.equal(
    planChanges(map, [added, shard, { op: 'replicas', replicas: 5 }]).next.copies,
    5,
    'with a node more it can be',
  )
})

t.test('what went to the owners of before counts by their own number while it changes', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(6, 3, 3)))
  const { next } = planChanges(map, [{ op: 'replicas', replicas: 4 }])
  const view = new PlacementView(next)
  t.same([view.map.replicas, view.before().map.replicas], [4, 3])
  t.same([view.owners(0).length, view.before().owners(0).length], [4, 3])
  const aborted = new PlacementView(abortTransition(next))
  t.same([aborted.map.replicas, aborted.before().map.replicas], [3, 4])
  t.same([aborted.owners(0), aborted.before().owners(0)], [view.before().owners(0), view.owners(0)])
})

t.test('an abort goes back to what was wanted, and is refused where the nodes do not give what there was', async t => {
  const wanting = buildClusterMap(topologyOf(evenSpec(3, 3, 5)))
  t.same([wanting.copies, wanting.replicas], [3, 5])
  const { next } = planChanges(wanting, [{ op: 'replicas', replicas: 2 }])
  t.match(next.previous, { copies: 3, replicas: 5 })
  const text = encodeClusterMap(next)
  t.strictSame(decodeClusterMap(text), next)
  t.throws(() => decodeClusterMap(text.replace('"replicas":5', '"replicas":6')), { code: 'CLUSTER_MAP_INVALID' })
  const fewer = { ...next, previous: { ...next.previous!, replicas: 2 } }
  t.throws(() => decodeClusterMap(encodeClusterMap(sealClusterMap(fewer))), { code: 'CLUSTER_MAP_INVALID', message: /3 previous owners where 2/ }) // prettier-ignore
  const back = abortTransition(next)
  t.match(back, { copies: 3, replicas: 5, previous: { copies: 2, replicas: undefined }, table: wanting.table })
  t.match(abortTransition(back), { copies: 2, replicas: 2, previous: { copies: 3, replicas: 5 } })

  const more = beginTransition(wanting, topologyOf(evenSpec(4, 3, 5)))
  t.same([more.copies, more.replicas], [4, 5])
  t.throws(() => abortTransition(more), { code: 'TOPOLOGY_INVALID', message: /with 5 wanted there were 3 copies/ })
  const drained = planChanges(buildClusterMap(topologyOf(evenSpec(3, 3))), [
    { op: 'replicas', replicas: 2 },
    { op: 'weight', shard: 'n0-s0', weight: 0 },
  ])
  t.throws(() => abortTransition(drained.next), { code: 'TOPOLOGY_INVALID', message: /3 copies need 3 nodes .* there are 2/ }) // prettier-ignore
})

t.test('a plan counts for each shard what it has, gets and gives, also one that is added or removed', async t => {
  const spec = evenSpec(6, 3)
  const nodes = spec.nodes.map(node => ({ ...node, weights: [1, 1] }))
  const drained = planChanges(buildClusterMap(topologyOf({ ...spec, nodes })), [
    { op: 'weight', shard: 'n1-s0', weight: 0 },
  ]).next
  const map = settlePartitions(drained, movesOf(drained).map(({ partition }) => partition)) // prettier-ignore
  const added = { op: 'add-node', node: 'n9', zone: 'z0', url: 'http://10.0.0.1:9100' } as const
  const { next, moves, shards } = planChanges(map, [
    added,
    { op: 'add-shard', shard: 'n9-s0', node: 'n9', weight: 1 },
    { op: 'remove-shard', shard: 'n1-s0' },
  ])
  t.same(shards.map(({ shard }) => shard), [...next.shards.map(({ id }) => id as string), 'n1-s0'].sort()) // prettier-ignore
  for (const one of shards) {
    const counted = {
      before: partitionsOf(map, one.shard).owned,
      after: partitionsOf(next, one.shard).owned,
      gains: moves.filter(({ from, to }) => to.includes(one.shard) && !from.includes(one.shard)).length,
      losses: partitionsOf(next, one.shard).leaving,
    }
    t.match(one, counted, one.shard)
    t.equal(one.before + one.gains - one.losses, one.after, one.shard)
  }
  t.match(
    shards.find(({ shard }) => shard === 'n9-s0'),
    { node: 'n9', zone: 'z0', weight: 1, before: 0 },
  )
  t.match(
    shards.find(({ shard }) => shard === 'n1-s0'),
    { node: 'n1', zone: 'z1', weight: 0, before: 0, after: 0 },
  )
})

t.test('handoffs are found once for each partition, for the old owners too', async t => {
  const map = buildClusterMap(topologyOf(evenSpec(5, 5)))
  const next = planChanges(map, [{ op: 'weight', shard: 'n0-s0', weight: 0 }]).next
  const [view, old] = [new PlacementView(next), new PlacementView(map)]
  const [{ partition } = { partition: 0 }] = movesOf(next)
  const before = view.before()
  t.same(before.handoffs(partition), old.handoffs(partition).filter(shard => shard !== 'n0-s0')) // prettier-ignore
  t.equal(view.before().handoffs(partition), before.handoffs(partition), 'the same list')
  const settled = Array.from({ length: partitionCount }, (_, index) => index).find(one => view.previousOwners(one) === undefined) // prettier-ignore
  t.equal(before.handoffs(settled!), view.handoffs(settled!))
  t.not(before.handoffs(partition), view.handoffs(partition))
})

t.test('a shard that would be filled into its reserve is named, with the bytes needed and free', async t => {
  const room = { bytesTotal: 1_000_000, bytesFree: 500_000, bytesFreeMin: 100_000 }
  const rooms = new Map<string, ShardRoom>([['a-1', room], ['b-1', { bytesTotal: 1_000_000, bytesFree: 500_000 }]]) // prettier-ignore
  const problems = (...needed: [string, number][]): readonly string[] => roomProblems(new Map(needed), rooms)
  t.same(problems(['a-1', 400_000], ['b-1', 450_000], ['c-1', 1e12]), [])
  t.match(problems(['b-1', 450_001], ['a-1', 400_001]), [
    /^shard a-1 .* 400001 bytes .* 500000 bytes are free, of which 100000/,
    /^shard b-1 .* 450001 bytes .* 500000 bytes are free, of which 50000/,
  ])
  const full = { ...room, bytesFree: 90_000 }
  t.same(roomProblems(new Map([['a-1', 0]]), new Map([['a-1', full]])), [], 'a full one may give copies away')
})
