/**
 * One record on its way to R shards: acknowledged when enough of them have it durably. Nobody waits long for a straggler,
 * and a shard that fails, or is silent while it is needed, is replaced by a handoff.
 *
 *     sent to R ──W durable──▶ grace (20 to 250 ms) ──▶ done, stragglers are 'missing'
 *        └──400 ms, W not reached──▶ a handoff for each silent one ──5.5 s──▶ QUORUM_NOT_REACHED
 *
 * Busy is told from frozen by whether the node answers anything: a busy cluster that sent handoffs for whatever is slow,
 * and left repairs behind, would never catch up again.
 */
import type { HoldfastError } from '../../shared/errors.ts'
import type { NodeId, ShardId } from '../../shared/ids.ts'
import { isNodeFailure } from './append-batcher.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import type { Copies, Leniency, WriteContext } from './write-context.ts'
import {
  quorumOf,
  reaches,
  replacementFor,
  spareTargets,
  type WritePlan,
  type WriteQuestion,
  type WriteTarget,
  type WritePlacement,
  zonesOf,
} from './write-plan.ts'

/** A straggler gets as long again as the write has taken, within these bounds; the full time if its node answers others. */
const graceMsMin = 20
const graceMsMax = 250
/** A node that answers nothing for so long, with something in flight, may be frozen. */
const silentMsMax = 300
/** How often it is looked for silent nodes while the quorum is not reached. */
const hedgeEveryMs = 400
/** I30 allows 6 s for a write with a hung node. */
const deadlineMs = 5_500

/**
 * Appends the frame to the partition's shards. Resolves when its quorum is durable. Rejects with QUORUM_NOT_REACHED,
 * INSUFFICIENT_STORAGE or OVERLOADED; single shards may have the record nevertheless. `placement`: by other owners than the newest map's.
 */
export function replicateRecord(
  context: WriteContext,
  kind: WriteQuestion['kind'],
  partition: number,
  frame: Buffer,
  placement?: WritePlacement,
): Promise<Copies> {
  // Not async: a refused plan throws, and becomes a rejection here.
  return new Promise((resolve, reject) => {
    const plan = context.plan(kind, partition, frame.length, placement)
    new RecordReplication(context, { kind, partition, frame, plan, placement }, resolve, reject).start()
  })
}

interface RecordWrite {
  readonly kind: WriteQuestion['kind']
  readonly partition: number
  readonly frame: Buffer
  readonly plan: WritePlan
  /** Other owners than those of the newest map. */
  readonly placement: WritePlacement | undefined
}

class RecordReplication {
  readonly #context: WriteContext
  readonly #write: RecordWrite
  readonly #resolve: (copies: Copies) => void
  readonly #reject: (error: HoldfastError) => void
  readonly #startedAt: number
  readonly #durable: WriteTarget[] = []
  readonly #pending: WriteTarget[] = []
  readonly #tried: ShardId[] = []
  readonly #failedNodes: NodeId[] = []
  readonly #hedged: WriteTarget[] = []
  readonly #errors: HoldfastError[] = []
  readonly #timer = new PatientTimer()
  #inGrace = false
  #settled = false

  constructor(
    context: WriteContext,
    write: RecordWrite,
    resolve: (copies: Copies) => void,
    reject: (error: HoldfastError) => void,
  ) {
    this.#context = context
    this.#write = write
    this.#resolve = resolve
    this.#reject = reject
    this.#startedAt = context.now()
  }

