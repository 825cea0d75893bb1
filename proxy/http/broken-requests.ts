/** Requests that are refused for their form, before anybody asks what they want: 400, and the connection ends. */
import { STATUS_CODES, type IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { HoldfastError } from '../../shared/errors.ts'
import { errorBody } from './http-errors.ts'
import { requestIdOf } from './request-id.ts'

/** `uri-host [":" port]` of RFC 9110 7.2, which may be empty; RFC 3986 allows no blank, no '@' and no '/' in it. */
const hostPattern = /^(?:\[[0-9A-Fa-f:.]+\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::(\d{0,5}))?$/

/** Can this be the value of a Host header, or the authority of a target (which must not be empty)? */
export function isHost(text: string): boolean {
  const match = hostPattern.exec(text)
  return match !== null && Number(match[1] ?? 0) <= 65_535
}

/** The authority of an absolute-form target; undefined for one that has none. */
export function authorityOf(target: string): string | undefined {
  return target.startsWith('/') ? undefined : /^[a-z][a-z0-9+.-]*:\/\/([^/?#]*)/i.exec(target)?.[1]
}

/**
 * What node's parser lets pass and RFC 9112 (2.3, 3.2) does not: no version or another one than 1.x, no Host or two of them, a Host
 * or an authority that is none. Another server on the way might read such a request differently. undefined: nothing wrong.
 */
export function malformationOf(
  request: Pick<IncomingMessage, 'httpVersionMajor' | 'httpVersionMinor' | 'rawHeaders' | 'url'>,
): string | undefined {
  if (request.httpVersionMajor !== 1) return 'the request line names no version of HTTP/1'
  const { rawHeaders } = request
  let host: string | undefined
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at] ?? ''
    if (name.length !== 4 || name.toLowerCase() !== 'host') continue
    if (host !== undefined) return 'the request has two Host headers'
    host = rawHeaders[at + 1] ?? ''
  }
  if (host === undefined && request.httpVersionMinor > 0) return 'the request has no Host header'
  if (host !== undefined && !isHost(host)) return 'the Host header is malformed'
  const authority = authorityOf(request.url ?? '')
  return authority === undefined || (authority !== '' && isHost(authority)) ? undefined : 'the authority is malformed'
}

/** What node's parser refuses (malformed, too large, contradicting lengths) gets a clear answer, then the connection ends. */
export function refuseBrokenRequest(error: Error & { code?: string }, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy()
    return
  }
  const [status, code, message] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? ([431, 'BAD_REQUEST', 'the request head is too large'] as const)
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? ([408, 'REQUEST_TIMEOUT', 'the request head did not arrive in time'] as const)
        : ([400, 'BAD_REQUEST', 'this is no well-formed HTTP request'] as const)
  const body = JSON.stringify(errorBody(new HoldfastError(code, message), requestIdOf(undefined))) + '\n'
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  )
}
