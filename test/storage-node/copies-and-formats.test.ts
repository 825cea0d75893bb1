import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { wirePath } from '../../shared/wire.ts'
import type { BlobLocation } from '../../storage-node/index.ts'
import { blobName } from '../../storage-node/blob-name.ts'
import { listReferences } from '../../storage-node/lists.ts'
import { newRecord } from '../../storage-node/log.ts'
import type { Shard } from '../../storage-node/shard.ts'
import { StagedFile } from '../../storage-node/staged-file.ts'
import { nodeFs } from '../../storage-node/store-fs.ts'
import { Uploads } from '../../storage-node/uploads.ts'
import { eventually } from '../support/eventually.ts'
import { FaultyFs } from './faulty-fs.ts'
import { blockCrcs, never, shardA, startNode, type TestBlob, testBlob, testReference, uploadId } from './fixtures.ts'
import { appendBlob, openShard } from './open-shard.ts'

async function located(shard: Shard, blob: TestBlob): Promise<BlobLocation> {
  return (await shard.locate(blobName(blob))) ?? never()
}

t.test('I5: who read the corrupt copy slowly does not harm the good one that came in its place', async t => {
  const shard = await openShard(nodeFs, t.testdir())
  const blob = testBlob(500)
  await appendBlob(shard, blob, 1_000)
  const corrupt = await located(shard, blob)
  await shard.quarantine(blobName(blob), corrupt, 'told so')
  t.equal(await shard.locate(blobName(blob)), undefined)
  await appendBlob(shard, blob, 2_000)
  await shard.quarantine(blobName(blob), corrupt, 'told late')
  t.ok(await shard.locate(blobName(blob)), 'it is still there')
  t.equal(shard.isCorrupt(blobName(blob)), false, 'and is served')
  t.equal(shard.lossCount, 0)
  await shard.quarantine(blobName(blob), await located(shard, blob), 'this one too')
  t.equal(await shard.locate(blobName(blob)), undefined)
  await shard.close()
})

t.test('whoever finds a copy corrupt a second time waits until the first has moved it', async t => {
  const shard = await openShard(nodeFs, t.testdir())
  const blob = testBlob(70_000)
  const id = uploadId()
  const staged = await StagedFile.create(nodeFs, shard.files.temporary(id))
  staged.write(blob.body)
  await staged.finish()
  await shard.commitFile(id, { ...blob, blockCrcs: blockCrcs(blob.body) })
  const location = await located(shard, blob)
  void shard.quarantine(blobName(blob), location, 'told so')
  await shard.quarantine(blobName(blob), location, 'told again')
  t.equal((await shard.files.listQuarantine()).length, 1)
  await shard.close()
})

t.test('a shard is marked before it is written in a newer way, and one of a newer release is refused', async t => {
  const folder = t.testdir()
  const shard = await openShard(nodeFs, folder)
  const path = join(folder, 'holdfast.json')
  t.match(JSON.parse(await readFile(path, 'utf8')), { format: 1 })
  await shard.raiseFormat(2)
  const raised = await readFile(path, 'utf8')
  t.match(JSON.parse(raised), { format: 2, disk: String })
  await shard.close()
  const again = await openShard(nodeFs, folder)
  t.equal(again.health.state, 'ok')
  await again.close()
  await writeFile(path, raised.replace('"format": 2', '"format": 3'))
  const refused = await openShard(nodeFs, folder)
  t.equal(refused.health.state, 'failed')
  t.match(refused.health.reason, /format 3.*reads up to 2.*newer release/)
})

t.test('an entry that has changed meanwhile is not taken out of the index', async t => {
  const shard = await openShard(nodeFs, t.testdir())
  await shard.append(newRecord(testReference('p', 1)))
  const [[key, value] = ['', Buffer.alloc(0)]] = await shard.lookUp(index => index.list({ prefix: 'r/', limit: 1 }))
  await shard.append(newRecord(testReference('p', 2)))
  t.equal(await shard.forget(key, value), false)
  const now = await shard.lookUp(index => index.get(key))
  t.ok(now)
  t.equal(await shard.forget(key, now!), true)
  await shard.close()
})

