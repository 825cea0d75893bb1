import { HoldfastError } from '../../shared/errors.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import { ReadBuffers } from '../../shared/read-buffers.ts'
import type { NodeId, ShardId } from '../../shared/ids.ts'
import type { MapNode } from '../../shared/cluster-map.ts'
import { wireAuthorization, wireHeader } from '../../shared/wire.ts'
import { type Dispatcher, Pool } from 'undici'
import type { ClusterView } from './cluster-view.ts'
import type { HealthTable, Outcome } from './health.ts'
import { NodeReader, type ReadLimits } from './node-reader.ts'
import { outcomeOf, reasonOf, wireErrorOf } from './wire-errors.ts'

export { outcomeOf, wireErrorOf } from './wire-errors.ts'

/** JSON answers of nodes are small or paged; what is longer is no answer of ours. */
const answerBytesMax = 16 * 1024 * 1024
/** A busy machine accepts late; a node that does not accept at all costs a read no more than its hedge. */
const connectTimeoutMs = 1_000
const requestTimeoutMs = 5_000
/** Of the connections for short requests: head, and pause within the body. */
const poolTimeoutMs = 10_000
/** How often it is looked whether the node of a long command or question is still there. */
const lookMs = 250

export interface RequestOptions {
  readonly signal?: AbortSignal | undefined
  /** Whole request with its answer; 5 s unless told. */
  readonly timeoutMs?: number
  /** `primary:17`, for commands of the primary. */
  readonly fence?: string | undefined
  readonly requestId?: string | undefined
  /** No client waits for it; of `transfer`. */
  readonly background?: 'usual' | 'urgent' | undefined
  /** With more than 10 s of patience: given up when the node is known to be down. What a client waits for is not, the node may be busy. */
  readonly unlessDown?: boolean
  /** Repeat once when a kept connection broke before any byte of the answer; GETs always are. */
  readonly repeatable?: boolean
  /** What becomes of it says nothing about the node's health: work in the background that is in no hurry. */
  readonly untold?: boolean
}

export interface NodeClientsDeps {
  readonly clusterSecret: string
  readonly view: ClusterView
  readonly health: HealthTable
  /** Monotonic milliseconds; the process's own unless told. */
  readonly now?: () => number
  readonly readLimits?: Partial<ReadLimits>
  /** What reads go into, shared by all nodes; 64 MiB at most unless told. */
  readonly buffers?: ReadBuffers
}

/** One client per node of the newest cluster map, made when first asked for. */
export class NodeClients {
  readonly #deps: NodeClientsDeps
  readonly #authorization: string
  readonly #buffers: ReadBuffers
  readonly #clients = new Map<NodeId, NodeClient>()
  readonly #unsubscribe: () => void
  #closing: Promise<unknown>[] = []
  #closed = false

