/** Uneven files on an even table: swaps by bytes, under load, with nobody noticing and the disks more even afterwards. */
import t from 'tap'
import { topology } from '../../cli/topology.ts'
import type { PlanView, TopologyView } from '../../proxy/topology/topology-control.ts'
import { partitionOf } from '../../shared/partition.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { History } from '../support/history.ts'
import { seededRandom } from '../support/random.ts'
import { run, settled, view } from '../support/topology.ts'

const fullShard = 'node-a1-1'

async function spreadOfZoneA(cluster: Cluster): Promise<number> {
  const shown = await run(cluster, 1, topology, 'show', '--by-bytes')
  const { spread } = shown.json as TopologyView
  return spread?.zones.find(({ zone }) => zone === 'a')?.max ?? 0
}

t.test(
  'I18, I19, I20: swaps by bytes under load: every read is answered, the fullest disk is emptier, counts stay',
  { timeout: 280_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, nodesPerZone: 2, shardsPerNode: 1 })
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
    const placement = await cluster.placement()
    // Four of five of them on one shard of the zone: 1.6 of its share, where its count of partitions is exact.
    const paths: string[] = []
    for (let number = 0, full = 0, other = 0; paths.length < 60; number += 1) {
      const isFull = placement.owners(partitionOf('raw', `uneven/${number}`)).some(id => id === fullShard)
      if (isFull ? full >= 48 : other >= 12) continue
      if (isFull) full += 1
      else other += 1
      paths.push(`raw/uneven/${number}`)
    }
    for (const path of paths) t.equal((await clients[0]!.put(path, random.bytes(random.int(150_000, 450_000)))).status, 201) // prettier-ignore
    await waitForFullCopies(cluster, paths)

    const before = await spreadOfZoneA(cluster)
    t.ok(before > 1.3, `the fullest has ${before.toFixed(3)} of its share`)
    const counts = (await view(cluster, 0)).shards.map(({ shard, partitions }) => [shard, partitions])
    const even = await run(cluster, 0, topology, 'plan')
    t.match(even.json, { partitions: 0, copies: 0 }, 'by counts nothing is to be done')
    const planned = await run(cluster, 0, topology, 'plan', '--by-bytes')
    const plan = planned.json as PlanView
    t.match(planned, { code: 0, json: { copies: Number, problems: [] } })
    const zone = plan.byBytes?.spread.find(one => one.zone === 'a')
    t.comment(`${plan.byBytes?.swaps} swaps, ${plan.estimate.bytes} bytes, ${zone?.before.toFixed(3)} -> ${zone?.after.toFixed(3)}`) // prettier-ignore
    t.ok(zone !== undefined && zone.after < zone.before - 0.02)
    t.equal(plan.estimate.bytes, plan.byBytes?.bytes, 'bytes are counted, not guessed')
    t.ok(plan.estimate.bytes > 0 && plan.estimate.bytes <= 0.05 * plan.byBytes!.spread.reduce((sum, one) => sum + one.bytes, 0)) // prettier-ignore

    // Small ones, so that what they bring is no weight.
    let busy = true
    let [reads, writes] = [0, 0]
    const workers = clients.map(async (client, worker) => {
      while (busy) {
        const path = random.pick(paths)
        const { status } = await client.get(path)
        if (status !== 200) t.fail(`GET ${path}: ${status}`)
        const small = `raw/small/${worker}-${(writes += 1)}`
        const put = await client.put(small, random.bytes(200))
        if (put.status !== 201) t.fail(`PUT ${small}: ${put.status}`)
        reads += 1
      }
    })
    const applied = await run(cluster, 0, topology, 'apply', '--by-bytes', '--wait')
    t.equal(applied.code, 0, applied.text)
    await settled(cluster, 1)
    busy = false
    await Promise.all(workers)
    t.comment(`${reads} reads, ${writes} writes meanwhile`)
    t.ok(reads > 20)
    t.same(history.problems(), [])
    await waitForFullCopies(cluster, paths)

    const after = await spreadOfZoneA(cluster)
    t.ok(after < before - 0.02, `${before.toFixed(3)} -> ${after.toFixed(3)}`)
    t.same((await view(cluster, 1)).shards.map(({ shard, partitions }) => [shard, partitions]), counts) // prettier-ignore
    const again = await run(cluster, 0, topology, 'plan')
    t.match(again.json, { partitions: 0, copies: 0 }, 'nobody wants the swaps undone')
    const misused = await run(cluster, 0, topology, 'pause', '--by-bytes')
    t.match(misused, { code: 2, json: { code: 'CONFIG_INVALID' } }, 'it says something only of plans')
  },
)
