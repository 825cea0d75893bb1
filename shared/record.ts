/**
 * Records: what storage nodes keep in their shard logs, and what proxies and nodes send each other to append.
 * The same bytes travel and rest, so a record is encoded once and its checksum guards it end to end.
 *
 *   frame = u32le bodyBytes | u32le crc32(body) | body
 *   body  = u8 kind | u8 0 | u16le headerBytes | header (JSON, UTF-8) | payload
 *
 * A decoder never accepts a damaged frame (I35): a frame cut off by the end of input is `'truncated'` (a crash in the
 * middle of an append), anything else that does not add up is `'damaged'`.
 */
import { crc32 } from 'node:zlib'
import type { Digest, Generation } from './ids.ts'
import { HoldfastError } from './errors.ts'

/** Blobs up to this size travel and rest inside a record of the shard's log: one group-committed fsync, no file. */
export const inlineBlobBytesMax = 64 * 1024
/** Block size of the CRC-32 table of every blob, in bytes. */
export const blockBytes = 256 * 1024
const headerBytesMax = 32 * 1024
const frameHeadBytes = 8
const bodyHeadBytes = 4
/** Largest body a frame may have; a payload is a small blob or a CRC table (4 bytes a block: enough for 256 GiB). */
const bodyBytesMax = bodyHeadBytes + headerBytesMax + 4 * 1024 * 1024

/** A blob of at most `inlineBlobBytesMax` bytes; the payload is the blob. */
export interface BlobRecord {
  readonly kind: 'blob'
  readonly partition: number
  readonly digest: Digest
  readonly generation: Generation
  readonly bytes: number
  /** CRC-32 of the payload. */
  readonly crc: number
  readonly time: number
  /** Copied here by the primary, which knows who refers to it: no reference on this shard needs to confirm it. */
  readonly confirmed?: true
}
/** A larger blob in a file of its own; the payload is its block CRC table (u32le each). */
export interface FileRecord {
  readonly kind: 'file'
  readonly partition: number
  readonly digest: Digest
  readonly generation: Generation
  readonly bytes: number
  readonly time: number
  /** As in `BlobRecord`. */
  readonly confirmed?: true
}
/** An artifact as the shards know it: enough to serve it, and to rebuild the database, without the database. */
export interface ReferenceRecord {
  readonly kind: 'reference'
  /** Partition of repository/path, not of the blob. */
  readonly partition: number
  readonly repository: string
  readonly path: string
  readonly op: 'put' | 'delete'
  /** Given by PostgreSQL, only grows per path; the highest wins. */
  readonly version: number
  /** Random id of the database that issued the version. */
  readonly incarnation: string
  readonly time: number
  readonly user: string
  /** Absent for op 'delete'. */
  readonly blob?: ReferencedBlob
  readonly contentType?: string
  readonly attributes?: Readonly<Record<string, unknown>>
}
export interface ReferencedBlob {
  readonly digest: Digest
  readonly generation: Generation
  /** The partition in which the blob was born (born-home). */
  readonly partition: number
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
}
/** A blob leaves this shard: to the trash (deleted, moved home) or to quarantine (corrupt). */
export interface DropRecord {
  readonly kind: 'drop'
  readonly partition: number
  readonly digest: Digest
  readonly generation: Generation
  readonly reason: 'deleted' | 'moved' | 'corrupt'
  readonly time: number
  /**
   * Carried on by a compaction, which moved it behind younger records: it means only copies that stand in a segment before this one,
   * for whatever stands behind was written after the drop.
   */
  readonly before?: number
  /** Of a corrupt copy: what did not match. */
  readonly why?: string
}
export type ShardRecord = BlobRecord | FileRecord | ReferenceRecord | DropRecord

const kinds = ['blob', 'file', 'reference', 'drop'] as const

