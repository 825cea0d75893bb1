/**
 * The index of a shard: where each blob and reference stands. Derived from the log and rebuilt from it when in doubt, so
 * nothing here is ever flushed on its own, but for the checkpoint.
 *
 *   b/<ppp>/<digest>.<generation>           -> BlobLocation
 *   r/<ppp>/<repository/path>               -> ReferenceLocation
 *   u/<time, 13 digits>/<ppp>/<digest>.<generation> -> blobs that no reference record has named yet
 *   l/<ppp>/<digest>.<generation>           -> Loss: a copy that was corrupt or missing, and is not back yet
 *   m/checkpoint                            -> LogPosition
 *   m/newest                                -> NewestReference: the highest version of all references there ever were
 *
 * A power cut may take any of the entries since the last flushed batch, even some in the middle. The checkpoint is
 * therefore only moved by a flushed batch, and a start replays the log from there: replaying an entry twice is harmless.
 */
import { join } from 'node:path'
import { ClassicLevel } from 'classic-level'
import { HoldfastError } from '../shared/errors.ts'
import { blockBytes } from '../shared/record.ts'
import type { LogPosition } from './log.ts'
import { errnoOf, type StoreFs } from './store-fs.ts'

export interface BlobLocation {
  readonly kind: 'inline' | 'file'
  readonly segment: number
  /** Of the payload: the blob itself, or its block CRC table. */
  readonly offset: number
  /** Of the blob. */
  readonly bytes: number
  /** CRC-32 of the payload. */
  readonly crc: number
  /** When the blob was written, ms. */
  readonly time: number
}

export interface Loss {
  /** When it was found, ms. */
  readonly time: number
  readonly why: string
}

export interface ReferenceLocation {
  readonly segment: number
  readonly frameOffset: number
  readonly frameBytes: number
  readonly version: number
}

export type IndexChange =
  | { readonly type: 'put'; readonly key: string; readonly value: Buffer }
  | { readonly type: 'del'; readonly key: string }

export interface ListRange {
  /** Keys start with it. */
  readonly prefix: string
  /** Keys behind this one (prefix included). */
  readonly after?: string
  /** Instead of `after`: this key and those behind it. */
  readonly from?: string
  /** Keys before this one. */
  readonly before?: string
  readonly limit: number
}

/** Entries in the order of their keys. */
export type IndexReader = (range: ListRange) => Promise<[string, Buffer][]>

export interface NewestReference {
  readonly incarnation: string
  readonly version: number
}

const checkpointKey = 'm/checkpoint'
const blobValueBytes = 27
const referenceValueBytes = 22
const MiB = 1024 * 1024

export class ShardIndex {
  readonly #level: ClassicLevel<string, Buffer>
  readonly #folder: string
  readonly #fs: StoreFs

  private constructor(level: ClassicLevel<string, Buffer>, folder: string, fs: StoreFs) {
    this.#level = level
    this.#folder = folder
    this.#fs = fs
  }

  /** Opens it, empty if it was not there. Rejects with DATA_IN_USE when another process has it, else with LevelDB's error. */
  static async open(folder: string, fs: StoreFs): Promise<ShardIndex> {
    const level = new ClassicLevel<string, Buffer>(folder, { keyEncoding: 'utf8', valueEncoding: 'buffer' })
    try {
      await level.open({ writeBufferSize: 8 * MiB, cacheSize: 16 * MiB, maxOpenFiles: 256 })
    } catch (error) {
      await level.close()
      throw inUse(error) ? new HoldfastError('DATA_IN_USE', 'another process has this folder', { folder }) : error
    }
    return new ShardIndex(level, folder, fs)
  }

  /** Removes it with all its files. */
  static async destroy(folder: string): Promise<void> {
    await ClassicLevel.destroy(folder)
  }

  get(key: string): Promise<Buffer | undefined> {
    return this.#level.get(key)
  }

  getMany(keys: string[]): Promise<(Buffer | undefined)[]> {
    return this.#level.getMany(keys)
  }

  /** Applies all changes or none. */
  async write(changes: readonly IndexChange[]): Promise<void> {
    await this.#level.batch([...changes])
  }

  /** Entries in the order of their keys. */
  async list({ prefix, after, from, before, limit }: ListRange): Promise<[string, Buffer][]> {
    const start = from === undefined ? { gt: after ?? prefix } : { gte: from }
    // No key of ours continues with a byte of 0xff, which UTF-8 never contains.
    const range = { ...start, lt: before ?? `${prefix}\u{10ffff}`, limit }
    return this.#level.iterator(range).all()
  }

