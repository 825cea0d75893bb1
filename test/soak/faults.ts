/** What a soak does to a cluster. Each fault is begun, lasts for some operations of the load, and is ended; rarely there are two at once. */
import { readFile, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { NodeHandle } from '../support/cluster.ts'
import { losses } from '../support/partitions.ts'
import { blobFiles } from '../support/shard-files.ts'
import { clockFaults, diskFaults } from './machine-faults.ts'
import { topologyFault } from './topology-faults.ts'
import type { Fault, World } from './world.ts'

/** Every kind as likely as the others; HOLDFAST_TEST_SOAK_ONLY names those that are to be tried alone. */
export const kinds = ['node', 'proxy', 'server', 'copy', 'topology', 'disk', 'clock', 'partition'] as const
export type Kind = (typeof kinds)[number]

/** The next fault, at random. `primary`: the proxy that is primary now. */
export function randomFault(world: World, primary: number | undefined, among: readonly Kind[]): Fault {
  const { random } = world
  const possible = among.flatMap(kind => {
    const faults = faultsOf(world, kind, primary)
    return faults.length === 0 ? [] : [{ kind, faults }]
  })
  const { kind, faults } = random.pick(possible)
  const first = random.pick(faults)
  if (kind !== 'topology' || random.next() < 0.4) return first
  const second = random.pick(['node', 'proxy', 'proxy', 'server', 'copy'] as const)
  return during(first, random.pick(faultsOf(world, second, primary)))
}

function faultsOf(world: World, kind: Kind, primary: number | undefined): Fault[] {
  const { random, cluster } = world
  switch (kind) {
    case 'node':
      return nodeFaults(random.pick(cluster.nodes))
    case 'proxy':
      return proxyFaults(world, primary)
    case 'server':
      return serverFaults(world)
    case 'copy':
      return [copyFault(world, 'flipped'), copyFault(world, 'lost')]
    case 'topology':
      return [topologyFault(world)]
    case 'disk':
      return diskFaults(world)
    case 'clock':
      return clockFaults(world)
    case 'partition':
      return partitionFaults(world)
  }
}

/** The second begins in the middle of the first, and is over before it. */
function during(first: Fault, second: Fault): Fault {
  return {
    name: `${first.name}, and ${second.name}`,
    mayRefuse: second.mayRefuse === 'writes' ? 'writes' : first.mayRefuse,
    ...(second.victim === undefined ? {} : { victim: second.victim }),
    begin: async () => {
      await first.begin()
      await second.begin()
    },
    end: async () => {
      await second.end()
      await first.end()
    },
  }
}

/** 2 s away, 2 s there, and so on. */
function flapping({ id, chaos }: NodeHandle): Fault {
  let timer: NodeJS.Timeout | undefined
  return {
    name: `${id}: flapping`,
    mayRefuse: 'nothing',
    begin: async () => {
      chaos!.mode = 'cut'
      timer = setInterval(() => (chaos!.mode = chaos!.mode === 'cut' ? 'pass' : 'cut'), 2_000)
      await sleep(7_000)
    },
    end: async () => {
      clearInterval(timer)
      chaos!.mode = 'pass'
    },
  }
}

function nodeFaults(node: NodeHandle): Fault[] {
  const { id, process, chaos } = node
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
    flapping(node),
  ]
}

/** Every second time the primary's, so that what it carries out is taken over half-way. */
function proxyFaults({ cluster, random }: World, primary: number | undefined): Fault[] {
  const any = random.int(0, cluster.proxies.length - 1)
  const victim = primary !== undefined && random.next() < 0.5 ? primary : any
  const { id, process } = cluster.proxies[victim]!
  const name = victim === primary ? `${id}, the primary` : id
  return [
    { name: `${name}: killed`, mayRefuse: 'nothing', victim, begin: () => process.kill(), end: () => process.start() },
    {
      name: `${name}: frozen`,
      mayRefuse: 'nothing',
      victim,
      begin: async () => process.stop(),
      end: async () => process.cont(),
    },
  ]
}

function serverFaults({ cluster: { postgres, redis } }: World): Fault[] {
  return [
    { name: 'redis: flushed', mayRefuse: 'nothing', begin: () => redis.flushAll(), end: async () => {} },
    { name: 'redis: killed', mayRefuse: 'nothing', begin: () => redis.stop(), end: () => redis.start() },
    { name: 'redis: frozen', mayRefuse: 'nothing', begin: async () => redis.pause(), end: async () => redis.resume() },
    { name: 'postgres: killed', mayRefuse: 'writes', begin: () => postgres.kill(), end: () => postgres.start() },
    { name: 'postgres: frozen', mayRefuse: 'writes', begin: () => postgres.pause(), end: () => postgres.resume() },
  ]
}

/** One proxy does not reach one node, or Redis, which everybody else does. */
function partitionFaults({ cluster, random, partitions }: World): Fault[] {
  if (partitions === undefined) return []
  const proxy = random.pick(cluster.proxies).id
  const node = random.pick(cluster.nodes)
  const loss = random.pick(losses)
  const others = [
    { name: node.id, port: node.chaos!.port },
    { name: 'redis', port: Number(new URL(cluster.redis.url).port) },
  ]
  return others.map(({ name, port }) => ({
    name: `${proxy} and ${name}: ${loss} lost`,
    mayRefuse: 'nothing',
    begin: () => partitions.cut(proxy, port, loss),
    end: () => partitions.heal(),
  }))
}

/** One copy of one blob, behind the back of its node. */
function copyFault({ cluster, random, damaged }: World, how: 'flipped' | 'lost'): Fault {
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
