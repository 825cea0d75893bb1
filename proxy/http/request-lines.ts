/**
 * Request lines as they came. node:http's parser takes several blanks where RFC 9112 3 has one, and tells only what it made of them;
 * a server before us may have made something else. So the bytes of a connection are looked at on their way to the parser: each
 * request must begin with exactly `METHOD SP target SP HTTP/1.x CRLF`, in the place where the one before it ends by its length.
 *
 * It is a check and no second parser: what it expects is built from what the parser told, and wherever the two disagree (also about
 * the end of a body) the request is refused. Behind a chunked body the next request must wait for its own packet: clients that
 * pipeline behind an upload in one are unheard of, and get a 400.
 */
import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { malformationOf } from './broken-requests.ts'

type Seen = Pick<
  IncomingMessage,
  'method' | 'url' | 'httpVersion' | 'httpVersionMajor' | 'httpVersionMinor' | 'rawHeaders' | 'headers' | 'complete'
>

const nothing = Buffer.alloc(0)
const headEnd = '\r\n\r\n'

export class RequestLines {
  /** Bytes not yet accounted for: the head that is awaited begins with the first of them. Bounded by the parser's limit for heads. */
  #bytes: Buffer = nothing
  /** Bytes of a body that are still to come. */
  #bodyLeft = 0
  /** The request whose chunked body is under way, and the last bytes that went by. */
  #chunked: { readonly request: Pick<Seen, 'complete'>; tail: string } | undefined
  #problem: string | undefined

  /** Looks at everything that goes from `socket` to the parser. To be called when node:http has just taken the connection. */
  watch(socket: Socket): this {
    // node:http notices the listener, and from then on takes the bytes from the stream and no longer behind its back.
    socket.prependListener('data', (chunk: Buffer) => this.note(chunk))
    return this
  }

  /** A chunk, before the parser sees it. */
  note(chunk: Buffer): void {
    if (this.#problem !== undefined) return
    if (this.#chunked !== undefined) {
      const { request, tail } = this.#chunked
      if (!request.complete) {
        this.#chunked.tail = tailOf(tail, chunk)
        return
      }
      // A message that ended with anything else had the beginning of another head behind it, which nobody has looked at.
      if (tail !== headEnd) this.#problem = unaligned
      this.#chunked = undefined
    }
    const body = Math.min(this.#bodyLeft, chunk.length)
    this.#bodyLeft -= body
    const rest = body === 0 ? chunk : chunk.subarray(body)
    this.#bytes = this.#bytes.length === 0 ? rest : Buffer.concat([this.#bytes, rest])
    this.#skipEmptyLines()
  }

  /**
   * Why the request whose head the parser has just read must be refused; undefined if it need not. After a refusal nothing on the
   * connection is taken any more.
   */
  problemOf(request: Seen): string | undefined {
    this.#problem ??= malformationOf(request) ?? this.#misalignmentOf(request)
    return this.#problem
  }

  #misalignmentOf(request: Seen): string | undefined {
    const bytes = this.#bytes
    const line = `${request.method} ${request.url} HTTP/${request.httpVersion}\r\n`
    if (this.#chunked !== undefined || this.#bodyLeft > 0) return unaligned
    if (bytes.toString('latin1', 0, line.length) !== line) return 'the request line is malformed'
    const end = bytes.indexOf(headEnd, line.length - 2, 'latin1')
    if (end < 0) return unaligned
    const rest = bytes.subarray(end + headEnd.length)
    const coding = request.headers['transfer-encoding']
    if (coding !== undefined) {
      // Any other one would be stored as it came, as if its bytes were the artifact's.
      if (coding.toLowerCase() !== 'chunked') return 'the request has a transfer coding that is not understood'
      this.#chunked = { request, tail: tailOf('', rest) }
      this.#bytes = nothing
      return undefined
    }
    const bodyBytes = Number(request.headers['content-length'] ?? 0)
    this.#bodyLeft = Math.max(0, bodyBytes - rest.length)
    this.#bytes = rest.length <= bodyBytes ? nothing : rest.subarray(bodyBytes)
    this.#skipEmptyLines()
    return undefined
  }

  /** RFC 9112 2.2: empty lines before a request line are passed over. */
  #skipEmptyLines(): void {
    let at = 0
    while (this.#bytes[at] === 0x0d || this.#bytes[at] === 0x0a) at++
    if (at > 0) this.#bytes = at === this.#bytes.length ? nothing : this.#bytes.subarray(at)
  }
}

const unaligned = 'the request does not begin where the one before it ends'

function tailOf(before: string, chunk: Buffer): string {
  return (before + chunk.toString('latin1', Math.max(0, chunk.length - 4))).slice(-4)
}
