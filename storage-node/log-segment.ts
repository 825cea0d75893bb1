/**
 * One segment of a shard's log.
 *
 *   segment = "HFLOG\0\0\1" | u64 nonce | u32le number | u32le crc32(first 20 bytes) | entry...
 *   entry   = u64 nonce | frame (shared/record.ts)
 *
 * The nonce is 8 random bytes that never leave the node. It stands before every frame, so that behind a damaged entry the
 * scan finds the next true one by searching for it. Looking for the next plausible frame instead would be unsafe: a
 * small blob rests inside its record, and its uploader could have put a forged frame into it.
 */
import { randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { decodeRecord, type ShardRecord } from '../shared/record.ts'

export const segmentHeadBytes = 24
export const nonceBytes = 8
const magic = Buffer.from('HFLOG\0\0\x01', 'latin1')
/** Larger than any entry, so that one window always holds the entry it starts with. */
const windowBytes = 8 * 1024 * 1024

export interface LoggedRecord {
  readonly record: ShardRecord
  readonly segment: number
  /** Where the frame starts in the segment. */
  readonly frameOffset: number
  readonly frameBytes: number
  readonly payloadOffset: number
  /** Valid until the scan goes on. */
  readonly payload: Buffer
}

export type ScanEvent =
  | { readonly kind: 'record'; readonly logged: LoggedRecord }
  /** Bytes that are no entry; the scan went on at `resumedAt`. */
  | { readonly kind: 'damaged'; readonly offset: number; readonly resumedAt: number }
  /** The last event. Everything before `offset` was scanned; what is behind it is no entry, nor is there one after it. */
  | { readonly kind: 'end'; readonly offset: number; readonly tail: 'clean' | 'truncated' | 'damaged' }

/** Reads up to `target.length` bytes at `position`, fewer only at the end of the segment. */
export type ReadAt = (target: Buffer, position: number) => Promise<number>

export function newNonce(): Buffer {
  return randomBytes(nonceBytes)
}

export function encodeSegmentHead(number: number, nonce: Buffer): Buffer {
  const head = Buffer.alloc(segmentHeadBytes)
  magic.copy(head)
  nonce.copy(head, 8)
  head.writeUInt32LE(number, 16)
  head.writeUInt32LE(crc32(head.subarray(0, 20)), 20)
  return head
}

/** The nonce of a segment, or undefined when its head is no head of segment `number`. */
export function decodeSegmentHead(head: Buffer, number: number): Buffer | undefined {
  if (head.length < segmentHeadBytes || !head.subarray(0, 8).equals(magic)) return undefined
  if (head.readUInt32LE(16) !== number || head.readUInt32LE(20) !== crc32(head.subarray(0, 20))) return undefined
  return Buffer.from(head.subarray(8, 16))
}

/**
 * The nonce of a segment whose head may be damaged: then the eight bytes in front of its first frame, if that frame is whole.
 * Undefined: nothing in this segment can be trusted.
 */
export async function findNonce(read: ReadAt, number: number): Promise<Buffer | undefined> {
  const window = Buffer.allocUnsafe(windowBytes)
  const start = window.subarray(0, await read(window, 0))
  const nonce = decodeSegmentHead(start, number)
  if (nonce !== undefined) return nonce
  const decoded = decodeRecord(start, Math.min(segmentHeadBytes + nonceBytes, start.length))
  if (typeof decoded === 'string') return undefined
  return Buffer.from(start.subarray(segmentHeadBytes, segmentHeadBytes + nonceBytes))
}

/** All entries of a segment from `start` on, in order, whatever is damaged between them. Ends with one 'end' event. */
export async function* scanSegment(
  read: ReadAt,
  { segment, nonce, start }: { segment: number; nonce: Buffer; start: number },
): AsyncGenerator<ScanEvent, void, void> {
  const window = new Window(read)
  let offset = start
  for (;;) {
    const verdict = await window.decode(offset, nonce)
    if (verdict === 'end') return yield { kind: 'end', offset, tail: 'clean' }
    if (typeof verdict === 'object') {
      yield { kind: 'record', logged: { ...verdict.logged, segment } }
      offset = verdict.end
      continue
    }
    const resumedAt = await window.find(offset + 1, nonce)
    if (resumedAt === undefined) return yield { kind: 'end', offset, tail: verdict }
    yield { kind: 'damaged', offset, resumedAt }
    offset = resumedAt
  }
}

interface DecodedEntry {
  readonly logged: Omit<LoggedRecord, 'segment'>
  readonly end: number
}

/** A part of the segment in memory. */
class Window {
  readonly #read: ReadAt
  readonly #buffer = Buffer.allocUnsafe(windowBytes)
  #start = 0
  #bytes = 0

  constructor(read: ReadAt) {
    this.#read = read
  }

  /** The entry at `offset`. 'truncated' only if the segment ends within it. */
  async decode(offset: number, nonce: Buffer): Promise<DecodedEntry | 'truncated' | 'damaged' | 'end'> {
    const entry = this.#decodeLoaded(offset, nonce)
    if (typeof entry === 'object' || entry === 'damaged') return entry
    await this.#load(offset)
    return this.#bytes === 0 ? 'end' : this.#decodeLoaded(offset, nonce)
  }

  /** Where the nonce next stands at or after `offset`. */
  async find(offset: number, nonce: Buffer): Promise<number | undefined> {
    let from = offset
    for (;;) {
      await this.#load(from)
      const index = this.#buffer.subarray(0, this.#bytes).indexOf(nonce)
      if (index >= 0) return from + index
      if (this.#bytes < windowBytes) return undefined
      from += windowBytes - nonceBytes + 1
    }
  }

  async #load(offset: number): Promise<void> {
    this.#bytes = await this.#read(this.#buffer, offset)
    this.#start = offset
  }

  #decodeLoaded(offset: number, nonce: Buffer): DecodedEntry | 'truncated' | 'damaged' {
    const at = offset - this.#start
    if (at < 0 || at >= this.#bytes) return 'truncated'
    const loaded = this.#buffer.subarray(0, this.#bytes)
    const found = loaded.subarray(at, at + nonceBytes)
    if (!nonce.subarray(0, found.length).equals(found)) return 'damaged'
    if (found.length < nonceBytes) return 'truncated'
    const decoded = decodeRecord(loaded, at + nonceBytes)
    if (typeof decoded === 'string') return decoded
    const frameOffset = offset + nonceBytes
    const { record, payload } = decoded
    const payloadOffset = this.#start + decoded.payloadOffset
    const end = this.#start + decoded.end
    return { logged: { record, frameOffset, frameBytes: end - frameOffset, payloadOffset, payload }, end }
  }
}
