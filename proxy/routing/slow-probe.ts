/**
 * Is a shard that is left alone because it was slow quick again? A byte is read from it beside the read of a client, who does not wait for
 * it: once a second for each such shard, and within the budget of hedges (I33). So nobody pays for finding out.
 */
import type { ShardId } from '../../shared/ids.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import type { ReadReceiver } from './node-reader.ts'
import { noteBadCopy, type ReadContext, startRead } from './read-deps.ts'
import type { Replica } from './replica-source.ts'
import type { BlobLocation } from './types.ts'

const everyMs = 1_000

/** When each shard was last probed; one that has not answered yet is not probed again. */
export class SlowProbes {
  readonly #now: () => number
  readonly #next = new Map<ShardId, number>()

  /** `now`: monotonic ms. */
  constructor(now: () => number) {
    this.#now = now
  }

  /** True once; not again before `ended`, and then a second later. */
  begin(shard: ShardId): boolean {
    if (this.#now() < (this.#next.get(shard) ?? -Infinity)) return false
    this.#next.set(shard, Infinity)
    return true
  }

  ended(shard: ShardId): void {
    this.#next.set(shard, this.#now() + everyMs)
  }
}

/** `slow`: replicas of the blob that were passed over for being slow. Returns at once. */
export function probeSlow(context: ReadContext, blob: BlobLocation, slow: readonly Replica[]): void {
  if (blob.bytes === 0) return
  for (const replica of slow) {
    if (!context.probes.begin(replica.id)) continue
    if (context.budget.tryHedge()) probe(context, blob, replica)
    else context.probes.ended(replica.id)
    return
  }
}

/** What it takes is added to the shard's latency by the read itself, also when it is given up. */
function probe(context: ReadContext, blob: BlobLocation, replica: Replica): void {
  context.counters.probes += 1
  const timer = new PatientTimer()
  const end = (): void => {
    timer.clear()
    context.probes.ended(replica.id)
  }
  const receiver: ReadReceiver = {
    onEnd: end,
    onError: error => {
      noteBadCopy(context, blob, replica, error)
      end()
    },
  }
  const { latency } = replica
  const read = startRead(context, replica, blob, { first: 0, last: 0 }, Buffer.allocUnsafeSlow(1), receiver, {
    add: ms => latency.addProbe(ms),
    addAtLeast: ms => latency.addAtLeast(ms),
  })
  timer.set(context.times.dropMs, () => {
    read.abort()
    end()
  })
}
