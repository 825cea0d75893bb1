import type { Logger } from 'pino'
import { HoldfastError } from '../../shared/errors.ts'
import { parseServers, type ServerAddress } from '../postgres-servers.ts'
import { Circuit } from './circuit.ts'
import { openPglite, type OpenPglite } from './pglite.ts'
import { Pool } from './pool.ts'
import { Reader } from './reader.ts'
import { Session, type SessionEvents } from './session.ts'
import { isNoAnswer } from './sql-errors.ts'
import { statement, type Queryable, type Statement, type Values } from './statement.ts'

/** No call waits longer for PostgreSQL than this, queueing and connecting included. */
export const callTimeoutMs = 1_900
/** A read that waits can be answered from references on the shards instead. */
const readTimeoutMs = 1_000
const connectTimeoutMs = 1_000
/** For a transaction that is done once more. */
const againMs = 1_000
/** A server that was silent for so long is asked whether it is there; it has `readTimeoutMs` to answer. */
const heartbeatMs = 300
/** After its last answer to anybody, a server that stands still is known to be away within this time. */
export const awayKnownMs = heartbeatMs + readTimeoutMs
/** One pipelined connection serves more reads than one proxy process can ask; the second covers a reconnect. */
const readLanes = 2

const ping = statement('ping', 'SELECT 1')
const begin = statement('begin', 'BEGIN')
const commit = statement('commit', 'COMMIT')
const rollback = statement('rollback', 'ROLLBACK')
const beginSnapshot = statement('begin-snapshot', 'BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY')
/** Whoever pages through a snapshot does something with each page, such as writing it to a slow disk. */
const keepSnapshot = statement(
  'keep-snapshot',
  `SELECT set_config('idle_in_transaction_session_timeout', '300000', true)`,
)

export interface DatabaseDeps {
  readonly log: Logger
  /** Runs on a fresh connection whenever the server (re)appears, before anything else: migrations, identity. */
  readonly prepare: (session: Session) => Promise<void>
  /** Called when the server goes away. */
  readonly onDown: (error: HoldfastError) => void
}

/**
 * The connections to PostgreSQL: a pool for statements and transactions, pipelined lanes for reads, and the circuit that
 * says whether the server is there. Every call rejects with METADATA_UNAVAILABLE within 2 s when it is not (3 s for a
 * transaction that has to be done once more), and works
 * again by itself when it is back.
 */
export class Database implements Queryable {
  readonly #deps: DatabaseDeps
  readonly #servers: readonly ServerAddress[]
  readonly #pool: Pool
  /** Connections of their own: a flood of other statements must not keep writes from committing. */
  readonly #commitPool: Pool
  readonly #reader: Reader | undefined
  readonly #circuit: Circuit
  readonly #events: SessionEvents
  readonly #folder: string | undefined
  #pglite: OpenPglite | undefined
  #heartbeat: NodeJS.Timeout | undefined
  #beating = false

