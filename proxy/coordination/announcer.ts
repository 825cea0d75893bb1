/**
 * This worker as a writer. `prepare` before a commit and `invalidate` after it go out in rounds: one is in flight, what
 * comes meanwhile makes up the next one, so the cost per write falls under load.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { HoldfastError } from '../../shared/errors.ts'
import { encodeChanges } from './encode-changes.ts'
import { nobody, PreparedKeys } from './prepared-keys.ts'
import {
  encodeMessage,
  nameOf,
  reasonOf,
  type Changes,
  type CoordinationLog,
  type Holder,
  type LeaseStore,
  type ListedHolder,
} from './lease-store.ts'
import { announcedKeysMax, waitUntil, type Timings } from './timings.ts'

/** Calls that wait for their round. Past it keys are owed to the others, and nobody waits for that. */
const waitingMax = 10_000

export interface AnnouncerDeps {
  readonly store: Pick<LeaseStore, 'announce' | 'revoke' | 'suspend' | 'messageLimits'>
  readonly self: string
  readonly timings: Timings
  readonly log: CoordinationLog
  /** Is nobody else known to hold a lease? Asked before each `prepare`. */
  readonly alone: () => boolean
  /** This worker's own cache follows the same rules as the others'. */
  readonly markLocally: (keys: readonly string[]) => void
  readonly unmarkLocally: (keys: readonly string[]) => void
}

/** One `prepare` or `invalidate`. */
interface Call {
  readonly kind: 'prepare' | 'invalidate'
  readonly keys: readonly string[]
  /** Holders that need not be waited for: they were prepared. */
  readonly covered: ReadonlySet<string>
  readonly settle: () => void
  readonly fail: (error: unknown) => void
}

/** What was heard about the batch in flight; acknowledgements may overtake the list of holders. */
interface Round {
  readonly batch: number
  readonly calls: readonly Call[]
  readonly acknowledged: Set<string>
  readonly gone: Set<string>
  heard: (() => void) | undefined
}

export class Announcer {
  readonly #deps: AnnouncerDeps
  readonly #prepared: PreparedKeys
  #next: Call[] = []
  #running: Promise<void> | undefined
  #round: Round | undefined
  #batchCount = 0
  #troubledSince: number | undefined
  /** Keys of failed calls, with the failure: their writes are committed, so the others must hear of them sooner or later. */
  readonly #owed = new Map<string, number>()
  /** Counts failures. What is told settles those that had happened when its message was made, and no later one of the same key. */
  #failures = 0
  /** The newest failure some of whose keys found no place in `#owed`: as long as that is full, 'all' is told. */
  #unlisted = 0
  #repayment: NodeJS.Timeout | undefined
  #closed = false
  /** For metrics. */
  readonly counters = { rounds: 0, keys: 0, revocations: 0, suspensions: 0 }

  constructor(deps: AnnouncerDeps) {
    this.#deps = deps
    this.#prepared = new PreparedKeys(deps.timings)
  }

