/**
 * A bundle: many small blobs in one answer, node to node. A sequence of items, then an end; whatever stops before the end was cut off.
 *
 *   item = 0x00 | frame (record.ts, of kind `blob`)
 *        | 0x01 | u16le textBytes | u32le crc32(text) | text (JSON BundleRefusal): the source cannot give this one; the others go on
 *   end  = 0x02
 *
 * In the order in which the source reads them best. The frame is what the target appends to its log, so it is encoded and summed once.
 */
import { crc32 } from 'node:zlib'
import { type ErrorCode, HoldfastError } from './errors.ts'
import { decodeRecord, encodeRecord, inlineBlobBytesMax, type BlobRecord } from './record.ts'

/** Blobs of one request, and their bytes: what a source that dies in the middle costs at most. */
export const bundleCountMax = 1_024
export const bundleBytesMax = 4 * 1024 * 1024

export interface BundleRefusal {
  /** Of the blob in the request. */
  readonly index: number
  readonly code: ErrorCode
}

export interface BundleBlob {
  readonly record: BlobRecord
  readonly payload: Buffer
  /** The whole record as it travelled. */
  readonly frame: Buffer
  readonly payloadOffset: number
}
export type BundleItem = BundleBlob | BundleRefusal

const marks = { blob: 0, refusal: 1, end: 2 } as const
const refusalHeadBytes = 7
const slabBytes = 1024 * 1024
/** The largest item: a small blob with its header. */
const itemBytesMax = inlineBlobBytesMax + 64 * 1024

const blobMark = Buffer.of(marks.blob)
export const bundleEnd = Buffer.of(marks.end)

/** The pieces of an item, to be written one after the other. */
export function bundledBlob(record: BlobRecord, payload: Buffer): readonly Buffer[] {
  return [blobMark, encodeRecord(record, payload)]
}

export function bundledRefusal(refusal: BundleRefusal): readonly Buffer[] {
  const text = Buffer.from(JSON.stringify(refusal), 'utf8')
  const head = Buffer.alloc(refusalHeadBytes)
  head[0] = marks.refusal
  head.writeUInt16LE(text.length, 1)
  head.writeUInt32LE(crc32(text), 3)
  return [head, text]
}

/**
 * Takes the stream apart, whatever the pieces it comes in. Gives no item whose checksum does not match; items are views into memory that is
 * not written again. Throws RECORD_DAMAGED for anything else: where one item ends the next begins, so nothing behind it could be trusted.
 */
export class BundleReader {
  #slab = Buffer.allocUnsafeSlow(slabBytes)
  /** Of what is not taken apart yet. */
  #start = 0
  #end = 0
  #isOver = false

  /** The items that are complete with this piece. */
  push(chunk: Uint8Array): readonly BundleItem[] {
    const items: BundleItem[] = []
    for (let at = 0; at < chunk.length;) {
      if (this.#end === this.#slab.length) this.#renew()
      const taken = Math.min(chunk.length - at, this.#slab.length - this.#end)
      this.#slab.set(chunk.subarray(at, at + taken), this.#end)
      this.#end += taken
      at += taken
      this.#takeApart(items)
    }
    return items
  }

  /** The stream is at its end: was that where the sender meant it to be? */
  finish(): void {
    if (!this.#isOver) throw damaged('it was cut off')
  }

  /** What was given out stays as it is; only the beginning of the next item moves. */
  #renew(): void {
    const next = Buffer.allocUnsafeSlow(slabBytes)
    this.#slab.copy(next, 0, this.#start, this.#end)
    this.#slab = next
    this.#end -= this.#start
    this.#start = 0
  }

  #takeApart(items: BundleItem[]): void {
    while (this.#start < this.#end) {
      if (this.#isOver) throw damaged('something follows its end')
      const found = itemAt(this.#slab.subarray(0, this.#end), this.#start)
      if (found === 'truncated') {
        if (this.#end - this.#start > itemBytesMax) throw damaged('an item is too long')
        return
      }
      this.#start = found.end
      if (found.item === undefined) this.#isOver = true
      else items.push(found.item)
    }
  }
}

/** Undefined: the end of the bundle. */
function itemAt(input: Buffer, offset: number): { item: BundleItem | undefined; end: number } | 'truncated' {
  const mark = input[offset]
  if (mark === marks.end) return { item: undefined, end: offset + 1 }
  if (mark === marks.blob) {
    const decoded = decodeRecord(input, offset + 1)
    if (decoded === 'truncated') return decoded
    if (decoded === 'damaged') throw damaged('a record')
    const { record, payload, payloadOffset, end } = decoded
    if (record.kind !== 'blob') throw damaged('a record of another kind')
    const frame = input.subarray(offset + 1, end)
    return { item: { record, payload, frame, payloadOffset: payloadOffset - offset - 1 }, end }
  }
  if (mark !== marks.refusal) throw damaged('an item')
  const start = offset + refusalHeadBytes
  if (input.length < start) return 'truncated'
  const end = start + input.readUInt16LE(offset + 1)
  if (end > input.length) return 'truncated'
  const text = input.subarray(start, end)
  if (crc32(text) !== input.readUInt32LE(offset + 3)) throw damaged('a refusal')
  return { item: refusalOf(text.toString('utf8')), end }
}

function refusalOf(text: string): BundleRefusal {
  try {
    const { index, code } = JSON.parse(text) as BundleRefusal
    if (Number.isSafeInteger(index) && index >= 0 && typeof code === 'string') return { index, code }
  } catch {
    // No JSON: the same as JSON of something else.
  }
  throw damaged('a refusal')
}

function damaged(what: string): HoldfastError {
  return new HoldfastError('RECORD_DAMAGED', `the bundle is damaged: ${what}`)
}
