/** An empty disk in the place of a lost one, read from before it is filled. */
import { rm } from 'node:fs/promises'
import t from 'tap'
import { startCluster } from '../support/cluster.ts'
import { recoveringShards, waitForFullCopies, waitUntilWhole } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { seededRandom } from '../support/random.ts'

t.test('I7, I16: a new disk knows of nothing, and says so until it is filled', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { shardsPerNode: 1 })
  const client = cluster.client({ timeoutMs: 30_000 })
  await waitUntilWhole(cluster)
  const [lost, silent, stale] = random.shuffled(cluster.nodes) as [Node, Node, Node]

  const kept = ['raw/kept/1', 'raw/kept/2']
  for (const path of [...kept, 'raw/deleted']) t.equal((await client.put(path, random.bytes(5_000))).status, 201)
  await waitForFullCopies(cluster, kept)
  await stale.process.kill()
  t.equal((await client.put('raw/written', random.bytes(5_000))).status, 201)
  t.equal((await client.delete('raw/deleted')).status, 204)

  await cluster.postgres.stop()
  await lost.process.kill()
  await rm(lost.shards[0]!.folder, { recursive: true })
  await lost.process.launch({ extra: ['--replaced-shard', lost.shards[0]!.id] })
  await silent.process.kill()
  await stale.process.start()
  t.same(await recoveringShards(cluster), [lost.shards[0]!.id])
  t.equal((await client.get('raw/written')).status, 503, 'the two that answer have never heard of it')
  t.equal((await client.get('raw/deleted')).status, 503, 'it may have been deleted, and it was')
  t.equal((await client.get('raw/')).status, 503, 'nor can they list')

  await silent.process.start()
  await eventually('a majority knows', async () => (await client.get('raw/written')).status === 200)
  t.equal((await client.get('raw/deleted')).status, 404)
  for (const path of kept) t.equal((await client.get(path)).status, 200)

  await cluster.postgres.start()
  await waitUntilWhole(cluster)
  await cluster.postgres.stop()
  await silent.process.kill()
  t.equal((await client.get('raw/written')).status, 200, 'filled, it counts')
  t.equal((await client.get('raw/deleted')).status, 404)
  t.equal((await client.get('raw/never')).status, 404)
  await silent.process.start()
  await cluster.postgres.start()
  t.strictSame(cluster.crashes(), [])
})

type Node = Awaited<ReturnType<typeof startCluster>>['nodes'][number]
