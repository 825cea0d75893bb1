/**
 * A cluster under load for as long as one likes, while everything goes wrong that can be made to, one seeded fault after another; garbage
 * is collected without any hold, and backups are made, all the time. At the end the history must be explained, every artifact have all its
 * copies, nothing be there that nothing names, and the last backup be whole.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { backup } from '../../cli/backup.ts'
import { fsck, verify } from '../../cli/copies.ts'
import { gc } from '../../cli/gc.ts'
import { repo } from '../../cli/repo.ts'
import type { BackupSummary } from '../../proxy/backup/types.ts'
import type { Client } from '../support/client.ts'
import { findClocks } from '../support/clock.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { waitForFullCopies, waitUntilWhole } from '../support/copies.ts'
import { mountSmallDisk, noMounts, noTracing } from '../support/disks.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { Load, tallyText } from '../support/load.ts'
import { findPartitions } from '../support/partitions.ts'
import { Random } from '../support/random.ts'
import { backUp, collect } from './background.ts'
import { kinds, randomFault, type Kind } from './faults.ts'
import { explainLeftovers } from './leftovers.ts'
import { smallDiskSize } from './machine-faults.ts'
import { settled } from './topology-faults.ts'
import { run, type World } from './world.ts'

const roundsInFolder = 6
const proxies = [0, 1, 2]
const smallDiskShard = 'node-c1-1'

export interface SoakOptions {
  readonly minutes: number
  /** Kinds of faults; all unless told. */
  readonly only?: readonly Kind[]
}

/** Rejects or fails the test with the fault during which something went wrong. */
export async function soak(t: Test, random: Random, { minutes, only = kinds }: SoakOptions): Promise<void> {
  const world = await startWorld(t, random)
  const { cluster } = world
  const history = new History()
  const clients = proxies.map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
  const askers = proxies.map(proxy => cluster.client({ proxy }))
  await waitUntilWhole(cluster)
  await run(cluster, repo, 'set', 'raw', '--trash-days', '0') // what is deleted shall be garbage
  // Dice of its own: how often the load throws depends on time.
  const load = new Load(t, { random: new Random(random.seed + 1), clients, concurrency: 6, transferPercent: 6 })
  await load.progress(40, 20)

  const end = performance.now() + minutes * 60_000
  const ended = new AbortController()
  t.teardown(() => ended.abort())
  const background = Promise.all([collect(cluster, ended.signal), backUp(cluster, ended.signal)])
  const counts = new Map<string, number>()
  for (let round = 1; performance.now() < end && t.passing(); round++) {
    if (round % roundsInFolder === 0) load.folder = `load-${round}`
    // Dice of its own for each round: how often a fault throws them depends on what it meets, and the seed shall repeat the next one.
    const dice = new Random(random.seed + 1_000 * round)
    const fault = randomFault({ ...world, random: dice }, await primaryOf(askers), only)
    const name = `${round}, ${fault.name}`
    counts.set(fault.name, (counts.get(fault.name) ?? 0) + 1)
    load.phase(name)
    const begunAt = performance.now()
    await load.use(clients.filter((_, index) => index !== fault.victim))
    await fault.begin()
    await load.progress(dice.int(5, 80), fault.mayRefuse === 'writes' ? 0 : dice.int(0, 40), 60_000)
    await fault.end()
    // A node that fails again and again is ejected for longer each time.
    await cluster.allNodesUp(90_000)
    // Until writes go on: this fault's refusals must not be taken for the next one's.
    await eventually('writes go on', () => load.current.writes > 0 && writable(askers), { withinMs: 30_000 })
    await load.use(clients)
    const failures = load.failures.splice(0).filter(text => fault.mayRefuse === 'nothing' || !isRefusedWrite(text))
    const seconds = Math.round((performance.now() - begunAt) / 1_000)
    t.strictSame(failures.slice(0, 8), [], `${name}: ${seconds} s, ${tallyText(load.current)}`)
    load.phase(`after ${name}`)
    await load.progress(10, 5, 60_000)
  }
  await load.stop()
  ended.abort()
  const [purged, backups] = await background
  t.comment([...counts].map(([name, count]) => `${name} x ${count}`).join(', '))
  t.comment(`${tallyText(load.total)}, ${history.size} operations, ${purged} blobs collected, ${backups} backups made`)
  figure(t, 'soak.operations', history.size, 'count')
  figure(
    t,
    'soak.faults',
    [...counts.values()].reduce((sum, count) => sum + count, 0),
    'count',
  )
  await settled(world)
  await judge(t, cluster, history, load)
  await judgeBackups(t, cluster, backups)
}

