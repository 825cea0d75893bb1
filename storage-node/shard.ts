/**
 * One disk: its log, index, blob files and health. Every method that writes resolves only when the write is durable and
 * visible. Names of blobs are `<ppp>/<digest>.<generation>`, checked where they come in.
 */
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { HoldfastError } from '../shared/errors.ts'
import type { ShardId } from '../shared/ids.ts'
import type { BlobKey, ShardStatus } from '../shared/wire.ts'
import { planApply } from './apply-records.ts'
import { Background } from './background.ts'
import { ShardFiles } from './blob-file.ts'
import { blobName } from './blob-name.ts'
import type { ShardConfig, StorageNodeLimits } from './config.ts'
import { CorruptCopies } from './corrupt-copies.ts'
import { crashPoint } from './crash-point.ts'
import { DiskUse } from './disk-use.ts'
import { EntryAges } from './entry-ages.ts'
import { type BlobLocation, blobKey, decodeBlobLocation, lossKey, type NewestReference, ShardIndex } from './index.ts'
import { KeyLock } from './key-lock.ts'
import { LogMarks } from './log-marks.ts'
import { isFull, type LogPosition, type NewRecord, newRecord, segmentPath, ShardLog } from './log.ts'
import type { LoggedRecord } from './log-segment.ts'
import { OpenFiles } from './open-files.ts'
import { indexFits, replayLog } from './replay.ts'
import { SegmentUse } from './segment-use.ts'
import { ShardHealth } from './shard-health.ts'
import { ShardIdentity } from './shard-identity.ts'
import type { ShardFormat, ShardMarker } from './shard-marker.ts'
import { errnoOf, makeFolders, type StoreFs } from './store-fs.ts'
import { Summaries } from './summaries.ts'
import { trashSlice } from './trash.ts'

export interface Clock {
  /** Wall clock, ms. May jump. */
  now(): number
  /** Never jumps, ms. */
  monotonic(): number
}

export interface ShardDeps {
  readonly fs: StoreFs
  readonly log: Logger
  readonly clock: Clock
  readonly limits: StorageNodeLimits
  /** Clients on all disks of the node, and how busy the process is, 0 to 1. Without it the shard is the only one, on a processor of its own. */
  readonly node?: { readonly clients: DiskUse; readonly load: () => number }
}

/** About 200 bytes each. A collector tells a shard thousands at once, and a pull is over within minutes. */
const deletedNamesMax = 10_000

export class Shard {
  readonly id: ShardId
  readonly weight: number
  readonly health: ShardHealth
  readonly identity: ShardIdentity
  readonly files: ShardFiles
  readonly openFiles: OpenFiles
  readonly use = new SegmentUse()
  /** What clients do on this disk, and what is left for work in the background. */
  readonly clients: DiskUse
  readonly background: Background
  /** How often it was opened: what was learnt of the disk before may be true no more. */
  openedCount = 0
  /** Copies that were found corrupt or missing, and are not back. */
  lossCount = 0
  readonly summaries = new Summaries()
  readonly entryAges = new EntryAges()
  readonly logMarks = new LogMarks()
  /** Folders that are being listed. */
  walkCount = 0
  /** Damaged records met in the log and corrupt copies met by reads, since the start. */
  damagedCount = 0
  /**
   * Copies that a collector of garbage had dropped lately: one that is just being pulled here does not bring them back. Their generation
   * is fenced off, so nobody else writes it.
   */
  readonly deleted = new LRUCache<string, true>({ max: deletedNamesMax })
  readonly #deps: ShardDeps
  readonly #locations: LRUCache<string, BlobLocation>
  readonly #corrupt: CorruptCopies
  /** Changes of the index, one at a time. */
  readonly #changes = new KeyLock()
  readonly #names = new KeyLock()
  /** As many as the disk has segments of 256 MiB. */
  readonly #segmentPaths = new Map<number, string>()
  #index: ShardIndex | undefined
  #log: ShardLog | undefined
  #checkpoint: LogPosition | undefined
  #checkpointBytes = 0
  #rebuildIndex = false
  #newest: NewestReference | undefined
  #appliedSegment = 0
  /** Grows with every change of the index: a lookup that began before one is not cached. */
  #changeCount = 0

