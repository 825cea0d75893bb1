/** What the parts of a soak share: the cluster, the dice, and how an operator's commands are run in it. */
import type { Test } from 'tap'
import type { Clocks } from '../support/clock.ts'
import type { Cluster } from '../support/cluster.ts'
import type { Partitions } from '../support/partitions.ts'
import type { Random } from '../support/random.ts'

export interface World {
  readonly t: Test
  readonly cluster: Cluster
  readonly random: Random
  /** Digests of which a copy was already damaged: a second fault of the same blob could be the last copy's. */
  readonly damaged: Set<string>
  /** Of one node: a mount that can be made smaller; undefined where there can be none. */
  readonly smallDisk: { readonly node: string; readonly folder: string } | undefined
  /** Undefined where they cannot be moved. */
  readonly clocks: Clocks | undefined
  /** Undefined where no network can be broken between two processes only. */
  readonly partitions: Partitions | undefined
  /** May flushes be made slow and failing? */
  readonly flushes: boolean
}

export interface Fault {
  readonly name: string
  /** What may be refused with 503 meanwhile: a write needs PostgreSQL, a read never does. */
  readonly mayRefuse: 'nothing' | 'writes'
  /** A proxy that is gone with all it has in hand: the load stays away from it. */
  readonly victim?: number
  begin(): Promise<unknown>
  /** Undoes it; resolves when what was stopped runs again. */
  end(): Promise<unknown>
}

export type Command = (
  source: { args: readonly string[]; env: Record<string, string> },
  write: Writer,
) => Promise<number>
interface Writer {
  readonly out: (text: string) => void
  readonly err: (text: string) => void
}

export interface Said {
  readonly code: number
  readonly text: string
}

const commandMs = 20_000

/** An operator's command, to one proxy after the other; a proxy that is gone gives a code other than 0. */
let asked = 0
export async function run(cluster: Cluster, command: Command, ...words: string[]): Promise<Said> {
  const { url } = cluster.proxies[asked++ % cluster.proxies.length]!
  const env = { HOLDFAST_URL: url, HOLDFAST_PASSWORD: cluster.adminPassword }
  let text = ''
  const write = { out: (part: string) => void (text += part), err: (part: string) => void (text += part) }
  return { code: await command({ args: [...words, '--timeout-ms', String(commandMs)], env }, write), text }
}