async function startWorld(t: Test, random: Random): Promise<World> {
  const nodes = ['a', 'b', 'c'].flatMap(zone => [`node-${zone}1`, `node-${zone}2`])
  const proxyNames = proxies.map(proxy => `proxy-${proxy + 1}`)
  const clocks = await findClocks(t, [...nodes, ...proxyNames])
  const partitions = await findPartitions(t, proxyNames)
  const folder = (await noMounts()) === false ? await mountSmallDisk(t, smallDiskSize) : undefined
  const target = await mkdtemp(join(tmpdir(), 'hf-backup-'))
  t.teardown(() => rm(target, { recursive: true, force: true }))
  // Longer than any write takes: bytes that are reclaimed under a write make it a 503.
  const proxyFlags = ['--gc-min-age-ms', '500', '--gc-hold-ms', '1000', '--abandoned-ms', '20000']
  proxyFlags.push('--backup-target', `file://${target}`, '--backup-keep', '3')
  const cluster = await startCluster(t, {
    proxies: proxies.length,
    nodesPerZone: 2,
    shardsPerNode: 1,
    nodeFlags: ['--trash-hold-ms', '60000'],
    chaos: true,
    redis: true,
    proxyFlags,
    shardFolder: async shard => (shard === smallDiskShard ? folder : undefined),
    proxyWrapper: id => partitions?.wrapper(id),
    processEnv: id => clocks?.env(id) ?? {},
  })
  const smallDisk = folder === undefined ? undefined : { node: smallDiskShard.slice(0, -2), folder }
  const flushes = (await noTracing()) === false
  const missing = Object.entries({ mounts: smallDisk, clocks, iptables: partitions, strace: flushes || undefined })
  const without = missing.filter(([, found]) => found === undefined).map(([name]) => name)
  if (without.length > 0) t.comment(`without faults that need ${without.join(', ')}`)
  return { t, cluster, random, damaged: new Set(), smallDisk, clocks, partitions, flushes }
}

/** Index of the proxy that is primary; undefined: nobody, at the moment. */
async function primaryOf(askers: readonly Client[]): Promise<number | undefined> {
  const said = await Promise.all(askers.map(asker => asker.metric('holdfast_primary')))
  const found = said.indexOf(1)
  return found < 0 ? undefined : found
}

async function judge(t: Test, cluster: Cluster, history: History, load: Load): Promise<void> {
  t.strictSame(load.wrong, [], 'I5: no wrong answer')
  t.strictSame(load.takeFailures(), [], 'no failure after the last fault')
  const client = cluster.client({ history })
  const living: string[] = []
  for (const path of history.paths) {
    const { status } = await client.get(path)
    if (status !== 200 && status !== 404) t.fail(`${path}: ${status} at the end`)
    // A copy that was damaged and never read since is found here, and healed.
    if (status === 200) await run(cluster, verify, path)
    if (status === 200) living.push(path)
  }
  t.strictSame(history.problems(), [], 'I1, I7, I16, I37: every answer is explained by the acknowledged writes')
  t.comment(`${history.unseen} paths where the shards knew less of an unacknowledged write than PostgreSQL had told`)
  await waitForFullCopies(cluster, living, 120_000)
  let report = ''
  await eventually(
    'fsck finds nothing',
    async () => {
      const collected = await run(cluster, gc, 'run', '--force')
      const { code, text } = await run(cluster, fsck)
      report = `${text}\nthe last collection (${collected.code}): ${collected.text}`
      return code === 0
    },
    { withinMs: 90_000, everyMs: 1_000 },
  ).catch(async () => t.fail(`I36: ${report}\n${await explainLeftovers({ cluster })}`))
  t.strictSame(cluster.crashes(), [], 'no process ended by itself')
}

/** The newest one was made amid the faults. */
async function judgeBackups(t: Test, cluster: Cluster, finished: number): Promise<void> {
  if (finished === 0) return
  const listed = await run(cluster, backup, 'list', '--json')
  const { backups } = JSON.parse(listed.text) as { backups: BackupSummary[] }
  const lacking = backups.filter(({ missing }) => missing > 0).map(({ id, missing }) => `${id} lacks ${missing}`)
  t.strictSame(lacking, [], 'I12: backups lack nothing')
  const verified = await run(cluster, backup, 'verify')
  t.equal(verified.code, 0, `the newest backup is whole: ${verified.text}`)
}

let probes = 0
async function writable(askers: readonly Client[]): Promise<boolean> {
  const answers = await Promise.all(askers.map((asker, proxy) => asker.put(`raw/probe/${proxy}`, Buffer.from(`${++probes}`)))) // prettier-ignore
  return answers.every(({ status }) => status < 300 && status > 0)
}

const isRefusedWrite = (text: string): boolean => /: (PUT|DELETE|copy|move) [^:]+: 503 /.test(text)
