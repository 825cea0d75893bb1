/**
 * References of a partition on their way to its new owners, deletes among them: the newest version of each path, read from an old owner in
 * pages of whole records wherever most of a stretch of names is missing, else one by one. A target keeps the highest version it meets, so
 * that repeating is harmless.
 */
import type { ShardId } from '../../shared/ids.ts'
import { inKeyOrder } from '../../shared/key-order.ts'
import { wirePath, type Entry, type ReferenceAnswer, type ReferenceListing } from '../../shared/wire.ts'
import { type MoveDeps, rotated, roundsMax } from './move-deps.ts'
import type { Obstacle } from './obstacles.ts'
import { namesOfOwners, type Owners } from './owner-names.ts'
import type { NamesStretch } from './shard-contents.ts'

/** Of one partition; records of several partitions on their way to a node share its batches with those of clients. */
const appendsAtOnce = 64
const readsAtOnce = 16
/** Reading a page costs less than asking for so great a part of it. */
const densePart = 1 / 8
const pageMax = 1_000
/** A shard reads pages of records from its log, up to 4 MiB of it. */
const pageTimeoutMs = 30_000

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
    const names = namesOfOwners(deps, { partition, of: 'references' }, { ...owners, filled }, deps.term.signal)
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
    if (open.size > names.size * densePart) {
      const range = { partition, after, end: lastOf([...open.keys()]) }
      for await (const records of pagesOf(deps, source, range)) {
        await give(deps, takeFrom(open, records), behind)
      }
    }
    // Few from the beginning, or what the pages lacked: a damaged record among them is told by its shard now.
    await bringEach(deps, partition, [...open.values()], behind)
  }
  return behind
}

type Delivery = Lack & { readonly record: ReferenceAnswer }

/** Whole records, up to `end` at least. */
async function* pagesOf(
  deps: MoveDeps,
  source: ShardId,
  { partition, after, end }: { partition: number; after: string | undefined; end: string },
): AsyncGenerator<ReferenceListing['references']> {
  for (let at = after; at === undefined || inKeyOrder(at, end) < 0;) {
    deps.term.signal.throwIfAborted()
    const query = new URLSearchParams({ limit: String(pageMax), ...(at === undefined ? {} : { after: at }) })
    const path = `${wirePath.references(source, partition)}?${query.toString()}`
    const options = { signal: deps.term.signal, timeoutMs: pageTimeoutMs }
    const ask = () => deps.clients.ofShard(source).requestJson<ReferenceListing>('GET', path, undefined, options)
    const page = await deps.calm.step([source], deps.term.signal, ask)
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
    taken.push({ ...lack, record })
  }
  return taken
}

async function bringEach(
  deps: MoveDeps,
  partition: number,
  lacks: readonly Lack[],
  behind: Set<ShardId>,
): Promise<void> {
  for (let start = 0; start < lacks.length; start += readsAtOnce) {
    deps.term.signal.throwIfAborted()
    const some = lacks.slice(start, start + readsAtOnce)
    const find = async (lack: Lack): Promise<Delivery> => {
      const path = `${wirePath.references(lack.source, partition)}?key=${encodeURIComponent(lack.key)}`
      const options = { signal: deps.term.signal, background: 'usual' } as const
      const record = await deps.clients.ofShard(lack.source).requestJson<ReferenceAnswer>('GET', path, undefined, options) // prettier-ignore
      return { ...lack, record }
    }
    const sources = some.map(({ source }) => source)
    const found = await deps.calm.step(sources, deps.term.signal, () => Promise.all(some.map(find)))
    await give(deps, found, behind)
  }
}

/** Each is durable on its targets when this resolves, or they are `behind`. */
async function give(deps: MoveDeps, deliveries: readonly Delivery[], behind: Set<ShardId>): Promise<void> {
  for (let start = 0; start < deliveries.length; start += appendsAtOnce) {
    deps.term.signal.throwIfAborted()
    const batch = deliveries.slice(start, start + appendsAtOnce)
    const append = () => Promise.all(batch.map(({ record, targets }) => deps.references.appendTo(record, targets)))
    const done = await deps.calm.step([...new Set(batch.flatMap(one => one.targets))], deps.term.signal, append)
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
