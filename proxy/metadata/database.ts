import type { Logger } from 'pino'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { Circuit } from './circuit.ts'
import { parseServers, type ServerAddress } from './connection-string.ts'
import { openPglite, type OpenPglite } from './pglite.ts'
import { Pool } from './pool.ts'
import { Reader } from './reader.ts'
import { Session, type SessionEvents } from './session.ts'
import { statement, type Queryable, type Statement, type Values } from './statement.ts'

/** No call waits longer for PostgreSQL than this, queueing and connecting included. */
export const callTimeoutMs = 1_900
/** A read that waits can be answered from references on the shards instead. */
const readTimeoutMs = 1_000
const connectTimeoutMs = 1_000
/** One pipelined connection serves more reads than one proxy process can ask; the second covers a reconnect. */
const readLanes = 2

const begin = statement('begin', 'BEGIN')
const commit = statement('commit', 'COMMIT')
const rollback = statement('rollback', 'ROLLBACK')

export interface DatabaseDeps {
  readonly log: Logger
  /** Runs on a fresh connection whenever the server (re)appears, before anything else: migrations, identity. */
  readonly prepare: (session: Session) => Promise<void>
  /** Called when the server goes away. */
  readonly onDown: (error: HoldfastError) => void
}

/**
 * The connections to PostgreSQL: a pool for statements and transactions, pipelined lanes for reads, and the circuit that
 * says whether the server is there. Every call rejects with METADATA_UNAVAILABLE within 2 s when it is not, and works
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

  constructor(options: { url: string; poolSize: number; commitLanes: number }, deps: DatabaseDeps) {
    this.#deps = deps
    this.#folder = options.url.startsWith('pglite:') ? options.url.slice('pglite:'.length) : undefined
    this.#servers = this.#folder === undefined ? parseServers(options.url) : []
    this.#circuit = new Circuit({
      probe: () => this.#probe(),
      onDown: error => this.#dropConnections(error),
      log: deps.log,
    })
    this.#events = {
      answered: () => this.#circuit.answered(),
      lost: session => {
        this.#pool.forget(session)
        this.#commitPool.forget(session)
      },
    }
    const pool = (sessionsMax: number): Pool =>
      new Pool({ sessionsMax, open: () => this.#open(false), onOpenFailed: error => this.#openFailed(error) })
    const { poolSize, commitLanes } = options
    this.#pool = pool(this.#folder === undefined ? Math.max(1, poolSize - commitLanes) : 1)
    this.#commitPool = this.#folder === undefined ? pool(commitLanes) : this.#pool
    this.#reader = this.#folder === undefined ? new Reader(readLanes, () => this.#openReader()) : undefined
  }

  /** Rejects with what the first attempt met; the attempts go on until `close`. */
  start(): Promise<void> {
    return this.#circuit.start()
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

  /** Commits what `work` did, or rolls back when it throws. All of it has to fit into the time of one call. */
  async transaction<T>(work: (transaction: Queryable) => Promise<T>): Promise<T> {
    return this.#withSession(callTimeoutMs, async (session, remainingMs) => {
      await session.query(begin, [], remainingMs())
      try {
        const result = await work({ query: (sql, values = []) => session.query(sql, values, remainingMs()) })
        await session.query(commit, [], remainingMs())
        return result
      } catch (error) {
        if (!session.broken) await session.query(rollback, [], remainingMs())
        throw error
      }
    })
  }

  async close(): Promise<void> {
    this.#circuit.close()
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
    if (isHoldfastError(error, 'METADATA_UNAVAILABLE') && error.cause === undefined)
      this.#circuit.timedOut(startedAt, error)
  }

  async #open(pipeline: boolean): Promise<Session> {
    if (this.#folder !== undefined) {
      this.#pglite ??= await openPglite(this.#folder, this.#deps.log)
      return Session.adopt(this.#pglite.client(), this.#events)
    }
    return Session.open(this.#servers, { timeoutMs: connectTimeoutMs, pipeline }, this.#events)
  }

  async #openReader(): Promise<Session> {
    try {
      return await this.#open(true)
    } catch (error) {
      this.#openFailed(error)
      throw error
    }
  }

  /** Too many connections is the one failure to connect that says nothing about the connections we have. */
  #openFailed(error: unknown): void {
    if (error instanceof HoldfastError && error.data['sqlState'] === '53300') return
    this.#circuit.down(error)
  }

  /** What is open leads to a server that hangs or is gone; after a failover it would cost each caller a time-out. */
  #dropConnections(error: HoldfastError): void {
    this.#pool.rejectWaiters(error)
    this.#commitPool.rejectWaiters(error)
    this.#deps.onDown(error)
    if (this.#folder !== undefined) return
    this.#pool.dropIdle(error)
    this.#commitPool.dropIdle(error)
    this.#reader?.drop(error)
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
