/**
 * What the two servers that can carry coordination, Redis and PostgreSQL, have in common. The protocol itself (who waits
 * for whom, docs/architecture.md "Caches") stands once, in lease-holder.ts, announcer.ts and leadership.ts.
 */
import type { Member } from './types.ts'

export interface CoordinationLog {
  debug(fields: object, message: string): void
  info(fields: object, message: string): void
  warn(fields: object, message: string): void
  error(fields: object, message: string): void
}

/** One life of a worker's cache: from an empty cache to the next gap. A writer waits for an instance, not for a worker. */
export interface Holder {
  readonly id: string
  readonly instance: string
}

export const nameOf = ({ id, instance }: Holder): string => `${id} ${instance}`

export interface ListedHolder extends Holder {
  /** Set if it was revoked: it acknowledges nothing, and its lease has run out so many ms from now. */
  readonly revokedLeftMs?: number
}

export interface Changes {
  /** Keys whose entries must neither be used nor kept until they are told as changed. */
  readonly changing: readonly string[]
  readonly changed: readonly string[]
}

/** A batch that needs more is told as 'all'. */
export interface MessageLimits {
  readonly bytesMax: number
  readonly messagesMax: number
}

export interface Announcement {
  /** Everyone else whose lease may be live, as of one moment after the call. */
  readonly holders: readonly ListedHolder[]
  /** The server may have forgotten leases that are still valid: they have run out so many ms from now. */
  readonly waitMs: number
}

export interface Renewal {
  readonly outcome: 'held' | 'refused' | 'suspended'
  readonly others: number
}

export interface StoreEvents {
  /** Everything announced from now on arrives; what was announced before may have been missed. */
  connected(): void
  /** Announcements may have been missed, or will be. */
  gap(reason: string): void
  /** Part of a batch; `last` asks for its acknowledgement. */
  announced(
    writer: string,
    batch: number,
    kind: 'changing' | 'changed',
    keys: readonly string[] | 'all',
    last: boolean,
  ): void
  acknowledged(holder: string, batch: number): void
  /** Somebody else registered a lease. */
  joined(): void
  /** This instance ended: it can answer nothing from its cache any more. */
  gone(holder: Holder): void
}

/**
 * Methods reject when the server cannot be asked, or is not known to listen to us; nothing is queued for later. A call
 * that rejected may still take effect.
 */
export interface LeaseStore {
  readonly driver: 'redis' | 'postgres'
  /** Connects, and goes on trying in the background. Resolves after the first attempt, whatever came of it. */
  start(events: StoreEvents): Promise<void>
  /** Undefined while announcements reach us; else why they don't. */
  trouble(): string | undefined
  /**
   * Extends the lease of this instance, or registers it (`fresh`: the caller answers nothing from its cache until then).
   * 'refused': revoked, expired or forgotten; 'suspended': caching is suspended for everybody. `others` counts the workers
   * that hold a lease beside us, and one more if the server may have forgotten some.
   */
  renew(instance: string, fresh: boolean): Promise<Renewal>
  readonly messageLimits: MessageLimits
  /** Publishes the messages, which are at least one, and lists the holders of a moment not before the call. */
  announce(messages: readonly string[]): Promise<Announcement>
  /** Best effort: a lost acknowledgement costs the writer time, never correctness. */
  acknowledge(writer: string, batch: number): void
  /** Forbids this instance to renew. Resolves with the ms from now after which its lease has run out. */
  revoke(holder: Holder): Promise<number>
  /** A way to end all caching without the server (Redis): resolves with the ms from now after which nobody caches. */
  readonly suspend?: () => Promise<number>
  release(instance: string): Promise<void>
  members(): Promise<readonly Member[]>

  /** False if somebody holds it, or might: a server that may have forgotten leases gives no role away. */
  takeRole(role: string, nonce: string): Promise<boolean>
  renewRole(role: string, nonce: string): Promise<boolean>
  freeRole(role: string, nonce: string): Promise<void>
  roleHolder(role: string): Promise<string | undefined>

  close(): Promise<void>
}

/** Messages between workers, as JSON. Unknown ones are ignored, so that a newer release may add some. */
export type Message =
  | readonly [kind: 'changing' | 'changed', writer: string, batch: number, last: 0 | 1, keys: readonly string[] | 'all']
  | readonly ['joined', holder: string]
  | readonly ['gone', holder: string, instance: string]
  | readonly ['acknowledged', holder: string, batch: number]

export const encodeMessage = (message: Message): string => JSON.stringify(message)

/** Hands a message to the listener it concerns. False: it could not be understood. */
export function deliver(text: string, self: string, events: StoreEvents): boolean {
  let message: unknown
  try {
    message = JSON.parse(text)
  } catch {
    return false // not ours; the caller counts it as a gap
  }
  if (!Array.isArray(message)) return false
  const [kind, from, third, fourth, fifth] = message as readonly unknown[]
  if (typeof from !== 'string') return false
  if (from === self) return true
  const isChange = kind === 'changing' || kind === 'changed'
  if (isChange && typeof third === 'number' && (Array.isArray(fifth) || fifth === 'all')) {
    events.announced(from, third, kind, fifth as readonly string[] | 'all', fourth === 1)
  } else if (kind === 'acknowledged' && typeof third === 'number') {
    events.acknowledged(from, third)
  } else if (kind === 'joined') {
    events.joined()
  } else if (kind === 'gone' && typeof third === 'string') {
    events.gone({ id: from, instance: third })
  } else {
    return !isChange
  }
  return true
}

/** The text of an error, without the fields drivers hang on it (a failed AUTH carries the password). */
export const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))
