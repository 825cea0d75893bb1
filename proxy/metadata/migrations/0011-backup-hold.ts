import type { Migration } from './migration.ts'

/**
 * A running backup is a reference (I12): what its snapshot names must not be deleted before it is copied. The run itself is the hold,
 * so that there is nothing to release or to forget: while a run of the task 'backup' goes on, only blobs are purged that were condemned
 * before it began. Why that is enough, for a blob B that the snapshot S of a run names:
 *
 * - The run stands as 'running' in a committed row before S is taken; its started_at is older still.
 * - B is condemned later than S or not at all: at S an artifact names it, and a blob is condemned by a statement that sees no name. So
 *   that statement began after S, and clock_timestamp() in it is later than started_at. (now() would be when its transaction began,
 *   which may be before S.) A minute is taken off for a clock that was set back meanwhile.
 * - B was not condemned before S and forgotten so: a commit that names a condemned blob makes it live in the same transaction.
 * - A purge that does not see the run yet chose its blobs, under their locks and without names, before the row was committed, hence
 *   before S; until it ends no commit can name them, so S names none of them.
 *
 * When the run is over, however it ended, its hold is gone with it.
 */
export const backupHold: Migration = {
  number: 11,
  name: 'backup-hold',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE FUNCTION purge_before_1() RETURNS timestamptz LANGUAGE sql STABLE AS $$
  SELECT coalesce(min(r.started_at) - interval '1 minute', 'infinity'::timestamptz) FROM job_runs r
    WHERE r.job = 'backup' AND r.state = 'running'
$$;

CREATE OR REPLACE FUNCTION condemn_blobs_1(wanted bytea[], age interval) RETURNS TABLE (digest bytea, bytes bigint)
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM blobs b WHERE b.digest = ANY (wanted) ORDER BY b.digest FOR UPDATE;
  RETURN QUERY UPDATE blobs b SET state = 'condemned', state_since = clock_timestamp()
    WHERE b.digest = ANY (wanted) AND b.state = 'live' AND greatest(b.created_at, b.state_since) < now() - age
      AND NOT blob_is_wanted_1(b.digest)
    RETURNING b.digest, b.bytes;
END $$;

CREATE OR REPLACE FUNCTION purge_blobs_1(hold interval, most integer)
RETURNS TABLE (digest bytea, generation text, partition smallint, bytes bigint)
LANGUAGE plpgsql AS $$
DECLARE
  due bytea[];
BEGIN
  due := ARRAY(SELECT b.digest FROM blobs b
    WHERE b.state = 'condemned' AND b.state_since < least(now() - hold, purge_before_1()) ORDER BY b.state_since LIMIT most);
  PERFORM FROM blobs b WHERE b.digest = ANY (due) ORDER BY b.digest FOR UPDATE;
  UPDATE blobs b SET state = 'live', state_since = now()
    WHERE b.digest = ANY (due) AND b.state = 'condemned' AND blob_is_wanted_1(b.digest);
  RETURN QUERY UPDATE blobs b SET state = 'purging', state_since = now()
    WHERE b.digest = ANY (due) AND b.state = 'condemned' AND b.state_since < least(now() - hold, purge_before_1())
    RETURNING b.digest, b.generation, b.partition, b.bytes;
END $$;
`,
}
