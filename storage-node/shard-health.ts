/**
 * What a shard can do right now, and why not more.
 *
 *   ok -> full       little room: no new blobs; references and drops go on (they may use the reserve); reads go on
 *   -> read-only     a write or fsync failed: reads go on; a fresh file that can be written and flushed ends it
 *   -> failed        wrong or missing marker, unusable index, unreadable disk: nothing; a restart of the shard ends it
 */
import { join } from 'node:path'
import { HoldfastError } from '../shared/errors.ts'
import type { ShardState } from '../shared/wire.ts'
import type { StorageNodeLimits } from './config.ts'
import { isFull } from './log.ts'
import { errnoOf, type StoreFs } from './store-fs.ts'

const bigDiskBytes = 40 * 1024 ** 3
const reserveRatioMax = 0.02
const probeBytes = 4096
/** A shard without room for this much is full: refusing every other request would only send proxies back and forth. */
const smallBytes = 128 * 1024
/** Room must have grown by this much before a full shard takes blobs again, for the same reason. */
const leaveFullRatio = 1.2

export class ShardHealth {
  bytesTotal = 0
  bytesFree = 0
  readonly #fs: StoreFs
  readonly #folder: string
  readonly #limits: StorageNodeLimits
  #failed: string | undefined = 'not started'
  #readOnly: string | undefined
  #full = false

  constructor(fs: StoreFs, folder: string, limits: StorageNodeLimits) {
    this.#fs = fs
    this.#folder = folder
    this.#limits = limits
  }

  get state(): ShardState {
    if (this.#failed !== undefined) return 'failed'
    if (this.#readOnly !== undefined) return 'read-only'
    return this.#full ? 'full' : 'ok'
  }

  /** With less than this free the shard is full. */
  get bytesFreeMin(): number {
    const floor = this.bytesTotal > bigDiskBytes ? this.#limits.freeBytesMin : 0
    return Math.ceil(Math.max(this.bytesTotal * this.#limits.freeRatioMin, floor))
  }

  get reason(): string | undefined {
    return this.#failed ?? this.#readOnly ?? (this.#full ? 'disk is almost full' : undefined)
  }

  fail(reason: string): void {
    this.#failed = reason
  }

  /** It was opened, marker and index included. */
  recovered(): void {
    this.#failed = undefined
    this.#readOnly = undefined
  }

  /** It can be written to again, which says nothing about why it may have failed meanwhile. */
  writable(): void {
    this.#readOnly = undefined
  }

  /** Takes note of a failed write or flush. */
  writeFailed(error: unknown): void {
    if (isFull(error)) this.#full = true
    else this.#readOnly ??= `writing failed: ${errnoOf(error) ?? causeOf(error)}`
  }

  /** Throws SHARD_FAILED when nothing can be read. */
  checkReadable(): void {
    if (this.#failed !== undefined) throw new HoldfastError('SHARD_FAILED', this.#failed)
  }

  /** Throws SHARD_FAILED, SHARD_READ_ONLY or, for blobs, INSUFFICIENT_STORAGE when this cannot be written now. */
  checkWritable(what: 'blob' | 'record', bytes = 0): void {
    this.checkReadable()
    if (this.#readOnly !== undefined) throw new HoldfastError('SHARD_READ_ONLY', this.#readOnly)
    if (what === 'record') return
    const room = this.bytesFree - this.bytesFreeMin
    if (room < smallBytes) this.#full = true
    if (this.#full || bytes > room) {
      throw new HoldfastError('INSUFFICIENT_STORAGE', 'the shard has no room', { bytesFree: this.bytesFree })
    }
  }

  async measure(): Promise<void> {
    const { bytesTotal, bytesFree } = await this.#fs.space(this.#folder)
    this.bytesTotal = bytesTotal
    this.bytesFree = bytesFree
    this.#full = bytesFree < this.bytesFreeMin * (this.#full ? leaveFullRatio : 1)
  }

  /** Sets the reserve aside if there is room for it; its blocks are written, since a sparse file reserves nothing. Idempotent. */
  async fillReserve(): Promise<void> {
    const path = join(this.#folder, 'reserve')
    const wanted = Math.floor(Math.min(this.#limits.reserveBytes, this.bytesTotal * reserveRatioMax))
    const size = await this.#fs.size(path)
    const present = size ?? 0
    if (wanted === 0 || present >= wanted || this.bytesFree - (wanted - present) < this.bytesFreeMin) return
    const file = await this.#fs.open(path, size === undefined ? 'create' : 'update')
    const zeros = Buffer.alloc(1024 * 1024)
    try {
      for (let at = present; at < wanted; at += zeros.length) {
        await file.write([zeros.subarray(0, Math.min(zeros.length, wanted - at))], at)
      }
    } finally {
      await file.close()
    }
  }

  /** What is set aside now. */
  async reserveBytes(): Promise<number> {
    return (await this.#fs.size(join(this.#folder, 'reserve'))) ?? 0
  }

  /** Gives the reserve up. False if there was none left. */
  async releaseReserve(): Promise<boolean> {
    this.#full = true
    const path = join(this.#folder, 'reserve')
    const present = await this.#fs.size(path).catch(() => undefined)
    if (present === undefined || present === 0) return false
    await this.#fs.unlink(path)
    return true
  }

  /** Writes and flushes a fresh file: the way out of read-only. Throws what the disk says. */
  async probe(): Promise<void> {
    const path = join(this.#folder, 'tmp', '.probe')
    await this.#fs.unlink(path)
    const file = await this.#fs.open(path, 'create')
    try {
      await file.write([Buffer.alloc(probeBytes, 0x5a)], 0)
      await file.datasync()
    } finally {
      await file.close()
      await this.#fs.unlink(path)
    }
  }
}

function causeOf(error: unknown): string {
  if (!(error instanceof Error)) return 'unknown'
  return errnoOf(error.cause) ?? error.message
}
