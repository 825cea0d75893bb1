/**
 * How many partitions each zone, node and shard shall hold, and how many copies of one partition a zone may hold.
 *
 * Spread: with `c` the smallest number for which sum over zones of min(nodes, c) reaches the copies, the most even
 * placement possible gives every zone at least min(nodes, c - 1) and at most min(nodes, c) copies of each partition.
 * Shares follow the weights as far as these bounds and one copy per node allow (water-filling), and are rounded by
 * largest remainder; of equals, whoever is nearest to holding it now gets the extra one, so that replanning moves nothing.
 *
 * Whatever these functions return can be met exactly: every bound holds for the fractional placement that gives each
 * partition quota / P of each node, and the constraints are nested (partition, zone, node), so a whole one exists too.
 */
import assert from 'node:assert/strict'
import { partitionCount } from '../partition.ts'
import type { Model } from './model.ts'

export interface Bounds {
  readonly min: number
  readonly max: number
}

export interface Quotas {
  /** Copies of one partition that a zone may hold. */
  readonly bounds: readonly Bounds[]
  readonly nodes: readonly number[]
  readonly shards: readonly number[]
}

/** Quotas of zones, nodes and shards. `held` counts what each shard of the model holds now. */
export function quotasOf(model: Model, held: readonly number[]): Quotas {
  const heldBy = (shards: readonly number[]) => shards.reduce((sum, shard) => sum + (held[shard] ?? 0), 0)
  const heldByNode = model.nodes.map(node => heldBy(node.shards))
  const strict = evenSpread(model)
  const capacity = model.zones.map(zone => ({ min: 0, max: zone.nodes.length }))
  const total = partitionCount * model.copies
  const zoneLimits = (model.spread === 'strict' ? strict : capacity).map(scale)
  const zoneQuotas = roundShares({
    shares: zoneShares(model, zoneLimits, total),
    limits: zoneLimits,
    total,
    held: model.zones.map(zone => zone.nodes.reduce((sum, node) => sum + (heldByNode[node] ?? 0), 0)),
  })

  const nodes = model.nodes.map(() => 0)
  model.zones.forEach((zone, index) => {
    const weights = zone.nodes.map(node => model.nodes[node]?.weight ?? 0)
    spreadOver(zone.nodes, weights, zoneQuotas[index] ?? 0, partitionCount, heldByNode, nodes)
  })
  const shards = model.shards.map(() => 0)
  model.nodes.forEach((node, index) => {
    const weights = node.shards.map(shard => model.shards[shard]?.weight ?? 0)
    const total = nodes[index] ?? 0
    spreadOver(node.shards, weights, total, total, held, shards)
  })
  return { bounds: strict.map((bounds, zone) => loosened(bounds, zoneQuotas[zone] ?? 0)), nodes, shards }
}

/** The most even spread of a partition's copies over the zones that their numbers of nodes allow. */
export function evenSpread(model: Model): Bounds[] {
  const reach = (each: number) => model.zones.reduce((sum, zone) => sum + Math.min(zone.nodes.length, each), 0)
  let each = 1
  while (reach(each) < model.copies) each += 1
  return model.zones.map(({ nodes }) => ({ min: Math.min(nodes.length, each - 1), max: Math.min(nodes.length, each) }))
}

/**
 * The bounds, widened as little as the zone's quota needs: a zone with 1.1 copies per partition gets one or two, never
 * none, so that as few partitions as possible lose a zone. Widens nothing when the quota was made within the bounds.
 */
function loosened(bounds: Bounds, quota: number): Bounds {
  const floor = Math.floor(quota / partitionCount)
  const ceiling = Math.ceil(quota / partitionCount)
  if (floor >= bounds.min && ceiling <= bounds.max) return bounds
  return { min: floor, max: ceiling }
}

const scale = ({ min, max }: Bounds): Bounds => ({ min: min * partitionCount, max: max * partitionCount })

/** Weighted shares of the zones, sum `total`: one water level for all, each zone clamped to its limits. */
function zoneShares(model: Model, limits: readonly Bounds[], total: number): number[] {
  const weights = model.zones.map(zone => zone.nodes.map(node => model.nodes[node]?.weight ?? 0))
  const sharesAt = (level: number) =>
    weights.map((zone, index) => {
      const { min, max } = limits[index] ?? { min: 0, max: 0 }
      const share = zone.reduce((sum, weight) => sum + Math.min(level * weight, partitionCount), 0)
      return Math.min(max, Math.max(min, share))
    })
  let low = 0
  let high = partitionCount / Math.min(...weights.flat())
  for (let i = 0; i < 200 && low < high; i += 1) {
    const middle = (low + high) / 2
    if (sum(sharesAt(middle)) < total) low = middle
    else high = middle
  }
  return sharesAt(high)
}

/** Splits `total` over `members` by weight, none above `max`, and writes the parts into `quotas`. */
function spreadOver(
  members: readonly number[],
  weights: readonly number[],
  total: number,
  max: number,
  held: readonly number[],
  quotas: number[],
): void {
  const rounded = roundShares({
    shares: waterFill(weights, total, max),
    limits: members.map(() => ({ min: 0, max })),
    total,
    held: members.map(member => held[member] ?? 0),
  })
  members.forEach((member, index) => (quotas[member] = rounded[index] ?? 0))
}

/** Shares proportional to the weights, none above `max`; what the full ones cannot take goes to the others. */
function waterFill(weights: readonly number[], total: number, max: number): number[] {
  const full = new Set<number>()
  for (;;) {
    const rest = total - full.size * max
    const weight = weights.reduce((sum, own, index) => (full.has(index) ? sum : sum + own), 0)
    const shares = weights.map((own, index) => (full.has(index) ? max : (rest * own) / weight))
    const over = shares.findIndex((share, index) => !full.has(index) && share > max)
    if (over < 0) return shares
    shares.forEach((share, index) => share > max && full.add(index))
  }
}

interface Rounding {
  readonly shares: readonly number[]
  readonly limits: readonly Bounds[]
  readonly total: number
  readonly held: readonly number[]
}

/** Largest remainder within the limits. Remainders are compared in millionths: below that is noise of the arithmetic. */
function roundShares({ shares, limits, total, held }: Rounding): number[] {
  const millionths = shares.map(share => Math.round(share * 1e6))
  const rounded = millionths.map(share => Math.floor(share / 1e6))
  const order = shares.map((_, index) => index)
  const remainders = order.map(index => (millionths[index] ?? 0) - (rounded[index] ?? 0) * 1e6)
  // Measured from the rounded share: whoever holds the extra one now keeps it, whatever the sizes of the others.
  const extras = order.map(index => (held[index] ?? 0) - (rounded[index] ?? 0))
  order.sort((a, b) => (remainders[b] ?? 0) - (remainders[a] ?? 0) || (extras[b] ?? 0) - (extras[a] ?? 0) || a - b)
  let rest = total - sum(rounded)
  assert.ok(rest >= 0 && rest <= shares.length, 'shares add up to the total')
  for (let pass = 0; rest > 0; pass += 1) {
    assert.ok(pass < 3, 'the limits leave room for the total')
    for (const index of order) {
      if (rest === 0 || (rounded[index] ?? 0) >= (limits[index]?.max ?? 0)) continue
      rounded[index] = (rounded[index] ?? 0) + 1
      rest -= 1
    }
  }
  return rounded
}

const sum = (numbers: readonly number[]): number => numbers.reduce((total, number) => total + number, 0)
