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
  #trouble: { reason: string; since: number } | undefined = { reason: 'starting', since: Date.now() }
  #running: Promise<void> | undefined
  #wake: (() => void) | undefined
  #closed = false
  /** For metrics: how often the cache had to be emptied. */
  emptiedCount = 0

  constructor(deps: LeaseHolderDeps) {
    this.#deps = deps
  }

  usable(): boolean {
    return performance.now() < this.#validUntil
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

  connected(): void {
    this.#wake?.()
  }

  gap(reason: string): void {
    this.#gapCount++
    this.#drop(reason)
  }

  /** The cache hears of it first, the writer after that. */
  changed(writer: string, batch: number, keys: readonly string[] | 'all', last: boolean): void {
    this.#tell(keys)
    if (last) this.#deps.store.acknowledge(writer, batch)
  }

  /** Gives the lease back, so that no writer waits for it. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#validUntil = Number.NEGATIVE_INFINITY
    this.#wake?.()
    await this.#running
    // A lease that cannot be given back runs out by itself.
    await this.#deps.store.release(this.#instance).catch(() => undefined)
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
    const gapCount = this.#gapCount
    const sentAt = performance.now()
    const fresh = sentAt >= this.#validUntil
    if (fresh && this.#wasHeld) {
      this.#instance = newInstance()
      this.#wasHeld = false
    }
    const outcome = await store.renew(this.#instance, fresh).catch(reasonOf)
    const receivedAt = performance.now()
    if (this.#closed) return 0
    if (gapCount !== this.#gapCount) return timings.leaseRenewMs / 10
    if (outcome !== 'held') return this.#notHeld(outcome)
    if (fresh) {
      if (!this.#tell('all')) return timings.leaseRenewMs
      this.#wasHeld = true
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
