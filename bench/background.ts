/**
 * `npm run bench:background [-- --rounds 3 --seconds 15 --mib 384 --rate 30 --only scrub|change]`: what clients feel of work in the background (I34: p99 at most
 * 1.2 times as long). A cluster as `npm start` makes it, at its default settings, without a cache of bodies; `--rate` requests a second, two
 * of three a GET of 4 KiB to 1 MiB, the others a PUT of 16 to 256 KiB, begun when they are due whether or not others are answered. Rounds
 * take turns: quiet; then with a scrub of all shards and a fourth node being filled, or emptied again, at the same time (`--only`: one of both).
 *
 * On one machine everything shares the processors, and the disk is mostly memory: what is measured is the contention for two cores rather
 * than for a disk. The rates of the background that are printed belong to the ratio: without work done it would say nothing.
 */
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Agent, request } from 'undici'
import { atMost } from '../shared/at-most.ts'
import { type NodeStatus, wirePath } from '../shared/wire.ts'
import { type Cluster, startCluster } from './cluster.ts'
import { call, type Node, startNode, stop } from './storage-nodes.ts'

const KiB = 1024
const MiB = 1024 * KiB
const kinds = ['GET', 'PUT'] as const
type Kind = (typeof kinds)[number]
type Latencies = Record<Kind, number[]>

const { values: args } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '15' },
    mib: { type: 'string', default: '384' },
    rate: { type: 'string', default: '30' },
    only: { type: 'string' },
  },
})
if (args.only !== undefined && args.only !== 'scrub' && args.only !== 'change') {
  console.error(`--only must be scrub or change, not '${args.only}'`)
  process.exit(2)
}
const between = (low: number, high: number): number => low + Math.floor(Math.random() * (high - low))
const agent = new Agent({ connections: 64 })
let written = 0

const folder = await mkdtemp(join(tmpdir(), 'holdfast-background-'))
try {
  await bench()
} finally {
  await agent.close()
  await rm(folder, { recursive: true, force: true })
}

async function bench(): Promise<void> {
  // Only how soon a scrub that was asked for begins, and that bodies come from the disks.
  const cluster = await startCluster(folder, { HOLDFAST_HOT_CACHE_BYTES: '0', HOLDFAST_SCRUB_PAUSE_MS: '500' })
  let added: Node | undefined
  try {
    const as = JSON.parse(await readFile(join(folder, 'data', 'cluster.json'), 'utf8')) as {
      clusterId: string
      secret: string
      ports: number[]
    }
    added = await startNode(folder, 'node-d', as)
    const nodes = [...as.ports.map(port => ({ url: `http://127.0.0.1:${port}`, secret: as.secret })), added]
    await api(cluster, 'POST', 'scrub', { action: 'pause' })
    const paths = await fill(cluster, Number(args.mib) * MiB)
    await load(cluster, paths, 5) // the optimiser takes seconds
    const quiet: Latencies = { GET: [], PUT: [] }
    const beside: Latencies = { GET: [], PUT: [] }
    const changes = [{ op: 'add-node', url: added.url }, { op: 'drain-node', node: 'node-d' }, { op: 'reweight-shard', shard: added.shard, weight: 100 }] // prettier-ignore
    for (let round = 0; round < Number(args.rounds); round += 1) {
      const change = changes[round === 0 ? 0 : 2 - (round % 2)]
      collect(quiet, await load(cluster, paths, Number(args.seconds)))
      const work = await background(cluster, nodes, change, async () => {
        collect(beside, await load(cluster, paths, Number(args.seconds)))
      })
      const works = [...(args.only === 'scrub' ? [] : [change?.op]), ...(args.only === 'change' ? [] : ['scrub'])]
      console.log(`round ${round + 1}: ${works.join(' and ')}, ${work}`)
    }
    report(quiet, beside)
  } finally {
    if (added !== undefined) await stop(added)
    await cluster.close()
  }
}

/** Does `measure` while copies move and all shards are scrubbed; resolves with what was read and written meanwhile. */
async function background(
  cluster: Cluster,
  nodes: readonly Pick<Node, 'url' | 'secret'>[],
  change: unknown,
  measure: () => Promise<void>,
): Promise<string> {
  if (args.only !== 'change') await api(cluster, 'POST', 'scrub', { action: 'start' })
  if (args.only !== 'scrub') await api(cluster, 'POST', 'topology/changes', { changes: [change] })
  const idle = await bytesOf(nodes)
  while ((await bytesOf(nodes)) < idle + MiB) await sleep(100)
  const [before, startedAt] = [await bytesOf(nodes), performance.now()]
  await measure()
  const seconds = (performance.now() - startedAt) / 1_000
  const rate = ((await bytesOf(nodes)) - before) / seconds / 1e6
  const { change: left } = (await api(cluster, 'GET', 'topology')) as { change: { unsettled: number } | null }
  await api(cluster, 'POST', 'scrub', { action: 'pause' })
  while (((await api(cluster, 'GET', 'topology')) as { change: unknown }).change !== null) await sleep(200)
  const changing =
    args.only === 'scrub'
      ? ''
      : `; the change: ${left === null ? 'over before the end' : `${left.unsettled} partitions left`}`
  return `${rate.toFixed(1)} MB/s read and written in the background${changing}`
}

