/** How evenly bytes are spread over the shards of each zone, and the swaps that would spread them better. */
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { HoldfastError } from '../../shared/errors.ts'
import { byteLoads, byteSpread } from '../../shared/placement/bytes.ts'
import type { TopologyChange } from '../../shared/placement/changes.ts'
import type { Swap } from '../../shared/placement/swaps.ts'
import type { ContentsDeps } from '../tasks/shard-contents.ts'
import { swapsApart } from './plan-apart.ts'
import { allSummaries, partitionBytes, type ShardSummaries } from './partition-bytes.ts'

/** What shards hold, as they said a moment ago. */
export interface Held {
  readonly summaries: ShardSummaries
  /** Of one copy of each partition. */
  readonly bytes: Float64Array
  /** Partitions of which nobody says how many bytes they have. */
  readonly unknown: number
}

/** Asks all shards of the map. Never rejects for one that is away. */
export async function heldBytes(deps: ContentsDeps, map: ClusterMap): Promise<Held> {
  const shards = map.shards.map(({ id }) => id)
  const summaries = await allSummaries(deps, shards, new AbortController().signal)
  return { summaries, ...partitionBytes(map, summaries) }
}

/** The changes and, on top of them, the swaps that spread the bytes best. REPLICAS_UNREACHABLE if the bytes of some partition are unknown. */
export async function withSwaps(
  map: ClusterMap,
  changes: readonly TopologyChange[],
  held: Held,
): Promise<TopologyChange[]> {
  if (held.unknown > 0) {
    const text = `of ${held.unknown} partitions no owner says how many bytes they have: it is away, or of an older release`
    throw new HoldfastError('REPLICAS_UNREACHABLE', text, { partitions: held.unknown })
  }
  const swaps = await swapsApart(map, changes, held.bytes)
  return swaps.length === 0 ? [...changes] : [...changes, { op: 'swap', swaps }]
}

export interface SwapsView {
  readonly swaps: number
  /** That they copy. */
  readonly bytes: number
  /** Of each zone, the fullest shard relative to its share by weight, in bytes: before, and when all has moved. */
  readonly spread: {
    readonly zone: string
    readonly bytes: number
    readonly before: number
    readonly after: number
  }[]
}

export function swapsView(
  map: ClusterMap,
  next: ClusterMap,
  changes: readonly TopologyChange[],
  held: Held,
): SwapsView {
  const swaps = swapsOf(changes)
  const before = new Map(byteSpread(map, held.bytes).map(one => [one.zone, one.max]))
  return {
    swaps: swaps.length,
    bytes: swaps.reduce(
      (sum, { partition, other }) => sum + (held.bytes[partition] ?? 0) + (held.bytes[other] ?? 0),
      0,
    ),
    spread: byteSpread(next, held.bytes).map(({ zone, bytes, max }) => ({ zone, bytes, before: before.get(zone) ?? 1, after: max })), // prettier-ignore
  }
}

const swapsOf = (changes: readonly TopologyChange[]): readonly Swap[] =>
  changes.flatMap(change => (change.op === 'swap' ? change.swaps : []))

/** Of each shard of the map, by its table. */
export function bytesOfShards(map: ClusterMap, held: Held): ReadonlyMap<string, number> {
  const { loads } = byteLoads(map, held.bytes)
  return new Map(map.shards.map(({ id }, place) => [id, loads[place] ?? 0]))
}
