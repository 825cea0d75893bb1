/**
 * A large body on its way to R shards at once. It is read once; each replica has a bounded buffer; the client is read as
 * fast as the best W replicas take it. One that dies, freezes or lags is left behind, and nobody notices while W remain.
 * When they do not, another shard joins late: it gets what has gone by from a survivor, and the last 1 MiB from memory,
 * while the client is held. A body of up to 1 MiB is thus in memory whole, until it is committed: it depends on no survivor.
 */
import { HoldfastError } from '../../shared/errors.ts'
import { BodyDigests, type BodyFacts } from './body-digests.ts'
import { copyInto } from './late-join.ts'
import { ReplicaSet } from './replica-set.ts'
import { ReplicatedUpload } from './staged-upload.ts'
import type { StagedUpload } from './types.ts'
import type { WriteContext } from './write-context.ts'
import type { WriteTarget } from './write-plan.ts'

/**
 * The latest bytes are kept: nodes write in steps of 1 MiB, so a survivor cannot yet hand these over, and a shard that refuses
 * early costs nothing but another connection.
 */
const recentBytesMin = 1024 * 1024
const tickMs = 250
/** When the body is complete and a needed replica does not answer, another one is filled beside it: see `anyFrozen`. */
const hedgeAfterMs = { frozen: 3_000, lively: 10_000 }

export interface FanoutOptions {
  readonly partition: number
  readonly expectedBytes: number | undefined
  readonly bytesMax: number | undefined
  readonly signal: AbortSignal
  readonly requestId: string
}

/** Stages a body; see BlobWriter.stage. */
export async function stageUpload(
  context: WriteContext,
  body: AsyncIterable<Buffer>,
  options: FanoutOptions,
): Promise<StagedUpload> {
  const plan = context.plan('blob', options.partition, options.expectedBytes ?? 0)
  const iterator = body[Symbol.asyncIterator]()
  const replicas = new ReplicaSet(context, options.partition, plan.quorum, options)
  try {
    const fanout = new UploadFanout(context, replicas, options)
    const facts = await fanout.run(plan.targets, iterator)
    return new ReplicatedUpload(context, replicas, options, { facts, whole: fanout.whole })
  } catch (error) {
    // Not awaited: a generator that is waiting for its client returns only when that client does something.
    void Promise.resolve(iterator.return?.()).catch(() => undefined)
    await replicas.discardAll()
    throw error
  }
}

class UploadFanout {
  readonly #context: WriteContext
  readonly #replicas: ReplicaSet
  readonly #options: FanoutOptions
  readonly #digests = new BodyDigests()
  readonly #recent: Buffer[] = []
  #recentBytes = 0
  #wanted = 0
  #ended = false

  constructor(context: WriteContext, replicas: ReplicaSet, options: FanoutOptions) {
    this.#context = context
    this.#replicas = replicas
    this.#options = options
  }

  async run(targets: readonly WriteTarget[], body: AsyncIterator<Buffer>): Promise<BodyFacts> {
    this.#wanted = targets.length
    // A kept connection may turn out closed only when the start of a longer body is no longer at hand.
    const fresh = (this.#options.expectedBytes ?? Infinity) > recentBytesMin
    for (const target of targets) this.#replicas.add(this.#replicas.open(target, fresh))
    for (;;) {
      await this.#room()
      const next = await this.#next(body)
      if (next.done === true) break
      this.#take(next.value)
    }
    return this.#finish()
  }

  /** The body so far, if all of it is still in memory. */
  get whole(): readonly Buffer[] | undefined {
    return this.#goneBytes === 0 ? this.#recent : undefined
  }

  /** The next chunk, or the signal's reason. One promise for each chunk: racing a long-lived one would collect reactions. */
  #next(body: AsyncIterator<Buffer>): Promise<IteratorResult<Buffer>> {
    const { signal } = this.#options
    return new Promise((resolve, reject) => {
      signal.throwIfAborted()
      const leave = (): void => reject(signal.reason as Error)
      signal.addEventListener('abort', leave, { once: true })
      body
        .next()
        .then(resolve, reject)
        .finally(() => signal.removeEventListener('abort', leave))
    })
  }

  #take(chunk: Buffer): void {
    const { bytesMax, expectedBytes } = this.#options
    this.#digests.update(chunk)
    const { bytes } = this.#digests
    if (bytesMax !== undefined && bytes > bytesMax) throw new HoldfastError('TOO_LARGE', 'body too large', { bytesMax })
    if (expectedBytes !== undefined && bytes > expectedBytes) throw lengthMismatch(expectedBytes, bytes)
    this.#remember(chunk)
    for (const replica of this.#replicas.live) replica.write(chunk)
  }

