/**
 * Who is it? Basic credentials against the users in PostgreSQL. A password is hashed once per worker and password change, not per request:
 * what was verified is remembered by a keyed hash of the header (1.2 us a request; no credential stays in memory as text).
 */
import { hash, randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { HoldfastError } from '../../shared/errors.ts'
import type { User } from '../metadata/types.ts'
import type { LoginLimiter } from './login-limiter.ts'
import type { Passwords } from './passwords.ts'
import { anonymous, type Principal } from './principal.ts'
import { UserCache, type UserCacheDeps } from './user-cache.ts'

/** Cache key (for invalidation between proxies) that says a user changed; no path can have it. */
export const userKey = (name: string): string => userKeyPrefix + name
export const userKeyPrefix = '!user/'

/** Credentials that were right are believed for so long without a look at the user's row (a deleted user, a changed password). */
const trustMs = 60_000
const verifiedMax = 2_000

export interface AuthenticatorDeps extends UserCacheDeps {
  readonly passwords: Pick<Passwords, 'verify'>
  readonly limiter: Pick<LoginLimiter, 'begin' | 'succeeded' | 'undecided'>
  /** A password, or the name it came with, was wrong. */
  readonly onFailed?: (address: string, name: string) => void
}

interface Verified {
  readonly user: User
  readonly principal: Principal
  checkedAt: number
}

interface Credentials {
  readonly name: string
  readonly password: string
}

export class Authenticator {
  readonly #deps: AuthenticatorDeps
  readonly #users: UserCache
  readonly #salt = randomBytes(32).toString('base64')
  readonly #lastSaid = new WeakMap<object, { readonly authorization: string; readonly key: string }>()
  readonly #verified = new LRUCache<string, Verified>({ max: verifiedMax })
  /** One verification per header at a time: a client that opens fifty connections costs one hash. */
  readonly #running = new Map<string, Promise<Principal>>()
  /** Grows with every `forget`: what was read before is not remembered after. */
  #version = 0

  constructor(deps: AuthenticatorDeps) {
    this.#deps = deps
    this.#users = new UserCache(deps)
  }

  /**
   * The principal if that is known without asking anybody: no header, or credentials verified lately. Hot path: a connection that
   * repeats its header (`connection`: its socket) is not hashed again; what it said is forgotten with it.
   */
  authenticateCached(authorization: string | undefined, connection: object): Principal | undefined {
    if (authorization === undefined) return anonymous
    let said = this.#lastSaid.get(connection)
    if (said === undefined || said.authorization !== authorization) {
      said = { authorization, key: this.#key(authorization) }
      this.#lastSaid.set(connection, said)
    }
    const entry = this.#verified.get(said.key)
    return entry !== undefined && this.#deps.now() - entry.checkedAt < trustMs ? entry.principal : undefined
  }

  /**
   * The principal of an Authorization header; anonymous without one. `address`: the client's, for the rate limit. Rejects with UNAUTHORIZED
   * (wrong, or a scheme that is not Basic), TOO_MANY_REQUESTS with `retryAfterSeconds`, OVERLOADED, METADATA_UNAVAILABLE for users this
   * worker has not met in the last 24 h. Known users go on while PostgreSQL is away.
   */
  async authenticate(authorization: string | undefined, address: string): Promise<Principal> {
    if (authorization === undefined) return anonymous
    const key = this.#key(authorization)
    const entry = this.#verified.get(key)
    if (entry !== undefined && this.#deps.now() - entry.checkedAt < trustMs) return entry.principal
    const credentials = parseBasic(authorization)
    if (credentials === undefined) throw new HoldfastError('UNAUTHORIZED', 'these credentials cannot be read')
    let running = this.#running.get(key)
    if (running === undefined) {
      running = this.#check(key, credentials, address).finally(() => {
        if (this.#running.get(key) === running) this.#running.delete(key)
      })
      this.#running.set(key, running)
    }
    return running
  }

  /**
   * `name`: this user changed (a new password, removed), so nothing that is known of them counts any more. Without: any user may have
   * changed, unheard; everybody's row is asked again before they are believed. What is under way is not remembered either.
   */
  forget(name?: string): void {
    this.#version++
    this.#running.clear()
    this.#users.forget(name)
    for (const [key, entry] of this.#verified) {
      if (name === undefined) entry.checkedAt = Number.NEGATIVE_INFINITY
      else if (entry.user.name === name) this.#verified.delete(key)
    }
  }

  async #check(key: string, credentials: Credentials, address: string): Promise<Principal> {
    const version = this.#version
    const entry = this.#verified.get(key)
    if (entry !== undefined) {
      // The password is right as long as the row has the same hash: no hashing, and no limit for those who are known.
      const user = await this.#users.find(credentials.name)
      if (user?.passwordHash === entry.user.passwordHash) return this.#remember(key, user, version)
      this.#verified.delete(key)
    }
    return this.#remember(key, await this.#login(credentials, address), version)
  }

  async #login({ name, password }: Credentials, address: string): Promise<User> {
    const { limiter, passwords } = this.#deps
    const waitMs = limiter.begin(address, name)
    if (waitMs !== undefined) {
      throw new HoldfastError('TOO_MANY_REQUESTS', 'too many failed logins: wait', {
        retryAfterSeconds: Math.ceil(waitMs / 1000),
      })
    }
    let user: User | undefined
    let right: boolean
    try {
      user = await this.#users.find(name)
      right = await passwords.verify(user?.passwordHash, password)
    } catch (error) {
      limiter.undecided(address, name)
      throw error
    }
    if (!right || user === undefined) {
      this.#deps.onFailed?.(address, name)
      throw new HoldfastError('UNAUTHORIZED', 'user name or password is wrong')
    }
    limiter.succeeded(address, name)
    return user
  }

  #remember(key: string, user: User, version: number): Principal {
    const principal: Principal = Object.freeze({ name: user.name, admin: user.admin, anonymous: false })
    if (version === this.#version) this.#verified.set(key, { user, principal, checkedAt: this.#deps.now() })
    return principal
  }

  #key(authorization: string): string {
    return hash('sha256', this.#salt + authorization, 'base64')
  }
}

/** RFC 7617, UTF-8. Undefined for anything else. */
export function parseBasic(authorization: string): Credentials | undefined {
  const match = /^basic +([A-Za-z0-9+/_-]{1,4096}={0,2}) *$/i.exec(authorization)
  if (match === null) return undefined
  const text = Buffer.from(match[1] ?? '', 'base64').toString('utf8')
  const colon = text.indexOf(':')
  // Control characters are forbidden by the RFC, and PostgreSQL takes no NUL.
  if (colon < 1 || colon > 255 || /\p{Cc}/u.test(text)) return undefined
  return { name: text.slice(0, colon), password: text.slice(colon + 1) }
}