/** Read and written in the background by all disks. */
async function bytesOf(nodes: readonly Pick<Node, 'url' | 'secret'>[]): Promise<number> {
  const statuses = await Promise.all(nodes.map(async node => (await call(node, 'GET', wirePath.status)) as NodeStatus))
  return statuses.flatMap(({ shards }) => shards).reduce((sum, { background }) => sum + (background?.bytes ?? 0), 0)
}

/** Latencies from the moment a request was due, ms. Rejects with the first answer that is not as it should be. */
async function load(cluster: Cluster, paths: readonly string[], seconds: number): Promise<Latencies> {
  const found: Latencies = { GET: [], PUT: [] }
  const startedAt = performance.now()
  const count = Math.floor(seconds * Number(args.rate))
  const all: Promise<void>[] = []
  for (let index = 0; index < count; index += 1) {
    const dueAt = startedAt + (index / Number(args.rate)) * 1_000
    await sleep(Math.max(0, dueAt - performance.now()))
    const kind = index % 3 === 2 ? 'PUT' : 'GET'
    const path = paths[between(0, paths.length)] ?? ''
    const done = kind === 'GET' ? get(cluster, path) : put(cluster, between(16 * KiB, 256 * KiB))
    all.push(done.then(() => void found[kind].push(performance.now() - dueAt)))
  }
  await Promise.all(all)
  return found
}

function collect(all: Latencies, some: Latencies): void {
  for (const kind of kinds) all[kind].push(...some[kind])
}

function report(quiet: Latencies, beside: Latencies): void {
  console.log(`\n${availableParallelism()} cores, load ${loadavg().map(value => value.toFixed(1)).join(' ')}, ${args.rate} requests a second\n`) // prettier-ignore
  console.log('|     | requests | p50 quiet | p50 beside work | ratio | p99 quiet | p99 beside work | ratio |')
  console.log('| --- | -------- | --------- | --------------- | ----- | --------- | --------------- | ----- |')
  for (const kind of kinds) {
    const cells = [0.5, 0.99].flatMap(share => {
      const [without, during] = [quantile(quiet[kind], share), quantile(beside[kind], share)]
      return [`${without.toFixed(1)} ms`, `${during.toFixed(1)} ms`, (during / without).toFixed(2)]
    })
    console.log(`| ${kind} | ${quiet[kind].length} + ${beside[kind].length} | ${cells.join(' | ')} |`)
  }
}

function quantile(values: readonly number[], share: number): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length * share)] ?? NaN
}

async function fill(cluster: Cluster, bytesMax: number): Promise<readonly string[]> {
  const paths: string[] = []
  for (let bytes = 0; bytes < bytesMax;) {
    const sizes = Array.from({ length: 32 }, () => between(4 * KiB, MiB))
    await atMost(8, sizes, async size => paths.push(await put(cluster, size)))
    bytes += sizes.reduce((sum, size) => sum + size, 0)
  }
  return paths
}

async function put(cluster: Cluster, bytes: number): Promise<string> {
  const path = `background/${++written}`
  const headers = { authorization: cluster.authorization }
  const url = `${cluster.url}/repository/raw/${path}`
  const { statusCode, body } = await request(url, {
    method: 'PUT',
    body: randomBytes(bytes),
    headers,
    dispatcher: agent,
  })
  await body.dump()
  if (statusCode !== 201) throw new Error(`PUT ${path}: ${statusCode}`)
  return path
}

async function get(cluster: Cluster, path: string): Promise<void> {
  const headers = { authorization: cluster.authorization }
  const { statusCode, body } = await request(`${cluster.url}/repository/raw/${path}`, { headers, dispatcher: agent })
  await body.arrayBuffer()
  if (statusCode !== 200) throw new Error(`GET ${path}: ${statusCode}`)
}

async function api(cluster: Cluster, method: 'GET' | 'POST', path: string, content?: unknown): Promise<unknown> {
  const headers = { authorization: cluster.authorization, 'content-type': 'application/json' }
  const options = {
    method,
    headers,
    dispatcher: agent,
    ...(content === undefined ? {} : { body: JSON.stringify(content) }),
  }
  const { statusCode, body } = await request(`${cluster.url}/api/v1/${path}`, options)
  const answer = await body.json()
  if (statusCode >= 300) throw new Error(`${method} ${path}: ${statusCode} ${JSON.stringify(answer)}`)
  return answer
}
