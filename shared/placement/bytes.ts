/** How many bytes each shard holds by a table, and how evenly that follows the weights. Pure. */
import type { ClusterMap } from '../cluster-map.ts'

/** A table and those it refers to. */
export type Placed = Pick<ClusterMap, 'nodes' | 'shards' | 'table' | 'copies'>

export interface ByteLoads {
  /** By place of the shard in the map: the zone of its node, its bytes, and what is its part of its zone's bytes by weight. */
  readonly zones: readonly string[]
  readonly loads: Float64Array
  readonly shares: Float64Array
}

export interface ByteSpread {
  readonly zone: string
  /** Of all copies in the zone. */
  readonly bytes: number
  /** The fullest shard for its weight; absent where there are no bytes. */
  readonly shard?: string
  /** Its bytes relative to its share by weight: max / mean. 1 is exact, and where there are no bytes. */
  readonly max: number
}

/** `bytes`: of one copy of each partition. */
export function byteLoads({ nodes, shards, table, copies }: Placed, bytes: ArrayLike<number>): ByteLoads {
  const zoneOf = new Map<string, string>(nodes.map(({ id, zone }) => [id, zone]))
  const zones = shards.map(({ node }) => zoneOf.get(node) ?? '')
  const loads = new Float64Array(shards.length)
  table.forEach((place, entry) => (loads[place]! += bytes[Math.floor(entry / copies)] ?? 0))
  const total = new Map<string, { bytes: number; weight: number }>()
  shards.forEach(({ weight }, place) => {
    const zone = total.get(zones[place] ?? '') ?? { bytes: 0, weight: 0 }
    total.set(zones[place] ?? '', { bytes: zone.bytes + (loads[place] ?? 0), weight: zone.weight + weight })
  })
  const shares = Float64Array.from(shards, ({ weight }, place) => {
    const zone = total.get(zones[place] ?? '')
    return zone === undefined || weight === 0 ? 0 : (zone.bytes * weight) / zone.weight
  })
  return { zones, loads, shares }
}

/** Of each zone, in the order of their names. */
export function byteSpread(placed: Placed, bytes: ArrayLike<number>): ByteSpread[] {
  const { zones, loads, shares } = byteLoads(placed, bytes)
  return [...new Set(zones)].sort().map(zone => {
    const places = zones.flatMap((name, place) => (name === zone ? [place] : []))
    const sum = places.reduce((all, place) => all + (loads[place] ?? 0), 0)
    const ratio = (place: number): number => (loads[place] ?? 0) / (shares[place] ?? 0)
    const filled = places.filter(place => (shares[place] ?? 0) > 0)
    const [first, ...others] = filled
    if (first === undefined) return { zone, bytes: sum, max: 1 }
    const fullest = others.reduce((most, place) => (ratio(place) > ratio(most) ? place : most), first)
    return { zone, bytes: sum, shard: placed.shards[fullest]?.id ?? '', max: ratio(fullest) }
  })
}
