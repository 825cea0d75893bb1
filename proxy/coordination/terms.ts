/**
 * Terms of office: a role is taken through a lease in the coordination server and numbered by PostgreSQL (I27). The lease
 * only chooses who tries; what a holder does is protected by its fencing token. Its own clock ends a term well before
 * the server's clock can free the lease.
 */
import { randomBytes } from 'node:crypto'
import { reasonOf, type CoordinationLog, type LeaseStore } from './lease-store.ts'
import type { Timings } from './timings.ts'
import type { Leadership } from './types.ts'

export interface TermsDeps {
  readonly store: Pick<LeaseStore, 'takeRole' | 'renewRole' | 'freeRole'>
  readonly issueToken: (role: string, holder: string) => Promise<number>
  readonly self: string
  readonly timings: Timings
  readonly log: CoordinationLog
}

export class Terms {
  readonly #deps: TermsDeps
  readonly #held = new Map<string, Term>()
  #closed = false

  constructor(deps: TermsDeps) {
    this.#deps = deps
  }

  async acquire(role: string): Promise<Leadership | undefined> {
    if (this.#closed || this.#held.has(role)) return undefined
    const term = new Term(role, this.#deps, () => this.#held.delete(role))
    this.#held.set(role, term) // before the first await: of two calls at once one tries
    if (await term.begin()) return term
    this.#held.delete(role)
    return undefined
  }

  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([...this.#held.values()].map(term => term.release()))
  }
}

class Term implements Leadership {
  readonly #role: string
  readonly #deps: TermsDeps
  readonly #ended: () => void
  readonly #nonce = randomBytes(12).toString('hex')
  readonly #abort = new AbortController()
  #token = 0
  #expiry: NodeJS.Timeout | undefined
  #renewal: NodeJS.Timeout | undefined
  #validUntil = Number.POSITIVE_INFINITY

  constructor(role: string, deps: TermsDeps, ended: () => void) {
    this.#role = role
    this.#deps = deps
    this.#ended = ended
  }

  /** Looks at the clock first: after a pause of the process, other timers may run before the one that ends the term. */
  get signal(): AbortSignal {
    if (performance.now() >= this.#validUntil) this.#end('not renewed in time')
    return this.#abort.signal
  }

  get token(): number {
    return this.#token
  }

  async begin(): Promise<boolean> {
    const { store, issueToken, self, log } = this.#deps
    const role = this.#role
    const sentAt = performance.now()
    const taken = await store.takeRole(role, this.#nonce).catch(() => false)
    if (!taken) return false
    this.#extend(sentAt)
    try {
      this.#token = await issueToken(role, self)
    } catch (error) {
      log.warn({ role, reason: reasonOf(error) }, 'no fencing token: role given back')
      await this.release()
      return false
    }
    if (this.signal.aborted) return false
    log.info({ role, token: this.#token }, 'role taken')
    return true
  }

  async release(): Promise<void> {
    this.#end('released')
    // A lease that cannot be given back runs out by itself; it is freed only if it is still ours.
    await this.#deps.store.freeRole(this.#role, this.#nonce).catch(() => undefined)
  }

  #extend(sentAt: number): void {
    if (this.#abort.signal.aborted) return
    const { roleGiveUpMs, roleRenewMs } = this.#deps.timings
    this.#validUntil = sentAt + roleGiveUpMs
    this.#plan(this.#validUntil, () => this.#end('not renewed in time'))
    this.#renewal = setTimeout(() => void this.#renew(), sentAt + roleRenewMs - performance.now())
    this.#renewal.unref()
  }

  #plan(time: number, action: () => void): void {
    clearTimeout(this.#expiry)
    this.#expiry = setTimeout(action, Math.max(0, Math.floor(time - performance.now())))
    this.#expiry.unref()
  }

  /** Unanswered renewals are repeated until the term is over; a refusal ends it at once. */
  async #renew(): Promise<void> {
    const sentAt = performance.now()
    if (sentAt >= this.#validUntil) return this.#end('not renewed in time')
    const renewed = await this.#deps.store.renewRole(this.#role, this.#nonce).catch(() => undefined)
    if (this.signal.aborted) return
    if (renewed === true) return this.#extend(sentAt)
    if (renewed === false) return this.#end('lost')
    this.#renewal = setTimeout(() => void this.#renew(), this.#deps.timings.roleRenewMs / 10)
    this.#renewal.unref()
  }

  #end(reason: string): void {
    clearTimeout(this.#expiry)
    clearTimeout(this.#renewal)
    if (this.#abort.signal.aborted) return
    this.#ended()
    this.#abort.abort(new Error(`role ${this.#role}: ${reason}`))
    this.#deps.log.info({ role: this.#role, token: this.#token, reason }, 'role ended')
  }
}
