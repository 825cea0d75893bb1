/**
 * Jobs: work of the cluster that has a beginning and an end, runs on the primary by schedule or on demand, and can be watched, stopped
 * and resumed by another primary. Endless reactive loops are PrimaryTasks (primary.ts) instead.
 *
 * A job is a value of type `Job`, listed in proxy/worker.ts. Its state stands in PostgreSQL; every write of it is fenced (I27).
 */
import type { Term } from './primary.ts'

export type JobParams = Readonly<Record<string, unknown>>

export interface JobProgress {
  /** Of this run, across takeovers: keep it in the checkpoint. */
  readonly done: number
  /** Where it is known, the cluster shows an estimate. */
  readonly total?: number
  /** What is counted, in the plural: 'blobs', 'bytes', 'partitions'. */
  readonly unit: string
  /** One short line on what is being done, or has been found. */
  readonly note?: string
  /** All that is left waits for something else than time: no estimate. */
  readonly waits?: boolean
}

export interface JobContext<Checkpoint = unknown> {
  /** Of the run in PostgreSQL; the same after a takeover. */
  readonly runId: number
  /**
   * The token goes with everything the job changes in PostgreSQL (`fenced`) or on nodes (`fence`). The signal aborts when the lease is
   * lost, the proxy ends, or somebody stops the run. `term.signal.throwIfAborted()` before each step is the lease check: reading
   * `term.signal` looks at the clock, so no step begins under a lease that ran out while the process was paused.
   */
  readonly term: Term
  /** What `save` was last given, by whichever primary; undefined at the beginning. */
  readonly checkpoint: Checkpoint | undefined
  /** What was given by who started the run; {} for a scheduled one. Already accepted by `checkParams`. */
  readonly params: JobParams
  /**
   * Makes the checkpoint (JSON, up to 256 KiB) durable, together with progress and log lines. Waits for a database that is away. Rejects
   * if the run has ended (stopped, lease lost): let it pass through. Costs one transaction: about once a second is plenty.
   */
  save(this: void, checkpoint: Checkpoint): Promise<void>
  /** Remembered at once, written within about a second. */
  progress(this: void, progress: JobProgress): void
  /** A line for people, written within about a second; the newest 500 of a run are kept. No secrets. */
  log(this: void, line: string): void
  /** Resolves after `ms`; rejects at once when the run has ended. `pause(0)` lets others work and checks the lease. */
  pause(this: void, ms: number): Promise<void>
}

export interface Job<Checkpoint = unknown> {
  /** Lower case with hyphens, for ever: it names rows, routes and metrics. */
  readonly name: string
  /** What it does, in a few words for a list. */
  readonly title: string
  /** Five cron fields in UTC (cron.ts); null: only on demand, unless somebody sets a schedule. */
  readonly defaultSchedule: string | null
  /** Throws BAD_REQUEST for parameters that make no sense; without it only {} is accepted. */
  checkParams?(params: JobParams): void
  /**
   * Rejects a run that somebody asks for and that could only fail (NOT_FOUND, CONFLICT), so that none begins: a slip is no failed task. May
   * look at settings and the database. `run` cannot rely on it: what it found may have changed, and scheduled runs are not asked for.
   */
  checkStart?(params: JobParams): Promise<void>
  /**
   * Does the work in idempotent steps of up to a second each, with a lease check before each, `save` now and then, and resumes from
   * `context.checkpoint`. Resolves: succeeded. METADATA_UNAVAILABLE, COORDINATION_UNAVAILABLE, LEASE_LOST, STALE_TOKEN and what comes of
   * the signal interrupt the run, which is resumed; any other rejection ends it as failed.
   */
  run(context: JobContext<Checkpoint>): Promise<void>
}
