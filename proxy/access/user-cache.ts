import { LRUCache } from 'lru-cache'
import { isHoldfastError } from '../../shared/errors.ts'
import type { Metadata, User } from '../metadata/types.ts'

const freshMs = 10_000
const staleMsMax = 24 * 3_600_000
/** After a failed question PostgreSQL is left alone for so long, or every login would wait for its timeout. */
const outageMs = 2_000
const usersMax = 1_000

interface Known {
  readonly user: User
  readonly readAt: number
  /** Something may have changed: ask before using it, if anybody answers. */
  doubtful: boolean
}

export interface UserCacheDeps {
  readonly metadata: Pick<Metadata, 'findUser'>
  /** Monotonic, ms. */
  readonly now: () => number
  /** What is remembered of a user for an outage; undefined: nobody knows. */
  readonly remembered?: (name: string) => { readonly user: User | undefined } | undefined
  /** How long a user is kept while PostgreSQL is away; 24 h unless told. */
  readonly keptMsMax?: number
}

/**
 * The users this worker has met: asked again after 10 s, kept up to 24 h while PostgreSQL is away; then what is remembered counts. Names nobody has are not
 * kept: guessing must not push out those who exist.
 */
export class UserCache {
  readonly #deps: UserCacheDeps
  readonly #known = new LRUCache<string, Known>({ max: usersMax })
  readonly #reading = new Map<string, Promise<User | undefined>>()
  /** Grows with every `forget`: what was read before is not kept after. */
  #version = 0
  #outageUntil = Number.NEGATIVE_INFINITY

  constructor(deps: UserCacheDeps) {
    this.#deps = deps
  }

  /** Concurrent calls for one name share a read. Rejects with METADATA_UNAVAILABLE for users not met before, nor remembered. */
  async find(name: string): Promise<User | undefined> {
    const known = this.#known.get(name)
    const now = this.#deps.now()
    if (known !== undefined && this.#usable(known, now, now < this.#outageUntil)) return known.user
    let reading = this.#reading.get(name)
    if (reading === undefined) {
      reading = this.#read(name, now).finally(() => {
        if (this.#reading.get(name) === reading) this.#reading.delete(name)
      })
      this.#reading.set(name, reading)
    }
    return reading
  }

  /** `name`: this user changed. Without: any user may have changed, unheard; all are asked again, but still kept for an outage. */
  forget(name?: string): void {
    this.#version++
    this.#reading.clear()
    if (name !== undefined) this.#known.delete(name)
    else for (const known of this.#known.values()) known.doubtful = true
  }

  async #read(name: string, now: number): Promise<User | undefined> {
    const version = this.#version
    try {
      const user = await this.#deps.metadata.findUser(name)
      if (version === this.#version) {
        if (user === undefined) this.#known.delete(name)
        else this.#known.set(name, { user, readAt: now, doubtful: false })
      }
      return user
    } catch (error) {
      if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
      this.#outageUntil = this.#deps.now() + outageMs
      const known = this.#known.get(name)
      if (known !== undefined && this.#usable(known, now, true)) return known.user
      const remembered = this.#deps.remembered?.(name)
      if (remembered === undefined) throw error
      return remembered.user
    }
  }

  #usable(known: Known, now: number, outage: boolean): boolean {
    const ageMs = now - known.readAt
    return outage ? ageMs < (this.#deps.keptMsMax ?? staleMsMax) : !known.doubtful && ageMs < freshMs
  }
}
