/**
 * A network that is broken between two processes only, or only from one to the other: packets are dropped silently. Each process on the
 * asking side runs in a group of its own, by which the kernel tells its packets from all others of the machine; rules name that group and
 * a port, so nobody else can meet them.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import type { Test } from 'tap'

const run = promisify(execFile)

/** What is lost: what the asking side says, what it is told, or both. */
export const losses = ['requests', 'answers', 'both'] as const
export type Loss = (typeof losses)[number]

export class Partitions {
  readonly #groups: ReadonlyMap<string, number>
  #rules: (readonly string[])[] = []

  constructor(groups: ReadonlyMap<string, number>) {
    this.#groups = groups
  }

  /** Before the program of a process that is to be cut off. A change of group forgets who is to die with the test: it is said again. */
  wrapper(id: string): string[] {
    return ['setpriv', '--regid', String(this.#group(id)), '--clear-groups', '--pdeathsig', 'KILL', '--']
  }

  async cut(id: string, port: number, loss: Loss): Promise<void> {
    const group = String(this.#group(id))
    const asking = ['-o', 'lo', '-p', 'tcp', '--dport', String(port), '-m', 'owner', '--gid-owner', group]
    const answering = ['-i', 'lo', '-p', 'tcp', '--sport', String(port), '-m', 'connmark', '--mark', group]
    if (loss !== 'answers') await this.#add(['OUTPUT', ...asking, '-j', 'DROP'])
    if (loss === 'requests') return
    await this.#add(['OUTPUT', ...asking, '-j', 'CONNMARK', '--set-mark', group])
    await this.#add(['INPUT', ...answering, '-j', 'DROP'])
  }

  async heal(): Promise<void> {
    for (const rule of this.#rules.splice(0)) await run('iptables', ['-w', '10', '-D', ...rule])
  }

  async #add(rule: readonly string[]): Promise<void> {
    const [chain = '', ...rest] = rule
    await run('iptables', ['-w', '10', '-I', chain, ...rest])
    this.#rules.push(rule)
  }

  #group(id: string): number {
    const group = this.#groups.get(id)
    if (group === undefined) throw new Error(`${id} cannot be cut off`)
    return group
  }
}

/** undefined where this machine does not let us (iptables as root, setpriv). Nothing of it is left after the test. */
export async function findPartitions(
  t: Pick<Test, 'teardown'>,
  ids: readonly string[],
): Promise<Partitions | undefined> {
  const first = 50_000 + Math.floor(Math.random() * 10_000)
  const partitions = new Partitions(new Map(ids.map((id, index) => [id, first + index])))
  t.teardown(() => partitions.heal())
  try {
    const [command = '', ...args] = partitions.wrapper(ids[0] ?? '')
    await run(command, [...args, 'true'])
    await partitions.cut(ids[0] ?? '', 1, 'both')
    await partitions.heal()
    return partitions
  } catch {
    return undefined // says the soak
  }
}
