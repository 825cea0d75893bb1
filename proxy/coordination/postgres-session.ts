/**
 * One pipelined connection to PostgreSQL for coordination alone, so that neither a busy pool nor a slow transaction
 * delays a lease. It is made when it is needed; a statement that takes too long costs the connection.
 */
import pg from 'pg'
import { parseServers } from '../postgres-servers.ts'
import { reasonOf, type CoordinationLog } from './lease-store.ts'

export interface PostgresSessionOptions {
  /** Without PgBouncer or its like between: LISTEN belongs to a connection. */
  readonly url: string
  readonly timeoutMs: number
  readonly log: CoordinationLog
  /** Channels to LISTEN on; `connected` follows their confirmation, `lost` the end of the connection. */
  readonly channels?: readonly string[]
  readonly notified?: (payload: string) => void
  readonly connected?: () => void
  readonly lost?: (reason: string) => void
}

/** Prepared once per connection under its name. */
export interface Statement {
  readonly name: string
  readonly text: string
}

export class PostgresSession {
  readonly #options: PostgresSessionOptions
  #client: pg.Client | undefined
  #connecting: Promise<pg.Client> | undefined
  #closed = false

  constructor(options: PostgresSessionOptions) {
    this.#options = options
  }

  get connected(): boolean {
    return this.#client !== undefined
  }

  /** Connects if needed. Rejects within twice `timeoutMs`; the statement may have taken effect nevertheless. */
  async query<Row extends pg.QueryResultRow>(statement: Statement, values: unknown[]): Promise<Row[]> {
    const client = this.#client ?? (await this.connect())
    return (await client.query<Row>({ ...statement, values })).rows
  }

  /** Concurrent calls share one attempt. */
  connect(): Promise<pg.Client> {
    if (this.#client !== undefined) return Promise.resolve(this.#client)
    this.#connecting ??= this.#open().finally(() => (this.#connecting = undefined))
    return this.#connecting
  }

  async close(): Promise<void> {
    this.#closed = true
    const client = this.#client ?? (await this.#connecting?.catch(() => undefined))
    this.#client = undefined
    if (client === undefined) return
    // A frozen server never says goodbye.
    const timer = setTimeout(() => destroy(client), this.#options.timeoutMs)
    await client.end().catch(() => undefined) // it is gone already
    clearTimeout(timer)
  }

  /** The first of the configured servers that takes writes. */
  async #open(): Promise<pg.Client> {
    const errors: unknown[] = []
    for (const { connectionString } of parseServers(this.#options.url)) {
      if (this.#closed) throw new Error('closed')
      try {
        return await this.#openServer(connectionString)
      } catch (error) {
        errors.push(error)
      }
    }
    throw errors.length === 1 ? errors[0] : new AggregateError(errors, `no server: ${reasonOf(errors.at(-1))}`)
  }

  async #openServer(connectionString: string): Promise<pg.Client> {
    const { timeoutMs, channels = [] } = this.#options
    const client = new pg.Client({
      connectionString,
      application_name: 'holdfast coordination',
      pipeline: true,
      keepAlive: true,
      connectionTimeoutMillis: timeoutMs,
      query_timeout: timeoutMs,
    })
    client.on('error', error => this.#lose(client, reasonOf(error)))
    client.on('end', () => this.#lose(client, 'connection ended'))
    client.on('notification', message => this.#options.notified?.(message.payload ?? ''))
    try {
      await client.connect()
      const standby = await client.query<{ standby: boolean }>('select pg_is_in_recovery() as standby')
      if (standby.rows[0]?.standby !== false) throw new Error('this server is a standby')
      // Leases are not durable, so their transactions need not wait for the disk.
      const commands = ['set synchronous_commit = off', ...channels.map(name => `listen ${name}`)]
      await Promise.all(commands.map(text => client.query(text)))
      if (this.#closed) throw new Error('closed')
    } catch (error) {
      destroy(client)
      throw error
    }
    this.#client = client
    this.#options.connected?.()
    return client
  }

  #lose(client: pg.Client, reason: string): void {
    if (this.#client !== client) return
    this.#client = undefined
    destroy(client)
    this.#options.log.warn({ reason }, 'connection of coordination to PostgreSQL lost')
    this.#options.lost?.(reason)
  }
}

/** `end()` waits for a goodbye that may never come; the socket is what must go. */
function destroy(client: pg.Client): void {
  const { connection } = client as unknown as { connection: { stream: { destroy(): void } } }
  connection.stream.destroy()
}

const unreachableCodes = new Set([
  ...['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ENOENT', 'ENOTFOUND', 'EHOSTUNREACH', 'ENETUNREACH'],
  '57P03', // starting up, shutting down or in recovery
])

/** Did the attempt prove that no PostgreSQL is there? A timeout proves nothing. */
export function isUnreachable(error: unknown): boolean {
  if (error instanceof AggregateError) return error.errors.every(isUnreachable)
  return error instanceof Error && 'code' in error && unreachableCodes.has(String(error.code))
}
