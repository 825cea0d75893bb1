import t, { type Test } from 'tap'
import { sealClusterMap, type ClusterMap } from '../../../shared/cluster-map.ts'
import { newGeneration, type NodeId, type ShardId, type Zone } from '../../../shared/ids.ts'
import type { Metadata, Repository } from '../../../proxy/metadata/types.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { blob, commit, connect, digestOf, done, open, put } from './fixtures.ts'

const server = await startTestPostgres(t)
const template = await server.createDatabase()
await (await open({ teardown: () => {} }, template)).close()
const shared = await server.createDatabase(template)

let repositoryCount = 0

/** A repository in a shared database, or in a database of its own where a test looks at everything there is. */
async function setUp(
  test: Test,
  where: 'shared' | 'alone' = 'shared',
): Promise<{ url: string; metadata: Metadata; repository: Repository }> {
  const url = where === 'alone' ? await server.createDatabase(template) : shared
  const metadata = await open(test, url)
  const name = where === 'alone' ? 'releases' : `releases-${++repositoryCount}`
  return { url, metadata, repository: await metadata.createRepository({ name }) }
}

t.test('identity', async t => {
  const url = await server.createDatabase()
  const first = await open(t, url, { clusterId: 'cluster-1' })
  const second = await open(t, url)
  t.equal(first.clusterId, 'cluster-1')
  t.equal(second.clusterId, 'cluster-1', 'is kept in the database')
  t.not(first.incarnation, '')
  t.equal(second.incarnation, first.incarnation, 'is made once')
  await t.rejects(open(t, url, { clusterId: 'cluster-2' }), { code: 'CONFIG_INVALID' }, 'another cluster is refused')
  await t.rejects(open(t, 'mysql://x'), { code: 'CONFIG_INVALID' })
})

t.test('repositories', async t => {
  const { metadata } = await setUp(t, 'alone')
  const created = await metadata.createRepository({ name: 'snapshots', redeploy: 'once', artifactBytesMax: 5e9 })
  t.match(created, {
    name: 'snapshots',
    format: 'raw',
    type: 'hosted',
    redeploy: 'once',
    artifactBytesMax: 5e9,
    anonymousRead: false,
  })
  await t.rejects(metadata.createRepository({ name: 'snapshots' }), { code: 'CONFLICT' })
  const changed = await metadata.changeRepository('snapshots', { anonymousRead: true })
  t.same(changed, { ...created, anonymousRead: true }, 'what is not named stays')
  t.equal((await metadata.changeRepository('snapshots', { artifactBytesMax: null })).artifactBytesMax, null)
  await t.rejects(metadata.changeRepository('none', {}), { code: 'REPOSITORY_NOT_FOUND' })
  const upstream = { url: 'https://host/', maxAgeSeconds: 5, absentMaxAgeSeconds: 6 }
  t.match(await metadata.changeRepository('snapshots', { upstream }), { type: 'proxy', upstream })
  t.match(await metadata.changeRepository('snapshots', { trashDays: 3 }), { upstream }, 'what is not named stays')
  t.match(await metadata.changeRepository('snapshots', { upstream: null }), { type: 'hosted', upstream: null })
  await put(metadata, commit(created, 'own'))
  await t.rejects(
    metadata.changeRepository('snapshots', { upstream, trashDays: 4 }),
    { code: 'CONFLICT', message: /artifacts of its own.*another repository.*--force/ },
    'an upstream would take the place of what is here',
  )
  const untouched = (await metadata.listRepositories()).find(({ name }) => name === 'snapshots')
  t.match(untouched, { upstream: null, trashDays: 3 }, 'nothing was changed')
  t.match(await metadata.changeRepository('snapshots', { upstream: null, trashDays: 3 }), { upstream: null })
  t.match(await metadata.changeRepository('snapshots', { upstream }, true), { upstream }, 'unless it is forced')
  const moved = { ...upstream, url: 'https://other/' }
  t.match(await metadata.changeRepository('snapshots', { upstream: moved }), { upstream: moved }, 'another address')
  await t.rejects(metadata.changeRepository('none', { upstream }), { code: 'REPOSITORY_NOT_FOUND' })
  await metadata.changeRepository('snapshots', { upstream: null })
  await metadata.deleteArtifact({ repositoryId: created.id, repository: 'snapshots', path: 'own', user: 'ann' })
  t.match(await metadata.changeRepository('snapshots', { upstream }), { upstream }, 'nothing is left in it')
  await metadata.changeRepository('snapshots', { upstream: null })
  t.match(await metadata.createRepository({ name: 'mirror', upstream }), { type: 'proxy', upstream })
  t.same(
    (await metadata.listRepositories()).map(one => one.name),
    ['mirror', 'releases', 'snapshots'],
  )
  await put(metadata, commit(created, 'a'))
  await t.rejects(metadata.deleteRepository('snapshots'), { code: 'CONFLICT' }, 'artifacts are in it')
  await metadata.deleteArtifact({ repositoryId: created.id, repository: 'snapshots', path: 'a', user: 'bob' })
  await metadata.deleteRepository('snapshots')
  await t.rejects(metadata.deleteRepository('snapshots'), { code: 'REPOSITORY_NOT_FOUND' })
  await t.rejects(metadata.commitArtifact(commit(created, 'b')), { code: 'REPOSITORY_NOT_FOUND' })
})

