import { randomBytes } from 'node:crypto'

const prefix = randomBytes(6).toString('base64url')
let counter = 0

/** Unique per request and process; cheap enough for the hot path. */
export function newRequestId(): string {
  counter = (counter + 1) % 0x7fff_ffff
  return prefix + counter.toString(36)
}

const acceptable = /^[\w.:/+=-]{1,128}$/

/** The id the client (or a balancer) gave, if it is harmless; else a new one. */
export function requestIdOf(header: string | string[] | undefined): string {
  return typeof header === 'string' && acceptable.test(header) ? header : newRequestId()
}
