/**
 * The wire, served: plain node:http and hand-written routing, since a 1 KiB GET should cost little more than its read.
 * docs/wire.md describes it for both sides. Everything needs the cluster's authorization.
 */
import { setMaxListeners } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { Agent } from 'undici'
import { HoldfastError } from '../shared/errors.ts'
import { wireAuthorization, wireAuthorized, wireHeader } from '../shared/wire.ts'
import { blobNameBytes, isBlobName } from './blob-name.ts'
import { backgroundOf, headerOf, sendError } from './http-answer.ts'
import type { StorageNode } from './node.ts'
import { sendBlob } from './read-blob.ts'
import { handleRoute, type RouteContext } from './routes.ts'
import { SourceReader } from './source-reader.ts'

const blobPrefix = '/v1/blobs/'
/** Of routes with long answers that are no GETs. */
const longPrefixes = ['/v1/bundle/', '/v1/folder/']

/** Proxies ask each second how a node is, and wait half a second for the answer: by then they know that it is about to go. */
const announceMs = 2_000
const lookEveryMs = 25

export class WireServer {
  readonly #node: StorageNode
  readonly #log: Logger
  readonly #server: Server
  readonly #expected: Buffer
  readonly #context: RouteContext
  readonly #aborter = new AbortController()
  readonly #agent: Agent
  readonly #reader: SourceReader
  readonly #inFlight = new Set<ServerResponse>()
  #onIdle: (() => void) | undefined
  /** Connections end with the answer they have. */
  #ending = false

