/** Changes of topology under load, with processes killed in the middle: nobody notices, nothing is lost, and old disks end up empty. */
import t from 'tap'
import { dispersion, fsck } from '../../cli/copies.ts'
import { node, shard, topology } from '../../cli/topology.ts'
import { partitionCount } from '../../shared/partition.ts'
import { type SummaryAnswer, wirePath } from '../../shared/wire.ts'
import { startCluster, type Cluster, type ShardHandle } from '../support/cluster.ts'
import { askNode, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure, percentile } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { endWithoutFault, Load } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'
import { placementOf, run, settled, view } from '../support/topology.ts'

async function blobsOn(cluster: Cluster, handle: ShardHandle): Promise<number> {
  const owner = cluster.nodeOf(handle.id)
  const { body } = await askNode(cluster, owner, `${wirePath.summaries(handle.id)}?from=0&count=4096`)
  const { partitions } = JSON.parse(body.toString()) as SummaryAnswer
  return partitions.reduce((sum, { blobs }) => sum + blobs.count, 0)
}

t.test(
  'I20, I21, I22: a shard is added, a node drained and removed under load; the primary and a target are killed meanwhile',
  { timeout: 600_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, nodesPerZone: 2, shardsPerNode: 1 })
    const primaryIndex = async (): Promise<number | undefined> => {
      for (const index of [0, 1]) {
        const client = cluster.client({ proxy: index, timeoutMs: 1_000 })
        if ((await client.metric('holdfast_primary').catch(() => 0)) === 1) return index
      }
      return undefined
    }
    const first = await eventually('a primary', primaryIndex, { withinMs: 40_000 })
    const other = 1 - first
    const history = new History()
    // The one that is killed serves nobody: its clients would have to repeat what it had in hand.
    const client = cluster.client({ proxy: other, history, timeoutMs: 30_000 })
    const load = new Load(t, { random, clients: [client], concurrency: 6, smallPaths: 150, largePaths: 12 })
    // The slowest of a cold start are nobody's measure.
    await load.progress(300, 150)
    load.phase('before')
    await load.progress(1_500, 1_000, 120_000)
    const tell = (change: string): void => {
      const { readTimes, writeTimes } = load.current
      figure(t, `topology.read-p99-${change}`, percentile(readTimes, 99), 'ms')
      figure(t, `topology.write-p99-${change}`, percentile(writeTimes, 99), 'ms')
    }
    tell('before')

    // The restart that it takes is told apart from the adding: what it costs clients is another promise.
    load.phase('a node with another shard')
    const added = await cluster.giveShard('node-a1')
    await eventually('the new shard is seen', async () =>
      (await view(cluster, other)).unassigned.some(one => one.shard === added.id),
    )
    tell('restarting')
    load.phase('a shard added')
    const plan = await run(cluster, other, shard, 'add', added.id, '--plan')
    t.match(plan, { code: 0, json: { partitions: Number, copies: Number, problems: [] } })
    t.ok((plan.json as { copies: number }).copies > 0)
    const apply = await run(cluster, other, shard, 'add', added.id, '--rate', '1000000')
    t.equal(apply.code, 0, apply.text)
    // Most of it with copies under way: what begins a change is the least of what clients meet of it.
    await load.progress(2_500, 1_700, 180_000)
    await eventually('copies move', async () => {
      const { change, run } = await view(cluster, other)
      return change !== null && change.unsettled > 0 && (run?.progress?.done ?? 0) > 0
    }, { withinMs: 60_000 }) // prettier-ignore
    const second = await run(cluster, other, shard, 'reweight', added.id, '--weight', '2')
    t.match(second, { code: 1, json: { code: 'CONFLICT' } }, 'one change at a time')

    tell('adding')
    load.phase('the primary and a target killed')
    await cluster.proxies[first]!.process.kill()
    await cluster.node('node-a1').process.kill()
    await load.progress(60, 30)
    await cluster.node('node-a1').process.start()
    const grown = await settled(cluster, other)
    const share = grown.shards.find(one => one.shard === added.id)?.partitions ?? 0
    t.ok(share > 500, `the new shard owns ${share} partitions`)

    load.phase('a node drained')
    const refused = await run(cluster, other, node, 'remove', 'node-b1')
    t.match(refused, { code: 1, json: { code: 'CONFLICT', message: /still owns \d+ partitions/ } })
    const drained = await run(cluster, other, node, 'drain', 'node-b1', '--wait')
    t.equal(drained.code, 0, drained.text)
    const old = cluster.node('node-b1').shards[0]!
    await eventually('nothing is left on it', async () => (await blobsOn(cluster, old)) === 0, { withinMs: 60_000 })
    const removed = await run(cluster, other, node, 'remove', 'node-b1', '--wait')
    t.equal(removed.code, 0, removed.text)
    await eventually('it is gone from the map', async () =>
      (await view(cluster, other)).shards.every(one => one.node !== 'node-b1'),
    )

    tell('draining')
    load.phase('afterwards')
    await load.progress(40, 20)
    await endWithoutFault(t, load, history)
    await cluster.proxies[first]!.process.start()
    const live = await client.presentOf(history.paths)
    await eventually('the proxy that was away has the newest map', async () => {
      return (await cluster.placement()).map.epoch === (await view(cluster, other)).epoch
    })
    await waitForFullCopies(cluster, live)
    t.comment(`${live.length} paths with full copies`)
  },
)

