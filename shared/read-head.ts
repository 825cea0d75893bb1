/** The head of an answer on the read leg: narrow and strict, because only our own nodes speak there. */

/** Longer heads are not ours. */
export const headBytesMax = 8 * 1024

export interface AnswerHead {
  readonly status: number
  /** Content-Length; every answer of the read leg has one. */
  readonly bytes: number
  /** Content-Range, for a 206: inclusive positions and the whole length. */
  readonly range: { readonly first: number; readonly last: number; readonly total: number } | undefined
  /** The node closes the connection after this answer. */
  readonly closes: boolean
  /** How long the node says it keeps the connection when idle. */
  readonly keepAliveMs: number | undefined
}

const rangePattern = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/
const lengthPattern = /^\d{1,15}$/
const namePattern = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/

/**
 * Parses a head without its closing empty line. Undefined for all that our nodes never send: another version, a missing
 * or repeated length, a transfer coding, folded or malformed lines. (RFC 9112; leniency there is how answers get mixed up.)
 */
export function parseHead(text: string): AnswerHead | undefined {
  const lines = text.split('\r\n')
  const status = statusOf(lines[0] ?? '')
  if (status === undefined) return undefined
  let length: string | undefined
  let range: string | undefined
  let closes = false
  let keepAliveMs: number | undefined
  for (let index = 1; index < lines.length; index += 1) {
    const line = lines[index] ?? ''
    const colon = line.indexOf(':')
    if (colon < 1 || line.includes('\n') || line.includes('\r')) return undefined
    // Only names of these lengths matter; lower-casing every line would cost more than the rest of a small read.
    if (colon === 14 && isName(line, 'content-length')) {
      if (length !== undefined) return undefined
      length = line.slice(15).trim()
    } else if (colon === 13 && isName(line, 'content-range')) {
      if (range !== undefined) return undefined
      range = line.slice(14).trim()
    } else if (colon === 10 && isName(line, 'connection')) {
      closes = line.slice(11).trim().toLowerCase() !== 'keep-alive'
    } else if (colon === 10 && isName(line, 'keep-alive')) {
      keepAliveMs = keepAliveOf(line.slice(11))
    } else if (colon === 17 && isName(line, 'transfer-encoding')) {
      return undefined
    } else if (!namePattern.test(line.slice(0, colon))) {
      return undefined
    }
  }
  if (length === undefined || !lengthPattern.test(length)) return undefined
  const parsed = range === undefined ? undefined : rangeOf(range)
  if (range !== undefined && parsed === undefined) return undefined
  return { status, bytes: Number(length), range: parsed, closes, keepAliveMs }
}

function statusOf(line: string): number | undefined {
  if (!line.startsWith('HTTP/1.1 ') || (line.length > 12 && line[12] !== ' ')) return undefined
  const status = Number(line.slice(9, 12))
  // 1xx would precede another head, 204 and 304 have no body: our nodes send none of them here.
  return Number.isInteger(status) && status >= 200 && status <= 599 && status !== 204 && status !== 304
    ? status
    : undefined
}

const isName = (line: string, name: string): boolean =>
  line.startsWith(name) || line.slice(0, name.length).toLowerCase() === name

function keepAliveOf(value: string): number | undefined {
  const seconds = /timeout=(\d{1,6})/.exec(value)?.[1]
  return seconds === undefined ? undefined : Number(seconds) * 1000
}

function rangeOf(value: string): AnswerHead['range'] {
  const match = rangePattern.exec(value)
  if (match === null) return undefined
  const [first, last, total] = [Number(match[1]), Number(match[2]), Number(match[3])]
  return first <= last && last < total ? { first, last, total } : undefined
}
