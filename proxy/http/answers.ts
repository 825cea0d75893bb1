/** Answers that are not artifacts: errors, JSON, text. */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { HoldfastError } from '../../shared/errors.ts'
import { errorBody, errorHeaders, httpStatus } from './http-errors.ts'

/** A request in the hands of the edge. */
export interface Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly requestId: string
  /** Aborts when the client leaves or the answer is complete; with REQUEST_TIMEOUT when its body does not come. */
  readonly signal: AbortSignal
  /** Whoever answers waits for others: that nothing moves on the connection is not its client's fault. */
  waits?: boolean
}

/** After the head was sent, the connection is cut: too late to say so in any other way. */
export function sendError({ request, response, requestId }: Exchange, error: HoldfastError): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  // What is not there yet, or cannot be asked for right now, is no news in a minute: caches on the way may keep a bare 404.
  const headers: Record<string, string> = { 'cache-control': 'no-store', ...errorHeaders(error) }
  const status = httpStatus[error.code]
  const body = errorBody(error, requestId)
  const headOnly = request.method === 'HEAD'
  if (request.complete || !bodyExpected(request)) {
    sendJson(response, status, body, requestId, headers, headOnly)
    return
  }
  headers['connection'] = 'close'
  // The answer is all there, but not ended: node closes the connection with its end, and a client that is still sending would see
  // a reset, perhaps before it has read why.
  const text = Buffer.from(JSON.stringify(body) + '\n')
  response.writeHead(status, headOf('application/json', text.length, requestId, headers))
  if (headOnly) response.flushHeaders()
  else response.write(text)
  // Not asked for, not sent: there is nothing to wait for.
  if (request.headers.expect !== undefined && !request.readableDidRead) response.end()
  else drain(request, () => response.end())
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
  response.writeHead(status, headOf(contentType, body.length, requestId, headers))
  response.end(headOnly ? undefined : body)
}

function headOf(
  contentType: string,
  bytes: number,
  requestId: string,
  headers: Record<string, string>,
): Record<string, string | number> {
  return {
    'content-type': contentType,
    'content-length': bytes,
    'x-content-type-options': 'nosniff',
    'x-request-id': requestId,
    ...headers,
  }
}

/** How much of a refused body is read so that the client sees the answer instead of a reset connection. */
const drainBytesMax = 4 * 1024 * 1024
const drainMs = 2_000

/** Reads on, within limits, and says when that is over: the body ended, the client left, or it is enough. */
function drain(request: IncomingMessage, over: () => void): void {
  let bytes = 0
  const end = (): void => {
    clearTimeout(timer)
    request.off('data', count)
    over()
  }
  const count = (chunk: Buffer): void => {
    bytes += chunk.length
    if (bytes > drainBytesMax) end()
  }
  const timer = setTimeout(end, drainMs)
  request.on('data', count)
  request.on('error', () => {}) // the client left: 'close' tells
  request.once('end', end)
  request.once('close', end)
}

function bodyExpected(request: IncomingMessage): boolean {
  return request.headers['transfer-encoding'] !== undefined || (request.headers['content-length'] ?? '0') !== '0'
}