  constructor(deps: ShardDeps, config: ShardConfig) {
    this.#deps = { ...deps, log: deps.log.child({ shard: config.id }) }
    this.id = config.id
    this.weight = config.weight
    this.identity = new ShardIdentity(deps.fs, config.folder)
    this.files = new ShardFiles(deps.fs, config.folder)
    this.health = new ShardHealth(deps.fs, config.folder, deps.limits)
    this.openFiles = new OpenFiles(deps.fs, deps.limits.openFileCountMax)
    const { limits, node } = deps
    this.clients = new DiskUse(node?.clients)
    const situation = () => {
      const disk = this.clients.use
      return { disk, node: node?.clients.use ?? disk, load: node?.load() ?? 0 }
    }
    this.background = new Background(situation, limits)
    this.#corrupt = new CorruptCopies(this)
    this.#locations = new LRUCache({ max: deps.limits.locationCountMax })
  }

  get log(): Logger {
    return this.#deps.log
  }

  get clock(): Clock {
    return this.#deps.clock
  }

  get limits(): StorageNodeLimits {
    return this.#deps.limits
  }

  get status(): ShardStatus {
    const { state, reason, bytesTotal, bytesFree, bytesFreeMin } = this.health
    const { disk, recovering } = this.identity
    return {
      id: this.id,
      weight: this.weight,
      state,
      ...(reason === undefined ? {} : { reason }),
      ...(disk === undefined ? {} : { disk }),
      ...(recovering === undefined ? {} : { recovering }),
      bytesTotal,
      bytesFree,
      bytesFreeMin,
      ...(this.#newest === undefined ? {} : { newest: this.#newest }),
      background: { share: this.background.share(), bytes: this.background.bytes },
    }
  }

  /**
   * Opens the shard; `mayCreate` lets an empty folder become one. Resolves also when that fails: the state is then 'failed'
   * and says why. DATA_IN_USE is thrown: two processes on one disk are a mistake of the operator, not a fault of the disk.
   */
  async start(marker: ShardMarker, mayCreate: boolean): Promise<void> {
    try {
      await this.#open(marker, mayCreate)
      this.health.recovered()
    } catch (error) {
      await this.#release()
      if (error instanceof HoldfastError && error.code === 'DATA_IN_USE') throw error
      this.health.fail(error instanceof Error ? error.message : 'cannot be opened')
      this.log.error({ err: error }, 'shard cannot be opened')
    }
  }

  /** How much room its disk has, of a shard that is not open yet. Rejects with the disk's error. */
  async measureFolder(): Promise<void> {
    await makeFolders(this.#deps.fs, this.files.folder)
    await this.health.measure()
  }

  /** Lets writes in flight become durable, remembers how far the index goes, frees everything. */
  async close(): Promise<void> {
    await this.#corrupt.allSettled()
    await this.#log?.close()
    try {
      await this.checkpoint()
    } finally {
      await this.#release()
      this.health.fail('closed')
    }
  }

  /** Closes and opens the shard again: the way out of 'failed'. */
  async reopen(): Promise<void> {
    const marker = this.identity.expected
    if (marker === undefined) return
    await this.#log?.close()
    await this.#release()
    await this.start(marker, false)
  }

  /** The location if it is in memory: the hot path of reads. */
  cachedLocation(name: string): BlobLocation | undefined {
    return this.#corrupt.has(name) ? undefined : this.#locations.get(name)
  }

  /** Where the blob is, or undefined if this shard does not have it. */
  async locate(name: string): Promise<BlobLocation | undefined> {
    this.health.checkReadable()
    if (this.#corrupt.has(name)) return undefined
    const cached = this.#locations.get(name)
    if (cached !== undefined) return cached
    const changeCount = this.#changeCount
    const value = await this.lookUp(index => index.get(blobKey(name)))
    const location = value === undefined ? undefined : decodeBlobLocation(value)
    if (this.#corrupt.has(name)) return undefined
    if (location !== undefined && changeCount === this.#changeCount) this.#locations.set(name, location)
    return location
  }

  /** The same for many, with one question to the index; nothing of it is kept in memory. */
  async locateMany(names: readonly string[]): Promise<readonly (BlobLocation | undefined)[]> {
    this.health.checkReadable()
    const values = await this.lookUp(index => index.getMany(names.map(blobKey)))
    return names.map((name, at) => {
      const value = values[at]
      return value === undefined || this.#corrupt.has(name) ? undefined : decodeBlobLocation(value)
    })
  }

  /** Was this copy found corrupt, though the index may still have it? */
  isCorrupt(name: string): boolean {
    return this.#corrupt.has(name)
  }

  /** The file that holds a location's payload. */
  segmentPath(segment: number): string {
    let path = this.#segmentPaths.get(segment)
    if (path === undefined) {
      path = segmentPath(this.files.log, segment)
      this.#segmentPaths.set(segment, path)
    }
    return path
  }

  /** The log segment of which something is in the index already: all before it are sealed, and the index has all of them. */
  get currentSegment(): number {
    return this.#appliedSegment
  }

  /** What waits to be written to the log. */
  get logWaitingBytes(): number {
    return this.#log?.waitingBytes ?? 0
  }

  /** The file of this segment is gone. */
  forgetSegment(segment: number): void {
    this.openFiles.forget(this.segmentPath(segment))
    this.#segmentPaths.delete(segment)
    this.use.forget(segment)
  }

  /** While it runs nobody makes, moves or drops this blob's copy. */
  exclusively<Result>(name: string, action: () => Promise<Result>): Promise<Result> {
    return this.#names.run(name, action)
  }

  /**
   * Notes, durably, that from now on the shard may be written as only `format` allows: releases that do not know it refuse the shard.
   * Rejects like `append`.
   */
  raiseFormat(format: ShardFormat): Promise<void> {
    return this.#changeMarker(() => this.identity.raiseFormat(format))
  }

  /** A reference is gone that was acknowledged: from now on nothing follows from what is not here. */
  async lostReference(): Promise<void> {
    // Where it cannot be noted it is known as long as the shard is open.
    await this.identity.lostSomething().catch((error: unknown) => {
      this.log.error({ err: error }, 'a loss could not be noted')
    })
  }

  /** Notes, durably, that it has all that its partitions should have. Rejects with CONFLICT (it lost something since), or like `append`. */
  async recovered(recovering: string): Promise<void> {
    if (this.identity.recovering === undefined) return
    await this.#changeMarker(() => this.identity.recovered(recovering))
    this.log.info('the shard has all that it should have')
  }

  /** On a full disk with the help of its reserve. */
  async #changeMarker(change: () => Promise<void>): Promise<void> {
    this.health.checkWritable('record')
    try {
      await change().catch(async (error: unknown) => {
        if (!isFull(error) || !(await this.health.releaseReserve())) throw error
        await change()
      })
    } catch (error) {
      throw this.writeError(error)
    }
  }

  /** Appends a record a second time, for a compaction: also to a full disk, since the first one goes. Rejects like `append`. */
  async appendCopy(item: NewRecord): Promise<void> {
    this.health.checkWritable('record')
    if (this.#log === undefined) throw new HoldfastError('SHARD_FAILED', 'the shard is closed')
    await this.#log.append(item)
  }

  /** Flushes the index. True if a start would replay nothing of this segment, nor of what stands before it. */
  async checkpointBeyond(segment: number): Promise<boolean> {
    await this.checkpoint()
    const position = await this.lookUp(index => index.checkpoint())
    return position !== undefined && position.segment > segment
  }

  /** Appends an encoded record. Rejects with SHARD_FAILED, SHARD_READ_ONLY, INSUFFICIENT_STORAGE or OVERLOADED. */
  async append(item: NewRecord): Promise<void> {
    const { record, frame } = item
    // A good copy that came before the drop of the corrupt one would leave with it.
    if (record.kind === 'blob') await this.#corrupt.settled(blobName(record))
    this.health.checkWritable(record.kind === 'blob' || record.kind === 'file' ? 'blob' : 'record', frame.length)
    if (this.#log === undefined) throw new HoldfastError('SHARD_FAILED', 'the shard is closed')
    await this.#log.append(item)
  }

  /**
   * A flushed temporary file becomes a blob: rename, folder, record, each durable before the next (I23). Resolves at once,
   * dropping the temporary file, when the blob is already held.
   */
  async commitFile(
    upload: string,
    blob: BlobKey & { readonly bytes: number; readonly blockCrcs: Buffer; readonly confirmed?: true },
  ): Promise<void> {
    const name = blobName(blob)
    await this.#names.run(name, async () => {
      if ((await this.locate(name)) !== undefined) return this.#deps.fs.unlink(this.files.temporary(upload))
      this.health.checkWritable('blob')
      try {
        await this.files.commit(upload, name)
      } catch (error) {
        throw this.writeError(error)
      }
      this.openFiles.forget(this.files.blob(name))
      const { partition, digest, generation, bytes, blockCrcs, confirmed } = blob
      const time = this.clock.now()
      const mark = confirmed === undefined ? {} : { confirmed }
      const record = newRecord({ kind: 'file', partition, digest, generation, bytes, time, ...mark }, blockCrcs)
      await this.append(record).catch(async (error: unknown) => {
        // Nobody would look for it before the next scrub, and the disk may be full.
        await this.#deps.fs.unlink(this.files.blob(name)).catch(() => {}) // a disk that fails: a scrub finds it
        throw error
      })
      crashPoint('commit.afterRecord')
    })
  }

  /** The blob leaves: first its record, durable, then its file goes to the trash. */
  async drop(blob: BlobKey, reason: 'deleted' | 'moved'): Promise<'dropped' | 'missing'> {
    const name = blobName(blob)
    return this.#names.run(name, async () => {
      // Before anything else: a pull that is about to finish looks here last.
      if (reason === 'deleted') this.deleted.set(name, true)
      const location = await this.locate(name)
      const { partition, digest, generation } = blob
      if (location === undefined && !this.#corrupt.has(name) && !(await this.isLost(name))) return 'missing'
      // Of a lost copy too: whoever wants it gone wants no other brought in its place.
      await this.append(newRecord({ kind: 'drop', partition, digest, generation, reason, time: this.clock.now() }))
      crashPoint('drop.afterRecord')
      this.openFiles.forget(this.files.blob(name))
      if (location?.kind === 'file') await this.#discard(name)
      return location === undefined ? 'missing' : 'dropped'
    })
  }

  /** Moves a blob's file to the trash if the index does not know it. True if it was so. */
  async discardLeftover(name: string): Promise<boolean> {
    if ((await this.locate(name)) !== undefined) return false
    return this.#names.run(name, async () => {
      // A corrupt copy's file is evidence, and on its way to the quarantine.
      if (this.#corrupt.has(name) || (await this.locate(name)) !== undefined) return false
      return this.#discard(name)
    })
  }

  #discard(name: string): Promise<boolean> {
    return this.files.discard(name, trashSlice(this.clock.now(), this.limits.trashHoldMs))
  }

  /**
   * The copy that was at `location` is corrupt: from this call on it is never served; it leaves the index, and its bytes go to quarantine.
   * One that has come in its place since stays. Never rejects.
   */
  quarantine(name: string, location: BlobLocation, why: string): Promise<void> {
    this.#locations.delete(name)
    return this.#corrupt.quarantine(name, { location, why })
  }

  /** Corrupt copies whose drop could not be written at the time are tried again, if it can be now. */
  async retryQuarantine(): Promise<void> {
    if (this.health.state === 'ok' || this.health.state === 'full') await this.#corrupt.retry()
  }

  /** Was this copy found corrupt or missing, and is not back? */
  async isLost(name: string): Promise<boolean> {
    return this.lossCount > 0 && (await this.lookUp(index => index.get(lossKey(name)))) !== undefined
  }

  /** Makes the index durable up to what it has applied, so that the next start need not replay it. */
  async checkpoint(): Promise<void> {
    const position = this.#checkpoint
    // What an index lacks that has failed is in the log, from its last checkpoint on.
    if (position === undefined || this.#index === undefined || this.health.state === 'failed') return
    this.#checkpoint = undefined
    this.#checkpointBytes = 0
    await this.lookUp(index => index.setCheckpoint(position))
  }

  /** Takes an entry out of the index, if it still has this value: what was written since stays. True if it was taken out. */
  forget(key: string, value: Buffer): Promise<boolean> {
    return this.#changes.run('', async () => {
      const forgotten = [{ type: 'del', key }] as const
      const isThere = await this.lookUp(async index => {
        if ((await index.get(key))?.equals(value) !== true) return false
        await index.write(forgotten)
        return true
      })
      if (isThere) this.summaries.changed(forgotten)
      return isThere
    })
  }

