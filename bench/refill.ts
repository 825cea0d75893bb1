/**
 * `npm run bench:refill [-- --mib 512 --cold --only "1 to 16" --runs 3]`: how fast a lost disk is full again, beside a plain copy of the same
 * bytes on the same disk just before and after. Three storage nodes as `holdfast storage-node` runs them; two have everything, the third, a new
 * one in each run, has an empty disk and is told to pull it, in requests as the primary makes them (1,000 blobs, 64 MiB, two at a time). What
 * the primary itself does (comparing, the queue in PostgreSQL) is not in it. The plain copy is `cp -r` of the blobs as files, then fsync of
 * each. `--cold`: what the kernel has in memory is forgotten before each of them (needs root), as with a disk that holds far more than the
 * memory; without it all is read from memory. Idle: what the processors had left; what is missing, others took.
 */
import { execFileSync } from 'node:child_process'
import { hash, randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, open, readdir, rm, writeFile } from 'node:fs/promises'
import { cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { batchesOf } from '../proxy/tasks/shard-contents.ts'
import { atMost } from '../shared/at-most.ts'
import { type Digest, newGeneration } from '../shared/ids.ts'
import { type BlobKey, type TransferAnswer, type TransferRequest, wirePath } from '../shared/wire.ts'
import { cpuSeconds } from './processes.ts'
import { call, type Node, put, startNode, stop } from './storage-nodes.ts'

const MiB = 1024 * 1024
const bytesPerRequest = 64 * MiB
const requestsAtOnce = 2
/** Nodes go as fast as they can when nobody has used them for 5 s. */
const clientsGoneMs = 6_000

interface TestBlob extends BlobKey {
  readonly bytes: number
}

const between = (low: number, high: number): number => low + Math.floor(Math.random() * (high - low))
/** Mostly small ones by number, and by bytes too; nine of ten bytes in files. */
const mixes: Readonly<Record<string, () => number>> = {
  'mostly small (0.5 to 64 KiB, 1 of 500 1 MiB)': () => (Math.random() < 0.002 ? MiB : between(512, 64 * 1024)),
  'mostly 1 to 16 MiB (half of them small)': () => (Math.random() < 0.5 ? between(512, 64 * 1024) : between(1, 16) * MiB), // prettier-ignore
}

const { values: args } = parseArgs({
  options: {
    mib: { type: 'string', default: '256' },
    cold: { type: 'boolean', default: false },
    only: { type: 'string', default: '' },
    runs: { type: 'string', default: '1' },
  },
})
for (const [name, sizeOf] of Object.entries(mixes)) {
  if (name.includes(args.only)) await measure(name, sizeOf, Number(args.mib) * MiB)
}

async function measure(name: string, sizeOf: () => number, bytesMax: number): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-refill-'))
  const nodes: Node[] = []
  try {
    for (const id of ['a', 'b']) nodes.push(await startNode(folder, id))
    const [first, second] = nodes as [Node, Node]
    const blobs: TestBlob[] = []
    await mkdir(join(folder, 'files'))
    for (let bytes = 0; bytes < bytesMax;) {
      const some = await atMost(16, Array.from({ length: 64 }, sizeOf), size => store(folder, [first, second], size))
      blobs.push(...some)
      bytes += some.reduce((sum, blob) => sum + blob.bytes, 0)
    }
    const bytes = blobs.reduce((sum, blob) => sum + blob.bytes, 0)
    // Who filled them was a client, and has gone.
    await sleep(clientsGoneMs)
    console.log(`${name}: ${blobs.length} blobs, ${(bytes / MiB).toFixed(0)} MiB`)
    for (let run = 1; run <= Number(args.runs); run += 1) {
      const target = await startNode(folder, `empty${run}`)
      nodes.push(target)
      const before = await plainCopy(folder)
      const pids = [first, second, target].map(node => node.process.pid ?? 0)
      const cpu = cpuSeconds(pids)
      const idleBefore = idleSeconds()
      const refill = await timed(() => pull(target, [first, second], blobs))
      const used = cpuSeconds(pids) - cpu
      const idle = idleSeconds() - idleBefore
      const after = await plainCopy(folder)
      await stop(target)
      await rm(join(folder, `empty${run}`), { recursive: true })
      const rate = (seconds: number): string => (bytes / seconds / 1e6).toFixed(0)
      const ratio = ((before + after) / 2 / refill) * 100
      console.log(
        `  refill ${rate(refill)} MB/s (${used.toFixed(1)} s of CPU in ${refill.toFixed(1)} s, ${idle.toFixed(1)} s idle), ` +
          `cp -r + fsync ${rate(before)} and ${rate(after)} MB/s: ${ratio.toFixed(0)} %`,
      )
    }
  } finally {
    for (const node of nodes) await stop(node)
    await rm(folder, { recursive: true, force: true })
  }
}

async function timed(work: () => Promise<void>): Promise<number> {
  execFileSync('sync')
  if (args.cold) await writeFile('/proc/sys/vm/drop_caches', '3')
  const startedAt = performance.now()
  await work()
  return (performance.now() - startedAt) / 1_000
}

/** Of all processors: what the nodes neither used nor left to others. */
function idleSeconds(): number {
  return cpus().reduce((sum, { times }) => sum + times.idle / 1_000, 0)
}

async function pull(target: Node, sources: readonly Node[], blobs: readonly TestBlob[]): Promise<void> {
  const named = sources.map(({ url, shard }) => ({ url, shard }))
  const batches = batchesOf(blobs, blob => blob.bytes, bytesPerRequest)
  await atMost(requestsAtOnce, batches, async batch => {
    const order: TransferRequest = {
      shard: target.shard,
      blobs: batch.map((blob, index) => ({ ...blob, sources: index % 2 === 0 ? named : named.toReversed() })),
    }
    const { results } = (await call(target, 'POST', wirePath.transfer, JSON.stringify(order))) as TransferAnswer
    if (results.some(result => result !== 'copied')) throw new Error(`not copied: ${JSON.stringify(results[0])}`)
  })
}

/** Seconds, with the flush of every file. */
async function plainCopy(folder: string): Promise<number> {
  const copy = join(folder, 'copy')
  const seconds = await timed(async () => {
    execFileSync('cp', ['-r', join(folder, 'files'), copy])
    await atMost(16, await readdir(copy), async file => {
      const handle = await open(join(copy, file), 'r+')
      await handle.datasync()
      await handle.close()
    })
  })
  await rm(copy, { recursive: true })
  return seconds
}

async function store(folder: string, nodes: readonly Node[], size: number): Promise<TestBlob> {
  const body = randomBytes(size)
  const digest = hash('sha256', body) as Digest
  const key = { partition: between(0, 4096), digest, generation: newGeneration() }
  await Promise.all([
    writeFile(join(folder, 'files', digest), body),
    ...nodes.map(node => put(node, [{ ...key, body }])),
  ])
  return { ...key, bytes: size }
}
