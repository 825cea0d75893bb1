import assert from 'node:assert/strict'
import { HoldfastError } from '../../shared/errors.ts'
import type { Database } from './database.ts'
import type {
  ClaimedRun,
  FinalJobState,
  JobAgenda,
  JobLogLine,
  JobReport,
  JobRow,
  JobRun,
  JobStore,
  StoredProgress,
  SweepKind,
} from './job-types.ts'
import { fenced } from './leaders.ts'
import { statement, type Queryable } from './statement.ts'

/** Runs of each job that are remembered, and lines of each run. */
export const runsKept = 50
export const linesKept = 500
const checkpointCharsMax = 256 * 1024
/** A commit older than this does not exist any more, neither do fences against it need to. */
const fenceDays = 90

interface SettingsRow {
  readonly name: string
  readonly schedule: string | null
  readonly enabled: boolean
  readonly scheduled_until: number
  readonly last_state: FinalJobState | null
  readonly last_finished_at: number | null
  readonly last_success_at: number | null
  readonly last_duration_ms: number | null
  readonly last_error: string | null
}
interface RunRow {
  readonly id: number
  readonly job: string
  readonly origin: JobRun['origin']
  readonly user_name: string | null
  readonly params: Record<string, unknown>
  readonly state: JobRun['state']
  readonly stopped_by: string | null
  readonly token: number | null
  readonly takeovers: number
  readonly fruitless: number
  readonly progress: StoredProgress | null
  readonly estimated_end_at: number | null
  readonly error_code: string | null
  readonly error_message: string | null
  readonly queued_at: number
  readonly started_at: number | null
  readonly finished_at: number | null
}

const settingsColumns = `name, schedule, enabled, scheduled_until, last_state, last_finished_at, last_success_at, last_duration_ms,
  last_error`
const runColumns = `id, job, origin, user_name, params, state, stopped_by, token, takeovers, fruitless, progress, estimated_end_at,
  error_code, error_message, queued_at, started_at, finished_at`

const loadSettings = statement<{ now: number } & (SettingsRow | { readonly name: null })>(
  'job-settings',
  `SELECT now() AS now, j.* FROM (SELECT 1) one LEFT JOIN (SELECT ${settingsColumns} FROM jobs ORDER BY name) j ON true`,
)
const loadActive = statement<RunRow>(
  'job-active',
  `SELECT ${runColumns} FROM job_runs WHERE state IN ('queued', 'running') ORDER BY id`,
)
const loadRuns = statement<RunRow>(
  'job-runs',
  `SELECT ${runColumns} FROM job_runs WHERE job = $1 ORDER BY id DESC LIMIT $2`,
)
const loadRun = statement<RunRow>('job-run', `SELECT ${runColumns} FROM job_runs WHERE id = $1`)
const loadLog = statement<JobLogLine>(
  'job-log',
  'SELECT seq, at, line FROM job_log WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3',
)

const insertRun = statement<RunRow>(
  'job-enqueue',
  `INSERT INTO job_runs (job, origin, user_name, params) VALUES ($1, 'user', $2, $3)
  ON CONFLICT (job) WHERE state IN ('queued', 'running') DO NOTHING RETURNING ${runColumns}`,
)
const stopRun = statement<RunRow>(
  'job-stop',
  `UPDATE job_runs SET stopped_by = coalesce(stopped_by, $2),
    finished_at = CASE WHEN state = 'queued' THEN now() END,
    state = CASE WHEN state = 'queued' THEN 'stopped' ELSE state END
  WHERE job = $1 AND state IN ('queued', 'running') RETURNING ${runColumns}`,
)
const changeSettings = statement<SettingsRow>(
  'job-change',
  `INSERT INTO jobs AS j (name, schedule, enabled) VALUES ($1, CASE WHEN $2 THEN $3::text END, coalesce($4, true))
  ON CONFLICT (name) DO UPDATE SET schedule = CASE WHEN $2 THEN $3::text ELSE j.schedule END, enabled = coalesce($4, j.enabled),
    scheduled_until = now()
  RETURNING ${settingsColumns}`,
)

