/** Coordination through PostgreSQL alone: lease rows by server time, LISTEN and NOTIFY, one connection per worker. */
import { createHash } from 'node:crypto'
import {
  deliver,
  encodeMessage,
  type Announcement,
  type CoordinationLog,
  type Holder,
  type LeaseStore,
  type ListedHolder,
  type Renewal,
  type StoreEvents,
} from './lease-store.ts'
import { PostgresSession, type Statement } from './postgres-session.ts'
import { statements } from './postgres-statements.ts'
import { ServerMemory } from './server-memory.ts'
import type { Timings } from './timings.ts'
import type { Member } from './types.ts'

export interface PostgresStoreOptions {
  readonly postgresUrl: string
  readonly member: Member
  readonly timings: Timings
  readonly log: CoordinationLog
}

interface RenewedRow {
  now_ms: number
  /** Of the lease space. */
  age_ms: number
  others: number
}
interface LeaseRow {
  holder: string
  instance: string
  revoked: boolean
  left_ms: number
  age_ms: number
  now_ms: number
}

export class PostgresStore implements LeaseStore {
  readonly driver = 'postgres'
  /** NOTIFY takes less than 8,000 bytes. */
  readonly messageLimits = { bytesMax: 7_900, messagesMax: 64 }
  readonly #options: PostgresStoreOptions
  readonly #memory = new ServerMemory()
  readonly #session: PostgresSession
  #events: StoreEvents | undefined
  /** Acknowledgements that wait for the statement in flight; bounded by the writers, each has one batch out. */
  readonly #unsent = new Map<string, string>()
  #sending = false

