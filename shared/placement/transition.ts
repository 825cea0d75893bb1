/**
 * A change of topology as a sequence of cluster maps. Pure.
 *
 *     E ──begin──▶ E+1: new table, old owners in `previous` ──settle, settle…──▶ no `previous`
 *                       └──abort──▶ the old owners own again what is not settled, the new ones are `previous`;
 *                                   where the number of copies changed, what is settled goes back to the old number
 *
 * A partition is settled once every new owner holds what the old ones hold; until then both count.
 */
import {
  type ClusterMap,
  copiesOf,
  isSettled,
  type PreviousOwners,
  sealClusterMap,
  settledEntry,
} from '../cluster-map.ts'
import { HoldfastError } from '../errors.ts'
import { partitionCount } from '../partition.ts'
import { buildClusterMap, planTable } from '../placement.ts'
import type { Topology } from './model.ts'
import { type Swap, swappedTable } from './swaps.ts'

/** The partitions whose owners are to change. */
export interface PartitionMove {
  readonly partition: number
  /** Ids of shards. */
  readonly from: readonly string[]
  readonly to: readonly string[]
}

/**
 * The first map of a change: the next epoch, the table of `topology` with the fewest moves, and in `previous` the owners of every
 * partition that gets another one. `swaps` are made on top of that table. Throws TOPOLOGY_INVALID for a topology that cannot be, or that
 * lacks a shard which still owns partitions (drain it first), or for a swap that cannot be, and CONFLICT while another change is under way.
 */
export function beginTransition(map: ClusterMap, topology: Topology, swaps: readonly Swap[] = []): ClusterMap {
  if (map.previous !== undefined) {
    throw new HoldfastError('CONFLICT', 'another change of topology is not settled yet', { since: map.previous.since })
  }
  const built = buildClusterMap(topology, map)
  const begun = sealTransition(map, built)
  if (swaps.length === 0) return begun
  const moving = new Set(movesOf(begun).map(({ partition }) => partition))
  return sealTransition(map, { ...built, table: swappedTable(built, topology, swaps, moving) })
}

/** `next`, with the owners by `map` where they are others. */
function sealTransition(map: ClusterMap, next: ClusterMap): ClusterMap {
  const index = new Map<string, number>(next.shards.map(({ id }, place) => [id, place]))
  const table = new Uint16Array(partitionCount * map.copies).fill(settledEntry)
  let unsettled = 0
  for (let partition = 0; partition < partitionCount; partition += 1) {
    const before = namesOf(map, map, partition)
    const after = namesOf(next, next, partition)
    if (before.length === after.length && before.every(id => after.includes(id))) continue
    unsettled += 1
    before.forEach((id, copy) => {
      const place = index.get(id)
      if (place === undefined) {
        throw new HoldfastError('TOPOLOGY_INVALID', `shard ${id} still owns partitions: drain it first`, { shard: id })
      }
      table[partition * map.copies + copy] = place
    })
  }
  const previous: PreviousOwners = { since: next.epoch, ...copiesBefore(map, next), table }
  return sealClusterMap({
    ...next,
    ...(map.writesFrom === undefined ? {} : { writesFrom: map.writesFrom }),
    ...(unsettled === 0 ? {} : { previous }),
  })
}

/** How many owners the partitions had, and how many were wanted where an abort could not tell otherwise. */
function copiesBefore(map: Pick<ClusterMap, 'copies' | 'replicas'>, next: Pick<ClusterMap, 'copies'>) {
  const { copies, replicas } = map
  return copies === next.copies || copies === replicas ? { copies } : { copies, replicas }
}

/** The next map, in which these partitions belong to their new owners alone. */
export function settlePartitions(map: ClusterMap, partitions: readonly number[]): ClusterMap {
  const { previous, ...rest } = map
  if (previous === undefined) return map
  const { copies } = previous
  const table = Uint16Array.from(previous.table)
  for (const partition of partitions) table.fill(settledEntry, partition * copies, (partition + 1) * copies)
  const epoch = map.epoch + 1
  const done = table.every(entry => entry === settledEntry)
  return sealClusterMap({ ...rest, epoch, ...(done ? {} : { previous: { ...previous, table } }) })
}

/** The next map, by which nodes refuse writes from before the change under way. */
export function refuseOlderWrites(map: ClusterMap): ClusterMap {
  const { previous } = map
  if (previous === undefined || map.writesFrom === previous.since) return map
  return sealClusterMap({ ...map, epoch: map.epoch + 1, writesFrom: previous.since })
}

/**
 * The next map, by which the old owners own again whatever is not settled, and the new ones, which may have got blobs meanwhile, are
 * the previous ones: the way back is a change like any other. What is settled stays where it is, but for a change of the number of
 * copies (`abortCopies`). CONFLICT when no change is under way.
 */
