/** Cleanup policies against a real PostgreSQL. */
import t, { type Test } from 'tap'
import { DownloadLog } from '../../../proxy/artifacts/download-log.ts'
import { Trash } from '../../../proxy/artifacts/trash.ts'
import type { CleanupConditions, CleanupPolicy, Download } from '../../../proxy/metadata/cleanup-types.ts'
import type { Metadata, Repository } from '../../../proxy/metadata/types.ts'
import { cleanup, previewCleanup } from '../../../proxy/tasks/cleanup.ts'
import type { JobParams } from '../../../proxy/tasks/job.ts'
import { identityPath, internalRepository } from '../../../proxy/tasks/keep-identity.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { commit, connect, open, put, silent } from '../metadata/fixtures.ts'

const server = await startTestPostgres(t)
const day = 24 * 3_600_000
const policy = (name: string, conditions: CleanupConditions, change: Partial<CleanupPolicy> = {}): CleanupPolicy => ({
  name, repositories: null, conditions, enabled: true, ...change,
}) // prettier-ignore

class World {
  readonly metadata: Metadata
  readonly repository: Repository
  readonly token: number
  readonly query: (sql: string, values?: unknown[]) => Promise<unknown>
  readonly published: string[] = []
  lines: string[] = []
  checkpoint: unknown
  onSave: () => void = () => {}

  private constructor(metadata: Metadata, repository: Repository, token: number, query: World['query']) {
    this.metadata = metadata
    this.repository = repository
    this.token = token
    this.query = query
  }

  static async start(t: Test): Promise<World> {
    const url = await server.createDatabase()
    const metadata = await open(t, url)
    const client = await connect(t, url)
    const repository = await metadata.createRepository({ name: 'r' })
    const token = await metadata.issueToken('primary', 'test')
    return new World(metadata, repository, token, (sql, values) => client.query(sql, values))
  }

  /** Artifacts and how many days ago they were written. */
  async write(paths: Readonly<Record<string, number>>): Promise<void> {
    for (const [path, age] of Object.entries(paths)) {
      await put(this.metadata, commit(this.repository, path))
      const age_ = `${age} days`
      await this.query('UPDATE artifacts SET updated_at = now() - $2::interval WHERE path = $1', [path, age_])
    }
  }

  async paths(): Promise<string[]> {
    return (await this.metadata.listArtifacts(this.repository.id, '', '', 10_000)).map(({ path }) => path)
  }

  async run(params: JobParams = {}, token = this.token): Promise<void> {
    this.lines = []
    const publisher = {
      prepare: async () => {},
      withdraw: () => {},
      publish: async (all: readonly { record: { op: string; path: string } }[]) =>
        void this.published.push(...all.map(({ record }) => `${record.op} ${record.path}`)),
    }
    const job = cleanup({ metadata: this.metadata, publisher })
    job.checkParams?.(params)
    await job.run({
      runId: 1,
      term: { token, signal: new AbortController().signal },
      checkpoint: this.checkpoint as never,
      params,
      save: async checkpoint => {
        this.checkpoint = JSON.parse(JSON.stringify(checkpoint)) as unknown
        this.onSave()
      },
      progress: () => {},
      log: line => void this.lines.push(line),
      pause: async () => {},
    })
    this.checkpoint = undefined
  }
}

