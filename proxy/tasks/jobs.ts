/**
 * Runs jobs on the primary: looks each second at what is queued, due, to be stopped, or left behind by an earlier primary. As a
 * PrimaryTask its steps are short; the runs go on beside them, and are waited for when the term ends.
 */
import assert from 'node:assert/strict'
import type { Logger } from 'pino'
import type { JobAgenda, JobRow, JobRun, JobStore } from '../metadata/job-types.ts'
import { parseCron } from './cron.ts'
import type { Job } from './job.ts'
import { planJobs } from './job-plan.ts'
import { JobExecution } from './job-run.ts'
import type { PrimaryTask, Term } from './primary.ts'

/** An interrupted run is resumed after this long, in ms; twice as long after each further interruption. */
const resumeMs = 2_000
const resumeMsMax = 60_000
/** A job that does not heed its signal is left behind: all it changes from then on is refused under its old token. */
const endMs = 5_000

export interface JobsDeps {
  readonly store: Pick<JobStore, 'agenda' | 'applySchedules' | 'claim' | 'report' | 'finish'>
  readonly jobs: readonly Job[]
  readonly log: Logger
  /** Monotonic, in ms. */
  readonly now: () => number
  readonly pauseMs?: number
}

export class Jobs implements PrimaryTask {
  readonly name = 'jobs'
  readonly pauseMs: number
  readonly #deps: JobsDeps
  readonly #jobs: ReadonlyMap<string, Job>
  /** By job; one that ignores its signal stays here beyond its term, and keeps its job from running twice in one process. */
  readonly #running = new Map<string, { readonly execution: JobExecution; readonly ended: Promise<void> }>()
  /** Interrupted runs: how often, and when they may go on. */
  readonly #interrupted = new Map<number, { readonly count: number; readonly notBefore: number }>()
  #agenda: JobAgenda | undefined

  constructor(deps: JobsDeps) {
    this.#deps = deps
    this.pauseMs = deps.pauseMs ?? 1_000
    this.#jobs = new Map(deps.jobs.map(job => [job.name, job]))
    assert.equal(this.#jobs.size, deps.jobs.length, 'two jobs of one name')
    for (const { name, defaultSchedule } of deps.jobs) {
      assert(/^[a-z][a-z0-9-]{0,62}$/.test(name), `'${name}' is no name for a job`)
      if (defaultSchedule !== null) parseCron(defaultSchedule)
    }
  }

  /** What the last look found; undefined while this worker is not primary. For metrics. */
  get known(): { readonly rows: readonly JobRow[]; readonly active: readonly JobRun[] } | undefined {
    return this.#agenda && { rows: this.#agenda.jobs, active: this.#agenda.active }
  }

  readonly step = async (term: Term): Promise<'idle'> => {
    const { store, jobs } = this.#deps
    let agenda = await store.agenda()
    let plan = planJobs(jobs, agenda, new Set(this.#running.keys()))
    const { newcomers, due, reset } = plan
    if (newcomers.length + due.length + reset.length > 0) {
      term.signal.throwIfAborted()
      await store.applySchedules({ newcomers, due, reset }, term.token)
      agenda = await store.agenda()
      plan = planJobs(jobs, agenda, new Set(this.#running.keys()))
    }
    this.#agenda = agenda
    for (const run of plan.stop) this.#running.get(run.job)?.execution.stop()
    this.#forgetInterrupted(agenda)
    for (const run of plan.start) {
      if ((this.#interrupted.get(run.id)?.notBefore ?? 0) > this.#deps.now() && run.stoppedBy === null) continue
      term.signal.throwIfAborted()
      await this.#begin(run, term)
    }
    return 'idle'
  }

  /** Resolves when the runs have ended, which the term's signal asked them to. */
  readonly ended = async (): Promise<void> => {
    this.#agenda = undefined
    const names = [...this.#running.keys()]
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<'late'>(resolve => (timer = setTimeout(() => resolve('late'), endMs)))
    const all = Promise.all([...this.#running.values()].map(one => one.ended))
    if ((await Promise.race([all, late])) === 'late') {
      this.#deps.log.warn({ tasks: names }, 'jobs do not end with the term of the primary')
    }
    clearTimeout(timer)
  }

  async #begin({ id, job: name }: JobRun, term: Term): Promise<void> {
    const { store, log, now } = this.#deps
    const job = this.#jobs.get(name)
    assert(job !== undefined, 'planned only for known jobs')
    const run = await store.claim(id, term.token)
    if (run === undefined) return
    const execution = new JobExecution(job, run, term, { store, log, now, reportMs: this.pauseMs })
    const ended = execution.execute().then(end => {
      this.#running.delete(name)
      if (end === 'interrupted') this.#postpone(id)
    })
    this.#running.set(name, { execution, ended })
  }

  #postpone(run: number): void {
    const count = (this.#interrupted.get(run)?.count ?? 0) + 1
    const waitMs = Math.min(resumeMsMax, resumeMs * 2 ** Math.min(count - 1, 10))
    this.#interrupted.set(run, { count, notBefore: this.#deps.now() + waitMs })
  }

  #forgetInterrupted({ active }: JobAgenda): void {
    const alive = new Set(active.map(run => run.id))
    for (const run of this.#interrupted.keys()) if (!alive.has(run)) this.#interrupted.delete(run)
  }
}
