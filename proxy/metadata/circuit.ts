import type { Logger } from 'pino'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { unavailable } from './sql-errors.ts'

/** Pause between attempts to reach a database that is away: how soon its return is noticed. */
const probePauseMs = 200

export interface CircuitDeps {
  /** Reaches the server and makes it ready for use; resolves when statements can be sent. */
  readonly probe: () => Promise<void>
  /**
   * Called when the server goes away: everybody in a queue is to be told. `silent`: it answers nobody, so that what it was
   * asked before is not worth waiting for.
   */
  readonly onDown: (error: HoldfastError, silent: boolean) => void
  readonly log: Logger
}

/**
 * Knows whether PostgreSQL can be used. While it is away, calls fail at once instead of waiting out their time one by
 * one, and a single probe looks for its return.
 */
export class Circuit {
  readonly #deps: CircuitDeps
  #reason: unknown
  #up = false
  #closed = false
  #lastAnswer = 0
  #probing: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined

  constructor(deps: CircuitDeps) {
    this.#deps = deps
  }

  /** The first probe. Rejects with what it met; unless `close` is called, probing goes on. */
  async start(): Promise<void> {
    await this.#probe()
    if (this.#up) return
    throw isHoldfastError(this.#reason) ? this.#reason : this.error()
  }

  close(): void {
    this.#closed = true
    this.#up = false
    clearTimeout(this.#timer)
  }

  get up(): boolean {
    return this.#up
  }

  /** Monotonic time of the last answer to anybody. */
  get lastAnswer(): number {
    return this.#lastAnswer
  }

  /** Why a call cannot be served. */
  error(): HoldfastError {
    if (this.#closed) return unavailable('the connection to the database was closed')
    if (isHoldfastError(this.#reason) && this.#reason.data['behind'] === true) return this.#reason
    return unavailable('the database is away', this.#reason)
  }

  throwIfDown(): void {
    if (!this.#up) throw this.error()
  }

  answered(): void {
    this.#lastAnswer = performance.now()
  }

  /** A statement sent at `sentAt` got no answer: the server is away unless it answered anybody since. */
  timedOut(sentAt: number, reason: unknown): void {
    if (this.#lastAnswer < sentAt) this.#down(reason, true)
  }

  down(reason: unknown): void {
    this.#down(reason, false)
  }

  #down(reason: unknown, silent: boolean): void {
    if (!this.#up || this.#closed) return
    this.#up = false
    this.#reason = reason
    this.#deps.log.warn({ err: reason }, 'database away: artifacts can be read, not written')
    this.#deps.onDown(this.error(), silent)
    this.#schedule(0)
  }

  async #probe(): Promise<void> {
    if (this.#closed) return
    try {
      await this.#deps.probe()
      if (this.#closed) return
      this.#up = true
      if (this.#reason !== undefined) this.#deps.log.info('database is back')
      this.#reason = undefined
    } catch (error) {
      const code = error instanceof HoldfastError ? error.code : 'INTERNAL'
      const before = this.#reason instanceof HoldfastError ? this.#reason.code : undefined
      this.#reason = error
      if (code !== 'METADATA_UNAVAILABLE' && code !== before) {
        this.#deps.log.error({ err: error }, 'database answers, but cannot be used')
      }
      this.#schedule(probePauseMs)
    }
  }

  #schedule(pauseMs: number): void {
    if (this.#closed) return
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#probing ??= this.#probe().finally(() => (this.#probing = undefined))
    }, pauseMs)
    this.#timer.unref()
  }
}
