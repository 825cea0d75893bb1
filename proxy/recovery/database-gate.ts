/**
 * Keeps a database that is older than what the shards know out of use (I13): at each connect, and every few seconds for shards that were
 * away then. To the rest of the proxy such a database is away: reads are answered by the shards, writes refused, no task runs.
 */
import type { Logger } from 'pino'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { IssuedVersions } from '../metadata/recovery.ts'
import { databaseDoubt, type ShardNews } from './judge-database.ts'

const recheckMs = 5_000

export interface DatabaseGateDeps {
  /** What the shards that answer say. May be less than all: those that are away are asked later. */
  readonly shards: () => Promise<readonly ShardNews[]> | readonly ShardNews[]
  readonly log: Logger
}

export class DatabaseGate {
  #deps: DatabaseGateDeps
  #timer: NodeJS.Timeout | undefined
  #problem: string | undefined

  constructor(deps: DatabaseGateDeps) {
    this.#deps = deps
  }

  /** Why the database may not be used; undefined: it may. */
  get problem(): string | undefined {
    return this.#problem
  }

  /** From now on the shards are asked in this way. */
  askVia(shards: DatabaseGateDeps['shards']): void {
    this.#deps = { ...this.#deps, shards }
  }

  /** Rejects with METADATA_UNAVAILABLE if the database is behind. What the shards know only grows, so it is asked for before `issued` is read. */
  async admit(issued: () => Promise<IssuedVersions>): Promise<void> {
    const { shards, log } = this.#deps
    const news = await shards()
    const doubt = databaseDoubt(await issued(), news)
    const problem =
      doubt === undefined
        ? undefined
        : `the database is not the one that wrote the shards (${doubt}): restore a newer copy, or bring it up to date with 'holdfast metadata catch-up' ('holdfast metadata rebuild' if it is empty)`
    if (problem !== this.#problem) {
      if (problem === undefined) log.info('the database knows all that the shards know')
      else log.error({ doubt }, 'the database is behind the shards: reads only')
    }
    this.#problem = problem
    if (problem !== undefined) throw new HoldfastError('METADATA_UNAVAILABLE', problem, { behind: true })
  }

  /** Looks again and again while the database is in use; `recheck` takes it out of use if it must. */
  start(recheck: () => Promise<void>): void {
    this.#timer = setInterval(() => {
      recheck().catch((error: unknown) => {
        if (!isHoldfastError(error))
          this.#deps.log.error({ err: error }, 'could not compare the database with the shards')
      })
    }, recheckMs).unref()
  }

  close(): void {
    clearInterval(this.#timer)
  }
}