  prepare(keys: readonly string[]): Promise<void> {
    // Too many to mark: `invalidate` alone keeps acknowledged writes visible.
    if (this.#closed || keys.length === 0 || keys.length > announcedKeysMax / 10) return Promise.resolve()
    this.#prepared.open(keys)
    if (this.#deps.alone()) return Promise.resolve()
    this.#deps.markLocally(keys)
    return this.#enqueue('prepare', keys, nobody)
  }

  invalidate(keys: readonly string[]): Promise<void> {
    if (keys.length === 0) return Promise.resolve()
    const covered = this.#prepared.close(keys)
    this.#deps.unmarkLocally(keys.filter(key => !this.#prepared.isOpen(key)))
    if (this.#closed) return Promise.reject(new HoldfastError('SHUTTING_DOWN', 'coordination is closed'))
    return this.#enqueue('invalidate', keys, covered)
  }

  /** Somebody may be there who does not know what is prepared; new instances wait `joinMs` for this. */
  joined(): void {
    const { openKeys } = this.#prepared
    if (openKeys.length === 0 || this.#closed) return
    this.#deps.markLocally(openKeys)
    void this.#enqueue('prepare', openKeys, nobody)
  }

  acknowledged(holder: string, batch: number): void {
    if (this.#round?.batch !== batch) return
    this.#round.acknowledged.add(holder)
    this.#round.heard?.()
  }

  gone(holder: Holder): void {
    this.#round?.gone.add(nameOf(holder))
    this.#round?.heard?.()
  }

  /** Takes nothing new. Resolves when the rounds in flight are over, which they are after `unreachableMs` + TTL. */
  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#repayment)
    await this.#running
  }

  #enqueue(kind: Call['kind'], keys: readonly string[], covered: ReadonlySet<string>): Promise<void> {
    return new Promise((settle, fail) => {
      if (this.#next.length >= waitingMax) {
        const error = new HoldfastError('COORDINATION_UNAVAILABLE', 'too many changes wait to be told', { waitingMax })
        return this.#failed([{ kind, keys, covered, settle, fail }], error)
      }
      this.#next.push({ kind, keys, covered, settle, fail })
      this.#running ??= this.#run()
    })
  }

  async #run(): Promise<void> {
    await Promise.resolve() // let the calls of this tick join
    while (this.#next.length > 0) {
      const calls = this.#next
      this.#next = []
      this.counters.rounds++
      // Those who came meanwhile would find the same, and as late again.
      await this.#settle(calls).catch((error: unknown) => this.#failed([...calls, ...this.#next.splice(0)], error))
      for (const call of calls) call.settle() // those that nothing settled before
    }
    this.#running = undefined
  }

  #failed(calls: readonly Call[], error: unknown): void {
    for (const { kind, keys, fail, settle } of calls) {
      if (kind === 'prepare') settle()
      else this.#owe(keys)
      if (kind === 'invalidate') fail(error)
    }
    this.#repayLater()
  }

  #owe(keys: readonly string[]): void {
    const failure = ++this.#failures
    for (const key of keys) {
      if (this.#owed.size <= announcedKeysMax || this.#owed.has(key)) this.#owed.set(key, failure)
      else this.#unlisted = failure
    }
  }

  #repayLater(): void {
    if (this.#owed.size === 0 || this.#closed) return
    clearTimeout(this.#repayment)
    this.#repayment = setTimeout(() => {
      void this.#enqueue('prepare', [], nobody).then(() => this.#repayLater())
    }, this.#deps.timings.leaseRenewMs).unref()
  }

  /**
   * By announcement, else by suspension, else again until one of them works. A connection that was cut is back in a few
   * dozen ms, while a suspension costs everybody a TTL: so the first trouble gets a little time to pass.
   */
  async #settle(calls: readonly Call[]): Promise<void> {
    const { store, timings, log } = this.#deps
    const startedAt = performance.now()
    const mustTell = calls.some(call => call.kind === 'invalidate')
    for (;;) {
      const failure = await this.#announce(calls).then(() => undefined, reasonOf)
      if (failure === undefined) this.#troubledSince = undefined
      if (failure === undefined) return
      this.#troubledSince ??= startedAt
      let unsuspended: string | undefined
      const inTrouble = performance.now() - this.#troubledSince >= timings.suspendAfterMs
      if (inTrouble && store.suspend !== undefined) {
        unsuspended = await this.#suspend(store.suspend)
        if (unsuspended === undefined) return
      }
      log.debug({ reason: failure, suspension: unsuspended }, 'invalidation could not be announced yet')
      if (inTrouble) this.#giveUpPreparing(calls)
      if (inTrouble && !mustTell) return
      if (this.#closed || performance.now() - startedAt > timings.unreachableMs) {
        const message = 'other proxies could not be told of a change'
        throw new HoldfastError('COORDINATION_UNAVAILABLE', message, { reason: failure })
      }
      await sleep(timings.suspendAfterMs / 8)
    }
  }

