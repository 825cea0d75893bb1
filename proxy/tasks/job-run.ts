/** One run of a job on this primary: gives the job its context, and writes down what it says, once a second and at its end. */
import { setMaxListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { HoldfastError, isHoldfastError, toHoldfastError } from '../../shared/errors.ts'
import type { ClaimedRun, FinalJobState, JobReport, JobStore } from '../metadata/job-types.ts'
import type { Job, JobContext, JobProgress } from './job.ts'
import { fruitlessMax, Rate } from './job-plan.ts'
import type { Term } from './primary.ts'

/** Lines waiting to be written; beyond them the oldest are dropped. */
const waitingLinesMax = 500
const lineCharsMax = 500
const retryMs = 500
const retryMsMax = 10_000
/** Says nothing about the run: it goes on when the database is back, or under another primary. */
const interruptions = ['METADATA_UNAVAILABLE', 'COORDINATION_UNAVAILABLE', 'LEASE_LOST', 'STALE_TOKEN'] as const

/** How it ended here; 'interrupted': it is not over, and wants to be resumed. */
export type RunEnd = FinalJobState | 'interrupted'

export interface JobExecutionDeps {
  readonly store: Pick<JobStore, 'report' | 'finish'>
  readonly log: Logger
  /** Monotonic, in ms. */
  readonly now: () => number
  /** Pause between two reports of a run that has something to tell, in ms. */
  readonly reportMs: number
}

export class JobExecution {
  readonly #deps: JobExecutionDeps
  readonly #job: Job
  readonly #run: ClaimedRun
  readonly #stop = new AbortController()
  readonly #over = new AbortController()
  readonly #rate = new Rate()
  readonly #term: Term
  /** `term`: of the primary. */
  constructor(job: Job, run: ClaimedRun, term: Term, deps: JobExecutionDeps) {
    this.#job = job
    this.#run = run
    this.#deps = deps
    const signal = AbortSignal.any([term.signal, this.#stop.signal])
    // Every request that the job has under way listens; the job says how many those are.
    setMaxListeners(0, signal)
    this.#term = {
      token: term.token,
      get signal() {
        // Reading the primary's makes it look at the clock.
        return term.signal.aborted ? term.signal : signal
      },
    }
    if (run.stoppedBy !== null) this.stop()
  }

  #progress: JobProgress | undefined
  #lines: string[] = []
  /** Reports follow each other, so that an older one never overwrites a newer one. */
  #reporting: Promise<void> = Promise.resolve()

  /** Asks the job to end. */
  stop(): void {
    this.#stop.abort(new HoldfastError('CONFLICT', 'the run was stopped'))
  }

  /** Never rejects. Resolves when the job has ended and its end, if that is final, is written (or cannot be, under this term). */
  async execute(): Promise<RunEnd> {
    const { id, fruitless, takeovers } = this.#run
    const facts = { task: this.#job.name, run: id, token: this.#term.token }
    this.#deps.log.info({ ...facts, takeovers }, 'job runs')
    const reports = this.#reportNowAndThen()
    const hopeless = fruitless > fruitlessMax && !this.#stop.signal.aborted
    const error = hopeless
      ? new HoldfastError('INTERNAL', `${fruitless} primaries ended during this run without getting anywhere`)
      : await this.#work()
    this.#over.abort()
    await reports
    const end = hopeless ? 'failed' : this.#judge(error)
    if (end === 'failed') this.#deps.log.error({ ...facts, err: error }, 'job failed')
    else this.#deps.log.info({ ...facts, end, ...(error === undefined ? {} : { err: error }) }, 'job ended')
    return this.#settle(end, error)
  }

  async #work(): Promise<unknown> {
    if (this.#stop.signal.aborted) return this.#stop.signal.reason
    try {
      await this.#job.run(this.#context())
      return undefined
    } catch (error) {
      return error ?? new Error('rejected with nothing')
    }
  }

  #context(): JobContext {
    const { id, checkpoint, params } = this.#run
    return {
      runId: id,
      term: this.#term,
      checkpoint,
      params,
      save: next => this.#save(next),
      progress: progress => void (this.#progress = progress),
      log: line => this.#say(line),
      pause: async ms => {
        await sleep(ms, undefined, { signal: this.#term.signal }).catch(() => {}) // the signal's own reason follows
        this.#term.signal.throwIfAborted()
      },
    }
  }

  #say(line: string): void {
    this.#lines.push(storable(line))
    if (this.#lines.length > waitingLinesMax) this.#lines.shift()
  }

  async #save(checkpoint: unknown): Promise<void> {
    for (let waitMs = retryMs; ; waitMs = Math.min(retryMsMax, waitMs * 2)) {
      this.#term.signal.throwIfAborted()
      try {
        await this.#report({ checkpoint })
        break
      } catch (error) {
        if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
        await sleep(waitMs, undefined, { signal: this.#term.signal }).catch(() => {}) // looked at above
      }
    }
    this.#term.signal.throwIfAborted()
  }

  async #reportNowAndThen(): Promise<void> {
    const signal = AbortSignal.any([this.#term.signal, this.#over.signal])
    while (!signal.aborted) {
      await sleep(this.#deps.reportMs, undefined, { signal }).catch(() => {}) // looked at next
      if (signal.aborted || (this.#progress === undefined && this.#lines.length === 0)) continue
      // Whatever is wrong is met again by the job itself, or does not matter to it.
      await this.#report({}).catch((error: unknown) =>
        this.#deps.log.debug({ err: error, run: this.#run.id }, 'progress of a job not written'),
      )
    }
  }

  #report(more: { checkpoint?: unknown }): Promise<void> {
    const report = this.#reporting.then(async () => {
      const news = this.#takeNews()
      try {
        const { stopRequested } = await this.#deps.store.report(this.#run.id, this.#term.token, { ...news, ...more })
        if (stopRequested) this.stop()
      } catch (error) {
        this.#giveBack(news)
        throw error
      }
    })
    this.#reporting = report.catch(() => {}) // told to who asked for it
    return report
  }

  #takeNews(): JobReport {
    const lines = this.#lines
    this.#lines = []
    const progress = this.#progress
    this.#progress = undefined
    if (progress === undefined) return { lines }
    const clean = progress.note === undefined ? progress : { ...progress, note: storable(progress.note) }
    this.#rate.add(clean.done, this.#deps.now())
    return { lines, ...this.#rate.describe(clean) }
  }

  #giveBack({ lines, progress }: JobReport): void {
    this.#lines = [...lines, ...this.#lines].slice(-waitingLinesMax)
    this.#progress ??= progress
  }

  #judge(error: unknown): RunEnd {
    // Stopped while its lease was lost: if this cannot be written, the next primary ends it as stopped.
    if (this.#stop.signal.aborted) return 'stopped'
    // Also when it resolved: whether it did all its work, or only heeded the signal, nobody can tell.
    if (this.#term.signal.aborted || isHoldfastError(error, ...interruptions)) return 'interrupted'
    if (error === undefined) return 'succeeded'
    return 'failed'
  }

  async #settle(end: RunEnd, error: unknown): Promise<RunEnd> {
    const { id } = this.#run
    await this.#reporting
    try {
      if (end === 'interrupted') await this.#report({})
      else await this.#finish(end, error)
      return end
    } catch (failure) {
      // The row says it runs: it is resumed, and ends again.
      this.#deps.log.debug({ err: failure, run: id, end }, 'end of a job not written')
      return 'interrupted'
    }
  }

  async #finish(state: FinalJobState, error: unknown): Promise<void> {
    const { code, message } = toHoldfastError(error)
    const news = this.#takeNews()
    const failure = state === 'failed' ? { error: { code, message: storable(message) } } : {}
    try {
      await this.#deps.store.finish(this.#run.id, this.#term.token, { ...news, state, ...failure })
    } catch (thrown) {
      this.#giveBack(news)
      throw thrown
    }
  }
}

/** Cut to length; without NUL and half surrogate pairs, which PostgreSQL does not store. */
function storable(text: string): string {
  return Buffer.from(text.slice(0, lineCharsMax).replaceAll('\0', ''), 'utf8').toString('utf8')
}
