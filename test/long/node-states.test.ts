/** Nodes that stay away are taken out under load, and in again when they are back; a zone that is away stays in. */
import t from 'tap'
import type { ClusterStatus } from '../../proxy/api/schemas.ts'
import type { TopologyView } from '../../proxy/topology/topology-control.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { History } from '../support/history.ts'
import { Load, tallyText } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'

async function ask<Answer>(cluster: Cluster, path: string): Promise<Answer> {
  const { body, status } = await cluster.client().request('GET', `/api/v1${path}`)
  if (status !== 200) throw new Error(`${path}: ${status} ${body.toString()}`)
  return JSON.parse(body.toString()) as Answer
}

/** Resolves with the epoch once the node's shards are all out, or all in, and nothing is on its way any more. */
async function settled(cluster: Cluster, id: string, isOut: boolean): Promise<number> {
  return eventually(
    `${id} is ${isOut ? 'out' : 'in'}, and all is settled`,
    async () => {
      const { shards, change, run, epoch } = await ask<TopologyView>(cluster, '/topology')
      const own = shards.filter(one => one.node === id)
      const isThere = own.every(({ weight, state }) =>
        isOut ? weight === 0 && state === 'out' : weight > 0 && state === 'up',
      )
      return isThere && change === null && run === null && epoch
    },
    { withinMs: 120_000, everyMs: 250 },
  )
}

async function mapOnDisk(cluster: Cluster, epoch: number): Promise<void> {
  await eventually(
    `the map of epoch ${epoch}`,
    async () => (await cluster.placement()).map.epoch >= epoch, // the support code reads it there
    { withinMs: 30_000 },
  )
}

t.test(
  'I20, I27: a node killed for good is out and its copies elsewhere, back it is in; a killed zone stays in',
  { timeout: 420_000 },
  async t => {
    const random = seededRandom(t)
    const proxyFlags = ['--out-after-ms', '5s', '--anti-entropy-ms', '5s']
    const cluster = await startCluster(t, { proxies: 2, nodesPerZone: 2, shardsPerNode: 1, proxyFlags })
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
    const load = new Load(t, { random, clients, concurrency: 4, smallPaths: 120, largePaths: 8 })
    await load.progress(80, 80)

    load.phase('a node is killed')
    const gone = cluster.node('node-b1')
    await gone.process.kill()
    const without = await settled(cluster, gone.id, true)
    await load.progress(40, 20)
    const status = await ask<ClusterStatus>(cluster, '/status')
    const shown = status.nodes.find(({ id }) => id === gone.id)
    t.match(shown, { state: 'out', since: Number, shards: [{ weight: 0, out: { weight: 100, auto: true } }] })
    await load.stop()
    t.same(load.takeFailures(), [])
    await mapOnDisk(cluster, without)
    const full = await clients[0]!.presentOf(history.paths)
    await waitForFullCopies(cluster, full)
    t.comment(`${full.length} paths with full copies without ${gone.id}`)

    const again = new Load(t, { random, clients, concurrency: 4, smallPaths: 120, largePaths: 8 })
    again.phase('it is back')
    await gone.process.start()
    const whole = await settled(cluster, gone.id, false)
    await again.progress(40, 20)

    again.phase('a zone is killed')
    for (const one of cluster.inZone('c')) await one.process.kill()
    const refused = await eventually('status says why it stays in', async () => {
      const { refusedOuts = [], nodes } = await ask<ClusterStatus>(cluster, '/status')
      t.notOk(nodes.some(({ state }) => state === 'out'))
      return refusedOuts.length === 2 && refusedOuts
    }, { withinMs: 60_000, everyMs: 250 }) // prettier-ignore
    t.match(refused, [/node-c1 is not taken out: .*zone c/, /node-c2 is not taken out: .*zone c/])
    await again.progress(20, 10)
    t.equal((await ask<TopologyView>(cluster, '/topology')).epoch, whole, 'nothing was changed')
    for (const one of cluster.inZone('c')) await one.process.start()
    await cluster.allNodesUp()

    again.phase('afterwards')
    await again.progress(40, 20)
    await again.stop()
    t.same(again.takeFailures(), [])
    t.same([...load.wrong, ...again.wrong], [])
    t.same(history.problems(), [])
    t.comment(tallyText(again.total))
    await mapOnDisk(cluster, whole)
    await waitForFullCopies(cluster, await clients[0]!.presentOf(history.paths))
  },
)
