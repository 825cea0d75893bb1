/**
 * How much extra work reads may cause (I33: retries plus hedges stay below 25 % of requests). Token buckets that fill with the
 * requests themselves, so that the bound holds in every window, also when the load falls from one second to the next.
 */
export interface BudgetOptions {
  readonly hedgeRatio: number
  readonly retryRatio: number
  /** Tokens at the start, and the most that can be saved up. */
  readonly burst: number
  /** Tokens that come back without any request: a quiet proxy may retry too. */
  readonly perWindow: number
  readonly windowMs: number
}

export const budgetDefaults: BudgetOptions = {
  hedgeRatio: 0.05,
  // With the hedges 23 %: what is left of the 25 % covers the bursts.
  retryRatio: 0.18,
  burst: 5,
  perWindow: 3,
  windowMs: 10_000,
}

export class RetryBudget {
  readonly #options: BudgetOptions
  readonly #now: () => number
  #hedges: number
  #retries: number
  #filledAt: number

  constructor(now: () => number, options: Partial<BudgetOptions> = {}) {
    this.#options = { ...budgetDefaults, ...options }
    this.#now = now
    this.#hedges = this.#retries = this.#options.burst
    this.#filledAt = now()
  }

  /** A request of a client begins. */
  request(): void {
    const { burst, hedgeRatio, retryRatio } = this.#options
    this.#hedges = Math.min(burst, this.#hedges + hedgeRatio)
    this.#retries = Math.min(burst, this.#retries + retryRatio)
  }

  /** May a second replica be asked because the first is slow? */
  tryHedge(): boolean {
    this.#trickle()
    if (this.#hedges < 1) return false
    this.#hedges -= 1
    return true
  }

  /** May a replica be asked again that failed before? */
  tryRetry(): boolean {
    this.#trickle()
    if (this.#retries < 1) return false
    this.#retries -= 1
    return true
  }

  /**
   * A replica not tried yet is asked because another one failed. Always allowed, a read must not fail while a good copy is
   * reachable (I6), but it counts: it may bring the bucket below zero, and others wait until that is paid back.
   */
  forced(): void {
    this.#retries = Math.max(-this.#options.burst, this.#retries - 1)
  }

  #trickle(): void {
    const { perWindow, windowMs, burst } = this.#options
    const now = this.#now()
    const more = ((now - this.#filledAt) * perWindow) / windowMs
    this.#filledAt = now
    // Both fill, up to the few that are always there; requests bring the rest.
    const limit = Math.min(burst, perWindow)
    if (this.#retries < limit) this.#retries = Math.min(limit, this.#retries + more)
    if (this.#hedges < limit) this.#hedges = Math.min(limit, this.#hedges + more)
  }
}