/** One frame, ready to append or to send. Throws BAD_REQUEST if the header or payload is larger than allowed. */
export function encodeRecord(record: ShardRecord, payload?: Buffer): Buffer {
  const { kind, ...fields } = record
  const header = Buffer.from(JSON.stringify(fields), 'utf8')
  const payloadBytes = payload?.length ?? 0
  const bodyBytes = bodyHeadBytes + header.length + payloadBytes
  if (header.length > headerBytesMax || bodyBytes > bodyBytesMax) {
    throw new HoldfastError('BAD_REQUEST', 'record too large', { headerBytes: header.length, bodyBytes })
  }
  const frame = Buffer.allocUnsafe(frameHeadBytes + bodyBytes)
  frame.writeUInt32LE(bodyBytes, 0)
  frame[frameHeadBytes] = kinds.indexOf(kind)
  frame[frameHeadBytes + 1] = 0
  frame.writeUInt16LE(header.length, frameHeadBytes + 2)
  header.copy(frame, frameHeadBytes + bodyHeadBytes)
  if (payload !== undefined) payload.copy(frame, frameHeadBytes + bodyHeadBytes + header.length)
  frame.writeUInt32LE(crc32(frame.subarray(frameHeadBytes)), 4)
  return frame
}

export interface DecodedFrame {
  readonly record: ShardRecord
  /** A view into the input, not a copy. */
  readonly payload: Buffer
  /** Offset of the payload in the input. */
  readonly payloadOffset: number
  /** Offset just behind the frame in the input. */
  readonly end: number
}

/** Decodes the frame that starts at `offset`. Never throws; never returns a record whose checksum does not match. */
export function decodeRecord(input: Buffer, offset = 0): DecodedFrame | 'truncated' | 'damaged' {
  if (input.length - offset < frameHeadBytes) return 'truncated'
  const bodyBytes = input.readUInt32LE(offset)
  if (bodyBytes < bodyHeadBytes || bodyBytes > bodyBytesMax) return 'damaged'
  const bodyStart = offset + frameHeadBytes
  const end = bodyStart + bodyBytes
  if (end > input.length) return 'truncated'
  const body = input.subarray(bodyStart, end)
  if (crc32(body) !== input.readUInt32LE(offset + 4)) return 'damaged'
  const kind = kinds[body[0] ?? -1]
  const headerBytes = body.readUInt16LE(2)
  if (kind === undefined || body[1] !== 0 || bodyHeadBytes + headerBytes > bodyBytes) return 'damaged'
  const payloadOffset = bodyStart + bodyHeadBytes + headerBytes
  try {
    const fields = JSON.parse(body.toString('utf8', bodyHeadBytes, bodyHeadBytes + headerBytes)) as object
    // The kind comes last: no header can pretend to be another one.
    const record = { ...fields, kind } as ShardRecord
    return { record, payload: input.subarray(payloadOffset, end), payloadOffset, end }
  } catch {
    // The checksum matched but the header is no JSON: written by something that is not us. Same verdict.
    return 'damaged'
  }
}

/** CRC-32 of each block of `blockBytes`; the last block may be shorter. */
export class BlockCrcs {
  readonly #crcs: number[] = []
  #current = 0
  #inBlock = 0

  update(chunk: Buffer): void {
    let rest = chunk
    while (rest.length > 0) {
      const part = rest.subarray(0, blockBytes - this.#inBlock)
      this.#current = crc32(part, this.#current)
      this.#inBlock += part.length
      if (this.#inBlock === blockBytes) this.#close()
      rest = rest.subarray(part.length)
    }
  }

  /** The table, u32le each. Call once, at the end. */
  finish(): Buffer {
    if (this.#inBlock > 0) this.#close()
    const table = Buffer.allocUnsafe(this.#crcs.length * 4)
    this.#crcs.forEach((crc, index) => table.writeUInt32LE(crc, index * 4))
    return table
  }

  #close(): void {
    this.#crcs.push(this.#current)
    this.#current = 0
    this.#inBlock = 0
  }
}