  constructor(deps: NodeClientsDeps) {
    this.#deps = deps
    this.#authorization = wireAuthorization(deps.clusterSecret)
    this.#buffers = deps.buffers ?? new ReadBuffers()
    deps.health.setNodes(deps.view.current().map.nodes.map(node => node.id))
    this.#unsubscribe = deps.view.onReplace(view => {
      deps.health.setNodes(view.map.nodes.map(node => node.id))
      this.#retire(view.map.nodes)
    })
  }

  get(node: MapNode): NodeClient {
    const known = this.#clients.get(node.id)
    if (known !== undefined && known.url === node.url) return known
    if (known !== undefined) this.#close(known)
    const client = new NodeClient(node, this.#authorization, this.#buffers, this.#deps)
    // After close() whoever still asks gets a client that refuses everything.
    if (this.#closed) this.#close(client)
    else this.#clients.set(node.id, client)
    return client
  }

  /** The client of the node that has this shard. */
  ofShard(shard: ShardId): NodeClient {
    return this.get(this.#deps.view.current().node(shard))
  }

  /** Clients made so far. */
  all(): Iterable<NodeClient> {
    return this.#clients.values()
  }

  /** Lets requests in flight end (each has its own time limit), then closes all connections. */
  async close(): Promise<void> {
    this.#closed = true
    this.#unsubscribe()
    for (const client of this.#clients.values()) this.#close(client)
    this.#clients.clear()
    await Promise.all(this.#closing)
  }

  #retire(nodes: readonly MapNode[]): void {
    const urls = new Map(nodes.map(node => [node.id, node.url]))
    for (const [id, client] of this.#clients) {
      if (urls.get(id) === client.url) continue
      this.#clients.delete(id)
      this.#close(client)
    }
  }

  #close(client: NodeClient): void {
    const closing = client.close().finally(() => {
      this.#closing = this.#closing.filter(other => other !== closing)
    })
    this.#closing.push(closing)
  }
}

/** Everything one worker says to one storage node. Every limit is ours: undici's own would wait 300 s. */
export class NodeClient {
  readonly node: NodeId
  readonly url: string
  /** For short requests with JSON or record batches. */
  readonly control: Dispatcher
  /** For bodies that stream upwards: apart, so that many slow uploads leave room for the short requests. */
  readonly uploads: Dispatcher
  /** Blobs downwards. */
  readonly reader: NodeReader
  /** One connection for health checks, exempt from the queues of the load. */
  readonly #probes: Pool
  readonly #authorization: string
  readonly #deps: NodeClientsDeps
  #inFlight = 0
  /** The headers of the read leg as text, and the epoch they were made for. */
  #readHead: { readonly epoch: number; readonly text: string } | undefined

  constructor(node: MapNode, authorization: string, buffers: ReadBuffers, deps: NodeClientsDeps) {
    this.node = node.id
    this.url = node.url
    this.#authorization = authorization
    this.#deps = deps
    const connect = { timeout: connectTimeoutMs }
    const common = { connect, keepAliveTimeout: 4_000, keepAliveMaxTimeout: 60_000, pipelining: 1 }
    this.control = new Pool(node.url, {
      ...common,
      connections: 64,
      headersTimeout: poolTimeoutMs,
      bodyTimeout: poolTimeoutMs,
    })
    this.uploads = new Pool(node.url, { ...common, connections: 128, headersTimeout: 60_000, bodyTimeout: 30_000 })
    this.#probes = new Pool(node.url, { ...common, connections: 1, headersTimeout: 1_000, bodyTimeout: 1_000 })
    this.reader = new NodeReader({
      node: node.id,
      url: node.url,
      headers: () => this.#readHeaders(),
      buffers,
      now: deps.now ?? (() => performance.now()),
      report: outcome => this.report(outcome),
      ...(deps.readLimits === undefined ? {} : { limits: deps.readLimits }),
    })
  }

  /** Requests of this worker that the node has not answered yet. */
  get inFlight(): number {
    return this.#inFlight + this.reader.inFlight
  }

  /** Tells the health table what a request came to; `requestJson` does so by itself. */
  report(outcome: Outcome): void {
    this.#deps.health.observe(this.node, outcome)
  }

  /** Headers of every request of the wire. */
  headers(options: Pick<RequestOptions, 'fence' | 'requestId' | 'background'> = {}): Record<string, string> {
    const headers: Record<string, string> = {
      authorization: this.#authorization,
      [wireHeader.epoch]: String(this.#deps.view.current().map.epoch),
    }
    if (options.fence !== undefined) headers[wireHeader.fence] = options.fence
    if (options.requestId !== undefined) headers[wireHeader.requestId] = options.requestId
    if (options.background !== undefined) headers[wireHeader.background] = options.background
    return headers
  }

  /**
   * One request with a JSON answer. A Buffer goes out as it is, anything else as JSON. Rejects with the code of the node's
   * WireError, with NODE_UNREACHABLE (no connection, reset, timeout, nonsense; for a long command of the primary, and with
   * `unlessDown`, also a node that is down by now), or with the signal's reason. Tells health.
   * The caller vouches for the answer's type: the wire is ours and versioned.
   */
  async requestJson<Answer>(
    method: string,
    path: string,
    body?: unknown,
    options: RequestOptions = {},
  ): Promise<Answer> {
    return (await this.#request(this.control, method, path, body, options)) as Answer
  }

  /** The same over the connection kept for health checks; tells health nothing. */
  async probe(path: string, timeoutMs: number): Promise<unknown> {
    return this.#exchange(this.#probes, 'GET', path, undefined, { timeoutMs })
  }

  #readHeaders(): string {
    const { epoch } = this.#deps.view.current().map
    if (this.#readHead?.epoch !== epoch) {
      const text = Object.entries(this.headers())
        .map(([name, value]) => `${name}: ${value}\r\n`)
        .join('')
      this.#readHead = { epoch, text }
    }
    return this.#readHead.text
  }

  /** Waits for requests in flight, at most 10 s; then cuts them. Reads are cut at once: they go on at another node. */
  async close(): Promise<void> {
    this.reader.close()
    const pools = [this.control, this.uploads, this.#probes]
    const closed = Promise.all(pools.map(pool => pool.close()))
    // A pool that is destroyed while requests wait for a connection never resolves its close().
    let timer: NodeJS.Timeout | undefined
    const destroyed = new Promise<void>(resolve => {
      timer = setTimeout(() => void Promise.all(pools.map(pool => pool.destroy())).then(() => resolve()), 10_000)
    })
    await Promise.race([closed, destroyed])
    clearTimeout(timer)
  }

  async #request(
    pool: Dispatcher,
    method: string,
    path: string,
    body: unknown,
    options: RequestOptions,
  ): Promise<unknown> {
    this.#inFlight += 1
    try {
      const answer = await this.#exchange(pool, method, path, body, options)
      if (options.untold !== true) this.report('ok')
      return answer
    } catch (error) {
      if (error instanceof HoldfastError && options.untold !== true) {
        const outcome = outcomeOf(error)
        if (outcome !== undefined) this.report(outcome)
      }
      throw error
    } finally {
      this.#inFlight -= 1
    }
  }

  async #exchange(
    pool: Dispatcher,
    method: string,
    path: string,
    body: unknown,
    options: RequestOptions,
  ): Promise<unknown> {
    options.signal?.throwIfAborted()
    const abort = new AbortController()
    const leave = (): void => abort.abort(options.signal?.reason)
    options.signal?.addEventListener('abort', leave, { once: true })
    const timeoutMs = options.timeoutMs ?? requestTimeoutMs
    const timer = new PatientTimer()
    timer.set(timeoutMs, () => abort.abort(new Timeout()))
    // A network that swallowed the request never answers it, also when it is back: its minutes would be lost to everything behind it.
    const isLong = (options.fence !== undefined || options.unlessDown === true) && timeoutMs > poolTimeoutMs
    const look = isLong ? setInterval(() => this.#leaveIfDown(abort), lookMs) : undefined
    try {
      return await this.#send(pool, method, path, body, options, abort.signal)
    } catch (error) {
      if (options.signal?.aborted === true) throw options.signal.reason
      if (error instanceof HoldfastError) throw error
      throw this.unreachable(error)
    } finally {
      timer.clear()
      clearInterval(look)
      options.signal?.removeEventListener('abort', leave)
    }
  }

  #leaveIfDown(abort: AbortController): void {
    if (this.#deps.health.state(this.node) === 'down') abort.abort(new NodeDown())
  }

  async #send(
    pool: Dispatcher,
    method: string,
    path: string,
    body: unknown,
    options: RequestOptions,
    signal: AbortSignal,
  ): Promise<unknown> {
    const headers = this.headers(options)
    const limitMs = options.timeoutMs ?? requestTimeoutMs
    let payload: Buffer | string | null = null
    if (Buffer.isBuffer(body)) {
      headers['content-type'] = 'application/octet-stream'
      payload = body
    } else if (body !== undefined) {
      headers['content-type'] = 'application/json'
      payload = JSON.stringify(body)
    }
    // The whole request has its limit; the pool's own, for the head of the answer, would cut the long commands of the primary.
    const limits = limitMs > poolTimeoutMs ? { headersTimeout: limitMs, bodyTimeout: limitMs } : {}
    const request = { path, method: method, headers, body: payload, signal, ...limits }
    let answer: Dispatcher.ResponseData
    try {
      answer = await pool.request(request)
    } catch (error) {
      // A kept connection that the node closed just then: nobody has seen the request, or it may be repeated safely.
      if (!(options.repeatable ?? method === 'GET') || !isReset(error) || signal.aborted) throw error
      answer = await pool.request(request)
    }
    const text = await readText(answer.body)
    if (answer.statusCode >= 200 && answer.statusCode < 300) {
      return text === '' ? undefined : (JSON.parse(text) as unknown)
    }
    throw wireErrorOf(text, answer.statusCode, { node: this.node })
  }

  /** NODE_UNREACHABLE with what lies beneath. */
  unreachable(cause: unknown): HoldfastError {
    const reason = reasonOf(cause)
    return new HoldfastError('NODE_UNREACHABLE', 'storage node did not answer', { node: this.node, reason }, { cause })
  }
}

class Timeout extends Error {
  readonly code = 'TIMEOUT'
}

class NodeDown extends Error {
  readonly code = 'NODE_DOWN'
}

function isReset(error: unknown): boolean {
  return ['ECONNRESET', 'EPIPE', 'UND_ERR_SOCKET'].includes(reasonOf(error))
}

async function readText(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of body) {
    bytes += chunk.length
    if (bytes > answerBytesMax) throw new Error('answer too long')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks, bytes).toString('utf8')
}
