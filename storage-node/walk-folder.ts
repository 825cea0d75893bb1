/**
 * What a shard knows of a folder, while PostgreSQL cannot be asked. The index has paths by partition, so the walk looks at the folder in
 * each partition, and keeps the first `limit` children of all of them: with each partition the end of the page moves forward, so that of a
 * folder of any size little more than a page is looked at (`limit` times the logarithm of pages in it), and one place in each partition.
 *
 * The index does not say which references are deletes; the log does. Of a folder in the folder one live reference is looked for, and what
 * else lies in it is jumped over. The proxy finds out whether that one is the newest of its path.
 */
import { atMost } from '../shared/at-most.ts'
import { HoldfastError } from '../shared/errors.ts'
import { behind, childOf, inKeyOrder } from '../shared/key-order.ts'
import { parsePartition, partitionCount, partitionName } from '../shared/partition.ts'
import type { ReferenceRecord } from '../shared/record.ts'
import type { FolderAnswer, FolderReference, FolderRequest } from '../shared/wire.ts'
import { type ListRange, referenceKey } from './index.ts'
import { forgetReference, recoveringError, readEntry } from './lists.ts'
import type { Shard } from './shard.ts'

export interface WalkDeps {
  /** Entries of the index in the order of their keys. */
  readonly list: (range: ListRange) => Promise<[string, Buffer][]>
  /** The record of an entry; undefined if it is gone meanwhile. */
  readonly read: (indexKey: string, value: Buffer) => Promise<ReferenceRecord | undefined>
}

export interface WalkLimits {
  /** Children of an answer. */
  readonly childrenMax: number
  /** Entries of the index; a page gets shorter rather than the walk longer. */
  readonly entriesMax: number
  /** Records read to find a live one in each folder; those beyond it are undecided. */
  readonly recordsMax: number
  /** Of the keys in an answer, which may be 8 KiB each. */
  readonly keyBytesMax: number
}

export const walkLimits: WalkLimits = {
  childrenMax: 3_000,
  entriesMax: 200_000,
  recordsMax: 10_000,
  keyBytesMax: 1024 * 1024,
}
/** Of one shard; each takes a third of a second of CPU. */
const walksAtOnceMax = 8
/** Entries asked for at once: more, as long as not more than this many are passed over for each that matters; else it is cheaper to ask again. */
const countMin = 16
const countMax = 1024
const passedMax = 16
/** In this many steps it is looked whether the work is in proportion to the partitions that are done. */
const stepCount = 32
const recordsAtOnce = 16

/** Rejects with SHARD_FAILED, SHARD_RECOVERING, OVERLOADED, RECORD_DAMAGED (ask again: it is forgotten), or the reason of the signal. */
export async function walkFolder(shard: Shard, request: FolderRequest, signal: AbortSignal): Promise<FolderAnswer> {
  shard.health.checkReadable()
  if (shard.identity.recovering !== undefined) throw recoveringError()
  if (shard.walkCount >= walksAtOnceMax) throw new HoldfastError('OVERLOADED', 'too many folders are being listed')
  shard.walkCount += 1
  try {
    const deps: WalkDeps = {
      list: range => shard.lookUp(index => index.list(range)),
      read: (indexKey, value) => readOrForget(shard, indexKey, value),
    }
    return await new FolderWalk(deps, request).run(signal)
  } finally {
    shard.walkCount -= 1
  }
}

async function readOrForget(shard: Shard, indexKey: string, value: Buffer): Promise<ReferenceRecord | undefined> {
  const record = await readEntry(shard, indexKey, value)
  if (record !== undefined) return record
  const now = await shard.lookUp(index => index.get(indexKey))
  if (now === undefined) return undefined
  if (!(await forgetReference(shard, indexKey, now))) return readOrForget(shard, indexKey, now)
  throw new HoldfastError('RECORD_DAMAGED', 'the record of a reference in this folder is damaged on this shard')
}

/** An artifact's entry, or what is known of a folder. */
type Child = readonly [indexKey: string, value: Buffer] | ReferenceRecord | 'undecided'

export class FolderWalk {
  readonly #deps: WalkDeps
  readonly #request: FolderRequest
  readonly #limits: WalkLimits
  /** By their keys. */
  readonly #children = new Map<string, Child>()
  #limit: number
  /** Children from here on are left to the next page. */
  #end: string | undefined
  #entries = 0
  #records = 0
  #nextStep = 0

