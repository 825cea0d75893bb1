import t from 'tap'
import { referenceOf } from '../../../proxy/artifacts/reference.ts'
import { withFreeIds } from '../../../proxy/metadata/recovery.ts'
import type { Artifact } from '../../../proxy/metadata/types.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { blob, commit, connect, done, open, put } from '../metadata/fixtures.ts'
import { startTestPostgres } from '../../support/postgres.ts'

const postgres = await startTestPostgres(t)

t.test('what is newer on the shards comes into the database, what is older or equal does not', async t => {
  const metadata = await open(t, await postgres.createDatabase())
  const repository = await metadata.createRepository({ name: 'r' })
  const { artifact } = done(await metadata.commitArtifact(commit(repository, 'a/known')))
  const old = done(await metadata.commitArtifact(commit(repository, 'a/old'))).artifact
  const recordOf = (of: Artifact, change: Partial<ReferenceRecord> = {}): ReferenceRecord => ({
    ...referenceOf('r', of, 'i'),
    ...change,
  })
  const merge = (...records: ReferenceRecord[]) =>
    metadata.recovery.merge(records.map(record => ({ repositoryId: repository.id, record })))
  t.strictSame(await merge(), { written: 0, deleted: 0 })
  t.strictSame(await merge(recordOf(artifact), recordOf(old, { version: 1, op: 'put' })), { written: 0, deleted: 0 })
  t.match(await metadata.findArtifact(repository.id, 'a/known'), { version: artifact.version })

  const next = { ...artifact, path: 'b/new', blob: blob('new') }
  const { blob: named, ...tombstone } = recordOf(old, { op: 'delete', version: 900 })
  t.ok(named, 'a tombstone names no blob')
  const more = [recordOf(next, { version: 901 }), tombstone, recordOf(artifact, { version: 902, blob: next.blob })]
  t.strictSame(await merge(...more), { written: 2, deleted: 1 })
  t.strictSame(await merge(...more), { written: 0, deleted: 0 })
  t.equal(await metadata.findArtifact(repository.id, 'a/old'), undefined)
  t.match(await metadata.findArtifact(repository.id, 'b/new'), { version: 901, blob: next.blob })
  t.match(await metadata.findArtifact(repository.id, 'a/known'), { version: 902, blob: next.blob })

  // The bytes were collected and written again after the copy was taken: the row follows the newest reference.
  const again = { ...next.blob, generation: blob('other').generation }
  t.strictSame(await merge(recordOf(next, { version: 950, blob: again })), { written: 1, deleted: 0 })
  t.match(await metadata.findBlob({ sha256: again.digest }), again)
  t.strictSame(await merge(recordOf(next, { path: 'late', version: 940, blob: next.blob })), { written: 1, deleted: 0 })
  t.match(await metadata.findBlob({ sha256: again.digest }), again)
  t.match(await put(metadata, commit(repository, 'b/new', { blob: again })), { outcome: 'unchanged', outboxSeq: null })
})

t.test(
  'repositories, users, cleanup policies and settings of tasks become what the copy says, with their ids',
  async t => {
    const from = await open(t, await postgres.createDatabase())
    await from.createRepository({ name: 'dropped' })
    await from.deleteRepository('dropped')
    const kept = await from.createRepository({
      name: 'kept',
      redeploy: 'once',
      artifactBytesMax: 5,
      anonymousRead: true,
    })
    await from.putUser({ name: 'admin', passwordHash: 'x', admin: true })
    const policy = { name: 'old', repositories: ['kept'], conditions: { unchangedDays: 30 }, enabled: true }
    await from.cleanup.createPolicy(policy, 'admin')
    await from.jobs.changeJob('cleanup', { schedule: '', enabled: false })
    const tables = await from.exportIdentity()
    const into = await open(t, await postgres.createDatabase())
    t.match(await into.recovery.facts(), { issued: 0, empty: true })
    await into.putUser({ name: 'stranger', passwordHash: 'y', admin: true })
    await into.cleanup.createPolicy({ ...policy, name: 'deleted since' }, 'stranger')
    for (let turn = 0; turn < 2; turn++) {
      await into.recovery.restoreIdentity(tables)
      t.strictSame(await into.listRepositories(), [kept])
      t.strictSame(await into.exportIdentity(), tables)
    }
    t.equal(await into.findUser('stranger'), undefined)
    t.strictSame(await into.cleanup.listPolicies(), [policy], 'one that was deleted does not come back')
    t.match(
      (await into.jobs.agenda()).jobs.find(({ name }) => name === 'cleanup'),
      { schedule: '', enabled: false },
    )
    await into.recovery.restoreIdentity({ repositories: tables.repositories, users: tables.users })
    t.strictSame(await into.cleanup.listPolicies(), [policy], 'a copy of an earlier release says nothing of them')
    t.ok((await into.createRepository({ name: 'next' })).id > kept.id)
    t.match(await into.recovery.facts(), { empty: false })
  },
)

