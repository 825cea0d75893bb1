/** What a soak does to a cluster. Each fault is begun, lasts for some operations of the load, and is ended; one at a time unless it says so. */
import { readFile, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Cluster, NodeHandle, ProxyHandle } from '../support/cluster.ts'
import type { Random } from '../support/random.ts'
import { blobFiles } from '../support/shard-files.ts'

export interface Fault {
  readonly name: string
  /** What may be refused with 503 meanwhile: a write needs PostgreSQL, a read never does. */
  readonly mayRefuse: 'nothing' | 'writes'
  begin(): Promise<unknown>
  /** Undoes it; resolves when what was stopped runs again. */
  end(): Promise<unknown>
}

/** Digests of which a copy was already damaged: a second fault of the same blob could be the last copy's. */
export type Damaged = Set<string>

/** The next fault, at random. `victim` is a proxy that no client of the load uses. */
export function randomFault(cluster: Cluster, random: Random, victim: ProxyHandle, damaged: Damaged): Fault {
  const kinds = [
    ...nodeFaults(random.pick(cluster.nodes)),
    ...nodeFaults(random.pick(cluster.nodes)),
    ...proxyFaults(victim),
    ...serverFaults(cluster),
    copyFault(cluster, random, damaged, 'flipped'),
    copyFault(cluster, random, damaged, 'lost'),
  ]
  return random.pick(kinds)
}

function nodeFaults({ id, process, chaos }: NodeHandle): Fault[] {
  const network = (mode: 'blackhole' | 'half-open' | 'cut'): Fault => ({
    name: `${id}: network ${mode}`,
    mayRefuse: 'nothing',
    begin: async () => (chaos!.mode = mode),
    end: async () => (chaos!.mode = 'pass'),
  })
  return [
    {
      name: `${id}: killed`,
      mayRefuse: 'nothing',
      begin: () => process.kill(),
      end: () => process.start(),
    },
    {
      name: `${id}: frozen`,
      mayRefuse: 'nothing',
      begin: async () => process.stop(),
      end: async () => process.cont(),
    },
    {
      name: `${id}: restarted`,
      mayRefuse: 'nothing',
      begin: () => process.terminate(),
      end: () => process.start(),
    },
    network('blackhole'),
    network('half-open'),
    network('cut'),
  ]
}

function proxyFaults({ id, process }: ProxyHandle): Fault[] {
  return [
    { name: `${id}: killed`, mayRefuse: 'nothing', begin: () => process.kill(), end: () => process.start() },
    {
      name: `${id}: frozen`,
      mayRefuse: 'nothing',
      begin: async () => process.stop(),
      end: async () => process.cont(),
    },
  ]
}

function serverFaults({ postgres, redis }: Cluster): Fault[] {
  return [
    { name: 'redis: flushed', mayRefuse: 'nothing', begin: () => redis.flushAll(), end: async () => {} },
    { name: 'redis: killed', mayRefuse: 'nothing', begin: () => redis.stop(), end: () => redis.start() },
    { name: 'redis: frozen', mayRefuse: 'nothing', begin: async () => redis.pause(), end: async () => redis.resume() },
    { name: 'postgres: killed', mayRefuse: 'writes', begin: () => postgres.kill(), end: () => postgres.start() },
    { name: 'postgres: frozen', mayRefuse: 'writes', begin: () => postgres.pause(), end: () => postgres.resume() },
  ]
}

/** One copy of one blob, behind the back of its node. */
function copyFault(cluster: Cluster, random: Random, damaged: Damaged, how: 'flipped' | 'lost'): Fault {
  return {
    name: `a copy: ${how}`,
    mayRefuse: 'nothing',
    begin: async () => {
      const candidates = (await blobFiles(cluster)).filter(name => !damaged.has(digestOf(name)))
      if (candidates.length === 0) return
      const name = random.pick(candidates)
      damaged.add(digestOf(name))
      const slash = name.indexOf('/')
      const shard = cluster.nodes.flatMap(node => node.shards).find(({ id }) => id === name.slice(0, slash))
      const path = join(shard!.folder, name.slice(slash + 1))
      try {
        if (how === 'lost') return await unlink(path)
        const bytes = await readFile(path)
        const bit = random.int(0, bytes.length * 8 - 1)
        bytes[bit >> 3]! ^= 1 << (bit & 7)
        await writeFile(path, bytes)
      } catch {
        // Collected in this moment: then there is nothing to damage.
      }
    },
    end: async () => {},
  }
}

function digestOf(name: string): string {
  return name.split('/').at(-1)!.slice(0, 64)
}
