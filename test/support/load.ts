/** Mixed load on a cluster, written down so that it can be judged afterwards. */
import type { Test } from 'tap'
import { setTimeout as sleep } from 'node:timers/promises'
import { WrongAnswer, type Answer, type Client } from './client.ts'
import { eventually } from './eventually.ts'
import type { History } from './history.ts'
import type { Random } from './random.ts'

export interface LoadOptions {
  readonly random: Random
  /** One or several proxies; each operation goes to a random one. */
  readonly clients: readonly Client[]
  /** Operations at once. */
  readonly concurrency?: number
  /** Paths that are written, read and deleted again and again. */
  readonly smallPaths?: number
  readonly largePaths?: number
  readonly largeBytes?: number
  /** Of a hundred operations, how many are copies and moves between the paths; none unless told. */
  readonly transferPercent?: number
}

/** Between two operations of a worker, at most: else the load takes all that the machine can do, and faults meet nothing but queues. */
const pauseMsMax = 60

export interface Tally {
  reads: number
  writes: number
  deletes: number
  /** Copies and moves. */
  transfers: number
  readMsMax: number
  writeMsMax: number
  /** Milliseconds of each. */
  readonly readTimes: number[]
  readonly writeTimes: number[]
}

/** Runs until `stop`. A failed operation is kept in `failures`, one that said something untrue in `wrong`. */
export class Load {
  readonly #options: LoadOptions
  readonly #workers: Promise<void>[]
  readonly #shared: readonly Buffer[]
  #clients: readonly Client[]
  readonly #busy = new Map<Client, number>()
  #stopping = false
  readonly failures: string[] = []
  readonly wrong: string[] = []
  readonly total: Tally = newTally()
  /** Since the last `phase`. */
  current: Tally = newTally()
  phaseName = 'calm'
  /** Where the paths are. Outcomes nobody knows pile up on a path; a long test moves on before they are too many to check. */
  folder = 'load'

  /** Ends with the test at the latest. */
  constructor(t: Pick<Test, 'teardown'>, options: LoadOptions) {
    this.#options = options
    this.#clients = options.clients
    t.teardown(() => this.stop())
    const { random, concurrency = 12 } = options
    // The same bytes under many paths: what deduplication is for.
    this.#shared = [random.bytes(900), random.bytes(40_000), random.bytes(300_000), random.bytes(1_500_000)]
    this.#workers = Array.from({ length: concurrency }, () => this.#work())
  }

  /** Begins to count anew; operations that fail from now on are told with this name. */
  phase(name: string): void {
    this.phaseName = name
    this.current = newTally()
  }

  /** Resolves when so many reads and writes were answered since `phase`. */
  async progress(reads: number, writes: number, withinMs = 30_000): Promise<void> {
    await eventually(
      `${reads} reads and ${writes} writes in phase '${this.phaseName}'`,
      () => this.current.reads >= reads && this.current.writes >= writes,
      { withinMs, everyMs: 20 },
    )
  }

  /** The failures since the last call: the first ones in words, the rest counted. */
  takeFailures(): string[] {
    const all = this.failures.splice(0)
    return all.length <= 8 ? all : [...all.slice(0, 8), `and ${all.length - 8} more`]
  }

  async stop(): Promise<void> {
    this.#stopping = true
    await Promise.all(this.#workers)
  }

  /** From now on these are asked; resolves when nobody else has anything in hand any more. */
  async use(clients: readonly Client[]): Promise<void> {
    this.#clients = clients
    const others = (): boolean => [...this.#busy].some(([client, count]) => count > 0 && !clients.includes(client))
    await eventually('the other clients are done', () => !others(), { withinMs: 60_000, everyMs: 10 })
  }

  #count(client: Client, more: number): void {
    this.#busy.set(client, (this.#busy.get(client) ?? 0) + more)
  }

  async #work(): Promise<void> {
    const { random, smallPaths = 60, largePaths = 8, transferPercent = 0 } = this.#options
    while (!this.#stopping) {
      const large = random.next() < 0.06
      const name = large ? `large-${random.int(1, largePaths)}` : `small-${random.int(1, smallPaths)}`
      const path = `raw/${this.folder}/${name}`
      const dice = random.next()
      await sleep(random.next() * pauseMsMax)
      const phase = this.phaseName
      const client = random.pick(this.#clients)
      this.#count(client, 1)
      try {
        if (transferPercent > 0 && random.next() * 100 < transferPercent) {
          const kind = random.pick(['copy', 'copy', 'move'] as const)
          const other = large ? `large-${random.int(1, largePaths)}` : `small-${random.int(1, smallPaths)}`
          const to = `raw/${this.folder}/${other}`
          if (to === path) continue
          this.#account(phase, 'transfers', `${kind} ${path} -> ${to}`, await client.transfer(kind, path, to))
        } else if (dice < 0.6) this.#account(phase, 'reads', `GET ${path}`, await client.get(path))
        else if (dice < 0.95) this.#account(phase, 'writes', `PUT ${path}`, await client.put(path, this.#body(large)))
        else this.#account(phase, 'deletes', `DELETE ${path}`, await client.delete(path))
      } catch (error) {
        if (!(error instanceof WrongAnswer)) throw error
        this.wrong.push(`${phase}: ${error.message}`)
      } finally {
        this.#count(client, -1)
      }
    }
  }

  #body(large: boolean): Buffer {
    const { random, largeBytes = 3_000_000 } = this.#options
    if (random.next() < 0.25) return random.pick(this.#shared)
    return random.bytes(
      large ? random.int(largeBytes / 3, largeBytes) : random.int(0, random.pick([100, 5_000, 200_000])),
    )
  }

  #account(phase: string, kind: keyof typeof fineStatuses, what: string, answer: Answer): void {
    const fine = fineStatuses[kind]
    for (const tally of [this.total, this.current]) {
      if (fine.includes(answer.status)) tally[kind]++
      if (kind === 'reads') tally.readMsMax = Math.max(tally.readMsMax, answer.ms)
      else tally.writeMsMax = Math.max(tally.writeMsMax, answer.ms)
      if (kind === 'reads') tally.readTimes.push(answer.ms)
      else tally.writeTimes.push(answer.ms)
    }
    if (fine.includes(answer.status)) return
    const why = answer.error === undefined ? answer.body.toString().slice(0, 200) : answer.error.message
    this.failures.push(`${phase}: ${what}: ${answer.status} ${why} after ${answer.ms.toFixed(0)} ms`)
  }
}

/** 409: the source of a copy was changed meanwhile. */
const fineStatuses: Record<'reads' | 'writes' | 'deletes' | 'transfers', readonly number[]> = {
  reads: [200, 404],
  writes: [200, 201],
  deletes: [204, 404],
  transfers: [200, 404, 409],
}

function newTally(): Tally {
  return { reads: 0, writes: 0, deletes: 0, transfers: 0, readMsMax: 0, writeMsMax: 0, readTimes: [], writeTimes: [] }
}

export function tallyText({ reads, writes, deletes, transfers, readMsMax, writeMsMax }: Tally): string {
  return `${reads} reads (slowest ${readMsMax.toFixed(0)} ms), ${writes} writes, ${deletes} deletes, ${transfers} copies and moves (slowest ${writeMsMax.toFixed(0)} ms)`
}

/** Ends the load, in which no operation may have failed: every answer is right, and explained by the acknowledged writes. */
export async function endWithoutFault(t: Test, load: Load, history: History): Promise<void> {
  await load.stop()
  t.same(load.takeFailures(), [])
  t.same(load.wrong, [])
  t.same(history.problems(), [])
  t.comment(tallyText(load.total))
}