t.test('a repository keeps its name and its artifacts, whatever ids the copy and the database have', async t => {
  const from = await open(t, await postgres.createDatabase())
  await from.createRepository({ name: 'second' })
  await from.deleteRepository('second')
  for (const name of ['first', 'second', 'third']) await from.createRepository({ name, redeploy: 'once' })
  const tables = await from.exportIdentity() // first 2, second 3, third 4
  const into = await open(t, await postgres.createDatabase())
  const made = []
  for (const name of ['second', 'other', 'first']) made.push(await into.createRepository({ name }))
  for (const repository of made) await put(into, commit(repository, `of-${repository.name}`))
  for (let turn = 0; turn < 2; turn++) await into.recovery.restoreIdentity(tables)
  const now = await into.listRepositories()
  t.match(
    now.map(({ name, id, redeploy }) => [name, id, redeploy]),
    [['first', 3, 'once'], ['other', 2, 'allow'], ['second', 1, 'once'], ['third', 4, 'once']],
  ) // prettier-ignore
  for (const { name, id } of now.filter(one => one.name !== 'third')) {
    t.ok(await into.findArtifact(id, `of-${name}`), name)
  }
  const taken = [{ id: 4, name: 'x' }]
  t.strictSame(
    withFreeIds([{ id: 4, name: 'y' }, { id: 9, name: 'z' }], taken),
    [{ id: 10, name: 'y' }, { id: 9, name: 'z' }],
  ) // prettier-ignore
})

t.test('I13: a database that is not admitted is as good as away, until it is', async t => {
  let behind = true
  const seen: number[] = []
  const metadata = await open(t, await postgres.createDatabase(), {
    startWithout: true,
    admit: async issued => {
      seen.push((await issued()).issued)
      if (behind) throw new HoldfastError('METADATA_UNAVAILABLE', 'it is behind', { behind: true })
    },
  })
  t.notOk(metadata.available)
  await t.rejects(metadata.listRepositories(), { code: 'METADATA_UNAVAILABLE', message: 'it is behind' })
  const back = async (): Promise<void> => {
    while (!metadata.available) await new Promise(resolve => setTimeout(resolve, 20))
  }
  behind = false
  await back()
  t.strictSame(await metadata.listRepositories(), [])
  await metadata.recheck()
  behind = true
  await t.rejects(metadata.recheck(), { code: 'METADATA_UNAVAILABLE' })
  t.notOk(metadata.available)
  await t.rejects(metadata.listRepositories(), { message: 'it is behind' })
  behind = false
  await back()
  t.ok(seen.every(issued => issued === 0))
})

t.test('no version is beyond what the sequence has issued, however many write one path at once', async t => {
  const url = await postgres.createDatabase()
  const metadata = await open(t, url)
  const repository = await metadata.createRepository({ name: 'r' })
  const versions: number[] = []
  const writer = async (): Promise<void> => {
    for (let turn = 0; turn < 15; turn++) {
      versions.push(done(await metadata.commitArtifact(commit(repository, 'same'))).artifact.version)
    }
  }
  await Promise.all(Array.from({ length: 16 }, writer))
  t.equal(new Set(versions).size, versions.length)
  const { rows } = await (
    await connect(t, url)
  ).query<{ last_value: string }>('SELECT last_value FROM artifact_versions')
  t.ok(Math.max(...versions) <= Number(rows[0]!.last_value))
})

t.test(
  'one recovery of a database at a time, in whatever process, and a lost lock is noticed before the end',
  async t => {
    const url = await postgres.createDatabase()
    const [one, other] = [await open(t, url), await open(t, url)]
    const elsewhere = await open(t, await postgres.createDatabase())
    const busy = { code: 'CONFLICT', message: /another catch-up or rebuild/ }
    await one.recovery.exclusively(async check => {
      await t.rejects(
        other.recovery.exclusively(async () => t.fail('both at once')),
        busy,
      )
      await t.rejects(
        one.recovery.exclusively(async () => t.fail('both at once')),
        busy,
        'not even in one process',
      )
      t.equal(await elsewhere.recovery.exclusively(async () => 'done'), 'done', 'another database is another matter')
      await check()
    })
    await t.rejects(
      one.recovery.exclusively(() => Promise.reject(new HoldfastError('CONFLICT', 'failed'))),
      /failed/,
    )
    t.equal(await other.recovery.exclusively(async () => 'done'), 'done', 'however the one before ended')

    const client = await connect(t, url)
    await other.recovery.exclusively(async check => {
      const held = `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4833`
      await client.query(`${held} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
      await t.rejects(check(), { code: 'METADATA_UNAVAILABLE' })
    })
  },
)
