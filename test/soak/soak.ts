/**
 * A cluster under load for as long as one likes, while everything goes wrong that can be made to, one seeded fault after another, and garbage
 * is collected without any hold all the time. At the end the history must be explained, every artifact have all its copies, and nothing
 * be there that nothing names.
 */
import type { Test } from 'tap'
import { fsck, verify } from '../../cli/copies.ts'
import { gc } from '../../cli/gc.ts'
import { repo } from '../../cli/repo.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { History } from '../support/history.ts'
import { Load, tallyText } from '../support/load.ts'
import type { Random } from '../support/random.ts'
import { randomFault, type Damaged } from './faults.ts'

type Command = (source: { args: readonly string[]; env: Record<string, string> }, write: Writer) => Promise<number>
interface Writer {
  readonly out: (text: string) => void
  readonly err: (text: string) => void
}

const roundsInFolder = 6

/** Rejects or fails the test with the fault during which something went wrong. */
export async function soak(t: Test, random: Random, minutes: number): Promise<void> {
  const proxyFlags = ['--gc-min-age-ms', '500', '--gc-hold-ms', '1000', '--abandoned-ms', '3000']
  const cluster = await startCluster(t, { proxies: 3, chaos: true, redis: true, proxyFlags })
  const history = new History()
  const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
  await run(cluster, repo, 'set', 'raw', '--trash-days', '0') // what is deleted shall be garbage
  const load = new Load(t, { random, clients, concurrency: 8 })
  await load.progress(40, 20)

  const end = performance.now() + minutes * 60_000
  const collecting = collect(cluster, end)
  const damaged: Damaged = new Set()
  const counts = new Map<string, number>()
  for (let round = 1; performance.now() < end; round++) {
    if (round % roundsInFolder === 0) load.folder = `load-${round}`
    const fault = randomFault(cluster, random, cluster.proxies[2]!, damaged)
    counts.set(fault.name, (counts.get(fault.name) ?? 0) + 1)
    load.phase(`${round}, ${fault.name}`)
    await fault.begin()
    await load.progress(random.int(5, 80), fault.mayRefuse === 'writes' ? 0 : random.int(0, 40), 60_000)
    await fault.end()
    // A node that fails again and again is ejected for longer each time.
    await cluster.allNodesUp(90_000)
    // Until writes go on: this fault's refusals must not be taken for the next one's.
    await eventually('writes go on', () => load.current.writes > 0 && writable(cluster), { withinMs: 30_000 })
    const failures = load.failures.splice(0).filter(text => fault.mayRefuse === 'nothing' || !isRefusedWrite(text))
    t.strictSame(failures.slice(0, 8), [], `${round}, ${fault.name}: ${tallyText(load.current)}`)
    load.phase(`after ${round}, ${fault.name}`)
    await load.progress(10, 5, 60_000)
  }
  await load.stop()
  const purged = await collecting
  t.comment([...counts].map(([name, count]) => `${name} x ${count}`).join(', '))
  t.comment(`${tallyText(load.total)}, ${history.size} operations, ${purged} blobs collected`)
  await judge(t, cluster, history, load)
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
  await waitForFullCopies(cluster, living, 120_000)
  let report = ''
  await eventually(
    'fsck finds nothing',
    async () => {
      await run(cluster, gc, 'run', '--force')
      const { code, text } = await run(cluster, fsck)
      report = text
      return code === 0
    },
    { withinMs: 90_000, everyMs: 1_000 },
  ).catch(() => t.fail(`I36: ${report}`))
  t.strictSame(cluster.crashes(), [], 'no process ended by itself')
}

/** Garbage collection again and again, also while its primary is killed; resolves with how many blobs went. */
async function collect(cluster: Cluster, end: number): Promise<number> {
  let purged = 0
  while (performance.now() < end) {
    const { text } = await run(cluster, gc, 'run', '--force', '--timeout-ms', '20000')
    purged += Number(/purged: (\d+) blobs/.exec(text)?.[1] ?? 0)
    await new Promise(resolve => setTimeout(resolve, 500))
  }
  return purged
}

async function run(cluster: Cluster, command: Command, ...args: string[]): Promise<{ code: number; text: string }> {
  const env = { HOLDFAST_URL: cluster.proxies[0]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  let text = ''
  const write = { out: (part: string) => void (text += part), err: (part: string) => void (text += part) }
  return { code: await command({ args, env }, write), text }
}

let probes = 0
async function writable(cluster: Cluster): Promise<boolean> {
  const answers = await Promise.all(
    [0, 1].map(proxy => cluster.client({ proxy }).put(`raw/probe/${proxy}`, Buffer.from(`${++probes}`))),
  )
  return answers.every(({ status }) => status < 300)
}

const isRefusedWrite = (text: string): boolean => /: (PUT|DELETE) \S+: 503 /.test(text)
