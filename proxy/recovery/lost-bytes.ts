/** Which artifacts have no copy left (I26): every shard that could have one is asked whether it holds it, verified. */
import { atMost } from '../../shared/at-most.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { ReferencedBlob, ReferenceRecord } from '../../shared/record.ts'
import { type TouchAnswer, type TouchRequest, wirePath } from '../../shared/wire.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { NodeClient } from '../routing/node-client.ts'

const shardsAtOnce = 8
const touchTimeoutMs = 30_000
const namesMax = 1_000

export interface LostBytesDeps {
  readonly view: Pick<ClusterView, 'current'>
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
}

export class LostBytes {
  readonly names: string[] = []
  count = 0
  readonly #deps: LostBytesDeps
  readonly #readable: ReadonlySet<ShardId>

  constructor(deps: LostBytesDeps, readable: readonly ShardId[]) {
    this.#deps = deps
    this.#readable = new Set(readable)
  }

  /** Looks on the owners first, then everywhere. */
  async look(records: readonly ReferenceRecord[]): Promise<void> {
    const blobs = new Map(
      records.flatMap(({ op, blob }) => (op === 'put' && blob !== undefined ? [[nameOf(blob), blob]] : [])),
    )
    const view = this.#deps.view.current()
    await this.#findOn(blobs, ({ partition }) => view.owners(partition))
    if (blobs.size > 0) await this.#findOn(blobs, () => [...this.#readable])
    for (const { repository, path, blob } of records) {
      if (blob === undefined || !blobs.has(nameOf(blob))) continue
      this.count++
      if (this.names.length < namesMax) this.names.push(`${repository}/${path}`)
    }
  }

  /** Takes out of `blobs` what is held by one of its shards. */
  async #findOn(
    blobs: Map<string, ReferencedBlob>,
    shardsOf: (blob: ReferencedBlob) => readonly ShardId[],
  ): Promise<void> {
    const wanted = new Map<ShardId, ReferencedBlob[]>()
    for (const blob of blobs.values()) {
      for (const shard of shardsOf(blob)) {
        if (this.#readable.has(shard)) wanted.set(shard, [...(wanted.get(shard) ?? []), blob])
      }
    }
    await atMost(shardsAtOnce, [...wanted], async ([shard, list]) => {
      for (const held of await this.#heldBy(shard, list)) blobs.delete(held)
    })
  }

  async #heldBy(shard: ShardId, blobs: readonly ReferencedBlob[]): Promise<string[]> {
    const items = blobs.map(({ partition, digest, generation }) => ({ shard, partition, digest, generation }))
    const request: TouchRequest = { items }
    try {
      const client = this.#deps.clients.ofShard(shard)
      const { results } = await client.requestJson<TouchAnswer>('POST', wirePath.touch, request, {
        timeoutMs: touchTimeoutMs,
      })
      return blobs.filter((_, index) => results[index] === 'held').map(nameOf)
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      return [] // it holds none, as far as can be known
    }
  }
}

const nameOf = ({ partition, digest, generation }: ReferencedBlob): string => `${partition}/${digest}.${generation}`
