import type { Migration } from './migration.ts'

/**
 * When what came back from the trash had been written, for it is as old as it was: by its restore alone, old versions would push the newest
 * ones out of a cleanup policy. It holds for the version that the restore made: whatever is written since, also by a proxy of the release
 * before, has another number, and needs not know of these columns. The trash keeps that time through a further deletion.
 */
export const restored: Migration = {
  number: 15,
  name: 'restored',
  schema: 1,
  phase: 'expand',
  sql: `
ALTER TABLE artifacts ADD COLUMN restored_version bigint, ADD COLUMN written_at timestamptz;

CREATE OR REPLACE FUNCTION bury_1(a artifacts, by_user text, at timestamptz) RETURNS void LANGUAGE sql AS $$
  INSERT INTO trash_refs (repository_id, path, digest, version, content_type, attributes, created_by, created_at, updated_at,
    deleted_by, deleted_at, expires_at)
  SELECT a.repository_id, a.path, a.digest, a.version, a.content_type, a.attributes, a.created_by, a.created_at,
    CASE WHEN a.restored_version = a.version THEN a.written_at ELSE a.updated_at END,
    by_user, at, at + r.trash_days * interval '1 day'
  FROM repositories r WHERE r.id = a.repository_id AND r.trash_days > 0
$$;
`,
}