t.test('a corrupt copy whose drop could not be written goes to the quarantine as soon as it can be', async t => {
  const fs = new FaultyFs()
  const { client, folder, close } = await startNode(t, { markerCheckMs: 20 }, { fs })
  const blob = testBlob(100_000)
  await client.put(shardA, blob)
  const path = join(folder, shardA, 'blobs', blobName(blob))
  const bytes = await readFile(path)
  bytes[5] = (bytes[5] ?? 0) ^ 1
  await writeFile(path, bytes)
  fs.fails = (operation, file) => (operation === 'datasync' && /a-1\/(log|tmp)\//.test(file) ? 'EIO' : undefined)
  t.match((await client.get(shardA, blob)).json, { code: 'BLOB_CORRUPT' })
  const lossCount = async (): Promise<unknown> => {
    const { shards } = (await client.call('GET', wirePath.status)).json as { shards: { losses: number }[] }
    return shards[0]?.losses
  }
  await eventually('the disk is found bad', async () => {
    return JSON.stringify((await client.call('GET', wirePath.status)).json['shards']).includes('read-only')
  })
  t.equal((await client.get(shardA, blob)).status, 404, 'it is not served')
  t.equal(await lossCount(), 0)
  fs.fails = () => undefined
  await eventually('the loss is durable', async () => (await lossCount()) === 1, { withinMs: 10_000 })
  await eventually('the bytes are kept', async () => (await readdir(join(folder, shardA, 'quarantine'))).length === 1)
  await close(0)
})

t.test('a small blob that comes home while its corrupt copy leaves stays', async t => {
  const shard = await openShard(nodeFs, t.testdir())
  const blob = testBlob(500)
  await appendBlob(shard, blob)
  const leaving = shard.quarantine(blobName(blob), await located(shard, blob), 'told so')
  await appendBlob(shard, blob)
  await leaving
  t.ok(await shard.locate(blobName(blob)))
  t.equal(shard.lossCount, 0)
  await shard.close()
})

t.test('what was dropped before it was found corrupt is no loss', async t => {
  const shard = await openShard(nodeFs, t.testdir())
  const blob = testBlob(500)
  await appendBlob(shard, blob)
  const location = await located(shard, blob)
  const dropping = shard.drop(blob, 'deleted')
  await Promise.all([dropping, shard.quarantine(blobName(blob), location, 'told so')])
  t.equal(await dropping, 'dropped')
  t.equal(shard.lossCount, 0)
  t.equal(await shard.isLost(blobName(blob)), false)
  t.equal(shard.isCorrupt(blobName(blob)), false)
  await shard.close()
})

t.test('a corrupt copy that could not be dropped for good is dropped by whoever wants it gone', async t => {
  const folder = t.testdir()
  const fs = new FaultyFs()
  const shard = await openShard(fs, folder)
  const blob = testBlob(500)
  await appendBlob(shard, blob)
  fs.fails = (operation, path) => (operation === 'datasync' && path.includes('/log/') ? 'EIO' : undefined)
  await shard.quarantine(blobName(blob), await located(shard, blob), 'told so')
  t.equal(shard.isCorrupt(blobName(blob)), true, 'kept back')
  fs.fails = () => undefined
  await shard.probe()
  t.equal(await shard.drop(blob, 'deleted'), 'missing')
  t.equal(shard.isCorrupt(blobName(blob)), false)
  await shard.close()
  const again = await openShard(nodeFs, folder)
  t.equal(await again.locate(blobName(blob)), undefined)
  t.equal(again.lossCount, 0)
  await again.close()
})

t.test('every log of the index is flushed before its checkpoint moves', async t => {
  const fs = new FaultyFs()
  const shard = await openShard(fs, t.testdir())
  await shard.append(newRecord(testReference('p', 1)))
  await shard.checkpoint()
  const position = () => shard.lookUp(index => index.checkpoint())
  const before = await position()
  // LevelDB has two while it sorts the older one into a table; its files are not written through the shim.
  const older = join(shard.files.index, '000001.log')
  await writeFile(older, '')
  const names = (await nodeFs.list(shard.files.index)).filter(name => name.endsWith('.log'))
  t.ok(names.length > 1)
  await shard.append(newRecord(testReference('p', 2)))
  const flushed: string[] = []
  fs.fails = (operation, path) => {
    if (operation === 'datasync' && path.startsWith(shard.files.index)) flushed.push(path)
    return undefined
  }
  await shard.checkpoint()
  const moved = await position()
  t.not(moved?.offset, before?.offset)
  t.same(
    flushed,
    names.map(name => join(shard.files.index, name)),
  )
  await shard.append(newRecord(testReference('p', 3)))
  fs.fails = (operation, path) => (operation === 'datasync' && path === older ? 'EIO' : undefined)
  await t.rejects(shard.checkpoint(), { code: 'SHARD_FAILED' })
  t.same(await position(), moved, 'of entries that are not flushed it says nothing')
  fs.fails = () => undefined
  await shard.close()
})

t.test('a shard whose last checkpoint failed leaves its index to the next one', async t => {
  const folder = t.testdir()
  const fs = new FaultyFs()
  const shard = await openShard(fs, folder)
  const blob = testBlob(500)
  await appendBlob(shard, blob)
  fs.fails = (operation, path) => (operation === 'datasync' && path.includes('/index/') ? 'EIO' : undefined)
  await t.rejects(shard.close(), { code: 'SHARD_FAILED' })
  const again = await openShard(nodeFs, folder)
  t.equal(again.health.state, 'ok')
  t.ok(await again.locate(blobName(blob)))
  await again.close()
})

t.test('an index that cannot be compared with its log is not kept open', async t => {
  const folder = t.testdir()
  const first = await openShard(nodeFs, folder)
  const blob = testBlob(500)
  await appendBlob(first, blob)
  await first.close()
  const fs = new FaultyFs()
  fs.fails = (operation, path) => (operation === 'read' && path.includes('/log/') ? 'EIO' : undefined)
  const shard = await openShard(fs, folder)
  t.match(shard.health.reason, /EIO/)
  fs.fails = () => undefined
  await shard.reopen()
  t.equal(shard.health.state, 'ok')
  t.ok(await shard.locate(blobName(blob)))
  await shard.close()
})

t.test('a disk that takes writes again is still failed if it was found so meanwhile', async t => {
  const fs = new FaultyFs()
  const shard = await openShard(fs, t.testdir())
  fs.fails = (operation, path) => (operation === 'datasync' && path.includes('/log/') ? 'EIO' : undefined)
  await t.rejects(shard.append(newRecord(testReference('p', 1))), { code: 'SHARD_READ_ONLY' })
  fs.fails = (operation, path) => {
    if (operation === 'datasync' && path.endsWith('.probe')) shard.health.fail('another disk is mounted')
    return undefined
  }
  await shard.probe()
  t.equal(shard.health.state, 'failed')
  t.equal(shard.health.reason, 'another disk is mounted')
  await shard.close()
})

t.test('of two uploads of one id at once, one is a conflict and no fault of the disk', async t => {
  const shard = await openShard(nodeFs, t.testdir())
  const uploads = new Uploads(nodeFs, shard)
  const id = uploadId()
  const body = async function* () {
    yield Buffer.from('body')
  }
  const both = await Promise.allSettled([uploads.receiveFrom(id, body(), 4), uploads.receiveFrom(id, body(), 4)])
  t.equal(both.filter(({ status }) => status === 'fulfilled').length, 1)
  t.match(
    both.find(result => result.status === 'rejected'),
    { reason: { code: 'CONFLICT' } },
  )
  t.equal(shard.health.state, 'ok')
  t.equal(uploads.written(id).bytes, 4, 'the other one is whole')
  await uploads.abortAll()
  await shard.close()
})

t.test('a page of references has no more than 4 MiB of records, and the pages have all of them', async t => {
  const shard = await openShard(nodeFs, t.testdir())
  const user = 'u'.repeat(30_000)
  const paths = Array.from({ length: 160 }, (_, index) => `p${index}`)
  await Promise.all(paths.map(path => shard.append(newRecord({ ...testReference(path, 1), user }))))
  const found: string[] = []
  let pages = 0
  for (let after: string | undefined, isFirst = true; isFirst || after !== undefined; isFirst = false) {
    const { references, next } = await listReferences(shard, 'all', { after, limit: 10_000 })
    t.ok(references.length * user.length < 4 * 1024 * 1024 + 32 * 1024, `${references.length} references`)
    found.push(...references.map(({ path }) => path))
    after = next
    pages += 1
  }
  t.equal(pages, 2)
  t.same(found.sort(), paths.sort())
  await shard.close()
})
