import type { Migration } from './migration.ts'

/**
 * Repairs of what misses two copies or more are found by an index of their own: with a node away the queue may be millions long, of which
 * almost none are urgent, and to look through all of them every few seconds took longer than a statement may.
 */
export const urgentRepairs: Migration = {
  number: 16,
  name: 'urgent-repairs',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE INDEX repairs_urgent ON repairs (due_at, created_at) WHERE cardinality(missing) >= 2;
`,
}
