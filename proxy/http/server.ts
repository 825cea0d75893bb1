/**
 * The edge: one node:http server. Artifact bytes never pass through a framework; /api/v1 is handed to fastify.
 * Every route stands in `edgeRoutes` with its access decision (I41).
 */
import { createServer, STATUS_CODES, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import type { Logger } from 'pino'
import { HoldfastError, toHoldfastError } from '../../shared/errors.ts'
import { sendError, sendJson, sendText, type Exchange } from './answers.ts'
import { originForm } from './artifact-path.ts'
import type { ArtifactRoutes } from './artifact-routes.ts'
import { errorBody, httpStatus } from './http-errors.ts'
import { FastLane, type LaneAnswer, type LaneRequest } from './fast-lane.ts'
import { outcomeOf, type Metrics, type Route } from './metrics.ts'
import { requestIdOf } from './request-id.ts'

/** All there is on the public port. 'public': answers carry no artifact and no secret; 'decided': the handler asks proxy/access. */
export const edgeRoutes = [
  { prefix: '/repository/', access: 'decided' },
  { prefix: '/api/v1/', access: 'decided' },
  { prefix: '/healthz', access: 'public' },
  { prefix: '/readyz', access: 'public' },
  { prefix: '/metrics', access: 'public' },
  { prefix: '/', access: 'public' },
] as const
type EdgePrefix = (typeof edgeRoutes)[number]['prefix']

export interface Readiness {
  readonly ready: boolean
  /** What is not as it should be, also while ready. */
  readonly problems: readonly string[]
}

export interface EdgeServerOptions {
  readonly host: string
  readonly port: number
  readonly requestHeadBytesMax: number
  readonly connectionsMax: number
  /** Requests in flight beyond this are refused with 503. */
  readonly requestsMax: number
  /** A connection on which nothing moves for this long in mid-request is closed. */
  readonly idleMs: number
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
  /** Answers that are not complete, and their connections. */
  readonly #answering = new Map<ServerResponse, Socket>()
  readonly #connections = new Set<Socket>()
  /** Connections of the fast lane that wait for an answer. */
  readonly #asking = new Set<Socket>()
  #draining = false
  #closing: Promise<void> | undefined
  /** Connections end with the answer they have. */
  #ending = false
  /** Called when the last connection has gone. */
  #onDeserted: (() => void) | undefined

  constructor(deps: EdgeServerDeps, options: EdgeServerOptions) {
    this.#deps = deps
    this.#options = options
    this.#server = createServer({
      maxHeaderSize: options.requestHeadBytesMax,
      // Longer than any client keeps an idle connection: the client closes first, so nothing is sent into a closing one.
      keepAliveTimeout: keepAliveMs,
      headersTimeout: 20_000,
      requestTimeout: 0, // long uploads live; idle ones end by `timeout`
      connectionsCheckingInterval: 5_000,
      noDelay: true,
    })
    this.#lane = new FastLane(this.#server, {
      answer: (request, socket) => this.#fromMemory(request, socket),
      answerLater: (request, socket) => this.#fromReplicas(request, socket),
      open: () => !this.#draining,
      idleMs: keepAliveMs,
    })
    this.#server.maxConnections = options.connectionsMax
    this.#server.timeout = options.idleMs
    this.#server.on('request', (request: IncomingMessage, response: ServerResponse) =>
      this.#onRequest(request, response, false),
    )
    this.#server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) =>
      this.#onRequest(request, response, true),
    )
    this.#server.on('clientError', (error: Error & { code?: string }, socket: Socket) => {
      // Bytes written now would become part of the answer that is under way, or the answer to a request before the broken one.
      const owed = [...this.#answering].some(
        ([response, one]) => one === socket && (response.headersSent || response.req.complete),
      )
      if (owed) socket.destroy()
      else refuseBrokenRequest(error, socket)
    })
    this.#server.on('connection', (socket: Socket) => this.#onConnection(socket))
  }

  get requestsInFlight(): number {
    return this.#answering.size + this.#asking.size
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
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
  }

  /** Tells balancers by /readyz that this proxy is about to go; requests are still answered, the last one of each connection. */
  drain(): void {
    this.#draining = true
    for (const response of this.#answering.keys()) if (!response.headersSent) response.shouldKeepAlive = false
  }

  /**
   * Drains, waits a moment for requests that are on their way on kept connections, then takes no new connections and waits up to
   * `drainMs` for what is in flight (I39). Safe to call twice.
   */
  close(drainMs: number): Promise<void> {
    this.#closing ??= this.#close(drainMs)
    return this.#closing
  }

  async #close(drainMs: number): Promise<void> {
    this.drain()
    const late = setTimeout(() => {
      this.#lane.destroy()
      this.#server.closeAllConnections()
    }, drainMs)
    await this.#deserted(Math.min(lingerMs, drainMs))
    this.#ending = true
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()))
    this.#lane.close()
    // Also those that have sent nothing yet, or half a head: node:http would wait for the rest.
    const busy = new Set([...this.#answering.values(), ...this.#asking])
    for (const socket of this.#connections) if (!busy.has(socket)) socket.destroySoon()
    await closed
    clearTimeout(late)
  }

  /** Resolves when no connection is left, after `withinMs` at the latest. */
  #deserted(withinMs: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, withinMs)
      this.#onDeserted = () => {
        clearTimeout(timer)
        resolve()
      }
      if (this.#connections.size === 0) this.#onDeserted()
    })
  }

  #onConnection(socket: Socket): void {
    this.#connections.add(socket)
    // Each request on it listens for its end, and there may be many, pipelined.
    socket.setMaxListeners(0)
    socket.once('close', () => {
      this.#connections.delete(socket)
      if (this.#connections.size === 0) this.#onDeserted?.()
    })
  }

  #onRequest(request: IncomingMessage, response: ServerResponse, expectContinue: boolean): void {
    const startedAt = performance.now()
    if (this.#draining) response.shouldKeepAlive = false
    const left = new AbortController()
    const exchange = { request, response, requestId: requestIdOf(request.headers['x-request-id']), signal: left.signal }
    const route = routeOf(request)
    const { socket } = request
    const sentBefore = socket.bytesWritten
    this.#answering.set(response, socket)
    const end = (): void => {
      // A connection's end may tell both in one go: taken away now, the second listener is still called.
      if (left.signal.aborted) return
      response.off('close', end)
      socket.off('close', end)
      left.abort()
      this.#deps.metrics.sentBytes += socket.bytesWritten - sentBefore
      this.#end(exchange, route, startedAt)
    }
    response.once('close', end)
    // A pipelined answer that never had its turn hears nothing of the end of its connection.
    socket.once('close', end)
    this.#dispatch(exchange, expectContinue).catch((thrown: unknown) => this.#fail(exchange, thrown))
  }

  #fromMemory(request: LaneRequest, socket: Socket): LaneAnswer | undefined {
    const startedAt = performance.now()
    try {
      const answer = this.#deps.artifacts.fromMemory(request, socket)
      if (answer !== undefined) this.#observeLane(answer, startedAt)
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
      if (answer !== undefined) this.#observeLane(answer, startedAt)
      return answer
    } catch {
      return undefined // node:http's path meets the same trouble, tells the client and the log
    } finally {
      this.#asking.delete(socket)
    }
  }

  #observeLane({ status }: LaneAnswer, startedAt: number): void {
    this.#deps.metrics.observe('get', outcomeOf(status), (performance.now() - startedAt) / 1000)
  }

  async #dispatch(exchange: Exchange, expectContinue: boolean): Promise<void> {
    const { request, response, requestId } = exchange
    const target = originForm(request.url ?? '')
    const path = target.split('?', 1)[0] ?? ''
    const prefix = prefixOf(path)
    // Whoever watches over this process is answered also then: a busy proxy is not a dead one.
    const limited = prefix === '/repository/' || prefix === '/api/v1/'
    if (limited && this.#answering.size > this.#options.requestsMax) {
      throw new HoldfastError('OVERLOADED', 'too many requests at once', { retryAfterSeconds: 1 })
    }
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
        return sendText(
          response,
          200,
          'text/plain; version=0.0.4; charset=utf-8',
          await this.#deps.metricsText(),
          requestId,
        )
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

  #readyz({ request, response, requestId }: Exchange): void {
    const { ready, problems } = this.#deps.readiness()
    const ok = ready && !this.#draining
    const all = this.#draining ? ['draining', ...problems] : problems
    sendJson(response, ok ? 200 : 503, { ready: ok, problems: all }, requestId, {}, request.method === 'HEAD')
  }

  #fail(exchange: Exchange, thrown: unknown): void {
    // A client that left needs no answer, and what its absence broke is no error of ours.
    if (exchange.response.destroyed && !exchange.response.writableFinished) return
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

  #end(exchange: Exchange, route: Route, startedAt: number): void {
    this.#answering.delete(exchange.response)
    this.#account(exchange, route, startedAt)
    if (!this.#ending) return
    const { socket } = exchange.request
    // Not at once: node:http has to hear first that this answer is complete.
    setImmediate(() => {
      if (![...this.#answering.values()].includes(socket)) socket.destroySoon()
    })
  }

  #account({ request, response, requestId }: Exchange, route: Route, startedAt: number): void {
    const seconds = (performance.now() - startedAt) / 1000
    const complete = response.writableFinished
    const outcome = complete ? outcomeOf(response.statusCode) : 'aborted'
    this.#deps.metrics.observe(route, outcome, seconds)
    if (!this.#deps.log.isLevelEnabled('debug')) return
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

/** How long a proxy that ends listens for requests that its clients sent before they could know, in ms. */
const lingerMs = 1_000

const welcome = `Holdfast. Artifacts: /repository/<repository>/<path>  API: /api/v1/openapi.json  Health: /healthz /readyz  Metrics: /metrics
`

function prefixOf(path: string): EdgePrefix {
  if (path.startsWith('/repository/')) return '/repository/'
  if (path.startsWith('/api/v1/')) return '/api/v1/'
  if (path === '/healthz' || path === '/readyz' || path === '/metrics') return path
  return '/'
}

function routeOf({ method, url = '' }: IncomingMessage): Route {
  if (url.startsWith('/api/')) return 'api'
  if (!url.startsWith('/repository/')) return 'other'
  switch (method) {
    case 'GET':
      return (url.split('?', 1)[0] ?? '').endsWith('/') ? 'list' : 'get'
    case 'HEAD':
      return 'head'
    case 'PUT':
      return 'put'
    case 'DELETE':
      return 'delete'
    default:
      return 'other'
  }
}

function onlyReads({ method }: IncomingMessage): void {
  if (method !== 'GET' && method !== 'HEAD') {
    throw new HoldfastError('METHOD_NOT_ALLOWED', `${method} is not possible here`, { allow: ['GET', 'HEAD'] })
  }
}

/** What node's parser refuses (malformed, too large, contradicting lengths) gets a clear answer, then the connection ends. */
function refuseBrokenRequest(error: Error & { code?: string }, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy()
    return
  }
  const [status, message] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? [431, 'the request head is too large']
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? [408, 'the request head did not arrive in time']
        : [400, 'this is no well-formed HTTP request']
  const body = JSON.stringify(errorBody(new HoldfastError('BAD_REQUEST', message), requestIdOf(undefined))) + '\n'
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  )
}
