import { setTimeout as sleep } from 'node:timers/promises'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { ReferenceRecord } from '../../shared/record.ts'
import { type ReferenceListing, wirePath } from '../../shared/wire.ts'
import type { NodeClient } from '../routing/node-client.ts'

/** A reference may be 32 KiB long, an answer 16 MiB. */
const pageCount = 400
const pageTimeoutMs = 30_000
const triesMax = 4
const retryMs = 500

/** All references of a shard, in their order. Rejects when the shard does not answer several times in a row. */
export async function* referencesOf(
  clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> },
  shard: ShardId,
): AsyncGenerator<ReferenceRecord> {
  let after: string | undefined
  do {
    const page = await pageOf(clients, shard, after)
    yield* page.references
    after = page.next
  } while (after !== undefined)
}

async function pageOf(
  clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> },
  shard: ShardId,
  after: string | undefined,
): Promise<ReferenceListing> {
  const query = `?limit=${pageCount}${after === undefined ? '' : `&after=${encodeURIComponent(after)}`}`
  for (let tries = 1; ; tries++) {
    try {
      const client = clients.ofShard(shard)
      return await client.requestJson('GET', wirePath.allReferences(shard) + query, undefined, {
        timeoutMs: pageTimeoutMs,
      })
    } catch (error) {
      if (!isHoldfastError(error) || tries >= triesMax) throw error
      await sleep(retryMs * tries)
    }
  }
}
