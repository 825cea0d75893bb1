/** The number of copies goes down and up under load: nobody notices, and in the end there are as many copies as are wanted. */
import t from 'tap'
import { topology } from '../../cli/topology.ts'
import { partitionCount } from '../../shared/partition.ts'
import { type SummaryAnswer, wirePath } from '../../shared/wire.ts'
import { startCluster, type Cluster, type ShardHandle } from '../support/cluster.ts'
import { askNode, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { History } from '../support/history.ts'
import { endWithoutFault, Load } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'
import { type Outcome, placementOf, run, settled, view } from '../support/topology.ts'

/** Partitions of which the shard has blobs. */
async function heldBy(cluster: Cluster, handle: ShardHandle): Promise<number[]> {
  const owner = cluster.nodeOf(handle.id)
  const { body } = await askNode(cluster, owner, `${wirePath.summaries(handle.id)}?from=0&count=4096`)
  const { partitions } = JSON.parse(body.toString()) as SummaryAnswer
  return partitions.filter(({ blobs }) => blobs.count > 0).map(({ partition }) => partition)
}

t.test(
  'I18, I20, I21: two copies instead of three and three again under load: nobody notices, and the copies are there, and no others',
  { timeout: 200_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, nodesPerZone: 1, shardsPerNode: 1 })
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
    const load = new Load(t, { random, clients, concurrency: 4, smallPaths: 120, largePaths: 8 })
    await load.progress(80, 60)
    const change = (replicas: number, ...more: string[]): Promise<Outcome> =>
      run(cluster, 0, topology, ...more, '--replicas', String(replicas))
    const refused = await change(4, 'apply')
    t.match(refused, { code: 1, json: { code: 'TOPOLOGY_INVALID', message: /4 copies need 4 nodes/ } })

    for (const [replicas, before] of [
      [2, 3],
      [3, 2],
    ] as const) {
      load.phase(`${replicas} copies`)
      const plan = await change(replicas, 'plan')
      const copies = replicas > before ? partitionCount : 0
      if (plan.code !== 0) t.comment(plan.text)
      t.match(plan, { code: 0, json: { partitions: partitionCount, copies, replicas: { before, after: replicas } } })
      const estimate = (plan.json as { estimate: { bytes: number; bytesFreed: number; seconds: number } }).estimate
      t.ok(replicas > before ? estimate.bytes > 0 : estimate.bytesFreed > 0 && estimate.bytes === 0)
      t.ok(estimate.seconds > 0)
      const applied = await change(replicas, 'apply', '--wait')
      t.equal(applied.code, 0, applied.text)
      const found = await settled(cluster, 1)
      t.match(found, { replicas, copies: replicas })
      await load.progress(30, 20)
    }

    await endWithoutFault(t, load, history)
    const live = await clients[0]!.presentOf(history.paths)
    await waitForFullCopies(cluster, live)
    t.comment(`${live.length} paths with full copies`)

    const last = await change(2, 'apply', '--wait')
    t.equal(last.code, 0, last.text)
    const owned = new Map((await view(cluster, 0)).shards.map(one => [one.shard, one.partitions]))
    t.equal([...owned.values()].reduce((sum, count) => sum + count, 0), partitionCount * 2) // prettier-ignore
    const now = await placementOf(cluster, (await settled(cluster, 0)).epoch)
    const handles = cluster.nodes.flatMap(({ shards }) => shards)
    await eventually('no copy is left where no owner is', async () => {
      const strays = await Promise.all(handles.map(async handle => (await heldBy(cluster, handle)).filter(partition => !now.owners(partition).includes(handle.id)))) // prettier-ignore
      return strays.flat().length === 0
    }, { withinMs: 60_000 }) // prettier-ignore
  },
)
