/** The tables of jobs in memory, with a clock that a test sets; the contract test holds it to what PostgreSQL does. */
import type { ClaimedRun, JobLogLine, JobRow, JobRun, JobStore } from '../../../proxy/metadata/job-types.ts'
import { HoldfastError } from '../../../shared/errors.ts'

type Mutable<T> = { -readonly [Key in keyof T]: T[Key] }

export class MemoryJobStore implements JobStore {
  now: number
  token = 1
  /** Thrown by everything while it is set. */
  fault: Error | undefined
  readonly rows = new Map<string, Mutable<JobRow>>()
  readonly runs: Mutable<ClaimedRun>[] = []
  readonly logs = new Map<number, JobLogLine[]>()
  readonly swept: string[] = []

  constructor(now = Date.UTC(2026, 0, 1)) {
    this.now = now
  }

  async agenda() {
    this.#meet()
    const active = this.runs.filter(isActive)
    return { now: this.now, jobs: [...this.rows.values()].map(row => ({ ...row })), active: active.map(shown) }
  }

  async listRuns(job: string, limit: number) {
    const found = this.runs.filter(run => run.job === job).reverse()
    return found.slice(0, limit).map(shown)
  }

  async findRun(id: number) {
    const run = this.runs.find(one => one.id === id)
    return run && shown(run)
  }

  async runLog(run: number, after: number, limit: number) {
    return (this.logs.get(run) ?? []).filter(({ seq }) => seq > after).slice(0, limit)
  }

  async enqueue({ job, user, params }: Parameters<JobStore['enqueue']>[0], token?: number) {
    this.#meet()
    if (token !== undefined) this.#fence(token)
    if (this.#active(job) !== undefined) throw new HoldfastError('CONFLICT', 'one is queued or running')
    return shown(this.#add(job, 'user', user, params))
  }

  async requestStop(job: string, user: string) {
    const run = this.#active(job)
    if (run === undefined) return undefined
    run.stoppedBy ??= user
    if (run.state === 'queued') Object.assign(run, { state: 'stopped', finishedAt: this.now })
    return shown(run)
  }

  async changeJob(name: string, { schedule, enabled }: Parameters<JobStore['changeJob']>[1]) {
    const row = this.#row(name)
    if (schedule !== undefined) row.schedule = schedule
    if (enabled !== undefined) row.enabled = enabled
    row.scheduledUntil = this.now
    return { ...row }
  }

  async applySchedules({ newcomers, due, reset }: Parameters<JobStore['applySchedules']>[0], token: number) {
    this.#fence(token)
    for (const name of newcomers) this.#row(name)
    for (const name of due) {
      if (this.#row(name).enabled && this.#active(name) === undefined) this.#add(name, 'schedule', null, {})
    }
    for (const name of [...due, ...reset]) this.#row(name).scheduledUntil = this.now
  }

  async claim(id: number, token: number): Promise<ClaimedRun | undefined> {
    this.#fence(token)
    const run = this.runs.find(one => one.id === id && isActive(one))
    if (run === undefined) return undefined
    if (run.token !== null && run.token !== token) {
      run.takeovers++
      run.fruitless++
    }
    Object.assign(run, { state: 'running', token, startedAt: run.startedAt ?? this.now })
    return { ...run }
  }

  async report(id: number, token: number, report: Parameters<JobStore['report']>[2]) {
    this.#fence(token)
    const run = this.#own(id, token)
    if (run === undefined) throw new HoldfastError('LEASE_LOST', 'not ours')
    this.#note(run, report)
    if (report.checkpoint !== undefined) Object.assign(run, { checkpoint: clone(report.checkpoint), fruitless: 0 })
    return { stopRequested: run.stoppedBy !== null }
  }

  async finish(id: number, token: number, end: Parameters<JobStore['finish']>[2]) {
    this.#fence(token)
    const run = this.#own(id, token)
    if (run === undefined) return
    this.#note(run, end)
    Object.assign(run, { state: end.state, error: end.error ?? null, finishedAt: this.now, estimatedEndAt: null })
    const row = this.#row(run.job)
    row.lastState = end.state
    row.lastFinishedAt = this.now
    row.lastDurationMs = this.now - (run.startedAt ?? this.now)
    row.lastError = end.error?.message ?? null
    if (end.state === 'succeeded') row.lastSuccessAt = this.now
    for (const old of this.runs.filter(one => one.job === run.job && !isActive(one)).slice(0, -50)) {
      this.runs.splice(this.runs.indexOf(old), 1)
      this.logs.delete(old.id)
    }
  }

  async sweep(kind: string, limit: number, token: number, auditDays: number) {
    this.#fence(token)
    this.swept.push(kind)
    return kind === 'pins' && this.swept.filter(one => one === 'pins').length < 3 ? limit : kind === 'audit' ? auditDays : 0
  } // prettier-ignore

  #meet(): void {
    if (this.fault !== undefined) throw this.fault
  }

  #fence(token: number): void {
    this.#meet()
    if (token !== this.token) throw new HoldfastError('LEASE_LOST', 'another process is primary now')
  }

  #row(name: string): Mutable<JobRow> {
    const row = this.rows.get(name) ?? {
      name, schedule: null, enabled: true, scheduledUntil: this.now,
      lastState: null, lastFinishedAt: null, lastSuccessAt: null, lastDurationMs: null, lastError: null,
    } // prettier-ignore
    this.rows.set(name, row)
    return row
  }

  #active(job: string): Mutable<ClaimedRun> | undefined {
    return this.runs.find(run => run.job === job && isActive(run))
  }

  #own(id: number, token: number): Mutable<ClaimedRun> | undefined {
    return this.runs.find(run => run.id === id && run.state === 'running' && run.token === token)
  }

  #add(job: string, origin: JobRun['origin'], user: string | null, params: JobRun['params']): Mutable<ClaimedRun> {
    const run: Mutable<ClaimedRun> = {
      id: (this.runs.at(-1)?.id ?? 0) + 1, job, origin, user, params, state: 'queued', stoppedBy: null, token: null, takeovers: 0,
      fruitless: 0, progress: null, estimatedEndAt: null, error: null, queuedAt: this.now, startedAt: null, finishedAt: null,
      checkpoint: undefined,
    } // prettier-ignore
    this.runs.push(run)
    return run
  }

  #note(run: Mutable<ClaimedRun>, { progress, remainingMs, lines }: Parameters<JobStore['report']>[2]): void {
    if (progress !== undefined) {
      run.progress = progress
      run.estimatedEndAt = remainingMs === undefined ? null : this.now + remainingMs
    }
    const log = this.logs.get(run.id) ?? []
    for (const line of lines) log.push({ seq: (log.at(-1)?.seq ?? 0) + 1, at: this.now, line })
    this.logs.set(run.id, log.slice(-500))
  }
}

function isActive({ state }: JobRun): boolean {
  return state === 'queued' || state === 'running'
}

function shown({ checkpoint: _, ...run }: ClaimedRun): JobRun {
  return { ...run }
}

function clone(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value)) as unknown
}
