/**
 * `npm run bench [-- --seconds 5 --rounds 3]`: a cluster as `npm start` makes it (two proxy workers for reads, one for writes), under autocannon, beside nginx
 * proxying to nginx in the same run. Correct answers first: each case is checked once before it is timed. Prints a table,
 * writes bench/results/<time>.json. The load generator takes CPU of the same machine: compare within a run, CPU before rate.
 */
import { createHash, randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { arch, cpus, release, tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { runCase, type Case, type Figures } from './cases.ts'
import { type Cluster, freePort, startCluster as startIn } from './cluster.ts'
import { startNginx } from './nginx.ts'
import { pssBytes } from './processes.ts'
import { markdown, type Row } from './report.ts'

const KiB = 1024
const MiB = 1024 * KiB
const sizes: readonly [name: string, bytes: number][] = [
  ['1 KiB', KiB],
  ['64 KiB', 64 * KiB],
  ['256 KiB', 256 * KiB],
  ['1 MiB', MiB],
  ['64 MiB', 64 * MiB],
]

const { values: args } = parseArgs({
  options: {
    seconds: { type: 'string', default: '4' },
    rounds: { type: 'string', default: '3' },
    workers: { type: 'string', default: '2' },
    only: { type: 'string' },
  },
})
const folder = await mkdtemp(join(tmpdir(), 'holdfast-bench-'))
try {
  await bench()
} finally {
  await rm(folder, { recursive: true, force: true })
}

async function bench(): Promise<void> {
  const files = new Map(sizes.map(([name, bytes]) => [`bench/${name.replace(' ', '-')}`, randomBytes(bytes)]))
  const nginx = await startNginx(folder, files, [await freePort(), await freePort()])
  const rows: Row[] = []
  let cluster = await startCluster({})
  const memory: Record<string, number> = {
    idleClusterPss: pssBytes([cluster.pid]),
    idleProxyPss: pssBytes([cluster.proxyPid]),
  }
  try {
    for (const [name, body] of files) await upload(cluster, name, body)
    rows.push(...(await measureGets('hot', cluster, nginx, files)))
    rows.push(...(await measureGets('304', cluster, nginx, new Map([...files].slice(0, 1)))))
    await cluster.close()
    // The same data behind a proxy without a body cache: every body comes from a storage node.
    cluster = await startCluster({ HOLDFAST_HOT_CACHE_BYTES: '0' })
    rows.push(...(await measureGets('uncached', cluster, nginx, files)))
    await cluster.close()
    // Writes through one worker, as `npm start` has it: a second one on the same cores only halves the batches.
    cluster = await startCluster({ HOLDFAST_WORKERS: '1' })
    memory['idleClusterPssOneWorker'] = pssBytes([cluster.pid])
    rows.push(...(await measurePuts(cluster)))
  } finally {
    await cluster.close()
    await nginx?.close()
  }
  memory['proxyPeakRss'] = Math.max(...rows.map(row => row.holdfast.proxyRssBytes))
  const machine = {
    cpu: cpus()[0]?.model ?? '',
    cores: cpus().length,
    memoryBytes: totalmem(),
    system: `${release()} ${arch()}`,
  }
  const versions = { node: process.version, nginx: nginx?.version ?? 'not installed' }
  process.stdout.write(markdown(rows, memory, machine, versions))
  const results = join(import.meta.dirname, '..', '..', 'bench', 'results')
  await mkdir(results, { recursive: true })
  const file = join(results, `${new Date().toISOString().replaceAll(':', '-')}.json`)
  await writeFile(file, JSON.stringify({ machine, versions, memory, settings: args, rows }, null, 2) + '\n')
  process.stdout.write(`\nwritten: ${file}\n`)
}

async function measureGets(
  kind: 'hot' | 'uncached' | '304',
  cluster: Cluster,
  nginx: { url: string; pid: number } | undefined,
  files: ReadonlyMap<string, Buffer>,
): Promise<Row[]> {
  const rows: Row[] = []
  for (const [name, body] of files) {
    const label = `GET ${kind} ${name.replace('bench/', '').replace('-', ' ')}`
    if (skipped(label)) continue
    const connections = body.length >= 16 * MiB ? 8 : 32
    const target = { path: `/repository/raw/${name}`, body }
    const ours = (): Case => ({
      kind: 'get',
      target,
      connections,
      conditional: kind === '304',
      url: cluster.url,
      headers: { authorization: cluster.authorization },
    })
    const theirs = (): Case | undefined =>
      nginx === undefined
        ? undefined
        : { kind: 'get', target, connections, conditional: kind === '304', url: nginx.url, headers: {} }
    rows.push(
      await compare(label, ours(), [cluster.pid], cluster.proxyPid, theirs(), nginx === undefined ? [] : [nginx.pid]),
    )
  }
  return rows
}

async function measurePuts(cluster: Cluster): Promise<Row[]> {
  const rows: Row[] = []
  const cases: readonly [string, number, number][] = [
    ['PUT 1 KiB', KiB, 32],
    ['PUT 64 KiB', 64 * KiB, 32],
    ['PUT 16 MiB', 16 * MiB, 4],
    ['PUT 64 MiB', 64 * MiB, 4],
  ]
  for (const [label, bytes, connections] of cases) {
    if (skipped(label)) continue
    const put: Case = {
      kind: 'put',
      bytes,
      connections,
      url: cluster.url,
      headers: { authorization: cluster.authorization },
    }
    rows.push(await compare(label, put, [cluster.pid], cluster.proxyPid, undefined, []))
  }
  if (!skipped('mixed')) {
    const mixed: Case = {
      kind: 'mixed',
      bytes: 16 * KiB,
      connections: 32,
      url: cluster.url,
      headers: { authorization: cluster.authorization },
    }
    rows.push(await compare('mixed 90 % GET, 10 % PUT, 16 KiB', mixed, [cluster.pid], cluster.proxyPid, undefined, []))
  }
  return rows
}

/** Rounds alternate between the two, so that a drift of the machine meets both; the median of each counts. */
async function compare(
  label: string,
  ours: Case,
  ourPids: readonly number[],
  proxyPid: number,
  theirs: Case | undefined,
  theirPids: readonly number[],
): Promise<Row> {
  const seconds = Number(args.seconds)
  const holdfast: Figures[] = []
  const nginx: Figures[] = []
  for (let round = 0; round < Number(args.rounds); round++) {
    holdfast.push(await runCase(ours, seconds, ourPids, proxyPid))
    if (theirs !== undefined) nginx.push(await runCase(theirs, seconds, theirPids, undefined))
  }
  process.stderr.write(`${label}: ${median(holdfast).perSecond.toFixed(0)}/s\n`)
  return { label, holdfast: median(holdfast), nginx: nginx.length === 0 ? undefined : median(nginx) }
}

function median(figures: readonly Figures[]): Figures {
  const sorted = [...figures].sort((a, b) => a.perSecond - b.perSecond)
  const middle = sorted[Math.floor(sorted.length / 2)] as Figures
  return { ...middle, proxyRssBytes: Math.max(...figures.map(one => one.proxyRssBytes)) }
}

function skipped(label: string): boolean {
  return args.only !== undefined && !label.includes(args.only)
}

function startCluster(env: Record<string, string>): Promise<Cluster> {
  return startIn(folder, { HOLDFAST_WORKERS: args.workers, ...env })
}

async function upload(cluster: Cluster, name: string, body: Buffer): Promise<void> {
  const url = `${cluster.url}/repository/raw/${name}`
  const headers = { authorization: cluster.authorization }
  const put = await fetch(url, { method: 'PUT', body, headers })
  const back = Buffer.from(await (await fetch(url, { headers })).arrayBuffer())
  const same = createHash('sha256').update(back).digest('hex') === createHash('sha256').update(body).digest('hex')
  if (!put.ok || !same) throw new Error(`${name} does not come back as it went in (${put.status})`)
}
