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
 * Where some partitions have their owners already (`Pins`), the same holds for the others and what is left of the quotas.
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

/** Partitions whose owners are given, whatever quotas would say. */
export interface Pins {
  readonly partitions: number
  /** Copies of them that each shard of the model holds; others are on shards of weight 0. */
  readonly shards: readonly number[]
}

/**
 * Quotas of zones, nodes and shards, `pins` included. `held` counts what each shard of the model holds now. Nobody gets less than what is
 * pinned to it, nor more than that and a copy of every other partition; within these bounds shares follow the weights.
 */
export function quotasOf(
  model: Model,
  held: readonly number[],
  pins: Pins = { partitions: 0, shards: model.shards.map(() => 0) },
): Quotas {
  const free = partitionCount - pins.partitions
  const onNodes = (counts: readonly number[]) => model.nodes.map(({ shards }) => sum(pick(counts, shards)))
  const onZones = (counts: readonly number[]) => {
    const byNode = onNodes(counts)
    return model.zones.map(({ nodes }) => sum(pick(byNode, nodes)))
  }
  const around = (pinned: number, { min, max }: Bounds) => ({ min: pinned + min * free, max: pinned + max * free })
  const nodeLimits = onNodes(pins.shards).map(pinned => around(pinned, { min: 0, max: 1 }))

  const strict = evenSpread(model)
  const capacity = model.zones.map(zone => ({ min: 0, max: zone.nodes.length }))
  const total = sum(pins.shards) + free * model.copies
  const pinnedInZones = onZones(pins.shards)
  const zoneLimits = (model.spread === 'strict' ? strict : capacity).map((bounds, zone) =>
    around(pinnedInZones[zone] ?? 0, bounds),
  )
  const zoneQuotas = roundShares({
    shares: zoneShares(model, zoneLimits, nodeLimits, total),
    limits: zoneLimits,
    total,
    held: onZones(held),
  })

  const nodes = model.nodes.map(() => 0)
  const heldByNode = onNodes(held)
  model.zones.forEach((zone, index) => {
    const weights = zone.nodes.map(node => model.nodes[node]?.weight ?? 0)
    const limits = zone.nodes.map(node => nodeLimits[node] ?? { min: 0, max: 0 })
    spreadOver(zone.nodes, { weights, limits, total: zoneQuotas[index] ?? 0, held: heldByNode }, nodes)
  })
  const shards = model.shards.map(() => 0)
  model.nodes.forEach((node, index) => {
    const weights = node.shards.map(shard => model.shards[shard]?.weight ?? 0)
    const total = nodes[index] ?? 0
    const limits = node.shards.map(shard => ({ min: pins.shards[shard] ?? 0, max: total }))
    spreadOver(node.shards, { weights, limits, total, held }, shards)
  })
  const bounds = strict.map((own, zone) => loosened(own, (zoneQuotas[zone] ?? 0) - (pinnedInZones[zone] ?? 0), free))
  return { bounds, nodes, shards }
}

/** What is left of the quotas for the partitions that are not pinned. */
export function withoutPins(model: Model, { bounds, nodes, shards }: Quotas, pins: Pins): Quotas {
  return {
    bounds,
    nodes: nodes.map((quota, node) => quota - sum(pick(pins.shards, model.nodes[node]?.shards ?? []))),
    shards: shards.map((quota, shard) => quota - (pins.shards[shard] ?? 0)),
  }
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
function loosened(bounds: Bounds, quota: number, partitions: number): Bounds {
  if (partitions === 0) return bounds
  const floor = Math.floor(quota / partitions)
  const ceiling = Math.ceil(quota / partitions)
  if (floor >= bounds.min && ceiling <= bounds.max) return bounds
  return { min: floor, max: ceiling }
}

const clamped = (share: number, { min, max }: Bounds): number => Math.min(max, Math.max(min, share))

/** Weighted shares of the zones, sum `total`: one water level for all, each node and each zone clamped to its limits. */
function zoneShares(model: Model, limits: readonly Bounds[], nodeLimits: readonly Bounds[], total: number): number[] {
  const weightOf = (node: number) => model.nodes[node]?.weight ?? 0
  const sharesAt = (level: number) =>
    model.zones.map((zone, index) => {
      const shares = zone.nodes.map(node => clamped(level * weightOf(node), nodeLimits[node] ?? none))
      return clamped(sum(shares), limits[index] ?? none)
    })
  return levelled(sharesAt, partitionCount / Math.min(...model.nodes.map(({ weight }) => weight)), total)
}

/** The shares at the lowest level at which they add up to the total; at `high` they do. */
function levelled(sharesAt: (level: number) => number[], high: number, total: number): number[] {
  let low = 0
  for (let i = 0; i < 200 && low < high; i += 1) {
    const middle = (low + high) / 2
    if (sum(sharesAt(middle)) < total) low = middle
    else high = middle
  }
  return sharesAt(high)
}

interface Division {
  readonly weights: readonly number[]
  /** The same for all where none has a minimum. */
  readonly limits: readonly Bounds[]
  readonly total: number
  /** By member, whereas weights and limits stand in the order of the members to be divided among. */
  readonly held: readonly number[]
}

/** Splits `total` over `members` by weight within their limits, and writes the parts into `quotas`. */
function spreadOver(members: readonly number[], { weights, limits, total, held }: Division, quotas: number[]): void {
  const isFree = limits.every(({ min }) => min === 0)
  const sharesAt = (level: number) => weights.map((weight, index) => clamped(level * weight, limits[index] ?? none))
  const highest = Math.max(...weights.map((weight, index) => (limits[index]?.max ?? 0) / weight))
  const rounded = roundShares({
    shares: isFree ? waterFill(weights, total, limits[0]?.max ?? 0) : levelled(sharesAt, highest, total),
    limits,
    total,
    held: pick(held, members),
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

const none: Bounds = { min: 0, max: 0 }
const pick = (counts: readonly number[], members: readonly number[]): number[] =>
  members.map(member => counts[member] ?? 0)
const sum = (numbers: readonly number[]): number => numbers.reduce((total, number) => total + number, 0)
