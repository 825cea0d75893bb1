/** The coordinator over a server: wires the holder's side, the writer's side and the terms to one store. */
import { Announcer } from './announcer.ts'
import { LeaseHolder } from './lease-holder.ts'
import type { CoordinationLog, LeaseStore } from './lease-store.ts'
import { Terms } from './terms.ts'
import type { Timings } from './timings.ts'
import type { CacheLease, CoordinationState, Coordinator, Leadership, Member } from './types.ts'

export interface LeaseCoordinatorDeps {
  readonly store: LeaseStore
  readonly member: Member
  readonly issueToken: (role: string, holder: string) => Promise<number>
  readonly timings: Timings
  readonly log: CoordinationLog
}

export class LeaseCoordinator implements Coordinator {
  readonly driver: 'redis' | 'postgres'
  readonly cache: CacheLease
  readonly #deps: LeaseCoordinatorDeps
  readonly #holder: LeaseHolder
  readonly #announcer: Announcer
  readonly #terms: Terms
  #closing: Promise<void> | undefined

  constructor(deps: LeaseCoordinatorDeps) {
    this.#deps = deps
    this.driver = deps.store.driver
    const holder = new LeaseHolder(deps)
    const { id } = deps.member
    const announcer = new Announcer({
      ...deps,
      self: id,
      alone: () => holder.alone(),
      markLocally: keys => holder.mark(id, keys),
      unmarkLocally: keys => holder.unmark(id, keys),
    })
    this.#holder = holder
    this.#announcer = announcer
    this.#terms = new Terms({ ...deps, self: deps.member.id })
    this.cache = {
      usable: key => holder.usable(key),
      prepare: keys => announcer.prepare(keys),
      invalidate: keys => announcer.invalidate(keys),
      onInvalidate: listener => holder.onInvalidate(listener),
    }
  }

  async start(): Promise<void> {
    const [holder, announcer] = [this.#holder, this.#announcer]
    await this.#deps.store.start({
      connected: () => {
        holder.connected()
        announcer.joined() // others may have joined unheard
      },
      gap: reason => holder.gap(reason),
      announced: (writer, batch, kind, keys, last) => holder.announced(writer, batch, kind, keys, last),
      acknowledged: (id, batch) => announcer.acknowledged(id, batch),
      joined: () => {
        holder.joined()
        announcer.joined()
      },
      gone: instance => announcer.gone(instance),
    })
    await holder.start()
  }

  acquire(role: string): Promise<Leadership | undefined> {
    return this.#terms.acquire(role)
  }

  async holder(role: string): Promise<string | undefined> {
    return this.#deps.store.roleHolder(role).catch(() => undefined) // unknown is an answer
  }

  async members(): Promise<readonly Member[]> {
    const { store, member } = this.#deps
    return store.members().catch(() => [member]) // alone, as far as we can see
  }

  async knownMembers(): Promise<readonly Member[] | undefined> {
    if (!this.state().up) return undefined
    const members = await this.#deps.store.members().catch(() => undefined) // unknown is an answer
    return members?.some(({ id }) => id === this.#deps.member.id) === true ? members : undefined
  }

  state(): CoordinationState {
    const trouble = this.#holder.trouble
    const reason = this.#deps.store.trouble() ?? trouble?.reason
    const counters = { ...this.#announcer.counters, emptied: this.#holder.emptiedCount }
    if (reason === undefined) return { up: true, counters }
    return { up: false, reason, since: trouble?.since ?? Date.now(), counters }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#announcer.close()
    await this.#terms.close()
    await this.#holder.close()
    await this.#deps.store.close()
  }
}
