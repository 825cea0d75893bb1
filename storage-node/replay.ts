/**
 * What a start does with the log: scan it from the index's checkpoint (or from its beginning, when the index is new or does
 * not belong to this log), bring the index up to date, and say where writing goes on.
 *
 * A cut-off tail is the normal end of a crash: it was never acknowledged and is removed. Damage in the middle is disk rot:
 * it is reported, counted, left where it is, and the scan goes on with the next true entry (I35).
 */
import type { Logger } from 'pino'
import type { ShardRecord } from '../shared/record.ts'
import { planApply } from './apply-records.ts'
import type { ShardFiles } from './blob-file.ts'
import { blobName } from './blob-name.ts'
import type { ShardIndex } from './index.ts'
import { type LogPosition, segmentNumber, segmentPath } from './log.ts'
import { decodeSegmentHead, findNonce, type LoggedRecord, scanSegment, segmentHeadBytes } from './log-segment.ts'
import { readFully, type StoreFile, type StoreFs } from './store-fs.ts'

export interface ReplayDeps {
  readonly fs: StoreFs
  readonly files: ShardFiles
  readonly index: ShardIndex
  readonly log: Logger
}

export interface Replayed {
  /** Highest segment number in use; 0 if there is none. */
  readonly segment: number
  /** Where writing may go on in that segment; undefined: start a new one. */
  readonly resume: LogPosition | undefined
  readonly recordCount: number
  readonly damagedCount: number
}

const batchCount = 1000

/** Segment numbers of a log folder, ascending. */
export async function listSegments(fs: StoreFs, folder: string): Promise<number[]> {
  const numbers = (await fs.list(folder)).map(segmentNumber)
  return numbers.filter(number => number !== undefined).sort((a, b) => a - b)
}

/** Does this index belong to this log? If not, it must be rebuilt from nothing. */
export async function indexFits({ fs, files, index }: Omit<ReplayDeps, 'log'>): Promise<boolean> {
  const checkpoint = await index.checkpoint()
  // Never flushed: whatever it has came from this log, and the replay covers all of it.
  if (checkpoint === undefined) return true
  const path = segmentPath(files.log, checkpoint.segment)
  const size = await fs.size(path)
  if (size === undefined || size < checkpoint.offset) return false
  return withFile(fs, path, async file => {
    const head = Buffer.alloc(segmentHeadBytes)
    const nonce = decodeSegmentHead(head.subarray(0, await readFully(file, head, 0)), checkpoint.segment)
    // A damaged head is no reason to doubt the index; another nonce is.
    return nonce === undefined || nonce.equals(checkpoint.nonce)
  })
}

/** Brings the index up to the end of the log. */
export async function replayLog(deps: ReplayDeps): Promise<Replayed> {
  const { fs, files, index, log } = deps
  const checkpoint = await index.checkpoint()
  const segments = await listSegments(fs, files.log)
  const applier = new Applier(deps, await index.countLosses())
  let resume: LogPosition | undefined
  for (const [at, segment] of segments.entries()) {
    if (checkpoint !== undefined && segment < checkpoint.segment) continue
    const from = checkpoint?.segment === segment ? checkpoint : undefined
    resume = await replaySegment(applier, deps, { segment, from, isLast: at === segments.length - 1 })
  }
  await applier.flush()
  if (resume !== undefined) await index.setCheckpoint(resume)
  const { recordCount, damagedCount, missingCount } = applier
  if (missingCount > 0) log.warn({ count: missingCount }, 'the log names blob files that are not there')
  return { segment: segments.at(-1) ?? 0, resume, recordCount, damagedCount }
}

async function replaySegment(
  applier: Applier,
  { fs, files, log }: ReplayDeps,
  { segment, from, isLast }: { segment: number; from: LogPosition | undefined; isLast: boolean },
): Promise<LogPosition | undefined> {
  const path = segmentPath(files.log, segment)
  return withFile(fs, path, async file => {
    // What is found is served, and may be promised: a process that was killed may have written it without having flushed it.
    if (isLast) await file.datasync()
    const read = (target: Buffer, position: number) => readFully(file, target, position)
    const nonce = from?.nonce ?? (await findNonce(read, segment))
    if (nonce === undefined) {
      // A crash while it was being created leaves it without any entry.
      if ((await file.size()) <= segmentHeadBytes) return undefined
      applier.damagedCount += 1
      log.error({ segment: path }, 'log segment is unreadable')
      return undefined
    }
    for await (const event of scanSegment(read, { segment, nonce, start: from?.offset ?? segmentHeadBytes })) {
      if (event.kind === 'record') await applier.add(event.logged)
      else if (event.kind === 'damaged') {
        applier.damagedCount += 1
        log.error({ segment: path, offset: event.offset, resumedAt: event.resumedAt }, 'damaged record in the log')
      } else return endOf(event.tail, event.offset)
    }
    return undefined

    async function endOf(tail: 'clean' | 'truncated' | 'damaged', offset: number): Promise<LogPosition | undefined> {
      if (tail !== 'clean') log.warn({ segment: path, offset, tail }, 'log segment ends within a record')
      if (!isLast || tail === 'damaged') return undefined
      if (tail === 'truncated') await cutOff(fs, path, offset)
      return { segment, nonce: Buffer.from(nonce ?? []), offset }
    }
  })
}

async function cutOff(fs: StoreFs, path: string, bytes: number): Promise<void> {
  const file = await fs.open(path, 'update')
  try {
    await file.truncate(bytes)
    await file.datasync()
  } finally {
    await file.close()
  }
}

async function withFile<Result>(fs: StoreFs, path: string, use: (file: StoreFile) => Promise<Result>): Promise<Result> {
  const file = await fs.open(path, 'read')
  try {
    return await use(file)
  } finally {
    await file.close()
  }
}

/** Collects records and applies them in batches. */
class Applier {
  recordCount = 0
  damagedCount = 0
  missingCount = 0
  readonly #deps: ReplayDeps
  #batch: LoggedRecord[] = []
  #lossCount: number

  constructor(deps: ReplayDeps, lossCount: number) {
    this.#deps = deps
    this.#lossCount = lossCount
  }

  async add(logged: LoggedRecord): Promise<void> {
    this.recordCount += 1
    if (!(await this.#isWhole(logged.record))) {
      this.missingCount += 1
      return
    }
    // The scan reuses its buffer; of the payloads only the block CRC tables are needed.
    const payload = logged.record.kind === 'file' ? Buffer.from(logged.payload) : Buffer.alloc(0)
    this.#batch.push({ ...logged, payload })
    if (this.#batch.length >= batchCount) await this.flush()
  }

  async flush(): Promise<void> {
    const { index } = this.#deps
    const batch = this.#batch
    this.#batch = []
    const { changes, lossDelta } = await planApply(batch, keys => index.getMany(keys), this.#lossCount)
    this.#lossCount += lossDelta
    await index.write(changes)
  }

  /** A file that is gone was dropped later in the log, or lost: either way this shard does not hold it. */
  async #isWhole(record: ShardRecord): Promise<boolean> {
    if (record.kind !== 'file') return true
    const { fs, files } = this.#deps
    return (await fs.size(files.blob(blobName(record)))) === record.bytes
  }
}
