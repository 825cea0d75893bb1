/** A change of the number of copies that is aborted half-way, and whose abort is aborted: nothing that was acknowledged is out of sight. */
import fc from 'fast-check'
import t from 'tap'
import {
  type ClusterMap,
  copiesOf,
  decodeClusterMap,
  encodeClusterMap,
  PlacementView,
} from '../../shared/cluster-map.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import { partitionCount } from '../../shared/partition.ts'
import { buildClusterMap } from '../../shared/placement.ts'
import { planChanges } from '../../shared/placement/changes.ts'
import {
  abortTransition,
  beginTransition,
  movesOf,
  refuseOlderWrites,
  settlePartitions,
} from '../../shared/placement/transition.ts'
import { blobQuorum, referenceQuorum, referenceReadQuorum } from '../../shared/quorum.ts'
import { Random } from '../support/random.ts'
import { applyChange, change, known, settings, spec, type Spec, topologyOf } from './topologies.ts'

// Whole tables, dozens of them, on machines that do other things too.
t.setTimeout(180_000)

type Names = readonly string[]

const everyPartition = Array.from({ length: partitionCount }, (_, partition) => partition)

function some<Item>(random: Random, items: readonly Item[], count: number): Item[] {
  const left = [...items]
  return Array.from({ length: Math.min(count, items.length) }, () => left.splice(random.int(0, left.length - 1), 1)[0]!)
}

/** What was acknowledged in a partition, and who has it. */
interface Thing {
  readonly kind: 'blob' | 'reference'
  /** Epoch. */
  readonly acknowledgedBy: number
  /** What it took to acknowledge it, or what its partition was settled with since, if that is less. */
  copies: number
  readonly holders: Set<string>
}

/**
 * Disks of a few partitions: written to as proxies do it, with no more copies than it takes to acknowledge; moved as the task does it;
 * and read by the quorums of the map, which any majority must meet.
 */
class Disks {
  readonly #random: Random
  readonly #things = new Map<number, Thing[]>()

  constructor(random: Random) {
    this.#random = random
    for (const partition of some(random, everyPartition, 60)) this.#things.set(partition, [])
  }

