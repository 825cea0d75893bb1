/**
 * The edge: one node:http server. Artifact bytes never pass through a framework; /api/v1 is handed to fastify.
 * Every route stands in `edgeRoutes` with its access decision (I41).
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { Server as NetServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { HoldfastError, toHoldfastError } from '../../shared/errors.ts'
import { sendError, sendJson, sendText, type Exchange } from './answers.ts'
import { originForm } from './artifact-path.ts'
import type { ArtifactRoutes } from './artifact-routes.ts'
import { refuseBrokenRequest } from './broken-requests.ts'
import { Connections, quietWithinMs } from './connections.ts'
import { onlyReads, prefixOf, routeOf, welcome } from './edge-routes.ts'
import { httpStatus } from './http-errors.ts'
import { FastLane, type LaneAnswer, type LaneRequest } from './fast-lane.ts'
import { outcomeOf, type Metrics, type Route } from './metrics.ts'
import { requestIdOf } from './request-id.ts'
import { RequestLines } from './request-lines.ts'
import { SlowClients, type Direction, type PaceLimits } from './slow-clients.ts'

export interface Readiness {
  readonly ready: boolean
  /** What is not as it should be, also while ready. */
  readonly problems: readonly string[]
}

export interface EdgeServerOptions extends PaceLimits {
  readonly host: string
  readonly port: number
  readonly requestHeadBytesMax: number
  readonly connectionsMax: number
  /** Requests in flight beyond this are refused with 503. */
  readonly requestsMax: number
  /** A request on whose connection nothing moves for this long is answered 408 if it lacks its body, else its connection is closed. */
  readonly idleMs: number
  /** So long, at least, a proxy that ends takes new connections after it has begun to say on /readyz that it goes. */
  readonly lingerMs?: number
  /** 'off': node:http answers everything. What the two understand must not differ, and a test compares them. */
  readonly fastLane?: 'on' | 'off'
}

/** A request that is being answered. */
interface Underway extends Exchange {
  readonly socket: Socket
  readonly route: Route
  readonly startedAt: number
  /** Tells those who work for it to stop. */
  readonly giveUp: (reason: HoldfastError) => void
  /** Nobody is left who could be answered. */
  left: boolean
  /** It has been told why not. */
  failed: boolean
}

export interface EdgeServerDeps {
  readonly artifacts: ArtifactRoutes
  /** Handles everything under /api/v1. */
  readonly api: (request: IncomingMessage, response: ServerResponse) => void
  readonly metrics: Metrics
  readonly metricsText: () => Promise<string>
  readonly readiness: () => Readiness
  readonly log: Logger
}

const keepAliveMs = 75_000

export class EdgeServer {
  readonly #deps: EdgeServerDeps
  readonly #options: EdgeServerOptions
  readonly #server: Server
  readonly #lane: FastLane
  /** Answers that are not complete. */
  readonly #answering = new Map<ServerResponse, Underway>()
  /** Connections on which a broken request waits for the answers to those before it. */
  readonly #broken = new WeakSet<Socket>()
  /** Of the connections that node:http has. */
  readonly #lines = new WeakMap<Socket, RequestLines>()
  readonly #slowClients: SlowClients
  #looking: NodeJS.Timeout | undefined
  /** Answers of the lane are logged, too. Read once: the lane pays nothing for a log that is not written. */
  readonly #debug: boolean
  readonly #connections = new Connections()
  /** Connections of the fast lane that wait for an answer. */
  readonly #asking = new Set<Socket>()
  /** The metrics page that is being made. */
  #scraping: Promise<string> | undefined
  #draining = false
  #closing: Promise<void> | undefined
  /** Connections end with the answer they have. */
  #ending = false

