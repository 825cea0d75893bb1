import t, { type Test } from 'tap'
import { startCluster, type Cluster, type NodeHandle } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { Load, tallyText, type Tally } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'

/** One fault: what happens to which nodes, and how it ends. */
interface Fault {
  readonly name: string
  /** In the names of figures. */
  readonly key: string
  readonly begin: (nodes: readonly NodeHandle[]) => Promise<unknown>
  readonly end: (nodes: readonly NodeHandle[]) => Promise<unknown>
}

const each = async (nodes: readonly NodeHandle[], act: (node: NodeHandle) => unknown): Promise<void> => {
  await Promise.all(nodes.map(act))
}
const startAgain = (nodes: readonly NodeHandle[]): Promise<void> => each(nodes, node => node.process.start())

const killed: Fault = {
  name: 'killed',
  key: 'killed',
  begin: nodes => each(nodes, node => node.process.kill()),
  end: startAgain,
}
const stopped: Fault = {
  name: 'stopped',
  key: 'stopped',
  begin: nodes => each(nodes, node => node.process.stop()),
  end: nodes => each(nodes, node => node.process.cont()),
}
const restarted: Fault = {
  name: 'restarted',
  key: 'restarted',
  begin: nodes => each(nodes, node => node.process.terminate()),
  end: startAgain,
}
const partitioned: Fault = {
  name: 'cut off by a network that swallows everything',
  key: 'partitioned',
  begin: nodes => each(nodes, node => (node.chaos!.mode = 'blackhole')),
  end: nodes => each(nodes, node => (node.chaos!.mode = 'pass')),
}

/**
 * I30: what one node that hangs may add to the slowest answer. The promises are 1.5 s for a read and 6 s for an upload on a
 * machine that has nothing else to do. Here all processes of the cluster, its load and other tests share a few cores: half as
 * much again is granted, beside the slowest answer of the time before the fault. A hang that nobody notices costs 10 s and more.
 */
const loaded = 1.5
const readDelayMsMax = 1_500 * loaded
const writeDelayMsMax = 6_000 * loaded

/** Faults one after another under load; in between every acknowledged write gets its R copies back. */
async function endure(t: Test, cluster: Cluster, plan: readonly { fault: Fault; nodes: readonly NodeHandle[] }[]) {
  const random = seededRandom(t)
  const history = new History()
  // The bound of every operation, reads and writes alike: what takes longer than the client's patience has failed.
  const clients = [cluster.client({ history, timeoutMs: 12_000 })]
  const load = new Load(t, { random, clients })
  await load.progress(60, 30)
  for (const { fault, nodes } of plan) {
    const name = `${nodes.map(node => node.id).join(' and ')} ${fault.name}`
    const calm = load.current
    load.phase(name)
    await fault.begin(nodes)
    // Enough operations begun after the fault that every path of the load meets it.
    await load.progress(150, 80, 60_000)
    if (nodes.length === 1) assertDelays(t, name, fault.key, calm, load.current)
    else {
      figure(t, `zone-${fault.key}.read`, load.current.readMsMax, 'ms')
      figure(t, `zone-${fault.key}.write`, load.current.writeMsMax, 'ms')
    }
    load.phase(`${name}, and back`)
    await fault.end(nodes)
    // One fault at a time: the next one waits until the proxy believes that all nodes are well.
    await cluster.allNodesUp()
    await load.progress(60, 30)
    t.comment(`${name}: ${tallyText(load.current)}`)
    t.strictSame(load.takeFailures(), [], `no operation fails while ${name}`)
  }
  await load.stop()
  t.comment(`${tallyText(load.total)}, ${history.size} operations in the history`)
  t.strictSame(load.wrong, [], 'I5: no wrong answer')
  t.strictSame(load.takeFailures(), [], 'no failed operation')
  await waitForFullCopies(cluster, history.writtenPaths)
  const reader = cluster.client({ history })
  for (const { path, status } of await reader.getAll(history.paths)) {
    if (status !== 200 && status !== 404) t.fail(`${path}: ${status} at the end`)
  }
  t.strictSame(history.problems(), [], 'I1, I7: every answer is explained by the acknowledged writes')
  t.strictSame(cluster.crashes(), [], 'no process ended by itself')
}

function assertDelays(t: Test, name: string, key: string, calm: Tally, during: Tally): void {
  const reads = during.readMsMax - calm.readMsMax
  const writes = during.writeMsMax - calm.writeMsMax
  t.comment(`${name}: ${tallyText(during)}; before: ${tallyText(calm)}`)
  figure(t, `node-${key}.read`, reads, 'ms')
  figure(t, `node-${key}.write`, writes, 'ms')
  t.ok(reads < readDelayMsMax, `${name}: reads are delayed by ${reads.toFixed(0)} ms at most`)
  t.ok(writes < writeDelayMsMax, `${name}: writes are delayed by ${writes.toFixed(0)} ms at most`)
}

t.test(
  'I1, I2, I7, I30: one node is killed, stopped, restarted, cut off: reads and writes go on, R copies come back',
  async t => {
    const cluster = await startCluster(t, { chaos: true })
    const [a, b, c] = cluster.nodes as [NodeHandle, NodeHandle, NodeHandle]
    await endure(t, cluster, [
      { fault: killed, nodes: [a] },
      { fault: stopped, nodes: [b] },
      { fault: restarted, nodes: [c] },
      { fault: partitioned, nodes: [a] },
    ])
  },
)

t.test(
  'I1, I2, I7, I30: a whole zone is killed, stopped, restarted: reads and writes go on, R copies come back',
  async t => {
    const cluster = await startCluster(t, { nodesPerZone: 2, shardsPerNode: 1 })
    await endure(t, cluster, [
      { fault: killed, nodes: cluster.inZone('a') },
      { fault: stopped, nodes: cluster.inZone('b') },
      { fault: restarted, nodes: cluster.inZone('c') },
    ])
  },
)

t.test('I1, I39: all nodes are restarted, each as soon as the one before is ready: no request fails', async t => {
  const cluster = await startCluster(t)
  const random = seededRandom(t)
  const history = new History()
  const load = new Load(t, { random, clients: [cluster.client({ history })] })
  await load.progress(60, 30)
  for (const node of cluster.nodes) {
    load.phase(`${node.id} restarted`)
    await node.process.terminate()
    await node.process.start()
  }
  await load.progress(100, 50)
  await load.stop()
  t.comment(tallyText(load.total))
  t.strictSame(load.takeFailures(), [], 'no failed operation')
  t.strictSame(load.wrong, [])
  t.strictSame(history.problems(), [])
})