  write(map: ClusterMap): void {
    for (const { things, sets } of this.#all(map)) {
      const [now] = sets
      const majorities = sets.map(({ owners, replicas }) => some(this.#random, owners, referenceQuorum(replicas, 2)))
      const two = some(this.#random, now!.owners, blobQuorum(now!.replicas))
      for (const [kind, holders] of [
        ['reference', majorities.flat()],
        ['blob', two],
      ] as const) {
        things.push({ kind, acknowledgedBy: map.epoch, copies: holders.length, holders: new Set(holders) })
      }
    }
  }

  /** What the new owners lack of what enough old ones hold is copied; when it is settled, copies where no owner is go. */
  settle(map: ClusterMap, partitions: readonly number[]): ClusterMap {
    const chosen = new Set(partitions)
    for (const { partition, things, sets } of this.#all(map)) {
      const [now, before] = sets
      if (before === undefined || !chosen.has(partition)) continue
      const kept = before.owners.filter(shard => now!.owners.includes(shard))
      const enough = some(this.#random, before.owners, referenceReadQuorum(before.owners.length))
      const answering = new Set([...kept, ...enough])
      for (const thing of things) {
        const { kind, holders } = thing
        thing.copies = Math.min(thing.copies, now!.owners.length)
        // A blob that only silent owners hold is in the repair queue.
        const isFound = kind === 'blob' || [...holders].some(shard => answering.has(shard))
        if (isFound) for (const shard of now!.owners) holders.add(shard)
      }
    }
    const next = settlePartitions(map, partitions)
    for (const { partition, things, sets } of this.#all(next)) {
      if (!chosen.has(partition)) continue
      const { owners } = sets[0]!
      for (const { holders } of things) {
        // I21: each owner says for each blob that it has it.
        if (!owners.every(shard => holders.has(shard))) continue
        for (const shard of [...holders]) if (!owners.includes(shard)) holders.delete(shard)
      }
    }
    return next
  }

  /** I7, I20: by whatever answers come in time. */
  check(map: ClusterMap): void {
    for (const { partition, things, sets } of this.#all(map)) {
      const asked = new Set(sets.flatMap(({ owners }) => owners))
      for (const { kind, acknowledgedBy, copies, holders } of things) {
        const there = [...holders].filter(shard => asked.has(shard)).length
        const isFound =
          kind === 'blob'
            ? there > 0
            : sets.some(({ owners, replicas }) => {
                const without = owners.filter(shard => !holders.has(shard)).length
                return without < Math.min(owners.length, referenceReadQuorum(replicas))
              })
        if (!isFound) throw new Error(`epoch ${map.epoch}, partition ${partition}: a ${kind} of epoch ${acknowledgedBy} is out of sight`) // prettier-ignore
        if (kind === 'blob' && there < copies) throw new Error(`a blob has ${there} copies`)
      }
    }
  }

  *#all(map: ClusterMap) {
    const view = new PlacementView(map)
    const before = view.before()
    for (const [partition, things] of this.#things) {
      const now = { owners: view.owners(partition) as Names, replicas: map.replicas }
      const old = { owners: before.owners(partition) as Names, replicas: before.map.replicas }
      yield { partition, things, sets: view.previousOwners(partition) === undefined ? [now] : [now, old] }
    }
  }
}

interface Walk {
  readonly random: Random
  readonly first: ClusterMap
  readonly begun: ClusterMap
  /** Only the number of copies changes. */
  readonly isPure: boolean
}

/** Settles some, aborts, settles some, aborts that, and so on; in the end all is settled. Returns the number of aborts made. */
function walk({ random, first, begun, isPure }: Walk): number {
  // Rounding may give a copy to another shard than before; and where shares change with the number of copies, more than that.
  const slack = isPure ? begun.shards.length + 4 * apart(first, begun).length : undefined
  const disks = new Disks(random)
  disks.write(first)
  let map = begun
  let aborts = 0
  for (let turn = 0; turn < 3; turn += 1) {
    disks.write(map)
    disks.check(map)
    // Whoever aborts at once does it before nodes refuse what is older.
    if (random.next() < 0.7) map = refuseOlderWrites(map)
    const unsettled = movesOf(map).map(({ partition }) => partition)
    const count = random.pick([0, 1, 2, 40, unsettled.length >> 1, unsettled.length - 40, unsettled.length - 1])
    map = disks.settle(map, some(random, unsettled, Math.max(0, Math.min(count, unsettled.length - 1))))
    disks.write(map)
    disks.check(map)
    const { copies = 0, replicas = copies } = map.previous ?? {}
    try {
      const back = abortTransition(map)
      if (copiesOf(replicas, map.shards) !== copies) throw new Error('aborted, although there are not the nodes for it')
      checkAborted(map, back, slack)
      map = back
      aborts += 1
    } catch (error) {
      if (!isHoldfastError(error, 'TOPOLOGY_INVALID') || copies === map.copies) throw error
      if (copiesOf(replicas, map.shards) === copies) throw error
    }
  }
  disks.write(map)
  disks.check(map)
  const wanted = map.copies
  map = disks.settle(refuseOlderWrites(map), movesOf(map).map(({ partition }) => partition)) // prettier-ignore
  if (map.previous !== undefined || map.copies !== wanted) throw new Error('not settled')
  disks.check(map)
  return aborts
}

let extraMoves = 0

/** Partitions that have neither only gained owners nor only lost some. */
function apart(before: ClusterMap, after: ClusterMap): number[] {
  const [old, view] = [new PlacementView(before), new PlacementView(after)]
  return everyPartition.filter(partition => {
    const [then, now] = [old.owners(partition), view.owners(partition)]
    return !now.every(shard => then.includes(shard)) && !then.every(shard => now.includes(shard))
  })
}

/** `slack`: moves and partitions more than the fewest, where nothing but the number of copies changes. */
function checkAborted(map: ClusterMap, back: ClusterMap, slack: number | undefined): void {
  const [before, after] = [new PlacementView(map), new PlacementView(decodeClusterMap(encodeClusterMap(back)))]
  if (back.copies !== map.previous?.copies) throw new Error(`${back.copies} copies`)
  if (back.epoch !== map.epoch + 1 || back.previous?.since !== back.epoch) throw new Error('not the next epoch')
  if (map.copies === back.copies) return
  let moves = 0
  let settled = 0
  const counts = new Map<string, number>()
  for (const partition of everyPartition) {
    const [now, owners] = [after.owners(partition), before.owners(partition)]
    for (const shard of now) counts.set(shard, (counts.get(shard) ?? 0) + 1)
    if (after.previousOwners(partition)?.join() !== owners.join()) throw new Error('the previous owners are others')
    const old = before.previousOwners(partition)
    const isSettled = old === undefined
    if (old !== undefined && now.join() !== old.join()) throw new Error('not with its old owners again')
    if (isSettled) moves += now.filter(shard => !owners.includes(shard)).length
    if (isSettled) settled += 1
    if (slack !== undefined || isSettled) checkSpread(back, now)
  }
  // I19: what is even again, and what it costs. Rounded by zone, node and shard.
  if (slack === undefined) return
  const least = settled * Math.max(0, back.copies - map.copies)
  if (moves > least + slack) throw new Error(`${moves} moves, ${least} are the least`)
  const others = apart(map, back).filter(partition => before.previousOwners(partition) === undefined).length
  if (others > slack) throw new Error(`${others} partitions get other owners than they need`)
  extraMoves += moves - least
  const fresh = buildClusterMap(back)
  for (const shard of back.shards) {
    const [found, share] = [counts.get(shard.id) ?? 0, fresh.table.filter(place => back.shards[place] === shard).length]
    if (Math.abs(found - share) > 3) throw new Error(`${shard.id} owns ${found} where ${share} are its share`)
  }
}

/** I18. */
function checkSpread(map: ClusterMap, owners: readonly string[]): void {
  const zones = new Map<string, string>(map.nodes.map(({ id, zone }) => [id, zone]))
  const used = map.shards.filter(({ weight }) => weight > 0).map(({ node }) => zones.get(node))
  const found = owners.map(owner => known(map.shards.find(({ id }) => id === owner)))
  if (new Set(found.map(({ node }) => node)).size !== map.copies) throw new Error('twice on a node')
  const spread = new Set(found.map(({ node }) => zones.get(node))).size
  const possible = Math.min(new Set(used).size, map.copies)
  if (map.spread === 'strict' && spread !== possible) throw new Error(`in ${spread} zones instead of ${possible}`)
}

t.test('I7, I17, I18, I19, I20, I21: the number of copies goes back and forth, half settled', async t => {
  const parameters = settings<[Spec, number, number, number]>(8)
  t.comment(`seed ${parameters.seed}`)
  let aborts = 0
  fc.assert(
    fc.property(spec, fc.nat(3), fc.integer({ min: 1, max: 3 }), fc.nat(), (base, from, step, seed) => {
      const nodes = base.nodes.filter(({ weights }) => weights.some(weight => weight > 0)).length
      const limit = Math.min(4, nodes)
      if (limit < 2) return
      const replicas = 1 + (from % limit)
      const other = 1 + ((replicas - 1 + 1 + ((step - 1) % (limit - 1))) % limit)
      const first = buildClusterMap(topologyOf({ ...base, replicas }))
      const { next } = planChanges(first, [{ op: 'replicas', replicas: other }])
      const made = walk({ random: new Random(seed), first, begun: next, isPure: true })
      if (made !== 3) throw new Error(`${made} aborts`)
      aborts += made
    }),
    { ...parameters, endOnFailure: true },
  )
  t.ok(aborts > 0, `${aborts} aborts, ${extraMoves} moves more than the least`)
})

t.test('I20, I21: so does one together with any other change of topology, or it is refused', async t => {
  const parameters = settings<[Spec, typeof change extends fc.Arbitrary<infer C> ? C : never, number, number]>(10)
  t.comment(`seed ${parameters.seed}`)
  let aborts = 0
  fc.assert(
    fc.property(spec, change, fc.integer({ min: 1, max: 4 }), fc.nat(), (base, one, replicas, seed) => {
      const first = buildClusterMap(topologyOf(base))
      const changed = applyChange(base, one, 0)
      // Drained first, as operators have to.
      const left = base.nodes.map(node => {
        const { weights = [], zone = node.zone } = changed.nodes.find(({ name }) => name === node.name) ?? {}
        const length = Math.max(weights.length, node.weights.length)
        return { ...node, zone, weights: Array.from({ length }, (_, shard) => weights[shard] ?? 0) }
      })
      const added = changed.nodes.filter(({ name }) => !base.nodes.some(node => node.name === name))
      const begun = beginTransition(first, topologyOf({ ...changed, replicas, nodes: [...left, ...added] }))
      if (begun.previous !== undefined) aborts += walk({ random: new Random(seed), first, begun, isPure: false })
    }),
    { ...parameters, endOnFailure: true },
  )
  t.comment(`${aborts} aborts`)
})
