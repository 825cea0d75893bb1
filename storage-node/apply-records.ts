/**
 * From durable records to changes of the index. Pure but for the lookups handed in, and idempotent: applying a stretch
 * of the log again, in its order, ends in the same index.
 */
import { crc32 } from 'node:zlib'
import type { DropRecord, ReferenceRecord, ShardRecord } from '../shared/record.ts'
import { partitionName } from '../shared/partition.ts'
import { blobName } from './blob-name.ts'
import {
  type BlobLocation,
  blobKey,
  decodeBlobLocation,
  decodeNewest,
  decodeReferenceLocation,
  encodeBlobLocation,
  encodeLoss,
  encodeNewest,
  encodeReferenceLocation,
  type IndexChange,
  logBytesOf,
  type Loss,
  lossKey,
  newestKey,
  type NewestReference,
  type ReferenceLocation,
  referenceKey,
  unconfirmedKey,
} from './index.ts'
import type { LoggedRecord } from './log-segment.ts'

/** What the index of a shard is after these records; `undefined` = gone. Names are `<ppp>/<digest>.<generation>`. */
export interface IndexPlan {
  readonly changes: readonly IndexChange[]
  readonly blobs: ReadonlyMap<string, BlobLocation | undefined>
  /** By how much the living bytes of each segment change. */
  readonly uses: ReadonlyMap<number, number>
  /** By how much the number of lost copies changes. */
  readonly lossDelta: number
  /** The newest reference of the shard, if these records have it. */
  readonly newest: NewestReference | undefined
}

/** The reference's own key: repository names have no slash, so two paths never share one. */
export function pathKey({ repository, path }: Pick<ReferenceRecord, 'repository' | 'path'>): string {
  return `${repository}/${path}`
}

/**
 * Reads what the records may change, in one call, and plans the change. `lossCount`: lost copies in the index; without any, nobody
 * looks for one, since this is the path of every write.
 */
export async function planApply(
  records: readonly LoggedRecord[],
  lookUp: (keys: string[]) => Promise<(Buffer | undefined)[]>,
  lossCount: number,
): Promise<IndexPlan> {
  const lossy = lossCount > 0 || records.some(({ record }) => record.kind === 'drop' && record.reason === 'corrupt')
  const keys = [...new Set(records.flatMap(({ record }) => keysOf(record, lossy)))]
  const values = keys.length === 0 ? [] : await lookUp(keys)
  const known = new Map(keys.map((key, index) => [key, values[index]]))
  const planner = new Planner(known)
  for (const logged of records) planner.add(logged)
  const { changes, blobs, uses, lossDelta, newest } = planner
  return { changes, blobs, uses, lossDelta, newest }
}

function keysOf(record: ShardRecord, lossy: boolean): string[] {
  switch (record.kind) {
    case 'blob':
    case 'file':
    case 'drop': {
      const name = blobName(record)
      return lossy ? [blobKey(name), lossKey(name)] : [blobKey(name)]
    }
    case 'reference': {
      const own = referenceKey(partitionName(record.partition), pathKey(record))
      return record.blob === undefined ? [own, newestKey] : [own, newestKey, blobKey(blobName(record.blob))]
    }
  }
}

class Planner {
  readonly changes: IndexChange[] = []
  readonly blobs = new Map<string, BlobLocation | undefined>()
  readonly uses = new Map<number, number>()
  /** Undefined: no newer reference than before. */
  newest: NewestReference | undefined
  readonly #known: ReadonlyMap<string, Buffer | undefined>
  lossDelta = 0
  readonly #losses = new Map<string, boolean>()
  readonly #references = new Map<string, ReferenceLocation>()

  constructor(known: ReadonlyMap<string, Buffer | undefined>) {
    this.#known = known
  }

  add(logged: LoggedRecord): void {
    const { record } = logged
    if (record.kind === 'reference') this.#reference(record, logged)
    else if (record.kind === 'drop') this.#drop(blobName(record), record)
    else this.#blob(blobName(record), record, logged)
  }

