/**
 * A shard's log: segments of records, append-only. Records that wait while a flush is under way go out together with the next:
 * one writev and one fdatasync for all of them (group commit), so many small durable writes cost one disk flush.
 *
 * `append` resolves when the record is durable *and* applied to the index: whoever was answered finds what was written.
 * A failed fsync is never retried on the same data (the kernel may have marked the pages clean): the segment is closed for good,
 * the log refuses everything until `revive` gives it a fresh one.
 */
import { join } from 'node:path'
import { crashPoint } from './crash-point.ts'
import { HoldfastError } from '../shared/errors.ts'
import { encodeRecord, type ShardRecord } from '../shared/record.ts'
import { encodeSegmentHead, type LoggedRecord, newNonce, nonceBytes, segmentHeadBytes } from './log-segment.ts'
import { errnoOf, type StoreFile, type StoreFs } from './store-fs.ts'

/** An encoded record on its way into a log. */
export interface NewRecord {
  readonly record: ShardRecord
  readonly frame: Buffer
  readonly payloadOffset: number
  /** May use the reserve of a full disk, as references and drops always may. */
  readonly essential?: true
}

/** A place between two entries; the nonce tells whether a segment is still the one that was meant. */
export interface LogPosition {
  readonly segment: number
  readonly nonce: Buffer
  readonly offset: number
}

export interface LogDeps {
  readonly fs: StoreFs
  readonly folder: string
  /** Puts durable records into the index; called in log order, one call at a time. */
  readonly apply: (records: readonly LoggedRecord[], end: LogPosition) => Promise<void>
  /** The disk is full. True if room was made, so that what must never fail may be tried once more. */
  readonly makeRoom: () => Promise<boolean>
  /** Writing failed in another way; the log refuses appends until `revive`. */
  readonly onBroken: (error: unknown) => void
}

interface Waiting extends NewRecord {
  readonly resolve: (logged: LoggedRecord) => void
  readonly reject: (error: unknown) => void
}

const groupBytesMax = 16 * 1024 * 1024
const groupCountMax = 500

export class ShardLog {
  readonly #deps: LogDeps
  readonly #segmentBytesMax: number
  readonly #queueBytesMax: number
  #queue: Waiting[] = []
  #queueBytes = 0
  #running: Promise<void> | undefined
  #applying: Promise<void> = Promise.resolve()
  #file: StoreFile | undefined
  #nonce: Buffer = Buffer.alloc(nonceBytes)
  #segment: number
  #end = 0
  #state: 'open' | 'broken' | 'closed' = 'open'

  /** `segment` is the highest number in use. The first append creates the next one, unless `resume` opens that one. */
  constructor(deps: LogDeps, segment: number, limits: { segmentBytesMax: number; logQueueBytesMax: number }) {
    this.#deps = deps
    this.#segment = segment
    this.#segmentBytesMax = limits.segmentBytesMax
    this.#queueBytesMax = limits.logQueueBytesMax
  }

  /** Goes on writing at the end of the last segment. */
  async resume(nonce: Buffer, end: number): Promise<void> {
    this.#file = await this.#deps.fs.open(segmentPath(this.#deps.folder, this.#segment), 'update')
    this.#nonce = Buffer.from(nonce)
    this.#end = end
  }

