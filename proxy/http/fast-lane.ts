/**
 * The fast lane: answers plain GETs of small artifacts straight on the connection, before node:http sees it. An answer from memory
 * costs about half of what it does through node:http's request and response objects (bench: `GET hot`).
 *
 * It is safe because it never guesses. It understands one shape only: a chunk that is exactly one complete `GET <plain target>
 * HTTP/1.1` in printable ASCII whose header names all stand in a short list of names that cannot change the meaning of the answer.
 * Whatever differs by a byte (another method, a blank in the target, Range, a body, pipelining, half a head, a bare line feed, an
 * unknown or repeated header) hands the connection, with all its bytes unread, to node:http for good; and so does everything that is
 * not a plain success. So there is no request that the two, or a balancer in front, could understand differently.
 */
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import { isHost } from './broken-requests.ts'

/** What a request of the lane asked. */
export interface LaneRequest {
  readonly target: string
  readonly authorization: string | undefined
  readonly ifNoneMatch: string | undefined
  readonly forwardedFor: string | undefined
}

/** An answer: its head without Date, Connection and the empty line, and its body (none for a 304). */
export interface LaneAnswer {
  readonly status: 200 | 304
  readonly head: string
  readonly body: Buffer | undefined
}

export interface LaneDeps {
  /** The answer if it can be given without asking anybody, else undefined. Must not throw. */
  readonly answer: (request: LaneRequest, socket: Socket) => LaneAnswer | undefined
  /** The answer if it is a plain success after asking, else undefined. Must not reject. */
  readonly answerLater: (request: LaneRequest, socket: Socket) => Promise<LaneAnswer | undefined>
  /** False while draining: node:http says goodbye properly. */
  readonly open: () => boolean
  /** node:http has just taken this connection, and has read nothing of it. */
  readonly handedOver?: (socket: Socket) => void
  /** A connection on which nothing moves is closed after this time, in ms; told to clients in whole seconds, as node:http does. */
  readonly idleMs: number
}

/** Up to here head and body are joined into one write; a copy is cheaper than a second buffer in the system call. */
const joinedBytesMax = 32 * 1024
/** No more than the smallest limit that node:http can be given here (requestHeadBytesMax). */
const requestBytesMax = 4 * 1024

/** Puts the lane before `server`'s own handling of connections. Make it before the server listens. */
export class FastLane {
  readonly #deps: LaneDeps
  readonly #connections = new Set<LaneConnection>()
  readonly #headEnd: HeadEnd
  readonly #attach: (socket: Socket) => void

  constructor(server: Server, deps: LaneDeps) {
    this.#deps = deps
    this.#headEnd = new HeadEnd(deps.idleMs)
    // node:http attaches itself to a connection in its own listener of this event, the first one.
    const [attach] = server.listeners('connection') as [(this: Server, socket: Socket) => void]
    server.off('connection', attach)
    this.#attach = socket => {
      attach.call(server, socket)
      deps.handedOver?.(socket)
    }
    server.prependListener('connection', socket => this.#onConnection(socket))
  }

  /** Connections in the lane. node:http knows nothing of them, so its ways of closing connections do not reach them. */
  get size(): number {
    return this.#connections.size
  }

  /**
   * Ends the connections that are between two requests, the others with the answer that is being prepared for them. To be called when
   * `open` has been false for a while: what comes on a kept connection until now is answered by node:http.
   */
  close(): void {
    for (const connection of this.#connections) connection.end()
  }

  /** Cuts all connections. */
  destroy(): void {
    for (const connection of this.#connections) connection.destroy()
  }

  #onConnection(socket: Socket): void {
    if (!this.#deps.open()) {
      this.#attach(socket)
      return
    }
    const connection = new LaneConnection(socket, this.#deps, this.#headEnd, unread => {
      this.#connections.delete(connection)
      if (unread === undefined) return
      socket.unshift(unread)
      this.#attach(socket)
      socket.resume()
    })
    this.#connections.add(connection)
    connection.start()
  }
}

