/** Every time and limit of coordination, in one place, because they hold only together. */
export interface Timings {
  /** How long a cache lease lives after the server processed its renewal. */
  readonly leaseTtlMs: number
  readonly leaseRenewMs: number
  /** How much sooner than the server the holder itself stops: covers clocks that run at different speeds (8 % of the TTL). */
  readonly leaseMarginMs: number
  /**
   * A new instance waits for so long before it uses its cache, so that writers tell it what they have prepared already.
   * More than what a lost connection takes to come back.
   */
  readonly joinMs: number
  /** A holder that has not acknowledged after this is revoked. */
  readonly acknowledgeMs: number
  /** How long a holder bypasses its cache for a key that somebody announced to change, if nothing more is heard. */
  readonly markMs: number
  /** For so long a writer hopes that Redis comes back before it suspends caching. Less than `commandMs`. */
  readonly suspendAfterMs: number
  /** How long a suspension lasts after its last refresh, and how often it is refreshed. More than the TTL. */
  readonly suspendMs: number
  readonly suspendRefreshMs: number
  /** One Redis command or attempt to connect. */
  readonly commandMs: number
  /** One PostgreSQL statement or attempt to connect; a slower one costs the connection. */
  readonly statementMs: number
  /** invalidate() rejects when neither Redis nor PostgreSQL could be told for so long. */
  readonly unreachableMs: number
  /** A role's key lives for `roleTtlMs`; its holder gives up `roleGiveUpMs` after the last renewal it sent. */
  readonly roleTtlMs: number
  readonly roleGiveUpMs: number
  readonly roleRenewMs: number
}

export const defaultTimings: Timings = {
  leaseTtlMs: 3_000,
  leaseRenewMs: 1_000,
  leaseMarginMs: 250,
  joinMs: 1_000,
  acknowledgeMs: 1_000,
  markMs: 10_000,
  suspendAfterMs: 400,
  suspendMs: 6_000,
  suspendRefreshMs: 1_000,
  commandMs: 500,
  statementMs: 1_500,
  unreachableMs: 8_000,
  roleTtlMs: 15_000,
  roleGiveUpMs: 10_000,
  roleRenewMs: 5_000,
}

/** More changed keys than this, or a message longer than the driver allows, are told as 'all'. */
export const announcedKeysMax = 10_000

/** Resolves once the monotonic clock has reached `time`. A timer alone may fire a little early. */
export async function waitUntil(time: number, now: () => number = () => performance.now()): Promise<void> {
  for (let left = time - now(); left > 0; left = time - now()) {
    await new Promise<void>(resolve => setTimeout(resolve, Math.ceil(left)))
  }
}