  /** Compares the marker on disk; another one, or none, fails the shard at once. */
  async checkMarker(): Promise<void> {
    if (this.health.state === 'failed') return
    const problem = await this.identity.problem()
    if (problem === undefined) return
    this.log.error({ problem }, 'shard failed')
    this.health.fail(problem)
  }

  /** A write outside the log failed: notes what that says about the disk, and names it for the client. */
  writeError(error: unknown): HoldfastError {
    if (error instanceof HoldfastError) return error
    this.health.writeFailed(error)
    this.log.error({ err: error }, 'writing failed')
    const code = this.health.state === 'full' ? 'INSUFFICIENT_STORAGE' : 'SHARD_READ_ONLY'
    return new HoldfastError(code, 'the disk took no more', { errno: errnoOf(error) }, { cause: error })
  }

  /** One attempt to get out of 'read-only': a fresh file, then a fresh segment. */
  async probe(): Promise<void> {
    await this.health.probe()
    await this.#log?.revive()
    this.health.writable()
    this.log.info('shard takes writes again')
  }

  /** Is somebody about to make, move or remove this blob's file? */
  isBusy(name: string): boolean {
    return this.#names.has(name)
  }

  /**
   * Uses the index. Rejects with SHARD_FAILED; any failure of the index fails the shard, and the next recovery opens it
   * again, from the log.
   */
  async lookUp<Result>(use: (index: ShardIndex) => Promise<Result>): Promise<Result> {
    const index = this.#index
    if (index === undefined) throw new HoldfastError('SHARD_FAILED', this.health.reason ?? 'the shard is closed')
    try {
      return await use(index)
    } catch (cause) {
      if (this.#index !== index) throw new HoldfastError('SHARD_FAILED', 'the shard is closed', {}, { cause })
      // Of anything but rot (a full disk, say) the checkpoint remains good, and the log from there on.
      this.#rebuildIndex ||= isCorruption(cause)
      this.health.fail('the index failed')
      this.log.error({ err: cause }, 'the index failed')
      throw new HoldfastError('SHARD_FAILED', 'the index failed', {}, { cause })
    }
  }

  async #open(marker: ShardMarker, mayCreate: boolean): Promise<void> {
    const { fs, limits, log } = this.#deps
    await this.identity.claim(marker, mayCreate)
    await this.files.create()
    await this.health.measure()
    await this.files.clearTemporary()
    this.openedCount += 1
    this.#index = await this.#openIndex()
    const replayed = await replayLog({ fs, files: this.files, index: this.#index, log })
    this.entryAges.begin(this.clock.monotonic())
    const { segment, resume } = replayed
    this.logMarks.begin({ segment, offset: resume?.offset ?? Infinity }, this.clock.monotonic())
    this.#newest = await this.#index.newest()
    this.damagedCount += replayed.damagedCount
    if (replayed.damagedCount > 0) await this.lostReference()
    this.lossCount = await this.#index.countLosses()
    const deps = {
      fs,
      folder: this.files.log,
      apply: (records: readonly LoggedRecord[], end: LogPosition) => this.#apply(records, end),
      makeRoom: () => this.health.releaseReserve(),
      onBroken: (error: unknown) => {
        this.health.writeFailed(error)
        this.log.error({ err: error }, 'writing the log failed')
      },
    }
    this.#appliedSegment = replayed.segment
    this.#log = new ShardLog(deps, replayed.segment, limits)
    if (replayed.resume !== undefined) await this.#log.resume(replayed.resume.nonce, replayed.resume.offset)
    // Without a reserve a full disk takes no deletes, but until then everything works.
    await this.health.fillReserve().catch((error: unknown) => log.warn({ err: error }, 'no reserve'))
    const { recordCount, damagedCount } = replayed
    log.info({ recordCount, damagedCount }, 'shard is open')
  }

  async #openIndex(): Promise<ShardIndex> {
    const { fs, log } = this.#deps
    const folder = this.files.index
    let index
    try {
      index = await ShardIndex.open(folder, fs)
      if (!this.#rebuildIndex && (await indexFits({ fs, files: this.files, index })) && (await tellsNewest(index)))
        return index
    } catch (error) {
      if (error instanceof HoldfastError) throw error
      log.error({ err: error }, 'index cannot be opened')
    }
    // Also one that could not be judged: whoever keeps it open keeps everybody else out, the next attempt too.
    await index?.close()
    log.warn('rebuilding the index from the log')
    await ShardIndex.destroy(folder)
    this.#rebuildIndex = false
    return ShardIndex.open(folder, fs)
  }

  async #apply(records: readonly LoggedRecord[], end: LogPosition): Promise<void> {
    const { changes, blobs, uses, lossDelta, newest } = await this.#changes.run('', () => {
      // A group before it may be missing from the index: the next opening takes both from the log, in their order.
      if (this.health.state === 'failed') throw new HoldfastError('SHARD_FAILED', this.health.reason ?? 'failed')
      return this.lookUp(async index => {
        const plan = await planApply(records, keys => index.getMany(keys), this.lossCount)
        await index.write(plan.changes)
        return plan
      })
    })
    this.#changeCount += 1
    this.summaries.changed(changes)
    this.entryAges.changed(changes, this.clock.monotonic())
    this.logMarks.reached(end, this.clock.monotonic())
    this.use.applied(uses)
    this.lossCount += lossDelta
    this.#newest = newest ?? this.#newest
    for (const [name, location] of blobs) {
      this.#corrupt.forget(name)
      if (location === undefined) this.#locations.delete(name)
      else this.#locations.set(name, location)
    }
    this.#appliedSegment = end.segment
    this.#checkpoint = end
    this.#checkpointBytes += records.reduce((sum, record) => sum + record.frameBytes, 0)
    if (changes.length > 0 && this.#checkpointBytes > this.limits.checkpointBytes) await this.checkpoint()
  }

  async #release(): Promise<void> {
    const index = this.#index
    this.#index = undefined
    this.#log = undefined
    this.#checkpoint = undefined
    this.#locations.clear()
    this.summaries.clear()
    this.use.clear()
    this.openFiles.clear()
    await index?.close()
  }
}

/** Indexes of earlier releases do not. */
async function tellsNewest(index: ShardIndex): Promise<boolean> {
  if ((await index.newest()) !== undefined) return true
  return (await index.list({ prefix: 'r/', limit: 1 })).length === 0
}

function isCorruption(error: unknown): boolean {
  const code = errnoOf(error) ?? (error instanceof Error ? errnoOf(error.cause) : undefined)
  return code === 'LEVEL_CORRUPTION'
}
