/** What the primary holds in memory while it compares or moves one partition: the product's own code, shards that answer from memory. */
import { createHash } from 'node:crypto'
import { pino } from 'pino'
import { AntiEntropy } from '../../proxy/tasks/anti-entropy.ts'
import { unhindered } from '../../proxy/tasks/calm.ts'
import type { ShardSummary } from '../../proxy/tasks/compare-sets.ts'
import { MoveCalls, type MoveCallsDeps } from '../../proxy/tasks/move-calls.ts'
import type { MoveDeps } from '../../proxy/tasks/move-deps.ts'
import { movePartition } from '../../proxy/tasks/move-partition.ts'
import { buildClusterMap } from '../../shared/placement.ts'
import { planChanges } from '../../shared/placement/changes.ts'
import { type ClusterMap, PlacementView } from '../../shared/cluster-map.ts'
import { parseNodeId, parseShardId, parseZone, type ShardId } from '../../shared/ids.ts'
import { partitionName } from '../../shared/partition.ts'
import { emptySet } from '../../shared/set-digest.ts'
import { wirePath, type Entry, type EntryListing, type TransferRequest } from '../../shared/wire.ts'
import { type Figure, figure, heldBytes, timed } from './measure.ts'
import { blobsPerPartition, known, partitionsAtOnce, suspectsAtOnce } from './site.ts'

const never = new AbortController().signal
/** Commands to pull between two looks at the memory. */
const weighedEvery = 40

export async function comparisonPart(): Promise<Figure[]> {
  const entries = namesOf(Math.round(blobsPerPartition))
  const compared = await compare(entries)
  const moved = await move(entries)
  const note = `×${entries.length.toLocaleString('en')} names of each shard, by the product's own code`
  return [
    figure('blobs of one partition', entries.length, 'count'),
    figure('anti-entropy: memory for one partition that one owner lost', compared.bytes, 'bytes', note),
    figure(`anti-entropy: memory of a step of ${suspectsAtOnce} such`, compared.bytes * suspectsAtOnce, 'bytes', 'by multiplication; all are listed at the same time'), // prettier-ignore
    figure('anti-entropy: CPU of the primary for one such partition', compared.cpuMs, 'ms'),
    figure('change of topology: memory for one partition', moved.bytes, 'bytes', 'three old owners and a new one, a page of each'), // prettier-ignore
    figure(
      'change of topology: CPU of the primary to move the blobs of one',
      moved.cpuMs,
      'ms',
      'names compared twice',
    ),
    figure(`change of topology: memory of ${partitionsAtOnce} at once`, moved.bytes * partitionsAtOnce, 'bytes', 'by multiplication'), // prettier-ignore
  ]
}

interface Weight {
  readonly bytes: number
  readonly cpuMs: number
}

async function compare(entries: readonly Entry[]): Promise<Weight> {
  const view = new PlacementView(smallMap())
  const [first, second] = view.owners(0)
  const shards = new MemoryShards(entries, new Set([known(first), known(second)]), 0)
  let peak = 0
  const before = heldBytes()
  const task = new AntiEntropy({
    clients: shards,
    metadata: {
      inspectBlobs: async () => {
        if (peak === 0) peak = heldBytes()
        return []
      },
      inspectVersions: async () => [],
      addRepairs: async () => {},
      countRepairs: async () => 0,
      repairQueue: { comparisonWanted: async () => undefined },
    },
    view: { current: () => view },
    health: { state: () => 'up', shardState: () => 'ok', shardStatus: () => undefined },
    calm: unhindered,
    log: pino({ level: 'silent' }),
    now: () => performance.now(),
    roundMs: 600_000,
  })
  const { cpuMs } = await timed(async () => {
    while (task.differing === 0 || task.partitionsLeft > 0) await task.step({ token: 1, signal: never })
  })
  return { bytes: peak - before, cpuMs }
}

