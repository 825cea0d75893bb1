import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { encodeRecord } from '../../shared/record.ts'
import { wirePath, type NodeStatus, type ReferenceListing } from '../../shared/wire.ts'
import { nodeConfig, quiet, shardA, startNode, testReference } from './fixtures.ts'
import { NodeClient } from './fixtures.ts'
import { runStorageNode } from '../../storage-node/main.ts'

t.test('I13: a shard tells the newest version it ever had, also after a restart and with a new index', async t => {
  const folder = t.testdir()
  const first = await startNode(t, {}, { folder })
  const newest = async (client: NodeClient) => {
    const status = (await client.call('GET', wirePath.status)).json as unknown as NodeStatus
    return status.shards.find(({ id }) => id === shardA)?.newest
  }
  t.equal(await newest(first.client), undefined)
  for (const [path, version] of [
    ['a', 7],
    ['b', 9],
    ['c', 3],
    ['b', 8],
  ] as const) {
    // prettier-ignore
    t.equal(await first.client.appendReference(shardA, testReference(path, version)), 'ok')
  }
  const { incarnation } = testReference('a', 1)
  t.strictSame(await newest(first.client), { incarnation, version: 9 })
  const later = { ...testReference('a', 12), incarnation: 'later' }
  t.equal((await first.client.append([shardA, encodeRecord(later)]))[0], 'ok')
  const list = async (query: string) =>
    (await first.client.call('GET', wirePath.allReferences(shardA) + query)).json as unknown as ReferenceListing
  const page = await list('?limit=2')
  const rest = await list(`?limit=2&after=${encodeURIComponent(page.next ?? '')}`)
  t.strictSame([...page.references, ...rest.references].map(({ path }) => path).sort(), ['a', 'b', 'c'])
  await first.close(0)
  for (const lost of [false, true]) {
    const config = nodeConfig(folder)
    if (lost) await rm(join(config.shards[0]!.folder, 'index'), { recursive: true })
    const again = await runStorageNode(config, quiet)
    const client = new NodeClient(again.url)
    t.strictSame(await newest(client), { incarnation: 'later', version: 12 })
    await client.close()
    await again.close(0)
  }
})
