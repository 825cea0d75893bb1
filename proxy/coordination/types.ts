/**
 * Coordination between proxies: who may answer from its cache, who must hear of a change, who is primary, who is alive.
 * One contract, three drivers (redis, postgres, memory), one contract test (test/proxy/coordination/contract.ts).
 * Losing coordination may pause tasks and slow reads down; it fails no request and changes no data (I28).
 */
import type { Digest } from '../../shared/ids.ts'

export interface Member {
  /** Worker id, unique per process start. */
  readonly id: string
  readonly role: 'proxy'
  readonly address: string
  readonly version: string
  readonly startedAt: number
  /** What it says of the storage nodes; read with each renewal of its lease, so others know it within about a second. */
  readonly report?: MemberReport | undefined
}

/** How one worker sees the storage nodes. */
export interface MemberReport {
  /** Ids of nodes; those in neither list are up. */
  readonly down: readonly string[]
  readonly suspect: readonly string[]
  /** Of the primary: why nodes that are down are not taken out. */
  readonly refusals?: readonly string[]
  /** Of the primary. */
  readonly repairs?: RepairReport
}

/** What the primary repairs, over the last minute. */
export interface RepairReport {
  readonly entriesPerSec: number
  readonly bytesPerSec: number
  /** In which more to repair may be found. */
  readonly partitionsToCompare: number
  /** Blobs of which no owner has a good copy, and the digests of the first ten of them. */
  readonly lostBlobs: number
  readonly lost: readonly Digest[]
}

export interface CacheLease {
  /**
   * May entries of the metadata cache, and the entry of this key, be used without asking PostgreSQL? O(1), no I/O: compares the
   * worker's own monotonic clock with the end of a lease whose renewal was *sent* less than the TTL (3 s) ago, and looks
   * whether somebody is about to change the key. Ask in the same turn of the event loop in which the entry is looked up.
   */
  usable(key?: string): boolean
  /**
   * Announces a write before its commit: once it resolves, nobody answers these keys from its cache until `invalidate` was
   * called, or 10 s have passed. Without it, a read through one proxy may show the new version and a later one through
   * another the old one, until the write is acknowledged. Costs the round of acknowledgements that `invalidate` then need
   * not wait for; so call it while the bytes are on their way to the shards. Each call is followed by one `invalidate` of
   * the same keys, also if the commit was refused or failed. Never rejects; with nobody else there it does nothing.
   */
  prepare(keys: readonly string[]): Promise<void>
  /**
   * Tells all other holders that these keys changed. Resolves once each has acknowledged or its lease has certainly run out, so
   * that no worker can answer from an older entry any more (I37). Calls are batched; with no other holder it costs one round
   * trip at most. Call it after the commit, before the answer to the client. Without Redis it falls back to the suspension
   * protocol (docs/architecture.md, "Caches"). Rejects only with COORDINATION_UNAVAILABLE, when PostgreSQL too has been out
   * of reach for 8 s since the commit, or with SHUTTING_DOWN: the write is committed then, but must not be acknowledged; the
   * keys are owed, and told later. Who cannot wait so long may leave before: nothing depends on it.
   */
  invalidate(keys: readonly string[]): Promise<void>
  /** Called before the acknowledgement is sent; 'all' after a gap (reconnect, lost messages), before the cache is usable again. */
  onInvalidate(listener: (keys: readonly string[] | 'all') => void): void
}

export interface Leadership {
  /** Fencing token issued by PostgreSQL for this term. */
  readonly token: number
  /**
   * Aborts when the lease may have run out, judged by the monotonic clock, before anyone else can hold it.
   * Read it through the term before each step (`term.signal.aborted`): reading looks at the clock.
   */
  readonly signal: AbortSignal
  release(): Promise<void>
}

export interface CoordinationState {
  /** Is the cache lease held, and renewed in time? */
  readonly up: boolean
  readonly reason?: string
  /** Milliseconds since 1970. */
  readonly since?: number
  /** Since the start: rounds of announcements, keys told, leases revoked, suspensions tried, times the cache was emptied. */
  readonly counters: Readonly<Record<'rounds' | 'keys' | 'revocations' | 'suspensions' | 'emptied', number>>
}

export interface Coordinator {
  readonly driver: 'redis' | 'postgres' | 'memory'
  readonly cache: CacheLease
  /** Tries once to become holder of `role`; undefined if another holds it or coordination is down. Renews by itself while held. */
  acquire(role: string): Promise<Leadership | undefined>
  /** Who holds the role now, if that can be known. */
  holder(role: string): Promise<string | undefined>
  /** This worker alone, if the others cannot be known. */
  members(): Promise<readonly Member[]>
  /** As `members`; undefined if they cannot be known for sure. */
  knownMembers(): Promise<readonly Member[] | undefined>
  /** For /readyz and metrics. Down means slower, never wrong: it is no reason to be unready. */
  state(): CoordinationState
  /** Resolves after the first attempt to connect, successful or not; goes on trying by itself. */
  start(): Promise<void>
  /** Gives leases and roles back, so that nobody has to wait for them. May be called twice. */
  close(): Promise<void>
}
