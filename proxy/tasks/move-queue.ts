/** Which of many copies is made next, and when: so that all nodes that get some are at work, and none gets more than its share. */

export interface LaneLimits {
  readonly atOnce: number
  /** Of those that name the same lane. */
  readonly perLane: number
}

/**
 * Works on all items, in the order given for each lane, and with each lane in its turn: one that is full keeps none of the others
 * waiting. After a failure nothing more is begun; what is under way is waited for, then the first failure is thrown.
 */
export async function inLanes<Item>(
  { atOnce, perLane }: LaneLimits,
  items: readonly Item[],
  lanesOf: (item: Item) => readonly string[],
  work: (item: Item) => Promise<void>,
): Promise<void> {
  const waiting = new LaneQueues(items, lanesOf, perLane)
  const running = new Set<Promise<void>>()
  const failures: unknown[] = []
  for (;;) {
    while (failures.length === 0 && running.size < atOnce) {
      const next = waiting.take()
      if (next === undefined) break
      const run = work(next.item)
        .catch((error: unknown) => void failures.push(error))
        .finally(() => {
          waiting.free(next.lanes)
          running.delete(run)
        })
      running.add(run)
    }
    if (running.size === 0) break
    await Promise.race(running)
  }
  if (failures.length > 0) throw failures[0]
}

/** Items that name the same lanes stand in one queue: to find the next one costs a look at each queue, not at each item. */
class LaneQueues<Item> {
  readonly #queues = new Map<string, { readonly lanes: readonly string[]; readonly items: Item[]; taken: number }>()
  readonly #busy = new Map<string, number>()
  readonly #perLane: number

  constructor(items: readonly Item[], lanesOf: (item: Item) => readonly string[], perLane: number) {
    this.#perLane = perLane
    for (const item of items) {
      const lanes = [...new Set(lanesOf(item))].sort()
      const key = lanes.join(' ')
      const queue = this.#queues.get(key)
      if (queue === undefined) this.#queues.set(key, { lanes, items: [item], taken: 0 })
      else queue.items.push(item)
    }
  }

  /** Undefined: none is left, or all their lanes are full. */
  take(): { item: Item; lanes: readonly string[] } | undefined {
    for (const [key, queue] of this.#queues) {
      const { lanes, items } = queue
      if (lanes.some(lane => this.#of(lane) >= this.#perLane)) continue
      const item = items[queue.taken] as Item
      queue.taken += 1
      // To the end of the turn.
      this.#queues.delete(key)
      if (queue.taken < items.length) this.#queues.set(key, queue)
      for (const lane of lanes) this.#busy.set(lane, this.#of(lane) + 1)
      return { item, lanes }
    }
    return undefined
  }

  free(lanes: readonly string[]): void {
    for (const lane of lanes) this.#busy.set(lane, this.#of(lane) - 1)
  }

  #of(lane: string): number {
    return this.#busy.get(lane) ?? 0
  }
}

/** Bytes a second for each lane by itself, whoever asks for it. Who comes first goes first. */
export class LanePace {
  readonly #bytesPerSecond: number
  readonly #now: () => number
  /** When what was let go ahead has used up its time. */
  readonly #paidUntil = new Map<string, number>()

  /** `now`: monotonic milliseconds. */
  constructor(bytesPerSecond: number, now: () => number) {
    this.#bytesPerSecond = bytesPerSecond
    this.#now = now
  }

  /** How long whoever moves so many bytes has to wait, in ms: for those before it, not for itself. */
  charge(lane: string, bytes: number): number {
    const now = this.#now()
    const startAt = Math.max(now, this.#paidUntil.get(lane) ?? -Infinity)
    this.#paidUntil.set(lane, startAt + (bytes / this.#bytesPerSecond) * 1_000)
    return startAt - now
  }
}