const addNewcomers = statement(
  'job-newcomers',
  'INSERT INTO jobs (name) SELECT unnest($1::text[]) ON CONFLICT (name) DO NOTHING',
)
const enqueueDue = statement(
  'job-enqueue-due',
  `INSERT INTO job_runs (job, origin) SELECT name, 'schedule' FROM jobs WHERE name = ANY ($1::text[]) AND enabled
  ON CONFLICT (job) WHERE state IN ('queued', 'running') DO NOTHING`,
)
const settleSchedules = statement(
  'job-settle-schedules',
  'UPDATE jobs SET scheduled_until = now() WHERE name = ANY ($1::text[])',
)
const claimRun = statement<RunRow & { readonly checkpoint: unknown }>(
  'job-claim',
  `UPDATE job_runs SET state = 'running', started_at = coalesce(started_at, now()),
    takeovers = takeovers + (token <> $2 IS TRUE)::integer, fruitless = fruitless + (token <> $2 IS TRUE)::integer, token = $2
  WHERE id = $1 AND state IN ('queued', 'running') RETURNING ${runColumns}, checkpoint`,
)
const reportRun = statement<{ stop_requested: boolean }>(
  'job-report',
  `UPDATE job_runs SET progress = coalesce($3, progress),
    estimated_end_at = CASE WHEN $3 IS NULL THEN estimated_end_at ELSE now() + $4 * interval '1 millisecond' END,
    checkpoint = CASE WHEN $5 THEN $6 ELSE checkpoint END, fruitless = CASE WHEN $5 THEN 0 ELSE fruitless END
  WHERE id = $1 AND state = 'running' AND token = $2 RETURNING stopped_by IS NOT NULL AS stop_requested`,
)
const finishRun = statement<{ job: string }>(
  'job-finish',
  `WITH done AS (
    UPDATE job_runs SET state = $3, error_code = $4, error_message = $5, finished_at = now(), estimated_end_at = NULL
    WHERE id = $1 AND state = 'running' AND token = $2
    RETURNING job, extract(epoch FROM now() - started_at) * 1000 AS duration_ms)
  UPDATE jobs SET last_state = $3, last_finished_at = now(), last_duration_ms = done.duration_ms::bigint, last_error = $5,
    last_success_at = CASE WHEN $3 = 'succeeded' THEN now() ELSE last_success_at END
  FROM done WHERE name = done.job RETURNING name AS job`,
)
const appendLog = statement(
  'job-append-log',
  `WITH run AS (
    UPDATE job_runs SET log_lines = log_lines + cardinality($2::text[]) WHERE id = $1 RETURNING log_lines),
  forgotten AS (DELETE FROM job_log USING run WHERE run_id = $1 AND seq <= run.log_lines - ${linesKept})
  INSERT INTO job_log (run_id, seq, at, line)
  SELECT $1, run.log_lines - cardinality($2::text[]) + l.ord, now(), l.line
  FROM run, unnest($2::text[]) WITH ORDINALITY AS l(line, ord)
  WHERE cardinality($2::text[]) - l.ord < ${linesKept}`,
)
const forgetRuns = statement(
  'job-forget-runs',
  `WITH old AS (
    DELETE FROM job_runs WHERE job = $1 AND state NOT IN ('queued', 'running')
      AND id <= (SELECT id FROM job_runs WHERE job = $1 ORDER BY id DESC OFFSET ${runsKept} LIMIT 1)
    RETURNING id)
  DELETE FROM job_log USING old WHERE run_id = old.id`,
)

/** Each deletes up to $1 rows and returns one for each. */
const sweeps: Readonly<Record<SweepKind, ReturnType<typeof statement>>> = {
  runs: statement(
    'sweep-runs',
    `DELETE FROM job_runs WHERE id IN (
      SELECT id FROM (
        SELECT id, state, row_number() OVER (PARTITION BY job ORDER BY id DESC) AS place FROM job_runs) r
      WHERE place > ${runsKept} AND state NOT IN ('queued', 'running') ORDER BY id LIMIT $1)
    RETURNING 1`,
  ),
  log: statement(
    'sweep-log',
    `DELETE FROM job_log WHERE (run_id, seq) IN (
      SELECT l.run_id, l.seq FROM job_log l WHERE NOT EXISTS (SELECT FROM job_runs r WHERE r.id = l.run_id)
      ORDER BY l.run_id, l.seq LIMIT $1)
    RETURNING 1`,
  ),
  pins: statement(
    'sweep-pins',
    `DELETE FROM pins WHERE (digest, upload) IN (
      SELECT digest, upload FROM pins WHERE expires_at < now() ORDER BY expires_at LIMIT $1)
      AND expires_at < now()
    RETURNING 1`,
  ),
  fences: statement(
    'sweep-fences',
    `DELETE FROM blob_fences WHERE (digest, generation) IN (
      SELECT digest, generation FROM blob_fences WHERE created_at < now() - interval '${fenceDays} days'
      ORDER BY created_at LIMIT $1)
    RETURNING 1`,
  ),
  audit: statement(
    'sweep-audit',
    `DELETE FROM audit WHERE id IN (
      SELECT id FROM audit WHERE at < now() - $2 * interval '1 day' ORDER BY at LIMIT $1)
    RETURNING 1`,
  ),
}

/** The tables of jobs, their runs and logs. */
export class JobTables implements JobStore {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  async agenda(): Promise<JobAgenda> {
    const [settings, active] = await Promise.all([
      this.#database.read(loadSettings, []),
      this.#database.read(loadActive, []),
    ])
    const jobs = settings.flatMap(row => (row.name === null ? [] : [settingsOf(row)]))
    return { now: settings[0]!.now, jobs, active: active.map(runOf) }
  }