  constructor(deps: WalkDeps, request: FolderRequest, limits = walkLimits) {
    this.#deps = deps
    this.#request = request
    this.#limits = limits
    this.#limit = Math.min(request.limit, limits.childrenMax)
  }

  async run(signal: AbortSignal): Promise<FolderAnswer> {
    let limit = countMin
    for (let from = this.#startOf(0); from !== undefined;) {
      signal.throwIfAborted()
      const found = await this.#deps.list({ prefix: 'r/', from, limit })
      let looked = 0
      for (const entry of found) {
        if (from === undefined || inKeyOrder(entry[0], from) < 0) continue
        looked += 1
        from = await this.#look(entry)
      }
      if (found.length < limit) break
      limit = Math.min(Math.max(looked * passedMax >= limit ? limit * 2 : limit / 2, countMin), countMax)
      this.#heed(from, found.length)
    }
    return this.#finish()
  }

  /** Where the folder begins, or the page of it, in this partition. */
  #startOf(partition: number): string | undefined {
    return partition < partitionCount ? referenceKey(partitionName(partition), this.#request.start) : undefined
  }

  /** Resolves with the first key of the index behind this entry that matters; undefined: none does. */
  async #look(entry: readonly [string, Buffer]): Promise<string | undefined> {
    const { folder, start, deep } = this.#request
    const partition = parsePartition(entry[0].slice(2, 5)) ?? partitionCount
    const key = entry[0].slice(6)
    if (inKeyOrder(key, start) < 0) return this.#startOf(partition)
    if (!key.startsWith(folder)) return this.#startOf(partition + 1)
    const child = deep === true ? key : childOf(folder, key)
    if (this.#end !== undefined && inKeyOrder(child, this.#end) >= 0) return this.#startOf(partition + 1)
    await this.#meet(child, key, entry)
    return referenceKey(partitionName(partition), behind(this.#children.has(child) ? child : key))
  }

  async #meet(child: string, key: string, entry: readonly [string, Buffer]): Promise<void> {
    if (child === key) this.#children.set(child, entry)
    else if (!this.#children.has(child)) {
      if (this.#records >= this.#limits.recordsMax) this.#children.set(child, 'undecided')
      else {
        this.#records += 1
        const record = await this.#deps.read(...entry)
        if (record?.op === 'put') this.#children.set(child, record)
      }
    }
    if (this.#children.size >= 2 * this.#limit) this.#cut(this.#limit)
  }

  /** Where folders are so full that a page would take too much, it gets shorter. */
  #heed(from: string | undefined, count: number): void {
    this.#entries += count
    const { entriesMax } = this.#limits
    const partition = from === undefined ? partitionCount : (parsePartition(from.slice(2, 5)) ?? 0)
    const share = Math.max(partition / partitionCount, 1 / stepCount)
    if (this.#entries < this.#nextStep || this.#entries < entriesMax * share) return
    this.#nextStep = this.#entries + entriesMax / stepCount
    this.#limit = Math.max(1, Math.floor(this.#limit / 2))
    this.#cut(this.#limit)
  }

  #cut(count: number): void {
    if (this.#children.size <= count) return
    const keys = [...this.#children.keys()].sort(inKeyOrder)
    this.#end = behind(keys[count - 1] ?? this.#request.start)
    for (const key of keys.slice(count)) this.#children.delete(key)
  }

  async #finish(): Promise<FolderAnswer> {
    this.#cut(this.#limit)
    let bytes = 0
    const keys = [...this.#children.keys()].sort(inKeyOrder)
    const tooMany = keys.findIndex(key => (bytes += Buffer.byteLength(key)) > this.#limits.keyBytesMax)
    if (tooMany > 0) this.#cut(tooMany)
    const undecided: string[] = []
    const references = await atMost(recordsAtOnce, [...this.#children], async ([key, child]) => {
      if (child !== 'undecided') return 'kind' in child ? child : this.#deps.read(...child)
      undecided.push(key)
      return undefined
    })
    return {
      references: references.flatMap(record => (record === undefined ? [] : [folderReferenceOf(record)])),
      undecided,
      ...(this.#end === undefined ? {} : { next: this.#end }),
    }
  }
}

function folderReferenceOf({ repository, path, version, time, blob }: ReferenceRecord): FolderReference {
  const key = `${repository}/${path}`
  return { key, version, time, ...(blob === undefined ? {} : { blob: { digest: blob.digest, bytes: blob.bytes } }) }
}