  constructor(deps: EdgeServerDeps, options: EdgeServerOptions) {
    this.#deps = deps
    this.#options = options
    this.#debug = deps.log.isLevelEnabled('debug')
    this.#slowClients = new SlowClients(options)
    this.#server = createServer({
      maxHeaderSize: options.requestHeadBytesMax,
      // Longer than any client keeps an idle connection: the client closes first, so nothing is sent into a closing one.
      keepAliveTimeout: keepAliveMs,
      headersTimeout: 20_000,
      requestTimeout: 0, // long uploads live; idle ones end by `timeout`
      connectionsCheckingInterval: 5_000,
      requireHostHeader: false, // looked at with the rest of the head, and refused in our words
      noDelay: true,
    })
    this.#lane = new FastLane(this.#server, {
      answer: (request, socket) => this.#fromMemory(request, socket),
      answerLater: (request, socket) => this.#fromReplicas(request, socket),
      open: () => !this.#draining && options.fastLane !== 'off',
      handedOver: socket => void this.#lines.set(socket, new RequestLines().watch(socket)),
      idleMs: keepAliveMs,
    })
    // Beyond its limit node:http would drop headers, and with them perhaps a second Host; the size of a head is limited.
    this.#server.maxHeadersCount = 0
    this.#server.maxConnections = options.connectionsMax
    this.#server.timeout = options.idleMs
    this.#server.on('request', (request: IncomingMessage, response: ServerResponse) =>
      this.#onRequest(request, response, 'none'),
    )
    this.#server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) =>
      this.#onRequest(request, response, 'continue'),
    )
    this.#server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) =>
      this.#onRequest(request, response, 'unknown'),
    )
    this.#server.on('timeout', (socket: Socket) => this.#onTimeout(socket))
    this.#server.on('clientError', (error: Error & { code?: string }, socket: Socket) => this.#onBroken(error, socket))
    this.#server.on('connection', (socket: Socket) => this.#onConnection(socket))
  }

  get requestsInFlight(): number {
    return this.#answering.size + this.#asking.size
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** Where this machine reaches it; what listens on all addresses is asked on its own. */
  get url(): string {
    const { address, family, port } = this.#server.address() as AddressInfo
    if (family !== 'IPv6') return `http://${address === '0.0.0.0' ? '127.0.0.1' : address}:${port}`
    return `http://[${address === '::' ? '::1' : address}]:${port}`
  }

  /** Resolves once connections are accepted. */
  async listen(): Promise<void> {
    const { host, port } = this.#options
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen({ host, port, backlog: 4096 }, () => {
        this.#server.off('error', reject)
        // A connection that could not be accepted (no file descriptor left) is no reason to end.
        this.#server.on('error', error => this.#deps.log.error({ err: error }, 'could not accept a connection'))
        resolve()
      })
    })
    this.#looking = setInterval(() => this.#lookForSlowClients(), this.#slowClients.everyMs).unref()
  }

  /** Tells balancers by /readyz that this proxy is about to go; requests are still answered, the last one of each connection. */
  drain(): void {
    this.#draining = true
    for (const response of this.#answering.keys()) if (!response.headersSent) response.shouldKeepAlive = false
  }

  /**
   * Drains for `lingerMs` of the options, waits a moment for requests that are on their way on kept connections, then takes no new
   * connections and waits up to `drainMs` for what is in flight (I39). Safe to call twice.
   */
  close(drainMs: number): Promise<void> {
    this.#closing ??= this.#close(drainMs)
    return this.#closing
  }

  async #close(drainMs: number): Promise<void> {
    this.drain()
    await sleep(Math.min(this.#options.lingerMs ?? 0, drainMs))
    const late = setTimeout(() => {
      this.#lane.destroy()
      this.#server.closeAllConnections()
    }, drainMs)
    await this.#connections.quiet(Math.min(quietWithinMs, drainMs))
    // Not node:http's own way: it cuts connections whose answer is made, but not yet sent.
    const closed = new Promise<void>(resolve => NetServer.prototype.close.call(this.#server, () => resolve()))
    await this.#connections.heard()
    this.#ending = true
    this.#lane.close()
    // Also those that have sent nothing yet, or half a head: node:http would wait for the rest.
    const busy = new Set([...[...this.#answering.values()].map(({ socket }) => socket), ...this.#asking])
    for (const socket of this.#connections) if (!busy.has(socket)) socket.destroySoon()
    await closed
    // Of what was not its own way this is left: its timer.
    this.#server.close()
    clearTimeout(late)
    clearInterval(this.#looking)
  }

  #onConnection(socket: Socket): void {
    // Each request on it listens for its end, and there may be many, pipelined.
    socket.setMaxListeners(0)
    this.#connections.add(socket)
  }

  /**
   * The parser has refused what came. Bytes written now would become part of the answer that is under way, or the answer to a request before
   * the broken one: whoever waits for that gets it first, an upload above all, which is stored.
   */
  #onBroken(error: Error & { code?: string }, socket: Socket): void {
    if (this.#broken.has(socket)) return
    const before = [...this.#answering.values()].filter(one => one.socket === socket)
    const owed = before.filter(({ request }) => request.complete)
    if (before.some(({ response }) => response.headersSent) || !socket.writable) {
      socket.destroy()
      return
    }
    const last = owed.at(-1)
    if (last === undefined) {
      refuseBrokenRequest(error, socket)
      return
    }
    this.#broken.add(socket)
    socket.pause()
    last.response.once('close', () => {
      this.#broken.delete(socket)
      if (socket.writable) refuseBrokenRequest(error, socket)
      socket.resume() // that the client has left, too, is read
    })
  }

  #onRequest(request: IncomingMessage, response: ServerResponse, expectation: Expectation): void {
    const { socket } = request
    // At once, while the bytes that the parser is reading are at hand.
    const problem = this.#lines.get(socket)?.problemOf(request)
    if (this.#draining) {
      response.shouldKeepAlive = false
      this.#connections.requested()
    }
    const exchange = this.#begin(request, response)
    if (problem === undefined) {
      this.#dispatch(exchange, expectation).catch((thrown: unknown) => this.#fail(exchange, thrown))
      return
    }
    response.shouldKeepAlive = false
    // The parser is still at its head: it does not know yet whether a body follows.
    queueMicrotask(() => this.#fail(exchange, new HoldfastError('BAD_REQUEST', problem)))
  }

  #begin(request: IncomingMessage, response: ServerResponse): Underway {
    const { socket } = request
    const signals = new AbortController()
    const exchange: Underway = {
      request,
      response,
      requestId: requestIdOf(request.headers['x-request-id']),
      signal: signals.signal,
      socket,
      route: routeOf(request),
      startedAt: performance.now(),
      giveUp: reason => signals.abort(reason),
      left: false,
      failed: false,
    }
    const sentBefore = socket.bytesWritten
    this.#answering.set(response, exchange)
    const end = (): void => {
      // A connection's end may tell both in one go: taken away now, the second listener is still called.
      if (exchange.left) return
      exchange.left = true
      response.off('close', end)
      socket.off('close', end)
      signals.abort()
      this.#deps.metrics.sentBytes += socket.bytesWritten - sentBefore
      this.#end(exchange)
    }
    response.once('close', end)
    // A pipelined answer that never had its turn hears nothing of the end of its connection.
    socket.once('close', end)
    return exchange
  }

  /** Nothing has moved on the connection for `idleMs`, or `keepAliveMs` between two requests. */
  #onTimeout(socket: Socket): void {
    const exchange = this.#answeringOn(socket)
    if (exchange !== undefined && awaitsBody(exchange)) {
      this.#tooSlow(socket, 'upload')
      return
    }
    if (exchange?.waits === true && socket.writableLength === 0) {
      socket.setTimeout(this.#options.idleMs)
      return
    }
    if (socket.writableLength > 0) this.#deps.metrics.slowClients.download++
    socket.destroy()
  }

  #lookForSlowClients(): void {
    const waitedFor = new Map<Socket, Direction>()
    for (const exchange of this.#answering.values()) {
      // What has arrived and is not taken waits for us.
      if (awaitsBody(exchange) && exchange.request.readableLength === 0) waitedFor.set(exchange.socket, 'upload')
    }
    for (const socket of this.#connections) if (socket.writableLength > 0) waitedFor.set(socket, 'download')
    for (const [socket, direction] of this.#slowClients.look(waitedFor)) this.#tooSlow(socket, direction)
  }

  /** A client that does not send is told so, one that does not read is cut off. */
  #tooSlow(socket: Socket, direction: Direction): void {
    this.#deps.metrics.slowClients[direction]++
    const exchange = direction === 'upload' ? this.#answeringOn(socket) : undefined
    if (exchange === undefined) {
      socket.destroy()
      return
    }
    const error = new HoldfastError('REQUEST_TIMEOUT', 'the body of the request did not arrive in time')
    exchange.giveUp(error)
    this.#fail(exchange, error)
  }

  /** The request on this connection whose turn it is. */
  #answeringOn(socket: Socket): Underway | undefined {
    return [...this.#answering.values()].find(one => one.socket === socket && one.response.socket === socket)
  }

  #fromMemory(request: LaneRequest, socket: Socket): LaneAnswer | undefined {
    const startedAt = performance.now()
    try {
      const answer = this.#deps.artifacts.fromMemory(request, socket)
      if (answer !== undefined) this.#observeLane(request, answer, startedAt)
      return answer
    } catch {
      return undefined // node:http's path meets the same trouble, tells the client and the log
    }
  }

  async #fromReplicas(request: LaneRequest, socket: Socket): Promise<LaneAnswer | undefined> {
    if (this.#asking.size + this.#answering.size >= this.#options.requestsMax) return undefined
    const startedAt = performance.now()
    this.#asking.add(socket)
    try {
      const answer = await this.#deps.artifacts.fromReplicas(request, socket)
      if (answer !== undefined) this.#observeLane(request, answer, startedAt)
      return answer
    } catch {
      return undefined // node:http's path meets the same trouble, tells the client and the log
    } finally {
      this.#asking.delete(socket)
    }
  }

  #observeLane({ target }: LaneRequest, { status, head }: LaneAnswer, startedAt: number): void {
    const seconds = (performance.now() - startedAt) / 1000
    this.#deps.metrics.observe('get', outcomeOf(status), seconds)
    if (!this.#debug) return
    // Whether all of it arrived is not known here: it has just been made.
    const requestId = /^X-Request-Id: (.*)$/m.exec(head)?.[1]?.trim()
    this.#deps.log.debug(
      { requestId, method: 'GET', url: target.slice(0, 300), status, seconds, lane: true },
      'request',
    )
  }

  async #dispatch(exchange: Exchange, expectation: Expectation): Promise<void> {
    const { request, response, requestId } = exchange
    const target = originForm(request.url ?? '')
    const path = target.split('?', 1)[0] ?? ''
    const prefix = prefixOf(path)
    // Whoever watches over this process is answered also then: a busy proxy is not a dead one.
    const limited = prefix === '/repository/' || prefix === '/api/v1/'
    if (limited && this.#answering.size > this.#options.requestsMax) {
      throw new HoldfastError('OVERLOADED', 'too many requests at once', { retryAfterSeconds: 1 })
    }
    if (expectation === 'unknown') {
      throw new HoldfastError('EXPECTATION_FAILED', "no other expectation than '100-continue' can be met here")
    }
    const expectContinue = expectation === 'continue'
    switch (prefix) {
      case '/repository/':
        return this.#deps.artifacts.handle(exchange, expectContinue)
      case '/api/v1/':
        request.headers['x-request-id'] = requestId
        if (expectContinue) response.writeContinue()
        return this.#deps.api(request, response)
      case '/healthz':
        onlyReads(request)
        return sendText(response, 200, 'text/plain', 'alive\n', requestId, {}, request.method === 'HEAD')
      case '/readyz':
        onlyReads(request)
        return this.#readyz(exchange)
      case '/metrics':
        onlyReads(request)
        return sendText(response, 200, 'text/plain; version=0.0.4; charset=utf-8', await this.#metricsText(), requestId)
      case '/':
        onlyReads(request)
        if (path !== '/')
          throw new HoldfastError(
            'NOT_FOUND',
            `nothing at ${path.slice(0, 200)}; artifacts are under /repository/<repository>/<path>`,
          )
        return sendText(response, 200, 'text/plain', welcome, requestId, {}, request.method === 'HEAD')
    }
  }

  /** Whoever asks while it is being made gets the same: asking in a loop makes no more work. */
  #metricsText(): Promise<string> {
    this.#scraping ??= this.#deps.metricsText().finally(() => (this.#scraping = undefined))
    return this.#scraping
  }

  #readyz({ request, response, requestId }: Exchange): void {
    const { ready, problems } = this.#deps.readiness()
    const ok = ready && !this.#draining
    const all = this.#draining ? ['draining', ...problems] : problems
    sendJson(response, ok ? 200 : 503, { ready: ok, problems: all }, requestId, {}, request.method === 'HEAD')
  }

  #fail(exchange: Underway, thrown: unknown): void {
    // A client that left needs no answer, and what its absence broke is no error of ours; nor is what was given up.
    if ((exchange.left && !exchange.response.writableFinished) || exchange.failed) return
    exchange.failed = true
    const error = toHoldfastError(thrown)
    const { request, requestId } = exchange
    const status = httpStatus[error.code]
    if (status >= 500) {
      const facts = { err: error, requestId, method: request.method, url: request.url?.slice(0, 300), status }
      if (error.code === 'INTERNAL') this.#deps.log.error(facts, 'request failed')
      else this.#deps.log.warn(facts, 'request refused')
    }
    sendError(exchange, error)
    // It is answered; that the rest of its body is still listened to is a courtesy that takes no place from others.
    this.#answering.delete(exchange.response)
  }

  #end(exchange: Underway): void {
    this.#answering.delete(exchange.response)
    this.#account(exchange)
    if (!this.#ending) return
    const { socket } = exchange
    // Not at once: node:http has to hear first that this answer is complete.
    setImmediate(() => {
      if (![...this.#answering.values()].some(one => one.socket === socket)) socket.destroySoon()
    })
  }

  #account({ request, response, requestId, route, startedAt }: Underway): void {
    const seconds = (performance.now() - startedAt) / 1000
    const complete = response.writableFinished
    const outcome = complete ? outcomeOf(response.statusCode) : 'aborted'
    this.#deps.metrics.observe(route, outcome, seconds)
    if (!this.#debug) return
    const facts = {
      requestId,
      method: request.method,
      url: request.url?.slice(0, 300),
      status: response.statusCode,
      seconds,
      complete,
    }
    this.#deps.log.debug(facts, 'request')
  }
}

/** What the client waits for before it sends its body: nothing, "100 Continue", or something we do not know. */
type Expectation = 'none' | 'continue' | 'unknown'

const awaitsBody = ({ request, response, failed }: Underway): boolean =>
  !failed && !request.complete && !response.headersSent
