/** Bad or missing copies that reads come across go to the repair queue: each once, however many readers meet it. */
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { isHoldfastError } from '../shared/errors.ts'
import type { ShardId } from '../shared/ids.ts'
import type { Metadata } from './metadata/types.ts'
import type { BlobLocation } from './routing/types.ts'

/** A copy that was reported is not reported again for this time: its repair is on the way. */
const silenceMs = 30_000

export class BadCopies {
  readonly #deps: { metadata: Pick<Metadata, 'findBlob' | 'addRepairs'>; log: Logger }
  readonly #reported = new LRUCache<string, true>({ max: 10_000, ttl: silenceMs })

  constructor(deps: { metadata: Pick<Metadata, 'findBlob' | 'addRepairs'>; log: Logger }) {
    this.#deps = deps
  }

  /** Never throws, never waits. */
  readonly report = (location: BlobLocation, shard: ShardId, reason: 'missing' | 'corrupt'): void => {
    const key = `${location.digest}.${location.generation} ${shard}`
    if (this.#reported.has(key)) return
    this.#reported.set(key, true)
    const { digest, generation, partition } = location
    this.#deps.log.warn(
      { digest, generation, partition, shard, reason },
      'bad copy found while reading, queued for repair',
    )
    this.#queue(location, shard).catch((error: unknown) => {
      this.#reported.delete(key)
      if (!isHoldfastError(error)) this.#deps.log.error({ err: error }, 'could not queue a repair')
    })
  }

  async #queue({ digest, generation, partition }: BlobLocation, shard: ShardId): Promise<void> {
    const blob = await this.#deps.metadata.findBlob({ sha256: digest })
    if (blob === undefined || blob.generation !== generation) return
    await this.#deps.metadata.addRepairs([{ kind: 'blob', partition, blob, missing: [shard], handoffs: [] }])
  }
}
