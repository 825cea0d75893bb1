/** What people may see of jobs and do to them, through any proxy: it writes requests, the primary acts on them within about a second. */
import { HoldfastError } from '../../shared/errors.ts'
import type { JobAgenda, JobLogLine, JobRow, JobRun, JobStore } from '../metadata/job-types.ts'
import { parseCron } from './cron.ts'
import type { Job, JobParams } from './job.ts'
import { nextRunOf, scheduleOf } from './job-plan.ts'

export interface JobView {
  readonly name: string
  readonly title: string
  /** The schedule in force; null: none. */
  readonly schedule: string | null
  readonly defaultSchedule: string | null
  readonly enabled: boolean
  readonly state: 'idle' | 'queued' | 'running'
  /** The run that is not over. */
  readonly run: JobRun | null
  readonly nextRunAt: number | null
  readonly lastState: JobRow['lastState']
  readonly lastFinishedAt: number | null
  readonly lastSuccessAt: number | null
  readonly lastDurationMs: number | null
  readonly lastError: string | null
}

/** null: no schedule. 'default': the job's own. */
export type ScheduleChange = string | null

const paramsCharsMax = 16 * 1024
export const runsShown = 50
export const linesShown = 500

export class JobControl {
  readonly #store: JobStore
  readonly #jobs: ReadonlyMap<string, Job>

  constructor(store: JobStore, jobs: readonly Job[]) {
    this.#store = store
    this.#jobs = new Map(jobs.map(job => [job.name, job]))
  }

  async list(): Promise<readonly JobView[]> {
    const agenda = await this.#store.agenda()
    return [...this.#jobs.values()].map(job => viewOf(job, agenda)).toSorted((a, b) => (a.name < b.name ? -1 : 1))
  }

  /** NOT_FOUND, as all that follow. */
  async get(name: string): Promise<JobView> {
    return viewOf(this.#find(name), await this.#store.agenda())
  }

  /**
   * Queues a run. CONFLICT while one is queued or running, BAD_REQUEST for parameters that the job does not take, and what its `checkStart`
   * rejects with.
   */
  async run(name: string, user: string, params: JobParams = {}): Promise<JobRun> {
    const job = this.#find(name)
    if (JSON.stringify(params).length > paramsCharsMax) throw new HoldfastError('TOO_LARGE', 'too many parameters')
    if (job.checkParams !== undefined) job.checkParams(params)
    else if (Object.keys(params).length > 0) {
      throw new HoldfastError('BAD_REQUEST', `task '${name}' takes no parameters`, { task: name })
    }
    await job.checkStart?.(params)
    return this.#store.enqueue({ job: name, user, params })
  }

  /** A queued run is stopped at once, a running one is asked to end after its step. CONFLICT if there is neither. */
  async stop(name: string, user: string): Promise<JobRun> {
    const run = await this.#store.requestStop(this.#find(name).name, user)
    if (run === undefined) throw new HoldfastError('CONFLICT', `task '${name}' does not run`, { task: name })
    return run
  }

  /** Times that have passed are not caught up on. A job that is not enabled still runs when somebody asks for it. */
  async change(name: string, change: { schedule?: ScheduleChange; enabled?: boolean }): Promise<JobView> {
    const job = this.#find(name)
    const { schedule, enabled } = change
    await this.#store.changeJob(name, {
      ...(schedule === undefined ? {} : { schedule: storedSchedule(schedule) }),
      ...(enabled === undefined ? {} : { enabled }),
    })
    return viewOf(job, await this.#store.agenda())
  }

  /** Newest first. */
  runs(name: string): Promise<readonly JobRun[]> {
    return this.#store.listRuns(this.#find(name).name, runsShown)
  }

  async findRun(name: string, id: number): Promise<JobRun> {
    const run = await this.#store.findRun(id)
    if (run?.job !== this.#find(name).name) {
      throw new HoldfastError('NOT_FOUND', `no run ${id} of task '${name}'`, { task: name })
    }
    return run
  }

  /** Lines of a run behind the line `after`, oldest first. */
  async log(name: string, id: number, after: number): Promise<readonly JobLogLine[]> {
    const run = await this.findRun(name, id)
    return this.#store.runLog(run.id, after, linesShown)
  }

  #find(name: string): Job {
    const job = this.#jobs.get(name)
    if (job === undefined) throw new HoldfastError('NOT_FOUND', `no task '${name}'`, { task: name })
    return job
  }
}

function storedSchedule(schedule: ScheduleChange): string | null {
  if (schedule === 'default') return null
  if (schedule === null) return ''
  parseCron(schedule)
  return schedule.trim().split(/\s+/).join(' ')
}

function viewOf(job: Job, { jobs, active, now }: JobAgenda): JobView {
  const row = jobs.find(one => one.name === job.name)
  const run = active.find(one => one.job === job.name)
  return {
    name: job.name,
    title: job.title,
    schedule: scheduleOf(job, row),
    defaultSchedule: job.defaultSchedule,
    enabled: row?.enabled ?? true,
    state: run === undefined ? 'idle' : run.state === 'queued' ? 'queued' : 'running',
    run: run ?? null,
    nextRunAt: nextRunOf(job, row, now) ?? null,
    lastState: row?.lastState ?? null,
    lastFinishedAt: row?.lastFinishedAt ?? null,
    lastSuccessAt: row?.lastSuccessAt ?? null,
    lastDurationMs: row?.lastDurationMs ?? null,
    lastError: row?.lastError ?? null,
  }
}