t.test('what a policy says is previewed, and then goes into the trash', async t => {
  const world = await World.start(t)
  const { metadata, repository } = world
  await world.write({ 'a/1': 20, 'a/2': 10, 'a/3': 1, 'b/1': 30, c: 40 })
  await metadata.cleanup.createPolicy(policy('old', { unchangedDays: 9, path: '*/*' }, { enabled: false }), 'ann')
  const [off] = await metadata.cleanup.listPolicies()
  t.same(await previewCleanup(world, off!), {
    artifacts: 3, bytes: 48, first: ['r/a/1', 'r/a/2', 'r/b/1'], examined: 5, complete: true,
  }) // prettier-ignore
  await world.run()
  t.equal((await world.paths()).length, 5, 'one that is switched off deletes nothing')
  await t.rejects(world.run({ policy: 'old' }), { code: 'CONFLICT' })
  await metadata.cleanup.changePolicy({ ...off!, enabled: true }, 'ann')
  await world.run({ policy: 'old' })
  t.same(await world.paths(), ['a/3', 'c'])
  t.same(world.lines, ['old: 3 artifacts with 48 bytes deleted, into the trash'])
  t.same(world.published, ['delete a/1', 'delete a/2', 'delete b/1'], 'shards and caches were told')
  const trash = await metadata.trash.list({ repositoryId: repository.id, path: '' }, undefined, 10)
  t.same(trash.map(({ artifact, deletedBy }) => [artifact.path, deletedBy]), [['a/1', 'cleanup:old'], ['a/2', 'cleanup:old'], ['b/1', 'cleanup:old']]) // prettier-ignore
  await world.run()
  t.same(world.lines, ['old: 0 artifacts with 0 bytes deleted, into the trash'])
})

t.test('a policy of other repositories, newest versions, and the limit of a run', async t => {
  const world = await World.start(t)
  await world.metadata.cleanup.createPolicy(policy('none', { unchangedDays: 1 }, { repositories: ['other'] }), 'ann')
  await world.metadata.cleanup.createPolicy(policy('some', { keepNewest: { count: 2, of: 'folders' } }), 'ann')
  await world.write({ 'x/1/a': 9, 'x/1/b': 9, 'x/2/a': 8, 'x/2/b': 2, 'x/3/a': 7, 'x/4/a': 3 })
  await world.run({ artifactsMax: 2 })
  t.same(await world.paths(), ['x/2/a', 'x/2/b', 'x/3/a', 'x/4/a'])
  t.match(world.lines, ['none: 0 artifacts with 0 bytes deleted, into the trash', 'some: 2 artifacts', /stopped at 2/])
  await world.run({ artifactsMax: 3 })
  t.same(await world.paths(), ['x/2/a', 'x/2/b', 'x/4/a'])
  for (const params of [{ artifactsMax: 0 }, { policy: 3 }, { x: 1 }]) {
    await t.rejects(world.run(params), { code: 'BAD_REQUEST' })
  }
})

t.test(
  'what comes back from the trash pushes out nothing that is newer, and is not deleted the next night',
  async t => {
    const world = await World.start(t)
    const { metadata, repository } = world
    const publisher = { prepare: async () => {}, withdraw: () => {}, publish: async () => {} }
    const trash = new Trash({ metadata, publisher })
    const all = { 'v/1': 50, 'v/2': 40, 'v/3': 30, 'v/4': 20, 'v/5': 10 }
    await metadata.cleanup.createPolicy(policy('two', { keepNewest: { count: 2, of: 'artifacts' } }), 'ann')
    await world.write(all)
    const paths = async (): Promise<string> => (await world.paths()).map(path => path.slice(2)).join(' ')
    // The second time what was restored goes into the trash once more.
    for (const turn of ['once', 'again']) {
      await world.run()
      t.equal(await paths(), '4 5', turn)
      t.match(await trash.restore({ repository, path: 'v/' }, 'ann', false), { restored: 3, refused: 0 })
      await world.run()
      t.equal(await paths(), '1 2 3 4 5', `${turn}: who restored them has a week`)
      await world.query(
        `UPDATE artifacts SET updated_at = now() - interval '7 days' WHERE path IN ('v/1', 'v/2', 'v/3')`,
      )
    }
    await put(metadata, commit(repository, 'v/1'))
    await world.run()
    t.equal(await paths(), '1 5', 'what is written since is new')
  },
)

