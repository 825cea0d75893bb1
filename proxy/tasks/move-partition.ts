/**
 * One partition on its way to its new owners: what the old ones hold is compared, copied and compared again, page by page, until nothing
 * is missing, and after it is settled the copies of those that own it no longer go, each only when every owner has said that it holds it
 * (I21).
 */
import { HoldfastError } from '../../shared/errors.ts'
import type { Digest, Generation, ShardId } from '../../shared/ids.ts'
import { referenceReadQuorum } from '../../shared/quorum.ts'
import type { BlobKey, Entry } from '../../shared/wire.ts'
import type { ShardSummary } from './compare-sets.ts'
import { type MoveDeps, rotated, roundsMax } from './move-deps.ts'
import type { Obstacle } from './obstacles.ts'
import { namesOfOwners, type Owners } from './owner-names.ts'
import { moveReferences } from './move-references.ts'
import { batchesOf, type Names, namesInStep } from './shard-contents.ts'
import { stayOf } from './unnamed-blobs.ts'

const bytesPerRequest = 16 * 1024 * 1024
const dropsAtOnce = 1_000

interface SizedBlob extends BlobKey {
  readonly bytes: number
}

/**
 * Resolves with undefined once every new owner holds all that the old ones hold, otherwise with what is in the way. Rejects with the
 * error of a shard.
 * `summaries`: what the shards that answered hold of the partitions around, asked after the change was announced.
 */
export async function movePartition(
  deps: MoveDeps,
  partition: number,
  summaries: ReadonlyMap<ShardId, ShardSummary>,
): Promise<Obstacle | undefined> {
  const view = deps.view()
  const to = view.owners(partition)
  const from = view.previousOwners(partition) ?? []
  const answering = from.filter(shard => summaries.has(shard))
  // As with any read of references: a majority of the old owners has each; what the others held alone is in the repair queue. One that
  // is recovering counts, too: it may be waiting for one that is gone for good, and this change is what ends that.
  const silent = (shards: readonly ShardId[]): ShardId[] => shards.filter(shard => !summaries.has(shard))
  // One that owned it before gets nothing by this change: what it lacks when it is back is what it would have lacked without it, and as
  // long as it is silent no copy of a former owner goes. To wait for it would keep the change, and every other one, waiting for a dead disk.
  const added = to.filter(shard => !from.includes(shard))
  if (answering.length < Math.min(from.length, referenceReadQuorum(from.length))) {
    return { reason: 'too few old owners answer', shards: silent(from) }
  }
  if (silent(added).length > 0) return { reason: 'new owners do not answer', shards: silent(added) }
  const holds = (shard: ShardId, kind: 'blobs' | 'references'): boolean =>
    (summaries.get(shard)?.get(partition)?.[kind].count ?? 0) > 0
  const hasBlobs = answering.some(shard => holds(shard, 'blobs'))
  const hasReferences = answering.some(shard => holds(shard, 'references'))
  const owners = { from: answering, to: to.filter(shard => summaries.has(shard)), summaries }
  const obstacle = hasBlobs ? await moveBlobs(deps, partition, owners) : undefined
  if (obstacle !== undefined || !hasReferences) return obstacle
  return moveReferences(deps, partition, owners)
}

/** Until a comparison of all of it finds that no owner lacks any. */
async function moveBlobs(
  deps: MoveDeps,
  partition: number,
  owners: Omit<Owners, 'filled'>,
): Promise<Obstacle | undefined> {
  const filled = new Set<ShardId>()
  let lacking = new Set<ShardId>()
  for (let round = 1; round <= roundsMax; round += 1) {
    lacking = new Set()
    const names = namesOfOwners(deps.calls, { partition, of: 'blobs' }, { ...owners, filled })
    for await (const { held } of names) {
      for (const shard of await fill(deps, partition, held, owners.from, owners.to)) lacking.add(shard)
    }
    for (const shard of lacking) filled.add(shard)
    if (lacking.size === 0) return undefined
  }
  return { reason: 'new owners still lack blobs after copying', shards: [...lacking] }
}