t.test('names of a blob in repositories with an upstream', async t => {
  const { metadata, repository } = await setUp(t, 'alone')
  const upstream = { url: 'https://host/', maxAgeSeconds: 5, absentMaxAgeSeconds: 6 }
  const mirror = await metadata.createRepository({ name: 'mirror', upstream })
  const here = commit(repository, 'a')
  const kept = done(await metadata.commitArtifact(here))
  await metadata.commitArtifact(commit(mirror, 'b', { blob: kept.artifact.blob, blobIs: 'existing' }))
  const names = await metadata.upstreamNames(kept.artifact.blob.digest)
  t.match(names, [{ repositoryId: mirror.id, path: 'b', blob: kept.artifact.blob }])
  t.equal(names.length, 1)
  t.same(await metadata.upstreamNames(digestOf('none')), [])
})

t.test('users and audit', async t => {
  const { metadata, url } = await setUp(t)
  t.equal(await metadata.findUser('ann'), undefined)
  await metadata.putUser({ name: 'ann', passwordHash: 'x', admin: false })
  await metadata.putUser({ name: 'ann', passwordHash: 'y', admin: true })
  t.same(await metadata.findUser('ann'), { name: 'ann', passwordHash: 'y', admin: true })
  await metadata.audit({ user: 'ann', action: 'delete', subject: 'a/b', outcome: 'ok', address: '::1' })
  const client = await connect(t, url)
  t.match((await client.query('SELECT * FROM audit')).rows, [{ user_name: 'ann', subject: 'a/b', at: Date }])
  for (const subject of ['two', 'three']) {
    await metadata.audit({ user: 'bob', action: 'write', subject, outcome: 'done', address: '::2' })
  }
  const [third, second] = await metadata.listAudit(Number.MAX_SAFE_INTEGER, 2)
  t.match(third, { user: 'bob', action: 'write', subject: 'three', outcome: 'done', address: '::2' })
  t.ok(Math.abs(Date.now() - third!.at) < 3_600_000, 'milliseconds')
  t.match(await metadata.listAudit(second!.id, 10), [{ user: 'ann', subject: 'a/b', outcome: 'ok', address: '::1' }])
})

