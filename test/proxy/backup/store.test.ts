/** Backups in a folder: written once, encrypted or not, and nothing of another cluster. */
import { hash, randomBytes } from 'node:crypto'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { openBackupTarget } from '../../../proxy/backup/open-target.ts'
import { BackupStore } from '../../../proxy/backup/store.ts'
import { unnamedBlobs } from '../../../proxy/backup/sweep.ts'
import type { ManifestEntry } from '../../../proxy/backup/manifest.ts'
import type { Digest, Generation } from '../../../shared/ids.ts'

async function* stream<Item>(...items: readonly Item[]): AsyncGenerator<Item> {
  for (const item of items) yield item
}
async function gather(chunks: AsyncIterable<Buffer>): Promise<Buffer> {
  const taken: Buffer[] = []
  for await (const chunk of chunks) taken.push(chunk)
  return Buffer.concat(taken)
}
const id = '20260301t023000z-1'
const start: ManifestEntry = { kind: 'backup', id, clusterId: 'c', incarnation: 'i', time: 1, version: '1' }
const blobEntry = (digest: Digest): ManifestEntry => ({
  kind: 'blob', digest, bytes: 1, md5: '', sha1: '', generation: 'g' as Generation, partition: 1,
}) // prettier-ignore

for (const passphrase of [undefined, 'correct horse battery']) {
  t.test(passphrase === undefined ? 'in the clear' : 'encrypted', async t => {
    const folder = t.testdir({})
    const target = openBackupTarget(`file://${folder}`, {})
    await t.rejects(BackupStore.open(target, passphrase), { code: 'NOT_FOUND' }, 'nothing there yet')
    const store = await BackupStore.openOrClaim(target, passphrase, 'c')
    const body = randomBytes(200_000)
    const digest = hash('sha256', body) as Digest
    t.equal(await store.putBlob(digest, stream(body.subarray(0, 9), body.subarray(9))), true)
    t.equal(await store.putBlob(digest, stream(Buffer.from('other'))), false, 'a name is given once')
    const again = await BackupStore.openOrClaim(target, passphrase, 'c')
    t.ok((await gather(again.getBlob(digest))).equals(body))
    const onDisk = await readFile(join(folder, 'blobs', digest.slice(0, 2), digest))
    t.equal(onDisk.equals(body), passphrase === undefined)
    t.equal(onDisk.includes(body.subarray(100, 200)), passphrase === undefined, 'no byte in the clear')

    await t.rejects(store.putBlob('ab'.repeat(32) as Digest, failing()), /on the way/)
    t.same([...(await store.blobs('ab'))], [], 'what failed has no name')
    t.same(await readdir(join(folder, 'tmp')), [])

    await store.writeManifest(id, stream(start, blobEntry(digest)))
    t.same(await store.ids(), [], 'without a summary it is no backup')
    await store.checkManifest(id)
    const loose = hash('sha256', 'loose') as Digest
    await store.putBlob(loose, stream(Buffer.from('loose')))
    const unnamed: Digest[] = []
    for await (const found of unnamedBlobs(store, [id])) unnamed.push(...found.unnamed)
    t.same(unnamed, [loose])
    const file = join(folder, 'manifests', id)
    const bytes = await readFile(file)
    bytes[bytes.length - 40]! ^= 1
    await writeFile(file, bytes)
    const first = unnamedBlobs(store, [id]).next()
    await t.rejects(first, { code: 'BACKUP_DAMAGED' }, 'a damaged manifest lets nothing be removed')

    await t.rejects(BackupStore.open(target, passphrase, 'd'), { code: 'CONFLICT' }, 'of another cluster')
    await t.rejects(BackupStore.open(target, 'another passphrase'), { code: 'CONFIG_INVALID' })
    if (passphrase !== undefined) await t.rejects(BackupStore.open(target, undefined), { code: 'CONFIG_INVALID' })
    await t.rejects(store.summary('../../etc/passwd'), { code: 'BAD_REQUEST' }, 'I40: no path of a request')
    await t.rejects(target.remove('blobs/../x'), { code: 'PATH_INVALID' })
  })
}

async function* failing(): AsyncGenerator<Buffer> {
  yield Buffer.from('half')
  throw new Error('on the way')
}
