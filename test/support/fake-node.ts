/**
 * A storage node in a few lines, for tests of the read side: real sockets, blobs in memory, and faults at any byte of an answer.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { type ClusterMap, sealClusterMap } from '../../shared/cluster-map.ts'
import type { ErrorCode } from '../../shared/errors.ts'
import type { Digest, Generation, NodeId, ShardId, Zone } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import { type NodeStatus, type TouchRequest, wireAuthorization, wirePath } from '../../shared/wire.ts'
import type { BlobLocation } from '../../proxy/routing/types.ts'

export const testSecret = 'a secret of the tests'

/** What happens to one answer; positions count body bytes of this answer. */
export interface Fault {
  readonly delayMs?: number
  /** No answer at all. */
  readonly freezeHead?: boolean
  /** Silence after this many bytes, the connection stays open. */
  readonly freezeAt?: number
  /** The connection is reset after this many bytes. */
  readonly cutAt?: number
  /** This byte is flipped. */
  readonly corruptAt?: number
  /** Bytes go out in pieces of this size. */
  readonly pieceBytes?: number
  readonly pieceMs?: number
  readonly refuse?: { readonly status: number; readonly code: ErrorCode }
  /** Sent as it is instead of an answer, then silence. */
  readonly raw?: string
  /** Closes the connection after the answer without having said so. */
  readonly closeAfter?: boolean
}

export interface FakeRequest {
  readonly path: string
  readonly range: { readonly first: number; readonly last: number } | undefined
  /** Blob requests before this one. */
  readonly index: number
}

export class FakeNode {
  readonly id: NodeId
  readonly zone: Zone
  readonly shards: readonly ShardId[]
  readonly blobs = new Map<string, Buffer>()
  readonly requests: FakeRequest[] = []
  statusCount = 0
  state: NodeStatus['state'] = 'up'
  status: Partial<NodeStatus> = {}
  statusDelayMs = 0
  fault: (request: FakeRequest) => Fault = () => ({})
  readonly sockets = new Set<Socket>()
  readonly #server: Server
  readonly #timers = new Set<NodeJS.Timeout>()
  #port = 0

