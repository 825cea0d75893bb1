/**
 * Slows down guessing without locking anybody out. Pure but for its own counters; time comes in.
 *
 * Three counters of failed logins: for a pair of address and user name (10, somebody tries one account), for an address (50, it tries
 * many accounts), for a user name (100, many addresses try one account). The first two block for 5 s, 10 s, 20 s … 5 min. The third
 * blocks nobody by itself: it lowers the pair's limit to 1, so that an address which has not failed yet, the user's own, is still heard.
 * An attempt counts when it begins, or a thousand at once would all pass before the first had failed. Those of other workers count when
 * they have failed (failed-logins.ts).
 */
import { hash } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { isIPv6 } from 'node:net'

export interface LoginLimits {
  readonly pairFailuresMax: number
  readonly addressFailuresMax: number
  readonly userFailuresMax: number
  /** Without another failure for so long, a counter is forgotten. */
  readonly windowMs: number
  readonly blockMsMin: number
  readonly blockMsMax: number
  /** Counters of each kind that are kept; the least used are forgotten first. About 200 bytes each. */
  readonly countersMax: number
}

export const defaultLoginLimits: LoginLimits = {
  pairFailuresMax: 10,
  addressFailuresMax: 50,
  userFailuresMax: 100,
  windowMs: 300_000,
  blockMsMin: 5_000,
  blockMsMax: 300_000,
  countersMax: 10_000,
}

interface Counter {
  failures: number
  lastAt: number
  blockedUntil: number
}

interface Counters {
  readonly pair: Counter
  readonly origin: Counter
  readonly account: Counter
}

export class LoginLimiter {
  readonly #now: () => number
  readonly #limits: LoginLimits
  readonly #pairs: LRUCache<string, Counter>
  readonly #addresses: LRUCache<string, Counter>
  readonly #users: LRUCache<string, Counter>

  /** `now`: monotonic, in ms. */
  constructor(now: () => number, limits: LoginLimits = defaultLoginLimits) {
    this.#now = now
    this.#limits = limits
    this.#pairs = new LRUCache({ max: limits.countersMax })
    this.#addresses = new LRUCache({ max: limits.countersMax })
    this.#users = new LRUCache({ max: limits.countersMax })
  }

  /**
   * Begins an attempt and counts it as failed until told otherwise. Returns undefined if it may go on, else the
   * milliseconds to wait (a refused attempt is not counted).
   */
  begin(address: string, user: string): number | undefined {
    const now = this.#now()
    const counters = this.#countersOf(addressGroup(address), nameKey(user), now)
    const waitMs = Math.max(counters.pair.blockedUntil, counters.origin.blockedUntil) - now
    if (waitMs > 0) return waitMs
    this.#countAll(counters, now)
    return undefined
  }

  /** Another worker saw an attempt fail; `place` and `user` as `addressGroup` and `nameKey` made them. */
  failedElsewhere(place: string, user: string): void {
    const now = this.#now()
    this.#countAll(this.#countersOf(place, user, now), now)
  }

  /** The attempt was right: it counts nowhere, and the pair starts afresh. */
  succeeded(address: string, user: string): void {
    this.undecided(address, user)
    this.#pairs.delete(`${addressGroup(address)} ${nameKey(user)}`)
  }

  /** Nobody could say whether the attempt was right (overload, no database): it counts nowhere. */
  undecided(address: string, user: string): void {
    const [place, name] = [addressGroup(address), nameKey(user)]
    const { pairFailuresMax, addressFailuresMax } = this.#limits
    uncount(this.#pairs.get(`${place} ${name}`), pairFailuresMax)
    uncount(this.#addresses.get(place), addressFailuresMax)
    uncount(this.#users.get(name), Infinity)
  }

  #countersOf(place: string, user: string, now: number): Counters {
    const pair = this.#counter(this.#pairs, `${place} ${user}`, now)
    return { pair, origin: this.#counter(this.#addresses, place, now), account: this.#counter(this.#users, user, now) }
  }

  #countAll({ pair, origin, account }: Counters, now: number): void {
    const { pairFailuresMax, addressFailuresMax, userFailuresMax } = this.#limits
    this.#count(pair, now, account.failures >= userFailuresMax ? 1 : pairFailuresMax)
    this.#count(origin, now, addressFailuresMax)
    this.#count(account, now, Infinity)
  }

  #counter(counters: LRUCache<string, Counter>, key: string, now: number): Counter {
    const known = counters.get(key)
    if (known !== undefined && now - Math.max(known.lastAt, known.blockedUntil) < this.#limits.windowMs) return known
    const fresh: Counter = { failures: 0, lastAt: now, blockedUntil: 0 }
    counters.set(key, fresh)
    return fresh
  }

  #count(counter: Counter, now: number, failuresMax: number): void {
    const { blockMsMin, blockMsMax } = this.#limits
    counter.failures++
    counter.lastAt = now
    const excess = counter.failures - failuresMax
    if (excess >= 0) counter.blockedUntil = now + Math.min(blockMsMin * 2 ** excess, blockMsMax)
  }
}

function uncount(counter: Counter | undefined, failuresMax: number): void {
  if (counter === undefined) return
  counter.failures = Math.max(0, counter.failures - 1)
  if (counter.failures < failuresMax) counter.blockedUntil = 0
}

/** What a user name is counted under, here and at the other workers: people type passwords into the wrong field. */
export const nameKey = (user: string): string => hash('sha256', user, 'base64url')

/** An IPv6 client owns at least a /64, so that is counted as one; IPv4 in IPv6 clothes is IPv4. */
export function addressGroup(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)
  if (mapped !== null) return mapped[1] ?? address
  if (!isIPv6(address)) return address
  const [head = '', tail] = (address.split('%')[0] ?? '').toLowerCase().split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? 0 : 8 - left.length - right.length
  const groups = [...left, ...Array.from({ length: Math.max(0, zeros) }, () => '0'), ...right]
  return groups.slice(0, 4).map(group => group.replace(/^0+(?=.)/, '')).join(':') + '::/64' // prettier-ignore
}
