/**
 * This worker as a writer: tells all holders what changed and waits until none of them can answer from an older entry.
 * One round is in flight; what comes meanwhile makes up the next one, so the cost per write falls under load.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { HoldfastError } from '../../shared/errors.ts'
import { reasonOf, type CoordinationLog, type Holder, type LeaseStore } from './lease-store.ts'
import { announcedKeysMax, waitUntil, type Timings } from './timings.ts'

export interface AnnouncerDeps {
  readonly store: Pick<LeaseStore, 'announce' | 'revoke' | 'suspend'>
  readonly timings: Timings
  readonly log: CoordinationLog
}

/** Calls that go out together. */
interface Batch {
  readonly keys: Set<string>
  readonly settled: Promise<void>
  readonly settle: () => void
  readonly fail: (error: unknown) => void
}

/** What was heard about the batch in flight; acknowledgements may overtake the list of holders. */
interface Round {
  readonly batch: number
  readonly acknowledged: Set<string>
  readonly gone: Set<string>
  heard: (() => void) | undefined
}

export class Announcer {
  readonly #deps: AnnouncerDeps
  #next: Batch | undefined
  #running: Promise<void> | undefined
  #round: Round | undefined
  #batchCount = 0
  #troubledSince: number | undefined
  #closed = false
  /** For metrics. */
  readonly counters = { rounds: 0, keys: 0, revocations: 0, suspensions: 0 }

  constructor(deps: AnnouncerDeps) {
    this.#deps = deps
  }

  invalidate(keys: readonly string[]): Promise<void> {
    if (keys.length === 0) return Promise.resolve()
    if (this.#closed) return Promise.reject(new HoldfastError('SHUTTING_DOWN', 'coordination is closed'))
    this.#next ??= newBatch()
    const batch = this.#next
    // One more than the limit is enough to know that it was passed.
    for (const key of keys) if (batch.keys.size <= announcedKeysMax) batch.keys.add(key)
    this.#running ??= this.#run()
    return batch.settled
  }

  acknowledged(holder: string, batch: number): void {
    if (this.#round?.batch !== batch) return
    this.#round.acknowledged.add(holder)
    this.#round.heard?.()
  }

  gone(holder: Holder): void {
    this.#round?.gone.add(`${holder.id} ${holder.instance}`)
    this.#round?.heard?.()
  }

  /** Takes nothing new. Resolves when the rounds in flight are over, which they are after `unreachableMs` + TTL. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#running
  }

  async #run(): Promise<void> {
    await Promise.resolve() // let the calls of this tick join
    for (let batch = this.#next; batch !== undefined; batch = this.#next) {
      this.#next = undefined
      const keys = batch.keys.size > announcedKeysMax ? 'all' : [...batch.keys]
      this.counters.rounds++
      this.counters.keys += batch.keys.size
      await this.#settle(keys).then(batch.settle, batch.fail)
    }
    this.#running = undefined
  }

  /**
   * By announcement, else by suspension, else again until one of them works. A connection that was cut is back in a few
   * dozen ms, while a suspension costs everybody a TTL: so the first trouble gets a little time to pass.
   */
  async #settle(keys: readonly string[] | 'all'): Promise<void> {
    const { store, timings, log } = this.#deps
    const startedAt = performance.now()
    for (;;) {
      const failure = await this.#announce(keys).then(() => undefined, reasonOf)
      if (failure === undefined) this.#troubledSince = undefined
      if (failure === undefined) return
      this.#troubledSince ??= startedAt
      let unsuspended: string | undefined
      if (store.suspend !== undefined && performance.now() - this.#troubledSince >= timings.suspendAfterMs) {
        unsuspended = await this.#suspend(store.suspend)
        if (unsuspended === undefined) return
      }
      log.debug({ reason: failure, suspension: unsuspended }, 'invalidation could not be announced yet')
      if (this.#closed || performance.now() - startedAt > timings.unreachableMs) {
        const message = 'other proxies could not be told of a change'
        throw new HoldfastError('COORDINATION_UNAVAILABLE', message, { reason: failure })
      }
      await sleep(timings.suspendAfterMs / 8)
    }
  }

  async #suspend(suspend: () => Promise<number>): Promise<string | undefined> {
    try {
      this.counters.suspensions++
      const waitMs = await suspend()
      await waitUntil(performance.now() + waitMs)
      return undefined
    } catch (error) {
      return reasonOf(error)
    }
  }

  async #announce(keys: readonly string[] | 'all'): Promise<void> {
    const { store } = this.#deps
    const round: Round = { batch: ++this.#batchCount, acknowledged: new Set(), gone: new Set(), heard: undefined }
    this.#round = round
    try {
      const { holders, waitMs } = await store.announce(round.batch, keys)
      let until = performance.now() + waitMs
      if (holders.length > 0) {
        for (const silent of await this.#silent(round, holders)) {
          const leftMs = await store.revoke(silent)
          this.counters.revocations++
          until = Math.max(until, performance.now() + leftMs)
          this.#deps.log.warn({ holder: silent.id, leftMs }, 'cache lease of a silent proxy revoked')
        }
      }
      if (until > performance.now()) await waitUntil(until)
    } finally {
      this.#round = undefined
    }
  }

  /** Waits until all holders acknowledged or are gone; resolves with those that did neither in time. */
  async #silent(round: Round, holders: readonly Holder[]): Promise<readonly Holder[]> {
    const silent = (): Holder[] =>
      holders.filter(({ id, instance }) => !round.acknowledged.has(id) && !round.gone.has(`${id} ${instance}`))
    if (silent().length === 0) return []
    await new Promise<void>(resolve => {
      const timer = setTimeout(resolve, this.#deps.timings.acknowledgeMs)
      round.heard = () => {
        if (silent().length > 0) return
        clearTimeout(timer)
        resolve()
      }
    })
    return silent()
  }
}

function newBatch(): Batch {
  let settle!: () => void
  let fail!: (error: unknown) => void
  const settled = new Promise<void>((resolve, reject) => {
    settle = resolve
    fail = reject
  })
  return { keys: new Set(), settled, settle, fail }
}
