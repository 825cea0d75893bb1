/**
 * Coordination within one process, for a cluster that is one process (PGlite allows no second one). Nothing can be lost
 * on the way, so there are no leases, only registrations.
 */
import type { CacheLease, CoordinationState, Coordinator, Leadership, Member } from './types.ts'

/** What the coordinators of one process share; make one per cluster. */
export class MemoryHub {
  readonly coordinators = new Set<MemoryCoordinator>()
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
  readonly #terms = new Set<AbortController>()

  constructor(deps: MemoryCoordinatorDeps) {
    this.#deps = deps
    this.cache = {
      usable: () => deps.hub.coordinators.has(this),
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

  state(): CoordinationState {
    const counters = { ...this.#counters }
    return this.cache.usable() ? { up: true, counters } : { up: false, reason: 'not started', counters }
  }

  async close(): Promise<void> {
    this.#deps.hub.coordinators.delete(this)
    for (const term of this.#terms) term.abort(new Error('coordinator closed'))
  }

  #announce(keys: readonly string[]): void {
    this.#counters.rounds++
    this.#counters.keys += keys.length
    for (const other of this.#deps.hub.coordinators) if (other !== this) other.#tell(keys)
  }

  #tell(keys: readonly string[] | 'all'): void {
    if (keys === 'all') this.#counters.emptied++
    for (const listener of this.#listeners) listener(keys)
  }
}
