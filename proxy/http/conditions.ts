/**
 * Conditional requests (RFC 9110 section 13): entity tags, dates, and in which order they count.
 */

/** The validators of what is there now. Dates on the wire have whole seconds; milliseconds are cut off. */
export interface Validators {
  /** Strong and quoted: `"<sha256>"`. */
  readonly etag: string
  readonly lastModifiedMs: number
}

/** The request headers that matter; node:http's IncomingHttpHeaders fits. */
export interface ConditionHeaders {
  readonly 'if-match'?: string | undefined
  readonly 'if-none-match'?: string | undefined
  readonly 'if-modified-since'?: string | undefined
  readonly 'if-unmodified-since'?: string | undefined
}

/**
 * RFC 9110 13.2.2, in its order of precedence. `current` undefined: nothing is there (a first PUT). 'not-modified'
 * (304) is only ever said to GET and HEAD; 'failed' is a 412. Ranges come afterwards (`ifRangeHolds`).
 */
export function evaluateConditions(
  method: string,
  headers: ConditionHeaders,
  current: Validators | undefined,
): 'proceed' | 'not-modified' | 'failed' {
  const ifMatch = headers['if-match']
  const ifUnmodifiedSince = headers['if-unmodified-since']
  if (ifMatch !== undefined) {
    if (!matches(ifMatch, current, 'strong')) return 'failed'
  } else if (ifUnmodifiedSince !== undefined && current !== undefined) {
    const since = parseHttpDate(ifUnmodifiedSince)
    if (since !== undefined && seconds(current.lastModifiedMs) > seconds(since)) return 'failed'
  }
  const reading = method === 'GET' || method === 'HEAD'
  const ifNoneMatch = headers['if-none-match']
  if (ifNoneMatch !== undefined) {
    if (!matches(ifNoneMatch, current, 'weak')) return 'proceed'
    return reading ? 'not-modified' : 'failed'
  }
  const ifModifiedSince = headers['if-modified-since']
  if (ifModifiedSince !== undefined && reading && current !== undefined) {
    const since = parseHttpDate(ifModifiedSince)
    if (since !== undefined && seconds(current.lastModifiedMs) <= seconds(since)) return 'not-modified'
  }
  return 'proceed'
}

/**
 * May the Range header be honoured (RFC 9110 13.1.5)? Without If-Range, yes. A weak tag never holds; a date holds only
 * when it is exactly the Last-Modified that we sent.
 */
export function ifRangeHolds(ifRange: string | undefined, current: Validators): boolean {
  if (ifRange === undefined) return true
  const value = ifRange.trim()
  if (value.startsWith('"') || value.startsWith('W/')) return value === current.etag
  const date = parseHttpDate(value)
  return date !== undefined && seconds(date) === seconds(current.lastModifiedMs)
}

export interface EntityTag {
  readonly weak: boolean
  /** With its quotes. */
  readonly tag: string
}

/**
 * The list of If-Match and If-None-Match. Weak tags may come as `W/"x"` only. What stands behind a syntax error is ignored:
 * a tag that cannot be read matches nothing.
 */
export function parseEntityTags(header: string): '*' | readonly EntityTag[] {
  if (header.trim() === '*') return '*'
  const tags: EntityTag[] = []
  const pattern = /[ \t,]*(W\/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?=,|$)/y
  for (let match = pattern.exec(header); match !== null; match = pattern.exec(header)) {
    tags.push({ weak: match[1] !== undefined, tag: match[2] ?? '' })
  }
  return tags
}

const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']
const imfDate = /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT$/
const rfc850Date =
  /^(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (\d\d)-([A-Z][a-z]{2})-(\d\d) (\d\d):(\d\d):(\d\d) GMT$/
const asctimeDate = /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) ([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})$/

/**
 * Milliseconds since 1970 of an HTTP date in any of its three formats (RFC 9110 5.6.7), undefined when it is none. The
 * two-digit years of RFC 850 mean 1970 to 2069: nobody has sent one for decades, and so no clock is needed here.
 */
export function parseHttpDate(text: string): number | undefined {
  const imf = imfDate.exec(text)
  if (imf !== null) return dateOf(imf[3], imf[2], imf[1], imf[4], imf[5], imf[6])
  const rfc850 = rfc850Date.exec(text)
  if (rfc850 !== null) {
    const century = Number(rfc850[3]) < 70 ? '20' : '19'
    return dateOf(century + (rfc850[3] ?? ''), rfc850[2], rfc850[1], rfc850[4], rfc850[5], rfc850[6])
  }
  const asctime = asctimeDate.exec(text)
  if (asctime !== null) return dateOf(asctime[6], asctime[1], asctime[2], asctime[3], asctime[4], asctime[5])
  return undefined
}

/** `Sun, 06 Nov 1994 08:49:37 GMT` */
export function formatHttpDate(ms: number): string {
  return new Date(ms).toUTCString()
}

function dateOf(...parts: (string | undefined)[]): number | undefined {
  const [year, monthName, day, hour, minute, second] = parts
  const month = months.indexOf(monthName ?? '')
  const [y, d, h, m, s] = [Number(year), Number(day), Number(hour), Number(minute), Number(second)]
  // 60 is a leap second, which JavaScript counts as the first second of the next minute.
  if (month < 0 || h > 23 || m > 59 || s > 60) return undefined
  const midnight = new Date(0)
  midnight.setUTCFullYear(y, month, d)
  if (midnight.getUTCDate() !== d) return undefined
  return midnight.getTime() + ((h * 60 + m) * 60 + s) * 1000
}

function matches(header: string, current: Validators | undefined, comparison: 'strong' | 'weak'): boolean {
  if (current === undefined) return false
  if (header === current.etag) return true
  const tags = parseEntityTags(header)
  if (tags === '*') return true
  return tags.some(({ weak, tag }) => tag === current.etag && (comparison === 'weak' || !weak))
}

const seconds = (ms: number): number => Math.floor(ms / 1000)
