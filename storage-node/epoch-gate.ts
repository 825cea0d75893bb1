import { HoldfastError } from '../shared/errors.ts'

/**
 * Refuses writes of proxies that do not know of a change of topology yet (I22), and tells when those that were let in before it are
 * done: from then on, what is listed here is all that was ever written by older maps.
 */
export class EpochGate {
  #writesFrom = 0
  readonly #inside = new Set<Promise<unknown>>()

  /** From now on writes of older epochs are refused; resolves when those under way have ended. */
  async raise(writesFrom: number): Promise<void> {
    this.#writesFrom = Math.max(this.#writesFrom, writesFrom)
    await Promise.allSettled(this.#inside)
  }

  /** Does a write that was sent by `epoch` (undefined: by somebody who does not say). Rejects with STALE_EPOCH. */
  async pass<Result>(epoch: number | undefined, write: () => Promise<Result>): Promise<Result> {
    if (epoch !== undefined && epoch < this.#writesFrom) {
      throw new HoldfastError('STALE_EPOCH', 'the topology has changed: this write comes from an older cluster map', {
        expected: this.#writesFrom,
        found: epoch,
      })
    }
    const writing = write()
    this.#inside.add(writing)
    try {
      return await writing
    } finally {
      this.#inside.delete(writing)
    }
  }
}
