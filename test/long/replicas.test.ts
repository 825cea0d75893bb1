/** The number of copies goes down and up under load, and back half-way: nobody notices, and in the end there are as many copies as are wanted. */
import t from 'tap'
import { fsck } from '../../cli/copies.ts'
import { gc } from '../../cli/gc.ts'
import { topology } from '../../cli/topology.ts'
import type { PlacementView } from '../../shared/cluster-map.ts'
import { partitionCount } from '../../shared/partition.ts'
import { type SummaryAnswer, wirePath } from '../../shared/wire.ts'
import { startCluster, type Cluster, type ShardHandle } from '../support/cluster.ts'
import { askNode, verifyCopies, waitForFullCopies } from '../support/copies.ts'
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
  { timeout: 400_000 },
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

t.test(
  'I18, I20, I21, I22: a change of the number of copies is aborted under load, before any partition is settled and half-way, and so is an abort: nobody notices',
  { timeout: 400_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, nodesPerZone: 1, shardsPerNode: 1 })
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
    const load = new Load(t, { random, clients, concurrency: 4, smallPaths: 150, largePaths: 12 })
    await load.progress(80, 80)
    const tell = async (...args: string[]): Promise<void> => {
      const { code, text } = await run(cluster, 0, topology, ...args)
      t.equal(code, 0, `${args.join(' ')}: ${text}`)
    }
    const pauseAt = async (wanted: number, isThere = (unsettled: number) => unsettled > 0): Promise<PlacementView> => {
      await eventually('time to pause', async () => {
        const { replicas, change, run } = await view(cluster, 0)
        return replicas === wanted && change !== null && run !== null && isThere(change.unsettled)
      }, { withinMs: 60_000, everyMs: 50 }) // prettier-ignore
      await tell('pause')
      const paused = await eventually('it is paused', async () => {
        const found = await view(cluster, 0)
        return found.run === null && found
      }, { withinMs: 30_000 }) // prettier-ignore
      return placementOf(cluster, paused.epoch)
    }
    const isHalf = (unsettled: number): boolean => unsettled < partitionCount

    load.phase('aborted at once')
    const first = await cluster.placement()
    await tell('apply', '--replicas', '2')
    t.equal((await pauseAt(2)).unsettled().length, partitionCount, 'no partition is settled')
    await tell('abort', '--wait')
    t.match(await settled(cluster, 1), { replicas: 3, copies: 3 })
    await load.progress(20, 20)
    await tell('apply', '--replicas', '2', '--wait')
    const two = await placementOf(cluster, (await settled(cluster, 0)).epoch)

    load.phase('aborted half-way')
    await tell('apply', '--replicas', '3', '--rate', '50000')
    const half = await pauseAt(3, isHalf)
    const left = new Set(half.unsettled())
    t.ok(left.size > 0 && left.size < partitionCount, `${left.size} partitions are not settled`)
    await load.progress(20, 20)
    await tell('abort', '--wait')
    const back = await settled(cluster, 1)
    t.match(back, { replicas: 2, copies: 2 })
    const now = await placementOf(cluster, back.epoch)
    const wrong = Array.from({ length: partitionCount }, (_, partition) => partition).filter(partition => {
      const owners = now.owners(partition)
      if (left.has(partition)) return owners.join() !== two.owners(partition).join()
      return !owners.every(shard => half.owners(partition).includes(shard))
    })
    t.same(wrong, [], 'what was not settled is with its old owners, and what was with two of its three')
    await load.progress(20, 20)
    for (const path of (await clients[0]!.presentOf(history.paths)).slice(0, 40)) {
      await eventually(`${path} is on both owners`, async () => {
        const { references, referenceOwners, blobs, blobOwners } = await verifyCopies(cluster, path, now)
        const isThere = (owners: readonly string[], holders: readonly string[]): boolean => owners.every(owner => holders.includes(owner)) // prettier-ignore
        return isThere(referenceOwners, references) && isThere(blobOwners, blobs)
      }, { withinMs: 30_000 }) // prettier-ignore
    }

    load.phase('the abort aborted')
    await tell('apply', '--replicas', '3', '--rate', '50000')
    await pauseAt(3, isHalf)
    await tell('abort')
    await pauseAt(2)
    await load.progress(20, 20)
    await tell('abort', '--wait')
    t.match(await settled(cluster, 1), { replicas: 3, copies: 3 })

    load.phase('afterwards')
    await load.progress(30, 30)
    await endWithoutFault(t, load, history)
    const live = await clients[0]!.presentOf(history.paths)
    await waitForFullCopies(cluster, live)
    t.comment(`${live.length} paths with full copies`)
    const last = await placementOf(cluster, (await view(cluster, 0)).epoch)
    t.equal(last.map.table.length, first.map.table.length)
    await eventually('I36: fsck finds nothing', async () => {
      await run(cluster, 0, gc, 'run', '--force')
      const { code, text } = await run(cluster, 0, fsck)
      if (code !== 0) throw new Error(text)
      return true
    }, { withinMs: 90_000, everyMs: 1_000 }) // prettier-ignore
  },
)
