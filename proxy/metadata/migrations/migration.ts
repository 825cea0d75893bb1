/**
 * One step of the database schema. Once released it never changes: its checksum is kept in the database.
 *
 * Proxies of schema N and N+1 run side by side during a rolling upgrade. So an 'expand' step only adds what N does not
 * mind, and a 'contract' step of schema N+1 removes only what schema N no longer used.
 */
export interface Migration {
  /** Order and identity; unique. Gaps are fine. */
  readonly number: number
  /** Lower case with hyphens, for people. */
  readonly name: string
  /** The schema version it belongs to: grows by one with each release that changes the schema. */
  readonly schema: number
  readonly phase: 'expand' | 'contract'
  /** Statements that run together in one transaction. */
  readonly sql: string
}
