/**
 * Byte ranges (RFC 9110 section 14) and multipart/byteranges bodies, whose length is known before the first byte.
 */
import { randomBytes } from 'node:crypto'
import type { ByteRange } from '../routing/types.ts'

/** More ranges than this are ignored (the whole body is sent): no known client asks for as many. */
export const rangeCountMax = 16
/** Longer headers are ignored unread: 16 ranges of two 16-digit numbers need half of it. */
const headerCharsMax = 1_024

export type RangesResult =
  /** Send everything: no Range, another unit, a syntax error, or too much asked (all to be ignored by RFC 9110 14.2). */
  | { readonly kind: 'none' }
  /** 416 with `Content-Range: bytes * /<size>`. */
  | { readonly kind: 'unsatisfiable' }
  /** 206. At least one; clamped to the size, none overlaps or touches another. In the client's order unless some were joined. */
  | { readonly kind: 'ranges'; readonly ranges: readonly [ByteRange, ...ByteRange[]] }

const none: RangesResult = { kind: 'none' }
const unsatisfiable: RangesResult = { kind: 'unsatisfiable' }

/** Reads a Range header against a body of `size` bytes. Never throws; work and answer are bounded whatever comes in. */
export function parseRanges(header: string | undefined, size: number): RangesResult {
  if (header === undefined || header.length > headerCharsMax) return none
  if (header.slice(0, 6).toLowerCase() !== 'bytes=') return none
  const specs = header
    .slice(6)
    .split(',')
    .map(spec => spec.trim())
    .filter(spec => spec !== '')
  if (specs.length === 0 || specs.length > rangeCountMax) return none
  const ranges: ByteRange[] = []
  for (const spec of specs) {
    const range = readSpec(spec, size)
    if (range === 'invalid') return none
    if (range !== 'unsatisfiable') ranges.push(range)
  }
  const [first, ...more] = join(ranges)
  // 'bytes=-5' of an empty body can be satisfied, but no Content-Range can say so: send the empty body.
  if (size === 0) return specs.some(spec => spec.startsWith('-') && Number(spec) !== 0) ? none : unsatisfiable
  return first === undefined ? unsatisfiable : { kind: 'ranges', ranges: [first, ...more] }
}

/** `bytes 0-9/100` */
export function contentRange(range: ByteRange, size: number): string {
  return `bytes ${range.first}-${range.last}/${size}`
}

/** What a 416 says: `bytes * /100` without the space. */
export function unsatisfiedContentRange(size: number): string {
  return `bytes */${size}`
}

/** A multipart/byteranges body: `parts[i].head`, then the bytes of `parts[i].range`, for all parts, then `tail`. */
export interface MultipartRanges {
  readonly contentType: string
  /** Exact length of the whole body. */
  readonly contentLength: number
  readonly parts: readonly { readonly head: Buffer; readonly range: ByteRange }[]
  readonly tail: Buffer
}

/** Plans the body of a 206 with several ranges. `partType`: media type of the artifact. */
export function multipartRanges(
  ranges: readonly ByteRange[],
  size: number,
  partType: string,
  boundary: string = newBoundary(),
): MultipartRanges {
  const parts = ranges.map((range, index) => ({
    range,
    head: Buffer.from(
      `${index === 0 ? '' : '\r\n'}--${boundary}\r\n` +
        `Content-Type: ${partType}\r\nContent-Range: ${contentRange(range, size)}\r\n\r\n`,
      'latin1',
    ),
  }))
  const tail = Buffer.from(`\r\n--${boundary}--\r\n`, 'latin1')
  const contentLength = parts.reduce((sum, { head, range }) => sum + head.length + rangeBytes(range), tail.length)
  return { contentType: `multipart/byteranges; boundary=${boundary}`, contentLength, parts, tail }
}

/** 120 random bits: no artifact contains it by chance, and none can be made to. */
export function newBoundary(): string {
  return 'holdfast' + randomBytes(15).toString('hex')
}

/** Length of a range, whose ends are both inclusive. */
export function rangeBytes(range: ByteRange): number {
  return range.last - range.first + 1
}

function readSpec(spec: string, size: number): ByteRange | 'invalid' | 'unsatisfiable' {
  const match = /^(\d*)-(\d*)$/.exec(spec)
  if (match === null || spec === '-') return 'invalid'
  const [, from = '', to = ''] = match
  // Numbers too large for a double only ever mean "beyond the end", which is what they are compared for.
  if (from === '') return suffix(Number(to), size)
  const first = Number(from)
  const last = to === '' ? Infinity : Number(to)
  if (first > last) return 'invalid'
  return first >= size ? 'unsatisfiable' : { first, last: Math.min(last, size - 1) }
}

function suffix(bytes: number, size: number): ByteRange | 'unsatisfiable' {
  if (bytes === 0 || size === 0) return 'unsatisfiable'
  return { first: Math.max(0, size - bytes), last: size - 1 }
}

/** Joins ranges that overlap or touch; without such the client's order stays. */
function join(ranges: readonly ByteRange[]): readonly ByteRange[] {
  if (ranges.length < 2) return ranges
  const joined: { first: number; last: number }[] = []
  for (const range of ranges.toSorted((a, b) => a.first - b.first)) {
    const previous = joined.at(-1)
    if (previous !== undefined && range.first <= previous.last + 1) previous.last = Math.max(previous.last, range.last)
    else joined.push({ ...range })
  }
  return joined.length === ranges.length ? ranges : joined
}
