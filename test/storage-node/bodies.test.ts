import { once } from 'node:events'
import { unlink } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import t from 'tap'
import { wireAuthorization, wirePath } from '../../shared/wire.ts'
import { BodyBudget } from '../../storage-node/body-budget.ts'
import { StorageNode } from '../../storage-node/node.ts'
import { WireServer } from '../../storage-node/server.ts'
import { nodeFs } from '../../storage-node/store-fs.ts'
import { eventually } from '../support/eventually.ts'
import { blobFrame, NodeClient, nodeConfig, quiet, secret, shardA, startNode, testBlob, uploadId } from './fixtures.ts'

t.test('a claim gives back all it took, once', async t => {
  const budget = new BodyBudget(100)
  const [one, two] = [budget.claim(), budget.claim()]
  one.take(60)
  two.take(40)
  t.throws(() => two.take(1), { code: 'OVERLOADED' })
  t.equal(budget.bytes, 100)
  one.release()
  one.release()
  t.equal(budget.bytes, 40)
  t.throws(() => one.take(1), { code: 'OVERLOADED' }, 'it is over')
  two.take(60)
  two.release()
  t.equal(budget.bytes, 0)
})

t.test('bodies that come in together share a bound of memory, and give it back however they end', async t => {
  const clock = { now: () => Date.now(), monotonic: () => performance.now() }
  const limits = { bodyBytesMax: 100_000, appendBytesMax: 60_000, stallMs: 20_000 }
  const node = new StorageNode(nodeConfig(t.testdir(), limits), { fs: nodeFs, log: quiet, clock, version: '0' })
  await node.start()
  const server = new WireServer(node, quiet)
  const client = new NodeClient(await server.listen())
  t.teardown(async () => {
    await client.close()
    await server.close(0)
    await node.close()
  })
  const headers = { authorization: wireAuthorization(secret) }
  /** Sends a part of a body, and then nothing. */
  const begin = (bytes: number) => {
    const begun = request(client.url + wirePath.append, { method: 'POST', headers, agent: false })
    begun.on('error', () => undefined) // it is cut off below
    begun.write(Buffer.alloc(bytes))
    return begun
  }
  const held = (bytes: number) => eventually(`${bytes} bytes are held`, () => node.bodies.bytes === bytes)
  const stalled = [begin(50_000), begin(45_000)]
  await held(95_000)
  const refused = await client.call('POST', wirePath.append, Buffer.alloc(10_000))
  t.equal(refused.status, 503)
  t.match(refused.json, { code: 'OVERLOADED' })
  t.equal(await client.appendBlob(shardA, testBlob(1_000)), 'ok', 'what there is room for goes on')
  await held(95_000)
  stalled[0]?.destroy()
  await held(45_000)
  const tooLarge = await client.call('POST', wirePath.append, Buffer.alloc(60_001))
  t.match(tooLarge.json, { code: 'TOO_LARGE' })
  await held(45_000)
  const ended = once(stalled[1]!, 'response')
  stalled[1]!.end()
  await ended
  await held(0)
  t.match((await client.post(wirePath.drop, { shard: 7 })).json, { code: 'BAD_REQUEST' })
  t.match((await client.append([shardA, blobFrame(testBlob(20_000))]))[0], 'ok')
  await held(0)
})

t.test('an upload that is gone from the disk is not found, and no bug', async t => {
  const { client, folder } = await startNode(t)
  const id = uploadId()
  await client.upload(shardA, id, Buffer.alloc(1_000))
  await unlink(join(folder, shardA, 'tmp', id))
  const answer = await client.call('GET', wirePath.upload(shardA, id))
  t.equal(answer.status, 404)
  t.match(answer.json, { code: 'UPLOAD_NOT_FOUND' })
})
