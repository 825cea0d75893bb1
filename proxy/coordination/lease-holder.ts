/**
 * This worker as a holder of a cache lease: renews it, and says in O(1) whether the cache may be used.
 *
 * Three rules carry I37. The lease counts from the moment its renewal was *sent*. An instance lives only while our own
 * clock never found it lapsed, whatever the server says. A fresh instance becomes usable only after announcements
 * reach us and the cache was told 'all', so it holds nothing that was read before it was registered.
 */
import { randomBytes } from 'node:crypto'
import { reasonOf, type CoordinationLog, type LeaseStore } from './lease-store.ts'
import type { Timings } from './timings.ts'

type Listener = (keys: readonly string[] | 'all') => void

/** More keys under change than this at once, and the cache is bypassed altogether for a while. */
const marksMax = 100_000

export interface LeaseHolderDeps {
  readonly store: Pick<LeaseStore, 'renew' | 'acknowledge' | 'release'>
  readonly timings: Timings
  readonly log: CoordinationLog
}

export class LeaseHolder {
  readonly #deps: LeaseHolderDeps
  readonly #listeners: Listener[] = []
  #validUntil = Number.NEGATIVE_INFINITY
  #instance = newInstance()
  /** Did this instance ever become usable? Only then does the next life need another name. */
  #wasHeld = false
  /** Grows with each gap; a renewal sent before a gap proves nothing after it. */
  #gapCount = 0
  /** Keys that somebody is about to change: key -> writer -> monotonic time at which the mark ends by itself. */
  readonly #marks = new Map<string, Map<string, number>>()
  /** No key may be used before: the instance is new, or there were too many marks to keep. */
  #usableFrom = Number.NEGATIVE_INFINITY
  #overflowUntil = Number.NEGATIVE_INFINITY
  #sweep: NodeJS.Timeout | undefined
  /** When a renewal last told that nobody else holds a lease. */
  #aloneAt = Number.NEGATIVE_INFINITY
  /** Grows whenever somebody shows up; an answer from before proves nothing. */
  #joinCount = 0
  #trouble: { reason: string; since: number } | undefined = { reason: 'starting', since: Date.now() }
  #running: Promise<void> | undefined
  #wake: (() => void) | undefined
  #closed = false
  /** For metrics: how often the cache had to be emptied. */
  emptiedCount = 0

  constructor(deps: LeaseHolderDeps) {
    this.#deps = deps
  }

