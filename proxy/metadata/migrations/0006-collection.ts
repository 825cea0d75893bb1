import type { Migration } from './migration.ts'

/**
 * Garbage collection's two decisions. Each takes the locks of the blobs first, and decides in a statement of its own: that one sees
 * what was committed while the locks were waited for, whereas a statement that locks and decides at once judges by the snapshot it began
 * with, and purges a blob that got its reference meanwhile. Locks are taken in the order of commits.
 */
export const collection: Migration = {
  number: 6,
  name: 'collection',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE FUNCTION blob_is_wanted_1(wanted bytea) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT EXISTS (SELECT FROM artifacts a WHERE a.digest = wanted)
    OR EXISTS (SELECT FROM trash_refs t WHERE t.digest = wanted)
    OR EXISTS (SELECT FROM pins p WHERE p.digest = wanted AND p.expires_at > now())
$$;

CREATE FUNCTION condemn_blobs_1(wanted bytea[], age interval) RETURNS TABLE (digest bytea, bytes bigint)
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM blobs b WHERE b.digest = ANY (wanted) ORDER BY b.digest FOR UPDATE;
  RETURN QUERY UPDATE blobs b SET state = 'condemned', state_since = now()
    WHERE b.digest = ANY (wanted) AND b.state = 'live' AND greatest(b.created_at, b.state_since) < now() - age
      AND NOT blob_is_wanted_1(b.digest)
    RETURNING b.digest, b.bytes;
END $$;

-- From 'purging' on no commit can name this generation any more.
CREATE FUNCTION purge_blobs_1(hold interval, most integer)
RETURNS TABLE (digest bytea, generation text, partition smallint, bytes bigint)
LANGUAGE plpgsql AS $$
DECLARE
  due bytea[];
BEGIN
  due := ARRAY(SELECT b.digest FROM blobs b WHERE b.state = 'condemned' AND b.state_since < now() - hold
    ORDER BY b.state_since LIMIT most);
  PERFORM FROM blobs b WHERE b.digest = ANY (due) ORDER BY b.digest FOR UPDATE;
  UPDATE blobs b SET state = 'live', state_since = now()
    WHERE b.digest = ANY (due) AND b.state = 'condemned' AND blob_is_wanted_1(b.digest);
  RETURN QUERY UPDATE blobs b SET state = 'purging', state_since = now()
    WHERE b.digest = ANY (due) AND b.state = 'condemned' AND b.state_since < now() - hold
    RETURNING b.digest, b.generation, b.partition, b.bytes;
END $$;
`,
}
