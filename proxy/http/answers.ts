/** Answers that are not artifacts: errors, JSON, text. */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { HoldfastError } from '../../shared/errors.ts'
import { errorBody, errorHeaders, httpStatus } from './http-errors.ts'

/** A request in the hands of the edge. */
export interface Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly requestId: string
  /** Aborts when the client leaves or the answer is complete. */
  readonly signal: AbortSignal
}

export function sendError({ request, response, requestId }: Exchange, error: HoldfastError): void {
  if (response.headersSent) {
    // Too late to say so: a cut connection is the only honest answer.
    response.destroy()
    return
  }
  const headers: Record<string, string> = errorHeaders(error)
  if (!request.complete && bodyExpected(request)) headers['connection'] = 'close'
  sendJson(response, httpStatus[error.code], errorBody(error, requestId), requestId, headers, request.method === 'HEAD')
  if (!request.complete) drain(request)
}

export function sendJson(
  response: ServerResponse,
  status: number,
  body: unknown,
  requestId: string,
  headers: Record<string, string> = {},
  headOnly = false,
): void {
  sendText(response, status, 'application/json', JSON.stringify(body) + '\n', requestId, headers, headOnly)
}

export function sendText(
  response: ServerResponse,
  status: number,
  contentType: string,
  text: string,
  requestId: string,
  headers: Record<string, string> = {},
  headOnly = false,
): void {
  const body = Buffer.from(text)
  response.writeHead(status, {
    'content-type': contentType,
    'content-length': body.length,
    'x-content-type-options': 'nosniff',
    'x-request-id': requestId,
    ...headers,
  })
  response.end(headOnly ? undefined : body)
}

/** How much of a refused body is read so that the client sees the answer instead of a reset connection. */
const drainBytesMax = 4 * 1024 * 1024
const drainMs = 2_000

function drain(request: IncomingMessage): void {
  let bytes = 0
  const timer = setTimeout(() => request.destroy(), drainMs)
  request.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes > drainBytesMax) request.destroy()
  })
  request.once('close', () => clearTimeout(timer))
  request.on('error', () => clearTimeout(timer)) // the client left: nothing to tell it any more
}

function bodyExpected(request: IncomingMessage): boolean {
  return request.headers['transfer-encoding'] !== undefined || (request.headers['content-length'] ?? '0') !== '0'
}
