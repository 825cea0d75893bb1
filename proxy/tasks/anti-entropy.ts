/**
 * What the owners of each partition hold, compared with each other, for ever: the safety net under the repair queue. A disk that was
 * lost and replaced, a node that was away for longer than its repairs were kept, a record that rotted unseen: all look the same
 * here, as a difference. PostgreSQL decides what should be there (a deleted path is a version like any other, I16), the
 * repair queue brings it home.
 *
 *     all partitions every 10 min ┐
 *     a shard came back           ├─▶ pending ──summaries of 512 at a time──▶ suspects ──names, database──▶ repair queue
 *     a shard has another disk    ┘
 *
 * A shard whose disk is new, or lost something, learns from here when it has all that it should (recovering-shards.ts).
 */
import type { Logger } from 'pino'
import { atMost } from '../../shared/at-most.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import { parseDigest, type ShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import { wirePath, type ReferenceAnswer } from '../../shared/wire.ts'
import type { Metadata, RepairEntry } from '../metadata/types.ts'
import type { RepairQueue } from '../metadata/repair-queue.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { Calm } from './calm.ts'
import {
  behind,
  differingReferences,
  fewNames,
  missingBlobs,
  splitKey,
  suspect,
  type ShardSummary,
  type Suspicion,
} from './compare-sets.ts'
import { primaryRole, type PrimaryTask, type Term } from './primary.ts'
import { ownersSoFar, RecoveringShards } from './recovering-shards.ts'
import { entriesOf, summariesOf, type ContentsDeps } from './shard-contents.ts'

/** Partitions compared by one question to each shard. */
const blockSize = 512
/** Suspects looked into by one step, and at once. */
const suspectsMax = 512
const suspectsAtOnce = 32
/** Names that a step has in memory, about 160 bytes each: with 10^9 artifacts one partition of three owners has 730,000. */
const namesMax = 1_000_000
const chunkSize = 500
const askedAtOnce = 16
/** What is younger is still in the hands of its writer. */
const settledMs = 10_000
/** More waiting repairs than this: they go first. */
const queuedMax = 20_000
const retryMs = 30_000
/** Partitions of such a shard that are not whole yet are compared again so soon at first, and ever later. */
const recoveryMsMin = 1_000
const recoveryMsMax = 300_000

type NewRepair = Omit<RepairEntry, 'id' | 'attempts'>

export interface AntiEntropyDeps extends ContentsDeps {
  readonly metadata: Pick<Metadata, 'inspectBlobs' | 'inspectVersions' | 'addRepairs' | 'countRepairs'> & {
    readonly repairQueue: Pick<RepairQueue, 'comparisonWanted'>
  }
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'state' | 'shardState' | 'shardStatus'>
  readonly calm: Pick<Calm, 'step'>
  readonly log: Logger
  /** Monotonic, ms. */
  readonly now: () => number
  /** Between two rounds over all partitions, in ms, +-20 %. */
  readonly roundMs: number
}

interface Suspect extends Suspicion {
  readonly partition: number
}

export class AntiEntropy implements PrimaryTask {
  readonly name = 'anti-entropy'
  readonly pauseMs = 1_000
  readonly #deps: AntiEntropyDeps
  readonly #pending = new Set<number>()
  #suspects: Suspect[] = []
  #term: number | undefined
  /** Who asked last for a comparison, if anybody. */
  #wanted: string | undefined
  #epoch = 0
  #nextRoundAt = -Infinity
  readonly #away = new Set<ShardId>()
  readonly #disks = new Map<ShardId, string>()
  readonly #recovering = new RecoveringShards()
  #nextRecoveryAt = -Infinity
  #recoveryPauseMs = recoveryMsMin
  /** Partitions to be looked at again, and when: something in them was too young to judge. */
  readonly #later = new Map<number, number>()
  /** Rounds over all partitions that were begun, partitions compared, those that differed, and repairs queued for them. */
  rounds = 0
  compared = 0
  differing = 0
  queued = 0
  /** Repairs that waited when it was last looked. */
  waiting = 0