  start(): void {
    this.#timer.set(hedgeEveryMs, () => this.#hedge())
    for (const target of this.#write.plan.targets) this.#send(target)
  }

  #send(target: WriteTarget): void {
    this.#pending.push(target)
    this.#tried.push(target.shard)
    const { appender } = this.#context.uplink(target)
    appender.append(target.shard, this.#write.frame, error => this.#onDone(target, error))
  }

  #onDone(target: WriteTarget, error: HoldfastError | undefined): void {
    // A straggler that made it after all: repair will find the copy there.
    if (this.#settled) return
    this.#pending.splice(this.#pending.indexOf(target), 1)
    if (error === undefined) {
      this.#durable.push(target)
    } else {
      this.#errors.push(error)
      if (isNodeFailure(error)) this.#failedNodes.push(target.node)
      this.#replace(target, [...this.#durable, ...this.#pending])
    }
    this.#check()
  }

  #check(): void {
    const reached = reaches(this.#write.plan.quorum, this.#durable)
    if (this.#pending.length === 0) {
      if (reached || this.#reachesNow()) this.#succeed()
      else this.#fail()
    } else if (reached) {
      this.#startGrace()
    }
  }

  #startGrace(): void {
    if (this.#inGrace) return
    this.#inGrace = true
    const elapsedMs = this.#context.now() - this.#startedAt
    const busy = this.#pending.some(target => !this.#isSilent(target))
    const graceMs = busy ? graceMsMax : Math.min(graceMsMax, Math.max(graceMsMin, elapsedMs))
    this.#timer.set(graceMs, () => this.#succeed())
  }

  /** R of the owners it goes to: those from before a change of topology may be more or fewer. */
  get #replicas(): number {
    return (this.#write.placement ?? this.#context.placement).map.replicas
  }

  /** Sends to a spare in place of `lost`, unless `kept` are as many as were wanted. */
  #replace(lost: WriteTarget, kept: readonly WriteTarget[]): void {
    if (kept.length >= this.#replicas) return
    const spare = this.#spareFor(lost, kept, [])
    if (spare !== undefined) this.#send(spare)
  }

  /** On none of these nodes, nor where it was tried. What may be back but is not known to be is for writes that fail otherwise. */
  #spareFor(lost: WriteTarget, kept: readonly WriteTarget[], without: readonly WriteTarget[]): WriteTarget | undefined {
    const from = (leniency: Leniency): WriteTarget | undefined => {
      const spares = spareTargets(this.#question(leniency)).filter(
        ({ shard, node }) =>
          !this.#tried.includes(shard) &&
          !this.#failedNodes.includes(node) &&
          !without.some(target => target.node === node),
      )
      return replacementFor(lost, kept, spares)
    }
    return from('lenient') ?? (reaches(this.#write.plan.quorum, kept) ? undefined : from('hopeful'))
  }

  #question(leniency: Leniency = 'lenient'): WriteQuestion {
    const { kind, partition, frame, placement } = this.#write
    return this.#context.question(kind, partition, frame.length, leniency, placement)
  }

  #isSilent(target: WriteTarget): boolean {
    return this.#context.uplink(target).appender.silentMs > silentMsMax
  }

  /** The silent ones may be frozen: a handoff for each, once, beside them. */
  #hedge(): void {
    if (this.#context.now() - this.#startedAt > deadlineMs) return this.#expire()
    this.#timer.set(hedgeEveryMs, () => this.#hedge())
    const silent = this.#pending.filter(target => this.#isSilent(target))
    for (const lost of silent) {
      if (this.#hedged.includes(lost)) continue
      this.#hedged.push(lost)
      const kept = [...this.#durable, ...this.#pending.filter(target => !silent.includes(target))]
      if (kept.length >= this.#replicas) continue
      const spare = this.#spareFor(lost, kept, silent)
      if (spare !== undefined) this.#send(spare)
    }
  }

  #expire(): void {
    if (reaches(this.#write.plan.quorum, this.#durable) || this.#reachesNow()) this.#succeed()
    else this.#fail()
  }

  /** The second zone of the plan may be down by now: what counts is which zones could take a copy at this moment. */
  #reachesNow(): boolean {
    const { kind } = this.#write
    const zones = zonesOf([...this.#durable, ...this.#usableNow()])
    return reaches(quorumOf(kind, this.#replicas, zones), this.#durable)
  }

  #usableNow(): WriteTarget[] {
    const question = this.#question()
    const owners = this.#write.plan.targets.filter(target => question.writability(target) === 'ok')
    return [...owners, ...spareTargets(question)]
  }

  #settle(): void {
    this.#settled = true
    this.#timer.clear()
  }

  #succeed(): void {
    this.#settle()
    const { partition, placement } = this.#write
    this.#resolve(this.#context.copies(partition, this.#durable, placement))
  }

  #fail(): void {
    this.#settle()
    this.#reject(this.#context.failure(this.#write.partition, this.#durable.length, this.#errors))
  }
}