  constructor(options: { url: string; poolSize: number; commitLanes: number }, deps: DatabaseDeps) {
    this.#deps = deps
    this.#folder = options.url.startsWith('pglite:') ? options.url.slice('pglite:'.length) : undefined
    this.#servers = this.#folder === undefined ? parseServers(options.url) : []
    this.#circuit = new Circuit({
      probe: () => this.#probe(),
      onDown: (error, silent) => this.#dropConnections(error, silent),
      log: deps.log,
    })
    this.#events = {
      answered: () => this.#circuit.answered(),
      lost: session => {
        this.#pool.forget(session)
        this.#commitPool.forget(session)
        this.#beat() // the server's end, or only this connection's
      },
    }
    const pool = (sessionsMax: number): Pool => new Pool({ sessionsMax, open: () => this.#openJudged(false) })
    const { poolSize, commitLanes } = options
    this.#pool = pool(this.#folder === undefined ? Math.max(1, poolSize - commitLanes) : 1)
    this.#commitPool = this.#folder === undefined ? pool(commitLanes) : this.#pool
    this.#reader = this.#folder === undefined ? new Reader(readLanes, () => this.#openJudged(true)) : undefined
  }

  /** Rejects with what the first attempt met; the attempts go on until `close`. */
  start(): Promise<void> {
    if (this.#folder === undefined) {
      this.#heartbeat = setInterval(() => {
        if (performance.now() - this.#circuit.lastAnswer >= heartbeatMs) this.#beat()
      }, heartbeatMs / 2).unref()
    }
    return this.#circuit.start()
  }

  /** Can calls be made, as far as is known? */
  get available(): boolean {
    return this.#circuit.up
  }

  /** Out of use until the next `prepare` succeeds. */
  suspend(reason: HoldfastError): void {
    this.#circuit.down(reason)
  }

  async ping(): Promise<void> {
    await this.read(ping, [])
  }

  /** One statement in a transaction of its own. Fails at once while the server is known to be away. */
  async query<Row extends object>(sql: Statement<Row>, values: Values = [], timeoutMs = callTimeoutMs): Promise<Row[]> {
    return this.#withSession(timeoutMs, (session, remainingMs) => session.query(sql, values, remainingMs()))
  }

  /** One statement of the commit queue. */
  async commit<Row extends object>(sql: Statement<Row>, values: Values = []): Promise<Row[]> {
    return this.#withSession(
      callTimeoutMs,
      (session, remainingMs) => session.query(sql, values, remainingMs()),
      this.#commitPool,
    )
  }

  /** One read-only statement on a shared, pipelined connection. */
  async read<Row extends object>(sql: Statement<Row>, values: Values): Promise<Row[]> {
    this.#circuit.throwIfDown()
    if (this.#reader === undefined) return this.query(sql, values)
    const startedAt = performance.now()
    try {
      return await this.#reader.read(sql, values, readTimeoutMs)
    } catch (error) {
      this.#judge(error, startedAt)
      throw error
    }
  }

  /**
   * Commits what `work` did, or rolls back when it throws. All of it has to fit into the time of one call. `work` is done once more, on
   * another connection and within a second, where the server closed this one before it was asked to commit: it does so when a starved
   * process leaves it waiting in the middle of a transaction (`idleInTransactionMs`), and nothing has happened then.
   */
  async transaction<T>(work: (transaction: Queryable) => Promise<T>): Promise<T> {
    for (let timeoutMs = callTimeoutMs; ; timeoutMs = againMs) {
      let isUndone = false
      try {
        return await this.#withSession(timeoutMs, async (session, remainingMs) => {
          let isCommitting = false
          try {
            await session.query(begin, [], remainingMs())
            const result = await work({ query: (sql, values = []) => session.query(sql, values, remainingMs()) })
            isCommitting = true
            await session.query(commit, [], remainingMs())
            return result
          } catch (error) {
            isUndone = session.broken && !isCommitting && !isNoAnswer(error)
            if (!session.broken) await session.query(rollback, [], remainingMs())
            throw error
          }
        })
      } catch (error) {
        if (!isUndone || timeoutMs === againMs || !this.#circuit.up) throw error
      }
    }
  }

  /**
   * Reads that all see one moment, on a connection of their own. Each has the time of a call; all together may take as long as they need,
   * and all the while PostgreSQL cannot clean up behind updates: page through large tables, and do nothing else meanwhile.
   */
  async snapshot<T>(work: (snapshot: Queryable) => Promise<T>): Promise<T> {
    return this.apart(async session => {
      await session.query(beginSnapshot, [], callTimeoutMs)
      try {
        await session.query(keepSnapshot, [], callTimeoutMs)
        return await work({ query: (sql, values = []) => session.query(sql, values, callTimeoutMs) })
      } finally {
        if (!session.broken) await session.query(rollback, [], callTimeoutMs).catch(() => session.destroy(undefined))
      }
    })
  }

  /** PGlite: no other process can open it, and all share one connection. */
  get isFolder(): boolean {
    return this.#folder !== undefined
  }

  /** A connection of its own for `work`, closed after it: what belongs to the connection, such as a lock, ends with it. */
  async apart<T>(work: (session: Session) => Promise<T>): Promise<T> {
    this.#circuit.throwIfDown()
    const session = this.isFolder ? await this.#pool.acquire(callTimeoutMs) : await this.#openJudged(false)
    try {
      return await work(session)
    } finally {
      if (this.isFolder) this.#pool.release(session)
      else await session.close().catch(() => {}) // it is of no more use either way
    }
  }

  async close(): Promise<void> {
    this.#circuit.close()
    clearInterval(this.#heartbeat)
    await Promise.all([this.#pool.close(), this.#commitPool.close(), this.#reader?.close()])
    const pglite = this.#pglite
    this.#pglite = undefined
    await pglite?.close()
  }

  async #withSession<T>(
    timeoutMs: number,
    use: (session: Session, remainingMs: () => number) => Promise<T>,
    pool = this.#pool,
  ): Promise<T> {
    this.#circuit.throwIfDown()
    const startedAt = performance.now()
    const remainingMs = (): number => Math.max(1, startedAt + timeoutMs - performance.now())
    const session = await pool.acquire(timeoutMs)
    try {
      return await use(session, remainingMs)
    } catch (error) {
      this.#judge(error, startedAt)
      throw error
    } finally {
      pool.release(session)
    }
  }

  #judge(error: unknown, startedAt: number): void {
    if (isNoAnswer(error)) this.#circuit.timedOut(startedAt, error)
  }

  /** One question at a time; its failure is told to the circuit like that of any other. */
  #beat(): void {
    if (this.#beating || !this.#circuit.up || this.#folder !== undefined) return
    this.#beating = true
    void this.ping()
      .catch(() => undefined)
      .finally(() => (this.#beating = false))
  }

  async #open(pipeline: boolean): Promise<Session> {
    if (this.#folder !== undefined) {
      this.#pglite ??= await openPglite(this.#folder, this.#deps.log)
      return Session.adopt(this.#pglite.client(), this.#events)
    }
    return Session.open(this.#servers, { timeoutMs: connectTimeoutMs, pipeline }, this.#events)
  }

  async #openJudged(pipeline: boolean): Promise<Session> {
    const startedAt = performance.now()
    try {
      return await this.#open(pipeline)
    } catch (error) {
      this.#openFailed(error, startedAt)
      throw error
    }
  }

  /** Too many connections, like slowness, says nothing about the connections we have. */
  #openFailed(error: unknown, startedAt: number): void {
    if (error instanceof HoldfastError && error.data['sqlState'] === '53300') return
    if (isNoAnswer(error)) this.#circuit.timedOut(startedAt, error)
    else this.#circuit.down(error)
  }

  /** What is open leads to a server that hangs or is gone; after a failover it would cost each caller a time-out. */
  #dropConnections(error: HoldfastError, silent: boolean): void {
    this.#pool.rejectWaiters(error)
    this.#commitPool.rejectWaiters(error)
    this.#deps.onDown(error)
    if (this.#folder !== undefined) return
    this.#pool.dropIdle(error)
    this.#commitPool.dropIdle(error)
    this.#reader?.drop(error)
    if (!silent) return // what was sent on a living connection is answered
    this.#pool.dropLent(error)
    this.#commitPool.dropLent(error)
  }

  async #probe(): Promise<void> {
    const session = await this.#open(false)
    try {
      await this.#deps.prepare(session)
    } catch (error) {
      await session.close()
      throw error
    }
    this.#pool.add(session)
  }
}