  /**
   * Appends one record. Rejects with INSUFFICIENT_STORAGE (blobs before references and drops, which may use the reserve),
   * SHARD_READ_ONLY when the disk fails, OVERLOADED when too much waits. A crash before `revive` may bring back what was refused with
   * SHARD_READ_ONLY.
   */
  append(item: NewRecord): Promise<LoggedRecord> {
    if (this.#state !== 'open') return Promise.reject(readOnly())
    if (this.#queueBytes > this.#queueBytesMax) {
      return Promise.reject(new HoldfastError('OVERLOADED', 'too many records wait for the disk'))
    }
    return new Promise((resolve, reject) => {
      this.#queue.push({ ...item, resolve, reject })
      this.#queueBytes += item.frame.length
      this.#running ??= this.#run()
    })
  }

  /** The one that is written to, or was last: all before it are sealed. */
  get segment(): number {
    return this.#segment
  }

  /** What waits to be written. */
  get waitingBytes(): number {
    return this.#queueBytes
  }

  /**
   * Takes appends again, into a fresh segment. What was refused is gone for good by then: a record that came back after a power cut
   * would be read before all that was written since, and a drop among them take what is promised by now.
   */
  async revive(): Promise<void> {
    if (this.#state !== 'broken') return
    if (this.#file !== undefined) await this.#cutOff(this.#file)
    await this.#openSegment()
    this.#state = 'open'
  }

  /** Lets what waits become durable, then frees everything. */
  async close(): Promise<void> {
    this.#state = 'closed'
    while (this.#running !== undefined) await this.#running
    await this.#applying
    await this.#closeFile()
  }

  async #run(): Promise<void> {
    while (this.#queue.length > 0) {
      const logged = await this.#write(this.#takeGroup())
      // The index may lag one group behind the disk, not more, and takes the groups in their order.
      await this.#applying
      this.#applying = this.#applyGroup(logged)
    }
    this.#running = undefined
  }

  #takeGroup(): Waiting[] {
    let bytes = 0
    let count = 0
    for (const { frame } of this.#queue) {
      if (count === groupCountMax || (count > 0 && bytes + frame.length > groupBytesMax)) break
      bytes += frame.length
      count += 1
    }
    this.#queueBytes -= bytes
    return this.#queue.splice(0, count)
  }

  /** Makes the group durable; what cannot be is rejected here. Returns what is. Never rejects. */
  async #write(group: readonly Waiting[]): Promise<readonly [Waiting, LoggedRecord][]> {
    if (this.#state === 'broken') return refuse(group, readOnly())
    try {
      return await this.#writeOnce(group)
    } catch (error) {
      if (!isFull(error)) return refuse(group, this.#break(error))
      const essential = group.filter(isEssential)
      const others = group.filter(item => !isEssential(item))
      refuse(others, full(error))
      return (await this.#deps.makeRoom()) ? this.#writeAgain(essential) : refuse(essential, full(error))
    }
  }

  async #writeAgain(group: readonly Waiting[]): Promise<readonly [Waiting, LoggedRecord][]> {
    if (group.length === 0) return []
    try {
      return await this.#writeOnce(group)
    } catch (error) {
      return refuse(group, isFull(error) ? full(error) : this.#break(error))
    }
  }

  /** Rejects with a full disk's error only if nothing of the group stays in the segment. */
  async #writeOnce(group: readonly Waiting[]): Promise<readonly [Waiting, LoggedRecord][]> {
    if (this.#file === undefined || this.#end >= this.#segmentBytesMax) await this.#openSegment()
    const file = this.#file
    if (file === undefined) throw readOnly()
    const { buffers, logged, end } = this.#layOut(group)
    try {
      await file.write(buffers, this.#end)
    } catch (error) {
      // Durably: of what is refused no part shall come back.
      await this.#cutOff(file)
      throw error
    }
    crashPoint('append.afterWrite')
    try {
      await file.datasync()
    } catch (cause) {
      // Best effort, so that a start finds nothing that was refused; `revive` makes sure of it.
      await file.truncate(this.#end).catch(() => undefined)
      throw new SyncError(cause)
    }
    crashPoint('append.afterSync')
    this.#end = end
    return logged
  }

  /** Takes off, durably, what stands behind the last flushed record. */
  async #cutOff(file: StoreFile): Promise<void> {
    await file.truncate(this.#end)
    await file.datasync().catch((cause: unknown) => {
      throw new SyncError(cause)
    })
  }

  #layOut(group: readonly Waiting[]) {
    const buffers: Buffer[] = []
    const logged: [Waiting, LoggedRecord][] = []
    let offset = this.#end
    for (const item of group) {
      const { record, frame } = item
      const frameOffset = offset + nonceBytes
      const payload = frame.subarray(item.payloadOffset)
      const payloadOffset = frameOffset + item.payloadOffset
      buffers.push(this.#nonce, frame)
      const segment = this.#segment
      logged.push([item, { record, segment, frameOffset, frameBytes: frame.length, payloadOffset, payload }])
      offset = frameOffset + frame.length
    }
    return { buffers, logged, end: offset }
  }

  /** Never rejects. */
  async #applyGroup(logged: readonly [Waiting, LoggedRecord][]): Promise<void> {
    const last = logged[logged.length - 1]?.[1]
    if (last === undefined) return
    const end = { segment: last.segment, nonce: this.#nonce, offset: last.frameOffset + last.frameBytes }
    const records = logged.map(([, record]) => record)
    try {
      await this.#deps.apply(records, end)
    } catch (cause) {
      const error = new HoldfastError('SHARD_FAILED', 'the index of the shard failed', {}, { cause })
      for (const [item] of logged) item.reject(error)
      return
    }
    crashPoint('append.afterIndex')
    for (const [item, record] of logged) item.resolve(record)
  }

  async #openSegment(): Promise<void> {
    const { fs, folder } = this.#deps
    await this.#closeFile()
    const number = this.#segment + 1
    const path = segmentPath(folder, number)
    const nonce = newNonce()
    // Left by an attempt that failed half-way: nothing in it was ever acknowledged.
    await fs.unlink(path)
    const file = await fs.open(path, 'create')
    try {
      await file.write([encodeSegmentHead(number, nonce)], 0)
      await file.datasync()
      crashPoint('segment.afterCreate')
      await fs.syncFolder(folder)
    } catch (error) {
      await file.close()
      throw error
    }
    this.#file = file
    this.#nonce = nonce
    this.#segment = number
    this.#end = segmentHeadBytes
  }

  #break(cause: unknown): HoldfastError {
    this.#state = this.#state === 'closed' ? 'closed' : 'broken'
    this.#deps.onBroken(cause)
    return readOnly(cause)
  }

  async #closeFile(): Promise<void> {
    const file = this.#file
    this.#file = undefined
    // Everything acknowledged is flushed already.
    await file?.close().catch(() => undefined)
  }
}

/** A failed flush, told apart from a failed write: the data must not be written again. */
class SyncError extends Error {
  constructor(cause: unknown) {
    super('fsync failed', { cause })
  }
}

/** A record of our own making, encoded. */
export function newRecord(record: ShardRecord, payload?: Buffer): NewRecord {
  const frame = encodeRecord(record, payload)
  return { record, frame, payloadOffset: frame.length - (payload?.length ?? 0) }
}

export function segmentPath(folder: string, number: number): string {
  return join(folder, `${String(number).padStart(8, '0')}.log`)
}

/** The number in a segment's file name, or undefined for other files. */
export function segmentNumber(name: string): number | undefined {
  const match = /^(\d{8})\.log$/.exec(name)
  return match === null ? undefined : Number(match[1])
}

/** Kept going on a full disk: small, and a delete is what makes room. */
function isEssential({ record, essential }: NewRecord): boolean {
  return essential === true || record.kind === 'reference' || record.kind === 'drop'
}

export function isFull(error: unknown): boolean {
  const code = errnoOf(error)
  return code === 'ENOSPC' || code === 'EDQUOT'
}

function refuse(group: readonly Waiting[], error: HoldfastError): readonly [Waiting, LoggedRecord][] {
  for (const item of group) item.reject(error)
  return []
}

function full(cause: unknown): HoldfastError {
  return new HoldfastError('INSUFFICIENT_STORAGE', 'the disk is full', {}, { cause })
}

function readOnly(cause?: unknown): HoldfastError {
  return new HoldfastError('SHARD_READ_ONLY', 'the shard takes no writes after a disk error', {}, { cause })
}
