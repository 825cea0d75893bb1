/**
 * Remembers repositories and users for the time when PostgreSQL is away: in memory, and sealed in the state folder for the next start.
 * Looks every 5 s, so that a change is on disk within 10 s; an unchanged copy is written anew each minute, because its age counts.
 */
import type { Logger } from 'pino'
import { isHoldfastError } from '../../shared/errors.ts'
import { repositoriesIn, usersIn } from '../metadata/identity-tables.ts'
import type { Metadata, Repository, User } from '../metadata/types.ts'
import { writeIdentity } from './cold-state.ts'
import { sealIdentity, type IdentitySnapshot } from './sealed-identity.ts'

const lookEveryMs = 5_000
const writeEveryMs = 60_000

export interface IdentityKeeperDeps {
  readonly metadata: Pick<Metadata, 'exportIdentity' | 'clusterId' | 'incarnation'>
  readonly secret: string
  readonly stateFolder: string
  /** An older copy lets nobody log in, and opens only what everybody may read. */
  readonly maxAgeMs: number
  /** Monotonic, ms. */
  readonly now: () => number
  readonly log: Logger
  /** Pause between two looks, for tests. */
  readonly lookMs?: number
}

interface Remembered {
  readonly repositories: readonly Repository[]
  readonly users: ReadonlyMap<string, User>
  /** The tables as text: what tells a change. */
  readonly text: string
}

export class IdentityKeeper {
  readonly #deps: IdentityKeeperDeps
  #remembered: Remembered | undefined
  /** By `now`: when the database last said so. */
  #confirmedAt = Number.NEGATIVE_INFINITY
  #writtenAt = Number.NEGATIVE_INFINITY
  #writtenText: string | undefined
  #timer: NodeJS.Timeout | undefined
  #looking: Promise<void> = Promise.resolve()
  #closed = false

  /** `found`: what the last run left in the state folder. */
  constructor(deps: IdentityKeeperDeps, found?: IdentitySnapshot) {
    this.#deps = deps
    if (found === undefined) return
    this.#remembered = rememberedOf(found)
    // A clock that was set back makes it look newer than it is, never older than the process.
    this.#confirmedAt = deps.now() - Math.max(0, Date.now() - found.takenAt)
  }

  /** Looks at once, and from then on by itself. */
  async start(): Promise<void> {
    this.#looking = this.#look()
    await this.#looking
    this.#schedule()
  }

  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#looking
  }

  /** Since the database last confirmed what is remembered; undefined: nothing is. */
  get ageMs(): number | undefined {
    return this.#remembered === undefined ? undefined : Math.max(0, this.#deps.now() - this.#confirmedAt)
  }

  /** Is it too old to let anybody log in? Also when there is nothing. */
  get outdated(): boolean {
    return (this.ageMs ?? Infinity) > this.#deps.maxAgeMs
  }

  /** Undefined: nothing is remembered. */
  repositories(): readonly Repository[] | undefined {
    return this.#remembered?.repositories
  }

  /** Undefined: nobody knows. `user` undefined: there is no such user. */
  user(name: string): { readonly user: User | undefined } | undefined {
    if (this.#remembered === undefined || this.outdated) return undefined
    return { user: this.#remembered.users.get(name) }
  }

  #schedule(): void {
    if (this.#closed) return
    this.#timer = setTimeout(() => {
      this.#looking = this.#look().finally(() => this.#schedule())
    }, this.#deps.lookMs ?? lookEveryMs)
    this.#timer.unref()
  }

  /** Never rejects. */
  async #look(): Promise<void> {
    const { metadata, log, now } = this.#deps
    try {
      const askedAt = now()
      const tables = await metadata.exportIdentity()
      const { clusterId, incarnation } = metadata
      const snapshot = { clusterId, incarnation, takenAt: Date.now(), tables }
      const text = JSON.stringify(tables)
      if (text !== this.#remembered?.text) this.#remembered = rememberedOf(snapshot, text)
      this.#confirmedAt = askedAt
      if (text !== this.#writtenText || askedAt - this.#writtenAt >= writeEveryMs) await this.#write(snapshot, text)
    } catch (error) {
      if (isHoldfastError(error, 'METADATA_UNAVAILABLE')) return
      log.error({ err: error }, 'could not keep a copy of users and repositories')
    }
  }

  async #write(snapshot: IdentitySnapshot, text: string): Promise<void> {
    const { secret, stateFolder, now } = this.#deps
    await writeIdentity(stateFolder, sealIdentity(secret, snapshot))
    this.#writtenAt = now()
    this.#writtenText = text
  }
}

function rememberedOf({ tables }: IdentitySnapshot, text = JSON.stringify(tables)): Remembered {
  return { repositories: repositoriesIn(tables), users: new Map(usersIn(tables).map(user => [user.name, user])), text }
}
