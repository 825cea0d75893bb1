import { crc32 } from 'node:zlib'
import type { Digest, Generation, ShardId } from '../../shared/ids.ts'
import { newGeneration } from '../../shared/ids.ts'
import { type BlobRecord, encodeRecord } from '../../shared/record.ts'
import { type TouchAnswer, type TouchRequest, wirePath } from '../../shared/wire.ts'
import { replicateRecord } from './record-replication.ts'
import type { BlobLocation, BlobWriter, StagedUpload, WrittenBlob } from './types.ts'
import { stageUpload } from './upload-fanout.ts'
import { underNewestMap, type WriteContext } from './write-context.ts'
import { quorumOf, reaches, spareTargets, type WriteTarget, zonesOf } from './write-plan.ts'

const touchTimeoutMs = 1_000

export interface ReplicatedBlobWriterDeps {
  readonly context: WriteContext
  /** Wall clock in milliseconds, for the time in records. */
  readonly wallClock?: () => number
}

/** Writes blobs to the owners of their partition. Safe for any number of concurrent calls. */
export class ReplicatedBlobWriter implements BlobWriter {
  readonly #context: WriteContext
  readonly #wallClock: () => number

  constructor({ context, wallClock = Date.now }: ReplicatedBlobWriterDeps) {
    this.#context = context
    this.#wallClock = wallClock
  }

  admit(partition: number, bytes: number | undefined): void {
    this.#context.plan('blob', partition, bytes ?? 0)
  }

  async writeSmall(
    partition: number,
    body: Buffer,
    checksums: { digest: Digest; md5: string; sha1: string },
    generation: Generation = newGeneration(),
  ): Promise<WrittenBlob> {
    const { digest, md5, sha1 } = checksums
    const bytes = body.length
    const record: BlobRecord = {
      kind: 'blob',
      partition,
      digest,
      generation,
      bytes,
      crc: crc32(body),
      time: this.#wallClock(),
    }
    const frame = encodeRecord(record, body)
    const { missing, handoffs } = await underNewestMap(this.#context, () =>
      replicateRecord(this.#context, 'blob', partition, frame),
    )
    return { digest, bytes, md5, sha1, generation, partition, missing, handoffs }
  }

  async stage(
    partition: number,
    body: AsyncIterable<Buffer>,
    options: {
      expectedBytes: number | undefined
      bytesMax: number | undefined
      signal: AbortSignal
      requestId: string
    },
  ): Promise<StagedUpload> {
    return stageUpload(this.#context, body, { partition, ...options })
  }

  /** Asks the owners, and where one is down the handoffs that would have taken its place. */
  async touch(blob: BlobLocation): Promise<{ held: readonly ShardId[]; missing: readonly ShardId[]; quorum: boolean }> {
    const { placement } = this.#context
    const owners = placement.owners(blob.partition)
    const known = placement.allOwners(blob.partition)
    const question = this.#context.question('blob', blob.partition, 0, 'lenient')
    const targets: WriteTarget[] = known.map(shard => {
      const { id, url, zone } = placement.node(shard)
      return { shard, node: id, url, zone }
    })
    const usable = targets.filter(({ node }) => !this.#context.isDown(node))
    const all = usable.length < known.length ? spareTargets(question) : []
    const spares = all.filter(({ shard }) => !known.includes(shard))
    const asked = [...usable, ...spares.slice(0, known.length - usable.length)]
    const answers = await Promise.all(asked.map(target => this.#isHeld(target, blob)))
    const holders = asked.filter((_, index) => answers[index])
    const zones = zonesOf([...usable, ...spares])
    const held = holders.map(({ shard }) => shard)
    return {
      held,
      missing: owners.filter(owner => !held.includes(owner)),
      quorum: reaches(quorumOf('blob', placement.map.replicas, zones), distinctNodes(holders)),
    }
  }

  async #isHeld(target: WriteTarget, { partition, digest, generation }: BlobLocation): Promise<boolean> {
    const request: TouchRequest = { items: [{ shard: target.shard, partition, digest, generation }] }
    const { client } = this.#context.uplink(target)
    try {
      const options = { timeoutMs: touchTimeoutMs, repeatable: true }
      const { results } = await client.requestJson<TouchAnswer>('POST', wirePath.touch, request, options)
      return results[0] === 'held'
    } catch {
      // Unreachable or refusing: not counted as a copy (I24). The health table has heard of it.
      return false
    }
  }
}

function distinctNodes(targets: readonly WriteTarget[]): WriteTarget[] {
  return targets.filter(({ node }, index) => targets.findIndex(target => target.node === node) === index)
}
