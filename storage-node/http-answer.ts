/** Answers of the wire that are not blobs: JSON, errors, and reading small request bodies. */
import type { IncomingMessage, ServerResponse } from 'node:http'
import { type ErrorCode, HoldfastError, toHoldfastError } from '../shared/errors.ts'
import { type WireError, wireHeader } from '../shared/wire.ts'
import type { Urgency } from './background.ts'
import type { BodyClaim } from './body-budget.ts'

/** Codes that are not here are bugs or disks: 500. */
const statuses: Partial<Record<ErrorCode, number>> = {
  BAD_REQUEST: 400,
  RECORD_DAMAGED: 400,
  LENGTH_MISMATCH: 400,
  CLUSTER_MAP_INVALID: 400,
  WIRE_UNAUTHORIZED: 401,
  NOT_FOUND: 404,
  SHARD_UNKNOWN: 404,
  BLOB_NOT_FOUND: 404,
  REFERENCE_NOT_FOUND: 404,
  UPLOAD_NOT_FOUND: 404,
  METHOD_NOT_ALLOWED: 405,
  REQUEST_TIMEOUT: 408,
  CONFLICT: 409,
  CHECKSUM_MISMATCH: 409,
  STALE_EPOCH: 409,
  STALE_TOKEN: 409,
  TOO_LARGE: 413,
  RANGE_NOT_SATISFIABLE: 416,
  BLOB_CORRUPT: 500,
  OVERLOADED: 503,
  SHARD_FAILED: 503,
  SHARD_READ_ONLY: 503,
  SHARD_RECOVERING: 503,
  SHUTTING_DOWN: 503,
  INSUFFICIENT_STORAGE: 507,
}

export function wireStatus(code: ErrorCode): number {
  return statuses[code] ?? 500
}

export function toWireError(error: HoldfastError): WireError {
  const { code, message, data } = error
  return Object.keys(data).length === 0 ? { code, message } : { code, message, data }
}

export function sendJson(response: ServerResponse, status: number, value: unknown, headers: string[] = []): void {
  sendBytes(response, status, 'application/json', Buffer.from(JSON.stringify(value)), headers)
}

export function sendBytes(
  response: ServerResponse,
  status: number,
  contentType: string,
  body: Buffer,
  headers: string[] = [],
): void {
  response.writeHead(status, ['Content-Type', contentType, 'Content-Length', String(body.length), ...headers])
  response.end(body)
}

/**
 * Answers with the error. Behind the head of another answer the connection is cut instead, so that nobody takes a part
 * for the whole. What is left of the request's body is read and thrown away by node:http: the connection lives on.
 */
export function sendError(response: ServerResponse, thrown: unknown, headers: string[] = []): HoldfastError {
  const error = toHoldfastError(thrown)
  if (response.headersSent) response.destroy()
  else sendJson(response, wireStatus(error.code), toWireError(error), headers)
  return error
}

export interface BodyLimits {
  readonly bytesMax: number
  readonly timeoutMs: number
  /** Released by whoever made it, when the request is answered. */
  readonly claim: BodyClaim
}

/** The whole body. TOO_LARGE beyond `bytesMax`, REQUEST_TIMEOUT if it takes longer than `timeoutMs`, OVERLOADED if no memory is left. */
export function readBody(request: IncomingMessage, { bytesMax, timeoutMs, claim }: BodyLimits): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let bytes = 0
    const fail = (code: ErrorCode, message: string, cause?: unknown) => {
      settle()
      chunks.length = 0
      reject(new HoldfastError(code, message, { bytesMax }, { cause }))
    }
    const onData = (chunk: Buffer) => {
      bytes += chunk.length
      try {
        if (bytes > bytesMax) throw new HoldfastError('TOO_LARGE', 'the request is too large')
        claim.take(chunk.length)
        chunks.push(chunk)
      } catch (error) {
        const { code, message } = toHoldfastError(error)
        fail(code, message)
        request.resume()
      }
    }
    const onEnd = () => {
      settle()
      resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks))
    }
    const onError = (cause: unknown) => fail('BAD_REQUEST', 'the request was cut off', cause)
    const onClose = () => fail('BAD_REQUEST', 'the request was cut off')
    const timer = setTimeout(() => {
      fail('REQUEST_TIMEOUT', 'the request came too slowly')
      request.destroy()
    }, timeoutMs)
    const settle = () => {
      clearTimeout(timer)
      // What happens to the request from here on is the server's business.
      request.off('data', onData).off('end', onEnd).off('close', onClose)
    }
    request.on('data', onData).on('end', onEnd).on('close', onClose).on('error', onError)
  })
}

/** What the request says it is: work in the background, or, undefined, something a client waits for. */
export function backgroundOf(request: IncomingMessage): Urgency | undefined {
  const said = headerOf(request, wireHeader.background)
  return said === undefined ? undefined : said === 'urgent' ? 'urgent' : 'usual'
}

/** The body as JSON object. BAD_REQUEST if it is none. */
export async function readJson(request: IncomingMessage, limits: BodyLimits): Promise<Record<string, unknown>> {
  const body = await readBody(request, limits)
  try {
    const value: unknown = JSON.parse(body.toString('utf8'))
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  } catch (cause) {
    throw new HoldfastError('BAD_REQUEST', 'the body is not JSON', {}, { cause })
  }
  throw new HoldfastError('BAD_REQUEST', 'the body is no JSON object')
}

/** One request header, without the object that node:http would build for all of them. */
export function headerOf(request: IncomingMessage, name: string): string | undefined {
  const raw = request.rawHeaders
  for (let index = 0; index < raw.length; index += 2) {
    const given = raw[index]
    if (given?.length === name.length && given.toLowerCase() === name) return raw[index + 1]
  }
  return undefined
}
