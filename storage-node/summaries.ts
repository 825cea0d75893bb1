/**
 * What a shard holds of each partition, in a few bytes: the anti-entropy of the primary compares these, and asks for names only
 * where they differ. Computed from the index when asked for, and kept until the partition changes: an idle shard answers from memory.
 */
import { partitionCount, partitionName } from '../shared/partition.ts'
import { SetDigest, type SetSummary } from '../shared/set-digest.ts'
import type { Entry, EntryListing, PartitionSummary } from '../shared/wire.ts'
import { blobKey, decodeBlobLocation, decodeReferenceLocation, type IndexChange, referenceKey } from './index.ts'
import type { Page } from './lists.ts'
import type { Shard } from './shard.ts'

export type EntryKind = 'blobs' | 'references'

const pageCount = 2000

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
    const found: PartitionSummary[] = []
    for (let partition = from; partition < Math.min(from + count, partitionCount); partition++) {
      const summary = this.#known.get(partition) ?? (await this.#compute(shard, partition))
      if (summary.blobs.count > 0 || summary.references.count > 0) found.push(summary)
    }
    return found
  }

  async #compute(shard: Shard, partition: number): Promise<PartitionSummary> {
    const before = this.#changes[partition]
    const [blobs, references] = [
      await digestOf(shard, 'blobs', partition),
      await digestOf(shard, 'references', partition),
    ]
    const summary = { partition, blobs, references }
    if (this.#changes[partition] === before) this.#known.set(partition, summary)
    return summary
  }
}

async function digestOf(shard: Shard, kind: EntryKind, partition: number): Promise<SetSummary> {
  const digest = new SetDigest()
  for (let after: string | undefined, more = true; more;) {
    const { entries, next } = await listNames(shard, kind, partition, { after, limit: pageCount })
    for (const { key, version } of entries) digest.add(version === undefined ? key : `${key}@${version}`)
    after = next
    more = next !== undefined
  }
  return digest.finish()
}

/** Names in the order of their keys: `<digest>.<generation>`, or `<repository/path>` with its version. Rejects with SHARD_FAILED. */
export async function listNames(
  shard: Shard,
  kind: EntryKind,
  partition: number,
  { after, limit }: Page,
): Promise<EntryListing> {
  shard.health.checkReadable()
  const name = partitionName(partition)
  const prefix = kind === 'blobs' ? blobKey(`${name}/`) : referenceKey(name, '')
  const start = after === undefined ? {} : { after: prefix + after }
  const found = await shard.lookUp(index => index.list({ prefix, ...start, limit }))
  const entries = found.map(([key, value]) => entryOf(kind, key.slice(prefix.length), value))
  const last = entries.at(-1)
  return { entries, ...(last === undefined || found.length < limit ? {} : { next: last.key }) }
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
