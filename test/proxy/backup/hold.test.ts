/** A running backup against garbage collection, on a real PostgreSQL. */
import t, { type Test } from 'tap'
import { startTestPostgres } from '../../support/postgres.ts'
import { blob, commit, connect, open, put } from '../metadata/fixtures.ts'

const server = await startTestPostgres(t)

async function setUp(t: Test) {
  const url = await server.createDatabase()
  const metadata = await open(t, url)
  const client = await connect(t, url)
  const token = await metadata.issueToken('primary', 'test')
  const repository = await metadata.createRepository({ name: 'r', trashDays: 0 })
  const begin = async (job = 'backup') => {
    const { id } = await metadata.jobs.enqueue({ job, user: 'admin', params: {} })
    await metadata.jobs.claim(id, token)
    return id
  }
  const write = (path: string) => put(metadata, commit(repository, path, { blob: blob(path) }))
  const drop = (path: string) =>
    metadata.deleteArtifact({ repositoryId: repository.id, repository: 'r', path, user: 'alice' })
  const condemn = (text: string) => metadata.collection.condemn([blob(text).digest], 0, token)
  const purge = async () => (await metadata.collection.purge(0, 100, token)).map(({ digest }) => digest)
  return { metadata, client, token, begin, write, drop, condemn, purge }
}

t.test('I12: what the snapshot of a running backup names is not purged before the run is over', async t => {
  const { metadata, client, token, begin, write, drop, condemn, purge } = await setUp(t)
  await write('named')
  await write('gone')
  await drop('gone')
  await condemn('gone')
  await client.query(`UPDATE blobs SET state_since = now() - interval '2 minutes' WHERE state = 'condemned'`)
  const run = await begin()
  const named = await metadata.snapshot(snapshot => snapshot.namedBlobs('', 10))
  t.strictSame(named, [await metadata.findBlob({ sha256: blob('named').digest })])
  await drop('named')
  t.equal((await condemn('named')).length, 1, 'it is condemned meanwhile')
  t.same(await purge(), [blob('gone').digest], 'what was unused before the run goes, the other stays')
  await metadata.jobs.finish(run, token, { state: 'succeeded', lines: [] })
  t.same(await purge(), [blob('named').digest])
})

t.test('I12: the hold ends with its run, however that ended, and no other task holds anything', async t => {
  const { metadata, token, begin, write, drop, condemn, purge } = await setUp(t)
  for (const [index, state] of (['succeeded', 'failed', 'stopped'] as const).entries()) {
    const run = await begin()
    await write(`${index}`)
    await drop(`${index}`)
    await condemn(`${index}`)
    t.same(await purge(), [])
    await metadata.jobs.finish(run, token, { state, lines: [] })
    t.same(await purge(), [blob(`${index}`).digest], state)
  }
  await begin('verify-backup')
  await write('x')
  await drop('x')
  await condemn('x')
  t.same(await purge(), [blob('x').digest])
})

t.test('a blob is condemned at the moment it is found unused, not when its transaction began', async t => {
  const { client, write, drop } = await setUp(t)
  await write('a')
  await client.query('BEGIN')
  await client.query('SELECT pg_sleep(0.2)')
  await drop('a')
  await client.query(`SELECT FROM condemn_blobs_1($1, '0'::interval)`, [[Buffer.from(blob('a').digest, 'hex')]])
  const { rows } = await client.query(`SELECT state, state_since > now() + interval '0.1 s' AS later FROM blobs`)
  await client.query('COMMIT')
  t.same(rows, [{ state: 'condemned', later: true }])
})

t.test('a snapshot shows one moment, whatever is committed while it is read', async t => {
  const { metadata, write, drop } = await setUp(t)
  for (const path of ['a', 'b', 'c', 'd']) await write(path)
  await drop('b')
  const seen = await metadata.snapshot(async snapshot => {
    const first = await snapshot.artifacts({ repositoryId: 0, path: '' }, 2)
    await drop('d')
    await write('e')
    const second = await snapshot.artifacts(first.at(-1)!, 10)
    const third = await snapshot.artifacts(second.at(-1)!, 10)
    return { paths: [...first, ...second, ...third].map(({ path }) => path), blobs: await snapshot.namedBlobs('', 10) }
  })
  t.same(seen.paths, ['a', 'c', 'd'])
  t.equal(seen.blobs.length, 3)
  t.same(
    (await metadata.snapshot(snapshot => snapshot.artifacts({ repositoryId: 0, path: '' }, 10))).map(
      ({ path }) => path,
    ),
    ['a', 'c', 'e'],
  )
})

t.test('a restore gives artifacts the moments and the writer they had, if they have the bytes they had', async t => {
  const url = await server.createDatabase()
  const metadata = await open(t, url)
  const id = '20260301t023000z-1'
  const old = { repository: 'r', createdBy: 'ann', createdAt: 86_400_000, updatedAt: 172_800_000 }
  const named = [
    { ...old, path: 'same', digest: blob('same').digest },
    { ...old, path: 'other', digest: blob('what it was').digest },
    { ...old, path: 'future', digest: blob('future').digest, updatedAt: Date.now() + 1e9 },
    { ...old, path: 'absent', digest: blob('absent').digest },
  ]
  await t.rejects(metadata.restores.setHistory(named), { code: 'CONFLICT' }, 'only while a restore is under way')
  await metadata.restores.begin(id)
  const repository = await metadata.createRepository({ name: 'r' })
  for (const path of ['same', 'other', 'future']) await put(metadata, commit(repository, path, { blob: blob(path) }))
  t.equal(await metadata.restores.setHistory(named), 2)
  const found = await metadata.snapshot(snapshot => snapshot.artifacts({ repositoryId: 0, path: '' }, 10))
  const by = new Map(found.map(one => [one.path, one]))
  t.match(by.get('same'), { createdBy: 'ann', createdAt: 86_400_000, updatedAt: 172_800_000 })
  t.match(by.get('other'), { createdBy: 'alice' })
  t.ok(by.get('future')!.updatedAt <= Date.now() + 60_000, 'nothing lies in the future')
  await metadata.restores.end()
  await t.rejects(metadata.restores.setHistory(named), { code: 'CONFLICT' })
})