t.test('an artifact is created, read, replaced, deleted and created again', async t => {
  const { metadata, repository } = await setUp(t)
  const before = Date.now()
  const first = commit(repository, 'a/b', { contentType: 'text/plain', attributes: { x: [1, 'é'] } })
  const created = done(await metadata.commitArtifact(first))
  t.equal(created.outcome, 'created')
  t.equal(created.incarnation, metadata.incarnation)
  t.match(created.artifact, { path: 'a/b', blob: first.blob, createdBy: 'alice', contentType: 'text/plain' })
  t.ok(Math.abs(created.artifact.createdAt - before) < 60_000, 'times are milliseconds')
  t.same(await metadata.findArtifact(repository.id, 'a/b'), created.artifact, 'reads return what the commit told')
  t.equal(await metadata.findArtifact(repository.id, 'a'), undefined)
  const many = ['a', 'a/b', 'none', 'a/b'].map(path => ({ repositoryId: repository.id, path }))
  t.same(await metadata.findArtifacts(many), [undefined, created.artifact, undefined, created.artifact])
  t.same(await metadata.findArtifacts([]), [])

  const replaced = done(await metadata.commitArtifact(commit(repository, 'a/b', { user: 'bob' })))
  t.equal(replaced.outcome, 'replaced')
  t.ok(replaced.artifact.version > created.artifact.version)
  t.equal(replaced.artifact.createdAt, created.artifact.createdAt)
  t.equal(replaced.artifact.createdBy, 'bob', 'who wrote this version')

  const target = { repositoryId: repository.id, repository: repository.name, path: 'a/b', user: 'carl' }
  const deleted = await metadata.deleteArtifact(target)
  t.ok(deleted !== undefined && deleted.version > replaced.artifact.version)
  t.equal(await metadata.deleteArtifact(target), undefined, 'there is nothing left')
  t.equal(await metadata.findArtifact(repository.id, 'a/b'), undefined)

  const again = done(await metadata.commitArtifact(commit(repository, 'a/b')))
  t.equal(again.outcome, 'created')
  t.ok(again.artifact.version > (deleted?.version ?? Infinity), 'the version grows across deletion')
})

t.test('the same again is unchanged, and owes its reference as long as the first writer does', async t => {
  const { metadata, repository } = await setUp(t)
  const one = commit(repository, 'p', { attributes: { a: 1, b: 2 } })
  const first = done(await metadata.commitArtifact(one))
  const retried = done(await metadata.commitArtifact(one))
  t.equal(retried.outcome, 'unchanged', 'a retry with the same generation is harmless')
  t.same(retried.artifact, first.artifact)
  t.equal(retried.outboxSeq, first.outboxSeq, 'not on a majority yet: the second must not be acknowledged earlier')
  await metadata.settleOutbox([first.outboxSeq!])
  const later = done(await metadata.commitArtifact({ ...one, attributes: { b: 2, a: 1 } }))
  t.match(later, { outcome: 'unchanged', outboxSeq: null })
  const other = done(await metadata.commitArtifact({ ...one, contentType: 'text/plain' }))
  t.equal(other.outcome, 'replaced', 'another content type is a change')
})

t.test('conditions', async t => {
  const { metadata, repository } = await setUp(t)
  const attempt = async (path: string, conditions: object, text?: string) =>
    metadata.commitArtifact(
      commit(repository, path, { conditions: { redeploy: 'allow', ...conditions }, ...(text && { blob: blob(text) }) }),
    )
  t.match(await attempt('m', { match: '*' }), { outcome: 'refused', reason: 'no-match', current: null })
  t.match(await attempt('m', { match: [digestOf('1')] }), { outcome: 'refused', reason: 'no-match' })
  t.match(await attempt('m', { absent: true }, '1'), { outcome: 'created' })
  t.match(await attempt('m', { absent: true }), { reason: 'exists', current: { blob: { digest: digestOf('1') } } })
  t.match(await attempt('m', { match: [digestOf('2')] }), { reason: 'no-match', current: { path: 'm' } })
  t.match(await attempt('m', { match: [digestOf('2'), digestOf('1')] }, '3'), { outcome: 'replaced' })
  t.match(await attempt('m', { match: '*' }), { outcome: 'replaced' })
  t.match(await attempt('m', { redeploy: 'once' }), { outcome: 'refused', reason: 'redeploy' })
  t.match(await attempt('m', { redeploy: 'deny' }), { outcome: 'refused', reason: 'redeploy' })
  t.match(await attempt('o', { redeploy: 'deny' }), { outcome: 'refused', reason: 'redeploy', current: null })
  t.match(await attempt('o', { redeploy: 'once' }), { outcome: 'created' })

  const target = { repositoryId: repository.id, repository: repository.name, path: 'm', user: 'x' }
  await t.rejects(metadata.deleteArtifact(target, { match: [digestOf('1')] }), { code: 'PRECONDITION_FAILED' })
  t.ok(await metadata.deleteArtifact(target, { match: '*' }))
  await t.rejects(metadata.deleteArtifact(target, { match: '*' }), { code: 'PRECONDITION_FAILED' })
  t.match(await attempt('m', { absent: true }), { outcome: 'created' }, 'a tombstone is absent')
})

