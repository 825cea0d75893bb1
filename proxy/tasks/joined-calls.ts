/**
 * Small questions that go together: what waits for its turn takes along what comes meanwhile for the same shard. Of nearly empty
 * partitions, which most are in a small cluster, the requests are what moving them costs, not the bytes.
 */

/** Under way for each key: the second one waits where the first is answered. */
const atOnce = 2

export interface JoinedCallsOptions<Key extends string, Item, Answer> {
  /** One answer for each item, in their order. */
  readonly call: (key: Key, items: readonly Item[]) => Promise<readonly Answer[]>
  /** Begins the work when it may. */
  readonly turn: <Result>(key: Key, work: () => Promise<Result>) => Promise<Result>
  readonly costOf: (item: Item) => number
  /** Of what goes together; what costs more by itself goes alone. */
  readonly costMax: number
}

interface Batch<Item, Answer> {
  readonly items: Item[]
  cost: number
  /** It waits for its turn; until that comes others may join. */
  isWaiting: boolean
  readonly answers: Promise<readonly Answer[]>
  readonly settle: (answers: Promise<readonly Answer[]>) => void
}

export class JoinedCalls<Key extends string, Item, Answer> {
  readonly #options: JoinedCallsOptions<Key, Item, Answer>
  readonly #open = new Map<Key, Batch<Item, Answer>[]>()
  readonly #underWay = new Map<Key, number>()

  constructor(options: JoinedCallsOptions<Key, Item, Answer>) {
    this.#options = options
  }

  /** Rejects, as for all that go together, with the error of the call. */
  async ask(key: Key, items: readonly Item[]): Promise<readonly Answer[]> {
    if (items.length === 0) return []
    const { costOf, costMax } = this.#options
    const cost = items.reduce((sum, item) => sum + costOf(item), 0)
    const open = this.#open.get(key) ?? []
    this.#open.set(key, open)
    let batch = open.at(-1)
    if (batch === undefined || batch.cost + cost > costMax) open.push((batch = newBatch()))
    const start = batch.items.length
    batch.items.push(...items)
    batch.cost += cost
    this.#next(key)
    return (await batch.answers).slice(start, start + items.length)
  }

  #next(key: Key): void {
    const underWay = this.#underWay.get(key) ?? 0
    const batch = this.#open.get(key)?.find(one => !one.isWaiting)
    if (batch === undefined || underWay >= atOnce) return
    batch.isWaiting = true
    this.#underWay.set(key, underWay + 1)
    const { call, turn } = this.#options
    const work = (): Promise<readonly Answer[]> => {
      this.#close(key, batch)
      return call(key, batch.items)
    }
    const answers = turn(key, work).finally(() => {
      // Its turn may never have come.
      this.#close(key, batch)
      const left = (this.#underWay.get(key) ?? 1) - 1
      if (left > 0) this.#underWay.set(key, left)
      else this.#underWay.delete(key)
      this.#next(key)
    })
    batch.settle(answers)
  }

  #close(key: Key, batch: Batch<Item, Answer>): void {
    const others = (this.#open.get(key) ?? []).filter(one => one !== batch)
    if (others.length > 0) this.#open.set(key, others)
    else this.#open.delete(key)
  }
}

function newBatch<Item, Answer>(): Batch<Item, Answer> {
  let settle!: Batch<Item, Answer>['settle']
  const answers = new Promise<readonly Answer[]>(resolve => (settle = resolve))
  return { items: [], cost: 0, isWaiting: false, answers, settle }
}
