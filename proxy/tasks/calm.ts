/**
 * How fast the primary's own work in the background goes while clients are there (I34): comparing what shards hold, moving partitions, letting
 * copies go. Nodes hold back what their disks read and write for it; here it is the talk, which costs processors on both sides, and of
 * nearly empty partitions is most of it.
 *
 *   nobody there           as fast as it goes, as many steps at once as there are
 *   clients                few steps at once, and after each a rest in proportion to how long it took
 *
 * How much of their time nodes leave to work in the background they say with their status, once a second: all of it when no client has been
 * there for 5 s. What is busy besides is the machine of the primary, which takes part in every step. Nothing starves: a rest has an end,
 * whatever the step took.
 */
import type { ShardId } from '../../shared/ids.ts'
import type { HealthTable } from '../routing/health.ts'

export interface Surroundings {
  /** What the shards that a step is about leave to work in the background, 0 to 1 each. */
  readonly shares: readonly number[]
  /** Of any node. */
  readonly hasClients: boolean
  /** How busy the processors here are, 0 to 1. */
  readonly load: number
}

/** With clients, never more than this: what they need of a processor comes in bursts, which a mean over a quarter of a second does not show. */
const mostShare = 0.5
/** With a tenth the p99 of clients was no lower in what was measured, and changes of topology took twice as long. */
const leastShare = 0.25
const idleLoad = 0.3
const busyLoad = 0.6
/** What a step costs processors is a few ms, however long it took on a machine that has much else to do. */
const restMsMax = 40
/** What copies cost is no guess: many at once are rested for as each by itself would be. */
const spentRestMsMax = 2_000
/** Nodes are asked for their status once a second. */
const lookMs = 250
/** Shorter rests are gathered: a timer costs more than it slows down. */
const restMsMin = 5
/** Where each takes long because of others, one alone would come to nothing: as many at least, but one after the other, so far apart. */
const stepsAtOnceMin = 4
const apartMs = 40
/** So many nodes share what a step costs: in a larger cluster more of them go on side by side, and rest for each other. */
const nodesPerStep = 4
/** What a command costs the processors of those that carry it out, beside the disk's time: for each blob, and by bytes. */
const blobMs = 8
const bytesPerMs = 100_000

/** The part of the time that steps may take now. */
export function stepShare({ shares, hasClients, load }: Surroundings): number {
  if (!hasClients) return 1
  const part = Math.min(1, Math.max(0, (load - idleLoad) / (busyLoad - idleLoad)))
  const here = mostShare + part * (leastShare - mostShare)
  return Math.max(leastShare, Math.min(here, ...shares))
}

/** How long nothing is begun after a step, ms. */
export function stepRestMs(tookMs: number, share: number): number {
  return Math.min(restMsMax, tookMs * (1 / share - 1))
}

/** How many times the share a cluster of so many nodes has room for. */
export function roomFor(nodes: number, share: number): number {
  return Math.max(1, Math.floor((nodes / nodesPerStep) * share))
}

/** What copies cost beside the disks' time, ms. */
export function copyCostMs({ blobs, bytes }: { readonly blobs: number; readonly bytes: number }): number {
  return blobs * blobMs + bytes / bytesPerMs
}

export interface CalmDeps {
  readonly health: Pick<HealthTable, 'nodes' | 'shardStatus'>
  /** How busy the processors here are, 0 to 1. */
  readonly load: () => number
  /** Monotonic, ms. */
  readonly now: () => number
}

interface Waiter {
  readonly shards: readonly ShardId[]
  readonly go: () => void
}

export class Calm {
  readonly #deps: CalmDeps
  /** Who came first goes first. */
  readonly #waiting: Waiter[] = []
  #underWay = 0
  #restsUntil = -Infinity
  /** Of the last step. */
  #begunAt = -Infinity
  #timer: NodeJS.Timeout | undefined
  #seen = { hasClients: false, nodes: 0, at: -Infinity }

  constructor(deps: CalmDeps) {
    this.#deps = deps
  }

  /** The part of the time that a step with these shards may take now: 1 while no client is there. */
  share(shards: readonly ShardId[]): number {
    const { health, load } = this.#deps
    // A node of an older release does not tell, and counts as one without clients.
    const shareOf = (shard: ShardId): number => health.shardStatus(shard)?.background?.share ?? 1
    return stepShare({ shares: shards.map(shareOf), hasClients: this.#cluster.hasClients, load: load() })
  }

  /** One short step, about these shards, that waits for no other one. Rejects as it does, or before it with the signal's reason. */
  async step<Result>(shards: readonly ShardId[], signal: AbortSignal, work: () => Promise<Result>): Promise<Result> {
    await this.#turn(shards, signal)
    const startedAt = this.#deps.now()
    try {
      return await work()
    } finally {
      this.#underWay -= 1
      const share = this.share(shards)
      this.#rest(share, stepRestMs(this.#deps.now() - startedAt, share))
    }
  }

  /** Something has cost processors so much, ms, that was no step: the next one begins later, by 2 s at most. */
  spent(shards: readonly ShardId[], costMs: number): void {
    const share = this.share(shards)
    this.#rest(share, Math.min(spentRestMsMax, costMs * (1 / share - 1)))
  }

  #rest(share: number, ms: number): void {
    const now = this.#deps.now()
    const restMs = ms / roomFor(this.#cluster.nodes, share)
    this.#restsUntil = share < 1 ? Math.max(this.#restsUntil, now) + restMs : now
    this.#next()
  }

  /** Not looked at for each step: there may be thousands of shards. */
  get #cluster(): { readonly hasClients: boolean; readonly nodes: number } {
    const { health, now } = this.#deps
    if (now() - this.#seen.at >= lookMs) {
      const nodes = health.nodes()
      const shards = nodes.flatMap(({ status }) => status?.shards ?? [])
      const hasClients = shards.some(({ background }) => background !== undefined && background.share < 1)
      this.#seen = { hasClients, nodes: nodes.length, at: now() }
    }
    return this.#seen
  }

  #turn(shards: readonly ShardId[], signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason as Error)
        return
      }
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1)
        reject(signal.reason as Error)
        this.#next()
      }
      const waiter: Waiter = {
        shards,
        go: () => {
          signal.removeEventListener('abort', onAbort)
          resolve()
        },
      }
      signal.addEventListener('abort', onAbort, { once: true })
      this.#waiting.push(waiter)
      this.#next()
    })
  }

  /** Lets begin who may. */
  #next(): void {
    clearTimeout(this.#timer)
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      const waitMs = this.#waitMs(this.share(first.shards))
      // It ends sooner where a step does.
      if (waitMs >= restMsMin) {
        if (waitMs < Infinity) this.#timer = setTimeout(() => this.#next(), waitMs)
        return
      }
      this.#waiting.shift()
      this.#underWay += 1
      this.#begunAt = this.#deps.now()
      first.go()
    }
  }

  /** How long the next step has to wait, ms; Infinity: until one ends. */
  #waitMs(share: number): number {
    if (share === 1) return 0
    const room = roomFor(this.#cluster.nodes, share)
    if (this.#underWay >= Math.max(room, stepsAtOnceMin)) return Infinity
    const apartUntil = this.#underWay < room ? -Infinity : this.#begunAt + apartMs
    return Math.max(this.#restsUntil, apartUntil) - this.#deps.now()
  }
}

/** For who works where no client can be. */
export const unhindered: Pick<Calm, 'share' | 'step' | 'spent'> = {
  share: () => 1,
  step: (_shards, _signal, work) => work(),
  spent: () => {},
}
