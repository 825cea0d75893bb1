/**
 * References of a partition on their way to its new owners, deletes among them: the newest version of each path, read from an old owner in
 * pages of whole records wherever most of a stretch of names is missing, else one by one. A target keeps the highest version it meets, so
 * that repeating is harmless.
 */
import type { ShardId } from '../../shared/ids.ts'
import { inKeyOrder } from '../../shared/key-order.ts'
import type { Entry, ReferenceListing } from '../../shared/wire.ts'
import type { Delivery } from './move-calls.ts'
import { type MoveDeps, rotated, roundsMax } from './move-deps.ts'
import type { Obstacle } from './obstacles.ts'
import { namesOfOwners, type Owners } from './owner-names.ts'
import type { NamesStretch } from './shard-contents.ts'

/** Of one partition; records of several partitions on their way to a node share its batches with those of clients. */
const appendsAtOnce = 64
const readsAtOnce = 32
/** Reading a page costs less than asking for so great a part of it, unless that goes with what others ask for. */
const densePart = 1 / 8
const fewMax = readsAtOnce
const pageMax = 1_000

interface Lack {
  readonly key: string
  readonly version: number
  readonly source: ShardId
  readonly targets: readonly ShardId[]
}

/** Until a comparison of all of it finds that no owner lacks any; undefined then. */
export async function moveReferences(
  deps: MoveDeps,
  partition: number,
  owners: Omit<Owners, 'filled'>,
): Promise<Obstacle | undefined> {
  const { from, to } = owners
  const filled = new Set<ShardId>()
  for (let round = 1; round <= roundsMax; round += 1) {
    let isComplete = true
    const names = namesOfOwners(deps.calls, { partition, of: 'references' }, { ...owners, filled })
    for await (const stretch of names) {
      const lacks = lacksOf(stretch, rotated(from, partition), to)
      if (lacks.length === 0) continue
      isComplete = false
      for (const { targets } of lacks) for (const shard of targets) filled.add(shard)
      const behind = await supply(deps, partition, stretch, lacks)
      // What is behind it would only meet the same shard in the same trouble.
      if (behind.size > 0) return { reason: 'new owners did not take references', shards: [...behind] }
    }
    if (isComplete) return undefined
  }
  return { reason: 'references are written faster than they are copied', shards: [] }
}

/** Paths of which a new owner has an older version than an old one has, or none. */
function lacksOf({ held }: NamesStretch, from: readonly ShardId[], to: readonly ShardId[]): readonly Lack[] {
  const versionOn = (shard: ShardId, key: string): number => held.get(shard)?.get(key)?.version ?? 0
  const lacks: Lack[] = []
  for (const key of new Set(from.flatMap(shard => [...(held.get(shard)?.keys() ?? [])]))) {
    const source = from.reduce((best, shard) => (versionOn(shard, key) > versionOn(best, key) ? shard : best))
    const version = versionOn(source, key)
    const targets = to.filter(shard => versionOn(shard, key) < version)
    if (targets.length > 0) lacks.push({ key, version, source, targets })
  }
  return lacks
}

/** Resolves with the targets that did not take what they were sent. */
async function supply(
  deps: MoveDeps,
  partition: number,
  { after, held }: NamesStretch,
  lacks: readonly Lack[],
): Promise<ReadonlySet<ShardId>> {
  const behind = new Set<ShardId>()
  for (const source of new Set(lacks.map(one => one.source))) {
    const open = new Map(lacks.filter(one => one.source === source).map(one => [one.key, one]))
    const names = held.get(source) ?? new Map<string, Entry>()
    if (open.size > fewMax && open.size > names.size * densePart) {
      const range = { partition, after, end: lastOf([...open.keys()]) }
      for await (const records of pagesOf(deps, source, range)) {
        await give(deps, takeFrom(open, records), behind)
      }
    }
    // Few from the beginning, or what the pages lacked: a damaged record among them is told by its shard now.
    await bringEach(deps, partition, source, [...open.values()], behind)
  }
  return behind
}

/** Whole records, up to `end` at least. */
async function* pagesOf(
  deps: MoveDeps,
  source: ShardId,
  { partition, after, end }: { partition: number; after: string | undefined; end: string },
): AsyncGenerator<ReferenceListing['references']> {
  for (let at = after; at === undefined || inKeyOrder(at, end) < 0;) {
    const page = await deps.calls.referencesPage(source, partition, { after: at, limit: pageMax })
    yield page.references
    if (page.next === undefined) return
    at = page.next
  }
}

/** What of these was wanted, in the version that was listed or a newer one; it is no longer open then. */
function takeFrom(open: Map<string, Lack>, records: ReferenceListing['references']): readonly Delivery[] {
  const taken: Delivery[] = []
  for (const record of records) {
    const lack = open.get(`${record.repository}/${record.path}`)
    if (lack === undefined || record.version < lack.version) continue
    open.delete(lack.key)
    taken.push({ record, targets: lack.targets })
  }
  return taken
}

async function bringEach(
  deps: MoveDeps,
  partition: number,
  source: ShardId,
  lacks: readonly Lack[],
  behind: Set<ShardId>,
): Promise<void> {
  for (let start = 0; start < lacks.length; start += readsAtOnce) {
    const some = lacks.slice(start, start + readsAtOnce)
    const records = await deps.calls.records(source, some.map(({ key }) => ({ partition, key }))) // prettier-ignore
    await give(deps, some.map(({ targets }, index) => ({ record: records[index]!, targets })), behind) // prettier-ignore
  }
}

/** Each is durable on its targets when this resolves, or they are `behind`. */
async function give(deps: MoveDeps, deliveries: readonly Delivery[], behind: Set<ShardId>): Promise<void> {
  for (let start = 0; start < deliveries.length; start += appendsAtOnce) {
    const batch = deliveries.slice(start, start + appendsAtOnce)
    const done = await deps.calls.append(batch)
    let references = 0
    for (const [index, { targets }] of batch.entries()) {
      const refused = targets.filter(shard => done[index]?.has(shard) !== true)
      if (refused.length === 0) references += 1
      for (const shard of refused) behind.add(shard)
    }
    await deps.onCopied({ blobs: 0, bytes: 0, references })
  }
}

function lastOf(keys: readonly string[]): string {
  return keys.reduce((last, key) => (inKeyOrder(key, last) > 0 ? key : last))
}
