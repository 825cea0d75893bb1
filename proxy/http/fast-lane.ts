/**
 * The fast lane: answers plain GETs of small artifacts straight on the connection, before node:http sees it. An answer from memory
 * costs about half of what it does through node:http's request and response objects (bench: `GET hot`).
 *
 * It is safe because it never guesses. It understands one shape only: a chunk that is exactly one complete `GET <plain target>
 * HTTP/1.1` whose header names all stand in a short list of names that cannot change the meaning of the answer. Whatever differs by a
 * byte (another method, Range, a body, pipelining, half a head, a bare line feed, an unknown or repeated header) hands the connection,
 * with all its bytes unread, to node:http for good; and so does everything that is not a plain success. So there is no request that the two could understand differently.
 */
import type { Server } from 'node:http'
import type { Socket } from 'node:net'

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
  /** An idle connection is closed after this time, in ms. */
  readonly idleMs: number
}

/** Up to here head and body are joined into one write; a copy is cheaper than a second buffer in the system call. */
const joinedBytesMax = 32 * 1024
const requestBytesMax = 8 * 1024

/** Puts the lane before `server`'s own handling of connections. Make it before the server listens. */
export class FastLane {
  readonly #deps: LaneDeps
  readonly #connections = new Map<Socket, LaneConnection>()
  readonly #attach: (socket: Socket) => void

  constructor(server: Server, deps: LaneDeps) {
    this.#deps = deps
    // node:http attaches itself to a connection in its own listener of this event, the first one.
    const [attach] = server.listeners('connection') as [(this: Server, socket: Socket) => void]
    server.off('connection', attach)
    this.#attach = socket => attach.call(server, socket)
    server.prependListener('connection', socket => this.#onConnection(socket))
  }

  /** Connections in the lane: each is between two answers. */
  get size(): number {
    return this.#connections.size
  }

  /** Hands all connections to node:http, whose business closing them is. */
  close(): void {
    for (const connection of this.#connections.values()) connection.handOver()
  }

  #onConnection(socket: Socket): void {
    if (!this.#deps.open()) {
      this.#attach(socket)
      return
    }
    const connection = new LaneConnection(socket, this.#deps, unread => {
      this.#connections.delete(socket)
      if (unread === undefined) return
      if (unread.length > 0) socket.unshift(unread)
      this.#attach(socket)
      socket.resume()
    })
    this.#connections.set(socket, connection)
    connection.start()
  }
}

const nothing = Buffer.alloc(0)

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

  constructor(socket: Socket, deps: LaneDeps, left: (unread: Buffer | undefined) => void) {
    this.#socket = socket
    this.#deps = deps
    this.#left = left
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

  /** A connection whose answer is being prepared gets that first. */
  handOver(): void {
    if (this.#state === 'idle') this.#leave(nothing)
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
    if (answer === undefined) this.#leave(chunk)
    else if (this.#write(answer)) this.#socket.resume()
    // else 'drain' resumes it
    if (answer !== undefined && !this.#deps.open()) this.handOver()
  }

  readonly #onDrain = (): void => {
    if (this.#state === 'idle') this.#socket.resume()
  }
  readonly #onTimeout = (): void => {
    this.#socket.destroy()
  }
  readonly #onEnd = (): void => {
    this.#socket.end()
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
    return {
      target,
      authorization: this.#authorization,
      ifNoneMatch: this.#ifNoneMatch,
      forwardedFor: this.#forwardedFor,
    }
  }

  /** From the end of the request line to the end of the head. False: not for us. */
  #readHeaders(headers: string): boolean {
    // One head and nothing behind it; no line feed or carriage return but in pairs, no other control character.
    if (headers.indexOf('\r\n\r\n') !== headers.length - 4 || strayControl.test(headers)) return false
    let host = false
    let authorization: string | undefined
    let ifNoneMatch: string | undefined
    let forwardedFor: string | undefined
    for (const line of headers.slice(2, -4).split('\r\n')) {
      const colon = line.indexOf(':')
      const name = line.slice(0, Math.max(0, colon)).toLowerCase()
      const value = line.slice(colon + 1).trim()
      if (name === 'host' && !host && value !== '') host = true
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
    const whole = `${head}Date: ${httpDateNow()}\r\nConnection: keep-alive\r\n\r\n`
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
const strayControl = /[^\r]\n|\r[^\n]|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\n[ \t]|\n[^:\r]*[ \t]:/

/** A connection that the client reset is gone: 'close' follows. */
function ignoreReset(): void {}

let dateSecond = 0
let dateText = ''
function httpDateNow(): string {
  const second = Math.floor(Date.now() / 1000)
  if (second !== dateSecond) {
    dateSecond = second
    dateText = new Date(second * 1000).toUTCString()
  }
  return dateText
}
