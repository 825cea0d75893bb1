import type { Migration } from './migration.ts'

/**
 * What garbage collection has to look at: every digest that lost a name stands in `lost_names`, from the transaction on that took the name,
 * until a run finds it named or gone. Triggers, so that every way to lose a name is remembered, also by proxies of the release before, and
 * by hand. So each blob that nothing names is in it, but for those from before this migration; the full pass finds them.
 *
 * - A row for each loss, none for a digest: `ON CONFLICT DO NOTHING` would lean on a row that is just being taken out by somebody who does
 *   not see our loss yet. Who takes rows out and judges in one statement sees of each row it takes the loss as well, and a loss that it
 *   does not see brings a row that it does not take.
 * - A blob that never had a name: its upload was refused by the state of its path, in a group with others of the same bytes or after it
 *   took the place of a deleted generation. Commits note it themselves.
 * - Pins need no trigger: what is only pinned stays in the table.
 *
 * Nothing is read or rewritten; each trigger needs its table for a moment.
 *
 * The purge is changed as well: it chose rows by their state, which PostgreSQL looks up among all condemned ones when it believes them to be
 * few, once for each thousand. Now each is looked up by its digest ('OFFSET 0' keeps the state out of that choice). Between the two
 * statements nothing changes, since the rows are locked.
 */
export const lostNames: Migration = {
  number: 13,
  name: 'lost-names',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE TABLE lost_names (
  digest bytea NOT NULL,
  id bigint GENERATED ALWAYS AS IDENTITY,
  PRIMARY KEY (digest, id)
) WITH (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.1);

CREATE FUNCTION lose_name_1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO lost_names (digest) VALUES (OLD.digest);
  RETURN NULL;
END $$;
CREATE TRIGGER lose_name AFTER UPDATE OF digest ON artifacts FOR EACH ROW
  WHEN (OLD.digest IS NOT NULL AND OLD.digest IS DISTINCT FROM NEW.digest) EXECUTE FUNCTION lose_name_1();
CREATE TRIGGER lose_name_deleted AFTER DELETE ON artifacts FOR EACH ROW
  WHEN (OLD.digest IS NOT NULL) EXECUTE FUNCTION lose_name_1();
CREATE TRIGGER lose_name AFTER DELETE OR UPDATE OF digest ON trash_refs FOR EACH ROW EXECUTE FUNCTION lose_name_1();

DO $do$
DECLARE
  f record;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE proname ~ '^commit_changes_[0-9]+$' AND pronamespace = current_schema()::regnamespace LOOP
    EXECUTE replace(pg_get_functiondef(f.oid),
      $old$      it.outcome := 'refused';$old$,
      $new$      it.outcome := 'refused';
      IF it.op = 'put' THEN
        INSERT INTO lost_names (digest) VALUES (it.digest);
      END IF;$new$);
  END LOOP;
END $do$;

CREATE OR REPLACE FUNCTION purge_blobs_1(hold interval, most integer)
RETURNS TABLE (digest bytea, generation text, partition smallint, bytes bigint)
LANGUAGE plpgsql AS $$
DECLARE
  until timestamptz := least(now() - hold, purge_before_1());
  due bytea[];
  wanted bytea[];
BEGIN
  due := ARRAY(SELECT b.digest FROM blobs b WHERE b.state = 'condemned' AND b.state_since < until ORDER BY b.state_since LIMIT most);
  PERFORM FROM blobs b WHERE b.digest = ANY (due) ORDER BY b.digest FOR UPDATE;
  -- Of the backups too: one may have begun while the locks were waited for.
  until := least(now() - hold, purge_before_1());
  due := ARRAY(SELECT d FROM unnest(due) d,
    LATERAL (SELECT b.state, b.state_since FROM blobs b WHERE b.digest = d OFFSET 0) b
    WHERE b.state = 'condemned' AND b.state_since < until);
  wanted := ARRAY(SELECT d FROM unnest(due) d WHERE blob_is_wanted_1(d));
  UPDATE blobs b SET state = 'live', state_since = now() WHERE b.digest = ANY (wanted);
  RETURN QUERY UPDATE blobs b SET state = 'purging', state_since = now()
    WHERE b.digest = ANY (due) AND b.digest <> ALL (wanted)
    RETURNING b.digest, b.generation, b.partition, b.bytes;
END $$;
`,
}