t.test('a restore over the same bytes leaves what is there as new as it is', async t => {
  const { metadata, repository } = await World.start(t)
  const one = await put(metadata, commit(repository, 'a'))
  await metadata.deleteArtifact({ repositoryId: repository.id, repository: 'r', path: 'a', user: 'ann' })
  const again = { blob: one.artifact.blob, blobIs: 'existing' } as const
  await put(metadata, commit(repository, 'a', again))
  const entries = await metadata.trash.newest({ repositoryId: repository.id, path: '' }, '', 10)
  await metadata.trash.restore(entries, { repository: 'r', user: 'ann', overwrite: true, redeploy: 'allow' })
  t.match(await metadata.cleanup.candidates(repository.id, '', 10), [{ path: 'a', writtenAt: null }])
})

t.test('I27: an old primary deletes nothing; a run that was cut off is resumed', async t => {
  const world = await World.start(t)
  await world.metadata.cleanup.createPolicy(policy('all', { unchangedDays: 1 }), 'ann')
  await world.write({ a: 2, b: 2, c: 0 })
  await t.rejects(world.run({}, world.token - 1), { code: 'LEASE_LOST' })
  t.equal((await world.paths()).length, 3)
  let saves = 0
  world.onSave = () => {
    if (++saves === 1) throw new HoldfastError('LEASE_LOST', 'gone')
  }
  await t.rejects(world.run(), { code: 'LEASE_LOST' })
  await world.run()
  t.same(await world.paths(), ['c'])
})

t.test('what was written since it was judged stays', async t => {
  const { metadata, repository, token, ...world } = await World.start(t)
  const before = (await put(metadata, commit(repository, 'a'))).artifact
  const same = (await put(metadata, commit(repository, 'b'))).artifact
  await put(metadata, commit(repository, 'a'))
  const doomed = [before, same].map(({ path, version, blob: { digest } }) => ({ path, version, digest }))
  t.match(await metadata.cleanup.remove(repository, doomed, 'cleanup:x', token), [{ path: 'b' }])
  t.ok(await metadata.findArtifact(repository.id, 'a'))
  t.same(world.published, [])
})

t.test('downloads are recorded once a day, and forgotten with their artifacts', async t => {
  const world = await World.start(t)
  const { metadata, repository } = world
  await world.write({ a: 90, b: 90, c: 90 })
  await world.query(`UPDATE settings SET value = '0' WHERE key = 'downloads_recorded_since'`)
  const download = (path: string): Download => ({ repositoryId: repository.id, path })
  await metadata.cleanup.recordDownloads([download('a'), download('gone')])
  await world.query(`UPDATE downloads SET day = day - 40 WHERE path = 'a'`)
  await metadata.cleanup.recordDownloads([download('b'), download('b2')])
  const seen = await metadata.cleanup.candidates(repository.id, '', 10)
  const { now } = await metadata.cleanup.facts()
  const midnight = now - (now % day)
  t.same(seen.map(({ downloadedAt }) => downloadedAt), [midnight - 40 * day, midnight, null]) // prettier-ignore
  await metadata.cleanup.recordDownloads([download('a'), download('b')])
  t.match(await metadata.cleanup.candidates(repository.id, '', 1), [{ downloadedAt: midnight }])

  await metadata.cleanup.createPolicy(policy('idle', { notDownloadedDays: 30 }), 'ann')
  await world.run()
  t.same(await world.paths(), ['a', 'b'])
  t.match(await world.query('SELECT path FROM downloads ORDER BY path'), { rows: [{ path: 'a' }, { path: 'b' }] })
})

t.test('a policy of all repositories leaves those of Holdfast itself alone', async t => {
  const world = await World.start(t)
  const { metadata } = world
  const internal = await metadata.createRepository({ name: internalRepository })
  await put(metadata, commit(internal, identityPath))
  await world.write({ a: 5 })
  await world.query(`UPDATE artifacts SET updated_at = now() - interval '5 days'`)
  await metadata.cleanup.createPolicy(policy('all', { unchangedDays: 1 }), 'ann')
  t.match(await previewCleanup(world, policy('all', { unchangedDays: 1 })), { artifacts: 1, first: ['r/a'] })
  await world.run()
  t.same(await world.paths(), [])
  t.ok(await metadata.findArtifact(internal.id, identityPath))
})