export function abortTransition(map: ClusterMap): ClusterMap {
  const { previous } = map
  if (previous === undefined) throw new HoldfastError('CONFLICT', 'no change of topology is under way')
  const { copies } = map
  if (previous.copies !== copies) return abortCopies(map, previous)
  const table = Uint16Array.from(map.table)
  const before = Uint16Array.from(previous.table)
  for (let entry = 0; entry < table.length; entry += 1) {
    if (previous.table[entry] === settledEntry) continue
    table[entry] = previous.table[entry] ?? 0
    before[entry] = map.table[entry] ?? 0
  }
  const epoch = map.epoch + 1
  return sealClusterMap({ ...map, epoch, table, previous: { since: epoch, copies, table: before } })
}

/**
 * Back to the number of copies before the change. What is not settled has its old owners again, and no others, whatever a plan would say:
 * what was written before the change is on them alone, what was written since is on the new ones, and `previous` has place for one list.
 * What is settled gets the old number of owners with the fewest moves, and its present ones, who have everything, are the previous ones.
 * TOPOLOGY_INVALID where the shards of the map do not give that number.
 */
function abortCopies(map: ClusterMap, previous: PreviousOwners): ClusterMap {
  const { copies, replicas = copies } = previous
  mustGive(copies, replicas, copiesOf(replicas, map.shards))
  const width = Math.max(copies, map.copies)
  const held = new Uint16Array(partitionCount * width).fill(settledEntry)
  const unsettled = new Set<number>()
  for (let partition = 0; partition < partitionCount; partition += 1) {
    const old = previous.table.subarray(partition * copies, (partition + 1) * copies)
    const isUnsettled = old[0] !== settledEntry
    if (isUnsettled) unsettled.add(partition)
    held.set(isUnsettled ? old : map.table.subarray(partition * map.copies, (partition + 1) * map.copies), partition * width) // prettier-ignore
  }
  const { table } = planTable({ ...map, replicas }, { shards: map.shards, copies: width, table: held }, unsettled)
  const epoch = map.epoch + 1
  const since = { since: epoch, ...copiesBefore(map, previous) }
  return sealClusterMap({ ...map, epoch, replicas, copies, table, previous: { ...since, table: map.table } })
}

function mustGive(copies: number, replicas: number, possible: number): void {
  if (possible === copies) return
  const text =
    possible < copies
      ? `${copies} copies need ${copies} nodes with a shard that is not drained: there are ${possible}`
      : `with ${replicas} wanted there were ${copies} copies for want of nodes, and now there would be ${possible}`
  throw new HoldfastError('TOPOLOGY_INVALID', `this change can only be finished, not aborted: ${text}`, { copies, replicas, possible }) // prettier-ignore
}

/** The partitions that are not settled, with their owners before and after. */
export function movesOf(map: ClusterMap): PartitionMove[] {
  const { previous } = map
  if (previous === undefined) return []
  const moves: PartitionMove[] = []
  for (let partition = 0; partition < partitionCount; partition += 1) {
    if (isSettled(previous, partition)) continue
    moves.push({ partition, from: namesOf(map, previous, partition), to: namesOf(map, map, partition) })
  }
  return moves
}

export interface ShardPartitions {
  /** Copies it owns. */
  readonly owned: number
  /** Those it owned before, and has not handed over yet. */
  readonly leaving: number
}

/** What each shard of the map owns, and is to hand over: one pass, however many shards there are. */
export function shardPartitions(map: ClusterMap): ReadonlyMap<string, ShardPartitions> {
  const owned = new Uint32Array(map.shards.length)
  for (const place of map.table) owned[place] = (owned[place] ?? 0) + 1
  const leaving = new Uint32Array(map.shards.length)
  const { previous } = map
  for (let entry = 0; previous !== undefined && entry < previous.table.length; entry += 1) {
    const place = previous.table[entry] ?? settledEntry
    if (place === settledEntry) continue
    const begin = Math.floor(entry / previous.copies) * map.copies
    if (!map.table.subarray(begin, begin + map.copies).includes(place)) leaving[place] = (leaving[place] ?? 0) + 1
  }
  return new Map(map.shards.map(({ id }, place) => [id, { owned: owned[place] ?? 0, leaving: leaving[place] ?? 0 }]))
}

/** Of one shard; nothing where the map does not know it. */
export function partitionsOf(map: ClusterMap, shard: string): ShardPartitions {
  return shardPartitions(map).get(shard) ?? { owned: 0, leaving: 0 }
}

/** How often each name is in the lists. */
export function countedNames(lists: readonly (readonly string[])[]): ReadonlyMap<string, number> {
  const counts = new Map<string, number>()
  for (const names of lists) for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1)
  return counts
}

function namesOf(
  { shards }: Pick<ClusterMap, 'shards'>,
  { table, copies }: Pick<ClusterMap, 'table' | 'copies'>,
  partition: number,
): string[] {
  return Array.from(table.subarray(partition * copies, (partition + 1) * copies), place => shards[place]?.id ?? '')
}
