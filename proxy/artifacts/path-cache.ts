/**
 * What this worker remembers of paths: `repository/path` -> artifact, or "known to be absent".
 *
 * The rule that keeps it right (I37): whoever wants to store something takes a ticket *before* it asks PostgreSQL, and
 * an invalidation of the key voids all tickets taken before it. A fill that began before a write therefore never
 * overwrites what the write invalidated, in whatever order the answers arrive.
 */
import { LRUCache } from 'lru-cache'
import type { Artifact } from '../metadata/types.ts'

/** A cached path; `artifact` is null where the path is known not to exist. */
export interface CachedPath {
  readonly artifact: Artifact | null
  /** Prepared answer heads hang here (proxy/http/answer-head.ts), so that they live and die with the entry. */
  prepared?: unknown
  /** Day on which its download was last noted, for `DownloadLog`. */
  notedDay?: number
}

/** Permission to store one key, void after the next invalidation of it. Release it when it is not used. */
export interface FillTicket {
  readonly key: string
}

interface OpenTicket extends FillTicket {
  valid: boolean
  /** Newest version that other fills brought while this one was under way; Infinity: one of them found nothing, which has no version. */
  floor: number
}

/** Longer keys than this in the mean leave room for fewer. */
const keyCharsMean = 300

export class PathCache {
  readonly #entries: LRUCache<string, CachedPath>
  /** Tickets out per key; bounded by the requests in flight. */
  readonly #tickets = new Map<string, Set<OpenTicket>>()
  hits = 0
  misses = 0

  constructor(options: { entriesMax: number }) {
    const { entriesMax: max } = options
    // Clients choose the paths, also those at which nothing is.
    this.#entries = new LRUCache({ max, maxSize: max * keyCharsMean, sizeCalculation: (_, key) => key.length })
  }

  get(key: string): CachedPath | undefined {
    const entry = this.#entries.get(key)
    if (entry === undefined) this.misses++
    else this.hits++
    return entry
  }

  ticket(key: string): FillTicket {
    const ticket: OpenTicket = { key, valid: true, floor: 0 }
    const open = this.#tickets.get(key)
    if (open === undefined) this.#tickets.set(key, new Set([ticket]))
    else open.add(ticket)
    return ticket
  }

  release(ticket: FillTicket): void {
    const open = this.#tickets.get(ticket.key)
    if (open === undefined) return
    open.delete(ticket as OpenTicket)
    if (open.size === 0) this.#tickets.delete(ticket.key)
  }

  /**
   * Stores the artifact unless the key was invalidated since the ticket was taken, or another fill brought something newer. Uses the
   * ticket up.
   */
  store(ticket: FillTicket, artifact: Artifact | null): CachedPath {
    const entry: CachedPath = { artifact }
    const { valid, floor } = ticket as OpenTicket
    this.release(ticket)
    for (const other of this.#tickets.get(ticket.key) ?? []) {
      other.floor = Math.max(other.floor, artifact?.version ?? Infinity)
    }
    if (valid && floor <= (artifact?.version ?? 0)) this.#entries.set(ticket.key, entry)
    else this.#doubt(ticket.key, artifact)
    return entry
  }

  /**
   * Fills at once may see the states before and after a commit that we have not heard of yet, and come back in any order. Whoever saw
   * the newer one is answered with it, kept or not, so nobody may be answered with the older one from here. Where the order is not
   * known, because one of them found nothing, PostgreSQL is asked again.
   */
  #doubt(key: string, artifact: Artifact | null): void {
    const present = this.#entries.peek(key)
    if (present === undefined || present.artifact === artifact) return
    if (present.artifact === null || artifact === null || present.artifact.version < artifact.version) {
      this.#entries.delete(key)
    }
  }

  invalidate(keys: readonly string[] | 'all'): void {
    if (keys === 'all') {
      this.#entries.clear()
      for (const open of this.#tickets.values()) for (const ticket of open) ticket.valid = false
      return
    }
    for (const key of keys) {
      this.#entries.delete(key)
      for (const ticket of this.#tickets.get(key) ?? []) ticket.valid = false
    }
  }

  get size(): number {
    return this.#entries.size
  }
}
