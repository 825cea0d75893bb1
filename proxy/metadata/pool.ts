import { HoldfastError } from '../../shared/errors.ts'
import { PatientTimer } from '../../shared/patient-timer.ts'
import { noAnswer, unavailable } from './sql-errors.ts'
import type { Session } from './session.ts'

/** More callers than this do not wait for a connection: they hear OVERLOADED. */
const waitersMax = 1_000
/** Connections are renewed now and then, so that none outlives a change of server, certificate or address. */
const sessionLifetimeMs = 30 * 60_000

export interface PoolOptions {
  readonly sessionsMax: number
  readonly open: () => Promise<Session>
}

interface Waiter {
  resolve(session: Session): void
  reject(error: HoldfastError): void
}

/** At most `sessionsMax` connections, opened when needed, handed out one caller at a time in the order of asking. */
export class Pool {
  readonly #options: PoolOptions
  readonly #idle: Session[] = []
  readonly #lent = new Set<Session>()
  readonly #waiters = new Set<Waiter>()
  #opening = 0
  #sessions = 0
  #closed = false

  constructor(options: PoolOptions) {
    this.#options = options
  }

  /** Rejects with METADATA_UNAVAILABLE after `timeoutMs` or when no connection can be had, with OVERLOADED when too many wait. */
  acquire(timeoutMs: number): Promise<Session> {
    if (this.#closed) return Promise.reject(unavailable('the connection to the database was closed'))
    const idle = this.#takeIdle()
    if (idle !== undefined) {
      this.#lent.add(idle)
      return Promise.resolve(idle)
    }
    if (this.#waiters.size >= waitersMax) {
      return Promise.reject(new HoldfastError('OVERLOADED', 'too many requests wait for the database', { waitersMax }))
    }
    return new Promise((resolve, reject) => {
      const timer = new PatientTimer()
      timer.set(timeoutMs, () => waiter.reject(noAnswer('no connection to the database in time', timeoutMs)))
      const leave = (): void => {
        timer.clear()
        this.#waiters.delete(waiter)
      }
      const waiter: Waiter = {
        resolve: session => (leave(), this.#lent.add(session), resolve(session)),
        reject: error => (leave(), reject(error)),
      }
      this.#waiters.add(waiter)
      this.#openForWaiters()
    })
  }

  release(session: Session): void {
    this.#lent.delete(session)
    const stale = performance.now() - session.openedAt > sessionLifetimeMs
    if (session.broken || stale || this.#closed || this.#sessions > this.#options.sessionsMax) {
      this.#sessions--
      if (!session.broken) void session.close().catch(() => {}) // it is of no more use either way
      this.#openForWaiters()
      return
    }
    const [waiter] = this.#waiters
    if (waiter !== undefined) waiter.resolve(session)
    else this.#idle.push(session)
  }

  /** Takes in a connection that was opened elsewhere. */
  add(session: Session): void {
    this.#sessions++
    this.release(session)
  }

  /** Forgets a connection that broke while nobody used it. */
  forget(session: Session): void {
    const index = this.#idle.indexOf(session)
    if (index < 0) return
    this.#idle.splice(index, 1)
    this.#sessions--
  }

  rejectWaiters(error: HoldfastError): void {
    for (const waiter of [...this.#waiters]) waiter.reject(error)
  }

  dropIdle(reason: unknown): void {
    for (const session of [...this.#idle]) session.destroy(reason)
  }

  /** Whoever uses a connection hears at once that it is lost. */
  dropLent(reason: unknown): void {
    for (const session of [...this.#lent]) session.destroy(reason)
  }

  async close(): Promise<void> {
    this.#closed = true
    this.rejectWaiters(unavailable('the connection to the database was closed'))
    const idle = this.#idle.splice(0)
    this.#sessions -= idle.length
    await Promise.allSettled(idle.map(session => session.close()))
  }

  #takeIdle(): Session | undefined {
    // The one used last: its statements are prepared and its caches warm.
    for (let session = this.#idle.pop(); session !== undefined; session = this.#idle.pop()) {
      if (!session.broken) return session
      this.#sessions--
    }
    return undefined
  }

  #openForWaiters(): void {
    while (
      this.#opening < this.#waiters.size &&
      this.#sessions + this.#opening < this.#options.sessionsMax &&
      !this.#closed
    ) {
      this.#opening++
      void this.#openOne()
    }
  }

  async #openOne(): Promise<void> {
    try {
      const session = await this.#options.open()
      this.#opening--
      this.add(session)
    } catch (error) {
      this.#opening--
      const [waiter] = this.#waiters
      waiter?.reject(error instanceof HoldfastError ? error : unavailable('no connection to the database', error))
      // The others wait for what is lent or being opened; if that is nothing, for the next attempt. Each costs one waiter.
      if (this.#sessions + this.#opening === 0) this.#openForWaiters()
    }
  }
}