t.test('a refused commit writes nothing', async t => {
  const { metadata, repository, url } = await setUp(t, 'alone')
  await put(metadata, commit(repository, 'p'))
  const client = await connect(t, url)
  const count = async (): Promise<unknown> =>
    (
      await client.query(`SELECT (SELECT count(*) FROM blobs) b, (SELECT count(*) FROM outbox) o,
      (SELECT count(*) FROM repairs) r, (SELECT sum(version) FROM artifacts) v`)
    ).rows
  const before = await count()
  const refused = commit(repository, 'p', { conditions: { redeploy: 'allow', absent: true }, missing: ['s1'] })
  t.match(await metadata.commitArtifact(refused), { outcome: 'refused' })
  t.same(await count(), before)
  t.equal(await metadata.findBlob({ sha256: refused.blob.digest }), undefined, 'not even the blob')
})

t.test('I11: a commit needs the blob alive with the generation whose copies the caller knows', async t => {
  const { metadata, repository, url } = await setUp(t)
  const client = await connect(t, url)
  const state = (digest: string, value: string) =>
    client.query(`UPDATE blobs SET state = $2 WHERE digest = decode($1, 'hex')`, [digest, value])
  const existing = blob('shared')
  await put(metadata, commit(repository, 'a', { blob: existing }))

  const newcomer = blob('shared')
  t.match(await metadata.commitArtifact(commit(repository, 'b', { blob: newcomer })), {
    outcome: 'blob-exists',
    blob: existing,
  })
  t.equal(await metadata.findArtifact(repository.id, 'b'), undefined)
  const wrong = commit(repository, 'b', { blob: newcomer, blobIs: 'existing' })
  t.match(await metadata.commitArtifact(wrong), { outcome: 'blob-exists', blob: existing })
  const deduplicated = await metadata.commitArtifact(commit(repository, 'b', { blob: existing, blobIs: 'existing' }))
  t.match(deduplicated, { outcome: 'created', artifact: { blob: existing } })

  t.match(await metadata.commitArtifact(commit(repository, 'c', { blobIs: 'existing' })), { outcome: 'blob-gone' })

  await state(existing.digest, 'condemned')
  t.same(await metadata.findBlob({ sha256: existing.digest }), existing, 'condemned can still be found')
  const rescue = commit(repository, 'd', { blob: existing, blobIs: 'existing' })
  t.match(await metadata.commitArtifact(rescue), { outcome: 'created' })
  const { rows } = await client.query(`SELECT state FROM blobs WHERE digest = decode($1, 'hex')`, [existing.digest])
  t.same(rows, [{ state: 'live' }], 'a condemned blob that is named again is rescued')

  await state(existing.digest, 'condemned')
  t.equal(await metadata.pinBlob(existing, 'upload'), true)
  t.equal(await metadata.pinBlob(existing, 'upload'), true, 'once more')
  const pinned = await client.query(`SELECT b.state, p.expires_at > now() AS holds FROM blobs b JOIN pins p USING (digest) WHERE digest = decode($1, 'hex')`, [existing.digest]) // prettier-ignore
  t.same(pinned.rows, [{ state: 'live', holds: true }], 'I12: it is live again, and held for whoever brings its bytes')
  t.equal(await metadata.pinBlob(newcomer, 'upload'), false, 'another generation')

  await state(existing.digest, 'purging')
  t.equal(await metadata.pinBlob(existing, 'upload'), false, 'it goes for good')
  t.equal(await metadata.findBlob({ sha256: existing.digest }), undefined)
  t.match(await metadata.commitArtifact({ ...rescue, path: 'e' }), { outcome: 'blob-gone' })
  t.match(await metadata.commitArtifact({ ...rescue, path: 'e', blobIs: 'new' }), { outcome: 'blob-gone' })
  const reborn = commit(repository, 'e', { blob: newcomer })
  t.match(await metadata.commitArtifact(reborn), { outcome: 'created', artifact: { blob: newcomer } })
  t.match(
    await metadata.commitArtifact({ ...rescue, path: 'f', blobIs: 'new' }),
    { outcome: 'blob-exists', blob: newcomer },
    'the old incarnation does not come back',
  )
})