t.test('records of downloads are looked through page by page', async t => {
  const world = await World.start(t)
  const { metadata, repository, token } = world
  await world.write({ b: 0, d: 0 })
  await metadata.cleanup.recordDownloads(['a', 'b', 'c', 'd', 'e'].map(path => ({ repositoryId: repository.id, path })))
  const pages = []
  for (let after: Download | undefined = { repositoryId: 0, path: '' }; after !== undefined;) {
    after = await metadata.cleanup.forgetDownloads(after, 2, token)
    pages.push(after?.path)
  }
  t.same(pages, ['b', 'd', 'e', undefined])
  t.match(await world.query('SELECT path FROM downloads ORDER BY path'), { rows: [{ path: 'b' }, { path: 'd' }] })
})

t.test('policies: one of a name, changed, deleted', async t => {
  const { metadata } = await World.start(t)
  const one = policy('p', { keepNewest: { count: 3, of: 'artifacts' }, prerelease: 'only' }, { repositories: ['r'] })
  await metadata.cleanup.createPolicy(one, 'ann')
  await t.rejects(metadata.cleanup.createPolicy(one, 'ann'), { code: 'CONFLICT' })
  t.same(await metadata.cleanup.listPolicies(), [one])
  await t.rejects(metadata.cleanup.changePolicy({ ...one, name: 'q' }, 'ann'), { code: 'NOT_FOUND' })
  t.equal(await metadata.cleanup.deletePolicy('p'), true)
  t.equal(await metadata.cleanup.deletePolicy('p'), false)
})

t.test('the log of downloads: once per path and day, bounded, and patient', async t => {
  const written: string[][] = []
  let fault: Error | undefined
  let now = 10 * day
  const log = new DownloadLog({
    store: {
      recordDownloads: async downloads => {
        if (fault !== undefined) throw fault
        written.push(downloads.map(({ repositoryId, path }) => `${repositoryId}/${path}`))
      },
    },
    log: silent,
    now: () => now,
  })
  const [a, b]: { notedDay?: number }[] = [{}, {}]
  for (let i = 0; i < 5; i++) log.note(a!, 1, 'a')
  fault = new Error('away')
  await log.flush()
  log.note(b!, 1, 'b')
  fault = undefined
  await log.flush()
  t.same(written, [['1/a', '1/b']])
  log.note(a!, 1, 'a')
  await log.flush()
  t.equal(written.length, 1, 'nothing new that day')
  now += day
  await log.flush()
  log.note(a!, 1, 'a')
  await log.flush()
  t.same(written.splice(1), [['1/a']])
  for (const jump of [2 * day, -2 * day, 2 * day]) {
    now += jump
    await log.flush()
    if (jump > 0) log.note(a!, 1, 'a')
  }
  await log.close()
  t.same(written.splice(1), [['1/a'], ['1/a']], 'the clock had jumped to a day that comes only now')
  for (let i = 0; i < 50_001; i++) log.note({}, 1, `p${i}`)
  const last: { notedDay?: number } = {}
  log.note(last, 1, 'last')
  t.equal(last.notedDay, undefined, 'it is noted by its next download')
  await log.close()
  t.equal(written.slice(1).flat().length, 50_000)
})

t.test('what was written since it was judged stays, also with the same bytes', async t => {
  const { metadata, repository, token, query } = await World.start(t)
  const [again, same] = [commit(repository, 'a/1', { attributes: { build: 1 } }), commit(repository, 'a/2')]
  for (const one of [again, same]) await put(metadata, one)
  await query(`UPDATE artifacts SET updated_at = now() - interval '100 days'`)
  const judged = await metadata.cleanup.candidates(repository.id, '', 10)
  t.equal((await put(metadata, { ...again, attributes: { build: 2 } })).outcome, 'replaced')
  const gone = await metadata.cleanup.remove(repository, judged, 'cleanup:x', token)
  t.same(gone.map(({ path }) => path), ['a/2']) // prettier-ignore
  t.match(await metadata.findArtifact(repository.id, 'a/1'), { attributes: { build: 2 } })
})
