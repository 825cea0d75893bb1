import type { Migration } from './migration.ts'

/**
 * `cache_leases` is unlogged on purpose: a lease is worth nothing after a crash, and a server that forgot the leases must
 * have forgotten the row of its birth (holder '') with them. Rows are renewed in place each second.
 */
export const coordination: Migration = {
  number: 2,
  name: 'coordination',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE UNLOGGED TABLE cache_leases (
  holder text COLLATE "C" PRIMARY KEY,
  instance text NOT NULL,
  revoked boolean NOT NULL DEFAULT false,
  registered_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  member text
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
-- A table that was never there before has forgotten nothing, so the first writers need not wait.
INSERT INTO cache_leases (holder, instance, registered_at, expires_at) VALUES ('', '', now() - interval '1 day', 'infinity');

-- Nobody caches until \`until\`. Used with Redis only, while it cannot be reached.
CREATE TABLE cache_suspension (
  one boolean PRIMARY KEY CHECK (one),
  since timestamptz NOT NULL,
  until timestamptz NOT NULL
);

CREATE TABLE role_leases (
  role text COLLATE "C" PRIMARY KEY,
  nonce text NOT NULL,
  holder text NOT NULL,
  expires_at timestamptz NOT NULL
);
`,
}
