/**
 * Staged uploads that nobody wants any more and whose node has not heard of it: a busy node may answer the first DELETE too late, or
 * not at all. They are told again in the background. What is still not heard then (the node is gone, or this process) ends with the
 * node's own hold for staged uploads; a node that starts again has forgotten them anyway.
 */
import type { NodeUplink } from './write-context.ts'
import type { WriteTarget } from './write-plan.ts'

/** Pauses before each further attempt, in ms: three minutes in all. */
const pausesMs = [500, 1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000, 60_000] as const
/** Beyond this the node's hold has to do: so many broken uploads at once are an outage, and no time for more requests. */
const countMax = 2_000
/** A node with thousands of discards to hear of shall not hear them all at once. */
const atOnceMax = 16
const timeoutMs = 5_000

export interface Discard {
  readonly target: WriteTarget
  /** Of the upload, on the wire. */
  readonly path: string
}

interface Waiting extends Discard {
  tries: number
  dueAt: number
}

export interface DiscardsDeps {
  readonly now: () => number
  readonly isDown: (node: WriteTarget['node']) => boolean
  readonly uplink: (target: WriteTarget) => NodeUplink
}

export class Discards {
  readonly #deps: DiscardsDeps
  readonly #waiting = new Set<Waiting>()
  #timer: NodeJS.Timeout | undefined
  #asking = 0
  #closed = false

  constructor(deps: DiscardsDeps) {
    this.#deps = deps
  }

  /** Uploads whose nodes have not heard yet. */
  get size(): number {
    return this.#waiting.size
  }

  /** Tells the node of the upload again, until it has heard or it was enough. */
  add({ target, path }: Discard): void {
    if (this.#closed || this.#waiting.size >= countMax) return
    this.#waiting.add({ target, path, tries: 0, dueAt: this.#deps.now() + pausesMs[0] })
    this.#arm()
  }

  /** Forgets all of them. */
  close(): void {
    this.#closed = true
    this.#waiting.clear()
    clearTimeout(this.#timer)
  }

  #arm(): void {
    if (this.#timer !== undefined || this.#waiting.size === 0 || this.#closed) return
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      this.#tellDue()
      this.#arm()
    }, pausesMs[0]).unref()
  }

  #tellDue(): void {
    const now = this.#deps.now()
    for (const waiting of this.#waiting) {
      if (this.#asking >= atOnceMax) return
      if (waiting.dueAt > now) continue
      waiting.dueAt = Infinity // while it is being told
      this.#asking += 1
      void this.#tell(waiting).finally(() => {
        this.#asking -= 1
      })
    }
  }

  /** Never rejects. */
  async #tell(waiting: Waiting): Promise<void> {
    const { target, path } = waiting
    try {
      // One that is down is asked again later: what it hears now it would not answer in time.
      if (!this.#deps.isDown(target.node)) {
        const options = { timeoutMs, repeatable: true, untold: true }
        await this.#deps.uplink(target).client.requestJson('DELETE', path, undefined, options)
        this.#waiting.delete(waiting)
        return
      }
    } catch {
      // Again, while there are pauses left.
    }
    waiting.tries += 1
    const pauseMs = pausesMs[waiting.tries]
    if (pauseMs === undefined) this.#waiting.delete(waiting)
    else waiting.dueAt = this.#deps.now() + pauseMs
  }
}