  #remember(chunk: Buffer): void {
    this.#recent.push(chunk)
    this.#recentBytes += chunk.length
    for (;;) {
      const oldestBytes = this.#recent[0]?.length ?? 0
      if (this.#recentBytes - oldestBytes < recentBytesMin) return
      this.#recent.shift()
      this.#recentBytes -= oldestBytes
    }
  }

  /** Bytes that are no longer at hand. */
  get #goneBytes(): number {
    return this.#digests.bytes - this.#recentBytes
  }

  /** Resolves when there are enough replicas and another chunk may be taken. */
  async #room(): Promise<void> {
    for (;;) {
      this.#options.signal.throwIfAborted()
      this.#replicas.police()
      if (this.#lacksReplicas()) await this.#fillUp()
      if (this.#replicas.hasRoom()) return
      await this.#replicas.changed(tickMs)
    }
  }

  #lacksReplicas(): boolean {
    const { live } = this.#replicas
    return !this.#replicas.suffices(live) || (this.#goneBytes === 0 && live.length < this.#wanted)
  }

  /** Lets shards join until there are enough; as many as at the start while that costs only memory. */
  async #fillUp(): Promise<void> {
    while (this.#lacksReplicas()) {
      const stale = this.#goneBytes === 0 ? this.#replicas.takeStale() : undefined
      const target = stale ?? this.#replicas.nextSpare()
      if (target !== undefined) {
        await this.#join(target, stale !== undefined)
        continue
      }
      const { live } = this.#replicas
      if (!this.#replicas.suffices(live) && !this.#replicas.relax(live)) throw this.#replicas.failure()
      this.#wanted = live.length
    }
  }

  async #join(target: WriteTarget, again: boolean): Promise<void> {
    // Not over a kept connection, which may turn out closed: nothing is tried twice in one life of its node.
    const replica = this.#replicas.open(target, true)
    if (!(await this.#copy(replica))) {
      this.#replicas.noteFailure(replica.failure)
      return
    }
    for (const chunk of this.#recent) replica.write(chunk)
    if (!again) this.#context.counters.lateJoins += 1
    this.#replicas.add(replica)
    if (this.#ended) replica.end()
  }

  async #copy(replica: ReturnType<ReplicaSet['open']>): Promise<boolean> {
    try {
      return await copyInto(replica, {
        bytes: this.#goneBytes,
        sources: () => this.#replicas.live,
        now: () => this.#replicas.now(),
        isLively: target => this.#context.isLively(target),
        changed: ms => this.#replicas.changed(ms),
        signal: this.#options.signal,
      })
    } catch (error) {
      await replica.discard()
      throw error
    }
  }

  /** Resolves when a quorum of shards has the whole body on disk, with the bytes we read. */
  async #finish(): Promise<BodyFacts> {
    const { expectedBytes } = this.#options
    const facts = this.#digests.finish()
    if (expectedBytes !== undefined && facts.bytes !== expectedBytes) throw lengthMismatch(expectedBytes, facts.bytes)
    this.#ended = true
    for (const replica of this.#replicas.live) replica.end()
    const expected = { bytes: facts.bytes, crc: facts.crc, sinceMs: this.#replicas.now() }
    let hedged = false
    for (;;) {
      this.#options.signal.throwIfAborted()
      this.#replicas.police(expected)
      const answered = this.#replicas.live.filter(({ answer }) => answer !== undefined)
      if (this.#replicas.suffices(answered)) return facts
      if (this.#lacksReplicas()) {
        await this.#fillUp()
      } else if (!hedged && answered.length > 0 && this.#isLate(expected.sinceMs)) {
        hedged = true
        const spare = this.#replicas.nextSpare(answered)
        if (spare !== undefined) await this.#join(spare, false)
      } else {
        await this.#replicas.changed(tickMs)
      }
    }
  }

  #isLate(sinceMs: number): boolean {
    const silent = this.#replicas.live.filter(({ answer }) => answer === undefined)
    const limitMs = this.#replicas.anyFrozen(silent) ? hedgeAfterMs.frozen : hedgeAfterMs.lively
    return this.#replicas.now() - sinceMs > limitMs
  }
}

function lengthMismatch(expected: number, found: number): HoldfastError {
  return new HoldfastError('LENGTH_MISMATCH', `the body has ${found} bytes, ${expected} were declared`, {
    expected,
    found,
  })
}
