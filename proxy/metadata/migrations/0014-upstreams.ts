import type { Migration } from './migration.ts'

/**
 * Where a repository of type 'proxy' gets its artifacts from: `Upstream` of metadata/types.ts; null: hosted. That is what tells the type;
 * the column `type` is of a time when there was only one.
 */
export const upstreams: Migration = {
  number: 14,
  name: 'upstreams',
  schema: 1,
  phase: 'expand',
  sql: `
ALTER TABLE repositories ADD COLUMN upstream jsonb;
`,
}
