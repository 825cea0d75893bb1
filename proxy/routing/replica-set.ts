import { HoldfastError } from '../../shared/errors.ts'
import type { NodeId, ShardId } from '../../shared/ids.ts'
import { isNodeFailure } from './append-batcher.ts'
import { ReplicaUpload } from './replica-upload.ts'
import type { Leniency, WriteContext } from './write-context.ts'
import {
  quorumOf,
  type Quorum,
  reaches,
  replacementFor,
  spareTargets,
  type WriteQuestion,
  type WriteTarget,
  zonesOf,
} from './write-plan.ts'

/** Most a replica may be behind the client: what it holds of the proxy's memory. */
export const bufferBytesMax = 4 * 1024 * 1024
/** The client is read while enough replicas are at most so far behind. */
const windowBytes = 1024 * 1024
/** A replica that has been more than its buffer behind for so long is dropped, if the others suffice. */
const laggingMsMax = 5_000
/**
 * How long a replica may take nothing at all: if its node does not answer health checks, it is rather frozen than slow, and
 * I30 leaves 6 s, with the joiner of one that is needed. If it does, its disk is busy, and a joiner would be no faster.
 */
const silentMsMax = { frozen: { dispensable: 3_000, needed: 4_000 }, lively: { dispensable: 5_000, needed: 15_000 } }
/** A flush of a large body to a slow disk takes its time; a node that is down is noticed by its health much earlier. */
const answerMsMax = 30_000

const clockStepMsMax = 500

export interface ReplicaSetOptions {
  readonly expectedBytes: number | undefined
  readonly requestId: string
}

/** The replicas of one upload: who is in, who has left and why, who could still join. */
export class ReplicaSet {
  readonly #context: WriteContext
  readonly #options: ReplicaSetOptions
  /** With the run of their nodes: one that was restarted since may be tried again. */
  readonly #tried = new Map<ShardId, string | undefined>()
  /** Nodes that were down when they were asked, since nobody else was left: that they are is no news. */
  readonly #hopedFor = new Set<NodeId>()
  /** Their other shards need not be tried either. */
  readonly #failedNodes = new Map<NodeId, string | undefined>()
  readonly #errors: HoldfastError[] = []
  #members: ReplicaUpload[] = []
  #wake: (() => void) | undefined
  #clockMs = 0
  #readAt: number
  #partition: number
  quorum: Quorum
  owners: readonly ShardId[]

  constructor(context: WriteContext, partition: number, quorum: Quorum, options: ReplicaSetOptions) {
    this.#context = context
    this.#options = options
    this.#partition = partition
    this.#readAt = context.now()
    this.quorum = quorum
    this.owners = context.placement.owners(partition)
  }

  /**
   * Monotonic milliseconds that only run while somebody looks: an absence of this process (or of the client) counts for
   * half a second, so that replicas are not blamed for it. All patience with replicas is measured by it.
   */
  now(): number {
    const now = this.#context.now()
    this.#clockMs += Math.min(clockStepMsMax, now - this.#readAt)
    this.#readAt = now
    return this.#clockMs
  }

  /** Those that have not failed. */
  get live(): readonly ReplicaUpload[] {
    return this.#members.filter(replica => !replica.failed)
  }

