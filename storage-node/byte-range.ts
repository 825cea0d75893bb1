import { HoldfastError } from '../shared/errors.ts'

/** Inclusive byte positions. */
export interface ByteRange {
  readonly first: number
  readonly last: number
}

const pattern = /^bytes=(\d{1,15})-(\d{0,15})$/

/**
 * The part that a Range header asks for of something `bytes` long; only `bytes=a-b` and `bytes=a-`, which is all our own
 * proxies send. BAD_REQUEST for anything else, RANGE_NOT_SATISFIABLE when it begins behind the end.
 */
export function parseRange(header: string, bytes: number): ByteRange {
  const match = pattern.exec(header)
  if (match === null) throw new HoldfastError('BAD_REQUEST', 'unsupported Range', { range: header.slice(0, 64) })
  const first = Number(match[1])
  const last = match[2] === '' ? bytes - 1 : Math.min(Number(match[2]), bytes - 1)
  if (match[2] !== '' && Number(match[2]) < first) throw new HoldfastError('BAD_REQUEST', 'unsupported Range')
  if (first >= bytes) throw new HoldfastError('RANGE_NOT_SATISFIABLE', 'the range begins behind the end', { bytes })
  return { first, last }
}
