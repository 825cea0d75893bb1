import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { blobName } from '../../storage-node/blob-name.ts'
import { defaultLimits } from '../../storage-node/config.ts'
import { newRecord } from '../../storage-node/log.ts'
import { Shard } from '../../storage-node/shard.ts'
import { nodeFs } from '../../storage-node/store-fs.ts'
import { FaultyFs } from './faulty-fs.ts'
import { blockCrcs, quiet, shardA, testBlob, testReference, uploadId } from './fixtures.ts'
import { StagedFile } from '../../storage-node/staged-file.ts'

const marker = { format: 1, clusterId: 'test', node: 'a', shard: shardA } as const
const clock = { now: () => Date.now(), monotonic: () => performance.now() }

async function openShard(folder: string, fs = new FaultyFs()): Promise<Shard> {
  const shard = new Shard(
    { fs, log: quiet, clock, limits: { ...defaultLimits, reserveBytes: 0 } },
    { id: shardA, folder, weight: 1 },
  )
  await shard.start(marker, true)
  return shard
}

t.test('whoever finds a copy corrupt a second time waits until the first has moved it', async t => {
  const shard = await openShard(t.testdir())
  const blob = testBlob(70_000)
  const id = uploadId()
  const staged = await StagedFile.create(nodeFs, shard.files.temporary(id))
  staged.write(blob.body)
  await staged.finish()
  await shard.commitFile(id, { ...blob, blockCrcs: blockCrcs(blob.body) })
  void shard.quarantine(blobName(blob), 'told so')
  await shard.quarantine(blobName(blob), 'told again')
  t.equal((await shard.files.listQuarantine()).length, 1)
  await shard.close()
})

t.test('a shard is marked before it is written in a newer way, and one of a newer release is refused', async t => {
  const folder = t.testdir()
  const shard = await openShard(folder)
  const path = join(folder, 'holdfast.json')
  t.match(JSON.parse(await readFile(path, 'utf8')), { format: 1 })
  await shard.raiseFormat(2)
  const raised = await readFile(path, 'utf8')
  t.match(JSON.parse(raised), { format: 2, disk: String })
  await shard.close()
  const again = await openShard(folder)
  t.equal(again.health.state, 'ok')
  await again.close()
  await writeFile(path, raised.replace('"format": 2', '"format": 3'))
  const refused = await openShard(folder)
  t.equal(refused.health.state, 'failed')
  t.match(refused.health.reason, /format 3.*reads up to 2.*newer release/)
})

t.test('an entry that has changed meanwhile is not taken out of the index', async t => {
  const shard = await openShard(t.testdir())
  await shard.append(newRecord(testReference('p', 1)))
  const [[key, value] = ['', Buffer.alloc(0)]] = await shard.lookUp(index => index.list({ prefix: 'r/', limit: 1 }))
  await shard.append(newRecord(testReference('p', 2)))
  t.equal(await shard.forget(key, value), false)
  const now = await shard.lookUp(index => index.get(key))
  t.ok(now)
  t.equal(await shard.forget(key, now!), true)
  await shard.close()
})
