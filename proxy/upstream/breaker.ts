/**
 * Whether an upstream that fails is asked at all: after five failures within 30 s not for a second, then one request tries it, and each that
 * fails doubles the pause, up to a minute. Builds whose artifacts are there do not wait for one that is not. Pure.
 */
const failuresMax = 5
const withinMs = 30_000
const pauseMsMin = 1_000
const pauseMsMax = 60_000

export class Breaker {
  #failedAt: number[] = []
  #pauseMs = 0
  #closedUntil = -Infinity
  #isTrying = false

  /** 0: ask, and tell how it went. Else ms until somebody may. */
  waitMs(now: number): number {
    if (this.#pauseMs === 0) return 0
    if (now < this.#closedUntil) return this.#closedUntil - now
    if (this.#isTrying) return pauseMsMin
    this.#isTrying = true
    return 0
  }

  succeeded(): void {
    this.#failedAt = []
    this.#pauseMs = 0
    this.#isTrying = false
  }

  /** The request said nothing about the upstream: its client left. */
  gaveUp(): void {
    this.#isTrying = false
  }

  /** `retryMs`: so long the upstream itself asks for. */
  failed(now: number, retryMs = 0): void {
    this.#failedAt = [...this.#failedAt.filter(at => now - at < withinMs), now].slice(-failuresMax)
    if (this.#failedAt.length < failuresMax && this.#pauseMs === 0 && retryMs === 0) return
    // Those that were under way when it opened say nothing new.
    if (this.#pauseMs === 0 || this.#isTrying) {
      this.#pauseMs = Math.min(pauseMsMax, this.#pauseMs === 0 ? pauseMsMin : 2 * this.#pauseMs)
    }
    this.#isTrying = false
    this.#closedUntil = now + Math.min(pauseMsMax, Math.max(this.#pauseMs, retryMs))
  }
}
