import { HoldfastError } from '../../shared/errors.ts'
import type { Session } from './session.ts'
import { unavailable } from './sql-errors.ts'
import type { Statement, Values } from './statement.ts'

/** Reads in flight on all lanes; beyond it the caller hears OVERLOADED. */
const readsMax = 4_000

/**
 * Reads by pipelining: many callers share few connections, and nobody waits for another's answer before sending. An
 * error fails only its own statement; a lost connection fails what was on it, once more tried elsewhere.
 */
export class Reader {
  readonly #open: () => Promise<Session>
  readonly #lanes: { session: Session | undefined; opening: Promise<Session> | undefined }[]
  #turn = 0
  #reads = 0
  #closed = false

  constructor(laneCount: number, open: () => Promise<Session>) {
    this.#open = open
    this.#lanes = Array.from({ length: laneCount }, () => ({ session: undefined, opening: undefined }))
  }

  async read<Row extends object>(statement: Statement<Row>, values: Values, timeoutMs: number): Promise<Row[]> {
    if (this.#reads >= readsMax) {
      throw new HoldfastError('OVERLOADED', 'too many reads wait for the database', { readsMax })
    }
    this.#reads++
    const deadline = performance.now() + timeoutMs
    try {
      const session = this.#ready() ?? (await this.#connect())
      try {
        return await session.query(statement, values, deadline - performance.now())
      } catch (error) {
        // Another read's time-out, or a restart, took the connection away: reads may be repeated.
        if (!session.broken || performance.now() > deadline - 50) throw error
        const other = await this.#connect()
        return await other.query(statement, values, deadline - performance.now())
      }
    } finally {
      this.#reads--
    }
  }

  drop(reason: unknown): void {
    for (const lane of this.#lanes) lane.session?.destroy(reason)
  }

  /** Also of what is just being opened: a connection nobody closes would keep the process alive. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.allSettled(this.#lanes.flatMap(lane => lane.opening ?? []))
    const sessions = this.#lanes.flatMap(lane => lane.session ?? [])
    await Promise.allSettled(sessions.map(session => session.close()))
  }

  #ready(): Session | undefined {
    this.#turn = (this.#turn + 1) % this.#lanes.length
    const session = this.#lanes[this.#turn]?.session
    return session?.broken === false ? session : undefined
  }

  async #connect(): Promise<Session> {
    if (this.#closed) throw unavailable('the connection to the database was closed')
    const lane = this.#lanes[this.#turn]!
    if (lane.session?.broken === false) return lane.session
    lane.opening ??= this.#open()
      .then(session => (lane.session = session))
      .finally(() => (lane.opening = undefined))
    return lane.opening
  }
}