t.test(
  'I20, I21: a change is aborted under load: nobody notices, and the old owners have what had not moved',
  { timeout: 400_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 1, nodesPerZone: 2, shardsPerNode: 1 })
    const history = new History()
    const client = cluster.client({ history, timeoutMs: 30_000 })
    const load = new Load(t, { random, clients: [client], concurrency: 4, smallPaths: 150, largePaths: 12 })
    await load.progress(100, 100)
    const old = await cluster.placement()

    load.phase('copies move')
    const drained = old.map.shards[0]!.id
    const none = await run(cluster, 0, topology, 'abort')
    t.match(none, { code: 1, json: { code: 'CONFLICT' } }, 'there is nothing to be aborted')
    const apply = await run(cluster, 0, shard, 'drain', drained, '--rate', '50000')
    t.equal(apply.code, 0, apply.text)
    await eventually('something has been copied', async () => {
      const { change, run } = await view(cluster, 0)
      return change !== null && change.unsettled > 0 && /^[1-9]\d* blobs/.test(run?.progress?.note ?? '')
    }, { withinMs: 60_000, everyMs: 100 }) // prettier-ignore
    const running = await run(cluster, 0, topology, 'abort')
    t.match(running, { code: 1, json: { code: 'CONFLICT' } }, 'it is paused first')

    load.phase('aborted')
    t.equal((await run(cluster, 0, topology, 'pause')).code, 0)
    const paused = await eventually('it is paused', async () => {
      const found = await view(cluster, 0)
      return found.run === null && found
    }, { withinMs: 30_000 }) // prettier-ignore
    const unsettled = new Set((await placementOf(cluster, paused.epoch)).unsettled())
    t.ok(unsettled.size > 0 && unsettled.size === paused.change?.unsettled, `${unsettled.size} partitions go back`)
    const abort = await run(cluster, 0, topology, 'abort', '--wait')
    t.equal(abort.code, 0, abort.text)
    const now = await placementOf(cluster, (await settled(cluster, 0)).epoch)
    t.equal(now.map.previous, undefined)
    const wrong = Array.from({ length: partitionCount }, (_, partition) => partition).filter(partition => {
      const owners = now.owners(partition)
      const isBack = owners.join() === old.owners(partition).join()
      return unsettled.has(partition) ? !isBack : owners.includes(drained)
    })
    t.same(wrong, [], 'what was not settled is back with its old owners, the rest stays with the new ones')

    load.phase('afterwards')
    await load.progress(40, 20)
    await endWithoutFault(t, load, history)
    const live = await client.presentOf(history.paths)
    await waitForFullCopies(cluster, live)
    t.comment(`${live.length} paths with full copies where the table wants them`)
  },
)