t.test('blobs are found by digest and by sha1, and are readable where an artifact names them', async t => {
  const { metadata, repository } = await setUp(t)
  const other = await metadata.createRepository({ name: 'other' })
  const one = blob('content', { bytes: 2 ** 40 })
  await put(metadata, commit(repository, 'x', { blob: one }))
  t.same(await metadata.findBlob({ sha256: one.digest }), one)
  t.same(await metadata.findBlob({ sha1: one.sha1 }), one)
  t.equal(await metadata.findBlob({ sha1: '0'.repeat(40) }), undefined)
  t.equal(await metadata.digestReadable(one.digest, [other.id]), false)
  t.equal(await metadata.digestReadable(one.digest, [other.id, repository.id]), true)
  t.equal(await metadata.digestReadable(one.digest, []), false)
  await metadata.deleteArtifact({ repositoryId: repository.id, repository: repository.name, path: 'x', user: 'u' })
  t.equal(await metadata.digestReadable(one.digest, [repository.id]), false)
})

t.test('commitArtifacts does all or nothing', async t => {
  const { metadata, repository } = await setUp(t)
  const source = await put(metadata, commit(repository, 'from/a'))
  const known = { blob: source.artifact.blob, blobIs: 'existing' } as const
  const target = { repositoryId: repository.id, repository: repository.name, path: 'from/a', user: 'u' }
  const refused = await metadata.commitArtifacts(
    [
      commit(repository, 'to/a', known),
      commit(repository, 'from/a', { conditions: { redeploy: 'once' } }),
      commit(repository, 'to/b', { blobIs: 'existing' }),
    ],
    [target],
  )
  t.match(refused, { results: [{ outcome: 'refused', reason: 'redeploy' }, { outcome: 'blob-gone' }], deleted: [] })
  t.equal(refused.results.length, 2, 'only what failed is told')
  t.equal(await metadata.findArtifact(repository.id, 'to/a'), undefined)
  t.ok(await metadata.findArtifact(repository.id, 'from/a'))

  const moved = await metadata.commitArtifacts([commit(repository, 'to/a', known)], [target])
  t.match(moved, { results: [{ outcome: 'created' }], deleted: [{ path: 'from/a' }] })
  t.equal(await metadata.findArtifact(repository.id, 'from/a'), undefined)
  t.ok(await metadata.findArtifact(repository.id, 'to/a'))
  t.same(await metadata.commitArtifacts([]), { results: [], deleted: [] })
})

t.test('a folder is listed recursively and deleted in pages', async t => {
  const { metadata, repository } = await setUp(t, 'alone')
  const paths = ['d/1', 'd/2/x', 'd/3', 'd-', 'd0', 'e']
  for (const path of paths) await put(metadata, commit(repository, path))
  const list = async (prefix: string, after: string, limit: number): Promise<string[]> =>
    (await metadata.listArtifacts(repository.id, prefix, after, limit)).map(one => one.path)
  t.same(await list('', '', 10), ['d-', 'd/1', 'd/2/x', 'd/3', 'd0', 'e'])
  t.same(await list('d/', '', 2), ['d/1', 'd/2/x'])
  t.same(await list('d/', 'd/2/x', 2), ['d/3'])

  const target = { repositoryId: repository.id, repository: repository.name, prefix: 'd/', user: 'dan' }
  const first = await metadata.deleteFolder(target, 2)
  t.same(
    first.map(one => one.path),
    ['d/1', 'd/2/x'],
  )
  t.same(
    (await metadata.deleteFolder(target, 2)).map(one => one.path),
    ['d/3'],
  )
  t.same(await metadata.deleteFolder(target, 2), [])
  t.same(await list('', '', 10), ['d-', 'd0', 'e'])
  const owed = (await metadata.pendingOutbox(0, 100)).filter(entry => entry.op === 'delete')
  t.match(owed, [
    { path: 'd/1', user: 'dan', version: first[0]?.version, seq: first[0]?.outboxSeq, artifact: null },
    { path: 'd/2/x' },
    { path: 'd/3' },
  ])
})

