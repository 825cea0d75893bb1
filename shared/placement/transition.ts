/**
 * A change of topology as a sequence of cluster maps. Pure.
 *
 *     E ──begin──▶ E+1: new table, old owners in `previous` ──settle, settle…──▶ no `previous`
 *                       └──abort──▶ the old owners own again what is not settled, the new ones are `previous`
 *
 * A partition is settled once every new owner holds what the old ones hold; until then both count.
 */
import { type ClusterMap, type PreviousOwners, sealClusterMap, settledEntry } from '../cluster-map.ts'
import { HoldfastError } from '../errors.ts'
import { partitionCount } from '../partition.ts'
import { buildClusterMap } from '../placement.ts'
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
  const previous: PreviousOwners = { since: next.epoch, copies: map.copies, table }
  return sealClusterMap({
    ...next,
    ...(map.writesFrom === undefined ? {} : { writesFrom: map.writesFrom }),
    ...(unsettled === 0 ? {} : { previous }),
  })
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
 * the previous ones: the way back is a change like any other. What is settled stays where it is. CONFLICT when no change is under
 * way, or when the number of copies changed, so that one table cannot hold both.
 */
export function abortTransition(map: ClusterMap): ClusterMap {
  const { previous } = map
  if (previous === undefined) throw new HoldfastError('CONFLICT', 'no change of topology is under way')
  if (previous.copies !== map.copies) {
    throw new HoldfastError('CONFLICT', 'a change of the number of copies cannot be aborted, only finished')
  }
  const { copies } = map
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

/** The partitions that are not settled, with their owners before and after. */
export function movesOf(map: ClusterMap): PartitionMove[] {
  const { previous } = map
  if (previous === undefined) return []
  const moves: PartitionMove[] = []
  for (let partition = 0; partition < partitionCount; partition += 1) {
    if (previous.table[partition * previous.copies] === settledEntry) continue
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
  const leaving = countedNames(movesOf(map).map(({ from, to }) => from.filter(id => !to.includes(id))))
  return new Map(map.shards.map(({ id }, place) => [id, { owned: owned[place] ?? 0, leaving: leaving.get(id) ?? 0 }]))
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
