/** How far repairs are: what waits, how fast it goes, and when that will be over. */
import type { Coordinator, RepairReport } from '../coordination/types.ts'
import type { LostBlob, RepairBacklog, RepairQueue } from '../metadata/repair-queue.ts'

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

export interface RepairProgress extends RepairBacklog, Omit<RepairReport, 'lost'> {
  /** The first ten. */
  readonly lost: readonly LostBlob[]
  /** By the rates of the last minute; null: nothing was done in it, or nothing waits. Partitions still to be compared may add to it. */
  readonly remainingMs: number | null
}

export interface ProgressDeps {
  readonly metadata: { readonly repairQueue: Pick<RepairQueue, 'backlog' | 'namesOf'> }
  readonly coordinator: Pick<Coordinator, 'members'>
}

const idle: RepairReport = { entriesPerSec: 0, bytesPerSec: 0, partitionsToCompare: 0, lostBlobs: 0, lost: [] }

/** The backlog is the database's, the rates are what the primary says with its lease; without a primary they are 0. */
export async function repairProgress({ metadata, coordinator }: ProgressDeps): Promise<RepairProgress> {
  const [backlog, members] = await Promise.all([metadata.repairQueue.backlog(), coordinator.members().catch(() => [])])
  const report = members.map(member => member.report?.repairs).find(one => one !== undefined) ?? idle
  const lost = report.lost.length === 0 ? [] : await metadata.repairQueue.namesOf(report.lost)
  return { ...backlog, ...report, lost, remainingMs: remainingMs(backlog, report) }
}

/** Pure. What has failed waits for something else than time. */
export function remainingMs(
  { blobs, references, bytes, failing }: RepairBacklog,
  { entriesPerSec, bytesPerSec }: Pick<RepairReport, 'entriesPerSec' | 'bytesPerSec'>,
): number | null {
  const entries = blobs + references - failing
  if (entries <= 0 || entriesPerSec === 0) return null
  const open = blobs + references
  const byBytes = bytesPerSec === 0 ? 0 : (bytes * (entries / open)) / bytesPerSec
  return Math.round(Math.max(entries / entriesPerSec, byBytes) * 1_000)
}
