/** A cluster whose processes were not told its id, as docker-compose.yml and docs/operations.md start one. */
import t from 'tap'
import { node } from '../../cli/topology.ts'
import { startCluster } from '../support/cluster.ts'
import { eventually } from '../support/eventually.ts'
import { seededRandom } from '../support/random.ts'
import { run, view } from '../support/topology.ts'

t.test(
  'nodes that know of no cluster join the one whose map names them, and so does one that is added',
  { timeout: 150_000 },
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { unnamed: true, proxies: 2, redis: true, shardsPerNode: 1 })
    const client = cluster.client()
    // The primary brings the map, and a young Redis gives no role away for 10 s.
    const written = async (): Promise<boolean> => (await client.put('raw/first', random.bytes(100_000))).status === 201
    await eventually('a write', written, { withinMs: 40_000 })
    await cluster.allNodesUp()

    const { id, url } = await cluster.addNode('node-d', 'd')
    const added = await run(cluster, 0, node, 'add', url, '--wait')
    t.equal(added.code, 0, added.text)
    const { shards } = await view(cluster, 1)
    t.ok(shards.some(shard => shard.node === id && shard.partitions > 500))
    t.equal((await client.get('raw/first')).status, 200)
    t.strictSame(cluster.crashes(), [])
  },
)
