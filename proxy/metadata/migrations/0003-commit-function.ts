import type { Migration } from './migration.ts'

/**
 * The commit of a group of writes and deletions as one function: one round trip and one fsync for all of them. A
 * function, because in READ COMMITTED each of its statements sees what was committed while the one before it waited
 * for a lock; a single statement with several CTEs decides on the snapshot it began with.
 *
 * It takes its locks in one order (repositories, blobs by digest, artifacts by path, repairs by subject), so that groups
 * never wait for each other in a circle. Outcomes are values, not exceptions: a refused item does not fail the others.
 * Callers name the function by its number: a later release adds commit_changes_2 beside it.
 */
export const commitFunction: Migration = {
  number: 3,
  name: 'commit-function',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE TYPE commit_item_1 AS (
  ord integer,
  op text,                 -- 'put' or 'delete'
  repository_id integer,
  repository text,
  path text,
  user_name text,
  absent boolean,          -- conditions: If-None-Match: *
  match_any boolean,       -- If-Match: *
  match bytea[],           -- If-Match: one of these; null: no such condition
  redeploy text,
  content_type text,
  attributes jsonb,
  is_new boolean,          -- the caller just made the blob durable under this generation
  digest bytea,
  generation text,
  partition smallint,
  bytes bigint,
  md5 bytea,
  sha1 bytea,
  missing text[],
  handoffs text[],
  -- filled in here
  outcome text,
  reason text,
  inserted boolean,
  version bigint,
  outbox_seq bigint,
  created_by text,
  created_at timestamptz,
  updated_at timestamptz
);

-- Merges: one entry for a subject, with all that was ever reported missing since the last repair.
CREATE FUNCTION add_repairs_1(entries jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  e record;
BEGIN
  FOR e IN
    SELECT * FROM jsonb_to_recordset(entries)
      AS r(kind text, subject text, partition smallint, digest bytea, generation text, version bigint, missing text[], handoffs text[])
    ORDER BY kind, subject COLLATE "C"
  LOOP
    INSERT INTO repairs AS r (kind, subject, partition, digest, generation, version, missing, handoffs)
    VALUES (e.kind, e.subject, e.partition, e.digest, e.generation, e.version, e.missing, e.handoffs)
    ON CONFLICT (kind, subject) DO UPDATE SET
      id = nextval('repair_ids'),
      version = greatest(r.version, excluded.version),
      missing = ARRAY(SELECT DISTINCT u FROM unnest(r.missing || excluded.missing) u ORDER BY u),
      handoffs = ARRAY(SELECT DISTINCT u FROM unnest(r.handoffs || excluded.handoffs) u ORDER BY u),
      due_at = CASE WHEN excluded.missing <@ r.missing THEN r.due_at ELSE least(r.due_at, now()) END;
  END LOOP;
END $$;

-- For blobs that no reference confirmed: is there a row, or else never will be one of this generation. Inserting the row
-- itself is what makes a commit in flight and this function wait for each other.
CREATE FUNCTION reclaim_unconfirmed_1(unconfirmed jsonb) RETURNS TABLE (ord integer, verdict text) LANGUAGE plpgsql AS $$
DECLARE
  e record;
  b blobs;
BEGIN
  FOR e IN
    SELECT * FROM jsonb_to_recordset(unconfirmed) AS r(ord integer, digest bytea, generation text, partition smallint, bytes bigint)
    ORDER BY r.digest, r.ord
  LOOP
    LOOP
      INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1, state)
      VALUES (e.digest, e.generation, e.partition, e.bytes, '', '', 'purging')
      ON CONFLICT (digest) DO NOTHING;
      IF FOUND THEN
        DELETE FROM blobs WHERE digest = e.digest;
        b := NULL;
        EXIT;
      END IF;
      SELECT * INTO b FROM blobs WHERE digest = e.digest FOR NO KEY UPDATE;
      EXIT WHEN FOUND;
    END LOOP;
    ord := e.ord;
    IF b.generation = e.generation AND b.state <> 'purging' THEN
      verdict := 'live';
    ELSE
      INSERT INTO blob_fences (digest, generation) VALUES (e.digest, e.generation) ON CONFLICT DO NOTHING;
      verdict := 'reclaim';
    END IF;
    RETURN NEXT;
  END LOOP;
END $$;

CREATE FUNCTION commit_changes_1(changes jsonb) RETURNS SETOF commit_item_1 LANGUAGE plpgsql AS $$
DECLARE
  items commit_item_1[];
  it commit_item_1;
  by_path integer[];
  known integer[];
  incomplete boolean;
  i integer;
  b blobs;
  cur artifacts;
  found_live boolean;
  at timestamptz;
BEGIN
  SELECT array_agg(c ORDER BY c.digest, c.ord), array_agg(DISTINCT c.repository_id), bool_or(cardinality(c.missing) > 0)
    INTO items, known, incomplete
    FROM jsonb_populate_recordset(NULL::commit_item_1, changes) c;
  SELECT array_agg(s ORDER BY items[s].repository_id, items[s].path COLLATE "C", items[s].ord) INTO by_path
    FROM generate_subscripts(items, 1) s;

  -- A repository cannot be deleted while something is committed into it.
  PERFORM pg_advisory_xact_lock_shared(4832, id) FROM unnest(known) id;
  known := ARRAY(SELECT r.id FROM repositories r WHERE r.id = ANY (known));

  -- 1. Each blob is live with the generation whose copies the caller verified, and stays so until we are done.
  FOR i IN 1 .. cardinality(items) LOOP
    it := items[i];
    IF it.repository_id <> ALL (known) THEN
      it.outcome := 'no-repository';
    ELSIF it.op = 'put' THEN
      LOOP
        IF it.is_new THEN
          INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1)
          VALUES (it.digest, it.generation, it.partition, it.bytes, it.md5, it.sha1)
          ON CONFLICT (digest) DO NOTHING;
          IF FOUND THEN
            it.inserted := true;
            -- A statement of its own: whoever fences this generation off later waits for our row.
            IF EXISTS (SELECT FROM blob_fences f WHERE f.digest = it.digest AND f.generation = it.generation) THEN
              DELETE FROM blobs WHERE digest = it.digest;
              it.outcome := 'blob-gone';
            END IF;
            EXIT;
          END IF;
        END IF;
        SELECT * INTO b FROM blobs WHERE digest = it.digest AND state = 'live' FOR SHARE;
        IF NOT FOUND THEN
          SELECT * INTO b FROM blobs WHERE digest = it.digest FOR NO KEY UPDATE;
          IF NOT FOUND THEN
            CONTINUE WHEN it.is_new;
            it.outcome := 'blob-gone';
            EXIT;
          ELSIF b.state = 'condemned' AND b.generation = it.generation THEN
            UPDATE blobs SET state = 'live', state_since = now() WHERE digest = it.digest;
          ELSIF b.state = 'purging' THEN
            IF NOT it.is_new OR b.generation = it.generation
              OR EXISTS (SELECT FROM blob_fences f WHERE f.digest = it.digest AND f.generation = it.generation) THEN
              it.outcome := 'blob-gone';
              EXIT;
            END IF;
            -- The old incarnation is lost; its deletions name its generation and cannot hit the new one.
            INSERT INTO blob_fences (digest, generation) VALUES (b.digest, b.generation) ON CONFLICT DO NOTHING;
            UPDATE blobs SET generation = it.generation, partition = it.partition, bytes = it.bytes, md5 = it.md5,
              sha1 = it.sha1, state = 'live', created_at = now(), state_since = now()
            WHERE digest = it.digest;
            EXIT;
          END IF;
        END IF;
        IF b.generation <> it.generation THEN
          it.outcome := 'blob-exists';
        END IF;
        it.generation := b.generation;
        it.partition := b.partition;
        it.bytes := b.bytes;
        it.md5 := b.md5;
        it.sha1 := b.sha1;
        EXIT;
      END LOOP;
    END IF;
    items[i] := it;
  END LOOP;

  -- 2. Each path, under its row's lock.
  FOREACH i IN ARRAY by_path LOOP
    it := items[i];
    CONTINUE WHEN it.outcome IS NOT NULL;
    at := clock_timestamp();
    IF it.op = 'put' AND it.match IS NULL AND NOT it.match_any AND it.redeploy <> 'deny' THEN
      it.version := nextval('artifact_versions');
      it.outbox_seq := nextval('outbox_seqs');
      INSERT INTO artifacts (repository_id, path, digest, version, content_type, attributes, created_by, created_at, updated_at, outbox_seq)
      VALUES (it.repository_id, it.path, it.digest, it.version, it.content_type, it.attributes, it.user_name, at, at, it.outbox_seq)
      ON CONFLICT (repository_id, path) DO NOTHING;
      IF FOUND THEN
        it.outcome := 'created';
        it.created_by := it.user_name;
        it.created_at := at;
        it.updated_at := at;
        items[i] := it;
        CONTINUE;
      END IF;
    END IF;

    SELECT * INTO cur FROM artifacts WHERE repository_id = it.repository_id AND path = it.path FOR NO KEY UPDATE;
    found_live := FOUND AND cur.digest IS NOT NULL;
    IF it.op = 'put' AND it.redeploy = 'deny' THEN
      it.reason := 'redeploy';
    ELSIF it.op = 'put' AND it.absent AND found_live THEN
      it.reason := 'exists';
    ELSIF (it.match_any AND NOT found_live)
      OR (it.match IS NOT NULL AND (NOT found_live OR cur.digest <> ALL (it.match))) THEN
      it.reason := 'no-match';
    ELSIF it.op = 'put' AND it.redeploy = 'once' AND found_live AND cur.digest <> it.digest THEN
      it.reason := 'redeploy';
    END IF;

    IF it.reason IS NOT NULL THEN
      it.outcome := 'refused';
      IF it.inserted AND NOT EXISTS (
        SELECT FROM unnest(items) o WHERE o.digest = it.digest AND o.ord <> it.ord AND o.outcome IS DISTINCT FROM 'refused'
          AND o.outcome IS DISTINCT FROM 'no-repository'
      ) THEN
        DELETE FROM blobs WHERE digest = it.digest;
      END IF;
    ELSIF it.op = 'delete' THEN
      IF found_live THEN
        it.version := greatest(cur.version + 1, nextval('artifact_versions'));
        it.outbox_seq := nextval('outbox_seqs');
        it.updated_at := at;
        it.outcome := 'deleted';
        UPDATE artifacts SET digest = NULL, version = it.version, content_type = NULL, attributes = '{}',
          updated_at = at, deleted_at = at, outbox_seq = it.outbox_seq
        WHERE repository_id = it.repository_id AND path = it.path;
      ELSE
        it.outcome := 'absent';
      END IF;
    ELSIF found_live AND cur.digest = it.digest AND cur.content_type IS NOT DISTINCT FROM it.content_type
      AND cur.attributes = it.attributes THEN
      it.outcome := 'unchanged';
      it.version := cur.version;
      it.created_by := cur.created_by;
      it.created_at := cur.created_at;
      it.updated_at := cur.updated_at;
      -- Whoever wrote it may not have its reference on a majority yet: then neither has this caller.
      it.outbox_seq := coalesce(
        (SELECT o.seq FROM outbox o WHERE o.seq = cur.outbox_seq),
        (SELECT max(u.outbox_seq) FROM unnest(items) u WHERE u.outbox_seq = cur.outbox_seq));
    ELSE
      it.version := greatest(cur.version + 1, coalesce(it.version, nextval('artifact_versions')));
      it.outbox_seq := coalesce(it.outbox_seq, nextval('outbox_seqs'));
      it.created_by := it.user_name;
      it.created_at := CASE WHEN found_live THEN cur.created_at ELSE at END;
      it.updated_at := greatest(at, cur.updated_at);
      it.outcome := CASE WHEN found_live THEN 'replaced' ELSE 'created' END;
      UPDATE artifacts SET digest = it.digest, version = it.version, content_type = it.content_type, attributes = it.attributes,
        created_by = it.created_by, created_at = it.created_at, updated_at = it.updated_at, deleted_at = NULL,
        outbox_seq = it.outbox_seq
      WHERE repository_id = it.repository_id AND path = it.path;
    END IF;
    items[i] := it;
  END LOOP;

  INSERT INTO outbox (seq, repository_id, repository, path, op, version, user_name, created_at)
  SELECT u.outbox_seq, u.repository_id, u.repository, u.path, u.op, u.version, u.user_name, u.updated_at
  FROM unnest(items) u WHERE u.outcome IN ('created', 'replaced', 'deleted');

  IF incomplete THEN
    PERFORM add_repairs_1((
      SELECT coalesce(jsonb_agg(jsonb_build_object('kind', 'blob', 'subject', encode(u.digest, 'hex') || '.' || u.generation,
        'partition', u.partition, 'digest', u.digest, 'generation', u.generation, 'missing', u.missing, 'handoffs', u.handoffs)), '[]')
      FROM unnest(items) u WHERE cardinality(u.missing) > 0 AND u.outcome IN ('created', 'replaced', 'unchanged')));
  END IF;
  RETURN QUERY SELECT * FROM unnest(items);
END $$;
`,
}
