import { setTimeout as sleep } from 'node:timers/promises'

/** Shorter waits are gathered: a timer costs more than it slows down. */
const waitMsMin = 10

/** Holds work to so many bytes a second. What it leaves to clients is another matter (background.ts). */
export class Pace {
  bytesPerSec: number
  #freeAt = 0

  constructor(bytesPerSec: number) {
    this.bytesPerSec = bytesPerSec
  }

  /** So much was done: waits until more may be. Rejects when the signal aborts. */
  async spent(bytes: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const now = performance.now()
    this.#freeAt = Math.max(this.#freeAt, now) + (bytes / this.bytesPerSec) * 1000
    const waitMs = this.#freeAt - now
    if (waitMs >= waitMsMin) await sleep(waitMs, undefined, { signal })
  }
}
