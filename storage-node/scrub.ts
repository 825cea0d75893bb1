/**
 * The scrub: reads everything a shard holds once in a period (14 days) and compares it with its checksums, so that rot is found while
 * other copies are good (I25). Partition by partition:
 *
 *   each blob           length, CRC of every block, sha256; bad, missing or unreadable: to the quarantine and the list of losses
 *   the folder          files without a record go to the trash
 *   each reference      its record; a damaged one is forgotten, and the comparison with the other owners brings it back
 *
 * It reads as slowly as the period allows, more slowly where clients use the disk, and remembers its place. What is in quarantine is deleted
 * after 7 days by both clocks, and only if this shard has a good copy again or nobody wants one (I26, I29).
 */
import { partitionCount, partitionName } from '../shared/partition.ts'
import type { ScrubAction, ScrubStatus } from '../shared/wire.ts'
import { parseQuarantineName } from './blob-file.ts'
import { isBlobFileName } from './blob-name.ts'
import { decodeBlobLocation } from './index.ts'
import { KeyLock } from './key-lock.ts'
import { forgetReference, readReference } from './lists.ts'
import { Pace } from './pace.ts'
import {
  readScrubState,
  type ScrubCounts,
  scrubIsDue,
  scrubRate,
  type ScrubState,
  writeScrubState,
} from './scrub-state.ts'
import type { Shard } from './shard.ts'
import { errnoOf, type StoreFs } from './store-fs.ts'
import { verifyBlob } from './verify-blob.ts'

export interface ScrubDeps {
  readonly fs: StoreFs
  readonly shard: Shard
}

type Pass = NonNullable<ScrubState['pass']>

const pageCount = 100
/** What looking at a small blob costs beside its bytes. */
const overheadBytes = 4096
const quarantineCountMax = 5_000

export class Scrub {
  readonly #deps: ScrubDeps
  readonly #pace: Pace
  readonly #jitter = Math.random()
  readonly #stopping = new AbortController()
  /** Ends the step under way, when a pass is paused. */
  #step = new AbortController()
  #state: ScrubState | undefined
  #openedCount = 0
  /** Monotonic. */
  #savedAt = 0
  #wanted = false
  readonly #reads = new KeyLock()
  readonly #writes = new KeyLock()

  constructor(deps: ScrubDeps) {
    this.#deps = deps
    this.#pace = new Pace(deps.shard.limits.scrubBytesPerSecMin)
  }

  /** Ends what is under way, soon. */
  stop(): void {
    this.#stopping.abort()
    this.#step.abort()
  }

  /** Remembers what it was about, so that `status` can tell. The shard is open. */
  async open(): Promise<void> {
    await this.#load()
  }