async function move(entries: readonly Entry[]): Promise<Weight> {
  const { next, moves } = planChanges(smallMap(), [
    { op: 'add-node', node: 'n3', zone: 'z0', url: 'http://127.0.0.1:9003' },
    { op: 'add-shard', shard: 'n3-s', node: 'n3', weight: 1 },
  ])
  const view = new PlacementView(next)
  const { partition, from } = known(moves[0])
  const shards = new MemoryShards(entries, new Set(from), partition)
  const set = { count: entries.length, hash: '1'.repeat(16) }
  const summaries = new Map<ShardId, ShardSummary>(
    next.shards.map(({ id }) => [id, new Map([[partition, { partition, blobs: set, references: emptySet }]])]),
  )
  const calls = new MoveCalls({
    // Of a client only `requestJson` is used.
    clients: shards as unknown as MoveCallsDeps['clients'],
    references: { appendTo: async () => new Set<ShardId>() },
    fence: 'primary:1',
    calm: unhindered,
    term: { signal: never },
    unwanted: async () => ({ unnamed: [], purging: [] }),
    turn: async () => {},
    onCopied: async () => {},
  })
  const deps: MoveDeps = { calls, view: () => view, onCopied: async () => {} }
  const { cpuMs } = await timed(() => movePartition(deps, partition, summaries))
  shards.empty()
  let [peak, transfers] = [0, 0]
  const before = heldBytes()
  shards.onTransfer = () => {
    if (++transfers % weighedEvery === 0) peak = Math.max(peak, heldBytes())
  }
  await movePartition(deps, partition, summaries)
  if (peak === 0) throw new Error('nothing was moved')
  return { bytes: peak - before, cpuMs }
}

/** Shards that answer at once, with texts that are parsed as those from the network are. */
class MemoryShards {
  readonly #entries: readonly Entry[]
  readonly #places: ReadonlyMap<string, number>
  readonly #full: ReadonlySet<string>
  readonly #partition: number
  onTransfer: () => void = () => {}
  /** Has got as many as there are by transfers. */
  #pulled = 0

  constructor(entries: readonly Entry[], full: ReadonlySet<string>, partition: number) {
    this.#entries = entries
    this.#places = new Map(entries.map(({ key }, place) => [key, place]))
    this.#full = full
    this.#partition = partition
  }

  empty(): void {
    this.#pulled = 0
  }

  ofShard(shard: ShardId): { requestJson<Answer>(method: string, path: string, body?: unknown): Promise<Answer> } {
    return {
      requestJson: async <Answer>(_method: string, path: string, body?: unknown) => {
        if (path === wirePath.transfer) {
          this.onTransfer()
          const { blobs } = JSON.parse(JSON.stringify(body)) as TransferRequest
          this.#pulled += blobs.length
          return { results: blobs.map(() => 'copied') } as Answer
        }
        const url = new URL(path, 'http://shard')
        return JSON.parse(JSON.stringify(this.#answer(shard, url))) as Answer
      },
    }
  }

  #answer(shard: ShardId, { pathname, searchParams }: URL): unknown {
    const isFull = this.#full.has(shard) || this.#pulled === this.#entries.length
    if (pathname === new URL(wirePath.summaries(shard), 'http://shard').pathname) {
      const blobs = { count: this.#entries.length, hash: '1'.repeat(16) }
      const from = Number(searchParams.get('from'))
      const here = from <= this.#partition && this.#partition < from + Number(searchParams.get('count'))
      return { partitions: isFull && here ? [{ partition: this.#partition, blobs, references: emptySet }] : [] }
    }
    if (!isFull || !pathname.includes(partitionName(this.#partition))) return { entries: [] }
    const after = searchParams.get('after')
    const start = after === null ? 0 : (this.#places.get(after) ?? 0) + 1
    const entries = this.#entries.slice(start, start + Number(searchParams.get('limit')))
    const next = start + entries.length < this.#entries.length ? entries.at(-1)?.key : undefined
    return { entries, ...(next === undefined ? {} : { next }) } satisfies EntryListing
  }
}

function namesOf(count: number): Entry[] {
  const digest = (index: number): string => createHash('sha256').update(String(index)).digest('hex')
  const keys = Array.from({ length: count }, (_, i) => `${digest(i)}.${i.toString(32).padStart(12, '0')}`).sort()
  return keys.map((key, index) => ({ key, bytes: 4_096 + index, time: 1_700_000_000_000 + index }))
}

function smallMap(): ClusterMap {
  const nodes = [0, 1, 2].map(index => ({
    id: known(parseNodeId(`n${index}`)),
    zone: known(parseZone(`z${index}`)),
    url: `http://127.0.0.1:${9000 + index}`,
  }))
  const shards = nodes.map(({ id }) => ({ id: known(parseShardId(`${id}-s`)), node: id, weight: 1 }))
  return buildClusterMap({ clusterId: 'scale', replicas: 3, spread: 'strict', nodes, shards }, undefined)
}
