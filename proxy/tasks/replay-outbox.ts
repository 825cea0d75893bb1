import type { Publisher } from '../artifacts/publisher.ts'
import { referenceOfOutbox } from '../artifacts/reference.ts'
import type { Metadata } from '../metadata/types.ts'
import type { PrimaryTask } from './primary.ts'

/** Younger entries are still in the hands of the proxy that made them. */
const outboxAgeMs = 2_000
const batchSize = 200

/**
 * What a proxy committed but could not tell the shards and the other caches before it died, or before the shards answered:
 * tell them now. Appending a reference twice, and invalidating twice, changes nothing.
 */
export function replayOutbox(deps: {
  metadata: Pick<Metadata, 'pendingOutbox' | 'incarnation'>
  publisher: Pick<Publisher, 'publish'>
}): PrimaryTask {
  return {
    name: 'replay-outbox',
    pauseMs: 1_000,
    async step() {
      const entries = await deps.metadata.pendingOutbox(outboxAgeMs, batchSize)
      if (entries.length === 0) return 'idle'
      await deps.publisher.publish(
        entries.map(entry => ({
          record: referenceOfOutbox(entry, deps.metadata.incarnation),
          outboxSeq: entry.seq,
        })),
      )
      // Settled entries leave in a moment; the next look comes after the pause.
      return 'idle'
    },
  }
}
