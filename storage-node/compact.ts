/**
 * Compaction of a shard's log. What was overwritten or dropped stays in the log until its segment goes; a sealed segment of which a
 * good part is dead is read, what is alive in it is appended to the end like anything else, and its file is removed:
 *
 *   survey -> copies, durable and in the index -> index flushed, past the segment -> nothing points into it -> hold -> unlink
 *
 * A crash between any two of these leaves a segment that is dead in part or whole, and copies that are what the log says anyway. A
 * replay that meets both the segment and the copies ends in the same index. What is kept:
 *
 *   blob, file   if the index points to this very record
 *   reference    if it is the newest of its path, a delete too: deleted paths must not come back, however long a replica was away (I16)
 *   drop         while an older segment exists, in which the dropped copy may stand; its meaning stays where it was (`before`);
 *                of a corrupt copy also while that copy is not back
 */
import { setImmediate } from 'node:timers/promises'
import type { DropRecord, ShardRecord } from '../shared/record.ts'
import { partitionName } from '../shared/partition.ts'
import { pathKey } from './apply-records.ts'
import { blobName } from './blob-name.ts'
import { crashPoint } from './crash-point.ts'
import {
  blobKey,
  decodeBlobLocation,
  decodeReferenceLocation,
  type IndexReader,
  referenceKey,
  unconfirmedKey,
} from './index.ts'
import { newRecord, segmentPath } from './log.ts'
import { findNonce, type LoggedRecord, nonceBytes, scanSegment, segmentHeadBytes } from './log-segment.ts'
import { Pace } from './pace.ts'
import { listSegments } from './replay.ts'
import { eachLocation } from './segment-use.ts'
import type { Shard } from './shard.ts'
import { readFully, type StoreFile, type StoreFs } from './store-fs.ts'

export interface CompactionDeps {
  readonly fs: StoreFs
  readonly shard: Shard
}

export interface SegmentFacts {
  readonly segment: number
  readonly bytes: number
  /** Of them, those that a compaction would have to keep. */
  readonly neededBytes: number
}

const batchBytes = 1024 * 1024
const batchCount = 64
/** A turn of the event loop is given to requests after this many records. */
const recordsPerTurn = 200
/** Copies wait while this much waits for the log: requests come first. */
const logBusyBytes = 256 * 1024
const busyPauses = 100
/** A segment with damage is looked at again after so long: by then the scrub has taken out of the index what is lost. */
const damagedHoldMs = 24 * 3_600_000
/** Room that must stay when copies are written without the reserve. */
const roomBytesMin = 1024 * 1024

/** The segment of which the largest part is dead, if that is worth the copying. */
export function chooseSegment(segments: readonly SegmentFacts[], deadRatioMin: number): SegmentFacts | undefined {
  const dead = ({ bytes, neededBytes }: SegmentFacts): number => (bytes - neededBytes) / bytes
  const worth = segments.filter(one => one.bytes > 0 && dead(one) >= deadRatioMin)
  return worth.sort((a, b) => dead(b) - dead(a))[0]
}

export class Compaction {
  /** Sealed bytes that nothing needs any more, as of the last look. */
  deadBytes = 0
  /** Bytes given back to the disk since the start. */
  freedBytes = 0
  readonly #deps: CompactionDeps
  readonly #pace: Pace
  readonly #aborter = new AbortController()
  /** What a survey found to be needed beyond what the index points to: drops, mostly. */
  readonly #alsoNeeded = new Map<number, number>()
  /** Segments nothing points into any more, and since when, monotonic. */
  readonly #emptied = new Map<number, number>()
  /** Segments that cannot go because of damage, and when that was found, monotonic. */
  readonly #damaged = new Map<number, number>()
  #openedCount = 0

  constructor(deps: CompactionDeps) {
    this.#deps = deps
    this.#pace = new Pace(deps.shard.limits.compactBytesPerSec)
  }

  /** Ends what is under way, soon. */
  stop(): void {
    this.#aborter.abort()
  }

