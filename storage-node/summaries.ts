/**
 * What a shard holds of each partition, in a few bytes: the anti-entropy of the primary compares these, and asks for names only
 * where they differ. Computed from the index when asked for, and kept until the partition changes: an idle shard answers from memory.
 */
import { partitionCount, partitionName } from '../shared/partition.ts'
import { emptySet, SetDigest } from '../shared/set-digest.ts'
import type { EntriesRequest, Entry, EntryListing, PartitionSummary } from '../shared/wire.ts'
import { decodeBlobLocation, decodeReferenceLocation, type IndexChange, referenceKey } from './index.ts'
import type { Page } from './lists.ts'
import type { Shard } from './shard.ts'

export type EntryKind = 'blobs' | 'references'

const pageCount = 2000
/** Of several partitions in one answer. */
const namesAtOnce = 10_000

export class Summaries {
  readonly #known = new Map<number, PartitionSummary>()
  /** Grows with every change of a partition: a summary that was being computed meanwhile is not kept. */
  readonly #changes = new Uint32Array(partitionCount)

  /** These changes are in the index now. */
  changed(changes: readonly IndexChange[]): void {
    for (const { key } of changes) {
      if (!key.startsWith('b/') && !key.startsWith('r/')) continue
      const partition = Number.parseInt(key.slice(2, 5), 16)
      this.#changes[partition]! += 1
      this.#known.delete(partition)
    }
  }

  /** Another index: nothing is known of it. */
  clear(): void {
    this.#known.clear()
    for (let partition = 0; partition < partitionCount; partition++) this.#changes[partition]! += 1
  }

  /** Of the partitions `from` to `from + count`, those with anything in them. Rejects with SHARD_FAILED. */
  async list(shard: Shard, from: number, count: number): Promise<PartitionSummary[]> {
    shard.health.checkReadable()
    const end = Math.min(from + count, partitionCount)
    const found: PartitionSummary[] = []
    for (let partition = from; partition < end;) {
      let unknown = partition
      while (unknown < end && !this.#known.has(unknown)) unknown++
      const known = this.#known.get(partition)
      const summaries = known === undefined ? await this.#compute(shard, partition, unknown) : [known]
      found.push(...summaries.filter(({ blobs, references }) => blobs.count > 0 || references.count > 0))
      partition += summaries.length
    }
    return found
  }

  /** Of the partitions from `from` to before `to`, in one pass over the index: most of them may well be empty. */
  async #compute(shard: Shard, from: number, to: number): Promise<PartitionSummary[]> {
    const before = this.#changes.slice(from, to)
    const blobs = await contentsOf(shard, 'blobs', from, to)
    const references = await contentsOf(shard, 'references', from, to)
    return Array.from(before, (changes, index) => {
      const partition = from + index
      const summary = {
        partition,
        blobs: blobs.get(partition)?.digest.finish() ?? emptySet,
        references: references.get(partition)?.digest.finish() ?? emptySet,
        bytes: blobs.get(partition)?.bytes ?? 0,
      }
      if (this.#changes[partition] === changes) this.#known.set(partition, summary)
      return summary
    })
  }
}

interface Contents {
  readonly digest: SetDigest
  bytes: number
}

/** Of each partition with anything in it. */
async function contentsOf(shard: Shard, kind: EntryKind, from: number, to: number): Promise<Map<number, Contents>> {
  const contents = new Map<number, Contents>()
  const prefix = prefixOf(kind)
  const before = to < partitionCount ? { before: prefix + partitionName(to) } : {}
  for (let after = prefix + partitionName(from), more = true; more;) {
    const start = after
    const found = await shard.lookUp(index => index.list({ prefix, after: start, ...before, limit: pageCount }))
    for (const [key, value] of found) {
      const partition = Number.parseInt(key.slice(2, 5), 16)
      let content = contents.get(partition)
      if (content === undefined) contents.set(partition, (content = { digest: new SetDigest(), bytes: 0 }))
      const entry = entryOf(kind, key.slice(6), value)
      content.digest.add(entry.version === undefined ? entry.key : `${entry.key}@${entry.version}`)
      content.bytes += entry.bytes ?? 0
    }
    after = found.at(-1)?.[0] ?? after
    more = found.length === pageCount
  }
  return contents
}

/** Names in the order of their keys: `<digest>.<generation>`, or `<repository/path>` with its version. Rejects with SHARD_FAILED. */
export async function listNames(
  shard: Shard,
  kind: EntryKind,
  partition: number,
  { after, limit }: Page,
): Promise<EntryListing> {
  shard.health.checkReadable()
  const prefix = `${prefixOf(kind)}${partitionName(partition)}/`
  const start = after === undefined ? {} : { after: prefix + after }
  const found = await shard.lookUp(index => index.list({ prefix, ...start, limit }))
  const now = shard.clock.monotonic()
  const entries = found.map(([key, value]) => {
    const entry = entryOf(kind, key.slice(prefix.length), value)
    const location = kind === 'blobs' ? decodeBlobLocation(value) : undefined
    return location === undefined ? entry : { ...entry, heldMs: shard.logMarks.heldMs(location, now) }
  })
  const last = entries.at(-1)
  return { entries, ...(last === undefined || found.length < limit ? {} : { next: last.key }) }
}

/** The first page of each; null: what was listed before it fills an answer. Rejects with SHARD_FAILED. */
export async function listSome(
  shard: Shard,
  lists: EntriesRequest['lists'],
  limit: number,
): Promise<(EntryListing | null)[]> {
  const found: (EntryListing | null)[] = []
  let names = 0
  for (const { of, partition } of lists) {
    const listing = names < namesAtOnce ? await listNames(shard, of, partition, { after: undefined, limit }) : null
    names += listing?.entries.length ?? 0
    found.push(listing)
  }
  return found
}

function prefixOf(kind: EntryKind): string {
  return kind === 'blobs' ? 'b/' : 'r/'
}

function entryOf(kind: EntryKind, key: string, value: Buffer): Entry {
  if (kind === 'references') return { key, version: decodeReferenceLocation(value)?.version ?? 0 }
  const location = decodeBlobLocation(value)
  return { key, bytes: location?.bytes ?? 0, time: location?.time ?? 0 }
}

/** The version of each path's newest reference on this shard; null: it has none. Rejects with SHARD_FAILED. */
export async function versionsOf(
  shard: Shard,
  items: readonly { readonly partition: number; readonly key: string }[],
): Promise<(number | null)[]> {
  shard.health.checkReadable()
  const keys = items.map(({ partition, key }) => referenceKey(partitionName(partition), key))
  const values = await shard.lookUp(index => index.getMany(keys))
  return values.map(value => (value === undefined ? null : (decodeReferenceLocation(value)?.version ?? null)))
}
