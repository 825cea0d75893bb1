import { setTimeout as sleep } from 'node:timers/promises'

/** Shorter waits are gathered: a timer costs more than it slows down. */
const waitMsMin = 10
const idleLoad = 0.3
const busyLoad = 0.8
const leastRatio = 1 / 8

/**
 * Holds work in the background to so many bytes a second, and to an eighth of that while requests keep the process busy (I34). Never
 * to nothing: a disk that is always busy would never be looked at.
 */
export class Pace {
  bytesPerSec: number
  readonly #load: () => number
  #freeAt = 0

  /** `load`: how busy the process is, 0 to 1. */
  constructor(bytesPerSec: number, load: () => number) {
    this.bytesPerSec = bytesPerSec
    this.#load = load
  }

  /** So much was done: waits until more may be. Rejects when the signal aborts. */
  async spent(bytes: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const now = performance.now()
    this.#freeAt = Math.max(this.#freeAt, now) + (bytes / (this.bytesPerSec * ratioAt(this.#load()))) * 1000
    const waitMs = this.#freeAt - now
    if (waitMs >= waitMsMin) await sleep(waitMs, undefined, { signal })
  }
}

/** The part of its rate that background work keeps at this load. */
export function ratioAt(load: number): number {
  if (load <= idleLoad) return 1
  if (load >= busyLoad) return leastRatio
  return 1 - ((load - idleLoad) / (busyLoad - idleLoad)) * (1 - leastRatio)
}

const sampleMs = 250

/** How busy the event loop of this process is, measured over the last quarter of a second or more. */
export class LoadMeter {
  #last = performance.eventLoopUtilization()
  #at = performance.now()
  #load = 0

  readonly load = (): number => {
    if (performance.now() - this.#at < sampleMs) return this.#load
    const current = performance.eventLoopUtilization()
    this.#load = performance.eventLoopUtilization(current, this.#last).utilization
    this.#last = current
    this.#at = performance.now()
    return this.#load
  }
}
