import { once } from 'node:events'
import { createServer, get, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Writable } from 'node:stream'
import type { Test } from 'tap'
import { ReplicatedBlobReader, type BlobReaderDeps } from '../../../proxy/routing/blob-reader.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { HealthTable } from '../../../proxy/routing/health.ts'
import { NodeClients } from '../../../proxy/routing/node-client.ts'
import { ReadBuffers } from '../../../shared/read-buffers.ts'
import type { ReadLimits } from '../../../proxy/routing/node-reader.ts'
import type { BlobLocation, ByteRange } from '../../../proxy/routing/types.ts'
import { type FakeNode, fakeMap, locate, startFakeNodes, testSecret } from '../../support/fake-node.ts'

export interface TestCluster {
  readonly nodes: readonly FakeNode[]
  readonly view: ClusterView
  readonly health: HealthTable
  readonly clients: NodeClients
  readonly reader: ReplicatedBlobReader
  readonly bad: { digest: string; shard: string; reason: string }[]
  /** Puts a body on the owners of a partition (or on these nodes). */
  put(body: Buffer, partition?: number, on?: readonly FakeNode[]): BlobLocation
  close(): Promise<void>
}

/** Quick limits, so that a test of silence takes a fraction of a second. */
export const quickTimes = { hedgeMsMin: 30, hedgeMsMax: 60, stallMs: 150, dropMs: 600, deadlineMs: 3_000 }

export async function startCluster(
  t: Test,
  options: Partial<BlobReaderDeps> & {
    nodeCount?: number
    replicas?: number
    readLimits?: Partial<ReadLimits>
    buffers?: ReadBuffers
  } = {},
): Promise<TestCluster> {
  const nodes = await startFakeNodes(options.nodeCount ?? 3)
  const view = new ClusterView(fakeMap(nodes, options.replicas ?? 3))
  const health = new HealthTable({ now: () => performance.now() })
  const { readLimits, buffers = new ReadBuffers() } = options
  const clients = new NodeClients({
    clusterSecret: testSecret,
    view,
    health,
    buffers,
    ...(readLimits && { readLimits }),
  })
  const bad: TestCluster['bad'] = []
  const onBadReplica: BlobReaderDeps['onBadReplica'] = ({ digest }, shard, reason) =>
    bad.push({ digest, shard, reason })
  // The first in ring order unless a test wants otherwise.
  const random = options.random ?? (() => 0)
  const reader = new ReplicatedBlobReader({
    view,
    clients,
    health,
    onBadReplica,
    times: quickTimes,
    ...options,
    random,
  })
  const close = async (): Promise<void> => {
    await clients.close()
    await Promise.all(nodes.map(node => node.stop().catch(() => {}))) // Some are stopped already.
  }
  t.teardown(close)
  const put: TestCluster['put'] = (body, partition = 0, on) => {
    const blob = locate(body, partition)
    for (const shard of view.current().owners(partition)) {
      const node = nodes.find(({ id }) => id === view.current().node(shard).id)
      if (node !== undefined && (on === undefined || on.includes(node))) node.put(shard, blob, body)
    }
    return blob
  }
  return { nodes, view, health, clients, reader, bad, put, close }
}

/** A sink that collects; `slowMs` for each chunk makes it a slow client. */
export class CollectingSink extends Writable {
  readonly chunks: Buffer[] = []
  readonly #slowMs: number

  constructor(slowMs = 0) {
    super({ highWaterMark: 64 * 1024 })
    this.#slowMs = slowMs
    this.on('error', () => {}) // Told to the test by `destroyed`.
  }

  override _write(chunk: Buffer, _encoding: string, callback: () => void): void {
    // What is looked at later than the callback may be overwritten: so the copy is taken at the latest moment allowed.
    const take = (): void => {
      this.chunks.push(Buffer.from(chunk))
      callback()
    }
    if (this.#slowMs > 0) setTimeout(take, this.#slowMs)
    else setImmediate(take)
  }

  get body(): Buffer {
    return Buffer.concat(this.chunks)
  }
}

export interface Streamed {
  readonly outcome: 'complete' | 'cut' | 'refused'
  readonly body: Buffer
  readonly code?: string
}

/** Streams into a sink and says how it ended. */
export async function streamed(
  reader: ReplicatedBlobReader,
  blob: BlobLocation,
  range?: ByteRange,
  slowMs = 0,
): Promise<Streamed> {
  const sink = new CollectingSink(slowMs)
  let started = false
  try {
    const onStart = (): void => void (started = true)
    await reader.stream(blob, range, sink, { onStart, signal: new AbortController().signal })
  } catch (error) {
    if (started) throw new Error('a stream rejects only before it starts', { cause: error })
    return { outcome: 'refused', body: sink.body, code: (error as { code: string }).code }
  }
  if (sink.destroyed && !sink.writableFinished) return { outcome: 'cut', body: sink.body }
  if (!sink.writableFinished) await once(sink, 'finish')
  return { outcome: 'complete', body: sink.body }
}

/** An HTTP server in front of the reader, as the edge does it. */
export async function startEdge(t: Test, cluster: TestCluster, blob: BlobLocation): Promise<string> {
  const server = createServer((_request, response) => {
    const abort = new AbortController()
    response.on('close', () => abort.abort())
    const onStart = (): void => void response.writeHead(200, { 'content-length': blob.bytes })
    cluster.reader.stream(blob, undefined, response, { onStart, signal: abort.signal }).catch(() => {
      if (!response.headersSent) response.writeHead(503)
      response.end()
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
}

export async function request(url: string): Promise<IncomingMessage> {
  const [response] = (await once(get(url, { agent: false }), 'response')) as [IncomingMessage]
  return response
}
