/**
 * One blob, or a part of it, streamed to a client. The stream has a position; attempts deliver bytes from a position on. Several
 * may run at once after a silence, but only one is *active*: the first to deliver at the position takes the stream over and
 * the others are dropped, so no byte is ever written twice. Memory: two buffers of each attempt and the held-back tail.
 */
import assert from 'node:assert/strict'
import { createHash, type Hash } from 'node:crypto'
import type { HoldfastError } from '../../shared/errors.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import { digestMismatch, hedgeDelay, noteBadCopy, type ReadContext, unreachable } from './read-deps.ts'
import type { Replica, ReplicaSource } from './replica-source.ts'
import { probeSlow } from './slow-probe.ts'
import { StreamAttempt, type StreamOwner } from './stream-attempt.ts'
import type { BlobLocation, ByteRange, ByteSink } from './types.ts'

/** Held back until the digest matches: without it no client can take what it has for complete. */
const tailBytesMax = 256 * 1024
const backoffMs = [100, 200, 400, 800, 1_600] as const

export interface StreamOptions {
  readonly onStart: () => void
  readonly signal: AbortSignal
}

export class StreamRead implements StreamOwner {
  readonly #context: ReadContext
  readonly #blob: BlobLocation
  readonly #sink: ByteSink
  readonly #options: StreamOptions
  readonly #source: ReplicaSource
  readonly #first: number
  readonly #end: number
  /** From here on bytes are held back; `#end` when a part is asked for, which no digest covers. */
  readonly #tailStart: number
  #tail: Buffer | undefined
  #hash: Hash | undefined
  /** Next byte to come. */
  #position: number
  #started = false
  #writing = 0
  #active: StreamAttempt | undefined
  readonly #attempts = new Set<StreamAttempt>()
  /** Ended well, but the sink still holds chunks of theirs. */
  readonly #lingering = new Set<StreamAttempt>()
  readonly #contributors = new Set<Replica>()
  /** Of nodes that failed since somebody last took over: they may be back when he fails. */
  readonly #lost: Replica[] = []
  readonly #failures: HoldfastError[] = []
  readonly #timer = new PatientTimer()
  #pause: NodeJS.Timeout | undefined
  #progressAt: number
  #hedging = true
  #looking = false
  #rounds = 0
  #state: 'running' | 'complete' | 'over' = 'running'
  readonly #leave = (): void => this.#onLeave()
  #resolve: () => void = () => {}
  #reject: (error: unknown) => void = () => {}

