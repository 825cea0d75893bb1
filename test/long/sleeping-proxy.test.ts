/** A proxy sleeps through a whole change of topology, and is asked the moment it wakes, with the map of before. */
import t from 'tap'
import { node } from '../../cli/topology.ts'
import { startCluster } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { endWithoutFault, Load } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'
import { placementOf, run, settled } from '../support/topology.ts'

t.test(
  'I20, I22: a node is drained while a proxy sleeps: nothing is lost, and what it is asked when it wakes does not fail',
  { timeout: 280_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, nodesPerZone: 2, shardsPerNode: 1 })
    const [sleeper] = cluster.proxies
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
    const load = new Load(t, { random, clients, concurrency: 6, smallPaths: 100, largePaths: 8 })
    await load.progress(80, 60)

    await load.use(clients.slice(1))
    sleeper!.process.stop()
    load.phase('a node is drained, one proxy asleep')
    const drained = await eventually('a primary that is awake', async () => {
    const outcome = await run(cluster, 1, node, 'drain', 'node-b1', '--rate', '1000000')
    return outcome.code === 0 && outcome
  }, { withinMs: 60_000, everyMs: 1_000 }) // prettier-ignore
    t.equal(drained.code, 0, drained.text)
    const { epoch } = await settled(cluster, 1)
    await load.progress(40, 20)
    t.strictSame(load.takeFailures(), [], 'nobody notices')

    load.phase('awake again')
    sleeper!.process.cont()
    const wokenAt = performance.now()
    await load.use(clients.slice(0, 1))
    await load.progress(60, 40, 60_000)
    figure(t, 'sleeping-proxy.read', load.current.readMsMax, 'ms')
    figure(t, 'sleeping-proxy.write', load.current.writeMsMax, 'ms')
    await placementOf(cluster, epoch)
    figure(t, 'sleeping-proxy.knows', performance.now() - wokenAt, 'ms')
    await load.use(clients)
    await endWithoutFault(t, load, history)
    for (const client of clients) await client.getAll(history.paths)
    t.strictSame(history.problems(), [], 'I1, I22: every answer is explained by the acknowledged writes')
    await waitForFullCopies(cluster, await clients[0]!.presentOf(history.paths))
    t.strictSame(cluster.crashes(), [])
  },
)
