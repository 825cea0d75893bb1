import assert from 'node:assert/strict'
import { commitFunction } from './0003-commit-function.ts'
import type { Migration } from './migration.ts'

/**
 * Deletions that can be undone. commit_changes_2 is commit_changes_1 with a word on what its deletions are, and a line that puts what is
 * deleted into the trash. Its text is made from the older one, which never changes any more, so there is one text to read; a proxy of
 * the release before goes on with commit_changes_1, whose deletions are final.
 */
export const trash: Migration = {
  number: 7,
  name: 'trash',
  schema: 1,
  phase: 'expand',
  sql: `
-- 0: deletions are final.
ALTER TABLE repositories ADD COLUMN trash_days integer NOT NULL DEFAULT 7 CHECK (trash_days BETWEEN 0 AND 3650);

-- Newest deletion of each path first; the older index knows no order of deletions.
CREATE INDEX trash_refs_newest ON trash_refs (repository_id, path, id DESC);
DROP INDEX trash_refs_path;

-- In the transaction that deletes it: there is no moment in which nothing names the blob.
CREATE FUNCTION bury_1(a artifacts, by_user text, at timestamptz) RETURNS void LANGUAGE sql AS $$
  INSERT INTO trash_refs (repository_id, path, digest, version, content_type, attributes, created_by, created_at, updated_at,
    deleted_by, deleted_at, expires_at)
  SELECT a.repository_id, a.path, a.digest, a.version, a.content_type, a.attributes, a.created_by, a.created_at, a.updated_at,
    by_user, at, at + r.trash_days * interval '1 day'
  FROM repositories r WHERE r.id = a.repository_id AND r.trash_days > 0
$$;
${commitChanges2()}`,
}

/** `to_trash`: deletions leave something to be restored; those of a move do not, for nothing is lost. */
function commitChanges2(): string {
  const { sql } = commitFunction
  const start = sql.indexOf('CREATE FUNCTION commit_changes_1(')
  assert(start > 0, 'the function stands at the end of its migration')
  return replaceOnce(
    replaceOnce(
      sql.slice(start),
      'commit_changes_1(changes jsonb)',
      'commit_changes_2(changes jsonb, to_trash boolean)',
    ),
    `        it.outcome := 'deleted';\n`,
    `        it.outcome := 'deleted';
        IF to_trash THEN
          PERFORM bury_1(cur, it.user_name, at);
        END IF;\n`,
  )
}

function replaceOnce(text: string, part: string, other: string): string {
  assert(text.split(part).length === 2, 'there is one place to change')
  return text.replace(part, () => other)
}
