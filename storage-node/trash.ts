import type { Shard } from './shard.ts'

/**
 * Unlinks what was thrown away long ago. The hold must have passed by the wall clock and by the time this process has watched the
 * folder: a clock that jumps ahead deletes nothing early (I29). A restart starts the hold again.
 */
export class Trash {
  readonly #shard: Shard
  /** Day -> when its content was last seen to grow, monotonic, and how much it was. */
  readonly #seen = new Map<string, { readonly since: number; readonly count: number }>()

  constructor(shard: Shard) {
    this.#shard = shard
  }

  async empty(): Promise<void> {
    const { clock, files, limits, health } = this.#shard
    if (health.state === 'failed') return
    const now = clock.monotonic()
    const days = await files.trashDays()
    for (const day of this.#seen.keys()) if (!days.includes(day)) this.#seen.delete(day)
    for (const day of days) {
      const count = await files.countTrash(day)
      const seen = this.#seen.get(day)
      if (seen?.count !== count) {
        this.#seen.set(day, { since: now, count })
        continue
      }
      const dayEnd = Date.parse(`${day}T00:00:00Z`) + Math.min(limits.trashHoldMs, dayMs)
      if (now - seen.since < limits.trashHoldMs || clock.now() - dayEnd < limits.trashHoldMs) continue
      const removed = await files.emptyTrash(day)
      this.#seen.delete(day)
      this.#shard.log.info({ day, count: removed }, 'trash emptied')
    }
  }
}

const dayMs = 86_400_000