  /** Why replicas left or could not join. */
  get errors(): readonly HoldfastError[] {
    return [...this.#errors, ...this.#members.flatMap(({ failure }) => failure ?? [])]
  }

  /** Begins an upload to the shard; it is a member only after `add`. */
  open(target: WriteTarget, fresh = false): ReplicaUpload {
    const run = this.#context.runOf(target.node)
    this.#tried.set(target.shard, run)
    if (this.#context.isDown(target.node)) this.#hopedFor.add(target.node)
    const options = {
      ...this.#options,
      now: () => this.now(),
      onChange: () => this.wake(),
      onUndiscarded: () => this.#context.discards.add({ target, path: replica.path }),
      onFail: (error: HoldfastError) => {
        this.#context.counters.droppedReplicas += 1
        if (isNodeFailure(error)) this.#failedNodes.set(target.node, run)
      },
    }
    const replica: ReplicaUpload = new ReplicaUpload(target, this.#context.uplink(target), options, fresh)
    return replica
  }

  /** Its node has gone down since it was opened. */
  isGone({ target: { node } }: ReplicaUpload): boolean {
    return this.#context.isDown(node) && !this.#hopedFor.has(node)
  }

  add(replica: ReplicaUpload): void {
    this.#members.push(replica)
  }

  /** Takes a member out without failing it. */
  remove(replica: ReplicaUpload): void {
    this.#members = this.#members.filter(member => member !== replica)
  }

  /** From now on for this partition: its owners, its spares, its quorum. */
  retarget(partition: number, quorum: Quorum): void {
    this.#partition = partition
    this.#tried.clear()
    this.#failedNodes.clear()
    this.owners = this.#context.placement.owners(partition)
    this.quorum = quorum
  }

  /** Would these copies do? */
  suffices(replicas: readonly ReplicaUpload[]): boolean {
    return reaches(
      this.quorum,
      replicas.map(({ target }) => target),
    )
  }

  /** The next shard that could stand in, none twice in the same life of its node; beside `kept` (live members unless told). */
  nextSpare(kept: readonly ReplicaUpload[] = this.live): WriteTarget | undefined {
    const lost = this.#members.findLast(replica => replica.failed && this.owners.includes(replica.target.shard))
    const live = this.live
    const from = (leniency: Leniency): WriteTarget | undefined => {
      const spares = spareTargets(this.#question(leniency)).filter(
        target => !this.#wasTried(target) && !live.some(({ target: { node } }) => node === target.node),
      )
      return replacementFor(
        lost?.target,
        kept.map(({ target }) => target),
        spares,
      )
    }
    // What may be back but is not known to be is for writes that fail otherwise.
    return from('lenient') ?? (this.suffices(kept) ? undefined : from('hopeful'))
  }

  #wasTried({ shard, node }: WriteTarget): boolean {
    const run = this.#context.runOf(node)
    const isSame = <Key>(runs: ReadonlyMap<Key, string | undefined>, key: Key): boolean =>
      runs.has(key) && runs.get(key) === run
    return isSame(this.#tried, shard) || isSame(this.#failedNodes, node)
  }

  /** A shard that was lost only because a kept connection had just been closed. It leaves the members. */
  takeStale(): WriteTarget | undefined {
    const replica = this.#members.find(({ stale }) => stale)
    if (replica === undefined) return undefined
    this.remove(replica)
    return replica.target
  }

  /** The second zone may be down by now: asks for what is possible at this moment. True if `replicas` do then. */
  relax(replicas: readonly ReplicaUpload[]): boolean {
    const question = this.#question()
    const copies = replicas.map(({ target }) => target)
    const usable = this.#members.map(({ target }) => target).filter(target => question.writability(target) === 'ok')
    const zones = zonesOf([...copies, ...usable, ...spareTargets(question)])
    const quorum = quorumOf('blob', question.placement.map.replicas, zones)
    if (!reaches(quorum, copies)) return false
    this.quorum = quorum
    return true
  }

  /** May another chunk be taken from the client? The slowest of the best W decides, and nobody's buffer may overflow. */
  hasRoom(): boolean {
    const behind = this.live.map(replica => replica.behind).sort((a, b) => a - b)
    const last = behind[this.quorum.copiesMin - 1]
    return last !== undefined && last <= windowBytes && (behind.at(-1) ?? 0) <= bufferBytesMax
  }

  /** Is one of these, that are waited for, rather frozen than slow? */
  anyFrozen(waitedFor: readonly ReplicaUpload[]): boolean {
    return waitedFor.some(({ target }) => !this.#context.isLively(target))
  }

  /** Drops replicas that hold up the others, whose node is down, or that answered something else than was sent. */
  police(expected?: { readonly bytes: number; readonly crc: number; readonly sinceMs: number }): void {
    const now = this.now()
    for (const replica of this.live) {
      const reason = this.#verdict(replica, now) ?? (expected && this.#answerVerdict(replica, now, expected))
      if (reason !== undefined) replica.fail(reason)
    }
  }

  /** Resolves at the next change of any replica, or after `ms`. */
  changed(ms: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(() => this.wake(), ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  wake(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }

  /** Keeps the reason of a joiner that failed before it was a member. */
  noteFailure(error: HoldfastError | undefined): void {
    if (error !== undefined) this.#errors.push(error)
  }

  failure(): HoldfastError {
    return this.#context.failure(this.#partition, this.live.length, this.errors)
  }

  /** Drops what all members have; never rejects. */
  async discardAll(): Promise<void> {
    // Failed ones have been told when they failed.
    const live = this.live
    this.#members = []
    await Promise.all(live.map(replica => replica.discard()))
  }

  #question(leniency: Leniency = 'lenient'): WriteQuestion {
    return this.#context.question('blob', this.#partition, this.#options.expectedBytes ?? 0, leniency)
  }

  #verdict(replica: ReplicaUpload, now: number): HoldfastError | undefined {
    if (replica.behind > bufferBytesMax) replica.laggingSince ??= now
    else if (replica.behind <= bufferBytesMax / 2) replica.laggingSince = undefined
    const idleMs = now - replica.progressAt
    const waiting = replica.behind > 0 || replica.awaitingAnswer
    if (waiting && idleMs > 1_000 && this.isGone(replica)) return left(replica, 'node is down')
    const silentMs = replica.behind > 0 ? idleMs : 0
    const laggingMs = replica.laggingSince === undefined ? 0 : now - replica.laggingSince
    if (silentMs <= silentMsMax.frozen.dispensable && laggingMs <= laggingMsMax) return undefined
    const dispensable = this.suffices(this.live.filter(other => other !== replica))
    const limits = this.#context.isLively(replica.target) ? silentMsMax.lively : silentMsMax.frozen
    if (silentMs > (dispensable ? limits.dispensable : limits.needed)) return left(replica, 'TIMEOUT')
    // Slow is not ill: the node's health hears nothing of it.
    const facts = { shard: replica.target.shard, behind: replica.behind }
    return laggingMs > laggingMsMax && dispensable ? new HoldfastError('OVERLOADED', 'too slow', facts) : undefined
  }

  #answerVerdict(
    replica: ReplicaUpload,
    now: number,
    expected: { readonly bytes: number; readonly crc: number; readonly sinceMs: number },
  ): HoldfastError | undefined {
    const { answer, target } = replica
    if (answer === undefined) return now - expected.sinceMs > answerMsMax ? left(replica, 'TIMEOUT') : undefined
    if (answer.bytes === expected.bytes && answer.crc === expected.crc) return undefined
    const data = { shard: target.shard, expected: expected.bytes, found: answer.bytes }
    return new HoldfastError('CHECKSUM_MISMATCH', 'the shard received other bytes than were sent', data)
  }
}

function left({ target }: ReplicaUpload, reason: string): HoldfastError {
  const data = { node: target.node, shard: target.shard, reason }
  return new HoldfastError('NODE_UNREACHABLE', 'replica stopped taking bytes', data)
}
