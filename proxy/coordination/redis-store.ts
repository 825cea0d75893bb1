/** Coordination through Redis, with a row in PostgreSQL for the time Redis cannot be reached. */
import { Redis, type RedisOptions } from 'ioredis'
import {
  deliver,
  encodeMessage,
  reasonOf,
  type Announcement,
  type CoordinationLog,
  type Holder,
  type LeaseStore,
  type ListedHolder,
  type Renewal,
  type StoreEvents,
} from './lease-store.ts'
import { PostgresSession } from './postgres-session.ts'
import { scripts } from './redis-scripts.ts'
import { ServerMemory } from './server-memory.ts'
import { Suspension } from './suspension.ts'
import type { Timings } from './timings.ts'
import type { Member } from './types.ts'

export interface RedisStoreOptions {
  readonly redisUrl: string
  readonly postgresUrl: string
  readonly clusterId: string
  readonly member: Member
  readonly timings: Timings
  readonly log: CoordinationLog
}

export class RedisStore implements LeaseStore {
  readonly driver = 'redis'
  /** Redis keeps messages in the output buffer of each subscriber, whose limit is 32 MiB by default. */
  readonly messageLimits = { bytesMax: 512 * 1024, messagesMax: 4 }
  readonly #options: RedisStoreOptions
  readonly #keys: readonly [hash: string, channel: string]
  readonly #inbox: (worker: string) => string
  readonly #memory = new ServerMemory()
  readonly #session: PostgresSession
  readonly #suspension: Suspension
  #commands: Redis | undefined
  #subscriber: Redis | undefined
  #events: StoreEvents | undefined
  #subscribed = false
  /** Why Redis does not answer although it is connected; until a renewal gets through. */
  #silent: string | undefined
  #lastNumber: number | undefined

  constructor(options: RedisStoreOptions) {
    this.#options = options
    const { clusterId, timings, log } = options
    const space = `{holdfast:${clusterId}}` // one hash slot in a Redis Cluster
    this.#keys = [`${space}:leases`, `${space}:changes`]
    this.#inbox = worker => `${space}:to:${worker}`
    this.#session = new PostgresSession({ url: options.postgresUrl, timeoutMs: timings.statementMs, log })
    this.#suspension = new Suspension(this.#session, timings)
  }