  /** Compacts what is worth it and removes what was emptied. Rejects with what the disk says. */
  async run(): Promise<void> {
    const { shard } = this.#deps
    try {
      for (;;) {
        if (shard.health.state !== 'ok' && shard.health.state !== 'full') return
        this.#heedReopening()
        await this.#removeEmptied()
        const chosen = chooseSegment(await this.#look(), shard.limits.compactDeadRatioMin)
        if (chosen === undefined || !(await this.#compact(chosen.segment))) return
      }
    } catch (error) {
      if (!this.#aborter.signal.aborted) throw error
    }
  }

  /** It may be another disk now. */
  #heedReopening(): void {
    const { openedCount } = this.#deps.shard
    if (openedCount === this.#openedCount) return
    this.#openedCount = openedCount
    this.#emptied.clear()
    this.#alsoNeeded.clear()
    this.#damaged.clear()
  }

  async #look(): Promise<SegmentFacts[]> {
    const { fs, shard } = this.#deps
    await shard.use.count(this.#reader)
    const sealed = (await listSegments(fs, shard.files.log)).filter(number => number < shard.currentSegment)
    const segments: SegmentFacts[] = []
    for (const segment of sealed) {
      if (this.#emptied.has(segment) || this.#isDamaged(segment)) continue
      const bytes = (await fs.size(segmentPath(shard.files.log, segment))) ?? 0
      const neededBytes = segmentHeadBytes + shard.use.liveBytes(segment) + (this.#alsoNeeded.get(segment) ?? 0)
      segments.push({ segment, bytes, neededBytes: Math.min(bytes, neededBytes) })
    }
    this.deadBytes = segments.reduce((sum, { bytes, neededBytes }) => sum + bytes - neededBytes, 0)
    return segments
  }

  #isDamaged(segment: number): boolean {
    const since = this.#damaged.get(segment)
    return since !== undefined && this.#deps.shard.clock.monotonic() - since < damagedHoldMs
  }

  /** True if it was compacted, or is known better now, so that another look is worth while. */
  async #compact(segment: number): Promise<boolean> {
    const { shard, fs } = this.#deps
    const path = segmentPath(shard.files.log, segment)
    const bytes = (await fs.size(path)) ?? 0
    const survey = new Copier(this.#deps, segment, await this.#oldestOther(segment), 'count')
    if (!(await this.#scan(segment, survey))) {
      this.#damaged.set(segment, shard.clock.monotonic())
      return true
    }
    this.#alsoNeeded.set(segment, Math.max(0, survey.bytes - shard.use.liveBytes(segment)))
    if ((bytes - survey.bytes) / bytes < shard.limits.compactDeadRatioMin) return true
    const room = await this.#roomFor(survey.bytes, bytes)
    if (room === 'none') return false
    await shard.raiseFormat(2)
    const copier = new Copier(this.#deps, segment, await this.#oldestOther(segment), room)
    await this.#scan(segment, copier)
    crashPoint('compact.afterCopy')
    if (await this.#isPointedInto(segment)) {
      shard.log.error({ segment }, 'records of a log segment are damaged; it is kept until they are replaced')
      this.#damaged.set(segment, shard.clock.monotonic())
      return true
    }
    if (!(await shard.checkpointBeyond(segment))) return false
    crashPoint('compact.afterCheckpoint')
    this.#emptied.set(segment, shard.clock.monotonic())
    this.#alsoNeeded.delete(segment)
    shard.log.info({ segment, bytes, copiedBytes: copier.bytes }, 'log segment compacted')
    await this.#removeEmptied()
    return true
  }

  /** Hands every whole record to the copier. False if nothing in the segment can be read. */
  async #scan(segment: number, copier: Copier): Promise<boolean> {
    const { fs, shard } = this.#deps
    const { signal } = this.#aborter
    const file = await fs.open(segmentPath(shard.files.log, segment), 'read')
    try {
      const read = (target: Buffer, position: number) => this.#read(file, target, position)
      const nonce = await findNonce(read, segment)
      if (nonce === undefined) return false
      let count = 0
      let spentUpTo = 0
      for await (const event of scanSegment(read, { segment, nonce, start: segmentHeadBytes })) {
        if (event.kind !== 'record') continue
        const { frameOffset, frameBytes } = event.logged
        if (copier.add(event.logged)) await this.#settle(copier)
        count += 1
        if (count % recordsPerTurn === 0) await setImmediate(undefined, { signal })
        if (frameOffset + frameBytes - spentUpTo < batchBytes) continue
        await this.#pace.spent(frameOffset + frameBytes - spentUpTo, signal)
        spentUpTo = frameOffset + frameBytes
      }
      await this.#settle(copier)
      return true
    } finally {
      await file.close()
    }
  }

  async #settle(copier: Copier): Promise<void> {
    const { signal } = this.#aborter
    const { shard } = this.#deps
    for (let pause = 0; pause < busyPauses && shard.logWaitingBytes > logBusyBytes; pause++) {
      await this.#pace.spent(batchBytes / 16, signal)
    }
    const done = await shard.background.begin('usual', signal)
    let written = 0
    try {
      written = await copier.settle()
    } finally {
      done(written)
    }
    await this.#pace.spent(written, signal)
  }

  /** As much as there is, a piece at a time. */
  async #read(file: StoreFile, target: Buffer, position: number): Promise<number> {
    const { signal } = this.#aborter
    for (let at = 0; at < target.length; at += batchBytes) {
      const piece = target.subarray(at, at + batchBytes)
      const read = () => readFully(file, piece, position + at)
      const bytes = await this.#deps.shard.background.run(piece.length, { signal }, read)
      if (bytes < piece.length) return at + bytes
    }
    return target.length
  }

  /** The reserve is used only for what gives back more than it takes. */
  async #roomFor(neededBytes: number, bytes: number): Promise<'plain' | 'reserve' | 'none'> {
    const { health } = this.#deps.shard
    await health.measure()
    if (neededBytes + roomBytesMin <= health.bytesFree) return 'plain'
    const reserve = await health.reserveBytes()
    return neededBytes * 2 <= bytes && neededBytes + roomBytesMin <= reserve + health.bytesFree ? 'reserve' : 'none'
  }

  async #oldestOther(segment: number): Promise<number> {
    const { fs, shard } = this.#deps
    const others = (await listSegments(fs, shard.files.log)).filter(number => number !== segment)
    return others[0] ?? Infinity
  }

  /** The last word before a file goes, and no estimate: does anything in the index stand in this segment? */
  async #isPointedInto(segment: number): Promise<boolean> {
    let seen = 0
    for await (const { location } of eachLocation(this.#reader)) {
      if (location.segment === segment) return true
      if (++seen % 10_000 === 0) await setImmediate(undefined, { signal: this.#aborter.signal })
    }
    return false
  }

  /** Whoever looked a record up before it was moved has read it long before the hold is over. */
  async #removeEmptied(): Promise<void> {
    const { shard, fs } = this.#deps
    const before = shard.clock.monotonic() - shard.limits.compactHoldMs
    for (const [segment, since] of this.#emptied) {
      if (since > before) continue
      const path = segmentPath(shard.files.log, segment)
      const bytes = (await fs.size(path)) ?? 0
      try {
        await fs.unlink(path)
        crashPoint('compact.afterUnlink')
        // Before anything else goes: what another segment lost may only be explained by this one being gone.
        await fs.syncFolder(shard.files.log)
      } catch (error) {
        throw shard.writeError(error)
      }
      this.#emptied.delete(segment)
      // Drops were needed for the sake of older segments.
      this.#alsoNeeded.clear()
      shard.forgetSegment(segment)
      this.freedBytes += bytes
    }
  }

  readonly #reader: IndexReader = range => {
    this.#aborter.signal.throwIfAborted()
    return this.#deps.shard.lookUp(index => index.list(range))
  }
}

type Copied = { readonly record: ShardRecord; readonly frameOffset: number; readonly payloadOffset: number } & {
  readonly payload: Buffer
  readonly bytes: number
}

/** Finds out which records of one segment are needed, and counts or copies them, some at a time. */
class Copier {
  /** Of what was needed, in the log. */
  bytes = 0
  readonly #deps: CompactionDeps
  readonly #segment: number
  readonly #oldestOther: number
  readonly #mode: 'count' | 'plain' | 'reserve'
  #batch: Copied[] = []
  #batchBytes = 0

  constructor(deps: CompactionDeps, segment: number, oldestOther: number, mode: 'count' | 'plain' | 'reserve') {
    this.#deps = deps
    this.#segment = segment
    this.#oldestOther = oldestOther
    this.#mode = mode
  }

  /** True: `settle` before the next one. */
  add({ record, frameOffset, frameBytes, payloadOffset, payload }: LoggedRecord): boolean {
    if (record.kind === 'drop' && record.reason !== 'corrupt' && !this.#mayHit(record)) return false
    const bytes = frameBytes + nonceBytes
    // The scan reuses its buffer.
    const kept = this.#mode === 'count' ? Buffer.alloc(0) : Buffer.from(payload)
    this.#batch.push({ record, frameOffset, payloadOffset, payload: kept, bytes })
    this.#batchBytes += kept.length
    return this.#batch.length >= batchCount || this.#batchBytes >= batchBytes
  }

  /** Resolves, when they are durable, with how many bytes were written. */
  async settle(): Promise<number> {
    const batch = this.#batch
    this.#batch = []
    this.#batchBytes = 0
    const { shard } = this.#deps
    const values = await shard.lookUp(index => index.getMany(batch.map(({ record }) => indexKeyOf(record))))
    const losses = new Set<Copied>()
    for (const item of batch) if (await this.#isLoss(item)) losses.add(item)
    const needed = batch.filter((item, at) => this.#isNeeded(item, values[at], losses.has(item)))
    for (const { bytes } of needed) this.bytes += bytes
    if (this.#mode === 'count') return 0
    await Promise.all(needed.map(item => this.#copy(item)))
    return needed.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /** May an older segment hold a copy that this drop is about? */
  #mayHit({ before = this.#segment }: DropRecord): boolean {
    return this.#oldestOther < before
  }

  /** Does the index know of a lost copy by this drop? */
  async #isLoss({ record }: Copied): Promise<boolean> {
    return record.kind === 'drop' && record.reason === 'corrupt' && this.#deps.shard.isLost(blobName(record))
  }

  #isNeeded({ record, frameOffset, payloadOffset }: Copied, value: Buffer | undefined, isLoss = false): boolean {
    // Of a copy that is there the drop is over: whatever stands before it was written again since.
    if (record.kind === 'drop') return value === undefined && (isLoss || this.#mayHit(record))
    if (value === undefined) return false
    const location = record.kind === 'reference' ? decodeReferenceLocation(value) : decodeBlobLocation(value)
    if (location?.segment !== this.#segment) return false
    return 'frameOffset' in location ? location.frameOffset === frameOffset : location.offset === payloadOffset
  }

  async #copy(item: Copied): Promise<void> {
    const { shard } = this.#deps
    const { record } = item
    if (record.kind === 'reference') return this.#append(record)
    const name = blobName(record)
    if (record.kind === 'drop') {
      return shard.exclusively(name, async () => {
        // A loss that is over, perhaps since a moment ago, must not come back.
        const isOver = record.reason === 'corrupt' && !(await shard.isLost(name))
        const reason = isOver ? 'deleted' : record.reason
        await this.#append({ ...record, reason, before: record.before ?? this.#segment })
      })
    }
    // Nobody drops it while it is being moved: the copy behind the drop would bring it back.
    await shard.exclusively(name, async () => {
      const value = await shard.lookUp(index => index.get(blobKey(name)))
      if (!this.#isNeeded(item, value) || value === undefined || shard.isCorrupt(name)) return
      const time = decodeBlobLocation(value)?.time ?? record.time
      const unconfirmed = await shard.lookUp(index => index.get(unconfirmedKey(time, name)))
      // The references that confirmed it may be gone from the log before it is.
      await this.#append({ ...record, time, ...(unconfirmed === undefined ? { confirmed: true } : {}) }, item.payload)
    })
  }

  #append(record: ShardRecord, payload?: Buffer): Promise<void> {
    const item = newRecord(record, payload)
    return this.#deps.shard.appendCopy(this.#mode === 'reserve' ? { ...item, essential: true } : item)
  }
}

/** Where the index tells of what the record is about. */
function indexKeyOf(record: ShardRecord): string {
  if (record.kind !== 'reference') return blobKey(blobName(record))
  return referenceKey(partitionName(record.partition), pathKey(record))
}
