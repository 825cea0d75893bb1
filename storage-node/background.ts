/**
 * What work in the background may take of one disk while clients use it (I34): scrub, compaction, copies that other nodes fetch from here, copies
 * fetched from them, and copies dropped, all together.
 *
 *   no client for 5 s        as fast as it goes
 *   clients now and then     one operation at a time, so that nobody waits for more than one, and half of the disk's time
 *   a busy disk              a tenth of its time (`--background-percent`), as also while the processors are busy
 *
 * After each operation the disk rests in proportion to how long it took: a slow disk gets more rest. Never more than
 * `--background-bytes-per-sec-min` asks for, else a disk that is always busy would never be looked at, nor ever be full again.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Use } from './disk-use.ts'

/** `urgent`: the last copy of something. */
export type Urgency = 'usual' | 'urgent'

export interface Situation {
  /** By clients, of this disk, and of all disks of the node. */
  readonly disk: Use
  readonly node: Use
  /** How busy the processors are, 0 to 1. */
  readonly load: number
}

export interface BackgroundLimits {
  /** Of a busy disk's time. */
  readonly backgroundPercent: number
  readonly backgroundBytesPerSecMin: number
  readonly backgroundBytesPerSecMax: number
}

/** A client may come again so soon. */
const idleAfterMs = 5_000
const shareOfCalmDisk = 0.5
const busyDisk = 0.2
const idleLoad = 0.3
const busyLoad = 0.6
/** Of the time of a disk, and times the smallest rate. */
const urgentShare = 0.5
const urgentFactor = 16
/** What each operation counts for at least where a smallest rate is asked for: a hard disk takes as long to find a byte as to read these. */
const operationBytesMin = 256 * 1024
/** Shorter rests are gathered: a timer costs more than it slows down. */
const restMsMin = 10

/** The part of the disk's time that work in the background may take now. */
export function backgroundShare(
  { disk, node, load }: Situation,
  { backgroundPercent }: Pick<BackgroundLimits, 'backgroundPercent'>,
  urgency: Urgency = 'usual',
): number {
  if (node.quietMs >= idleAfterMs) return 1
  const least = Math.max(backgroundPercent / 100, urgency === 'urgent' ? urgentShare : 0)
  const byDisk = disk.quietMs >= idleAfterMs ? 1 : falling(disk.busy, [0, busyDisk], [shareOfCalmDisk, least])
  const byProcessor = falling(load, [idleLoad, busyLoad], [1, least])
  return Math.max(least, Math.min(byDisk, byProcessor))
}

/** How long the disk rests after an operation, ms. */
export function restMs(
  { bytes, tookMs }: { readonly bytes: number; readonly tookMs: number },
  share: number,
  { backgroundBytesPerSecMin, backgroundBytesPerSecMax }: Omit<BackgroundLimits, 'backgroundPercent'>,
  urgency: Urgency = 'usual',
): number {
  const inShare = tookMs * (1 / share - 1)
  const bytesPerSecMin = backgroundBytesPerSecMin * (urgency === 'urgent' ? urgentFactor : 1)
  const atSlowest = (Math.max(bytes, operationBytesMin) / bytesPerSecMin) * 1_000 - tookMs
  const atFastest = (bytes / backgroundBytesPerSecMax) * 1_000 - tookMs
  return Math.max(0, atFastest, Math.min(inShare, atSlowest))
}

function falling(value: number, [low, high]: [number, number], [most, least]: [number, number]): number {
  const part = Math.min(1, Math.max(0, (value - low) / (high - low)))
  return most + part * (least - most)
}

/** To be called once, when the operation is over, with the bytes it read or wrote. */
type Done = (bytes: number) => void

interface Waiter {
  readonly urgency: Urgency
  readonly go: (done: Done) => void
}

export class Background {
  /** Read and written since the start. */
  bytes = 0
  readonly #situation: () => Situation
  readonly #limits: BackgroundLimits
  readonly #now: () => number
  /** Who came first goes first, the urgent before all others. */
  readonly #waiting: Waiter[] = []
  #inFlight = 0
  /** Since then operations have been under way whose time is not counted yet. */
  #busySince = 0
  #restsUntil = -Infinity
  #isResting = false

  /** `now`: monotonic ms. */
  constructor(situation: () => Situation, limits: BackgroundLimits, now = () => performance.now()) {
    this.#situation = situation
    this.#limits = limits
    this.#now = now
  }

  /** The part of the disk's time that it may take now: 1 while nobody else is there. */
  share(urgency: Urgency = 'usual'): number {
    return backgroundShare(this.#situation(), this.#limits, urgency)
  }

  /** An operation on the disk, and on nothing that may wait for another one of these. Rejects as it does, or before it with the signal's reason. */
  async run<Result>(
    bytes: number,
    { urgency, signal }: { readonly urgency?: Urgency | undefined; readonly signal?: AbortSignal },
    operation: () => Promise<Result>,
  ): Promise<Result> {
    const done = await this.begin(urgency, signal)
    try {
      return await operation()
    } finally {
      done(bytes)
    }
  }

  /** Resolves when an operation may begin, with what has to be called at its end. Rejects with the signal's reason. */
  begin(urgency: Urgency = 'usual', signal?: AbortSignal): Promise<Done> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(signal.reason as Error)
        return
      }
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1)
        reject(signal?.reason as Error)
        this.#next()
      }
      const waiter: Waiter = {
        urgency,
        go: done => {
          signal?.removeEventListener('abort', onAbort)
          resolve(done)
        },
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      const before = urgency === 'urgent' ? this.#waiting.findIndex(other => other.urgency !== 'urgent') : -1
      this.#waiting.splice(before < 0 ? this.#waiting.length : before, 0, waiter)
      this.#next()
    })
  }

  /** Lets go on who may. */
  #next(): void {
    for (;;) {
      const first = this.#waiting[0]
      if (first === undefined || this.#isResting) return
      if (this.#inFlight > 0 && this.share(first.urgency) < 1) return
      const waitMs = this.#restsUntil - this.#now()
      if (waitMs >= restMsMin) {
        this.#isResting = true
        void sleep(waitMs).then(() => {
          this.#isResting = false
          this.#next()
        })
        return
      }
      this.#waiting.shift()
      if (this.#inFlight === 0) this.#busySince = this.#now()
      this.#inFlight += 1
      first.go(bytes => this.#ended(bytes, first.urgency))
    }
  }

  /** Operations side by side share the time: a group that is flushed together took as long as its flush. */
  #ended(bytes: number, urgency: Urgency): void {
    const now = this.#now()
    const tookMs = now - this.#busySince
    this.#busySince = now
    this.#inFlight -= 1
    this.bytes += bytes
    const rest = restMs({ bytes, tookMs }, this.share(urgency), this.#limits, urgency)
    this.#restsUntil = Math.max(this.#restsUntil, now) + rest
    this.#next()
  }
}
