/**
 * One partition on its way to its new owners: what the old ones hold is listed, copied and compared until nothing is missing, and after
 * it is settled the copies of those that own it no longer go, each only when every owner has said that it holds it (I21).
 */
import type { PlacementView } from '../../shared/cluster-map.ts'
import { HoldfastError } from '../../shared/errors.ts'
import type { Digest, Generation, ShardId } from '../../shared/ids.ts'
import { referenceReadQuorum } from '../../shared/quorum.ts'
import {
  wirePath,
  type BlobKey,
  type DropRequest,
  type Entry,
  type ReferenceAnswer,
  type TransferAnswer,
  type TransferRequest,
} from '../../shared/wire.ts'
import type { NodeClients } from '../routing/node-client.ts'
import type { ReferenceStore } from '../routing/types.ts'
import type { ShardSummary } from './compare-sets.ts'
import type { Obstacle } from './obstacles.ts'
import type { Term } from './primary.ts'
import { batchesOf, commandLimitMs, entriesOf, touchAll } from './shard-contents.ts'

/** Rounds of copying and comparing; writers at work make a second one usual and a third one rare. */
const roundsMax = 5
const bytesPerRequest = 16 * 1024 * 1024
const referencesAtOnce = 16
const dropsPerRequest = 1_000

export interface Copied {
  readonly blobs: number
  readonly bytes: number
  readonly references: number
}

export interface MoveDeps {
  readonly clients: Pick<NodeClients, 'ofShard'>
  readonly references: Pick<ReferenceStore, 'appendTo'>
  readonly view: () => PlacementView
  /** `primary:17` */
  readonly fence: string
  /** Aborts when the run has ended; read before each step. */
  readonly term: Pick<Term, 'signal'>
  /** After each command; resolves when the next one may begin. */
  readonly onCopied: (copied: Copied, ms: number) => Promise<void>
}

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
  // As with any read of references: a majority of the old owners has each; what the others held alone is in the repair queue.
  const silent = (shards: readonly ShardId[]): ShardId[] => shards.filter(shard => !summaries.has(shard))
  if (answering.length < Math.min(from.length, referenceReadQuorum(from.length))) {
    return { reason: 'too few old owners answer', shards: silent(from) }
  }
  if (silent(to).length > 0) return { reason: 'new owners do not answer', shards: silent(to) }
  const holds = (shard: ShardId, kind: 'blobs' | 'references'): boolean =>
    (summaries.get(shard)?.get(partition)?.[kind].count ?? 0) > 0
  const hasBlobs = answering.some(shard => holds(shard, 'blobs'))
  const hasReferences = answering.some(shard => holds(shard, 'references'))
  const obstacle = hasBlobs ? await moveBlobs(deps, partition, answering, to) : undefined
  if (obstacle !== undefined || !hasReferences) return obstacle
  return moveReferences(deps, partition, answering, to)
}

/** Until a comparison finds that no owner lacks any. */
async function moveBlobs(
  deps: MoveDeps,
  partition: number,
  from: readonly ShardId[],
  to: readonly ShardId[],
): Promise<Obstacle | undefined> {
  let lacking: readonly ShardId[] = []
  for (let round = 1; round <= roundsMax; round += 1) {
    const held = await heldBy(deps, partition, [...new Set([...from, ...to])], 'blobs')
    const wanted = new Map(from.flatMap(shard => [...(held.get(shard) ?? [])]))
    lacking = to.filter(shard => [...wanted.keys()].some(key => held.get(shard)?.has(key) !== true))
    if (lacking.length === 0) return undefined
    for (const shard of lacking) {
      const missing = [...wanted].filter(([key]) => held.get(shard)?.has(key) !== true)
      const blobs = missing.map(([key, entry], index) => ({
        ...blobOf(partition, key, entry),
        sources: rotated(
          [...held].filter(([source, keys]) => source !== shard && keys.has(key)).map(([source]) => source),
          index,
        ),
      }))
      await pull(deps, shard, blobs)
    }
  }
  return { reason: 'new owners still lack blobs after copying', shards: lacking }
}

async function pull(
  deps: MoveDeps,
  shard: ShardId,
  blobs: readonly (SizedBlob & { readonly sources: readonly ShardId[] })[],
): Promise<void> {
  const view = deps.view()
  for (const batch of batchesOf(blobs, ({ bytes }) => bytes, bytesPerRequest)) {
    deps.term.signal.throwIfAborted()
    const startedAt = performance.now()
    const bytes = batch.reduce((sum, blob) => sum + blob.bytes, 0)
    const request: TransferRequest = {
      shard,
      blobs: batch.map(({ sources, ...blob }) => ({
        ...blob,
        sources: sources.map(source => ({ url: view.node(source).url, shard: source })),
      })),
    }
    const timeoutMs = commandLimitMs(bytes)
    const { results } = await deps.clients
      .ofShard(shard)
      .requestJson<TransferAnswer>('POST', wirePath.transfer, request, {
        fence: deps.fence,
        timeoutMs,
        signal: deps.term.signal,
      })
    const copied = batch.filter((_, index) => results[index] === 'copied')
    const copiedBytes = copied.reduce((sum, blob) => sum + blob.bytes, 0)
    await deps.onCopied({ blobs: copied.length, bytes: copiedBytes, references: 0 }, performance.now() - startedAt)
    // A source may have lost it just now (deleted, or corrupt): the next comparison knows. A target that takes nothing is another matter.
    const refusal = results.find(result => typeof result === 'object' && result.code !== 'REPLICAS_UNREACHABLE')
    if (typeof refusal === 'object') throw new HoldfastError(refusal.code, refusal.message, { shard })
  }
}

