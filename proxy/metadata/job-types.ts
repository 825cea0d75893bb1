/** Jobs of the primary as PostgreSQL keeps them. Times are milliseconds since 1970 by PostgreSQL's clock. */

export type JobRunState = 'queued' | 'running' | 'succeeded' | 'failed' | 'stopped'
export type FinalJobState = Exclude<JobRunState, 'queued' | 'running'>

/** What is kept of a job: settings, and how its last runs ended. A job that nobody ever met or changed has no row. */
export interface JobRow {
  readonly name: string
  /** null: the job's own; '': none. */
  readonly schedule: string | null
  readonly enabled: boolean
  /** Times of the schedule up to this one are dealt with. */
  readonly scheduledUntil: number
  readonly lastState: FinalJobState | null
  readonly lastFinishedAt: number | null
  readonly lastSuccessAt: number | null
  readonly lastDurationMs: number | null
  /** Of the last run, if it failed. */
  readonly lastError: string | null
}

export interface StoredProgress {
  readonly done: number
  readonly total?: number
  readonly unit: string
  readonly note?: string
  /** All that is left waits: for how long, nobody knows. */
  readonly waits?: boolean
  /** Units a second, lately. */
  readonly rate?: number
}

export interface JobRun {
  readonly id: number
  readonly job: string
  readonly origin: 'schedule' | 'user'
  readonly user: string | null
  readonly params: Readonly<Record<string, unknown>>
  readonly state: JobRunState
  /** Who asked for its end. */
  readonly stoppedBy: string | null
  /** Of the primary that runs it, or ran it last. */
  readonly token: number | null
  /** How often another primary resumed it; and how often since the checkpoint was last saved. */
  readonly takeovers: number
  readonly fruitless: number
  readonly progress: StoredProgress | null
  readonly estimatedEndAt: number | null
  readonly error: { readonly code: string; readonly message: string } | null
  readonly queuedAt: number
  readonly startedAt: number | null
  readonly finishedAt: number | null
}

/** A run with what its job needs to go on. */
export type ClaimedRun = JobRun & { readonly checkpoint: unknown }

export interface JobAgenda {
  readonly now: number
  readonly jobs: readonly JobRow[]
  /** Runs that are queued or running: one of each job at most. */
  readonly active: readonly JobRun[]
}

export interface JobLogLine {
  readonly seq: number
  readonly at: number
  readonly line: string
}

/** What a run has to say since the last time. */
export interface JobReport {
  readonly progress?: StoredProgress | undefined
  readonly remainingMs?: number | undefined
  readonly lines: readonly string[]
}

/** Bookkeeping that nobody needs any more. */
export type SweepKind = 'runs' | 'log' | 'pins' | 'fences' | 'audit'

/**
 * Methods with a `token` are the primary's: LEASE_LOST, and nothing changed, unless the token is the newest (I27). The others may be
 * called by every proxy. All reject with METADATA_UNAVAILABLE when PostgreSQL cannot be reached in time.
 */
export interface JobStore {
  agenda(): Promise<JobAgenda>
  /** Newest first. */
  listRuns(job: string, limit: number): Promise<readonly JobRun[]>
  findRun(id: number): Promise<JobRun | undefined>
  /** Lines with a higher number than `after`, oldest first. */
  runLog(run: number, after: number, limit: number): Promise<readonly JobLogLine[]>

  /** CONFLICT while a run of the job is queued or running. With a token it is the primary that asks. */
  enqueue(request: { job: string; user: string; params: JobRun['params'] }, token?: number): Promise<JobRun>
  /** A queued run is stopped at once, a running one is asked to end. undefined: there is neither. */
  requestStop(job: string, user: string): Promise<JobRun | undefined>
  /** Whatever the schedule missed until now is not caught up on. */
  changeJob(name: string, change: { schedule?: string | null; enabled?: boolean }): Promise<JobRow>

  /**
   * Makes rows for jobs that have none, queues a run of each of `due` that is enabled and has none queued or running, and counts the
   * schedules of `due` and `reset` as dealt with until now.
   */
  applySchedules(
    change: { newcomers: readonly string[]; due: readonly string[]; reset: readonly string[] },
    token: number,
  ): Promise<void>
  /** The run is this primary's from here on. undefined: it is over. */
  claim(id: number, token: number): Promise<ClaimedRun | undefined>
  /** LEASE_LOST also if the run is over or another primary's. */
  report(
    id: number,
    token: number,
    report: JobReport & { checkpoint?: unknown },
  ): Promise<{ readonly stopRequested: boolean }>
  /** The end of a run; a second one changes nothing. Runs beyond the history of their job are forgotten. */
  finish(
    id: number,
    token: number,
    end: JobReport & { state: FinalJobState; error?: { code: string; message: string } | undefined },
  ): Promise<void>
  /** Deletes up to `limit` rows of a kind; resolves with how many. `auditDays`: age of entries to delete. */
  sweep(kind: SweepKind, limit: number, token: number, auditDays: number): Promise<number>
}
