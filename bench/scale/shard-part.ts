/** One shard with its share of everything, filled through the code that fills it in production: what it takes on disk and in memory. */
import { createHash } from 'node:crypto'
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { pino } from 'pino'
import { type Digest, type Generation, parseGeneration, parseShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import type { ShardRecord } from '../../shared/record.ts'
import { defaultLimits } from '../../storage-node/config.ts'
import { newRecord, type NewRecord } from '../../storage-node/log.ts'
import { Shard } from '../../storage-node/shard.ts'
import type { ShardMarker } from '../../storage-node/shard-marker.ts'
import { nodeFs } from '../../storage-node/store-fs.ts'
import { type Figure, figure, heldBytes, timed } from './measure.ts'
import { artifacts, disksPerNode, entriesPerShard, known, replicas, shardCount } from './site.ts'

const waitingMax = 2_000
const marker: ShardMarker = { format: 1, clusterId: 'scale', node: 'node-00-00', shard: 'disk' }
const clock = { now: () => Date.now(), monotonic: () => performance.now() }
/** Partitions that this shard owns. */
const owned = Array.from({ length: Math.round((partitionCount * replicas) / shardCount) }, (_, index) => 700 + index)

/** `entries`: blobs, and as many references. */
export async function shardPart(entries: number): Promise<Figure[]> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-scale-'))
  try {
    return await fillAndMeasure(folder, entries)
  } catch (error) {
    // Before the folder goes, which makes whatever is still under way fail too.
    console.error(error)
    throw error
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

async function fillAndMeasure(folder: string, entries: number): Promise<Figure[]> {
  let shard = shardIn(folder)
  await shard.start(marker, true)
  const empty = await folderBytes(join(folder, 'index'))
  const filling = await timed(() => fill(shard, entries))
  await shard.close()
  const index = (await folderBytes(join(folder, 'index'))) - empty
  const log = await folderBytes(join(folder, 'log'))
  const opened = await openFresh(folder)
  shard = opened.shard
  const summaries = await timed(() => shard.summaries.list(shard, 0, partitionCount))
  const counted = summaries.result.reduce((sum, { blobs, references }) => sum + blobs.count + references.count, 0)
  if (counted !== 2 * entries) throw new Error(`${counted} entries instead of ${2 * entries}`)
  const known = await timed(() => shard.summaries.list(shard, 0, partitionCount))
  const afterReading = heldBytes()
  const rss = process.memoryUsage.rss()
  await shard.close()
  await rm(join(folder, 'index'), { recursive: true })
  const rebuilt = await openFresh(folder)
  await rebuilt.shard.close()
  const share = (bytes: number): number => (bytes / entries) * entriesPerShard
  const times = entriesPerShard / entries
  return [
    figure('blobs and references filled in, each', entries, 'count', `a shard's share of 10^9 is ${entriesPerShard / 1e6} million of each`), // prettier-ignore
    figure('filling, CPU per record', filling.cpuMs / entries / 2, 'ms'),
    figure('index on disk, per blob and its reference', index / entries, 'bytes'),
    figure(
      'log on disk, per blob and its reference',
      log / entries,
      'bytes',
      'blobs of 24 bytes: their content is not counted',
    ),
    figure('index on disk of a shard', share(index), 'bytes'),
    figure('log without content of a shard', share(log), 'bytes'),
    figure('memory of a shard, opened', opened.bytes, 'bytes', 'heap and buffers; does not grow with the entries'),
    figure('memory of a shard, after its whole index was read', afterReading - opened.before, 'bytes'),
    figure('resident memory of the process then', rss, 'bytes', 'the code, one shard, and the caches of LevelDB'),
    figure(`memory of a node of ${disksPerNode} shards, at most`, rss + (disksPerNode - 1) * shardMemoryMax(), 'bytes', 'by its limits: 8 + 16 MiB of LevelDB and 50,000 locations of 300 bytes per shard'), // prettier-ignore
    figure('opening a shard, CPU', opened.cpuMs, 'ms'),
    figure('summaries of a shard the first time, CPU', summaries.cpuMs * times, 'ms', `reads the whole index; then ${known.cpuMs.toFixed(1)} ms from memory`), // prettier-ignore
    figure(
      'a lost index made again from the log, CPU',
      rebuilt.cpuMs * times,
      'ms',
      'linear: each record is read once',
    ),
    figure('all indexes of the cluster', (index / entries) * artifacts * replicas, 'bytes'),
  ]
}

const shardMemoryMax = (): number => 2 * 8 * 2 ** 20 + 16 * 2 ** 20 + defaultLimits.locationCountMax * 300

async function openFresh(folder: string): Promise<{ shard: Shard; before: number; bytes: number; cpuMs: number }> {
  const before = heldBytes()
  const shard = shardIn(folder)
  const { cpuMs } = await timed(() => shard.start(marker, false))
  if (shard.health.state === 'failed') throw new Error(`the shard failed: ${shard.health.reason}`)
  return { shard, before, bytes: heldBytes() - before, cpuMs }
}

function shardIn(folder: string): Shard {
  const limits = { ...defaultLimits, reserveBytes: 0 }
  const log = pino({ level: 'silent' })
  return new Shard({ fs: nodeFs, log, clock, limits }, { id: known(parseShardId('disk')), folder, weight: 100 })
}

async function fill(shard: Shard, entries: number): Promise<void> {
  let waiting: Promise<void>[] = []
  for (let index = 0; index < entries; index += 1) {
    for (const record of recordsOf(index)) waiting.push(shard.append(record))
    if (waiting.length < waitingMax) continue
    await Promise.all(waiting)
    waiting = []
  }
  await Promise.all(waiting)
}

/** A small blob and the reference to it; paths as long as those of packages (60 to 90 characters). */
function recordsOf(index: number): [NewRecord, NewRecord] {
  const partition = owned[index % owned.length] ?? 0
  const payload = Buffer.from(`content ${index}`.padEnd(24))
  const digest = hex('sha256', payload) as Digest
  const generation = generationOf(index)
  const time = Date.now()
  const fields = { partition, digest, generation, bytes: payload.length }
  const blob: ShardRecord = { kind: 'blob', ...fields, crc: crc32(payload), time }
  const reference: ShardRecord = {
    kind: 'reference',
    partition,
    repository: 'maven-releases',
    path: pathOf(index),
    op: 'put',
    version: index + 1,
    incarnation: 'r1~6f7c1f0e-5f0a-4c0f-9f5e-6a2d4f6b8c1d',
    time,
    user: 'ci-builder',
    blob: { ...fields, md5: hex('md5', payload), sha1: hex('sha1', payload) },
    contentType: 'application/java-archive',
  }
  return [newRecord(blob, payload), newRecord(reference)]
}

export function pathOf(index: number): string {
  const [group, name, version] = [index % 997, Math.floor(index / 50) % 4_099, Math.floor(index / 5) % 10]
  const file = ['jar', 'pom', 'jar.sha1', 'sources.jar', 'module'][index % 5]
  return `com/example/group-${group}/component-${name}/1.${version}.${index}/component-${name}-1.${version}.${index}.${file}`
}

const hex = (algorithm: string, payload: Buffer): string => createHash(algorithm).update(payload).digest('hex')

export function generationOf(index: number): Generation {
  return known(parseGeneration(index.toString(32).padStart(12, '0')))
}

async function folderBytes(folder: string): Promise<number> {
  const names = await readdir(folder)
  const sizes = await Promise.all(names.map(async name => (await stat(join(folder, name))).size))
  return sizes.reduce((sum, size) => sum + size, 0)
}