/** Resolves with the new owners that lacked any of these, when they have been told to pull them. */
async function fill(
  deps: MoveDeps,
  partition: number,
  held: Names,
  from: readonly ShardId[],
  to: readonly ShardId[],
): Promise<readonly ShardId[]> {
  const wanted = await withoutUnwanted(deps, partition, held, from, to)
  const lacking: ShardId[] = []
  for (const shard of to) {
    const missing = [...wanted].filter(([key]) => held.get(shard)?.has(key) !== true)
    if (missing.length === 0) continue
    lacking.push(shard)
    const blobs = missing.map(([key, entry], index) => {
      const sources = [...held]
        .filter(([source, names]) => source !== shard && names.has(key))
        .map(([source]) => source)
      return { ...blobOf(partition, key, entry), sources: rotated(sources, index) }
    })
    await pull(deps, shard, blobs)
  }
  return lacking
}

/**
 * What the old owners hold, but for copies that a new one lacks and nobody wants: one that is just being purged would come back with a
 * copy of it, and one that nothing names, seen on one shard by itself, is not found again once all owners have it.
 */
async function withoutUnwanted(
  deps: MoveDeps,
  partition: number,
  held: Names,
  from: readonly ShardId[],
  to: readonly ShardId[],
): Promise<ReadonlyMap<string, Entry>> {
  const wanted = new Map(from.flatMap(shard => [...(held.get(shard) ?? [])]))
  const lacking = [...wanted].filter(([key]) => to.some(shard => held.get(shard)?.has(key) !== true))
  const copies = lacking.map(([key, entry]) => {
    const told = [...held.values()].flatMap(names => names.get(key) ?? [])
    return { key, ...blobOf(partition, key, entry), ...stayOf(told) }
  })
  if (copies.length === 0) return wanted
  const verdicts = await deps.calls.judge(copies)
  for (const [index, { key }] of copies.entries()) if (verdicts[index] !== 'wanted') wanted.delete(key)
  const unnamed = copies.filter((_, index) => verdicts[index] === 'unnamed')
  for (const [shard, names] of held) {
    await deps.calls.drop(shard, unnamed.filter(({ key }) => names.has(key)), 'deleted') // prettier-ignore
  }
  return wanted
}

async function pull(
  deps: MoveDeps,
  shard: ShardId,
  blobs: readonly (SizedBlob & { readonly sources: readonly ShardId[] })[],
): Promise<void> {
  const view = deps.view()
  for (const batch of batchesOf(blobs, ({ bytes }) => bytes, bytesPerRequest)) {
    const results = await deps.calls.pull(
      shard,
      batch.map(({ sources, ...blob }) => ({
        ...blob,
        sources: sources.map(source => ({ url: view.node(source).url, shard: source })),
      })),
    )
    // A source may have lost it just now (deleted, or corrupt): the next comparison knows. A target that takes nothing is another matter.
    const refusal = results.find(result => typeof result === 'object' && result.code !== 'REPLICAS_UNREACHABLE')
    if (typeof refusal === 'object') throw new HoldfastError(refusal.code, refusal.message, { shard })
  }
}

/** A shard that may hold blobs of a partition it does not own any more. */
export interface Leaver {
  readonly shard: ShardId
  /** How many, as it has said; absent: it has said nothing. */
  readonly expected?: number
}

/** Moves to the trash what `leaving`, owners before it was settled, hold of a partition; resolves with how many copies. */
export async function releasePartition(deps: MoveDeps, partition: number, leaving: readonly Leaver[]): Promise<number> {
  const view = deps.view()
  const owners = view.owners(partition)
  if (view.previousOwners(partition) !== undefined) return 0
  let released = 0
  for (const { shard, ...hint } of leaving.filter(one => view.has(one.shard) && !owners.includes(one.shard))) {
    const page = { partition, of: 'blobs', limit: dropsAtOnce, ...hint } as const
    for await (const { held } of namesInStep((one, next) => deps.calls.names(one, next), [shard], page)) {
      const blobs = [...(held.get(shard) ?? [])].map(([key, entry]) => blobOf(partition, key, entry))
      if (blobs.length > 0) released += await release(deps, shard, owners, blobs)
    }
  }
  return released
}

async function release(
  deps: MoveDeps,
  shard: ShardId,
  owners: readonly ShardId[],
  blobs: readonly SizedBlob[],
): Promise<number> {
  const words = await Promise.all(owners.map(owner => deps.calls.touch(owner, blobs)))
  const safe = blobs.filter((_, index) => words.every(results => results[index] === 'held'))
  await deps.calls.drop(shard, safe, 'moved')
  return safe.length
}

function blobOf(partition: number, key: string, { bytes = 0 }: Entry): SizedBlob {
  // The node made the name of both, each checked when it came in.
  return { partition, digest: key.slice(0, 64) as Digest, generation: key.slice(65) as Generation, bytes }
}
