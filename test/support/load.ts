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
}

/** Between two operations of a worker, at most: else the load takes all that the machine can do, and faults meet nothing but queues. */
const pauseMsMax = 60

export interface Tally {
  reads: number
  writes: number
  deletes: number
  readMsMax: number
  writeMsMax: number
}

/** Runs until `stop`. A failed operation is kept in `failures`, one that said something untrue in `wrong`. */
export class Load {
  readonly #options: LoadOptions
  readonly #workers: Promise<void>[]
  readonly #shared: readonly Buffer[]
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

  async #work(): Promise<void> {
    const { random, clients, smallPaths = 60, largePaths = 8 } = this.#options
    while (!this.#stopping) {
      const client = random.pick(clients)
      const large = random.next() < 0.06
      const name = large ? `large-${random.int(1, largePaths)}` : `small-${random.int(1, smallPaths)}`
      const path = `raw/${this.folder}/${name}`
      const dice = random.next()
      const phase = this.phaseName
      await sleep(random.next() * pauseMsMax)
      try {
        if (dice < 0.6) this.#account(phase, 'reads', `GET ${path}`, await client.get(path))
        else if (dice < 0.95) this.#account(phase, 'writes', `PUT ${path}`, await client.put(path, this.#body(large)))
        else this.#account(phase, 'deletes', `DELETE ${path}`, await client.delete(path))
      } catch (error) {
        if (!(error instanceof WrongAnswer)) throw error
        this.wrong.push(`${phase}: ${error.message}`)
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

  #account(phase: string, kind: 'reads' | 'writes' | 'deletes', what: string, answer: Answer): void {
    const fine = kind === 'writes' ? [200, 201] : kind === 'reads' ? [200, 404] : [204, 404]
    for (const tally of [this.total, this.current]) {
      if (fine.includes(answer.status)) tally[kind]++
      if (kind === 'reads') tally.readMsMax = Math.max(tally.readMsMax, answer.ms)
      else tally.writeMsMax = Math.max(tally.writeMsMax, answer.ms)
    }
    if (fine.includes(answer.status)) return
    const why = answer.error === undefined ? answer.body.toString().slice(0, 200) : answer.error.message
    this.failures.push(`${phase}: ${what}: ${answer.status} ${why} after ${answer.ms.toFixed(0)} ms`)
  }
}

function newTally(): Tally {
  return { reads: 0, writes: 0, deletes: 0, readMsMax: 0, writeMsMax: 0 }
}

export function tallyText({ reads, writes, deletes, readMsMax, writeMsMax }: Tally): string {
  return `${reads} reads (slowest ${readMsMax.toFixed(0)} ms), ${writes} writes, ${deletes} deletes (slowest ${writeMsMax.toFixed(0)} ms)`
}

/** Ends the load, in which no operation may have failed: every answer is right, and explained by the acknowledged writes. */
export async function endWithoutFault(t: Test, load: Load, history: History): Promise<void> {
  await load.stop()
  t.same(load.takeFailures(), [])
  t.same(load.wrong, [])
  t.same(history.problems(), [])
  t.comment(tallyText(load.total))
}