class LaneConnection {
  readonly #socket: Socket
  readonly #deps: LaneDeps
  /** `unread`: what goes to node:http; undefined: the connection has ended. */
  readonly #left: (unread: Buffer | undefined) => void
  /** Header lines of the last request that was understood: most clients repeat them byte for byte. */
  #headers = ''
  #authorization: string | undefined
  #ifNoneMatch: string | undefined
  #forwardedFor: string | undefined
  #state: 'idle' | 'asking' | 'left' = 'idle'
  /** The answer that is being prepared is the last one: the client has ended its half, or the lane is closing. */
  #last = false
  readonly #headEnd: HeadEnd

  constructor(socket: Socket, deps: LaneDeps, headEnd: HeadEnd, left: (unread: Buffer | undefined) => void) {
    this.#socket = socket
    this.#deps = deps
    this.#left = left
    this.#headEnd = headEnd
  }

  start(): void {
    const socket = this.#socket
    socket.on('data', this.#onData)
    socket.on('drain', this.#onDrain)
    socket.on('close', this.#onClose)
    socket.on('end', this.#onEnd)
    socket.on('error', ignoreReset)
    socket.on('timeout', this.#onTimeout)
    socket.setTimeout(this.#deps.idleMs)
  }

  /** Not before what was answered is sent, and what is being prepared answered. */
  end(): void {
    if (this.#state === 'asking') this.#last = true
    else this.#socket.destroySoon()
  }

  destroy(): void {
    this.#socket.destroy()
  }

  readonly #onData = (chunk: Buffer): void => {
    const request = this.#deps.open() ? this.#read(chunk) : undefined
    if (request === undefined) {
      this.#leave(chunk)
      return
    }
    const answer = this.#deps.answer(request, this.#socket)
    if (answer === undefined) void this.#askLater(request, chunk)
    else if (!this.#write(answer)) this.#socket.pause() // a client that does not read is not read from
  }

  async #askLater(request: LaneRequest, chunk: Buffer): Promise<void> {
    this.#state = 'asking'
    this.#socket.pause()
    const answer = await this.#deps.answerLater(request, this.#socket)
    if (this.#state !== 'asking') return // the client has gone
    this.#state = 'idle'
    // After its end nothing can be put back into a stream. node:http too drops what it cannot answer before the end of the client's half.
    if (answer === undefined && this.#socket.readableEnded) this.#socket.destroySoon()
    else if (answer === undefined) this.#leave(chunk)
    else if (this.#last) {
      this.#write(answer)
      this.#socket.destroySoon()
    } else if (this.#write(answer)) this.#socket.resume()
    // else 'drain' resumes it
  }

  readonly #onDrain = (): void => {
    if (this.#state === 'idle') this.#socket.resume()
  }
  readonly #onTimeout = (): void => {
    this.#socket.destroy()
  }
  readonly #onEnd = (): void => {
    this.end()
  }
  readonly #onClose = (): void => {
    this.#state = 'left'
    this.#left(undefined)
  }

  #leave(unread: Buffer): void {
    const socket = this.#socket
    this.#state = 'left'
    socket.pause()
    socket.off('data', this.#onData)
    socket.off('drain', this.#onDrain)
    socket.off('close', this.#onClose)
    socket.off('end', this.#onEnd)
    socket.off('error', ignoreReset)
    socket.off('timeout', this.#onTimeout)
    socket.setTimeout(0)
    this.#left(unread)
  }

  #read(chunk: Buffer): LaneRequest | undefined {
    if (chunk.length > requestBytesMax) return undefined
    const text = chunk.toString('latin1')
    const lineEnd = text.indexOf('\r\n')
    if (!text.startsWith('GET /repository/') || !text.startsWith(' HTTP/1.1', lineEnd - 9)) return undefined
    const headers = text.slice(lineEnd)
    if (headers !== this.#headers && !this.#readHeaders(headers)) return undefined
    const target = text.slice(4, lineEnd - 9)
    if (!plainTarget.test(target)) return undefined
    return {
      target,
      authorization: this.#authorization,
      ifNoneMatch: this.#ifNoneMatch,
      forwardedFor: this.#forwardedFor,
    }
  }

  /** From the end of the request line to the end of the head. False: not for us. */
  #readHeaders(headers: string): boolean {
    // One head and nothing behind it.
    if (headers.indexOf('\r\n\r\n') !== headers.length - 4 || stray.test(headers)) return false
    let host = false
    let authorization: string | undefined
    let ifNoneMatch: string | undefined
    let forwardedFor: string | undefined
    for (const line of headers.slice(2, -4).split('\r\n')) {
      const colon = line.indexOf(':')
      const name = line.slice(0, Math.max(0, colon)).toLowerCase()
      const value = line.slice(colon + 1).trim()
      if (name === 'host' && !host && value !== '' && isHost(value)) host = true
      else if (name === 'authorization' && authorization === undefined) authorization = value
      else if (name === 'if-none-match' && ifNoneMatch === undefined) ifNoneMatch = value
      else if (name === 'x-forwarded-for' && forwardedFor === undefined) forwardedFor = value
      else if (name === 'connection' ? value.toLowerCase() !== 'keep-alive' : !harmless.has(name)) return false
    }
    if (!host) return false
    this.#headers = headers
    this.#authorization = authorization
    this.#ifNoneMatch = ifNoneMatch
    this.#forwardedFor = forwardedFor
    return true
  }

  /** False: the client does not keep up. */
  #write({ head, body }: LaneAnswer): boolean {
    const socket = this.#socket
    const whole = head + (this.#last ? this.#headEnd.closing() : this.#headEnd.keeping())
    if (body === undefined) return socket.write(whole, 'latin1')
    if (body.length <= joinedBytesMax) {
      const joined = Buffer.allocUnsafe(whole.length + body.length)
      joined.write(whole, 0, 'latin1')
      body.copy(joined, whole.length)
      return socket.write(joined)
    }
    socket.cork()
    socket.write(whole, 'latin1')
    const kept = socket.write(body)
    socket.uncork()
    return kept
  }
}

/** Headers that change nothing about a GET answered from memory. A new one comes in only with a reason why that is so. */
const harmless: ReadonlySet<string> = new Set([
  'accept',
  'accept-charset',
  'accept-encoding',
  'accept-language',
  'cache-control',
  'dnt',
  'forwarded',
  'from',
  'origin',
  'pragma',
  'priority',
  'referer',
  'traceparent',
  'tracestate',
  'user-agent',
  'via',
  'x-forwarded-host',
  'x-forwarded-port',
  'x-forwarded-proto',
  'x-real-ip',
])
/** The characters of RFC 3986 without '#': no blank and no line end, so that a request line is read in one way only. */
const plainTarget = /^[\w.~!$&'()*+,;=:@/?%-]*$/
/**
 * A line feed or carriage return outside their pair, and what is neither printable ASCII nor a tab: beyond ASCII, `trim` would take more
 * for blanks than HTTP does. A folded line, or a blank before the colon, makes a name that is not in the list.
 */
const stray = /[^\r]\n|\r[^\n]|[^\t\r\n -~]/

/** A connection that the client reset is gone: 'close' follows. */
function ignoreReset(): void {}

/** The last lines of a head, as node:http writes them. Made once a second, not once a request. */
class HeadEnd {
  readonly #keepAlive: string
  #second = 0
  #date = ''
  #keeping = ''

  constructor(idleMs: number) {
    this.#keepAlive = `Connection: keep-alive\r\nKeep-Alive: timeout=${Math.floor(idleMs / 1000)}\r\n\r\n`
  }

  keeping(): string {
    const second = Math.floor(Date.now() / 1000)
    if (second !== this.#second) {
      this.#second = second
      this.#date = `Date: ${new Date(second * 1000).toUTCString()}\r\n`
      this.#keeping = this.#date + this.#keepAlive
    }
    return this.#keeping
  }

  closing(): string {
    this.keeping()
    return this.#date + 'Connection: close\r\n\r\n'
  }
}