  /** How many lost copies it knows of, up to a million. */
  async countLosses(): Promise<number> {
    return (await this.#level.keys({ gt: lossKey(''), lt: lossKey('\u{10ffff}'), limit: 1_000_000 }).all()).length
  }

  async checkpoint(): Promise<LogPosition | undefined> {
    const value = await this.get(checkpointKey)
    if (value?.length !== 18) return undefined
    return { segment: value.readUInt32LE(0), offset: value.readUIntLE(4, 6), nonce: Buffer.from(value.subarray(10)) }
  }

  /** Makes everything written so far durable, and says that it covers the log up to `position`. */
  async setCheckpoint({ segment, offset, nonce }: LogPosition): Promise<void> {
    const value = Buffer.alloc(18)
    value.writeUInt32LE(segment, 0)
    value.writeUIntLE(offset, 4, 6)
    nonce.copy(value, 10)
    await this.#flushLogs()
    await this.#level.put(checkpointKey, value, { sync: true })
  }

  /**
   * LevelDB flushes the log it writes to, but never the one before: of the entries that are not sorted into a table yet, a power cut
   * could take those that came first, and leave a checkpoint that says they are there.
   */
  async #flushLogs(): Promise<void> {
    const logs = (await this.#fs.list(this.#folder)).filter(name => /^\d+\.log$/.test(name))
    for (const name of logs) await flushIfThere(this.#fs, join(this.#folder, name))
    if (logs.length > 0) await this.#fs.syncFolder(this.#folder)
  }

  async newest(): Promise<NewestReference | undefined> {
    const value = await this.get(newestKey)
    return value === undefined ? undefined : decodeNewest(value)
  }

  close(): Promise<void> {
    return this.#level.close()
  }
}

export const newestKey = 'm/newest'
/** `name` is `<ppp>/<digest>.<generation>`. */
export const blobKey = (name: string): string => `b/${name}`
export const lossKey = (name: string): string => `l/${name}`
export const referenceKey = (partition: string, key: string): string => `r/${partition}/${key}`
export const unconfirmedKey = (time: number, name: string): string => `u/${timeText(time)}/${name}`
/** Sorts as the numbers do. */
export const timeText = (time: number): string => String(Math.max(0, Math.floor(time))).padStart(13, '0')

export function encodeBlobLocation(location: BlobLocation): Buffer {
  const value = Buffer.alloc(blobValueBytes)
  value[0] = location.kind === 'inline' ? 0 : 1
  value.writeUInt32LE(location.segment, 1)
  value.writeUIntLE(location.offset, 5, 6)
  value.writeUIntLE(location.bytes, 11, 6)
  value.writeUInt32LE(location.crc, 17)
  value.writeUIntLE(location.time, 21, 6)
  return value
}

export function decodeBlobLocation(value: Buffer): BlobLocation | undefined {
  if (value.length !== blobValueBytes) return undefined
  return {
    kind: value[0] === 0 ? 'inline' : 'file',
    segment: value.readUInt32LE(1),
    offset: value.readUIntLE(5, 6),
    bytes: value.readUIntLE(11, 6),
    crc: value.readUInt32LE(17),
    time: value.readUIntLE(21, 6),
  }
}

export function encodeLoss({ time, why }: Loss): Buffer {
  return Buffer.from(`${time} ${why}`)
}

export function decodeLoss(value: Buffer): Loss {
  const text = value.toString('utf8')
  const space = text.indexOf(' ')
  return { time: Number(text.slice(0, space)) || 0, why: text.slice(space + 1) }
}

export function encodeReferenceLocation(location: ReferenceLocation): Buffer {
  const value = Buffer.alloc(referenceValueBytes)
  value.writeUInt32LE(location.segment, 0)
  value.writeUIntLE(location.frameOffset, 4, 6)
  value.writeUInt32LE(location.frameBytes, 10)
  value.writeDoubleLE(location.version, 14)
  return value
}

export function decodeReferenceLocation(value: Buffer): ReferenceLocation | undefined {
  if (value.length !== referenceValueBytes) return undefined
  return {
    segment: value.readUInt32LE(0),
    frameOffset: value.readUIntLE(4, 6),
    frameBytes: value.readUInt32LE(10),
    version: value.readDoubleLE(14),
  }
}

/** What a record takes in the log, next to its payload: nonce, heads, and a header of about this length. */
const blobOverheadBytes = 250

/** How many bytes of the log this entry keeps alive; of blobs an estimate that is the same each time. */
export function logBytesOf(location: BlobLocation | ReferenceLocation): number {
  if ('frameBytes' in location) return location.frameBytes + 8
  const { kind, bytes } = location
  return blobOverheadBytes + (kind === 'inline' ? bytes : Math.ceil(bytes / blockBytes) * 4)
}

export function encodeNewest({ incarnation, version }: NewestReference): Buffer {
  return Buffer.from(JSON.stringify({ incarnation, version }))
}

export function decodeNewest(value: Buffer): NewestReference {
  return JSON.parse(value.toString('utf8')) as NewestReference // written above
}

async function flushIfThere(fs: StoreFs, path: string): Promise<void> {
  let file
  try {
    file = await fs.open(path, 'read')
  } catch (error) {
    // Sorted into a table meanwhile, which is durable.
    if (errnoOf(error) === 'ENOENT') return
    throw error
  }
  try {
    await file.datasync()
  } finally {
    await file.close()
  }
}

function inUse(error: unknown): boolean {
  return errnoOf(error) === 'LEVEL_LOCKED' || (error instanceof Error && errnoOf(error.cause) === 'LEVEL_LOCKED')
}