  async start(events: StoreEvents): Promise<void> {
    this.#events = events
    this.#commands = this.#open({ scripts })
    this.#subscriber = this.#open({})
    this.#commands.on('ready', () => void this.#lookUp())
    this.#commands.on('close', () => this.#memory.disconnected())
    this.#subscriber.on('ready', () => void this.#subscribe())
    this.#subscriber.on('close', () => this.#lost('subscription lost'))
    this.#subscriber.on('message', (channel: string, text: string) => this.#receive(channel, text))
    await Promise.all([this.#commands, this.#subscriber].map(client => client.connect().catch(() => undefined))) // goes on by itself
    if (this.#commands.status === 'ready') await this.#lookUp()
    if (this.#subscriber.status === 'ready') await this.#subscribe()
  }

  trouble(): string | undefined {
    if (this.#commands?.status !== 'ready') return 'redis is not connected'
    if (!this.#subscribed) return 'redis subscription is not confirmed'
    return this.#silent
  }

  async renew(instance: string, fresh: boolean): Promise<Renewal> {
    if (!this.#subscribed) throw new Error(this.trouble() ?? 'redis subscription is not confirmed')
    const { member, timings } = this.#options
    const gone = encodeMessage(['gone', member.id, '%s'])
    const joined = encodeMessage(['joined', member.id])
    const values = [member.id, instance, fresh ? 1 : 0, timings.leaseTtlMs, JSON.stringify(member), gone, joined]
    const renewal = this.#run('renew', ...values)
    // The ping proves that the subscription is alive, and that all that was published before has come.
    const [reply, , caching] = await Promise.all([renewal, this.#ping(), this.#isSuspended()])
    this.#suspension.relax()
    this.#silent = undefined
    const others = Number(reply[3]) + (this.#forgottenMs(Number(reply[1])) > 0 ? 1 : 0)
    if (reply[2] !== 1) return { outcome: 'refused', others }
    return { outcome: caching === 'suspended' ? 'suspended' : 'held', others }
  }

  /** Rejects with an error that does not blame Redis. */
  async #isSuspended(): ReturnType<Suspension['check']> {
    try {
      return await this.#suspension.check()
    } catch (error) {
      throw new Error(`PostgreSQL does not say whether caches may be used: ${reasonOf(error)}`, { cause: error })
    }
  }

  async announce(messages: readonly string[]): Promise<Announcement> {
    const trouble = this.trouble()
    if (trouble !== undefined) throw new Error(trouble)
    const { id } = this.#options.member
    const [, bornMsAgo, ...rows] = await this.#run('announce', id, ...messages)
    const holders: ListedHolder[] = []
    for (let at = 0; at < rows.length; at += 4) {
      const [holder, instance, leftMs, revoked] = rows.slice(at, at + 4)
      const listed = { id: String(holder), instance: String(instance) }
      holders.push(revoked === '0' ? listed : { ...listed, revokedLeftMs: Number(leftMs) })
    }
    return { holders, waitMs: this.#forgottenMs(Number(bornMsAgo)) }
  }

  acknowledge(writer: string, batch: number): void {
    const message = encodeMessage(['acknowledged', this.#options.member.id, batch])
    this.#commands?.publish(this.#inbox(writer), message).catch(() => undefined) // the writer revokes us then
  }

  async revoke(holder: Holder): Promise<number> {
    const [, bornMsAgo, leftMs] = await this.#run('revoke', holder.id, holder.instance)
    return Math.max(Number(leftMs), this.#forgottenMs(Number(bornMsAgo)))
  }

  readonly suspend = (): Promise<number> => this.#suspension.enforce()

  async release(instance: string): Promise<void> {
    const { id } = this.#options.member
    await this.#run('release', id, instance, encodeMessage(['gone', id, instance]))
  }

  async members(): Promise<readonly Member[]> {
    const [now, ...fields] = await this.#run('list')
    const members: Member[] = []
    for (let at = 0; at < fields.length; at += 2) {
      const [, expires, member] = /^\S+ (\d+) \d (.*)$/.exec(String(fields[at + 1])) ?? []
      const live = String(fields[at]).startsWith('h:') && Number(expires) > Number(now)
      if (live && member !== undefined) members.push(JSON.parse(member) as Member) // written by one of us
    }
    return members
  }

  async takeRole(role: string, nonce: string): Promise<boolean> {
    const { member, timings } = this.#options
    const { roleTtlMs, roleGiveUpMs } = timings
    const [, bornMsAgo, taken] = await this.#run('takeRole', role, nonce, roleTtlMs, member.id, roleGiveUpMs)
    if (taken !== 1) return false
    // An old snapshot or a lagging replica may have forgotten who holds it, behind a birth that looks old enough.
    if (this.#memory.reach(Number(bornMsAgo), performance.now()) >= roleGiveUpMs) return true
    await this.freeRole(role, nonce)
    return false
  }

  async renewRole(role: string, nonce: string): Promise<boolean> {
    const { member, timings } = this.#options
    return (await this.#run('keepRole', role, nonce, timings.roleTtlMs, member.id))[2] === 1
  }

  async freeRole(role: string, nonce: string): Promise<void> {
    await this.#run('keepRole', role, nonce, 0, this.#options.member.id)
  }

  async roleHolder(role: string): Promise<string | undefined> {
    const [now, ...fields] = await this.#run('list')
    const value = String(fields[fields.indexOf(`r:${role}`) + 1])
    const [, expires, holder] = /^\S+ (\d+) (.*)$/.exec(value) ?? []
    return fields.includes(`r:${role}`) && Number(expires) > Number(now) ? holder : undefined
  }

  async close(): Promise<void> {
    this.#suspension.close()
    this.#events = undefined
    this.#subscriber?.disconnect()
    this.#commands?.disconnect()
    await this.#session.close()
  }

  /** Nothing waits for a connection, and nothing is sent twice: late answers are worth nothing here. */
  #open(extra: Pick<RedisOptions, 'scripts'>): Redis {
    const { redisUrl, timings, log } = this.#options
    const options = {
      lazyConnect: true,
      enableOfflineQueue: false,
      maxRetriesPerRequest: 1,
      autoResendUnfulfilledCommands: false,
      autoResubscribe: false,
      commandTimeout: timings.commandMs,
      connectTimeout: timings.commandMs,
      retryStrategy: (attempt: number) => Math.min(500, 50 * attempt) * (0.5 + Math.random() / 2),
      // A primary that became a replica: its address may lead to the new primary by now.
      reconnectOnError: (error: Error) => error.message.startsWith('READONLY'),
      connectionName: 'holdfast',
      ...extra,
    } satisfies RedisOptions
    const client = new Redis(redisUrl, options)
    let lastReason = ''
    client.on('error', error => {
      const reason = reasonOf(error)
      if (reason !== lastReason) log.warn({ reason }, 'redis connection failed')
      lastReason = reason
    })
    client.on('ready', () => (lastReason = ''))
    return client
  }

  async #run(name: keyof typeof scripts, ...values: (string | number)[]): Promise<readonly (string | number)[]> {
    const commands = this.#commands as unknown as Record<string, (...args: (string | number)[]) => Promise<unknown>>
    if (this.#commands?.status !== 'ready') throw new Error('redis is not connected')
    const sentAt = performance.now()
    try {
      const reply = (await commands[name]?.(...this.#keys, ...values)) as (string | number)[]
      this.#memory.observe(Number(reply[0]), sentAt, performance.now())
      return reply
    } catch (error) {
      this.#silent ??= reasonOf(error)
      throw error
    }
  }

  #forgottenMs(bornMsAgo: number): number {
    return Math.max(0, this.#options.timings.leaseTtlMs - this.#memory.reach(bornMsAgo, performance.now()))
  }

  /**
   * What a new connection tells of the server's memory. One that runs for long and was never promoted has forgotten
   * nothing; all others count from now.
   */
  async #lookUp(): Promise<void> {
    const connectedAt = performance.now()
    this.#memory.connected(connectedAt, 0)
    try {
      const info = (await this.#commands?.info()) ?? ''
      const value = (name: string): string => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(info)?.[1] ?? ''
      const original = value('role') === 'master' && /^0+$/.test(value('master_replid2'))
      const uptimeMs = original ? Math.max(0, (Number(value('uptime_in_seconds')) - 1) * 1_000) : 0
      if (this.#commands?.status === 'ready') this.#memory.connected(connectedAt, uptimeMs)
    } catch (error) {
      this.#options.log.debug(
        { reason: reasonOf(error) },
        'redis does not tell its uptime: writers wait after a reconnect',
      )
    }
  }

  async #subscribe(): Promise<void> {
    if (this.#subscribed) return
    try {
      await this.#subscriber?.subscribe(this.#keys[1], this.#inbox(this.#options.member.id))
      this.#lastNumber = undefined
      this.#subscribed = true
      this.#events?.connected()
    } catch (error) {
      this.#options.log.warn({ reason: reasonOf(error) }, 'redis subscription failed')
      if (this.#events !== undefined) this.#subscriber?.disconnect(true)
    }
  }

  async #ping(): Promise<void> {
    try {
      await this.#subscriber?.ping()
    } catch (error) {
      this.#lost('subscription does not answer')
      this.#subscriber?.disconnect(true)
      throw error
    }
  }

  #lost(reason: string): void {
    if (!this.#subscribed) return
    this.#subscribed = false
    this.#events?.gap(reason)
  }

  #receive(channel: string, text: string): void {
    if (this.#events === undefined) return
    const { id } = this.#options.member
    if (channel !== this.#keys[1]) return void deliver(text, id, this.#events)
    const space = text.indexOf(' ')
    const number = Number(text.slice(0, space))
    const complete = this.#lastNumber === undefined || number === this.#lastNumber + 1
    this.#lastNumber = number
    if (!complete) this.#events.gap('announcements are missing')
    if (!deliver(text.slice(space + 1), id, this.#events)) this.#events.gap('announcement not understood')
  }
}