  /** Unprepared, these writes wait after their commit instead, if there is one: nobody hangs here as long as an `invalidate` may. */
  #giveUpPreparing(calls: readonly Call[]): void {
    for (const call of [...calls, ...this.#next]) if (call.kind === 'prepare') call.settle()
    this.#next = this.#next.filter(call => call.kind === 'invalidate')
  }

  async #suspend(suspend: () => Promise<number>): Promise<string | undefined> {
    try {
      this.counters.suspensions++
      const told = this.#failures
      const waitMs = await suspend()
      await waitUntil(performance.now() + waitMs)
      this.#settleOwed(told) // all caches are emptied before they are used again
      return undefined
    } catch (error) {
      return reasonOf(error)
    }
  }

  async #announce(calls: readonly Call[]): Promise<void> {
    const batch = ++this.#batchCount
    const told = this.#failures
    const changes = this.#changes(calls)
    if (changes?.changed.length === 0 && changes.changing.length === 0) return
    const { store, self } = this.#deps
    const single = changes === undefined ? undefined : encodeChanges(self, batch, changes, store.messageLimits)
    this.#round = { batch, calls, acknowledged: new Set(), gone: new Set(), heard: undefined }
    try {
      const sentAt = performance.now()
      const { holders, waitMs } = await store.announce(single ?? [encodeMessage(['changed', self, batch, 1, 'all'])])
      const waitedUntil = performance.now() + waitMs
      if (waitMs === 0) settleCovered(calls, holders)
      const until = holders.length === 0 ? waitedUntil : await this.#outlast(this.#round, holders, waitedUntil)
      if (until > performance.now()) await waitUntil(until)
      this.#settleOwed(told)
      if (single === undefined) return // nobody marked single keys
      for (const { kind, keys } of calls) if (kind === 'prepare') this.#prepared.confirm(keys, holders, sentAt)
    } finally {
      this.#round = undefined
    }
  }

  /** `told`: the newest failure that the message knew of. */
  #settleOwed(told: number): void {
    if (this.#unlisted > told) return // nobody knows which keys those were: it stays full until 'all' is told again
    for (const [key, failure] of this.#owed) if (failure <= told) this.#owed.delete(key)
  }

  /** Keys still being changed by another write of this worker stay marked. Undefined: too many. */
  #changes(calls: readonly Call[]): Changes | undefined {
    const keys = new Set(this.#owed.keys())
    for (const call of calls) {
      // One more than the limit is enough to know that it was passed.
      for (const key of call.keys) if (keys.size <= announcedKeysMax) keys.add(key)
    }
    this.counters.keys += keys.size
    if (keys.size > announcedKeysMax) return undefined
    const changing: string[] = []
    const changed: string[] = []
    for (const key of keys) (this.#prepared.isOpen(key) ? changing : changed).push(key)
    return { changing, changed }
  }

  /** Resolves with the time at which no holder can answer from an older entry any more. */
  async #outlast(round: Round, holders: readonly ListedHolder[], from: number): Promise<number> {
    let until = from
    for (const holder of holders) {
      const leftMs = holder.revokedLeftMs
      if (leftMs !== undefined && !isCovered(round, holder)) until = Math.max(until, performance.now() + leftMs)
    }
    for (const silent of await this.#silent(round, holders)) {
      const leftMs = await this.#deps.store.revoke(silent)
      this.counters.revocations++
      until = Math.max(until, performance.now() + leftMs)
      this.#deps.log.warn({ holder: silent.id, leftMs }, 'cache lease of a silent proxy revoked')
    }
    return until
  }

  /** Waits until all holders acknowledged or are gone; resolves with those that did neither in time. */
  async #silent(round: Round, holders: readonly ListedHolder[]): Promise<readonly Holder[]> {
    const silent = (): Holder[] =>
      holders.filter(
        one =>
          one.revokedLeftMs === undefined &&
          !round.acknowledged.has(one.id) &&
          !round.gone.has(nameOf(one)) &&
          !isCovered(round, one),
      )
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

/** Need no call of this round wait for the holder? */
const isCovered = ({ calls }: Round, holder: Holder): boolean => calls.every(call => call.covered.has(nameOf(holder)))

/** Prepared writes whose every holder was prepared need no acknowledgement now. */
function settleCovered(calls: readonly Call[], holders: readonly ListedHolder[]): void {
  for (const call of calls) if (holders.every(holder => call.covered.has(nameOf(holder)))) call.settle()
}