  get status(): ScrubStatus {
    const { pass, last, paused = false } = this.#state ?? {}
    const bytesPerSec = Math.round(this.#pace.bytesPerSec)
    return {
      shard: this.#deps.shard.id,
      state: paused ? 'paused' : pass === undefined ? 'waiting' : 'running',
      ...(pass === undefined
        ? {}
        : { pass: { ...countsOf(pass), done: pass.partition / partitionCount, bytesPerSec } }),
      ...(last === undefined ? {} : { last }),
      losses: this.#deps.shard.lossCount,
    }
  }

  /** `start` begins a pass now, or goes on with the one that was paused; `pause` holds it. Durable when it resolves. */
  async command(action: ScrubAction): Promise<void> {
    this.#deps.shard.health.checkReadable()
    await this.#load()
    if (action === 'pause') this.#step.abort()
    else this.#wanted = true
    await this.#save({ paused: action === 'pause' })
  }

  /** Goes on with the pass, or begins one that is due; resolves at its end. Rejects with what the disk says. */
  async run(): Promise<void> {
    const { shard } = this.#deps
    this.#step = new AbortController()
    if (this.#stopping.signal.aborted || !isUsable(shard)) return
    try {
      const state = await this.#load()
      if (state.paused) return
      const { clock, limits } = shard
      if (state.pass === undefined) {
        if (!this.#wanted && !scrubIsDue(state, clock.now(), limits.scrubPeriodMs, this.#jitter)) return this.#tick()
        const pass = { startedAt: clock.now(), blobs: 0, bytes: 0, bad: 0, leftovers: 0, partition: 0 }
        await this.#save({ pass })
      }
      this.#wanted = false
      while (await this.#nextPartition());
    } catch (error) {
      if (!this.#step.signal.aborted) throw error
    }
  }

  /** Deletes what has been in quarantine for long enough and has been replaced. */
  async expireQuarantine(): Promise<void> {
    const { shard } = this.#deps
    const { limits, clock } = shard
    if (!isUsable(shard)) return
    const before = await this.#load()
    const files = (await shard.files.listQuarantine()).slice(0, quarantineCountMax)
    const servedMs = this.#servedMs(before)
    const seen = Object.fromEntries(files.map(file => [file, before.quarantined[file] ?? servedMs]))
    for (const [file, since] of Object.entries(seen)) {
      const parsed = parseQuarantineName(file)
      const isOld = servedMs - since >= limits.quarantineHoldMs
      if (parsed === undefined || !isOld || clock.now() - parsed.time < limits.quarantineHoldMs) continue
      if (!(await this.#isReplaced(parsed.name))) continue
      await shard.files.removeQuarantined(file)
      shard.log.info({ file }, 'a corrupt copy that was replaced is deleted')
    }
    await this.#save({ quarantined: seen })
  }

  /** Is there a good copy here again, or does nobody want one any more? */
  async #isReplaced(name: string): Promise<boolean> {
    const { shard } = this.#deps
    if (await shard.isLost(name)) return false
    if ((await shard.locate(name)) === undefined) return !shard.isCorrupt(name)
    return (await verifyBlob(shard, name, this.#stopping.signal)).state === 'good'
  }

  /** False at the end of the pass, or when the disk does not want any more. */
  async #nextPartition(): Promise<boolean> {
    const { shard } = this.#deps
    const pass = this.#pass()
    if (pass === undefined || !isUsable(shard)) return false
    if (pass.partition >= partitionCount) {
      const { startedAt, blobs, bytes, bad, leftovers } = pass
      const last = { startedAt, blobs, bytes, bad, leftovers, finishedAt: shard.clock.now() }
      await this.#save({ pass: undefined, last })
      shard.log.info({ blobs, bytes, bad, leftovers }, 'scrub has read everything')
      return false
    }
    this.#setRate(pass)
    const name = partitionName(pass.partition)
    await this.#readBlobs(name)
    await this.#compareFolder(name)
    await this.#readReferences(name)
    this.#note({ partition: pass.partition + 1, after: undefined })
    await this.#tick()
    return true
  }

  #setRate({ startedAt, bytes }: Pass): void {
    const { health, limits, clock } = this.#deps.shard
    const used = health.bytesTotal - health.bytesFree
    const work = {
      bytesLeft: Math.max(0, used - bytes),
      elapsedMs: clock.now() - startedAt,
      periodMs: limits.scrubPeriodMs,
    }
    const { scrubBytesPerSecMin: bytesPerSecMin, scrubBytesPerSecMax: bytesPerSecMax } = limits
    this.#pace.bytesPerSec = scrubRate(work, { bytesPerSecMin, bytesPerSecMax })
  }

  async #readBlobs(partition: string): Promise<void> {
    const { shard } = this.#deps
    const prefix = `b/${partition}/`
    for (;;) {
      const after = this.#pass()?.after
      const start = after === undefined ? {} : { after: prefix + after }
      const page = await shard.lookUp(index => index.list({ prefix, ...start, limit: pageCount }))
      for (const [key, value] of page) {
        const bytes = decodeBlobLocation(value)?.bytes ?? 0
        const isBad = await this.#isBad(key.slice(2))
        const pass = this.#pass()
        if (pass === undefined) return
        const counts = { blobs: pass.blobs + 1, bytes: pass.bytes + bytes, bad: pass.bad + Number(isBad) }
        this.#note({ ...counts, after: key.slice(prefix.length) })
        await this.#tick()
      }
      if (page.length < pageCount) return
    }
  }

  /** A copy that the disk cannot read, though it reads others, is as bad as a corrupt one. */
  async #isBad(name: string): Promise<boolean> {
    const { shard } = this.#deps
    const { signal } = this.#step
    const location = await shard.locate(name)
    // Dropped since it was listed: nothing is wrong, unless it was corrupt.
    if (location === undefined) return shard.isCorrupt(name) || (await shard.isLost(name))
    try {
      const { state } = await verifyBlob(shard, name, signal, this.#turn)
      await this.#pace.spent(overheadBytes, signal)
      // Dropped since: nothing is wrong.
      return state === 'corrupt' || (state === 'missing' && (shard.isCorrupt(name) || (await shard.isLost(name))))
    } catch (error) {
      await this.#heedUnreadable(error)
      await shard.quarantine(name, location, 'unreadable')
      return true
    }
  }

  async #compareFolder(partition: string): Promise<void> {
    const { shard } = this.#deps
    for (const file of await shard.files.blobsIn(partition)) {
      this.#step.signal.throwIfAborted()
      if (!isBlobFileName(file) || !(await shard.discardLeftover(`${partition}/${file}`))) continue
      shard.log.warn({ blob: `${partition}/${file}` }, 'a file without a record moved to the trash')
      this.#note({ leftovers: (this.#pass()?.leftovers ?? 0) + 1 })
    }
  }

  async #readReferences(partition: string): Promise<void> {
    const { shard } = this.#deps
    const prefix = `r/${partition}/`
    for (let after: string | undefined = prefix; after !== undefined;) {
      const from: string = after
      const page = await shard.lookUp(index => index.list({ prefix, after: from, limit: pageCount }))
      for (const [key, value] of page) {
        const isDamaged = await this.#turn(overheadBytes, () => this.#isDamaged(value))
        if (isDamaged && (await forgetReference(shard, key, value))) {
          this.#note({ bad: (this.#pass()?.bad ?? 0) + 1 })
        }
      }
      after = page.length < pageCount ? undefined : page.at(-1)?.[0]
    }
  }

  async #isDamaged(reference: Buffer): Promise<boolean> {
    try {
      return (await readReference(this.#deps.shard, reference)) === undefined
    } catch (error) {
      await this.#heedUnreadable(error)
      return true
    }
  }

  /** Resolves if only this place of the disk cannot be read; what says more about the disk than about the copy is thrown again. */
  async #heedUnreadable(error: unknown): Promise<void> {
    const { shard } = this.#deps
    this.#step.signal.throwIfAborted()
    await shard.checkMarker()
    if (!isUsable(shard) || (errnoOf(error) !== 'EIO' && errnoOf(causeOf(error)) !== 'EIO')) throw error
  }

  readonly #turn = async <Result>(bytes: number, read: () => Promise<Result>): Promise<Result> => {
    const { signal } = this.#step
    const result = await this.#deps.shard.background.run(bytes, { signal }, read)
    await this.#pace.spent(bytes, signal)
    return result
  }

  #pass(): Pass | undefined {
    return this.#state?.pass
  }

  #note(changes: Partial<Omit<Pass, 'after'>> & { after?: string | undefined }): void {
    if (this.#state?.pass === undefined) return
    const { after, ...rest } = { ...this.#state.pass, ...changes }
    this.#state = { ...this.#state, pass: { ...rest, ...(after === undefined ? {} : { after }) } }
  }

  /** Of the disk that is there now. */
  async #load(): Promise<ScrubState> {
    if (this.#state !== undefined && this.#openedCount === this.#deps.shard.openedCount) return this.#state
    return this.#reads.run('', () => this.#read())
  }

  /** One at a time: what comes later must not put back what was saved since. */
  async #read(): Promise<ScrubState> {
    const { shard, fs } = this.#deps
    if (this.#state !== undefined && this.#openedCount === shard.openedCount) return this.#state
    const opened = shard.openedCount
    const state = await readScrubState(fs, shard.files.folder)
    this.#state = state
    this.#openedCount = opened
    this.#savedAt = shard.clock.monotonic()
    return state
  }

  #servedMs({ servedMs }: ScrubState): number {
    return servedMs + Math.max(0, this.#deps.shard.clock.monotonic() - this.#savedAt)
  }

  /** Saves now and then: a crash costs what was read since. */
  async #tick(): Promise<void> {
    const { clock, limits } = this.#deps.shard
    this.#step.signal.throwIfAborted()
    if (this.#state !== undefined && clock.monotonic() - this.#savedAt >= limits.scrubSaveMs) await this.#save({})
  }

  async #save(changes: Partial<ScrubState>): Promise<void> {
    const { fs, shard } = this.#deps
    const loaded = await this.#load()
    // What another one has saved in between stays.
    const state = this.#state ?? loaded
    this.#state = { ...state, ...changes, servedMs: this.#servedMs(state) }
    this.#savedAt = shard.clock.monotonic()
    await this.#writes.run('', () => writeScrubState(fs, shard.files.folder, this.#state ?? state))
  }
}

function isUsable({ health }: Shard): boolean {
  return health.state === 'ok' || health.state === 'full'
}

function causeOf(error: unknown): unknown {
  return error instanceof Error ? error.cause : undefined
}

const countsOf = ({ startedAt, blobs, bytes, bad, leftovers }: ScrubCounts): ScrubCounts => {
  return { startedAt, blobs, bytes, bad, leftovers }
}
