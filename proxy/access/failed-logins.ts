/**
 * Failed logins counted by all workers of all proxies together: each tells the others of those it saw, over the channel on which
 * changes are told. Only a wrong password costs that, never a request of somebody who is known.
 */
import { randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { addressGroup, nameKey, type LoginLimiter } from './login-limiter.ts'

/** Prefix of the keys under which failures are told; no path can have it. */
export const failedLoginKeyPrefix = '!failed-login/'

/** Told at once; what is beyond is counted here alone. */
const tellingMax = 100
/** Keys may be told twice when the first round failed half-way. */
const heardMax = 10_000

export interface FailedLoginsDeps {
  readonly limiter: Pick<LoginLimiter, 'failedElsewhere'>
  /** Tells all other workers this key, once or more often; may reject. */
  readonly tell: (key: string) => Promise<void>
}

export class FailedLogins {
  readonly #deps: FailedLoginsDeps
  readonly #heard = new LRUCache<string, true>({ max: heardMax })
  #telling = 0

  constructor(deps: FailedLoginsDeps) {
    this.#deps = deps
  }

  /** A password was wrong. Nobody waits for the others to hear of it: while coordination is away they don't. */
  failed(address: string, user: string): void {
    if (this.#telling >= tellingMax) return
    this.#telling++
    const fields = [randomBytes(9).toString('base64'), addressGroup(address), nameKey(user)]
    this.#deps
      .tell(failedLoginKeyPrefix + JSON.stringify(fields))
      .catch(() => undefined) // counted here in any case
      .finally(() => this.#telling--)
  }

  /** Each key that was told by another worker; those that are about something else are ignored. */
  heard(key: string): void {
    if (!key.startsWith(failedLoginKeyPrefix) || this.#heard.has(key)) return
    this.#heard.set(key, true)
    const fields = JSON.parse(key.slice(failedLoginKeyPrefix.length)) as readonly unknown[] // written by one of us
    const [, place, user] = fields
    if (typeof place === 'string' && typeof user === 'string') this.#deps.limiter.failedElsewhere(place, user)
  }
}
