/**
 * Swaps of partitions between shards of a zone, where counts follow the weights and bytes do not. Pure.
 *
 * A swap gives one partition of the shard that is fullest for its weight to another shard of its zone, for one with fewer bytes. Counts
 * stay, so quotas do (I19); zones and distinct nodes stay (I18); no partition is in two swaps, so of none two copies move at once. The
 * fullest shard gets emptier with each, and none gets as full as that one was.
 */
import type { ClusterMap } from '../cluster-map.ts'
import { HoldfastError } from '../errors.ts'
import { partitionCount } from '../partition.ts'
import { Ring } from '../ring.ts'
import { byteLoads, type ByteLoads, type Placed } from './bytes.ts'
import { modelOf, type Topology } from './model.ts'

/** `partition` goes from one shard to the other, and `other` the opposite way. Shards are places in the list of the map. */
export interface Swap {
  readonly partition: number
  readonly from: number
  readonly other: number
  readonly to: number
}

/** Of all bytes, those that are not where they belong while the swaps are carried out. */
export const swappedRatioMax = 0.05
/** They travel in the parameters of a task. */
export const swapsMax = 256
/** A shard so near to its share is left as it is. */
const evenEnough = 1.01
/** A swap takes at least this part of its share off the fullest shard. */
const gainRatioMin = 0.001

interface Candidate {
  readonly swap: Swap
  readonly moved: number
  readonly gain: number
  readonly score: number
}

/**
 * The swaps that bring the fullest shard of each zone nearer to its share, those with the largest gain for the bytes that they move first.
 * Partitions that move anyway (`moving`) are left alone. None, where nothing is to be gained within `swappedRatioMax`.
 */
export function proposeSwaps(placed: Placed, bytes: ArrayLike<number>, moving: ReadonlySet<number>): Swap[] {
  return new Swapper(placed, bytes, moving).run()
}

class Swapper {
  readonly #bytes: ArrayLike<number>
  readonly #loads: ByteLoads
  /** By partition. */
  readonly #owners: number[][]
  readonly #nodes: readonly string[]
  /** Of each shard: its partitions that are in no swap yet, the smallest first. */
  readonly #free: number[][]
  #left: number

  constructor(placed: Placed, bytes: ArrayLike<number>, moving: ReadonlySet<number>) {
    const { shards, table, copies } = placed
    this.#bytes = bytes
    this.#loads = byteLoads(placed, bytes)
    this.#owners = Array.from({ length: partitionCount }, (_, partition) =>
      Array.from(table.subarray(partition * copies, (partition + 1) * copies)),
    )
    this.#nodes = shards.map(({ node }) => node)
    this.#free = shards.map(() => [])
    const order = Array.from({ length: partitionCount }, (_, partition) => partition)
    order.sort((a, b) => this.#of(a) - this.#of(b) || a - b)
    for (const partition of order) {
      if (!moving.has(partition)) for (const shard of this.#owners[partition] ?? []) this.#free[shard]?.push(partition)
    }
    this.#left = this.#loads.loads.reduce((sum, load) => sum + load, 0) * swappedRatioMax
  }

  run(): Swap[] {
    const swaps: Swap[] = []
    const done = new Set<string>()
    while (swaps.length < swapsMax) {
      const from = this.#fullest(done)
      if (from === undefined) break
      const best = this.#bestOf(from)
      // Nothing else makes the fullest shard of this zone emptier.
      if (best === undefined) done.add(this.#loads.zones[from] ?? '')
      else swaps.push(this.#take(best))
    }
    return swaps
  }

  /** For its weight, of the zones that are not done. */
  #fullest(done: ReadonlySet<string>): number | undefined {
    let found: number | undefined
    let most = evenEnough
    this.#nodes.forEach((_, shard) => {
      if (done.has(this.#loads.zones[shard] ?? '') || this.#ratio(shard) <= most) return
      found = shard
      most = this.#ratio(shard)
    })
    return found
  }

  #bestOf(from: number): Candidate | undefined {
    let best: Candidate | undefined
    this.#nodes.forEach((_, to) => {
      const isTarget = this.#loads.zones[to] === this.#loads.zones[from] && this.#share(to) > 0
      if (isTarget && this.#ratio(to) < this.#ratio(from)) best = this.#bestTo(from, to, best)
    })
    return best
  }

