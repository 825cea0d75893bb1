/**
 * Copies that storage nodes found corrupt or missing, by a scrub or a read, go to the repair queue within seconds: each node says with
 * its status how many it has lost, and which when asked. A loss stays on its node's list until the copy is back or nobody wants it.
 */
import type { Logger } from 'pino'
import { isHoldfastError } from '../../shared/errors.ts'
import type { Digest, ShardId } from '../../shared/ids.ts'
import { wirePath, type LossListing, type VerifyAnswer } from '../../shared/wire.ts'
import type { InspectedBlob, Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { NodeClient } from '../routing/node-client.ts'
import type { PrimaryTask, Term } from './primary.ts'

const pageSize = 500
/** Losses heeded in one step; the rest of a dying disk comes with the next ones. */
const pagesMax = 20
/** A list that did not grow is looked at again only after so long: its repairs are on the way. */
const againMs = 60_000
const hopelessMax = 10_000

type Loss = LossListing['losses'][number]

export interface LossesDeps {
  readonly metadata: Pick<Metadata, 'inspectBlobs' | 'addRepairs'>
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'state' | 'shardStatus'>
  readonly log: Logger
  /** Monotonic, ms. */
  readonly now: () => number
}

export class HeedLosses implements PrimaryTask {
  readonly name = 'heed-losses'
  readonly pauseMs = 2_000
  readonly #deps: LossesDeps
  readonly #heeded = new Map<ShardId, { readonly count: number; readonly at: number }>()
  /** What each shard has on its list: `<digest>.<generation>`. */
  readonly #lost = new Map<ShardId, Set<string>>()
  /** Blobs of which no owner has a good copy, as far as is known (I26). */
  readonly #hopeless = new Map<string, Pick<InspectedBlob, 'digest' | 'partition'>>()
  /** Repairs queued for losses. */
  queued = 0

  constructor(deps: LossesDeps) {
    this.#deps = deps
  }

  /** Blobs of which no owner has a good copy. */
  get hopelessCount(): number {
    return this.#hopeless.size
  }

  hopeless(): readonly Digest[] {
    return [...this.#hopeless.values()].map(({ digest }) => digest)
  }

  readonly step = async (term: Term): Promise<'idle'> => {
    for (const { id } of this.#deps.view.current().map.shards) {
      term.signal.throwIfAborted()
      if (this.#deps.view.current().has(id) && this.#isDue(id)) await this.#heed(id, term)
    }
    this.#review()
    return 'idle'
  }

  /** Whoever is primary next finds it all out by itself; until then nothing is known here. */
  readonly ended = (): Promise<void> => {
    for (const known of [this.#heeded, this.#lost, this.#hopeless]) known.clear()
    return Promise.resolve()
  }

  /** What is no longer on the lists of all its owners is not hopeless any more. */
  #review(): void {
    const view = this.#deps.view.current()
    for (const shard of [...this.#heeded.keys(), ...this.#lost.keys()]) {
      if (!view.has(shard)) this.#forget(shard)
    }
    for (const [key, { partition }] of this.#hopeless) {
      if (!this.#isLostEverywhere(key, view.owners(partition))) this.#hopeless.delete(key)
    }
  }

  #forget(shard: ShardId): void {
    this.#heeded.delete(shard)
    this.#lost.delete(shard)
  }

  #isLostEverywhere(key: string, owners: readonly ShardId[]): boolean {
    return owners.every(owner => this.#lost.get(owner)?.has(key) === true)
  }

  #isDue(shard: ShardId): boolean {
    const { health, view, now } = this.#deps
    const count = health.shardStatus(shard)?.losses ?? 0
    if (count === 0) this.#forget(shard)
    if (count === 0 || health.state(view.current().node(shard).id) === 'down') return false
    const before = this.#heeded.get(shard)
    if (before === undefined) return true
    // What was hopeless may be what came back.
    const hasNews = count > before.count || (count < before.count && this.#hopeless.size > 0)
    return hasNews || now() - before.at > againMs
  }

  async #heed(shard: ShardId, { signal }: Term): Promise<void> {
    const { clients, log, now, health } = this.#deps
    const count = health.shardStatus(shard)?.losses ?? 0
    let after: string | undefined
    const lost = new Set<string>()
    const before = this.#lost.get(shard) ?? []
    this.#lost.set(shard, lost)
    let isWhole = false
    try {
      for (let page = 0; page < pagesMax; page += 1) {
        const query = new URLSearchParams({ limit: String(pageSize), ...(after === undefined ? {} : { after }) })
        const path = `${wirePath.losses(shard)}?${query.toString()}`
        const { losses, next } = await clients
          .ofShard(shard)
          .requestJson<LossListing>('GET', path, undefined, { signal })
        for (const loss of losses) lost.add(keyOf(loss))
        await this.#queue(shard, losses, signal)
        after = next
        if (after === undefined) break
      }
      isWhole = true
      this.#heeded.set(shard, { count, at: now() })
    } catch (error) {
      if (!isHoldfastError(error) || isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
      log.debug({ err: error, shard }, 'a shard did not say what it lost')
    } finally {
      // What it did not come to say now it said before.
      if (!isWhole) for (const key of before) lost.add(key)
    }
  }

  /** Of what PostgreSQL knows and wants; the rest is for the collector of garbage, whose drop takes it off the list. */
  async #queue(shard: ShardId, losses: readonly Loss[], signal: AbortSignal): Promise<void> {
    const { metadata, view, log } = this.#deps
    // Two generations of one digest can both be on a list.
    const names = new Set(losses.map(keyOf))
    const rows = await metadata.inspectBlobs([...new Set(losses.map(({ digest }) => digest))])
    const wanted = rows.filter(blob => {
      const isOwner = view.current().owners(blob.partition).includes(shard)
      return blob.state !== 'purging' && isOwner && names.has(keyOf(blob))
    })
    const repairs = wanted.map(blob => {
      return { kind: 'blob', partition: blob.partition, blob, missing: [shard], handoffs: [] } as const
    })
    await metadata.addRepairs(repairs)
    this.queued += repairs.length
    if (repairs.length > 0) log.warn({ shard, repairs: repairs.length }, 'lost copies queued for repair')
    for (const blob of wanted) await this.#despair(blob, signal)
  }

  /** Says so, by name, when no owner has a good copy: somebody must bring one, and until then nothing is deleted. */
  async #despair(blob: InspectedBlob, signal: AbortSignal): Promise<void> {
    const { view, log } = this.#deps
    const key = keyOf(blob)
    const owners = view.current().owners(blob.partition)
    const isHopeless = this.#isLostEverywhere(key, owners) && (await this.#noneIsGood(blob, owners, signal))
    if (!isHopeless) {
      this.#hopeless.delete(key)
      return
    }
    if (this.#hopeless.size < hopelessMax) this.#hopeless.set(key, blob)
    const { digest, generation, bytes } = blob
    log.error({ digest, generation, bytes, owners }, 'every copy of a blob is corrupt or missing')
  }

  /** The lists may be a minute old. */
  async #noneIsGood(blob: InspectedBlob, owners: readonly ShardId[], signal: AbortSignal): Promise<boolean> {
    for (const owner of owners) {
      const path = wirePath.verify(owner, blob)
      const { state } = await this.#deps.clients
        .ofShard(owner)
        .requestJson<VerifyAnswer>('GET', path, undefined, { signal })
      if (state === 'good') return false
    }
    return true
  }
}

const keyOf = ({ digest, generation }: Pick<Loss, 'digest' | 'generation'>): string => `${digest}.${generation}`