  async listRuns(job: string, limit: number): Promise<readonly JobRun[]> {
    return (await this.#database.read(loadRuns, [job, limit])).map(runOf)
  }

  async findRun(id: number): Promise<JobRun | undefined> {
    const [row] = await this.#database.read(loadRun, [id])
    return row && runOf(row)
  }

  async runLog(run: number, after: number, limit: number): Promise<readonly JobLogLine[]> {
    return this.#database.read(loadLog, [run, after, limit])
  }

  async enqueue({ job, user, params }: Parameters<JobStore['enqueue']>[0], token?: number): Promise<JobRun> {
    const values = [job, user, JSON.stringify(params)]
    const [row] =
      token === undefined
        ? await this.#database.query(insertRun, values)
        : await fenced(this.#database, token, transaction => transaction.query(insertRun, values))
    if (row === undefined) throw new HoldfastError('CONFLICT', `a run of '${job}' is queued or running`, { task: job })
    return runOf(row)
  }

  async requestStop(job: string, user: string): Promise<JobRun | undefined> {
    const [row] = await this.#database.query(stopRun, [job, user])
    return row && runOf(row)
  }

  async changeJob(name: string, { schedule, enabled }: Parameters<JobStore['changeJob']>[1]): Promise<JobRow> {
    const values = [name, schedule !== undefined, schedule ?? null, enabled ?? null]
    const [row] = await this.#database.query(changeSettings, values)
    return settingsOf(row!)
  }

  async applySchedules(
    { newcomers, due, reset }: Parameters<JobStore['applySchedules']>[0],
    token: number,
  ): Promise<void> {
    await fenced(this.#database, token, async transaction => {
      if (newcomers.length > 0) await transaction.query(addNewcomers, [newcomers])
      if (due.length > 0) await transaction.query(enqueueDue, [due])
      if (due.length + reset.length > 0) await transaction.query(settleSchedules, [[...due, ...reset]])
    })
  }

  claim(id: number, token: number): Promise<ClaimedRun | undefined> {
    return fenced(this.#database, token, async transaction => {
      const [row] = await transaction.query(claimRun, [id, token])
      return row && { ...runOf(row), checkpoint: row.checkpoint ?? undefined }
    })
  }

  async report(
    id: number,
    token: number,
    report: JobReport & { checkpoint?: unknown },
  ): Promise<{ readonly stopRequested: boolean }> {
    const saves = report.checkpoint !== undefined
    const checkpoint = saves ? JSON.stringify(report.checkpoint) : null
    assert((checkpoint?.length ?? 0) <= checkpointCharsMax, 'a checkpoint has up to 256 KiB')
    return fenced(this.#database, token, async transaction => {
      const stopRequested = await reportOf(transaction, id, token, { ...report, saves, checkpoint })
      if (stopRequested === undefined) throw new HoldfastError('LEASE_LOST', 'the run is no longer ours', { run: id })
      return { stopRequested }
    })
  }

  async finish(id: number, token: number, end: Parameters<JobStore['finish']>[2]): Promise<void> {
    await fenced(this.#database, token, async transaction => {
      const ours = await reportOf(transaction, id, token, { ...end, saves: false, checkpoint: null })
      if (ours === undefined) return
      const values = [id, token, end.state, end.error?.code ?? null, end.error?.message ?? null]
      const [row] = await transaction.query(finishRun, values)
      if (row !== undefined) await transaction.query(forgetRuns, [row.job])
    })
  }

  async sweep(kind: SweepKind, limit: number, token: number, auditDays: number): Promise<number> {
    const values = kind === 'audit' ? [limit, auditDays] : [limit]
    return fenced(this.#database, token, async transaction => (await transaction.query(sweeps[kind], values)).length)
  }
}

/** Was its end asked for? undefined: the run is over, or another primary's. */
async function reportOf(
  transaction: Queryable,
  id: number,
  token: number,
  report: JobReport & { readonly saves: boolean; readonly checkpoint: string | null },
): Promise<boolean | undefined> {
  const { progress, remainingMs, lines, saves, checkpoint } = report
  const [row] = await transaction.query(reportRun, [
    id,
    token,
    progress === undefined ? null : JSON.stringify(progress),
    remainingMs ?? null,
    saves,
    checkpoint,
  ])
  if (row !== undefined && lines.length > 0) await transaction.query(appendLog, [id, lines])
  return row?.stop_requested
}

function settingsOf(row: SettingsRow): JobRow {
  return {
    name: row.name,
    schedule: row.schedule,
    enabled: row.enabled,
    scheduledUntil: row.scheduled_until,
    lastState: row.last_state,
    lastFinishedAt: row.last_finished_at,
    lastSuccessAt: row.last_success_at,
    lastDurationMs: row.last_duration_ms,
    lastError: row.last_error,
  }
}

function runOf(row: RunRow): JobRun {
  return {
    id: row.id,
    job: row.job,
    origin: row.origin,
    user: row.user_name,
    params: row.params,
    state: row.state,
    stoppedBy: row.stopped_by,
    token: row.token,
    takeovers: row.takeovers,
    fruitless: row.fruitless,
    progress: row.progress,
    estimatedEndAt: row.estimated_end_at,
    error: row.error_code === null ? null : { code: row.error_code, message: row.error_message ?? '' },
    queuedAt: row.queued_at,
    startedAt: row.started_at,
    finishedAt: row.finished_at,
  }
}