t.test(
  'I20, I21: a node is replaced by another one under load, alive and after it has died',
  { timeout: 400_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 1, shardsPerNode: 1 })
    const history = new History()
    const client = cluster.client({ history, timeoutMs: 30_000 })
    const load = new Load(t, { random, clients: [client], concurrency: 4, smallPaths: 150, largePaths: 12 })
    await load.progress(100, 100)
    for (const [name, isDead] of [
      ['node-b', false],
      ['node-c', true],
    ] as const) {
      load.phase(`${name} replaced`)
      const old = cluster.node(name)
      const before = (await view(cluster, 0)).shards.find(one => one.node === name)!
      if (isDead) await old.process.kill()
      const fresh = await cluster.addNode(`${name}2`, old.zone)
      const plan = await run(cluster, 0, node, 'replace', name, fresh.url, '--plan')
      t.match(
        plan,
        { code: 0, json: { copies: partitionCount, copiesMin: partitionCount } },
        'only its own copies move',
      )
      // A dead one cannot say that nothing is left on it.
      const force = isDead ? ['--force'] : []
      const replaced = await run(cluster, 0, node, 'replace', name, fresh.url, '--wait', ...force)
      t.equal(replaced.code, 0, replaced.text)
      await load.progress(20, 20)
      const { shards } = await settled(cluster, 0)
      t.notOk(shards.some(one => one.node === name), 'the old one is gone') // prettier-ignore
      t.equal(shards.find(one => one.node === fresh.id)?.partitions, before.partitions, 'the new one has its place')
      if (!isDead) await old.process.kill()
      cluster.nodes = cluster.nodes.filter(({ id }) => id !== name)
    }
    await load.progress(40, 20)
    await endWithoutFault(t, load, history)
    await waitForFullCopies(cluster, await client.presentOf(history.paths))
    const unnamed = await run(cluster, 0, node, 'replace', 'node-a')
    t.match(unnamed, { code: 2, text: /what does 'node replace node-a' mean/ }, 'it says what is missing')
  },
)

t.test(
  'fsck and dispersion raise no alarm in the middle of a change; paused, resumed too early, aborted, it says what it leaves',
  { timeout: 240_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { nodesPerZone: 2, shardsPerNode: 1 })
    const client = cluster.client()
    const paths = Array.from({ length: 60 }, (_, number) => `raw/calm/${number}`)
    for (const path of paths) t.equal((await client.put(path, random.bytes(60_000))).status, 201)
    const writtenAt = performance.now()
    await waitForFullCopies(cluster, paths)
    const fewer = await run(cluster, 0, topology, 'apply', '--replicas', '1')
    t.match(fewer, { code: 1, json: { code: 'TOPOLOGY_INVALID', message: /a single copy .*--force does it/ } })

    // So slow that it is never done while it is looked at.
    const one = 'node-a1-1'
    const drained = await run(cluster, 0, shard, 'drain', one, '--rate', '1000')
    t.equal(drained.code, 0, drained.text)
    const moving = await eventually('copies move', async () => {
      const found = await view(cluster, 0)
      // fsck leaves alone what is younger than 10 s.
      return performance.now() - writtenAt > 12_000 && (found.run?.progress?.done ?? 0) > 0 && found
    }, { withinMs: 60_000 }) // prettier-ignore
    t.ok((moving.change?.unsettled ?? 0) > 0)
    const checked = await run(cluster, 0, fsck)
    t.match(checked, { code: 0, json: { paths: Number, problems: [], unsettled: Number } })
    t.ok((checked.json as { unsettled: number }).unsettled > 0, 'in the middle of it')
    const spread = await run(cluster, 0, dispersion, '--full')
    t.match(spread, { code: 0, json: { replicas: 3, unsettled: Number } }, spread.text)

    t.equal((await run(cluster, 0, topology, 'pause')).code, 0)
    const early = await run(cluster, 0, topology, 'resume')
    // Unless it has ended in the meantime, which is as good.
    if (early.code !== 0) t.match(early.json, { code: 'CONFLICT', message: /still pausing/ })
    await run(cluster, 0, topology, 'pause')
    await eventually('it is paused', async () => (await view(cluster, 0)).run === null, { withinMs: 60_000 })
    const left = [new RegExp(`^${one} has weight 0 and \\d+ partitions: .*'shard reweight ${one} --weight 100'`)]
    const aborted = await run(cluster, 0, topology, 'abort', '--wait')
    t.match(aborted, { code: 0, json: { state: 'succeeded', warnings: left } })
    const shown = await settled(cluster, 0)
    t.match(shown.warnings, left)
    const kept = await run(cluster, 0, shard, 'reweight', one, '--weight', '100', '--wait')
    t.equal(kept.code, 0, kept.text)
    const { warnings, shards } = await view(cluster, 0)
    t.same(warnings, [])
    t.ok((shards.find(({ shard: id }) => id === one)?.partitions ?? 0) > 0)
    await waitForFullCopies(cluster, paths)
  },
)