async function moveReferences(
  deps: MoveDeps,
  partition: number,
  from: readonly ShardId[],
  to: readonly ShardId[],
): Promise<Obstacle | undefined> {
  const behind = new Set<ShardId>()
  for (let round = 1; round <= roundsMax; round += 1) {
    const held = await heldBy(deps, partition, [...new Set([...from, ...to])], 'references')
    const versionOn = (shard: ShardId, key: string): number => held.get(shard)?.get(key)?.version ?? 0
    const keys = new Set(from.flatMap(shard => [...(held.get(shard)?.keys() ?? [])]))
    const lacking: { key: string; source: ShardId; targets: readonly ShardId[] }[] = []
    for (const key of keys) {
      const source = from.reduce((best, shard) => (versionOn(shard, key) > versionOn(best, key) ? shard : best))
      const targets = to.filter(shard => versionOn(shard, key) < versionOn(source, key))
      if (targets.length > 0) lacking.push({ key, source, targets })
    }
    if (lacking.length === 0) return undefined
    for (let start = 0; start < lacking.length; start += referencesAtOnce) {
      deps.term.signal.throwIfAborted()
      const startedAt = performance.now()
      const batch = lacking.slice(start, start + referencesAtOnce)
      const refused = await Promise.all(batch.map(({ key, source, targets }) => bring(deps, partition, key, source, targets))) // prettier-ignore
      const references = refused.filter(shards => shards.length === 0).length
      await deps.onCopied({ blobs: 0, bytes: 0, references }, performance.now() - startedAt)
      for (const shard of refused.flat()) behind.add(shard)
    }
    // Listing and sending it all again at once would only meet the same shard in the same trouble.
    if (behind.size > 0) return { reason: 'new owners did not take references', shards: [...behind] }
  }
  return { reason: 'references are written faster than they are copied', shards: [] }
}

/** Resolves with the targets that did not take it. */
async function bring(
  deps: MoveDeps,
  partition: number,
  key: string,
  source: ShardId,
  targets: readonly ShardId[],
): Promise<readonly ShardId[]> {
  const path = `${wirePath.references(source, partition)}?key=${encodeURIComponent(key)}`
  const record = await deps.clients
    .ofShard(source)
    .requestJson<ReferenceAnswer>('GET', path, undefined, { signal: deps.term.signal })
  const done = await deps.references.appendTo(record, targets)
  return targets.filter(shard => !done.has(shard))
}

/** Moves to the trash what shards that are no owners hold of a settled partition; resolves with how many copies. */
export async function releasePartition(deps: MoveDeps, partition: number, before: PlacementView): Promise<number> {
  const view = deps.view()
  const owners = view.owners(partition)
  if (view.previousOwners(partition) !== undefined) return 0
  const leaving = (before.previousOwners(partition) ?? []).filter(shard => view.has(shard) && !owners.includes(shard))
  let released = 0
  for (const shard of leaving) {
    const entries = await entriesOf(deps, shard, partition, 'blobs', deps.term.signal)
    const blobs = entries.map(entry => blobOf(partition, entry.key, entry))
    for (let start = 0; start < blobs.length; start += dropsPerRequest) {
      released += await release(deps, shard, owners, blobs.slice(start, start + dropsPerRequest))
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
  deps.term.signal.throwIfAborted()
  const words = await Promise.all(owners.map(owner => touchAll(deps, owner, blobs, deps.term.signal)))
  const safe = blobs.filter((_, index) => words.every(results => results[index] === 'held'))
  if (safe.length === 0) return 0
  deps.term.signal.throwIfAborted()
  const keys = safe.map(({ partition, digest, generation }) => ({ partition, digest, generation }))
  const request: DropRequest = { shard, reason: 'moved', blobs: keys }
  const options = { fence: deps.fence, timeoutMs: commandLimitMs(), signal: deps.term.signal }
  await deps.clients.ofShard(shard).requestJson('POST', wirePath.drop, request, options)
  return safe.length
}

async function heldBy(
  deps: MoveDeps,
  partition: number,
  shards: readonly ShardId[],
  kind: 'blobs' | 'references',
): Promise<ReadonlyMap<ShardId, ReadonlyMap<string, Entry>>> {
  deps.term.signal.throwIfAborted()
  const lists = await Promise.all(
    shards.map(async shard => {
      const entries = await entriesOf(deps, shard, partition, kind, deps.term.signal)
      return [shard, new Map(entries.map(entry => [entry.key, entry]))] as const
    }),
  )
  return new Map(lists)
}

function blobOf(partition: number, key: string, { bytes = 0 }: Entry): SizedBlob {
  // The node made the name of both, each checked when it came in.
  return { partition, digest: key.slice(0, 64) as Digest, generation: key.slice(65) as Generation, bytes }
}

function rotated<Item>(items: readonly Item[], by: number): Item[] {
  const turn = items.length === 0 ? 0 : by % items.length
  return [...items.slice(turn), ...items.slice(0, turn)]
}
