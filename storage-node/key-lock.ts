/** One at a time for each key, in the order they came. Holds nothing for keys nobody waits for. */
export class KeyLock {
  readonly #tails = new Map<string, Promise<unknown>>()

  async run<Result>(key: string, action: () => Promise<Result>): Promise<Result> {
    const before = this.#tails.get(key)
    const own = before === undefined ? action() : before.then(action, action)
    this.#tails.set(key, own)
    try {
      return await own
    } finally {
      if (this.#tails.get(key) === own) this.#tails.delete(key)
    }
  }

  has(key: string): boolean {
    return this.#tails.has(key)
  }
}
