/**
 * What a path is, according to all shards together: the reference of the latest incarnation, and of that the highest version. Pure, and the
 * one rule by which a database catches up or is made anew.
 */
import type { ReferenceRecord } from '../../shared/record.ts'
import { partitionName } from '../../shared/partition.ts'
import { incarnationOrder } from './judge-database.ts'

/** Above 0: `a` is the newer one. 0: the same version, told by two shards. */
export function compareReferences(
  a: Pick<ReferenceRecord, 'incarnation' | 'version'>,
  b: Pick<ReferenceRecord, 'incarnation' | 'version'>,
): number {
  return incarnationOrder(a.incarnation) - incarnationOrder(b.incarnation) || a.version - b.version
}

/** The order in which a shard lists its references, as bytes. */
export function sortKey({ partition, repository, path }: ReferenceRecord): Buffer {
  return Buffer.from(`${partitionName(partition)}/${repository}/${path}`)
}

interface Source {
  readonly records: AsyncIterator<ReferenceRecord>
  head: { readonly key: Buffer; readonly record: ReferenceRecord } | undefined
}

/**
 * The newest reference of each path of sorted listings, in their order; tombstones too. Holds one record of each listing in memory. Rejects with
 * what a listing rejects with.
 */
export async function* mergeReferences(
  listings: readonly AsyncIterable<ReferenceRecord>[],
): AsyncGenerator<ReferenceRecord> {
  const sources = listings.map((listing): Source => ({ records: listing[Symbol.asyncIterator](), head: undefined }))
  await Promise.all(sources.map(advance))
  for (;;) {
    const heads = sources.flatMap(({ head }) => head ?? [])
    const first = heads.reduce<Buffer | undefined>(
      (least, { key }) => (least === undefined || Buffer.compare(key, least) < 0 ? key : least),
      undefined,
    )
    if (first === undefined) return
    const tellers = sources.filter(({ head }) => head?.key.equals(first) === true)
    const records = tellers.flatMap(({ head }) => head?.record ?? [])
    yield records.reduce((newest, record) => (compareReferences(record, newest) > 0 ? record : newest))
    await Promise.all(tellers.map(advance))
  }
}

async function advance(source: Source): Promise<void> {
  const next = await source.records.next()
  source.head = next.done === true ? undefined : { key: sortKey(next.value), record: next.value }
}
