/** A prepared statement and the type of its rows. The name is prepared once on each connection; one name, one text. */
export interface Statement<Row extends object> {
  readonly name: string
  readonly text: string
  /** Never there: carries the type of the rows. */
  readonly row?: Row
}

export function statement<Row extends object = Record<never, never>>(name: string, text: string): Statement<Row> {
  return { name, text }
}

export type Values = readonly unknown[]

/** What runs statements: a pooled connection per statement, or one transaction. */
export interface Queryable {
  query<Row extends object>(statement: Statement<Row>, values?: Values): Promise<Row[]>
}