t.test('the outbox tells what the shards have not confirmed', async t => {
  const { metadata, repository } = await setUp(t, 'alone')
  const a = await put(metadata, commit(repository, 'a'))
  const b = await put(metadata, commit(repository, 'b'))
  t.same(await metadata.pendingOutbox(60_000, 10), [], 'not old enough')
  const pending = await metadata.pendingOutbox(0, 10)
  t.match(pending, [
    {
      seq: a.outboxSeq,
      repository: 'releases',
      op: 'put',
      path: 'a',
      version: a.artifact.version,
      user: 'alice',
      time: a.artifact.updatedAt,
    },
    { seq: b.outboxSeq },
  ])
  t.same(pending[0]?.artifact, a.artifact)
  t.equal((await metadata.pendingOutbox(0, 1)).length, 1)
  await metadata.settleOutbox([a.outboxSeq!])
  const later = await put(metadata, commit(repository, 'b'))
  t.match(await metadata.pendingOutbox(0, 1), [{ seq: later.outboxSeq, path: 'b' }], 'an overwritten version is moot')
  await metadata.settleOutbox([later.outboxSeq!])
  t.same(await metadata.pendingOutbox(0, 10), [])
})

t.test('repairs merge, come due, and never lose what was added meanwhile', async t => {
  const { metadata, repository } = await setUp(t, 'alone')
  const one = commit(repository, 'a', { missing: ['s2'], handoffs: ['h1'] })
  await put(metadata, one)
  await metadata.addRepairs([
    { kind: 'blob', partition: 7, blob: one.blob, missing: ['s1'], handoffs: [] },
    { kind: 'reference', partition: 9, key: 'releases/a', version: 4, missing: ['s3'], handoffs: [] },
    { kind: 'reference', partition: 9, key: 'releases/a', version: 6, missing: ['s4'], handoffs: ['h'] },
  ])
  t.equal(await metadata.countRepairs(), 2)
  const [ofBlob, ofReference] = await metadata.dueRepairs(10)
  t.match(ofBlob, { kind: 'blob', partition: 7, missing: ['s1', 's2'], handoffs: ['h1'], attempts: 0 })
  t.same(ofBlob?.blob, one.blob)
  t.equal((await metadata.dueRepairs(10, 2)).length, 2)
  t.equal((await metadata.dueRepairs(10, 3)).length, 0, 'nothing is missing in three places')
  t.match(ofReference, { kind: 'reference', partition: 9, key: 'releases/a', version: 6, missing: ['s3', 's4'] })

  const token = await metadata.issueToken('primary', 'me')
  await metadata.postponeRepairs([{ id: ofBlob!.id, retryMs: 60_000, missing: ['s2'], attempts: 1 }], token)
  t.same(
    (await metadata.dueRepairs(10)).map(entry => entry.kind),
    ['reference'],
    'by the clock of the database',
  )
  await metadata.addRepairs([{ kind: 'blob', partition: 7, blob: one.blob, missing: ['s2'], handoffs: [] }])
  t.equal((await metadata.dueRepairs(10)).length, 1, 'nothing new: the pause stays')
  await metadata.addRepairs([{ kind: 'blob', partition: 7, blob: one.blob, missing: ['s5'], handoffs: [] }])
  const grown = (await metadata.dueRepairs(10)).find(entry => entry.kind === 'blob')
  t.match(grown, { missing: ['s2', 's5'], attempts: 1 })
  await metadata.finishRepair(ofBlob!.id, token)
  t.equal(await metadata.countRepairs(), 2, 'what was read before it grew cannot finish it')
  await metadata.finishRepair(grown!.id, token)
  await metadata.finishRepair(ofReference!.id, token)
  t.equal(await metadata.countRepairs(), 0)

  await metadata.addRepairs([{ kind: 'blob', partition: 1, blob: blob(), missing: ['s'], handoffs: [] }])
  t.same(await metadata.dueRepairs(1), [], 'a blob that is gone needs no copies')
  t.equal(await metadata.countRepairs(), 0)
})

