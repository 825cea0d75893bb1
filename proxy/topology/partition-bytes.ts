/** What the shards say of all their partitions, and the bytes of each partition by that. */
import { atMost } from '../../shared/at-most.ts'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import type { ShardSummary } from '../tasks/compare-sets.ts'
import { summariesOf, type ContentsDeps } from '../tasks/shard-contents.ts'

const shardsAtOnce = 8

export type ShardSummaries = ReadonlyMap<ShardId, ShardSummary>

/** Those that do not answer are left out. */
export async function allSummaries(
  deps: ContentsDeps,
  shards: readonly ShardId[],
  signal: AbortSignal,
): Promise<ShardSummaries> {
  const found = new Map<ShardId, ShardSummary>()
  await atMost(shardsAtOnce, [...new Set(shards)], async shard => {
    try {
      found.set(shard, await summariesOf(deps, shard, { from: 0, count: partitionCount }, signal))
    } catch (error) {
      if (!isHoldfastError(error)) throw error
    }
  })
  return found
}

export interface PartitionBytes {
  /** Of one copy of each partition; 0 where it is not known. */
  readonly bytes: Float64Array
  /** Partitions of which no owner says how many bytes they have: away, or of an older release. */
  readonly unknown: number
}

/** By the owner that has most, for the others are to have it too. During a change, by the owners of before as well. */
export function partitionBytes(map: ClusterMap, summaries: ShardSummaries): PartitionBytes {
  const bytes = new Float64Array(partitionCount)
  const isKnown = new Uint8Array(partitionCount)
  for (const { table, copies } of [map, ...(map.previous === undefined ? [] : [map.previous])]) {
    table.forEach((place, entry) => {
      const summary = summaries.get(map.shards[place]?.id ?? ('' as ShardId))
      const partition = Math.floor(entry / copies)
      const found = summary?.get(partition)
      // A shard says nothing of partitions of which it has nothing.
      const own = found === undefined ? 0 : found.bytes
      if (summary === undefined || own === undefined) return
      isKnown[partition] = 1
      bytes[partition] = Math.max(bytes[partition] ?? 0, own)
    })
  }
  return { bytes, unknown: isKnown.reduce((count, known) => count - known, partitionCount) }
}
