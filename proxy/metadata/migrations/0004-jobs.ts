import type { Migration } from './migration.ts'

/** Jobs of the primary. What a proxy's API writes are requests (queued runs, settings, wishes to stop); the rest is the primary's. */
export const jobs: Migration = {
  number: 4,
  name: 'jobs',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE TABLE jobs (
  name text COLLATE "C" PRIMARY KEY,
  -- null: the job's own; '': none
  schedule text,
  enabled boolean NOT NULL DEFAULT true,
  -- Times of the schedule up to this one are dealt with.
  scheduled_until timestamptz NOT NULL DEFAULT now(),
  -- Of the last runs, also when those are forgotten.
  last_state text,
  last_finished_at timestamptz,
  last_success_at timestamptz,
  last_duration_ms bigint,
  last_error text
);

CREATE TABLE job_runs (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job text COLLATE "C" NOT NULL,
  origin text NOT NULL CHECK (origin IN ('schedule', 'user')),
  user_name text,
  params jsonb NOT NULL DEFAULT '{}',
  state text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'stopped')),
  stopped_by text,
  -- Of the primary that runs it.
  token bigint,
  takeovers integer NOT NULL DEFAULT 0,
  -- Takeovers since the checkpoint was last saved: a run that ends each primary must not go on for ever.
  fruitless integer NOT NULL DEFAULT 0,
  checkpoint jsonb,
  progress jsonb,
  estimated_end_at timestamptz,
  error_code text,
  error_message text,
  log_lines integer NOT NULL DEFAULT 0,
  queued_at timestamptz NOT NULL DEFAULT now(),
  started_at timestamptz,
  finished_at timestamptz
) WITH (fillfactor = 70);
-- At most one run of a job that is not over.
CREATE UNIQUE INDEX job_runs_active ON job_runs (job) WHERE state IN ('queued', 'running');
CREATE INDEX job_runs_history ON job_runs (job, id);

CREATE TABLE job_log (
  run_id bigint NOT NULL,
  seq integer NOT NULL,
  at timestamptz NOT NULL,
  line text NOT NULL,
  PRIMARY KEY (run_id, seq)
);
`,
}
