/**
 * The primary's loop: whichever proxy holds the lease runs the cluster's tasks, each cut into short idempotent steps. A step gets the
 * term's fencing token and signal; what it changes in PostgreSQL or on a node is refused once a newer term began (I27).
 */
import { setMaxListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { isHoldfastError } from '../../shared/errors.ts'
import type { Coordinator, Leadership } from '../coordination/types.ts'

export const primaryRole = 'primary'
/** Pause between two attempts to become primary, in ms. */
const candidacyPauseMs = 1_000

export type Term = Pick<Leadership, 'token' | 'signal'>

export interface PrimaryTask {
  readonly name: string
  /** Pause between two steps in ms, when the last one found nothing more to do. */
  readonly pauseMs: number
  /** One short step; 'more' asks for the next one at once. */
  readonly step: (term: Term) => Promise<'more' | 'idle'>
  /** Called after the last step of a term, before the lease is given back: what was begun ends here. */
  readonly ended?: () => Promise<void>
}

export interface PrimaryDeps {
  readonly coordinator: Pick<Coordinator, 'acquire'>
  readonly tasks: readonly PrimaryTask[]
  /** What every term leans on, once before its first step; tried again until it resolves. */
  readonly prepare: () => Promise<void>
  readonly log: Logger
}

export class Primary {
  readonly #deps: PrimaryDeps
  readonly #closing = new AbortController()
  #token: number | undefined
  #loop: Promise<void> = Promise.resolve()

  constructor(deps: PrimaryDeps) {
    this.#deps = deps
  }

  /** The fencing token while this proxy is primary; also during the steps in hand after the lease was lost. */
  get token(): number | undefined {
    return this.#token
  }

  start(): void {
    this.#loop = this.#candidate()
  }

  /** Gives the lease back after the step in hand. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.#loop
  }

  async #candidate(): Promise<void> {
    while (!this.#closing.signal.aborted) {
      const leadership = await this.#deps.coordinator.acquire(primaryRole).catch((error: unknown) => {
        this.#deps.log.debug({ err: error }, 'could not stand for primary')
        return undefined
      })
      if (leadership !== undefined) await this.#serve(leadership)
      await pause(candidacyPauseMs, this.#closing.signal)
    }
  }

  async #serve(leadership: Leadership): Promise<void> {
    const { log, tasks } = this.#deps
    this.#token = leadership.token
    log.info({ token: leadership.token }, 'this proxy is primary')
    // Whoever lets us hold the lease may not know that the database has another term: it was rebuilt or restored meanwhile.
    const deposed = new AbortController()
    const signal = AbortSignal.any([leadership.signal, this.#closing.signal, deposed.signal])
    // Every task waits with it, and has requests under way: no leak.
    setMaxListeners(0, signal)
    const term: Term = {
      token: leadership.token,
      get signal() {
        // The leadership looks at the clock when asked, and `signal` follows it at once.
        void leadership.signal.aborted
        return signal
      },
    }
    await this.#prepare(term)
    await Promise.all(tasks.map(task => this.#run(task, term, deposed)))
    this.#token = undefined
    log.info({ token: leadership.token }, 'this proxy is no longer primary')
    await leadership.release().catch((error: unknown) => log.debug({ err: error }, 'lease left to expire'))
  }

  async #prepare(term: Term): Promise<void> {
    while (!term.signal.aborted) {
      try {
        return await this.#deps.prepare()
      } catch (error) {
        this.#deps.log.debug({ err: error }, 'the term of the primary cannot begin yet')
        await pause(candidacyPauseMs, term.signal)
      }
    }
  }

  async #run(task: PrimaryTask, term: Term, deposed: AbortController): Promise<void> {
    await this.#repeat(task, term, deposed)
    await task.ended?.()
  }

  async #repeat(task: PrimaryTask, term: Term, deposed: AbortController): Promise<void> {
    let failures = 0
    // Reading the signal looks at the clock: a process that was paused must not begin a step under a lease that ran out.
    while (!term.signal.aborted) {
      let found: 'more' | 'idle' = 'idle'
      try {
        found = await task.step(term)
        failures = 0
      } catch (error) {
        if (term.signal.aborted) return
        if (isHoldfastError(error, 'LEASE_LOST')) {
          this.#deps.log.warn({ err: error, task: task.name }, 'the database has another term: the role is given back')
          return deposed.abort(error)
        }
        failures++
        const facts = { err: error, task: task.name, failures }
        // A database or nodes that are away are told elsewhere; the step is repeated.
        if (isHoldfastError(error)) this.#deps.log.debug(facts, 'task step failed')
        else this.#deps.log.error(facts, 'task step failed')
      }
      if (found === 'idle') await pause(task.pauseMs * Math.min(1 + failures, 10), term.signal)
    }
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => {}) // woken early: the loop looks at the signal
}
