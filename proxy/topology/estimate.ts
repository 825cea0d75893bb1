/** What a change of topology will have to copy: counts from the shards' summaries, sizes from a sample of names. */
import { atMost } from '../../shared/at-most.ts'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import type { PartitionMove } from '../../shared/placement/transition.ts'
import type { ShardSummary } from '../tasks/compare-sets.ts'
import { entriesPage, summariesOf, type ContentsDeps } from '../tasks/shard-contents.ts'

const shardsAtOnce = 8
const sampledPartitions = 24
const sampledNames = 200
/** Small blobs and references a second: what one node takes, what the primary sees to; and what a change costs however small it is. */
const itemsPerNodeSecond = 800
const itemsPerSecond = 8_000
const fixedSeconds = 8

export interface Estimate {
  /** Copies of blobs and references that are to be made. */
  readonly blobs: number
  readonly references: number
  readonly bytes: number
  /** Of copies that their owners give away. */
  readonly bytesFreed: number
  /** By the node that takes longest. */
  readonly seconds: number
  /** That node, and what it gets; absent where nothing is to be copied. */
  readonly slowest?: { readonly node: string; readonly bytes: number }
  /** Partitions of which no old owner answers: nothing is known of them. */
  readonly unknownPartitions: number
}

export interface CopyRates {
  /** That each node gets. */
  readonly bytesPerSecond: number
  readonly nodeOf: (shard: string) => string
}

export interface MovesEstimate extends Estimate {
  /** Bytes of blobs to be copied to each shard, by its id; those that get none are not in it. */
  readonly bytesTo: ReadonlyMap<string, number>
}

/** The node of each shard of a map. */
export function nodesOf({ shards }: Pick<ClusterMap, 'shards'>): CopyRates['nodeOf'] {
  const nodes = new Map<string, string>(shards.map(({ id, node }) => [id, node]))
  return shard => nodes.get(shard) ?? ''
}

/** Never rejects for a shard that is away: another old owner is counted, or the partition is unknown. */
export async function estimateMoves(
  deps: ContentsDeps,
  moves: readonly PartitionMove[],
  rates: CopyRates,
  signal: AbortSignal,
): Promise<MovesEstimate> {
  const summaries = await allSummaries(deps, moves, signal)
  let [blobs, references, released, unknownPartitions] = [0, 0, 0, 0]
  const filled: { partition: number; shard: ShardId }[] = []
  const blobsTo = new Map<string, number>()
  const referencesTo = new Map<string, number>()
  for (const { partition, from, to } of moves) {
    const shard = from.find(id => summaries.has(id as ShardId)) as ShardId | undefined
    if (shard === undefined) {
      unknownPartitions += 1
      continue
    }
    const targets = to.filter(id => !from.includes(id))
    const summary = summaries.get(shard)?.get(partition)
    const count = summary?.blobs.count ?? 0
    blobs += targets.length * count
    released += from.filter(id => !to.includes(id)).length * count
    const named = summary?.references.count ?? 0
    references += targets.length * named
    for (const id of targets) referencesTo.set(id, (referencesTo.get(id) ?? 0) + named)
    if (count === 0) continue
    filled.push({ partition, shard })
    for (const id of targets) blobsTo.set(id, (blobsTo.get(id) ?? 0) + count)
  }
  const mean = await meanBytes(deps, filled, signal)
  const bytes = Math.round(blobs * mean)
  const bytesTo = new Map([...blobsTo].map(([id, number]) => [id, Math.round(number * mean)]))
  const { seconds, ...slowest } = slowestNode({ blobsTo, referencesTo, bytesTo }, rates)
  return {
    blobs,
    references,
    bytes,
    bytesFreed: Math.round(released * mean),
    seconds:
      moves.length === 0 ? 0 : Math.ceil(Math.max(seconds, (blobs + references) / itemsPerSecond)) + fixedSeconds,
    unknownPartitions,
    ...slowest,
    bytesTo,
  }
}

/** How long it takes, if all nodes get theirs at the same time. */
function slowestNode(
  shares: Readonly<Record<'blobsTo' | 'referencesTo' | 'bytesTo', ReadonlyMap<string, number>>>,
  { bytesPerSecond, nodeOf }: CopyRates,
): { seconds: number } & Pick<Estimate, 'slowest'> {
  const nodes = new Map<string, { bytes: number; items: number }>()
  for (const shard of new Set([...shares.blobsTo.keys(), ...shares.referencesTo.keys()])) {
    const { bytes, items } = nodes.get(nodeOf(shard)) ?? { bytes: 0, items: 0 }
    const added = (shares.blobsTo.get(shard) ?? 0) + (shares.referencesTo.get(shard) ?? 0)
    nodes.set(nodeOf(shard), { bytes: bytes + (shares.bytesTo.get(shard) ?? 0), items: items + added })
  }
  let found: { seconds: number } & Pick<Estimate, 'slowest'> = { seconds: 0 }
  for (const [node, { bytes, items }] of nodes) {
    const seconds = Math.max(bytes / bytesPerSecond, items / itemsPerNodeSecond)
    if (seconds > found.seconds) found = { seconds, slowest: { node, bytes } }
  }
  return found
}

async function allSummaries(
  deps: ContentsDeps,
  moves: readonly PartitionMove[],
  signal: AbortSignal,
): Promise<ReadonlyMap<ShardId, ShardSummary>> {
  const shards = [...new Set(moves.flatMap(({ from }) => from as readonly ShardId[]))]
  const found = new Map<ShardId, ShardSummary>()
  await atMost(shardsAtOnce, shards, async shard => {
    try {
      found.set(shard, await summariesOf(deps, shard, { from: 0, count: partitionCount }, signal))
    } catch (error) {
      if (!isHoldfastError(error)) throw error
    }
  })
  return found
}

/** Of blobs in partitions spread over all; 0 where there are none. */
async function meanBytes(
  deps: ContentsDeps,
  filled: readonly { readonly partition: number; readonly shard: ShardId }[],
  signal: AbortSignal,
): Promise<number> {
  const step = Math.max(1, Math.floor(filled.length / sampledPartitions))
  const sample = filled.filter((_, index) => index % step === 0).slice(0, sampledPartitions)
  let [bytes, count] = [0, 0]
  await atMost(shardsAtOnce, sample, async ({ partition, shard }) => {
    try {
      const { entries } = await entriesPage(deps, shard, { partition, of: 'blobs', limit: sampledNames }, signal)
      for (const entry of entries) bytes += entry.bytes ?? 0
      count += entries.length
    } catch (error) {
      if (!isHoldfastError(error)) throw error
    }
  })
  return count === 0 ? 0 : bytes / count
}
