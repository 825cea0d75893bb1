/**
 * The read leg alone, our reader against undici: requests a second and CPU of the reading process for each, over one node that
 * serves from memory in a process of its own. Bodies are checked in both (whole ones by sha256 in ours, by length in undici's).
 *
 *     node dist/bench/read-leg.js [seconds per case and round, default 0.5]
 */
import { fork } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { Pool } from 'undici'
import { ReplicatedBlobReader } from '../proxy/routing/blob-reader.ts'
import { ClusterView } from '../proxy/routing/cluster-view.ts'
import { HealthTable } from '../proxy/routing/health.ts'
import { NodeClients } from '../proxy/routing/node-client.ts'
import { LatencyMean } from '../proxy/routing/latency.ts'
import { NodeReader } from '../proxy/routing/node-reader.ts'
import type { BlobLocation } from '../proxy/routing/types.ts'
import { sealClusterMap } from '../shared/cluster-map.ts'
import type { Digest, Generation, NodeId, ShardId, Zone } from '../shared/ids.ts'
import { partitionCount } from '../shared/partition.ts'
import { ReadBuffers } from '../shared/read-buffers.ts'

const sizes = [1024, 256 * 1024, 64 * 1024 * 1024]

/** The node: any path ending in `.<bytes>` is a body of that length, the same in every process. */
function serve(): void {
  const bodies = new Map(sizes.map(bytes => [bytes, Buffer.alloc(bytes, 'holdfast')]))
  const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    const bytes = Number(request.headers['holdfast-request-id'] ?? request.url?.split('.').at(-1)?.replace(/^0+/, ''))
    const body = bodies.get(bytes) ?? Buffer.alloc(0)
    response.writeHead(200, { 'content-length': body.length })
    response.end(body)
  })
  server.listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port))
  process.on('disconnect', () => process.exit())
}

interface Case {
  readonly name: string
  readonly bytes: number
  readonly once: () => Promise<void>
}

interface Round {
  readonly perSecond: number
  readonly cpuUs: number
}

async function measure({ bytes, once: read }: Case, ms: number): Promise<Round> {
  const concurrency = bytes > 1024 * 1024 ? 4 : 32
  const until = performance.now() + ms
  let count = 0
  const worker = async (): Promise<void> => {
    while (performance.now() < until) {
      await read()
      count += 1
    }
  }
  const cpu = process.cpuUsage()
  const startedAt = performance.now()
  await Promise.all(Array.from({ length: concurrency }, worker))
  const perSecond = (count / (performance.now() - startedAt)) * 1000
  const { user, system } = process.cpuUsage(cpu)
  return { perSecond, cpuUs: (user + system) / count }
}

/** Rounds of all cases in turn, the best of each: what disturbs a machine comes and goes, and only ever adds. */
async function compare(list: readonly Case[], rounds: number, ms: number): Promise<void> {
  const best = new Map<Case, Round>()
  for (let round = 0; round <= rounds; round += 1) {
    for (const one of list) {
      const { perSecond, cpuUs } = await measure(one, ms)
      const before = round <= 1 ? undefined : best.get(one)
      best.set(one, {
        perSecond: Math.max(perSecond, before?.perSecond ?? 0),
        cpuUs: Math.min(cpuUs, before?.cpuUs ?? Infinity),
      })
    }
  }
  for (const [{ name, bytes }, { perSecond, cpuUs }] of best) {
    const rate = `${Math.round(perSecond)}/s`.padStart(9)
    const throughput = `${Math.round((perSecond * bytes) / 1e6)} MB/s`.padStart(10)
    console.log(
      `${name.padEnd(28)} ${String(bytes).padStart(9)} B ${rate} ${throughput}  ${cpuUs.toFixed(1)} us CPU each`,
    )
  }
}

/** Takes everything, keeps nothing. */
class NullSink extends Writable {
  override _write(_chunk: Buffer, _encoding: string, callback: () => void): void {
    callback()
  }
}

function cases(url: string): { list: Case[]; close: () => Promise<void> } {
  const view = new ClusterView(mapOf(url))
  const health = new HealthTable({ now: () => performance.now() })
  const clients = new NodeClients({ clusterSecret: 'bench', view, health })
  const reader = new ReplicatedBlobReader({ view, clients, health, onBadReplica: () => {} })
  const pool = new Pool(url, { connections: 64 })
  const bare = new NodeReader({
    node: 'bare',
    url,
    headers: () => '',
    buffers: new ReadBuffers(),
    now: () => performance.now(),
    report: () => {},
  })
  let turn = 0
  const list = sizes.flatMap(bytes => {
    const blob = blobOf(bytes)
    const path = `/v1/blobs/a-0/000/${blob.digest}.${String(bytes).padStart(12, '0')}`
    const ours =
      bytes <= 1024 * 1024
        ? // Another partition each time: equal reads would be shared.
          async () => void (await reader.readWhole({ ...blob, partition: turn++ % partitionCount }))
        : () =>
            reader.stream(blob, undefined, new NullSink(), { onStart: () => {}, signal: new AbortController().signal })
    const latency = new LatencyMean()
    const leg = (): Promise<void> =>
      new Promise((resolve, reject) => {
        const into = bytes <= 1024 * 1024 ? Buffer.allocUnsafeSlow(bytes) : 'chunks'
        bare.read(
          { path, total: bytes, range: undefined, into, latency },
          { onEnd: resolve, onError: reject, onChunk: () => false },
        )
      })
    const undici = async (): Promise<void> => {
      const { body } = await pool.request({ path, method: 'GET' })
      let got = 0
      for await (const chunk of body) got += (chunk as Buffer).length
      if (got !== bytes) throw new Error('short')
    }
    const dispatch = (): Promise<void> =>
      new Promise((resolve, reject) => {
        const onData = (): boolean => true
        const handler = {
          onConnect: () => {},
          onHeaders: () => true,
          onData,
          onComplete: () => resolve(),
          onError: reject,
        }
        pool.dispatch({ path, method: 'GET' }, handler)
      })
    return [
      { name: 'reader, sha256 verified', bytes, once: ours },
      { name: 'read leg alone', bytes, once: leg },
      { name: 'undici dispatch, unverified', bytes, once: dispatch },
      { name: 'undici request, unverified', bytes, once: undici },
    ]
  })
  return {
    list,
    close: async () => {
      bare.close()
      await Promise.all([clients.close(), pool.close()])
    },
  }
}

function blobOf(bytes: number): BlobLocation {
  const digest = createHash('sha256').update(Buffer.alloc(bytes, 'holdfast')).digest('hex') as Digest
  return { digest, generation: String(bytes).padStart(12, '0') as Generation, partition: 0, bytes }
}

function mapOf(url: string): Parameters<typeof sealClusterMap>[0] & { checksum: string } {
  const node = 'a' as NodeId
  return sealClusterMap({
    format: 1,
    clusterId: randomBytes(8).toString('hex'),
    epoch: 1,
    replicas: 1,
    spread: 'strict',
    nodes: [{ id: node, zone: 'a' as Zone, url }],
    shards: [{ id: 'a-0' as ShardId, node, weight: 1 }],
    table: new Uint16Array(partitionCount),
    copies: 1,
  })
}

if (process.argv[2] === 'serve') serve()
else {
  const child = fork(fileURLToPath(import.meta.url), ['serve'])
  const [port] = (await once(child, 'message')) as [number]
  const { list, close } = cases(`http://127.0.0.1:${port}`)
  console.log(`node ${process.version}, ${process.platform} ${process.arch}`)
  await compare(list, 5, Number(process.argv[2] ?? 0.5) * 1000)
  await close()
  child.disconnect()
}
