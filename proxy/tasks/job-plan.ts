/** What the primary does about jobs, from what PostgreSQL says. Pure. */
import { isHoldfastError } from '../../shared/errors.ts'
import type { JobAgenda, JobRow, JobRun, StoredProgress } from '../metadata/job-types.ts'
import { nextTime, parseCron } from './cron.ts'
import type { Job, JobProgress } from './job.ts'

/** A time of the schedule further ahead than this was written by a clock that has jumped back since. */
const clockSlackMs = 60_000
/** Primaries that may end during a run, without a new checkpoint, before the run is given up. */
export const fruitlessMax = 10

type Scheduled = Pick<Job, 'name' | 'defaultSchedule'>

export interface JobPlan {
  /** Jobs without a row. */
  readonly newcomers: readonly string[]
  /** Jobs to queue a run of: one, however many times of the schedule have passed. */
  readonly due: readonly string[]
  /** Jobs whose schedule begins anew at this moment. */
  readonly reset: readonly string[]
  /** Runs to begin, resume or (asked to stop meanwhile) end here. */
  readonly start: readonly JobRun[]
  /** Runs of ours whose end was asked for. */
  readonly stop: readonly JobRun[]
}

/** `busy`: jobs that run in this process already. A time that comes while a run is not over is skipped. */
export function planJobs(jobs: readonly Scheduled[], agenda: JobAgenda, busy: ReadonlySet<string>): JobPlan {
  const rows = new Map(agenda.jobs.map(row => [row.name, row]))
  const known = new Set(jobs.map(job => job.name))
  const plan = { newcomers: [] as string[], due: [] as string[], reset: [] as string[] }
  for (const job of jobs) {
    const row = rows.get(job.name)
    if (row === undefined) plan.newcomers.push(job.name)
    else if (row.scheduledUntil > agenda.now + clockSlackMs) plan.reset.push(job.name)
    else if (isDue(job, row, agenda.now)) plan.due.push(job.name)
  }
  // Runs of unknown jobs were queued by a later release, and wait for a primary of that release.
  const ours = agenda.active.filter(run => known.has(run.job))
  return {
    ...plan,
    start: ours.filter(run => !busy.has(run.job)),
    stop: ours.filter(run => busy.has(run.job) && run.stoppedBy !== null),
  }
}

/** The schedule in force; null: none. */
export function scheduleOf(job: Scheduled, row: Pick<JobRow, 'schedule'> | undefined): string | null {
  const schedule = row?.schedule ?? job.defaultSchedule
  return schedule === '' ? null : schedule
}

/** When its schedule comes next after `afterMs`. undefined: never. */
export function nextRunOf(job: Scheduled, row: JobRow | undefined, afterMs: number): number | undefined {
  const schedule = scheduleOf(job, row)
  if (schedule === null || row?.enabled === false) return undefined
  try {
    return nextTime(parseCron(schedule), afterMs)
  } catch (error) {
    // Written by a later release with more words for times.
    if (isHoldfastError(error, 'BAD_REQUEST')) return undefined
    throw error
  }
}

function isDue(job: Scheduled, row: JobRow, now: number): boolean {
  const next = nextRunOf(job, row, row.scheduledUntil)
  return next !== undefined && next <= now
}

/** How fast a run gets on: units a second over the last minute or so. Feed it every progress with its time. */
export class Rate {
  /** Weight of an old sample falls to 1/e in this time. */
  static readonly #windowMs = 30_000
  #last: { done: number; at: number } | undefined
  #rate: number | undefined

  /** `atMs`: of a monotonic clock. */
  add(done: number, atMs: number): void {
    const last = this.#last
    if (last === undefined || done < last.done) {
      this.#last = { done, at: atMs }
      this.#rate = undefined
      return
    }
    const passed = atMs - last.at
    if (passed < 500) return
    const now = ((done - last.done) / passed) * 1_000
    const keep = this.#rate === undefined ? 0 : Math.exp(-passed / Rate.#windowMs)
    this.#rate = keep * (this.#rate ?? 0) + (1 - keep) * now
    this.#last = { done, at: atMs }
  }

  /** What to store of a progress, and how long the rest will take, where that can be known. */
  describe(progress: JobProgress): { progress: StoredProgress; remainingMs?: number } {
    const rate = this.#rate
    if (rate === undefined || progress.waits === true) return { progress }
    const stored = { ...progress, rate: Number(rate.toPrecision(4)) }
    if (progress.total === undefined || rate <= 0) return { progress: stored }
    const remainingMs = Math.round((Math.max(0, progress.total - progress.done) / rate) * 1_000)
    // A year or more is no estimate.
    return remainingMs < 366 * 24 * 3_600_000 ? { progress: stored, remainingMs } : { progress: stored }
  }
}