  constructor(deps: AntiEntropyDeps) {
    this.#deps = deps
  }

  /** Partitions that are still to be compared or looked into in the present round. */
  get partitionsLeft(): number {
    return this.#pending.size + this.#suspects.length
  }

  readonly step = async (term: Term): Promise<'more' | 'idle'> => {
    const { metadata } = this.#deps
    const [wanted, waiting] = await Promise.all([metadata.repairQueue.comparisonWanted(), metadata.countRepairs()])
    this.#notice(term, wanted)
    await this.#tellWhole(term)
    this.waiting = waiting
    if (this.partitionsLeft === 0 || this.waiting > queuedMax) return 'idle'
    if (this.#suspects.length > 0)
      await this.#lookInto(fewNames(this.#suspects, { namesMax, countMax: suspectsMax }), term.signal)
    else await this.#compareBlock(term.signal)
    return this.partitionsLeft > 0 ? 'more' : 'idle'
  }

  /** What has happened since the last step that makes a comparison worth while at once. */
  #notice(term: Term, wanted: string | undefined): void {
    const { view, now, roundMs, log } = this.#deps
    const { map } = view.current()
    const isDue = now() >= this.#nextRoundAt || wanted !== this.#wanted
    this.#wanted = wanted
    // While copies move to other owners, a round with each step of that would be too many.
    const isNewMap = map.epoch !== this.#epoch && map.previous === undefined
    if (term.token !== this.#term || isNewMap || isDue) {
      if (term.token !== this.#term) this.#forget()
      this.#term = term.token
      this.#epoch = map.epoch
      this.#nextRoundAt = now() + roundMs * (0.8 + 0.4 * Math.random())
      this.rounds += 1
      for (let partition = 0; partition < partitionCount; partition++) this.#pending.add(partition)
    }
    for (const [partition, at] of this.#later) {
      if (now() < at) continue
      this.#later.delete(partition)
      this.#pending.add(partition)
    }
    this.#noticeRecovering()
    const changed = new Set(map.shards.map(({ id }) => id).filter(id => this.#hasChanged(id)))
    if (changed.size === 0) return
    log.info({ shards: [...changed] }, 'shards are back or new: comparing what they hold')
    for (let partition = 0; partition < partitionCount; partition++) {
      if (
        view
          .current()
          .owners(partition)
          .some(owner => changed.has(owner))
      )
        this.#pending.add(partition)
    }
  }

  #noticeRecovering(): void {
    const { view, health, now } = this.#deps
    const hasNew = this.#recovering.notice(view.current(), shard => health.shardStatus(shard))
    if (hasNew) this.#recoveryPauseMs = recoveryMsMin
    if (!hasNew && (this.partitionsLeft > 0 || now() < this.#nextRecoveryAt)) return
    for (const partition of this.#recovering.partitions) this.#pending.add(partition)
    this.#nextRecoveryAt = now() + this.#recoveryPauseMs
    this.#recoveryPauseMs = Math.min(2 * this.#recoveryPauseMs, recoveryMsMax)
  }

  async #tellWhole({ token, signal }: Term): Promise<void> {
    for (const { shard, recovering } of this.#recovering.whole()) {
      const options = { fence: `${primaryRole}:${token}`, signal }
      try {
        await this.#deps.clients.ofShard(shard).requestJson('POST', wirePath.recovered(shard), { recovering }, options)
      } catch (error) {
        signal.throwIfAborted()
        this.#unanswered(shard, error)
      }
    }
  }

  #forget(): void {
    this.#recovering.forget()
    this.#suspects = []
    this.#pending.clear()
    this.#later.clear()
    this.#away.clear()
    this.#disks.clear()
  }

  /** Is it back from an absence, or another disk than before? */
  #hasChanged(shard: ShardId): boolean {
    if (!this.#usable(shard)) {
      this.#away.add(shard)
      return false
    }
    const isBack = this.#away.delete(shard)
    const disk = this.#deps.health.shardStatus(shard)?.disk
    const before = this.#disks.get(shard)
    if (disk !== undefined) this.#disks.set(shard, disk)
    return isBack || (before !== undefined && disk !== undefined && before !== disk)
  }

  #usable(shard: ShardId): boolean {
    const { health, view } = this.#deps
    return health.state(view.current().node(shard).id) !== 'down' && health.shardState(shard) !== 'failed'
  }

  async #compareBlock(signal: AbortSignal): Promise<void> {
    const first = Math.min(...this.#pending)
    const from = first - (first % blockSize)
    const view = this.#deps.view.current()
    const answers = await this.#ask({ from, count: blockSize }, signal)
    for (let partition = from; partition < from + blockSize; partition++) {
      if (!this.#pending.delete(partition)) continue
      const owners = ownersSoFar(view, partition)
      const suspicion = suspect(partition, owners, answers)
      if (!suspicion.references && owners.every(owner => answers.has(owner))) {
        this.#recovering.foundWhole(partition, owners)
      }
      // Its copies are on their way to new owners: the task `rebalance` compares them itself.
      if (view.previousOwners(partition) !== undefined) continue
      this.compared += 1
      if (!suspicion.blobs && !suspicion.references) continue
      this.differing += 1
      this.#suspects.push({ partition, ...suspicion })
    }
  }

  async #ask(range: { from: number; count: number }, signal: AbortSignal): Promise<Map<ShardId, ShardSummary>> {
    const shards = this.#deps.view.current().map.shards.map(({ id }) => id).filter(id => this.#usable(id)) // prettier-ignore
    const answers = new Map<ShardId, ShardSummary>()
    await atMost(askedAtOnce, shards, async shard => {
      try {
        const ask = () => summariesOf(this.#deps, shard, range, signal)
        answers.set(shard, await this.#deps.calm.step([shard], signal, ask))
      } catch (error) {
        this.#unanswered(shard, error)
      }
    })
    return answers
  }

  /** The others are compared without it; a round over everything comes soon. */
  #unanswered(shard: ShardId, error: unknown): void {
    if (!isHoldfastError(error)) throw error
    this.#deps.log.debug({ err: error, shard }, 'a shard did not say what it holds')
    this.#nextRoundAt = Math.min(this.#nextRoundAt, this.#deps.now() + retryMs)
  }

  async #lookInto(suspects: readonly Suspect[], signal: AbortSignal): Promise<void> {
    let queued = 0
    await atMost(suspectsAtOnce, suspects, async one => {
      try {
        for await (const repairs of this.#repairsFor(one, signal)) {
          await this.#deps.metadata.addRepairs(repairs)
          queued += repairs.length
        }
      } catch (error) {
        signal.throwIfAborted()
        if (!isHoldfastError(error) || isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
        this.#nextRoundAt = Math.min(this.#nextRoundAt, this.#deps.now() + retryMs)
      }
    })
    signal.throwIfAborted()
    this.queued += queued
    // Only now: a step that failed is repeated with the same ones, and what was queued already is merged with itself.
    this.#suspects.splice(0, suspects.length)
    if (queued > 0) {
      this.#deps.log.info({ repairs: queued, partitionsLeft: this.partitionsLeft }, 'differences queued')
    }
  }

  /** In pieces, so that no more than one is ever in memory beside the names. */
  async *#repairsFor(one: Suspect, signal: AbortSignal): AsyncGenerator<readonly NewRepair[]> {
    // A change of topology began since it was compared: from now on that is for the task `rebalance`.
    if (this.#deps.view.current().previousOwners(one.partition) !== undefined) return
    if (one.blobs) yield* this.#blobRepairs(one, signal)
    if (one.references) yield* this.#referenceRepairs(one.partition, signal)
  }

  /** Its writer may still be at it; if not, it is judged in a moment. */
  #isYoung(partition: number, ageMs: number): boolean {
    if (ageMs >= settledMs) return false
    this.#later.set(partition, this.#deps.now() + settledMs)
    return true
  }

  async *#blobRepairs({ partition, strays }: Suspect, signal: AbortSignal): AsyncGenerator<readonly NewRepair[]> {
    const view = this.#deps.view.current()
    const owners = view.owners(partition)
    // By a newer map than the comparison's a stray may have become an owner, or left the cluster.
    const asked = [...new Set([...owners, ...strays])].filter(shard => view.has(shard) && this.#usable(shard))
    const held = new Map<ShardId, ReadonlySet<string>>()
    const ask = async (shard: ShardId): Promise<void> => {
      const entries = await entriesOf(this.#deps, shard, partition, 'blobs', signal)
      held.set(shard, new Set(entries.map(({ key }) => key)))
    }
    await Promise.all(asked.map(ask))
    for (const chunk of chunksOf(missingBlobs(owners, held))) {
      const repairs: NewRepair[] = []
      const wanted = new Map(chunk.map(one => [one.key, one]))
      const digests = [...new Set(chunk.flatMap(({ key }) => parseDigest(key.slice(0, 64)) ?? []))]
      for (const blob of await this.#deps.metadata.inspectBlobs(digests)) {
        const found = wanted.get(`${blob.digest}.${blob.generation}`)
        // Other generations, and what no row names, are for the collectors of garbage.
        if (found === undefined || blob.partition !== partition) continue
        if (blob.state === 'purging' || this.#isYoung(partition, blob.ageMs)) continue
        repairs.push({ kind: 'blob', partition, blob, missing: found.missing, handoffs: found.handoffs })
      }
      yield repairs
    }
  }

  async *#referenceRepairs(partition: number, signal: AbortSignal): AsyncGenerator<readonly NewRepair[]> {
    const owners = this.#deps.view.current().owners(partition).filter(owner => this.#usable(owner)) // prettier-ignore
    const held = new Map<ShardId, ReadonlyMap<string, number>>()
    const ask = async (shard: ShardId): Promise<void> => {
      const entries = await entriesOf(this.#deps, shard, partition, 'references', signal)
      held.set(shard, new Map(entries.map(({ key, version = 0 }) => [key, version])))
    }
    await Promise.all(owners.map(ask))
    for (const chunk of chunksOf(differingReferences(held))) {
      const repairs: NewRepair[] = []
      const known = await this.#deps.metadata.inspectVersions(chunk.map(({ key }) => splitKey(key)))
      for (const [index, reference] of chunk.entries()) {
        const { key, versions } = reference
        const current = known[index] ?? (await this.#lastWord(partition, key, versions, signal))
        if (current === undefined || this.#isYoung(partition, current.ageMs)) continue
        const missing = behind(reference, current.version)
        if (missing.length > 0) {
          repairs.push({ kind: 'reference', partition, key, version: current.version, missing, handoffs: [] })
        }
      }
      yield repairs
    }
  }

  /** Of a path the database has forgotten, with its repository: only that it was deleted is worth spreading (I16). */
  async #lastWord(
    partition: number,
    key: string,
    versions: ReadonlyMap<ShardId, number>,
    signal: AbortSignal,
  ): Promise<{ version: number; ageMs: number } | undefined> {
    const [shard] = [...versions].reduce((newest, one) => (one[1] > newest[1] ? one : newest))
    const path = `${wirePath.references(shard, partition)}?key=${encodeURIComponent(key)}`
    const record = await this.#deps.clients.ofShard(shard).requestJson<ReferenceAnswer>('GET', path, undefined, { signal }) // prettier-ignore
    return record.op === 'delete' ? { version: record.version, ageMs: Infinity } : undefined
  }
}

function* chunksOf<Item>(items: readonly Item[]): Generator<readonly Item[]> {
  for (let at = 0; at < items.length; at += chunkSize) yield items.slice(at, at + chunkSize)
}
