/**
 * Coordination within one process, for a cluster that is one process (PGlite allows no second one). Nothing can be lost
 * on the way, so there are no leases, only registrations.
 */
import type { CacheLease, CoordinationState, Coordinator, Leadership, Member } from './types.ts'

/** What the coordinators of one process share; make one per cluster. */
export class MemoryHub {
  readonly coordinators = new Set<MemoryCoordinator>()
  /** Writes under way per key; nobody uses its cache for them. */
  readonly changing = new Map<string, number>()
  readonly roles = new Map<string, { readonly holder: string; readonly term: AbortController }>()
}

export interface MemoryCoordinatorDeps {
  readonly hub: MemoryHub
  readonly member: Member
  readonly issueToken: (role: string, holder: string) => Promise<number>
}

export class MemoryCoordinator implements Coordinator {
  readonly driver = 'memory'
  readonly cache: CacheLease
  readonly #deps: MemoryCoordinatorDeps
  readonly #listeners: ((keys: readonly string[] | 'all') => void)[] = []
  readonly #counters = { rounds: 0, keys: 0, revocations: 0, suspensions: 0, emptied: 0 }
  /** This worker's share of `hub.changing`. */
  readonly #prepared = new Map<string, number>()
  readonly #terms = new Set<AbortController>()

  constructor(deps: MemoryCoordinatorDeps) {
    this.#deps = deps
    this.cache = {
      usable: key => deps.hub.coordinators.has(this) && (key === undefined || !deps.hub.changing.has(key)),
      prepare: async keys => this.#prepare(keys),
      invalidate: async keys => this.#announce(keys),
      onInvalidate: listener => void this.#listeners.push(listener),
    }
  }

  async start(): Promise<void> {
    this.#tell('all')
    this.#deps.hub.coordinators.add(this)
  }

  async acquire(role: string): Promise<Leadership | undefined> {
    const { hub, member, issueToken } = this.#deps
    if (hub.roles.has(role) || !hub.coordinators.has(this)) return undefined
    const term = new AbortController()
    const free = (): void => {
      if (hub.roles.get(role)?.term === term) hub.roles.delete(role)
      this.#terms.delete(term)
      term.abort(new Error(`role ${role}: released`))
    }
    term.signal.addEventListener('abort', free, { once: true })
    hub.roles.set(role, { holder: member.id, term })
    this.#terms.add(term)
    const token = await issueToken(role, member.id).catch(() => undefined)
    if (token === undefined) free()
    if (token === undefined || term.signal.aborted) return undefined
    return { token, signal: term.signal, release: async () => free() }
  }

  async holder(role: string): Promise<string | undefined> {
    return this.#deps.hub.roles.get(role)?.holder
  }

  async members(): Promise<readonly Member[]> {
    return [...this.#deps.hub.coordinators].map(one => one.#deps.member)
  }

  knownMembers(): Promise<readonly Member[]> {
    return this.members()
  }

  state(): CoordinationState {
    const counters = { ...this.#counters }
    return this.cache.usable() ? { up: true, counters } : { up: false, reason: 'not started', counters }
  }

  async close(): Promise<void> {
    this.#deps.hub.coordinators.delete(this)
    for (const [key, count] of this.#prepared) for (let i = 0; i < count; i++) take(this.#deps.hub.changing, key)
    this.#prepared.clear()
    for (const term of this.#terms) term.abort(new Error('coordinator closed'))
  }

  /** With nobody else there, the writer's own cache is right by itself. */
  #prepare(keys: readonly string[]): void {
    const { changing, coordinators } = this.#deps.hub
    if (coordinators.size < 2) return
    for (const key of keys) {
      changing.set(key, (changing.get(key) ?? 0) + 1)
      this.#prepared.set(key, (this.#prepared.get(key) ?? 0) + 1)
    }
    for (const one of coordinators) one.#tell(keys)
  }

  #announce(keys: readonly string[]): void {
    this.#counters.rounds++
    this.#counters.keys += keys.length
    const own = keys.filter(key => take(this.#prepared, key))
    if (own.length > 0) this.#tell(own) // what was read between prepare and commit
    for (const other of this.#deps.hub.coordinators) if (other !== this) other.#tell(keys)
    for (const key of own) take(this.#deps.hub.changing, key)
  }

  #tell(keys: readonly string[] | 'all'): void {
    if (keys === 'all') this.#counters.emptied++
    for (const listener of this.#listeners) listener(keys)
  }
}

/** Takes one off a count. False if there was none. */
function take(counts: Map<string, number>, key: string): boolean {
  const count = counts.get(key) ?? 0
  if (count > 1) counts.set(key, count - 1)
  else counts.delete(key)
  return count > 0
}
