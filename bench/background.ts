/**
 * `npm run bench:background [-- --rounds 3 --seconds 20 --mib 384 --rate 30 --only scrub|change]`: what clients feel of work in the background (I34: p99 at most
 * 1.2 times as long). A cluster as `npm start` makes it, at its default settings, without a cache of bodies; `--rate` requests a second, two
 * of three a GET of 4 KiB to 1 MiB, the others a PUT of 16 to 256 KiB, begun when they are due whether or not others are answered. Rounds
 * take turns: quiet; then with a scrub of all shards and a fourth node being filled, or emptied again, at the same time (`--only`: one of both);
 * quiet once more at the end. A half beside work that is over early ends with it: requests without work beside them would flatter the ratio.
 *
 * On one machine everything shares the processors, and the disk is mostly memory: what is measured is the contention for two cores rather
 * than for a disk. The rates of the background that are printed belong to the ratio: without work done it would say nothing. Each round is
 * compared with the quiet halves before and after it, so that what drifts is seen; two quiet halves compared with each other say what a
 * ratio is worth on this machine.
 */
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os'
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
/** What some seconds of load came to. */
interface Window {
  /** From the moment a request was due, ms. */
  readonly latencies: Latencies
  /** Part of the processors' time that was used, by whomever. */
  readonly busy: number
}

const { values: args } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '20' },
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
    const quiet: Window[] = []
    const beside: Window[] = []
    const changes = [{ op: 'add-node', url: added.url }, { op: 'drain-node', node: 'node-d' }, { op: 'reweight-shard', shard: added.shard, weight: 100 }] // prettier-ignore
    for (let round = 0; round < Number(args.rounds); round += 1) {
      const change = changes[round === 0 ? 0 : 2 - (round % 2)]
      quiet.push(await load(cluster, paths, Number(args.seconds)))
      const work = await background(cluster, nodes, change, async isOver => {
        beside.push(await load(cluster, paths, Number(args.seconds), isOver))
      })
      const works = [...(args.only === 'scrub' ? [] : [change?.op]), ...(args.only === 'change' ? [] : ['scrub'])]
      console.log(`round ${round + 1}: ${works.join(' and ')}, ${work}`)
    }
    quiet.push(await load(cluster, paths, Number(args.seconds)))
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
  measure: (isOver: () => boolean) => Promise<void>,
): Promise<string> {
  if (args.only !== 'change') await api(cluster, 'POST', 'scrub', { action: 'start' })
  if (args.only !== 'scrub') await api(cluster, 'POST', 'topology/changes', { changes: [change] })
  const idle = await bytesOf(nodes)
  while ((await bytesOf(nodes)) < idle + MiB) await sleep(100)
  const unsettled = async (): Promise<number> => {
    const { change } = (await api(cluster, 'GET', 'topology')) as { change: { unsettled: number } | null }
    return change?.unsettled ?? 0
  }
  const [before, moving, startedAt] = [await bytesOf(nodes), await unsettled(), performance.now()]
  // Asked seldom: the question is work of its own.
  let isOver = false
  const look = setInterval(() => void unsettled().then(left => (isOver = args.only === 'change' && left === 0)), 2_000)
  await measure(() => isOver)
  clearInterval(look)
  const seconds = (performance.now() - startedAt) / 1_000
  const rate = ((await bytesOf(nodes)) - before) / seconds / 1e6
  const left = await unsettled()
  await api(cluster, 'POST', 'scrub', { action: 'pause' })
  // Old copies are still let go after the last partition was settled.
  const isUnderWay = async (): Promise<boolean> => {
    const { change, run } = (await api(cluster, 'GET', 'topology')) as { change: unknown; run: unknown }
    return change !== null || run !== null
  }
  while (await isUnderWay()) await sleep(200)
  const changing = args.only === 'scrub' ? '' : `; of ${moving} partitions ${left} were left`
  return `${rate.toFixed(1)} MB/s read and written in the background for ${seconds.toFixed(0)} s${changing}`
}

/** Read and written in the background by all disks. */
async function bytesOf(nodes: readonly Pick<Node, 'url' | 'secret'>[]): Promise<number> {
  const statuses = await Promise.all(nodes.map(async node => (await call(node, 'GET', wirePath.status)) as NodeStatus))
  return statuses.flatMap(({ shards }) => shards).reduce((sum, { background }) => sum + (background?.bytes ?? 0), 0)
}

/** Rejects with the first answer that is not as it should be. */
async function load(
  cluster: Cluster,
  paths: readonly string[],
  seconds: number,
  isOver: () => boolean = () => false,
): Promise<Window> {
  const found: Latencies = { GET: [], PUT: [] }
  const [startedAt, usedBefore] = [performance.now(), processorMs()]
  const count = Math.floor(seconds * Number(args.rate))
  const all: Promise<void>[] = []
  for (let index = 0; index < count && !isOver(); index += 1) {
    const dueAt = startedAt + (index / Number(args.rate)) * 1_000
    await sleep(Math.max(0, dueAt - performance.now()))
    const kind = index % 3 === 2 ? 'PUT' : 'GET'
    const path = paths[between(0, paths.length)] ?? ''
    const done = kind === 'GET' ? get(cluster, path) : put(cluster, between(16 * KiB, 256 * KiB))
    all.push(done.then(() => void found[kind].push(performance.now() - dueAt)))
  }
  await Promise.all(all)
  const busy = (processorMs() - usedBefore) / (performance.now() - startedAt) / availableParallelism()
  return { latencies: found, busy }
}

/** Of all processors together, since the start of the machine; this bench is among it. */
function processorMs(): number {
  return cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0)
}

function report(quiet: readonly Window[], beside: readonly Window[]): void {
  console.log(`\n${availableParallelism()} cores, load ${loadavg().map(value => value.toFixed(1)).join(' ')}, ${args.rate} requests a second`) // prettier-ignore
  console.log(`processors busy: ${percents(quiet)} quiet, ${percents(beside)} beside work\n`)
  console.log('|     | requests | p50 quiet | p50 beside work | ratio | p99 quiet | p99 beside work | ratio |')
  console.log('| --- | -------- | --------- | --------------- | ----- | --------- | --------------- | ----- |')
  for (const kind of kinds) {
    const [all, during] = [together(quiet, kind), together(beside, kind)]
    const cells = [0.5, 0.99].flatMap(share => {
      const [without, besideWork] = [quantile(all, share), quantile(during, share)]
      return [`${without.toFixed(1)} ms`, `${besideWork.toFixed(1)} ms`, (besideWork / without).toFixed(2)]
    })
    console.log(`| ${kind} | ${all.length} + ${during.length} | ${cells.join(' | ')} |`)
  }
  for (const kind of kinds) {
    const p99 = (windows: readonly Window[]): number => quantile(together(windows, kind), 0.99)
    const ratios = beside.map((window, round) => p99([window]) / p99(quiet.slice(round, round + 2)))
    const noise = quiet.slice(1).map((window, round) => p99([window]) / p99(quiet.slice(round, round + 1)))
    const list = (values: readonly number[]): string => values.map(value => value.toFixed(2)).join(', ')
    console.log(`\np99 of ${kind}s, round by round: ${list(ratios)}; median ${list([quantile(ratios, 0.5)])}`)
    console.log(`quiet halves, each to the one before: ${list(noise)}`)
  }
}

function together(windows: readonly Window[], kind: Kind): readonly number[] {
  return windows.flatMap(({ latencies }) => latencies[kind])
}

function percents(windows: readonly Window[]): string {
  return windows.map(({ busy }) => `${(busy * 100).toFixed(0)} %`).join(', ')
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
