/**
 * Ring order: for each partition the order in which nodes (or the shards of one node) are candidates, the same in
 * every process that knows the same members.
 *
 * The ring is `consistent-hash`, used only in the way that is deterministic: explicit points from sha256(`id#i`),
 * members sorted by id, taken slots probed past, keys that are sha256 texts, and a new ring instead of a changed one.
 * Its own points come from Math.random (two rings of the same nodes disagree on four keys of five), and removing
 * and adding corrupts it. Balance is not the ring's business; the table of shared/placement.ts has exact quotas.
 */
import { hash } from 'node:crypto'
import ConsistentHash from 'consistent-hash'

/** A prime far above the points of any cluster; the package's key hash reaches all of it. */
const slotCount = 1_000_003
const pointsMax = 1_000
/** A ring filled beyond a quarter would probe long and cluster; above 2,500 members each gets fewer points. */
const pointsTotal = slotCount / 4

export interface RingMember {
  readonly id: string
  /** Above 0; only the ratio to the other members' weights matters. */
  readonly weight: number
}

export class Ring {
  readonly #ring: ConsistentHash<number>
  readonly #size: number

  /** Members may come in any order; `pointsMean` is the number of ring points of a member of average weight. */
  constructor(members: readonly RingMember[], pointsMean = 100) {
    this.#size = members.length
    this.#ring = new ConsistentHash<number>({ range: slotCount })
    const weightMean = members.reduce((sum, member) => sum + member.weight, 0) / members.length
    const pointsEach = Math.min(pointsMean, pointsTotal / members.length)
    const taken = new Set<number>()
    const sorted = members.map((member, index) => ({ ...member, index })).sort((a, b) => (a.id < b.id ? -1 : 1))
    for (const { id, weight, index } of sorted) {
      const count = Math.min(pointsMax, Math.max(1, Math.round((pointsEach * weight) / weightMean)))
      this.#ring.add(index, count, ringPoints(id, count, taken))
    }
  }

  /** The first `count` members for the partition, as indices into the constructor's list. All members by default. */
  order(partition: number, count = this.#size): number[] {
    // Asked for more than there are, the package walks the whole ring in search of the rest.
    return this.#size === 0 ? [] : this.#ring.get(partitionKey(partition), Math.min(count, this.#size))
  }

  /** The given members (indices) in ring order. Asks for short prefixes first: a full walk is long in large clusters. */
  sort(partition: number, members: readonly number[]): number[] {
    for (let count = Math.min(16, this.#size); ; count = Math.min(count * 4, this.#size)) {
      const found = this.order(partition, count).filter(member => members.includes(member))
      if (found.length === members.length || count >= this.#size) return found
    }
  }
}

/** Slots for `count` points of `id`; `taken` grows by them, since equal points would shadow each other. */
function ringPoints(id: string, count: number, taken: Set<number>): number[] {
  const points: number[] = []
  for (let i = 0; i < count; i += 1) {
    // 48 bits of the hash: exact in a double, and the modulo's bias is below 1e-8.
    let point = Number.parseInt(hash('sha256', `${id}#${i}`).slice(0, 12), 16) % slotCount
    while (taken.has(point)) point = (point + 1) % slotCount
    taken.add(point)
    points.push(point)
  }
  return points
}

const keys: string[] = []

/** Hashed, because the package's own 24-bit hash clusters on similar keys. 4,096 keys at most, so kept. */
function partitionKey(partition: number): string {
  return (keys[partition] ??= hash('sha256', `partition:${partition}`))
}