  usable(key?: string): boolean {
    const now = performance.now()
    if (now >= this.#validUntil || now < this.#usableFrom) return false
    return key === undefined || this.#marks.size === 0 || !this.#marks.has(key)
  }

  /** Did nobody else hold a lease a moment ago? */
  alone(): boolean {
    return performance.now() - this.#aloneAt < this.#deps.timings.leaseRenewMs * 1.25
  }

  /** Why the lease is not held, and since when. */
  get trouble(): { readonly reason: string; readonly since: number } | undefined {
    return this.#trouble
  }

  onInvalidate(listener: Listener): void {
    this.#listeners.push(listener)
  }

  /** Begins renewing; resolves after the first attempt. */
  async start(): Promise<void> {
    const again = await this.#renew()
    this.#running = this.#renewForever(again)
  }

  /** Somebody else is there. */
  joined(): void {
    this.#joinCount++
    this.#aloneAt = Number.NEGATIVE_INFINITY
  }

  connected(): void {
    this.#wake?.()
  }

  gap(reason: string): void {
    this.#gapCount++
    this.#drop(reason)
  }

  /** The cache hears of it first, the writer after that. */
  announced(
    writer: string,
    batch: number,
    kind: 'changing' | 'changed',
    keys: readonly string[] | 'all',
    last: boolean,
  ): void {
    this.joined()
    if (kind === 'changing' && keys !== 'all') this.mark(writer, keys)
    else this.#tell(keys)
    if (kind === 'changed' && keys !== 'all') this.#unmark(writer, keys)
    if (last) this.#deps.store.acknowledge(writer, batch)
  }

  /** From now on reads of these keys ask PostgreSQL, until the writer says that they have changed or the mark ends. */
  mark(writer: string, keys: readonly string[]): void {
    const until = performance.now() + this.#deps.timings.markMs
    if (this.#marks.size + keys.length > marksMax) {
      this.#overflowUntil = until
      this.#usableFrom = Number.POSITIVE_INFINITY
    } else {
      for (const key of keys) {
        const ofKey = this.#marks.get(key)
        if (ofKey === undefined) this.#marks.set(key, new Map([[writer, until]]))
        else ofKey.set(writer, until)
      }
    }
    this.#tell(keys)
    this.#sweep ??= setTimeout(() => this.#endMarks(), this.#deps.timings.markMs / 4).unref()
  }

  /** For this worker's own writes: drops what was read in between, then ends the mark. */
  unmark(writer: string, keys: readonly string[]): void {
    const marked = keys.filter(key => this.#marks.get(key)?.has(writer))
    if (marked.length === 0) return
    this.#tell(marked)
    this.#unmark(writer, marked)
  }

  /** Gives the lease back, so that no writer waits for it. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#validUntil = Number.NEGATIVE_INFINITY
    clearTimeout(this.#sweep)
    this.#wake?.()
    await this.#running
    // A lease that cannot be given back runs out by itself.
    await this.#deps.store.release(this.#instance).catch(() => undefined)
  }

  #unmark(writer: string, keys: readonly string[]): void {
    for (const key of keys) {
      const ofKey = this.#marks.get(key)
      if (ofKey?.delete(writer) === true && ofKey.size === 0) this.#marks.delete(key)
    }
  }

  /** What was read under a mark may be from before the write: it goes when the mark goes, also if the writer died. */
  #endMarks(): void {
    const now = performance.now()
    const ended: string[] = []
    for (const [key, ofKey] of this.#marks) {
      for (const [writer, until] of ofKey) if (until <= now) ofKey.delete(writer)
      if (ofKey.size === 0) ended.push(key)
    }
    if (ended.length > 0) this.#tell(ended)
    for (const key of ended) this.#marks.delete(key)
    if (this.#overflowUntil > 0 && this.#overflowUntil <= now) {
      this.#overflowUntil = Number.NEGATIVE_INFINITY
      if (this.#tell('all')) this.#usableFrom = now + this.#deps.timings.joinMs
    }
    const more = this.#marks.size > 0 || this.#overflowUntil > 0
    this.#sweep = more ? setTimeout(() => this.#endMarks(), this.#deps.timings.markMs / 4).unref() : undefined
  }

  async #renewForever(firstPauseMs: number): Promise<void> {
    for (let pauseMs = firstPauseMs; !this.#closed; pauseMs = await this.#renew()) {
      await this.#pause(pauseMs)
      if (this.#closed) return
    }
  }

  #pause(pauseMs: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, pauseMs)
      timer.unref()
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  /** One attempt. Resolves with the pause before the next one. */
  async #renew(): Promise<number> {
    const { store, timings } = this.#deps
    const [gapCount, joinCount] = [this.#gapCount, this.#joinCount]
    const sentAt = performance.now()
    const fresh = sentAt >= this.#validUntil
    if (fresh && this.#wasHeld) {
      this.#instance = newInstance()
      this.#wasHeld = false
    }
    const renewal = await store.renew(this.#instance, fresh).catch(reasonOf)
    const outcome = typeof renewal === 'string' ? renewal : renewal.outcome
    const receivedAt = performance.now()
    if (this.#closed) return 0
    if (gapCount !== this.#gapCount) return timings.leaseRenewMs / 10
    if (outcome !== 'held') return this.#notHeld(outcome)
    const alone = typeof renewal === 'object' && renewal.others === 0 && joinCount === this.#joinCount
    this.#aloneAt = alone ? sentAt : Number.NEGATIVE_INFINITY
    if (fresh) {
      if (!this.#tell('all')) return timings.leaseRenewMs
      this.#wasHeld = true
      if (this.#overflowUntil < 0) this.#usableFrom = alone ? receivedAt : receivedAt + timings.joinMs
    } else if (receivedAt >= this.#validUntil) {
      this.#drop('the renewal came too late')
      return 0
    }
    this.#validUntil = sentAt + timings.leaseTtlMs - timings.leaseMarginMs
    if (this.#trouble !== undefined) this.#deps.log.info({ fresh }, 'cache lease held')
    this.#trouble = undefined
    return Math.max(0, sentAt + timings.leaseRenewMs - receivedAt)
  }

  /** An unanswered renewal leaves the lease as it is, to run out or be renewed; a refusal ends it. */
  #notHeld(outcome: string): number {
    if (outcome === 'refused' || outcome === 'suspended') this.#drop(outcome)
    else this.#note(outcome)
    return outcome === 'refused' ? this.#deps.timings.leaseRenewMs / 10 : this.#deps.timings.leaseRenewMs / 4
  }

  #drop(reason: string): void {
    this.#validUntil = Number.NEGATIVE_INFINITY
    this.#note(reason)
  }

  #note(reason: string): void {
    if (this.#trouble?.reason === reason) return
    this.#trouble = { reason, since: this.#trouble?.since ?? Date.now() }
    this.#deps.log.warn({ reason }, 'cache lease not renewed')
  }

  /** A listener that throws has an unknown cache: the lease ends before anybody can believe in it. */
  #tell(keys: readonly string[] | 'all'): boolean {
    if (keys === 'all') this.emptiedCount++
    try {
      for (const listener of this.#listeners) listener(keys)
      return true
    } catch (error) {
      this.#deps.log.error({ err: error }, 'cache listener failed')
      this.#drop('cache listener failed')
      return false
    }
  }
}

const newInstance = (): string => randomBytes(6).toString('hex')
