import { Socket } from 'node:net'
import pg from 'pg'
import type { HoldfastError } from '../../shared/errors.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import type { ServerAddress } from '../postgres-servers.ts'
import { noAnswer, saysServerDown, sqlState, translateError, unavailable } from './sql-errors.ts'
import type { Statement, Values } from './statement.ts'
import { valueParsers } from './value-parsers.ts'

/**
 * A connection forgotten in the middle of a transaction (a stopped process) gives its locks back after this long, so
 * that a new primary gets its token within the 2 s a call may take.
 */
const idleInTransactionMs = 1_000
/** A little less than our own timers, so that in most cases the server says what became of the statement. */
const statementTimeoutMs = 1_700

/** A frozen server never says goodbye. */
const goodbyeMs = 500

/**
 * What every connection of ours wants of the server. Plans are generic and never scan a table: all statements are made
 * for indexes, and a plan made while a table was empty must not be kept while it grows. Commits are durable even where
 * the server's default says otherwise.
 */
const setUp = `
SELECT pg_is_in_recovery() AS standby,
  set_config('statement_timeout', '${statementTimeoutMs}', false),
  set_config('idle_in_transaction_session_timeout', '${idleInTransactionMs}', false),
  set_config('jit', 'off', false),
  set_config('plan_cache_mode', 'force_generic_plan', false),
  set_config('enable_seqscan', 'off', false),
  set_config('enable_bitmapscan', 'off', false),
  set_config('bytea_output', 'hex', false),
  set_config('timezone', 'UTC', false),
  set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), false)`

export interface SessionEvents {
  /** Called at each answer of the server, good or bad. */
  answered(): void
  /** Called once when the connection is of no more use, by fault or on purpose. */
  lost(session: Session, reason: unknown): void
}

/** One connection to PostgreSQL. A call that gets no answer in time destroys it, since nobody knows what it does now. */
export class Session {
  readonly #client: pg.Client
  readonly #socket: Socket | undefined
  readonly #events: SessionEvents
  readonly openedAt = performance.now()
  broken = false
  /** Statements sent and not answered. */
  inFlight = 0

  private constructor(client: pg.Client, socket: Socket | undefined, events: SessionEvents) {
    this.#client = client
    this.#socket = socket
    this.#events = events
    client.on('error', error => this.destroy(error))
    client.on('end', () => this.destroy(unavailable('the connection to the database ended')))
  }

  /** Connects to the first of the servers that takes writes. Rejects with METADATA_UNAVAILABLE within `timeoutMs`. */
  static async open(
    servers: readonly ServerAddress[],
    options: { timeoutMs: number; pipeline: boolean },
    events: SessionEvents,
  ): Promise<Session> {
    const deadline = performance.now() + options.timeoutMs
    let last: unknown
    for (const [index, server] of servers.entries()) {
      // A server that hangs must leave time for the next one.
      const timeoutMs = (deadline - performance.now()) / (servers.length - index)
      try {
        return await Session.#openOne(server, { ...options, timeoutMs }, events)
      } catch (error) {
        last = error
      }
    }
    throw translateError(last, 'connect')
  }

  /** A session on a ready-made connection (PGlite), which has no socket to destroy. */
  static async adopt(client: pg.Client, events: SessionEvents): Promise<Session> {
    const session = new Session(client, undefined, events)
    await client.connect()
    await client.query(setUp)
    return session
  }

  static async #openOne(
    server: ServerAddress,
    options: { timeoutMs: number; pipeline: boolean },
    events: SessionEvents,
  ): Promise<Session> {
    const socket = new Socket()
    const client = new pg.Client({
      connectionString: server.connectionString,
      stream: () => socket,
      pipeline: options.pipeline,
      keepAlive: true,
      keepAliveInitialDelayMillis: 5_000,
      application_name: 'holdfast',
      types: valueParsers,
    })
    const session = new Session(client, socket, events)
    let late: HoldfastError | undefined
    const timer = new PatientTimer()
    timer.set(options.timeoutMs, () => {
      late = noAnswer('no answer to the connection attempt', options.timeoutMs)
      session.destroy(late)
    })
    try {
      await client.connect()
      const { rows } = await client.query<{ standby: boolean }>(setUp)
      if (rows[0]?.standby !== false) throw unavailable(`the database on ${server.label} is a standby`)
      if (session.broken) throw unavailable('the connection to the database was lost')
      events.answered()
      return session
    } catch (error) {
      session.destroy(error)
      throw late ?? error
    } finally {
      timer.clear()
    }
  }

  /** Rejects with a translated HoldfastError; METADATA_UNAVAILABLE after `timeoutMs` at the latest. */
  query<Row extends object>(statement: Statement<Row>, values: Values, timeoutMs: number): Promise<Row[]> {
    return new Promise((resolve, reject) => {
      if (this.broken) return reject(unavailable('the connection to the database was lost'))
      let settled = false
      const settle = (): boolean => {
        if (settled) return false
        settled = true
        timer.clear()
        this.inFlight--
        return true
      }
      this.inFlight++
      const expire = (): void => {
        if (!settle()) return
        const error = noAnswer('the database did not answer in time', timeoutMs, { statement: statement.name })
        reject(error)
        this.destroy(error)
      }
      const timer = new PatientTimer()
      timer.set(timeoutMs, expire)
      const config = statement.name === '' ? { text: statement.text } : { name: statement.name, text: statement.text }
      this.#client.query({ ...config, values: values as unknown[] }, (error: unknown, result: pg.QueryResult<Row>) => {
        if (!settle()) return
        if (!error) {
          this.#events.answered()
          return resolve(result.rows)
        }
        if (sqlState(error) !== undefined) this.#events.answered()
        reject(translateError(error, statement.name))
        if (sqlState(error) === undefined || saysServerDown(error)) this.destroy(error)
      })
    })
  }

  /** Takes leave of the server in order, for as long as `goodbyeMs`. */
  async close(): Promise<void> {
    if (this.broken) return
    this.broken = true
    const timer = setTimeout(() => this.#socket?.destroy(), goodbyeMs)
    await this.#client.end().finally(() => clearTimeout(timer))
  }

  destroy(reason: unknown): void {
    if (this.broken) return
    this.broken = true
    this.#socket?.destroy()
    this.#events.lost(this, reason)
  }
}
