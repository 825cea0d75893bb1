import type { Shard } from './shard.ts'

/**
 * Unlinks what was thrown away long ago, a slice of time after the other. The hold must have passed by the wall clock and by the time this
 * process has watched the slice: a clock that jumps ahead deletes nothing early (I29). A restart starts the hold again.
 */
export class Trash {
  readonly #shard: Shard
  /** Slice -> when its content was last seen to grow, monotonic, and how much it was. */
  readonly #seen = new Map<string, { readonly since: number; readonly count: number }>()

  constructor(shard: Shard) {
    this.#shard = shard
  }

  async empty(): Promise<void> {
    const { clock, files, limits, health } = this.#shard
    if (health.state === 'failed') return
    const now = clock.monotonic()
    const slices = await files.trashSlices()
    for (const slice of this.#seen.keys()) if (!slices.includes(slice)) this.#seen.delete(slice)
    for (const slice of slices) {
      const count = await files.countTrash(slice)
      const seen = this.#seen.get(slice)
      if (seen?.count !== count) {
        this.#seen.set(slice, { since: now, count })
        continue
      }
      const isHeld = now - seen.since < limits.trashHoldMs
      if (isHeld || clock.now() - sliceEnd(slice, limits.trashHoldMs) < limits.trashHoldMs) continue
      const removed = await files.emptyTrash(slice)
      this.#seen.delete(slice)
      this.#shard.log.info({ slice, count: removed }, 'trash emptied')
    }
  }
}

const minuteMs = 60_000
const hourMs = 3_600_000
const dayMs = 24 * hourMs

/** What is thrown away now goes into this folder of the trash, named by when its slice of time began: an hour, or the hold where it is shorter. */
export function trashSlice(now: number, holdMs: number): string {
  const lengthMs = Math.max(minuteMs, Math.min(hourMs, holdMs))
  return new Date(now - (now % lengthMs)).toISOString().slice(0, 'yyyy-mm-ddThh:mm'.length)
}

/** Shards of an earlier release have folders of whole days. */
const ofDay = /^\d{4}-\d\d-\d\d$/
const ofTime = /^\d{4}-\d\d-\d\dT\d\d:\d\d$/

export function isTrashSlice(name: string): boolean {
  return ofTime.test(name) || ofDay.test(name)
}

/** Wall clock, ms: nothing is put there any more. */
function sliceEnd(slice: string, holdMs: number): number {
  const isDay = ofDay.test(slice)
  return Date.parse(isDay ? slice : `${slice}Z`) + Math.min(holdMs, isDay ? dayMs : hourMs)
}