t.test('repairs: how much waits, for whom; what has failed is tried now when somebody says so', async t => {
  const { metadata, repository } = await setUp(t, 'alone')
  const { repairQueue } = metadata
  const none = { blobs: 0, references: 0, bytes: 0, due: 0, failing: 0, waiting: 0, oldestAgeMs: null, shards: [] }
  t.same(await repairQueue.backlog(), none)
  const [one, two] = [commit(repository, 'a', { missing: ['s1', 's2'] }), commit(repository, 'b', { missing: ['s1'] })]
  await put(metadata, one)
  await put(metadata, two)
  await metadata.addRepairs([{ kind: 'reference', partition: 9, key: 'releases/a', version: 4, missing: ['s3'], handoffs: [] }]) // prettier-ignore
  const token = await metadata.issueToken('primary', 'me')
  const [first] = await metadata.dueRepairs(1)
  await metadata.postponeRepairs([{ id: first!.id, retryMs: 60_000, missing: first!.missing, attempts: 3 }], token)
  const backlog = await repairQueue.backlog()
  t.match(backlog, { blobs: 2, references: 1, due: 2, failing: 1, waiting: 0 })
  t.match(await repairQueue.backlog(['s2', 's3', 's9']), { blobs: 2, references: 1, waiting: 2 })
  t.match(await repairQueue.backlog(['s1', 's3']), { blobs: 2, due: 0, failing: 0, waiting: 3 })
  t.match(backlog.shards, [{ shard: 's1', copies: 2 }, { shard: 's2', copies: 1 }, { shard: 's3', copies: 1 }]) // prettier-ignore
  t.ok(Math.abs(backlog.bytes - (2 * one.blob.bytes + two.blob.bytes)) <= 2)
  t.ok(backlog.oldestAgeMs! >= 0)
  t.same(await repairQueue.namesOf([one.blob.digest, digestOf('none')]), [{ digest: one.blob.digest, names: [`${repository.name}/a`] }, { digest: digestOf('none'), names: [] }]) // prettier-ignore
  t.equal(await repairQueue.comparisonWanted(), undefined)
  t.equal(await repairQueue.runNow(), 1)
  t.match(await repairQueue.backlog(), { due: 3, failing: 0 })
  const asked = await repairQueue.comparisonWanted()
  t.type(asked, 'string')
  await repairQueue.runNow()
  t.not(await repairQueue.comparisonWanted(), asked, 'each time is another one')
})

t.test('I27: only the newest token of the primary changes anything', async t => {
  const { metadata, repository } = await setUp(t, 'alone')
  t.equal(await metadata.newestToken('primary'), 0)
  const old = await metadata.issueToken('primary', 'one')
  t.equal(await metadata.issueToken('other', 'one'), 1, 'roles count apart')
  const token = await metadata.issueToken('primary', 'two')
  t.ok(token > old)
  t.equal(await metadata.newestToken('primary'), token)
  await put(metadata, commit(repository, 'a', { missing: ['s'] }))
  const [entry] = await metadata.dueRepairs(1)
  const map = clusterMap(1)
  await t.rejects(metadata.finishRepair(entry!.id, old), { code: 'LEASE_LOST' })
  await t.rejects(metadata.postponeRepairs([{ id: entry!.id, retryMs: 1, missing: [], attempts: 1 }], old), {
    code: 'LEASE_LOST',
  })
  await t.rejects(metadata.reclaimUnconfirmed([blob()], old), { code: 'LEASE_LOST' })
  await t.rejects(metadata.publishClusterMap(map, old), { code: 'LEASE_LOST' })
  await t.rejects(metadata.publishClusterMap(map, token + 1), { code: 'LEASE_LOST' })
  t.equal(await metadata.countRepairs(), 1)
  t.equal(await metadata.loadClusterMap(), undefined)
})