  #blob(
    name: string,
    record: ShardRecord & { kind: 'blob' | 'file' },
    { segment, payloadOffset, payload }: LoggedRecord,
  ) {
    const { bytes, time } = record
    const kind = record.kind === 'blob' ? 'inline' : 'file'
    const crc = record.kind === 'blob' ? record.crc : crc32(payload)
    const location = { kind, segment, offset: payloadOffset, bytes, crc, time } as const
    const before = this.#location(name)
    // A copy written again keeps its first time, and with it whether it was ever confirmed.
    if (before === undefined && record.confirmed !== true) {
      this.changes.push({ type: 'put', key: unconfirmedKey(time, name), value: Buffer.alloc(0) })
    }
    const kept = before === undefined ? location : { ...location, time: before.time }
    this.blobs.set(name, kept)
    this.#moveUse(before, kept)
    this.#setLoss(name, undefined)
    this.changes.push({ type: 'put', key: blobKey(name), value: encodeBlobLocation(kept) })
  }

  #drop(name: string, { before = Infinity, reason, time, why = 'corrupt' }: DropRecord): void {
    const location = this.#location(name)
    if (location !== undefined && location.segment >= before) return
    this.#setLoss(name, reason === 'corrupt' ? { time, why } : undefined)
    if (location === undefined) return
    this.blobs.set(name, undefined)
    this.#moveUse(location, undefined)
    this.changes.push({ type: 'del', key: blobKey(name) }, { type: 'del', key: unconfirmedKey(location.time, name) })
  }

  #setLoss(name: string, loss: Loss | undefined): void {
    const key = lossKey(name)
    const isKnown = this.#losses.get(name) ?? this.#known.get(key) !== undefined
    this.#losses.set(name, loss !== undefined)
    if (loss !== undefined) this.changes.push({ type: 'put', key, value: encodeLoss(loss) })
    else if (isKnown) this.changes.push({ type: 'del', key })
    this.lossDelta += Number(loss !== undefined) - Number(isKnown)
  }

  #reference(record: ReferenceRecord, { segment, frameOffset, frameBytes }: LoggedRecord): void {
    const key = referenceKey(partitionName(record.partition), pathKey(record))
    if (record.blob !== undefined) this.#confirm(blobName(record.blob))
    this.#note(record)
    const before = this.#referenceLocation(key)
    // Of equal versions the later one counts: a compaction moves records to the end of the log.
    if (before !== undefined && record.version < before.version) return
    const location = { segment, frameOffset, frameBytes, version: record.version }
    this.#references.set(key, location)
    this.#moveUse(before, location)
    this.changes.push({ type: 'put', key, value: encodeReferenceLocation(location) })
  }

  #note({ version, incarnation }: ReferenceRecord): void {
    const value = this.#known.get(newestKey)
    const before = this.newest ?? (value === undefined ? undefined : decodeNewest(value))
    if (before !== undefined && version <= before.version) return
    this.newest = { incarnation, version }
    this.changes.push({ type: 'put', key: newestKey, value: encodeNewest(this.newest) })
  }

  #confirm(name: string): void {
    const location = this.#location(name)
    if (location !== undefined) this.changes.push({ type: 'del', key: unconfirmedKey(location.time, name) })
  }

  #location(name: string): BlobLocation | undefined {
    if (this.blobs.has(name)) return this.blobs.get(name)
    const value = this.#known.get(blobKey(name))
    return value === undefined ? undefined : decodeBlobLocation(value)
  }

  #referenceLocation(key: string): ReferenceLocation | undefined {
    const value = this.#known.get(key)
    return this.#references.get(key) ?? (value === undefined ? undefined : decodeReferenceLocation(value))
  }

  #moveUse(from: BlobLocation | ReferenceLocation | undefined, to: BlobLocation | ReferenceLocation | undefined): void {
    if (from !== undefined) this.uses.set(from.segment, (this.uses.get(from.segment) ?? 0) - logBytesOf(from))
    if (to !== undefined) this.uses.set(to.segment, (this.uses.get(to.segment) ?? 0) + logBytesOf(to))
  }
}
