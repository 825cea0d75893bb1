/**
 * Copies that no row names: of a generation that was deleted while a repair was bringing it home, or on a shard that came back with an old
 * disk. They show as a difference between the owners of a partition, or as blobs of a shard that is no owner. PostgreSQL decides under the
 * lock of the digest, and fences the generation off, so that whoever is just about to name it sends its bytes again.
 */
import { atMost } from '../../shared/at-most.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import { parseDigest, parseGeneration, type ShardId } from '../../shared/ids.ts'
import { type LossListing, wirePath } from '../../shared/wire.ts'
import type { DoomedBlob } from '../metadata/collection-types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import { suspect, type ShardSummary } from './compare-sets.ts'
import type { Term } from './primary.ts'
import { entriesOf, summariesOf, type ContentsDeps } from './shard-contents.ts'
import { type Copy, stayOf, type UnnamedDeps, unwantedAmong } from './unnamed-blobs.ts'

const askedAtOnce = 16
const chunkSize = 500

export interface SweepDeps extends ContentsDeps, UnnamedDeps {
  readonly view: Pick<ClusterView, 'current'>
  /** False: the shard could not be told. */
  readonly drop: (shard: ShardId, blobs: readonly DoomedBlob[]) => Promise<boolean>
}

export interface Swept {
  readonly dropped: readonly DoomedBlob[]
  /** Shards that did not answer: what they hold is left to a later run. */
  readonly silent: readonly ShardId[]
}

/**
 * Resolves with what was dropped in these partitions. `minAgeMs`: what is younger may still get its row. `thorough`: also where all owners
 * hold the same, which is the usual case and costs a look at every name.
 */
export async function sweepLeftovers(
  deps: SweepDeps,
  range: {
    readonly from: number
    readonly count: number
    readonly thorough: boolean
    /** Shards that did not answer before, and are not asked again. */
    readonly silent?: ReadonlySet<ShardId>
  },
  minAgeMs: number,
  term: Term,
): Promise<Swept> {
  const view = deps.view.current()
  const answers = new Map<ShardId, ShardSummary>()
  const shards = view.map.shards.map(({ id }) => id)
  const asked = shards.filter(shard => range.silent?.has(shard) !== true)
  await atMost(askedAtOnce, asked, async shard => {
    const summary = await unlessAway(summariesOf(deps, shard, range, term.signal))
    if (summary !== undefined) answers.set(shard, summary)
  })
  const dropped: DoomedBlob[] = []
  for (let partition = range.from; partition < range.from + range.count; partition++) {
    const isSuspect = suspect(partition, view.owners(partition), answers).blobs
    if (!isSuspect && !range.thorough) continue
    term.signal.throwIfAborted()
    const holders = [...answers.keys()].filter(shard => (answers.get(shard)?.get(partition)?.blobs.count ?? 0) > 0)
    const listed = isSuspect ? holders : holders.slice(0, 1) // for all of them
    dropped.push(...(await sweepPartition(deps, partition, { asked: listed, holders }, minAgeMs, term)))
  }
  return { dropped, silent: shards.filter(shard => !answers.has(shard)) }
}

async function sweepPartition(
  deps: SweepDeps,
  partition: number,
  { asked, holders }: { readonly asked: readonly ShardId[]; readonly holders: readonly ShardId[] },
  minAgeMs: number,
  term: Term,
): Promise<readonly DoomedBlob[]> {
  const held = new Map<ShardId, ReadonlySet<string>>()
  const found = new Map<string, Copy>()
  await atMost(askedAtOnce, asked, async shard => {
    const entries = (await unlessAway(entriesOf(deps, shard, partition, 'blobs', term.signal))) ?? []
    held.set(shard, new Set(entries.map(({ key }) => key)))
    for (const entry of entries) {
      const { key, bytes = 0 } = entry
      const [digest, generation] = [parseDigest(key.slice(0, 64)), parseGeneration(key.slice(65))]
      if (digest === undefined || generation === undefined) continue
      const stay = stayOf([entry, found.get(key) ?? entry])
      found.set(key, { digest, generation, partition, bytes, ...stay })
    }
  })
  const swept: DoomedBlob[] = []
  const candidates = [...found.values()]
  for (let at = 0; at < candidates.length; at += chunkSize) {
    const { unnamed: doomed } = await unwantedAmong(deps, candidates.slice(at, at + chunkSize), minAgeMs, term)
    for (const shard of holders) {
      const keys = held.get(shard)
      const there =
        keys === undefined ? doomed : doomed.filter(({ digest, generation }) => keys.has(`${digest}.${generation}`))
      if (there.length > 0) await deps.drop(shard, there)
    }
    swept.push(...doomed)
  }
  return swept
}

/**
 * Takes off a shard's list of losses what no row names; resolves with how many. A loss is no copy, so no comparison finds it, and where the
 * shard is no owner of it (a handoff, or an owner before a change of topology) nobody else tells it that its blob was deleted.
 */
export async function sweepLosses(
  deps: Omit<SweepDeps, 'view'>,
  shard: ShardId,
  minAgeMs: number,
  term: Term,
): Promise<number> {
  let swept = 0
  for (let after: string | undefined, isMore = true; isMore;) {
    term.signal.throwIfAborted()
    const query = new URLSearchParams({ limit: String(chunkSize), ...(after === undefined ? {} : { after }) })
    const path = `${wirePath.losses(shard)}?${query.toString()}`
    const client = deps.clients.ofShard(shard)
    const listing = await unlessAway(client.requestJson<LossListing>('GET', path, undefined, { signal: term.signal }))
    const lost = (listing?.losses ?? []).map(one => ({ ...one, bytes: 0 }))
    const { unnamed: doomed } = await unwantedAmong(deps, lost, minAgeMs, term)
    if (doomed.length > 0 && (await deps.drop(shard, doomed))) swept += doomed.length
    after = listing?.next
    isMore = after !== undefined
  }
  return swept
}

/** A shard that does not answer is swept by a later run. */
async function unlessAway<Result>(answer: Promise<Result>): Promise<Result | undefined> {
  try {
    return await answer
  } catch (error) {
    if (!isHoldfastError(error)) throw error
    return undefined
  }
}
