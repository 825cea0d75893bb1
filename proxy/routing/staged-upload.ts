import { HoldfastError, toHoldfastError } from '../../shared/errors.ts'
import { type Digest, type Generation, newGeneration } from '../../shared/ids.ts'
import { type BlobKey, type CommitRequest, wirePath } from '../../shared/wire.ts'
import type { BodyFacts } from './body-digests.ts'
import { type ByteSource, copyInto } from './late-join.ts'
import type { ReplicaSet } from './replica-set.ts'
import type { ReplicaUpload } from './replica-upload.ts'
import type { StagedUpload, WrittenBlob } from './types.ts'
import type { Copies, WriteContext } from './write-context.ts'
import type { WriteTarget } from './write-plan.ts'

/** A straggler gets as long again as the commit has taken, within these bounds. */
const graceMsMin = 250
const graceMsMax = 2_000
const tickMs = 250
const commitTimeoutMs = 15_000
/** A needed replica that is silent for so long gets another one beside it: see `anyFrozen`. */
const hedgeAfterMs = { frozen: 2_000, lively: 8_000 }

/** What was read of the client. */
export interface ReceivedBody {
  readonly facts: BodyFacts
  /** All of it, if it is small enough to be still in memory: another replica then needs nobody's bytes. */
  readonly whole: readonly Buffer[] | undefined
}

/** An upload whose bytes W shards have on disk. */
export class ReplicatedUpload implements StagedUpload {
  readonly digest: Digest
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
  readonly #context: WriteContext
  readonly #replicas: ReplicaSet
  readonly #facts: BodyFacts
  readonly #whole: readonly Buffer[] | undefined
  #partition: number
  /** Where the bytes are durable under a generation: a second commit copies from there. */
  #blobs: readonly ByteSource[] = []
  #attempts = 0

  constructor(
    context: WriteContext,
    replicas: ReplicaSet,
    { partition }: { partition: number },
    { facts, whole }: ReceivedBody,
  ) {
    this.digest = facts.digest
    this.bytes = facts.bytes
    this.md5 = facts.md5
    this.sha1 = facts.sha1
    this.#context = context
    this.#replicas = replicas
    this.#partition = partition
    this.#facts = facts
    this.#whole = whole
  }

