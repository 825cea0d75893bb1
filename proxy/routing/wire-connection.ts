/**
 * One kept connection to a storage node for requests with a body: HTTP/1.1 by hand on a plain socket, one exchange at a
 * time. Only our own nodes speak to it, so it is narrow and strict: an answer it does not understand ends the connection.
 * It exists because undici's request bodies cost two thirds more CPU per byte, and hide how far a replica is behind.
 */
import { connect as connectTcp, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { PatientTimer } from '../../shared/patient-timer.ts'

const connectTimeoutMs = 1_000
/** Node's own servers close idle connections after 5 s at the earliest; being first avoids most broken requests. */
const idleTimeoutMs = 3_500
const answerHeadBytesMax = 16 * 1024
const answerBytesMax = 4 * 1024 * 1024

export interface WireAnswer {
  readonly status: number
  readonly body: Buffer
}

export interface ExchangeHandlers {
  /** The whole answer. An answer before the request was complete ends the connection. */
  readonly onAnswer: (answer: WireAnswer) => void
  /** No answer will come. `stale`: a kept connection broke before any byte of an answer; a new one may do better. */
  readonly onFail: (cause: Error, stale: boolean) => void
  /** Everything written so far is with the kernel. */
  readonly onDrain?: () => void
}

export class WireConnection {
  readonly #socket: Socket
  readonly #onIdle: (connection: WireConnection) => void
  readonly #secure: boolean
  readonly #onGone: (connection: WireConnection) => void
  #handlers: ExchangeHandlers | undefined
  readonly #timer = new PatientTimer()
  #input: Buffer | undefined
  #exchanges = 0
  #connected = false
  #requestComplete = true
  #timeoutMs = 0
  #gone = false

  /** `onIdle`: an exchange ended and another may begin. `onGone`: closed for good; told once. */
  constructor(url: URL, onIdle: (connection: WireConnection) => void, onGone: (connection: WireConnection) => void) {
    this.#onIdle = onIdle
    this.#onGone = onGone
    const secure = url.protocol === 'https:'
    this.#secure = secure
    const address = { host: url.hostname.replace(/^\[|\]$/g, ''), port: Number(url.port) }
    this.#socket = secure ? connectTls({ ...address, servername: address.host }) : connectTcp(address)
    this.#socket.setNoDelay(true)
    this.#timer.set(connectTimeoutMs, () => this.#fail(coded('CONNECT_TIMEOUT')))
    this.#socket.once(secure ? 'secureConnect' : 'connect', () => {
      this.#connected = true
      this.#setTimer(this.#timeoutMs)
    })
    this.#socket.on('data', (chunk: Buffer) => this.#onData(chunk))
    this.#socket.on('drain', () => this.#handlers?.onDrain?.())
    this.#socket.on('error', error => this.#fail(error))
    this.#socket.on('end', () => this.#fail(coded('ECONNRESET')))
    this.#socket.on('close', () => this.#fail(coded('ECONNRESET')))
    this.#socket.on('timeout', () => {
      if (this.#handlers === undefined) this.destroy()
    })
  }

  /** Bytes written that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.writableLength
  }

  /** Whether an exchange may begin; the caller then owns the connection until `onIdle` or `onFail`. */
  get usable(): boolean {
    return !this.#gone && this.#handlers === undefined
  }

  /** Begins an exchange. `timeoutMs` is for the whole of it, 0 for none; a new connection has 1 s to come about first. */
  begin(handlers: ExchangeHandlers, timeoutMs: number): void {
    this.#handlers = handlers
    this.#input = undefined
    this.#exchanges += 1
    this.#requestComplete = false
    this.#timeoutMs = timeoutMs
    this.#socket.setTimeout(0)
    if (this.#connected) this.#setTimer(timeoutMs)
  }

  write(bytes: Buffer): void {
    if (!this.#gone) this.#socket.write(bytes)
  }

  /** Between `cork` and `uncork` writes are gathered into one system call. */
  cork(): void {
    this.#socket.cork()
  }

  uncork(): void {
    this.#socket.uncork()
  }

  /** The request is written; only after that may the connection be used again. */
  complete(): void {
    this.#requestComplete = true
  }

  /**
   * Gives up whatever is in flight without telling its handlers. With a reset, so that the node does not go on to read, from what the
   * kernel still holds, a request that nobody stands behind any more.
   */
  destroy(): void {
    const inFlight = this.#handlers !== undefined
    this.#handlers = undefined
    if (!this.#secure && this.#connected && inFlight) this.#socket.resetAndDestroy()
    this.#leave()
  }

  #setTimer(timeoutMs: number): void {
    if (timeoutMs === 0) this.#timer.clear()
    else this.#timer.set(timeoutMs, () => this.#fail(coded('TIMEOUT')))
  }

  #onData(chunk: Buffer): void {
    if (this.#handlers === undefined) return this.destroy()
    this.#input = this.#input === undefined ? chunk : Buffer.concat([this.#input, chunk])
    const parsed = parseAnswer(this.#input)
    if (parsed === 'more') return
    if (parsed === 'nonsense') return this.#fail(coded('NONSENSE'))
    const handlers = this.#handlers
    this.#handlers = undefined
    this.#input = undefined
    this.#setTimer(0)
    if (parsed.keepAlive && this.#requestComplete) {
      this.#socket.setTimeout(idleTimeoutMs)
      this.#onIdle(this)
    } else {
      this.#leave()
    }
    handlers.onAnswer(parsed)
  }

  #fail(cause: Error): void {
    const handlers = this.#handlers
    const stale = this.#exchanges > 1 && this.#input === undefined && isReset(cause)
    this.#handlers = undefined
    this.#leave()
    handlers?.onFail(cause, stale)
  }

  #leave(): void {
    this.#setTimer(0)
    this.#socket.destroy()
    if (this.#gone) return
    this.#gone = true
    this.#onGone(this)
  }
}

/** Connections of one node that are open; the idle ones are used again, the latest first. */
export class WireConnections {
  readonly #url: URL
  readonly #idle: WireConnection[] = []
  readonly #open = new Set<WireConnection>()
  readonly #idleCountMax: number

  constructor(url: string, idleCountMax = 16) {
    this.#url = new URL(url)
    this.#idleCountMax = idleCountMax
  }

  get host(): string {
    return this.#url.host
  }

  /** An idle connection, or a new one. `fresh`: a new one in any case. */
  acquire(fresh = false): WireConnection {
    if (!fresh) {
      for (let idle = this.#idle.pop(); idle !== undefined; idle = this.#idle.pop()) if (idle.usable) return idle
    }
    const connection = new WireConnection(
      this.#url,
      free => {
        if (this.#idle.length < this.#idleCountMax) this.#idle.push(free)
        else free.destroy()
      },
      gone => this.#forget(gone),
    )
    this.#open.add(connection)
    return connection
  }

  /** Cuts all connections; exchanges in flight are not told. */
  destroy(): void {
    for (const connection of [...this.#open]) connection.destroy()
  }

  #forget(connection: WireConnection): void {
    this.#open.delete(connection)
    const index = this.#idle.indexOf(connection)
    if (index >= 0) this.#idle.splice(index, 1)
  }
}

/** The answer at the start of `input`: whole, or `'more'` must come, or it is not one of ours. */
export function parseAnswer(input: Buffer): (WireAnswer & { readonly keepAlive: boolean }) | 'more' | 'nonsense' {
  const headEnd = input.indexOf('\r\n\r\n')
  if (headEnd < 0) return input.length > answerHeadBytesMax ? 'nonsense' : 'more'
  const head = input.toString('latin1', 0, headEnd)
  const statusText = /^HTTP\/1\.1 ([2-5]\d\d)(?: |\r|$)/.exec(head)?.[1]
  if (statusText === undefined) return 'nonsense'
  const status = Number(statusText)
  const keepAlive = !/\r\nconnection: *close *(?:\r|$)/i.test(head)
  const rest = input.subarray(headEnd + 4)
  if (status === 204) return { status, keepAlive, body: Buffer.alloc(0) }
  if (/\r\ntransfer-encoding: *chunked *(?:\r|$)/i.test(head)) {
    const body = parseChunked(rest)
    return Buffer.isBuffer(body) ? { status, keepAlive, body } : body
  }
  const bodyBytes = Number(/\r\ncontent-length: *(\d{1,9}) *(?:\r|$)/i.exec(head)?.[1])
  if (!(bodyBytes <= answerBytesMax)) return 'nonsense'
  if (rest.length < bodyBytes) return 'more'
  return { status, keepAlive, body: rest.subarray(0, bodyBytes) }
}

function parseChunked(input: Buffer): Buffer | 'more' | 'nonsense' {
  if (input.length > answerBytesMax) return 'nonsense'
  const parts: Buffer[] = []
  for (let at = 0; ;) {
    const lineEnd = input.indexOf('\r\n', at)
    if (lineEnd < 0) return 'more'
    const sizeText = input.toString('latin1', at, lineEnd)
    if (!/^[0-9a-f]{1,7}$/i.test(sizeText)) return 'nonsense'
    const start = lineEnd + 2
    const end = start + Number.parseInt(sizeText, 16)
    if (input.length < end + 2) return 'more'
    if (end === start) return Buffer.concat(parts)
    parts.push(input.subarray(start, end))
    at = end + 2
  }
}

function isReset(cause: Error): boolean {
  const code = (cause as { code?: unknown }).code
  return code === 'ECONNRESET' || code === 'EPIPE'
}

function coded(code: string): Error {
  return Object.assign(new Error(code), { code })
}