  constructor(options: PostgresStoreOptions) {
    this.#options = options
    const { member, timings, log } = options
    this.#session = new PostgresSession({
      url: options.postgresUrl,
      timeoutMs: timings.statementMs,
      log,
      channels: [channel, inbox(member.id)],
      notified: payload => this.#receive(payload),
      connected: () => {
        // The lease table is unlogged: a server that lost it, or another one, has a young or no birth row.
        this.#memory.connected(performance.now(), Number.POSITIVE_INFINITY)
        this.#events?.connected()
      },
      lost: reason => {
        this.#memory.disconnected()
        this.#events?.gap(reason)
      },
    })
  }

  async start(events: StoreEvents): Promise<void> {
    this.#events = events
    await this.#session.connect().catch(() => undefined) // each renewal tries again
  }

  trouble(): string | undefined {
    return this.#session.connected ? undefined : 'postgresql is not connected'
  }

  async renew(instance: string, fresh: boolean): Promise<Renewal> {
    const { member, timings } = this.#options
    if (!fresh) {
      const rows = await this.#run<RenewedRow>(statements.renew, [
        member.id,
        instance,
        timings.leaseTtlMs,
        JSON.stringify(member),
      ])
      return this.#renewed(rows[0])
    }
    const gone = encodeMessage(['gone', member.id, '%s'])
    const joined = encodeMessage(['joined', member.id])
    const values = [member.id, instance, timings.leaseTtlMs, JSON.stringify(member), channel, gone, joined]
    const rows = await this.#run<RenewedRow>(statements.register, values)
    return this.#renewed(rows[0])
  }

  async announce(messages: readonly string[]): Promise<Announcement> {
    const { member } = this.#options
    if (!this.#session.connected) await this.#session.connect()
    const rows = await this.#run<LeaseRow>(statements.announce, [member.id, channel, messages])
    const bornMsAgo = rows.find(row => row.holder === '')?.age_ms ?? 0
    const waitMs = this.#forgottenMs(bornMsAgo)
    const holders: ListedHolder[] = []
    for (const { holder: id, instance, revoked, left_ms: leftMs } of rows) {
      if (id === '' || id === member.id || leftMs <= 0) continue
      holders.push(revoked ? { id, instance, revokedLeftMs: leftMs } : { id, instance })
    }
    return { holders, waitMs }
  }

  acknowledge(writer: string, batch: number): void {
    this.#unsent.set(inbox(writer), encodeMessage(['acknowledged', this.#options.member.id, batch]))
    if (!this.#sending) void this.#sendAcknowledgements()
  }

  async revoke(holder: Holder): Promise<number> {
    const rows = await this.#run<LeaseRow>(statements.revoke, [holder.id, holder.instance])
    const leftMs = rows.find(row => row.holder === holder.id)?.left_ms ?? 0
    const bornMsAgo = rows.find(row => row.holder === '')?.age_ms ?? 0
    return Math.max(0, leftMs, this.#forgottenMs(bornMsAgo))
  }

  async release(instance: string): Promise<void> {
    if (!this.#session.connected) return
    const { id } = this.#options.member
    await this.#run(statements.release, [id, instance, channel, encodeMessage(['gone', id, instance])])
  }

  async members(): Promise<readonly Member[]> {
    const rows = await this.#run<{ now_ms: number; member: string | null }>(statements.members, [])
    return rows.flatMap(row => (row.member === null ? [] : [JSON.parse(row.member) as Member])) // written by one of us
  }

  async takeRole(role: string, nonce: string): Promise<boolean> {
    const { member, timings } = this.#options
    const rows = await this.#run(statements.takeRole, [role, nonce, timings.roleTtlMs, member.id])
    if (rows.length === 0) return false
    // Role rows are durable; only a clock that jumped can have freed one too early.
    if (this.#memory.reach(Number.POSITIVE_INFINITY, performance.now()) >= timings.roleGiveUpMs) return true
    await this.freeRole(role, nonce)
    return false
  }

  async renewRole(role: string, nonce: string): Promise<boolean> {
    return (await this.#run(statements.renewRole, [role, nonce, this.#options.timings.roleTtlMs])).length === 1
  }

  async freeRole(role: string, nonce: string): Promise<void> {
    await this.#session.query(statements.freeRole, [role, nonce])
  }

  async roleHolder(role: string): Promise<string | undefined> {
    const rows = await this.#session.query<{ holder: string }>(statements.roleHolder, [role])
    return rows[0]?.holder
  }

  async close(): Promise<void> {
    this.#events = undefined
    await this.#session.close()
  }

  #renewed(row: RenewedRow | undefined): Renewal {
    if (row === undefined) return { outcome: 'refused', others: 0 }
    return { outcome: 'held', others: row.others + (this.#forgottenMs(row.age_ms) > 0 ? 1 : 0) }
  }

  #forgottenMs(bornMsAgo: number): number {
    return Math.max(0, this.#options.timings.leaseTtlMs - this.#memory.reach(bornMsAgo, performance.now()))
  }

  async #run<Row extends { now_ms: number }>(statement: Statement, values: unknown[]): Promise<Row[]> {
    const sentAt = performance.now()
    const rows = await this.#session.query<Row>(statement, values)
    const [first] = rows
    if (first !== undefined) this.#memory.observe(first.now_ms, sentAt, performance.now())
    return rows
  }

  /** One statement at a time; what gathers meanwhile goes with the next. */
  async #sendAcknowledgements(): Promise<void> {
    this.#sending = true
    await Promise.resolve() // let those of this tick gather
    while (this.#unsent.size > 0 && this.#session.connected) {
      const values = [[...this.#unsent.keys()], [...this.#unsent.values()]]
      this.#unsent.clear()
      await this.#session.query(statements.notify, values).catch(() => undefined) // the writer revokes us then
    }
    this.#unsent.clear()
    this.#sending = false
  }

  #receive(payload: string): void {
    if (this.#events === undefined) return
    if (!deliver(payload, this.#options.member.id, this.#events)) this.#events.gap('announcement not understood')
  }
}

/** Names of channels have at most 63 bytes; worker ids may be longer. A database serves one cluster. */
const channel = 'holdfast_changes'
const inbox = (worker: string): string =>
  `holdfast_to_${createHash('sha256').update(worker).digest('hex').slice(0, 24)}`