  async commit(under?: { readonly generation: Generation; readonly partition: number }): Promise<WrittenBlob> {
    const generation = under?.generation ?? newGeneration()
    const partition = under?.partition ?? this.#partition
    const key = { digest: this.digest, generation, partition }
    try {
      if (partition !== this.#partition || this.#attempts > 0) await this.#moveTo(partition)
      this.#attempts += 1
      const copies = await this.#commitAll(key)
      return { ...key, bytes: this.bytes, md5: this.md5, sha1: this.sha1, ...copies }
    } catch (error) {
      await this.#replicas.discardAll()
      throw error
    }
  }

  async abort(): Promise<void> {
    await this.#replicas.discardAll()
  }

  /** Fills the shards that belong to another partition, or those of the same one again, from the copies there are. */
  async #moveTo(partition: number): Promise<void> {
    const plan = this.#context.plan('blob', partition, this.bytes)
    const before = this.#replicas.live
    this.#replicas.retarget(partition, plan.quorum)
    this.#partition = partition
    for (const replica of before) this.#replicas.remove(replica)
    const sources = (): ByteSource[] => [...before.filter(({ failed }) => !failed), ...this.#blobs]
    try {
      for (const target of plan.targets) {
        const staged = before.find(replica => replica.target.shard === target.shard)
        if (staged !== undefined) this.#replicas.add(staged)
        else await this.#fill(target, sources)
      }
    } finally {
      const unused = before.filter(replica => !this.#replicas.live.includes(replica))
      await Promise.all(unused.map(replica => replica.discard()))
    }
  }

  /** Has one more shard take the whole body. Rejects with QUORUM_NOT_REACHED when nobody has it any more. */
  async #fill(target: WriteTarget, sources: () => readonly ByteSource[]): Promise<void> {
    // Not over a kept connection, which may turn out closed: nothing is tried twice in one life of its node.
    const replica = this.#replicas.open(target, true)
    if (this.#whole !== undefined) for (const chunk of this.#whole) replica.write(chunk)
    else if (!(await this.#copy(replica, sources))) return this.#replicas.noteFailure(replica.failure)
    this.#replicas.add(replica)
    replica.end()
  }

  /** From the shards that have the body; false when it failed, and is dropped. */
  async #copy(replica: ReplicaUpload, sources: () => readonly ByteSource[]): Promise<boolean> {
    const changed = (ms: number): Promise<void> => this.#replicas.changed(ms)
    // The client's signal does not matter any more: the bytes are here, and the commit decides.
    const { signal } = new AbortController()
    const now = (): number => this.#replicas.now()
    const isLively = (target: WriteTarget): boolean => this.#context.isLively(target)
    const options = { bytes: this.bytes, sources, now, isLively, changed, signal }
    let filled = false
    try {
      filled = await copyInto(replica, options)
    } finally {
      if (!filled) await replica.discard()
    }
    return filled
  }

  async #commitAll(key: BlobKey): Promise<Copies> {
    const run = new CommitRun(this.#replicas, this.#facts, key)
    const startedAt = this.#replicas.now()
    const expected = { ...this.#facts, sinceMs: startedAt }
    let reachedAt: number | undefined
    let hedged = false
    for (;;) {
      this.#replicas.police(expected)
      run.ask()
      const now = this.#replicas.now()
      if (this.#replicas.suffices(run.committed)) {
        reachedAt ??= now
        const graceMs = Math.min(graceMsMax, Math.max(graceMsMin, reachedAt - startedAt))
        if (run.pending.length === 0 || now - reachedAt >= graceMs) break
        await this.#replicas.changed(Math.min(tickMs, graceMs - (now - reachedAt)))
        continue
      }
      const limitMs = this.#replicas.anyFrozen(run.pending) ? hedgeAfterMs.frozen : hedgeAfterMs.lively
      const late: boolean = now - startedAt > limitMs
      if ((late && !hedged) || !this.#replicas.suffices(this.#replicas.live)) {
        hedged ||= late
        if (await this.#joinAnother(run)) continue
        const { live } = this.#replicas
        if (!this.#replicas.suffices(live) && !this.#replicas.relax(live)) throw this.#replicas.failure()
      }
      await this.#replicas.changed(tickMs)
    }
    return this.#settle(run)
  }

  /** False: no shard is left that could join. */
  async #joinAnother(run: CommitRun): Promise<boolean> {
    const spare = this.#replicas.nextSpare(run.committed.length > 0 ? run.committed : undefined)
    if (spare === undefined) return false
    this.#context.counters.lateJoins += 1
    await this.#fill(spare, () => [...run.sources, ...this.#blobs])
    return true
  }

  #settle(run: CommitRun): Copies {
    this.#blobs = run.blobs
    const committed = run.committed.map(({ target }) => target)
    for (const replica of this.#replicas.live) {
      this.#replicas.remove(replica)
      // One that was asked may still make it, and does no harm; one that was not is told to forget the bytes.
      if (!run.asked(replica)) void replica.discard()
    }
    return this.#context.copies(this.#partition, committed)
  }
}

const placeOf = ({ uplink, target }: ReplicaUpload): Pick<ByteSource, 'uplink' | 'target'> => ({ uplink, target })

/** Asks each replica that has all bytes to make them the blob `key`. */
class CommitRun {
  readonly #replicas: ReplicaSet
  readonly #request: CommitRequest
  readonly #path: (replica: ReplicaUpload) => string
  readonly #asked = new Set<ReplicaUpload>()
  readonly committed: ReplicaUpload[] = []

  constructor(replicas: ReplicaSet, facts: BodyFacts, key: BlobKey) {
    this.#replicas = replicas
    this.#request = { ...key, bytes: facts.bytes, blockCrcs: facts.blockCrcs.toString('base64') }
    this.#path = ({ target }) => wirePath.blob(target.shard, key.partition, key.digest, key.generation)
  }

  /** Members that may still become copies. */
  get pending(): readonly ReplicaUpload[] {
    return this.#replicas.live.filter(replica => !this.committed.includes(replica))
  }

  get blobs(): readonly ByteSource[] {
    return this.committed.map(replica => ({ ...placeOf(replica), path: this.#path(replica) }))
  }

  /** Whoever has the bytes, or will. */
  get sources(): readonly ByteSource[] {
    const staged = this.pending.map(replica => {
      return { ...placeOf(replica), path: replica.path, committing: this.#asked.has(replica) }
    })
    return [...this.blobs, ...staged]
  }

  asked(replica: ReplicaUpload): boolean {
    return this.#asked.has(replica)
  }

  /** Asks those that have become ready, and gives those up whose node is down by now, unless nobody else has the bytes. */
  ask(): void {
    for (const replica of this.pending) {
      const { node, shard } = replica.target
      if (replica.answer === undefined) continue
      if (!this.#asked.has(replica)) {
        this.#asked.add(replica)
        void this.#commit(replica)
      } else if (this.#replicas.isGone(replica) && this.sources.some(({ path }) => path !== replica.path)) {
        replica.fail(new HoldfastError('NODE_UNREACHABLE', 'node is down', { node, shard }))
      }
    }
  }

  async #commit(replica: ReplicaUpload): Promise<void> {
    const path = wirePath.commit(replica.target.shard, replica.id)
    try {
      const options = { timeoutMs: commitTimeoutMs, repeatable: true }
      await replica.uplink.client.requestJson('POST', path, this.#request, options)
      if (!replica.failed) this.committed.push(replica)
    } catch (error) {
      replica.fail(toHoldfastError(error))
    }
    this.#replicas.wake()
  }
}
