import type { Migration } from './migration.ts'

/**
 * Digests and checksums are bytea: with their indexes that saves about a third of the space of an artifact against hex.
 * Paths collate as bytes, so that a folder is a range of the primary key. No foreign keys: a shared lock on one row of
 * `repositories` by every write would be the busiest row of the database; the commit takes an advisory lock instead.
 */
export const tables: Migration = {
  number: 1,
  name: 'tables',
  schema: 1,
  phase: 'expand',
  sql: `
-- Cluster id, incarnation of this database, signing secrets.
CREATE TABLE settings (
  key text PRIMARY KEY,
  value text NOT NULL
);

CREATE TABLE repositories (
  id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text COLLATE "C" NOT NULL UNIQUE,
  format text NOT NULL DEFAULT 'raw',
  type text NOT NULL DEFAULT 'hosted',
  redeploy text NOT NULL DEFAULT 'allow' CHECK (redeploy IN ('allow', 'once', 'deny')),
  artifact_bytes_max bigint,
  anonymous_read boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
  name text COLLATE "C" PRIMARY KEY,
  password_hash text NOT NULL,
  admin boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- live: may be named by artifacts. condemned: seen without references, may be rescued. purging: lost, being deleted.
CREATE TABLE blobs (
  digest bytea PRIMARY KEY,
  generation text COLLATE "C" NOT NULL,
  partition smallint NOT NULL,
  bytes bigint NOT NULL,
  md5 bytea NOT NULL,
  sha1 bytea NOT NULL,
  state text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'condemned', 'purging')),
  created_at timestamptz NOT NULL DEFAULT now(),
  state_since timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX blobs_sha1 ON blobs (sha1);
CREATE INDEX blobs_dying ON blobs (state_since) WHERE state <> 'live';

-- Incarnations that no commit may bring to life any more: their bytes were given up before they were confirmed.
CREATE TABLE blob_fences (
  digest bytea NOT NULL,
  generation text COLLATE "C" NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (digest, generation)
);
CREATE INDEX blob_fences_age ON blob_fences (created_at);

-- digest null: a tombstone, which keeps the version growing.
CREATE SEQUENCE artifact_versions;
CREATE TABLE artifacts (
  repository_id integer NOT NULL,
  path text COLLATE "C" NOT NULL,
  digest bytea,
  version bigint NOT NULL,
  content_type text,
  attributes jsonb NOT NULL DEFAULT '{}',
  created_by text NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  deleted_at timestamptz,
  outbox_seq bigint NOT NULL,
  PRIMARY KEY (repository_id, path)
);
-- Folders of many deleted artifacts are listed as fast as empty ones.
CREATE INDEX artifacts_live ON artifacts (repository_id, path) WHERE digest IS NOT NULL;
-- Who names this blob: garbage collection, and the right to read by digest.
CREATE INDEX artifacts_digest ON artifacts (digest) WHERE digest IS NOT NULL;

-- Uploads that will name a blob soon keep it from being collected.
CREATE TABLE pins (
  digest bytea NOT NULL,
  upload text NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (digest, upload)
);
CREATE INDEX pins_expiry ON pins (expires_at);

-- Deletions that can be undone; they count as references of their blob.
CREATE TABLE trash_refs (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  repository_id integer NOT NULL,
  path text COLLATE "C" NOT NULL,
  digest bytea NOT NULL,
  version bigint NOT NULL,
  content_type text,
  attributes jsonb NOT NULL DEFAULT '{}',
  created_by text NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  deleted_by text NOT NULL,
  deleted_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL
);
CREATE INDEX trash_refs_path ON trash_refs (repository_id, path);
CREATE INDEX trash_refs_digest ON trash_refs (digest);
CREATE INDEX trash_refs_expiry ON trash_refs (expires_at);

-- Changes whose reference may not be on a majority of its owners. Rows live for a second: vacuum by count, not by share.
CREATE SEQUENCE outbox_seqs;
CREATE TABLE outbox (
  seq bigint PRIMARY KEY,
  repository_id integer NOT NULL,
  repository text NOT NULL,
  path text COLLATE "C" NOT NULL,
  op text NOT NULL CHECK (op IN ('put', 'delete')),
  version bigint NOT NULL,
  user_name text NOT NULL,
  created_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0);

-- subject: 'digest.generation' of a blob, or 'repository/path' of a reference. The id changes whenever something is
-- added, so that nobody finishes a repair that has grown since they read it.
CREATE SEQUENCE repair_ids;
CREATE TABLE repairs (
  id bigint PRIMARY KEY DEFAULT nextval('repair_ids'),
  kind text NOT NULL CHECK (kind IN ('blob', 'reference')),
  subject text COLLATE "C" NOT NULL,
  partition smallint NOT NULL,
  digest bytea,
  generation text COLLATE "C",
  version bigint,
  missing text[] NOT NULL,
  handoffs text[] NOT NULL,
  attempts integer NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  due_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (kind, subject)
);
CREATE INDEX repairs_due ON repairs (due_at, created_at);

CREATE TABLE leaders (
  role text PRIMARY KEY,
  token bigint NOT NULL,
  holder text NOT NULL,
  since timestamptz NOT NULL
);

CREATE TABLE cluster_maps (
  epoch bigint PRIMARY KEY,
  map text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT now(),
  user_name text NOT NULL,
  action text NOT NULL,
  subject text NOT NULL,
  outcome text NOT NULL,
  address text NOT NULL
);
CREATE INDEX audit_at ON audit (at);
`,
}
