import type { Migration } from './migration.ts'

/** Policies that delete what nobody needs any more, and what they have to know: when something was last downloaded. */
export const cleanup: Migration = {
  number: 9,
  name: 'cleanup',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE TABLE cleanup_policies (
  name text COLLATE "C" PRIMARY KEY,
  -- null: all
  repositories text[],
  conditions jsonb NOT NULL,
  enabled boolean NOT NULL DEFAULT false,
  changed_by text NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT now()
);

-- The last day (UTC) on which a path was downloaded. A path without a row was not, since recording began.
CREATE TABLE downloads (
  repository_id integer NOT NULL,
  path text COLLATE "C" NOT NULL,
  day date NOT NULL,
  PRIMARY KEY (repository_id, path)
);
INSERT INTO settings (key, value) VALUES ('downloads_recorded_since', (extract(epoch FROM now()) * 1000)::bigint::text);
`,
}
