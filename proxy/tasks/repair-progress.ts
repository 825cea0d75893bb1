/** How far repairs are: what waits, how fast it goes, and when that will be over. */
import { shardPartitions } from '../../shared/placement/transition.ts'
import type { Coordinator, RepairReport } from '../coordination/types.ts'
import type { LostBlob, RepairBacklog, RepairQueue } from '../metadata/repair-queue.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'

const windowMs = 60_000
const slotMs = 1_000

/** How much was done a second, over the last minute or since it began. */
export class RateMeter {
  #slots: { readonly at: number; entries: number; bytes: number }[] = []

  /** `now`: monotonic, ms. */
  add(now: number, entries: number, bytes: number): void {
    let slot = this.#slots.at(-1)
    if (slot === undefined || now - slot.at >= slotMs) {
      this.#slots = this.#slots.filter(({ at }) => now - at < windowMs)
      this.#slots.push((slot = { at: now, entries: 0, bytes: 0 }))
    }
    slot.entries += entries
    slot.bytes += bytes
  }

  perSec(now: number): { readonly entries: number; readonly bytes: number } {
    const recent = this.#slots.filter(({ at }) => now - at < windowMs)
    const seconds = Math.max(slotMs, now - (recent[0]?.at ?? now)) / 1_000
    const sum = (what: 'entries' | 'bytes'): number => recent.reduce((total, slot) => total + slot[what], 0)
    return { entries: sum('entries') / seconds, bytes: sum('bytes') / seconds }
  }
}

/** An owner that takes nothing for now. Of what it held before, nothing is in the queue: it may still have it. */
export interface AwayOwner {
  readonly shard: string
  readonly state: 'down' | 'failed'
  readonly partitions: number
}

export interface RepairProgress extends RepairBacklog, Omit<RepairReport, 'lost'> {
  /** The first ten. */
  readonly lost: readonly LostBlob[]
  readonly away: readonly AwayOwner[]
  /**
   * By the rates of the last minute; null: nothing was done in it, or nothing is left but what waits for shards. Partitions still to be
   * compared may add to it.
   */
  readonly remainingMs: number | null
}

export interface ProgressDeps {
  readonly metadata: { readonly repairQueue: Pick<RepairQueue, 'backlog' | 'namesOf'> }
  readonly coordinator: Pick<Coordinator, 'members'>
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'state' | 'shardState'>
}

const idle: RepairReport = { entriesPerSec: 0, bytesPerSec: 0, partitionsToCompare: 0, lostBlobs: 0, lost: [] }

/** The backlog is the database's, the rates are what the primary says with its lease; without a primary they are 0. */
export async function repairProgress(deps: ProgressDeps): Promise<RepairProgress> {
  const { metadata, coordinator } = deps
  const away = awayOwners(deps)
  const [backlog, members] = await Promise.all([
    metadata.repairQueue.backlog(away.map(({ shard }) => shard)),
    coordinator.members().catch(() => []),
  ])
  const report = members.map(member => member.report?.repairs).find(one => one !== undefined) ?? idle
  const lost = report.lost.length === 0 ? [] : await metadata.repairQueue.namesOf(report.lost)
  return { ...backlog, ...report, lost, away, remainingMs: remainingMs(backlog, report) }
}

/** As this proxy sees them. */
function awayOwners({ view, health }: Pick<ProgressDeps, 'view' | 'health'>): readonly AwayOwner[] {
  const { map } = view.current()
  const partitions = shardPartitions(map)
  return map.shards.flatMap(({ id, node }): readonly AwayOwner[] => {
    const { owned = 0, leaving = 0 } = partitions.get(id) ?? {}
    const state = health.state(node) === 'down' ? 'down' : health.shardState(id) === 'failed' ? 'failed' : undefined
    return state === undefined || owned + leaving === 0 ? [] : [{ shard: id, state, partitions: owned + leaving }]
  })
}

/** Pure. What has failed, or lacks a copy on a shard that is away, waits for something else than time. */
export function remainingMs(
  { blobs, references, bytes, failing, waiting }: RepairBacklog,
  { entriesPerSec, bytesPerSec }: Pick<RepairReport, 'entriesPerSec' | 'bytesPerSec'>,
): number | null {
  const entries = blobs + references - failing - waiting
  if (entries <= 0 || entriesPerSec === 0) return null
  const open = blobs + references
  const byBytes = bytesPerSec === 0 ? 0 : (bytes * (entries / open)) / bytesPerSec
  return Math.round(Math.max(entries / entriesPerSec, byBytes) * 1_000)
}