  /**
   * For each partition that may go, the smallest that may come back without making `to` fuller than `from` will be. What takes more than
   * the excess off counts as the excess, so of two that end it the one that moves less is better.
   */
  #bestTo(from: number, to: number, before: Candidate | undefined): Candidate | undefined {
    const excess = this.#load(from) - this.#share(from)
    const level =
      (this.#load(from) * this.#share(to) - this.#load(to) * this.#share(from)) / (this.#share(from) + this.#share(to))
    const gainMin = this.#share(from) * gainRatioMin
    const others = this.#free[to] ?? []
    let best = before
    for (const partition of this.#free[from] ?? []) {
      const size = this.#of(partition)
      if (size < gainMin || size > this.#left || !this.#mayGo(partition, from, to)) continue
      for (let at = this.#firstFrom(others, size - level); at < others.length; at += 1) {
        const other = others[at] ?? 0
        const [gain, moved] = [size - this.#of(other), size + this.#of(other)]
        if (gain < gainMin || moved > this.#left) break
        if (!this.#mayGo(other, to, from)) continue
        const score = Math.min(gain, excess) ** 2 / moved
        if (best === undefined || score > best.score)
          best = { swap: { partition, from, other, to }, moved, gain, score }
        break
      }
    }
    return best
  }

  /** Its other copies are on other nodes than the one it goes to. */
  #mayGo(partition: number, from: number, to: number): boolean {
    const owners = this.#owners[partition] ?? []
    return owners.every(shard => shard === from || this.#nodes[shard] !== this.#nodes[to])
  }

  /** Place of the first partition in the list, which is sorted, with at least so many bytes. */
  #firstFrom(partitions: readonly number[], bytes: number): number {
    let [low, high] = [0, partitions.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#of(partitions[middle] ?? 0) < bytes) low = middle + 1
      else high = middle
    }
    return low
  }

  #take({ swap, moved, gain }: Candidate): Swap {
    const { partition, from, other, to } = swap
    this.#left -= moved
    this.#loads.loads[from]! -= gain
    this.#loads.loads[to]! += gain
    for (const taken of [partition, other]) {
      for (const shard of this.#owners[taken] ?? []) {
        this.#free[shard] = (this.#free[shard] ?? []).filter(one => one !== taken)
      }
    }
    return swap
  }

  #of(partition: number): number {
    return this.#bytes[partition] ?? 0
  }

  #load(shard: number): number {
    return this.#loads.loads[shard] ?? 0
  }

  #share(shard: number): number {
    return this.#loads.shares[shard] ?? 0
  }

  /** 0 for a shard that is to hold nothing. */
  #ratio(shard: number): number {
    return this.#share(shard) === 0 ? 0 : this.#load(shard) / this.#share(shard)
  }
}

/**
 * The table of `map` after these swaps, each partition's owners in ring order as ever. TOPOLOGY_INVALID for a swap that is none: of shards
 * that do not own these partitions, or in different zones, or that would bring two copies to one node, or of a partition that is
 * `moving` or in another one.
 */
export function swappedTable(
  map: ClusterMap,
  topology: Topology,
  swaps: readonly Swap[],
  moving: ReadonlySet<number>,
): Uint16Array {
  // prettier-ignore
  const { shards, copies, nodes } = map
  const table = Uint16Array.from(map.table)
  if (swaps.length === 0) return table
  const zones = new Map<string, string>(nodes.map(({ id, zone }) => [id, zone]))
  const zoneOf = (shard: number): string | undefined => zones.get(shards[shard]?.node ?? '')
  const model = modelOf({ ...topology, nodes, shards })
  const nodeIndex = new Map(model.nodes.map(({ id }, index) => [id, index]))
  const ring = new Ring(model.nodes)
  const seen = new Set(moving)
  const give = (partition: number, from: number, to: number): boolean => {
    const row = table.subarray(partition * copies, (partition + 1) * copies)
    const isFree = !seen.has(partition) && row.includes(from) && !row.includes(to)
    seen.add(partition)
    const owners = Array.from(row, shard => (shard === from ? to : shard))
    const byNode = new Map(owners.map(shard => [nodeIndex.get(shards[shard]?.node ?? ''), shard]))
    if (!isFree || byNode.size < owners.length || byNode.has(undefined)) return false
    row.set(ring.sort(partition, owners.map(shard => nodeIndex.get(shards[shard]?.node ?? '') ?? -1)).map(node => byNode.get(node) ?? 0)) // prettier-ignore
    return true
  }
  for (const { partition, from, other, to } of swaps) {
    const isLegal = from !== to && zoneOf(from) !== undefined && zoneOf(from) === zoneOf(to)
    if (isLegal && give(partition, from, to) && give(other, to, from)) continue
    throw new HoldfastError('TOPOLOGY_INVALID', `partitions ${partition} and ${other} cannot be swapped`, { partition, other }) // prettier-ignore
  }
  return table
}