  constructor(
    context: ReadContext,
    blob: BlobLocation,
    range: ByteRange | undefined,
    sink: ByteSink,
    options: StreamOptions,
  ) {
    this.#context = context
    this.#blob = blob
    this.#sink = sink
    this.#options = options
    this.#source = context.replicas.of(blob)
    this.#first = this.#position = range?.first ?? 0
    this.#end = range === undefined ? blob.bytes : range.last + 1
    assert.ok(this.#first >= 0 && this.#first <= this.#end && this.#end <= blob.bytes, 'a range lies within its blob')
    const full = this.#first === 0 && this.#end === blob.bytes
    this.#tailStart = full ? Math.max(0, this.#end - tailBytesMax) : this.#end
    if (full) this.#hash = createHash('sha256')
    this.#progressAt = context.now()
  }

  run(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
      const { signal } = this.#options
      if (signal.aborted) {
        this.#onLeave()
        return
      }
      signal.addEventListener('abort', this.#leave, { once: true })
      const first = this.#launch()
      if (this.#source.slow.length > 0) probeSlow(this.#context, this.#blob, this.#source.slow)
      const { times } = this.#context
      this.#arm(first === undefined ? times.stallMs : hedgeDelay(this.#source.expectedMs, times))
      if (first === undefined) this.#lookFurther()
    })
  }

  /** Only attempts call these. True: the chunk is in the sink, and held until `written`. */
  delivered(attempt: StreamAttempt, chunk: Buffer): boolean {
    if (this.#state !== 'running') return false
    // The others were started for this very position, which now moves on.
    if (this.#active !== attempt || this.#attempts.size > 1) this.#promote(attempt)
    const at = this.#position
    this.#position += chunk.length
    this.#progressAt = this.#context.now()
    this.#context.counters.bytes += chunk.length
    this.#rounds = 0
    this.#hash?.update(chunk)
    const free = Math.max(0, Math.min(chunk.length, this.#tailStart - at))
    if (free < chunk.length) this.#keep(chunk.subarray(free), at + free)
    return free > 0 && this.#write(attempt, free === chunk.length ? chunk : chunk.subarray(0, free))
  }

  ended(attempt: StreamAttempt): void {
    this.#attempts.delete(attempt)
    if (attempt.held > 0) this.#lingering.add(attempt)
    if (this.#state !== 'running') return
    assert.equal(this.#position, this.#end, 'an answer that ended has delivered what was asked for')
    for (const other of this.#attempts) this.#drop(other)
    const found = this.#hash?.digest('hex')
    if (found === undefined || found === this.#blob.digest) this.#complete()
    else this.#mismatch(attempt, found)
  }

  failed(attempt: StreamAttempt, error: HoldfastError): void {
    this.#attempts.delete(attempt)
    if (this.#active === attempt) this.#active = undefined
    // Its chunks may wait in the sink for a long time yet, or for ever.
    attempt.read.abort()
    if (this.#state !== 'running') return
    this.#failures.push(error)
    if (!noteBadCopy(this.#context, this.#blob, attempt.replica, error)) this.#lost.push(attempt.replica)
    // With another one at work already nobody else is needed.
    if (this.#attempts.size === 0) this.#replace()
  }

  /** The sink took a chunk of this attempt. */
  written(attempt: StreamAttempt, error: Error | null | undefined): void {
    this.#writing -= 1
    if (error !== null && error !== undefined) {
      this.#onLeave()
      return
    }
    if (attempt.read.paused) this.#progressAt = this.#context.now()
    attempt.released()
    if (attempt.held === 0) this.#lingering.delete(attempt)
    if (this.#state === 'complete' && this.#writing === 0) this.#settle()
  }

  #launch(hedge = false): Replica | undefined {
    const replica = this.#source.next()
    if (replica === undefined) return undefined
    const rest = { first: this.#position, last: this.#end - 1 }
    const range = rest.first === 0 && this.#end === this.#blob.bytes ? undefined : rest
    this.#attempts.add(new StreamAttempt(this, this.#context, replica, this.#blob, range, hedge))
    return replica
  }

  #promote(attempt: StreamAttempt): void {
    if (attempt.hedge && this.#active !== attempt) this.#context.counters.hedgesWon += 1
    this.#active = attempt
    this.#contributors.add(attempt.replica)
    for (const replica of this.#lost.splice(0)) this.#source.giveBack(replica)
    for (const other of this.#attempts) {
      if (other === attempt) continue
      this.#drop(other)
      this.#source.giveBack(other.replica)
    }
  }

  #drop(attempt: StreamAttempt): void {
    this.#attempts.delete(attempt)
    if (this.#active === attempt) this.#active = undefined
    attempt.read.abort()
  }

  #keep(bytes: Buffer, at: number): void {
    this.#tail ??= Buffer.allocUnsafeSlow(this.#end - this.#tailStart)
    bytes.copy(this.#tail, at - this.#tailStart)
  }

  #write(attempt: StreamAttempt, chunk: Buffer): boolean {
    if (this.#sink.destroyed) {
      this.#onLeave()
      return false
    }
    this.#start()
    this.#writing += 1
    attempt.held += 1
    this.#sink.write(chunk, error => this.written(attempt, error))
    return true
  }

  #start(): void {
    if (this.#started) return
    this.#started = true
    this.#options.onStart()
  }

  #complete(): void {
    if (this.#sink.destroyed) {
      this.#onLeave()
      return
    }
    this.#start()
    this.#state = 'complete'
    if (this.#tail === undefined) this.#sink.end()
    else this.#sink.end(this.#tail)
    this.#timer.clear()
    if (this.#writing === 0) this.#settle()
  }

  /** Bytes went wrong between a node that had checked them and here. Those that went out cannot be taken back. */
  #mismatch(attempt: StreamAttempt, found: string): void {
    const error = digestMismatch(this.#blob, found)
    this.#context.counters.corruptBodies += 1
    this.#failures.push(error)
    for (const replica of this.#contributors) noteBadCopy(this.#context, this.#blob, replica, error)
    if (this.#started) {
      this.#cut(error)
      return
    }
    this.#active = undefined
    this.#lingering.delete(attempt)
    this.#contributors.clear()
    this.#position = this.#first
    this.#hash = createHash('sha256')
    this.#replace()
  }

  #replace(): void {
    const { counters, budget } = this.#context
    if (this.#launch() === undefined) {
      if (this.#attempts.size === 0) this.#lookFurther()
      return
    }
    budget.forced()
    if (this.#position > this.#first) counters.resumes += 1
    else counters.retries += 1
  }

  #arm(ms: number): void {
    this.#timer.set(ms, () => this.#tick())
  }

  #tick(): void {
    const { times, now } = this.#context
    if (this.#sink.destroyed) {
      this.#onLeave()
      return
    }
    // A client that does not read is not the node's fault, and may take its time.
    if (this.#active?.read.paused === true) this.#progressAt = now()
    const silence = now() - this.#progressAt
    if (this.#hedging && silence < times.stallMs) {
      this.#hedge()
      this.#arm(times.stallMs - silence)
      return
    }
    this.#hedging = false
    if (silence >= times.deadlineMs) {
      this.#giveUp()
      return
    }
    let youngest = silence
    for (const attempt of this.#attempts) youngest = Math.min(youngest, now() - attempt.startedAt)
    if (youngest >= times.stallMs && !this.#looking) this.#stall()
    if (this.#state === 'running') this.#arm(youngest < times.stallMs ? times.stallMs - youngest : times.stallMs)
  }

  #hedge(): void {
    this.#hedging = false
    if (this.#active !== undefined || this.#attempts.size === 0 || !this.#context.budget.tryHedge()) return
    if (this.#launch(true) !== undefined) this.#context.counters.hedges += 1
  }

  /** Nobody delivered for a second: another replica is asked beside, and who was silent for long is given up. */
  #stall(): void {
    const { times, counters, now } = this.#context
    counters.stalls += 1
    for (const attempt of this.#attempts) {
      attempt.reportSilence()
      if (now() - Math.max(attempt.startedAt, this.#progressAt) >= times.dropMs) this.#drop(attempt)
    }
    this.#replace()
  }

  /** No replica is left to ask. Before the first byte that is final after a search; later it is tried until the deadline. */
  #lookFurther(): void {
    if (this.#looking || this.#state !== 'running') return
    this.#looking = true
    void this.#source.search().then(found => {
      this.#looking = false
      if (this.#state !== 'running') return
      if (found) this.#replace()
      else if (this.#started || this.#mayRepeat()) this.#tryAgainLater()
      else this.#giveUp()
    })
  }

  #mayRepeat(): boolean {
    return (
      this.#rounds < 1 &&
      this.#failures.some(({ code }) => code === 'NODE_UNREACHABLE') &&
      this.#context.budget.tryRetry()
    )
  }

  #tryAgainLater(): void {
    this.#looking = true
    const pauseMs = backoffMs[Math.min(this.#rounds, backoffMs.length - 1)]
    this.#rounds += 1
    this.#pause = setTimeout(() => {
      this.#looking = false
      if (this.#state !== 'running') return
      this.#source.again()
      this.#lost.length = 0
      this.#replace()
    }, pauseMs)
  }

  #giveUp(): void {
    const error = unreachable(this.#blob, this.#failures)
    if (this.#started) {
      this.#cut(error)
      return
    }
    this.#context.counters.unreachable += 1
    this.#settle(error)
  }

  #cut(error: HoldfastError): void {
    this.#context.counters.cutStreams += 1
    this.#sink.destroy(error)
    this.#settle()
  }

  /** The client is gone: whatever still comes for it is cut off, or the connections would stay paused for good. */
  #onLeave(): void {
    if (this.#state === 'over') return
    if (this.#started) {
      this.#sink.destroy()
      this.#settle()
    } else
      this.#settle(this.#options.signal.aborted ? this.#options.signal.reason : unreachable(this.#blob, this.#failures))
  }

  #settle(error?: unknown): void {
    this.#state = 'over'
    this.#options.signal.removeEventListener('abort', this.#leave)
    this.#timer.clear()
    clearTimeout(this.#pause)
    for (const attempt of [...this.#attempts, ...this.#lingering]) attempt.read.abort()
    this.#attempts.clear()
    this.#lingering.clear()
    if (error === undefined) this.#resolve()
    else this.#reject(error)
  }
}