t.test('cluster maps are published by epoch', async t => {
  const { metadata } = await setUp(t, 'alone')
  const token = await metadata.issueToken('primary', 'me')
  t.equal(await metadata.loadClusterMap(), undefined)
  t.equal(await metadata.publishClusterMap(clusterMap(3), token), true)
  t.same(await metadata.loadClusterMap(), clusterMap(3))
  t.equal(await metadata.publishClusterMap(clusterMap(3), token), false)
  t.equal(await metadata.publishClusterMap(clusterMap(2), token), false)
  const outcomes = await Promise.all([5, 4, 5, 6].map(epoch => metadata.publishClusterMap(clusterMap(epoch), token)))
  t.ok(outcomes.includes(true))
  t.equal((await metadata.loadClusterMap())?.epoch, 6)
  t.equal((await metadata.loadClusterMap(5))?.epoch, 6)
  t.equal(await metadata.loadClusterMap(6), undefined, 'what is known is not fetched again')
})

t.test('unconfirmed blobs are fenced off, or have a row', async t => {
  const { metadata, repository } = await setUp(t)
  const token = await metadata.issueToken('primary', 'me')
  const kept = commit(repository, 'kept')
  await put(metadata, kept)
  const lost = commit(repository, 'lost')
  const rival = { ...kept.blob, generation: newGeneration() }
  const ask = () => metadata.reclaimUnconfirmed([lost.blob, kept.blob, rival], token)
  t.same(await ask(), ['reclaim', 'live', 'reclaim'])
  t.same(await ask(), ['reclaim', 'live', 'reclaim'], 'idempotent')
  t.same(await metadata.reclaimUnconfirmed([], token), [])
  t.match(await metadata.commitArtifact(lost), { outcome: 'blob-gone' }, 'I11: a late commit cannot revive it')
  t.equal(await metadata.findArtifact(repository.id, 'lost'), undefined)
  t.equal(await metadata.findBlob({ sha256: lost.blob.digest }), undefined)
  const anew = { ...lost, blob: { ...lost.blob, generation: newGeneration() } }
  t.match(await metadata.commitArtifact(anew), { outcome: 'created' }, 'the digest itself may come back')
  t.same(await ask(), ['reclaim', 'live', 'reclaim'])
})

t.test('texts that PostgreSQL cannot store fail alone', async t => {
  const { metadata, repository } = await setUp(t)
  const [good, bad, long] = await Promise.allSettled([
    metadata.commitArtifact(commit(repository, 'good')),
    metadata.commitArtifact(commit(repository, 'b\u0000d')),
    metadata.commitArtifact(commit(repository, Array.from({ length: 900 }, () => newGeneration()).join(''))),
  ])
  t.match(good, { value: { outcome: 'created' } })
  t.match(bad, { reason: { code: 'BAD_REQUEST' } })
  t.match(long, { reason: { code: 'PATH_INVALID' } })
  await t.rejects(metadata.findArtifact(repository.id, '\u0000'), { code: 'BAD_REQUEST' })
  await metadata.ping()
})

function clusterMap(epoch: number): ClusterMap {
  return sealClusterMap({
    format: 1,
    clusterId: 'c',
    epoch,
    replicas: 1,
    spread: 'strict',
    nodes: [{ id: 'n1' as NodeId, zone: 'a' as Zone, url: 'http://localhost:1' }],
    shards: [{ id: 's1' as ShardId, node: 'n1' as NodeId, weight: 1 }],
    table: new Uint16Array(4096),
    copies: 1,
  })
}
