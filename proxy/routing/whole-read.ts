import { hash } from 'node:crypto'
import type { HoldfastError } from '../../shared/errors.ts'
import type { BlobRead, ReadReceiver } from './node-reader.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import { digestMismatch, hedgeDelay, noteBadCopy, type ReadContext, startRead, unreachable } from './read-deps.ts'
import type { Replica, ReplicaSource } from './replica-source.ts'
import { probeSlow } from './slow-probe.ts'
import type { BlobLocation } from './types.ts'

/**
 * One blob read whole into memory, its digest checked. Starts with one replica; a slow first byte is hedged within the
 * budget, a silent second brings another replica in any case, a failure at once. The first good copy wins.
 */
export class WholeRead {
  readonly #context: ReadContext
  readonly #blob: BlobLocation
  readonly #source: ReplicaSource
  readonly #failures: HoldfastError[] = []
  readonly #attempts = new Set<WholeAttempt>()
  readonly #timer = new PatientTimer()
  #startedAt = 0
  #hedging = true
  #looking = false
  #rounds = 1
  #resolve: (body: Buffer) => void = () => {}
  #reject: (error: HoldfastError) => void = () => {}
  #over = false

  constructor(context: ReadContext, blob: BlobLocation) {
    this.#context = context
    this.#blob = blob
    this.#source = context.replicas.of(blob)
  }

  /** Rejects with REPLICAS_UNREACHABLE when owners, handoffs and a search of all nodes brought no good copy. */
  run(): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
      this.#startedAt = this.#context.now()
      const first = this.#launch()
      if (this.#source.slow.length > 0) probeSlow(this.#context, this.#blob, this.#source.slow)
      if (first === undefined) this.#lookFurther()
      else this.#arm(hedgeDelay(this.#source.expectedMs, this.#context.times))
    })
  }

  /** Only attempts call these. */
  delivered(attempt: WholeAttempt): void {
    this.#attempts.delete(attempt)
    if (this.#over) return
    this.#context.counters.bytes += attempt.body.length
    const found = hash('sha256', attempt.body)
    if (found !== this.#blob.digest) {
      this.#context.counters.corruptBodies += 1
      this.failed(attempt, digestMismatch(this.#blob, found))
      return
    }
    if (attempt.hedge) this.#context.counters.hedgesWon += 1
    this.#settle()
    this.#resolve(attempt.body)
  }

  failed(attempt: WholeAttempt, error: HoldfastError): void {
    this.#attempts.delete(attempt)
    if (this.#over) return
    this.#failures.push(error)
    noteBadCopy(this.#context, this.#blob, attempt.replica, error)
    this.#replace()
  }

  /** Asks the next replica; undefined when none is left. */
  #launch(hedge = false): Replica | undefined {
    const replica = this.#source.next()
    if (replica === undefined) return undefined
    const attempt = new WholeAttempt(this, this.#context, replica, this.#blob, hedge)
    this.#attempts.add(attempt)
    return replica
  }

  #replace(): void {
    const replica = this.#launch()
    if (replica !== undefined) {
      this.#context.counters.retries += 1
      this.#context.budget.forced()
    } else if (this.#attempts.size === 0) this.#lookFurther()
  }

  #arm(ms: number): void {
    this.#timer.set(ms, () => this.#tick())
  }

  #tick(): void {
    const { times, budget, counters, now } = this.#context
    const elapsed = now() - this.#startedAt
    if (this.#hedging && elapsed < times.stallMs) {
      this.#hedging = false
      const silent = [...this.#attempts].every(({ read }) => read.received === 0)
      if (silent && this.#attempts.size > 0 && budget.tryHedge() && this.#launch(true) !== undefined)
        counters.hedges += 1
      this.#arm(times.stallMs - elapsed)
      return
    }
    this.#hedging = false
    if (elapsed >= times.deadlineMs) {
      this.#giveUp()
      return
    }
    let quiet = Infinity
    for (const attempt of this.#attempts) {
      const silence = attempt.silence(now(), times.stallMs)
      if (silence >= times.dropMs) this.#drop(attempt)
      else quiet = Math.min(quiet, silence)
    }
    if (quiet < times.stallMs) {
      this.#arm(times.stallMs - quiet)
      return
    }
    if (!this.#looking) {
      counters.stalls += 1
      this.#replace()
    }
    if (!this.#over) this.#arm(times.stallMs)
  }

  #drop(attempt: WholeAttempt): void {
    attempt.read.abort()
    this.#attempts.delete(attempt)
  }

  /** All known replicas failed: whoever holds the blob is asked for, then those that broke off once more, within the budget. */
  #lookFurther(): void {
    if (this.#looking) return
    this.#looking = true
    void this.#source.search().then(found => {
      this.#looking = false
      if (this.#over) return
      if (!found && !this.#mayRepeat()) {
        this.#giveUp()
        return
      }
      if (!found) this.#source.again()
      this.#replace()
    })
  }

  #mayRepeat(): boolean {
    if (this.#rounds >= 2 || !this.#failures.some(({ code }) => code === 'NODE_UNREACHABLE')) return false
    this.#rounds += 1
    return this.#context.budget.tryRetry()
  }

  #giveUp(): void {
    this.#settle()
    this.#context.counters.unreachable += 1
    this.#reject(unreachable(this.#blob, this.#failures))
  }

  #settle(): void {
    this.#over = true
    this.#timer.clear()
    for (const attempt of this.#attempts) attempt.read.abort()
    this.#attempts.clear()
  }
}

class WholeAttempt implements ReadReceiver {
  readonly replica: Replica
  readonly hedge: boolean
  readonly body: Buffer
  readonly read: BlobRead
  readonly #owner: WholeRead
  #seenBytes = 0
  #seenAt: number
  #stalled = false

  constructor(owner: WholeRead, context: ReadContext, replica: Replica, blob: BlobLocation, hedge: boolean) {
    this.#owner = owner
    this.replica = replica
    this.hedge = hedge
    // Not from Node's pool: a cached kilobyte would keep eight alive.
    this.body = Buffer.allocUnsafeSlow(blob.bytes)
    this.#seenAt = context.now()
    this.read = startRead(context, replica, blob, undefined, this.body, this)
  }

  /** Milliseconds since bytes came, as far as looks tell. Too much of it is reported, once, as a failure of the node. */
  silence(now: number, stallMs: number): number {
    const { received } = this.read
    if (received > this.#seenBytes) {
      this.#seenBytes = received
      this.#seenAt = now
    }
    const silence = now - this.#seenAt
    if (silence >= stallMs && !this.#stalled) {
      this.#stalled = true
      this.replica.client.report('failed')
    }
    return silence
  }

  onEnd(): void {
    this.#owner.delivered(this)
  }

  onError(error: HoldfastError): void {
    this.#owner.failed(this, error)
  }
}
