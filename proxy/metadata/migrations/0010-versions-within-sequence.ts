import type { Migration } from './migration.ts'

/**
 * A writer that drew its version, and then waited for the row while others overwrote it, took the row's version plus one: beyond what
 * the sequence has issued. Now it draws again, so the sequence bounds all versions there are, and a database that has issued less than
 * the shards know is known to be an older copy.
 */
export const versionsWithinSequence: Migration = {
  number: 10,
  name: 'versions-within-sequence',
  schema: 1,
  phase: 'expand',
  sql: `
DO $do$
DECLARE
  f record;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE proname ~ '^commit_changes_[0-9]+$' AND pronamespace = current_schema()::regnamespace LOOP
    EXECUTE replace(pg_get_functiondef(f.oid),
      $old$greatest(cur.version + 1, coalesce(it.version, nextval('artifact_versions')))$old$,
      $new$CASE WHEN it.version > cur.version THEN it.version ELSE greatest(cur.version + 1, nextval('artifact_versions')) END$new$);
  END LOOP;
END $do$;
SELECT setval('artifact_versions', a.newest) FROM (SELECT max(version) AS newest FROM artifacts) a
  WHERE a.newest > (SELECT last_value FROM artifact_versions);
`,
}
