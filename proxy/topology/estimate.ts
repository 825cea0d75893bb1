/** What a change of topology will have to copy, from the shards' summaries; of nodes that do not tell bytes, from a sample of names. */
import { atMost } from '../../shared/at-most.ts'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { PartitionMove } from '../../shared/placement/transition.ts'
import { emptySet } from '../../shared/set-digest.ts'
import type { PartitionSummary } from '../../shared/wire.ts'
import { entriesPage, type ContentsDeps } from '../tasks/shard-contents.ts'
import { allSummaries, type ShardSummaries } from './partition-bytes.ts'

const shardsAtOnce = 8
const sampledPartitions = 24
const sampledNames = 200
/**
 * What one node takes in a second: small blobs and references, and bytes for all its disks (`--transfer-bytes-per-sec`, unless it was told
 * otherwise); what the primary sees to; and what a change costs however small it is.
 */
const itemsPerNodeSecond = 800
const bytesPerNodeSecond = 1024 * 1024 * 1024
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
  /** That each shard gets. */
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

/** Never rejects for a shard that is away: another old owner is counted, or the partition is unknown. `known`: what shards said a moment ago. */
export async function estimateMoves(
  deps: ContentsDeps,
  moves: readonly PartitionMove[],
  rates: CopyRates,
  signal: AbortSignal,
  known?: ShardSummaries,
): Promise<MovesEstimate> {
  const summaries = known ?? (await allSummaries(deps, moves.flatMap(({ from }) => from as readonly ShardId[]), signal)) // prettier-ignore
  const [blobsTo, referencesTo, bytesTo] = [
    new Map<string, number>(),
    new Map<string, number>(),
    new Map<string, number>(),
  ]
  const sums = { blobs: 0, references: 0, bytes: 0, bytesFreed: 0, unknownPartitions: 0 }
  const meanOf = await meanBytes(deps, moves, summaries, signal)
  for (const { partition, from, to } of moves) {
    const shard = answering(from, summaries)
    if (shard === undefined) {
      sums.unknownPartitions += 1
      continue
    }
    const { blobs, references, bytes } = summaries.get(shard)?.get(partition) ?? nothing
    const size = bytes ?? blobs.count * meanOf
    const targets = to.filter(id => !from.includes(id))
    sums.blobs += targets.length * blobs.count
    sums.references += targets.length * references.count
    sums.bytes += targets.length * size
    sums.bytesFreed += from.filter(id => !to.includes(id)).length * size
    for (const id of targets) {
      add(blobsTo, id, blobs.count)
      add(referencesTo, id, references.count)
      add(bytesTo, id, size)
    }
  }
  const { seconds, ...slowest } = slowestNode({ blobsTo, referencesTo, bytesTo }, rates)
  const items = sums.blobs + sums.references
  return {
    ...sums,
    bytes: Math.round(sums.bytes),
    bytesFreed: Math.round(sums.bytesFreed),
    seconds: moves.length === 0 ? 0 : Math.ceil(Math.max(seconds, items / itemsPerSecond)) + fixedSeconds,
    ...slowest,
    bytesTo,
  }
}

const nothing: Pick<PartitionSummary, 'blobs' | 'references' | 'bytes'> = {
  blobs: emptySet,
  references: emptySet,
  bytes: 0,
}

const answering = (from: readonly string[], summaries: ShardSummaries): ShardId | undefined =>
  (from as readonly ShardId[]).find(id => summaries.has(id))

function add(to: Map<string, number>, id: string, count: number): void {
  if (count > 0) to.set(id, Math.round((to.get(id) ?? 0) + count))
}

/** How long it takes, if all shards get theirs at the same time. */
function slowestNode(
  shares: Readonly<Record<'blobsTo' | 'referencesTo' | 'bytesTo', ReadonlyMap<string, number>>>,
  { bytesPerSecond, nodeOf }: CopyRates,
): { seconds: number } & Pick<Estimate, 'slowest'> {
  const nodes = new Map<string, { bytes: number; items: number; shardBytes: number }>()
  for (const shard of new Set([...shares.blobsTo.keys(), ...shares.referencesTo.keys()])) {
    const { bytes, items, shardBytes } = nodes.get(nodeOf(shard)) ?? { bytes: 0, items: 0, shardBytes: 0 }
    const own = shares.bytesTo.get(shard) ?? 0
    const added = (shares.blobsTo.get(shard) ?? 0) + (shares.referencesTo.get(shard) ?? 0)
    nodes.set(nodeOf(shard), { bytes: bytes + own, items: items + added, shardBytes: Math.max(shardBytes, own) })
  }
  let found: { seconds: number } & Pick<Estimate, 'slowest'> = { seconds: 0 }
  for (const [node, { bytes, items, shardBytes }] of nodes) {
    const seconds = Math.max(shardBytes / bytesPerSecond, bytes / bytesPerNodeSecond, items / itemsPerNodeSecond)
    if (seconds > found.seconds) found = { seconds, slowest: { node, bytes } }
  }
  return found
}

/** Of blobs in partitions, spread over all, whose shards do not tell their bytes; 0 where there are none. */
async function meanBytes(
  deps: ContentsDeps,
  moves: readonly PartitionMove[],
  summaries: ShardSummaries,
  signal: AbortSignal,
): Promise<number> {
  const unsaid = moves.flatMap(({ partition, from }) => {
    const shard = answering(from, summaries)
    const summary = shard && summaries.get(shard)?.get(partition)
    if (shard === undefined || summary === undefined || summary.bytes !== undefined) return []
    return summary.blobs.count === 0 ? [] : { partition, shard }
  })
  const step = Math.max(1, Math.floor(unsaid.length / sampledPartitions))
  const sample = unsaid.filter((_, index) => index % step === 0).slice(0, sampledPartitions)
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
