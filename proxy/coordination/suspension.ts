/**
 * The way to end all caching when Redis cannot be reached: a row in PostgreSQL that every holder reads with each renewal.
 * It needs no Redis, and after one TTL no further waiting as long as it is refreshed.
 */
import type { Timings } from './timings.ts'
import { isUnreachable, type PostgresSession } from './postgres-session.ts'

/**
 * `since` survives a refresh only if the row was in force with room to spare: a refresh that commits after `until` has
 * passed would else hide that somebody may have cached in between.
 */
const enforceStatement = {
  name: 'coordination-suspend',
  text: `
    with row as (
      insert into cache_suspension as s (one, since, until)
      values (true, clock_timestamp(), clock_timestamp() + $1::float8 * interval '1 ms')
      on conflict (one) do update set
        since = case when s.until > clock_timestamp() + $2::float8 * interval '1 ms' then s.since else clock_timestamp() end,
        until = clock_timestamp() + $1::float8 * interval '1 ms'
      returning since)
    select set_config('synchronous_commit', 'on', true), (extract(epoch from clock_timestamp() - since) * 1000)::float8 as age from row`,
}
const checkStatement = {
  name: 'coordination-suspended',
  text: 'select until > clock_timestamp() as suspended from cache_suspension',
}

export class Suspension {
  readonly #session: PostgresSession
  readonly #timings: Timings
  /** Monotonic: the row is certainly in force until then, and nobody caches from `#settledAt` on. */
  #inForceUntil = Number.NEGATIVE_INFINITY
  #settledAt = Number.POSITIVE_INFINITY
  #writtenAt = Number.NEGATIVE_INFINITY
  #wantedUntil = 0
  #refresh: NodeJS.Timeout | undefined
  #closed = false

  constructor(session: PostgresSession, timings: Timings) {
    this.#session = session
    this.#timings = timings
  }

  /** Resolves with the ms from now after which no worker answers from its cache. Rejects without PostgreSQL. */
  async enforce(): Promise<number> {
    this.#wantedUntil = performance.now() + 5 * this.#timings.suspendMs
    // Not at the last moment: it has to cover what the caller does next, such as a commit.
    if (performance.now() >= this.#inForceUntil - this.#timings.suspendMs / 2) await this.#write()
    this.#refresh ??= this.#plan()
    return Math.max(0, this.#settledAt - performance.now())
  }

  /** Redis is back: announcements do it again, and the row may run out. */
  relax(): void {
    clearTimeout(this.#refresh)
    this.#refresh = undefined
  }

  /**
   * May a lease be renewed? 'unreachable': no PostgreSQL at the other end, so nobody can commit a write meanwhile.
   * Rejects where that is not proved, as after a timeout.
   */
  async check(): Promise<'none' | 'suspended' | 'unreachable'> {
    for (let attempt = 1; ; attempt++) {
      const hadConnection = this.#session.connected
      try {
        const [row] = await this.#session.query<{ suspended: boolean }>(checkStatement, [])
        return row?.suspended === true ? 'suspended' : 'none'
      } catch (error) {
        // The end of an old connection says nothing about the server: only a new attempt does.
        if (hadConnection && !this.#session.connected && attempt === 1) continue
        if (isUnreachable(error)) return 'unreachable'
        throw error
      }
    }
  }

  close(): void {
    this.#closed = true
    this.relax()
  }

  /** Any writer may count one TTL from the answer; one that joins counts from the start, less the time a commit may take. */
  async #write(): Promise<void> {
    const { leaseTtlMs, leaseMarginMs, suspendMs, statementMs } = this.#timings
    const sentAt = performance.now()
    const [row] = await this.#session.query<{ age: number }>(enforceStatement, [suspendMs, statementMs])
    const receivedAt = performance.now()
    const age = row?.age ?? 0
    const waitMs = Math.min(leaseTtlMs, Math.max(0, leaseTtlMs + statementMs - age))
    const continued = age > 0 && age >= sentAt - this.#writtenAt // nobody found it run out meanwhile
    this.#settledAt = continued ? Math.min(this.#settledAt, receivedAt + waitMs) : receivedAt + waitMs
    this.#inForceUntil = sentAt + suspendMs - leaseMarginMs
    this.#writtenAt = receivedAt
  }

  #plan(): NodeJS.Timeout {
    const timer = setTimeout(() => {
      if (this.#closed || performance.now() > this.#wantedUntil) return this.relax()
      const again = (): void => {
        if (this.#refresh === timer) this.#refresh = this.#plan()
      }
      this.#write().then(again, again) // unwritten, it runs out, and the next invalidation writes it anew
    }, this.#timings.suspendRefreshMs)
    return timer.unref()
  }
}
