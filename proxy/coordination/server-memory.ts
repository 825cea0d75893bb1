/**
 * How long has a server certainly forgotten no lease? Leases live in memory that servers may lose (FLUSHALL, restart from
 * an old snapshot, promotion of a lagging replica) and end by wall clocks that may jump. A writer that finds no holder
 * may believe it only if the server's memory reaches back further than any lease can: else it waits.
 */
export class ServerMemory {
  /** Monotonic time since which nothing can have been lost, as far as the connection tells. */
  #since = Number.POSITIVE_INFINITY
  /** The server's clock minus ours lies between these, at monotonic time `#seenAt`. */
  #low = Number.NEGATIVE_INFINITY
  #high = Number.POSITIVE_INFINITY
  #seenAt = 0

  /** A connection was made at `now` to a server that has surely run undisturbed for `undisturbedMs`. */
  connected(now: number, undisturbedMs: number): void {
    this.#since = now - undisturbedMs
    this.#low = Number.NEGATIVE_INFINITY
    this.#high = Number.POSITIVE_INFINITY
  }

  disconnected(): void {
    this.#since = Number.POSITIVE_INFINITY
  }

  /**
   * The server's clock showed `serverMs` at some moment between `sentAt` and `receivedAt`. A jump against our monotonic
   * clock makes leases end too early, so it counts as lost memory. Clocks may drift by 1 % and 100 ms.
   */
  observe(serverMs: number, sentAt: number, receivedAt: number): void {
    const drift = (receivedAt - this.#seenAt) * 0.01
    const low = serverMs - receivedAt
    const high = serverMs - sentAt
    const jumped = low > this.#high + drift + 100 || high < this.#low - drift - 100
    if (jumped && this.#since < receivedAt) this.#since = receivedAt
    const [narrowLow, narrowHigh] = [Math.max(low, this.#low - drift), Math.min(high, this.#high + drift)]
    const narrows = !jumped && narrowLow <= narrowHigh
    this.#low = narrows ? narrowLow : low
    this.#high = narrows ? narrowHigh : high
    this.#seenAt = receivedAt
  }

  /** Ms up to now of which the server remembers every lease; `bornMsAgo` is the age of the lease space by the server. */
  reach(bornMsAgo: number, now: number): number {
    return Math.max(0, Math.min(bornMsAgo, now - this.#since))
  }
}