  constructor(id: string, zone: string, shards: readonly string[]) {
    this.id = id as NodeId
    this.zone = zone as Zone
    this.shards = shards as readonly ShardId[]
    this.#server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
      void this.#serve(request, response).catch(() => response.destroy())
    })
    this.#server.on('connection', socket => {
      this.sockets.add(socket)
      socket.on('close', () => this.sockets.delete(socket))
      socket.on('error', () => {}) // Cut on purpose.
    })
  }

  async start(): Promise<this> {
    this.#server.listen(this.#port, '127.0.0.1')
    await once(this.#server, 'listening')
    this.#port = (this.#server.address() as AddressInfo).port
    return this
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`
  }

  put(shard: ShardId, blob: BlobLocation, body: Buffer): void {
    this.blobs.set(wirePath.blob(shard, blob.partition, blob.digest, blob.generation), body)
  }

  /** Stops like a killed process; `start` brings it back on the same port. */
  async stop(): Promise<void> {
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
    const closed = once(this.#server, 'close')
    this.#server.close()
    for (const socket of this.sockets) socket.destroy()
    await closed
  }

  async #pause(ms: number): Promise<void> {
    await new Promise<void>(resolve => {
      const timer = setTimeout(() => {
        this.#timers.delete(timer)
        resolve()
      }, ms)
      this.#timers.add(timer)
    })
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.headers.authorization !== wireAuthorization(testSecret)) {
      this.#json(response, 401, { code: 'WIRE_UNAUTHORIZED', message: 'no' })
    } else if (request.url === wirePath.status) await this.#status(response)
    else if (request.url === wirePath.touch) await this.#touch(request, response)
    else await this.#blob(request, response)
  }

  async #status(response: ServerResponse): Promise<void> {
    this.statusCount += 1
    if (this.statusDelayMs > 0) await this.#pause(this.statusDelayMs)
    const shards = this.shards.map(id => ({ id, weight: 1, state: 'ok', bytesTotal: 1e12, bytesFree: 5e11 }))
    const { id: node, zone, state } = this
    const status = { version: '0', wire: 1, clusterId: 'test', node, zone, state, epoch: 1, shards, ...this.status }
    this.#json(response, 200, status)
  }

  async #touch(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const { items } = JSON.parse(Buffer.concat(chunks).toString()) as TouchRequest
    const results = items.map(item =>
      this.blobs.has(wirePath.blob(item.shard, item.partition, item.digest, item.generation)) ? 'held' : 'missing',
    )
    this.#json(response, 200, { results })
  }

  async #blob(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const match = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
    const range = match === null ? undefined : { first: Number(match[1]), last: Number(match[2]) }
    const seen: FakeRequest = { path: request.url ?? '', range, index: this.requests.length }
    this.requests.push(seen)
    const fault = this.fault(seen)
    if (fault.delayMs !== undefined) await this.#pause(fault.delayMs)
    if (fault.freezeHead === true) return
    if (fault.raw !== undefined) {
      request.socket.write(fault.raw)
      return
    }
    if (fault.refuse !== undefined) {
      this.#json(response, fault.refuse.status, { code: fault.refuse.code, message: 'refused' })
      return
    }
    const all = this.blobs.get(seen.path)
    if (all === undefined) this.#json(response, 404, { code: 'BLOB_NOT_FOUND', message: 'no such blob' })
    else await this.#send(response, all, range, fault)
  }

  async #send(response: ServerResponse, all: Buffer, range: FakeRequest['range'], fault: Fault): Promise<void> {
    let body = range === undefined ? all : all.subarray(range.first, range.last + 1)
    const headers: Record<string, string | number> = { 'content-length': body.length }
    if (range !== undefined) headers['content-range'] = `bytes ${range.first}-${range.last}/${all.length}`
    response.writeHead(range === undefined ? 200 : 206, headers)
    if (fault.corruptAt !== undefined && fault.corruptAt < body.length) {
      body = Buffer.from(body)
      body.writeUInt8(body.readUInt8(fault.corruptAt) ^ 1, fault.corruptAt)
    }
    const stopAt = Math.min(body.length, fault.cutAt ?? Infinity, fault.freezeAt ?? Infinity)
    const piece = fault.pieceBytes ?? body.length
    response.flushHeaders()
    const closed = new Promise(resolve => response.once('close', resolve))
    for (let at = 0; at < stopAt && !response.destroyed; at += piece) {
      const part = body.subarray(at, Math.min(stopAt, at + piece))
      await Promise.race([closed, new Promise(resolve => response.write(part, resolve))])
      if (fault.pieceMs !== undefined) await this.#pause(fault.pieceMs)
    }
    if (fault.cutAt !== undefined && fault.cutAt <= body.length) response.socket?.resetAndDestroy()
    // Behind the last byte there is nothing to freeze but the next answer on this connection, which has a fault of its own.
    else if (fault.freezeAt === undefined || fault.freezeAt >= body.length) response.end()
    if (fault.closeAfter === true) response.socket?.end()
  }

  #json(response: ServerResponse, status: number, body: unknown): void {
    const text = JSON.stringify(body)
    response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) })
    response.end(text)
  }
}

/** A map over the nodes: partition p has its copies on the shards p, p + 1, … counted over the nodes. */
export function fakeMap(nodes: readonly FakeNode[], replicas: number, epoch = 1): ClusterMap {
  const shards = nodes.flatMap(node => node.shards.map(id => ({ id, node: node.id, weight: 1 })))
  shards.sort((one, other) => (one.id < other.id ? -1 : 1))
  const firsts = nodes.map(node => shards.findIndex(shard => shard.node === node.id))
  const copies = Math.min(replicas, nodes.length)
  const table = new Uint16Array(partitionCount * copies)
  for (let partition = 0; partition < partitionCount; partition += 1) {
    for (let copy = 0; copy < copies; copy += 1) {
      table[partition * copies + copy] = firsts[(partition + copy) % nodes.length] ?? 0
    }
  }
  return sealClusterMap({
    format: 1,
    clusterId: 'test',
    epoch,
    replicas,
    spread: 'strict',
    nodes: nodes.map(({ id, zone, url }) => ({ id, zone, url })),
    shards,
    table,
    copies,
  })
}

/** Nodes `a`, `b`, … in zones of the same name, with shards `a-0`, `a-1`, … */
export async function startFakeNodes(count: number, shardCount = 1): Promise<FakeNode[]> {
  const names = Array.from({ length: count }, (_, index) => String.fromCharCode(97 + index))
  return Promise.all(
    names.map(name => {
      const shards = Array.from({ length: shardCount }, (_, index) => `${name}-${index}`)
      return new FakeNode(name, name, shards).start()
    }),
  )
}

export function locate(body: Buffer, partition = 0): BlobLocation {
  return {
    digest: createHash('sha256').update(body).digest('hex') as Digest,
    generation: '0123456789ab' as Generation,
    partition,
    bytes: body.length,
  }
}