  constructor(node: StorageNode, log: Logger) {
    this.#node = node
    this.#log = log
    // Every transfer that waits for its disk waits with it: no leak.
    setMaxListeners(0, this.#aborter.signal)
    const authorization = wireAuthorization(node.config.secret)
    this.#expected = Buffer.from(authorization, 'latin1')
    const { stallMs, connectionCountMax } = node.limits
    this.#agent = new Agent({
      connections: 16,
      // Where clients keep the source's disk busy it gives a piece now and then.
      headersTimeout: 30_000,
      bodyTimeout: 30_000,
      connect: { timeout: 2_000 },
    })
    this.#reader = new SourceReader(authorization)
    this.#context = { node, authorization, reader: this.#reader, dispatcher: this.#agent, signal: this.#aborter.signal }
    const options = {
      // Longer than any client keeps an idle connection, so that the client is the one who closes it.
      keepAliveTimeout: 75_000,
      headersTimeout: Math.min(stallMs, 60_000),
      // Uploads may take hours; what stalls is cut off by its own timer.
      requestTimeout: 0,
      maxHeaderSize: 16 * 1024,
      highWaterMark: 1024 * 1024,
      noDelay: true,
    }
    this.#server = createServer(options, (request, response) => this.#serve(request, response))
    this.#server.maxConnections = connectionCountMax
  }

  /** Resolves with the URL once it accepts connections. */
  async listen(): Promise<string> {
    const { host, port } = this.#node.config
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(port, host, resolve)
    })
    const address = this.#server.address() as AddressInfo // it listens on TCP
    return `http://${address.family === 'IPv6' ? `[${address.address}]` : address.address}:${address.port}`
  }

  /**
   * Lets the proxies hear that it is about to go and serves everything until they have; then what it has begun (uploads, their commits),
   * what is read, and records; then takes no new connections, and finishes what is in flight. All of it for at most `drainMs`; the
   * rest is cut off. Nobody is waited for when nobody is connected.
   */
  async close(drainMs: number): Promise<void> {
    const until = performance.now() + drainMs
    this.#node.draining = true
    await this.#dispensable(Math.min(announceMs, drainMs))
    this.#node.takesUploads = false
    await this.#dispensable(until - performance.now(), () => !this.#node.hasUploads)
    this.#ending = true
    this.#server.close()
    this.#server.closeIdleConnections()
    for (const response of this.#inFlight) if (!response.headersSent) sayLast(response)
    // What it copies from other nodes may take hours, and goes on after the restart.
    this.#aborter.abort(new HoldfastError('SHUTTING_DOWN', 'the node is shutting down'))
    if (this.#inFlight.size > 0) await this.#idleWithin(Math.max(0, until - performance.now()))
    this.#server.closeAllConnections()
    this.#reader.close()
    await this.#agent.destroy()
  }

  /** Resolves when nobody is connected, or `isDone`, after `ms` at the latest. */
  async #dispensable(ms: number, isDone = () => false): Promise<void> {
    const until = performance.now() + ms
    while (performance.now() < until && !isDone() && (await this.#connectionCount()) > 0) await sleep(lookEveryMs)
  }

  #connectionCount(): Promise<number> {
    return new Promise(resolve => this.#server.getConnections((error, count) => resolve(error === null ? count : 0)))
  }

  #idleWithin(ms: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, ms)
      this.#onIdle = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    response.sendDate = false
    if (this.#ending) sayLast(response)
    this.#inFlight.add(response)
    response.once('close', this.#onClose)
    if (!wireAuthorized(headerOf(request, 'authorization'), this.#expected)) {
      sendError(response, new HoldfastError('WIRE_UNAUTHORIZED', 'not authorized on this wire'))
      return
    }
    if (!this.#serveBlob(request, response)) this.#serveRoute(request, response)
  }

  /** A method of the response, so that a request costs no closure. */
  readonly #onClose = (() => {
    const server = this // eslint-disable-line @typescript-eslint/no-this-alias -- `this` is the response below
    return function (this: ServerResponse): void {
      server.#inFlight.delete(this)
      if (server.#inFlight.size === 0) server.#onIdle?.()
    }
  })()

  /** The hot path: GET and HEAD of a blob. False if the request is something else. */
  #serveBlob(request: IncomingMessage, response: ServerResponse): boolean {
    const { url = '', method } = request
    if (!url.startsWith(blobPrefix) || (method !== 'GET' && method !== 'HEAD')) return false
    const slash = url.indexOf('/', blobPrefix.length)
    if (slash < 0 || url.length !== slash + 1 + blobNameBytes) return false
    const name = url.slice(slash + 1)
    if (!isBlobName(name)) return false
    const served = this.#node.shards.get(url.slice(blobPrefix.length, slash))
    if (served === undefined) {
      this.#onBlobError(response, new HoldfastError('SHARD_UNKNOWN', 'no such shard on this node'))
      return true
    }
    const background = backgroundOf(request)
    sendBlob({
      shard: served.shard,
      name,
      rangeHeader: headerOf(request, 'range'),
      headOnly: method === 'HEAD',
      background,
      unverified: background !== undefined && headerOf(request, wireHeader.unverified) !== undefined,
      epoch: String(this.#node.state.epoch),
      response,
      onError: this.#onBlobError,
    })
    return true
  }

  readonly #onBlobError = (response: ServerResponse, thrown: unknown): void => {
    const error = sendError(response, thrown, [wireHeader.epoch, String(this.#node.state.epoch)])
    if (error.code === 'INTERNAL') this.#log.error({ err: error.cause }, 'reading a blob failed')
  }

  #serveRoute(request: IncomingMessage, response: ServerResponse): void {
    handleRoute(this.#context, request, response).catch((thrown: unknown) => {
      const error = sendError(response, thrown, [wireHeader.epoch, String(this.#node.state.epoch)])
      const requestId = headerOf(request, wireHeader.requestId)
      if (error.code === 'INTERNAL')
        this.#log.error({ err: error.cause, requestId, url: request.url }, 'request failed')
      else this.#log.debug({ code: error.code, requestId, url: request.url }, 'request refused')
    })
  }
}

/**
 * The last answer on its connection. Those that may be long do without: undici 7, which reads them, ends its process when such a connection
 * ends while it holds the answer back for a slow reader. Theirs is closed when the node ends.
 */
function sayLast(response: ServerResponse): void {
  const { method, url = '' } = response.req
  if (method !== 'GET' && !longPrefixes.some(prefix => url.startsWith(prefix)))
    response.setHeader('Connection', 'close')
}
