/** Deletions that can be undone, against a real PostgreSQL. */
import fc from 'fast-check'
import t, { type Test } from 'tap'
import type { Metadata, Repository } from '../../../proxy/metadata/types.ts'
import { emptyTrash } from '../../../proxy/tasks/empty-trash.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { blob, commit, connect, done, open, put } from './fixtures.ts'

const server = await startTestPostgres(t)
const ages = { minAgeMs: 0, holdMs: 0 }

interface World {
  readonly url: string
  readonly metadata: Metadata
  readonly repository: Repository
  readonly remove: (path: string, user?: string) => ReturnType<Metadata['deleteArtifact']>
  /** What the trash has below a place, as 'path version'. */
  readonly trashed: (path?: string) => Promise<string[]>
  readonly restore: (path: string, overwrite?: boolean) => Promise<string[]>
}

async function setUp(test: Test, trashDays?: number): Promise<World> {
  const url = await server.createDatabase()
  const metadata = await open(test, url)
  const repository = await metadata.createRepository({ name: 'r', ...(trashDays === undefined ? {} : { trashDays }) })
  const place = (path: string) => ({ repositoryId: repository.id, path })
  return {
    url,
    metadata,
    repository,
    remove: (path, user = 'dan') =>
      metadata.deleteArtifact({ repositoryId: repository.id, repository: 'r', path, user }),
    trashed: async (path = '') =>
      (await metadata.trash.list(place(path), undefined, 1_000)).map(
        ({ artifact }) => `${artifact.path} ${artifact.version}`,
      ),
    restore: async (path, overwrite = false) => {
      const entries = await metadata.trash.newest(place(path), '', 1_000)
      const how = { repository: 'r', user: 'rita', overwrite, redeploy: 'allow' } as const
      return (await metadata.trash.restore(entries, how)).map(
        ({ entry, result }) =>
          `${entry.artifact.path} ${result.outcome === 'refused' ? result.reason : result.outcome}`,
      )
    },
  }
}

t.test('what is deleted is in the trash, with who and when, and comes back as it was under a new version', async t => {
  const { metadata, repository, remove, trashed, restore } = await setUp(t)
  const written = commit(repository, 'a', { contentType: 'text/x', attributes: { k: 'v' } })
  const { artifact } = await put(metadata, written)
  const deleted = await remove('a')
  const [entry] = await metadata.trash.list({ repositoryId: repository.id, path: 'a' }, undefined, 10)
  t.same(entry?.artifact, artifact)
  t.equal(entry?.deletedBy, 'dan')
  t.equal(entry!.expiresAt - entry!.deletedAt, 7 * 24 * 3_600_000)
  t.match(await metadata.collection.explain(artifact.blob.digest, ages), { verdict: 'trash', trash: ['r/a'] })

  t.same(await restore('a'), ['a created'])
  const back = await metadata.findArtifact(repository.id, 'a')
  t.match(back, { blob: artifact.blob, contentType: 'text/x', attributes: { k: 'v' }, createdBy: 'rita' })
  t.ok(back!.version > deleted!.version, 'newer than its deletion: the shards keep the newer one')
  t.same(await trashed(), [])
  t.same(await restore('a'), [], 'there is nothing more')
  const owed = await metadata.pendingOutbox(0, 100)
  t.match(owed.at(-1), { op: 'put', path: 'a', version: back!.version }, 'the shards are owed the reference')
})

t.test('moves, overwriting and repositories without trash leave nothing in it', async t => {
  const { metadata, repository, remove, trashed } = await setUp(t)
  const { artifact } = await put(metadata, commit(repository, 'a'))
  const gone = { repositoryId: repository.id, repository: 'r', path: 'a', user: 'dan' }
  await metadata.commitArtifacts([commit(repository, 'b', { blob: artifact.blob, blobIs: 'existing' })], [gone])
  t.equal(await metadata.findArtifact(repository.id, 'a'), undefined)
  await put(metadata, commit(repository, 'b'))
  t.same(await trashed(), [])

  const changed = await metadata.changeRepository('r', { trashDays: 0 })
  t.equal(changed.trashDays, 0)
  await put(metadata, commit(repository, 'c'))
  await remove('b')
  await metadata.deleteFolder({ repositoryId: repository.id, repository: 'r', prefix: '', user: 'dan' }, 10)
  t.same(await trashed(), [])
  await metadata.changeRepository('r', { trashDays: 1 })
  await put(metadata, commit(repository, 'd'))
  await t.rejects(
    metadata.deleteArtifact({ ...gone, path: 'd' }, { match: [blob().digest] }),
    { code: 'PRECONDITION_FAILED' }, // prettier-ignore
  )
  t.same(await trashed(), [], 'what was not deleted is not in the trash')
  await remove('d')
  t.equal((await trashed()).length, 1)
})

t.test('a folder is restored by its newest deletions, but not over what lives', async t => {
  const { metadata, repository, trashed, restore } = await setUp(t)
  const target = { repositoryId: repository.id, repository: 'r', prefix: 'f/', user: 'dan' }
  const first = await put(metadata, commit(repository, 'f/a'))
  await metadata.deleteFolder(target, 10)
  const paths = ['f/a', 'f/b/c', 'f/d', 'f-', 'f0']
  for (const path of paths) await put(metadata, commit(repository, path))
  const versions = new Map(
    (await metadata.listArtifacts(repository.id, '', '', 10)).map(({ path, version }) => [path, version]),
  )
  t.equal((await metadata.deleteFolder(target, 2)).length, 2)
  t.equal((await metadata.deleteFolder(target, 2)).length, 1)
  const expected = [`f/a ${versions.get('f/a')}`, `f/a ${first.artifact.version}`, `f/b/c ${versions.get('f/b/c')}`]
  t.same(await trashed('f/'), [...expected, `f/d ${versions.get('f/d')}`], 'by path, newest first')
  t.same(await trashed('f/a'), expected.slice(0, 2), 'of one path alone')
  t.same(await trashed('f'), [], 'a folder is no artifact')

  const living = await put(metadata, commit(repository, 'f/d'))
  t.same(await restore('f/'), ['f/a created', 'f/b/c created', 'f/d exists'])
  t.same((await metadata.findArtifact(repository.id, 'f/d'))?.blob, living.artifact.blob)
  t.same(await trashed(), [`f/a ${first.artifact.version}`, `f/d ${versions.get('f/d')}`], 'what was refused stays')
  t.same(await restore('f/d', true), ['f/d replaced'])
})

t.test('the list goes on where a page ended', async t => {
  const { metadata, repository, remove } = await setUp(t)
  for (const path of ['a', 'b', 'a', 'c', 'a']) {
    await put(metadata, commit(repository, path))
    await remove(path)
  }
  const place = { repositoryId: repository.id, path: '' }
  const whole = (await metadata.trash.list(place, undefined, 10)).map(({ id }) => id)
  const paged: number[] = []
  for (let after: { path: string; id: number } | undefined; ;) {
    const [entry] = await metadata.trash.list(place, after, 1)
    if (entry === undefined) break
    paged.push(entry.id)
    after = { path: entry.artifact.path, id: entry.id }
  }
  t.same(paged, whole)
  t.equal(whole.length, 5)
})

t.test(
  'I12: what is in the trash outlives garbage collection; a condemned blob that is restored lives again',
  async t => {
    const { url, metadata, repository, remove, restore } = await setUp(t)
    const token = await metadata.issueToken('primary', 'test')
    const { artifact } = await put(metadata, commit(repository, 'a'))
    await remove('a')
    t.same(await metadata.collection.condemn([artifact.blob.digest], 0, token), [])
    const client = await connect(t, url)
    await client.query(`UPDATE blobs SET state = 'condemned', state_since = '2020-01-01'`)
    t.same(await restore('a'), ['a created'])
    t.match(await metadata.collection.explain(artifact.blob.digest, ages), { verdict: 'referenced' })
    t.same((await client.query('SELECT state FROM blobs')).rows, [{ state: 'live' }])
    t.same(await metadata.collection.purge(0, 10, token), [])

    await remove('a')
    await client.query(`UPDATE blobs SET state = 'purging'`)
    t.same(await restore('a'), ['a blob-gone'], 'never a reference to bytes that are being deleted')
  },
)

t.test('purged and expired entries are gone for good, and what they named is garbage', async t => {
  const { url, metadata, repository, remove, trashed } = await setUp(t)
  const blobs = new Map<string, string>()
  for (const path of ['a', 'f/a', 'f/b', 'g']) {
    blobs.set(path, (await put(metadata, commit(repository, path))).artifact.blob.digest)
    await remove(path)
  }
  const place = (path: string) => ({ repositoryId: repository.id, path })
  t.equal(await metadata.trash.purge(place('f'), 10), 0)
  t.equal(await metadata.trash.purge(place('f/'), 1), 1)
  t.equal(await metadata.trash.purge(place('f/'), 10), 1)
  t.equal((await trashed()).length, 2)
  const client = await connect(t, url)
  await client.query(`UPDATE trash_refs SET expires_at = now() - interval '1 s' WHERE path = 'a'`)

  const token = await metadata.issueToken('primary', 'test')
  const lines: string[] = []
  const run = (mine: number) =>
    emptyTrash(metadata).run({
      runId: 1,
      term: { token: mine, signal: new AbortController().signal },
      checkpoint: undefined,
      params: {},
      save: async () => {},
      progress: () => {},
      log: line => void lines.push(line),
      pause: async () => {},
    })
  await t.rejects(run(token - 1), { code: 'LEASE_LOST' }, 'I27: an older primary forgets nothing')
  await run(token)
  t.same(lines, ['1 deleted artifacts forgotten, which named 16 bytes'])
  t.equal((await trashed()).length, 1)
  t.match(await metadata.collection.explain(blobs.get('a') as never, ages), { verdict: 'unused' })
  t.match(await metadata.collection.explain(blobs.get('g') as never, ages), { verdict: 'trash' })
})

t.test('I12: at no moment between deletion, restoring and garbage collection does a wanted blob go', async t => {
  const { metadata, repository, remove, restore } = await setUp(t)
  const token = await metadata.issueToken('primary', 'test')
  const digests = []
  for (let i = 0; i < 10; i++) digests.push((await put(metadata, commit(repository, `p${i}`))).artifact.blob.digest)
  let over = false
  const collecting = (async () => {
    while (!over) {
      await metadata.collection.condemn(digests, 0, token)
      await metadata.collection.purge(0, 10, token)
    }
  })()
  for (let round = 0; round < 20; round++) {
    await Promise.all(digests.map((_, i) => remove(`p${i}`)))
    await restore('')
  }
  over = true
  await collecting
  const living = await metadata.listArtifacts(repository.id, '', '', 100)
  t.equal(living.length, 10)
  for (const digest of digests) t.match(await metadata.collection.explain(digest, ages), { verdict: 'referenced' })
})

t.test('counting goes over pages and ends where it is told', async t => {
  const { metadata, repository, remove } = await setUp(t)
  for (const path of ['a', 'f/a', 'f/b', 'f0', 'f/gone']) await put(metadata, commit(repository, path))
  await remove('f/gone')
  t.equal(await metadata.countArtifacts(repository.id, 'f/', Infinity), 2)
  t.equal(await metadata.countArtifacts(repository.id, '', Infinity), 4)
  t.equal(await metadata.countArtifacts(repository.id, '', 3), 3)
  t.equal(await metadata.countArtifacts(repository.id, 'none/', 3), 0)
})

t.test('whatever is written, deleted and restored, paths and trash follow the model', async t => {
  const { metadata, repository, remove, restore, trashed } = await setUp(t)
  const step = fc.record({
    op: fc.constantFrom('put', 'delete', 'restore', 'overwrite'),
    path: fc.constantFrom('a', 'b'),
  })
  let run = 0
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 15 }), async steps => {
      const folder = `run${++run}/`
      const living = new Map<string, string>()
      const trash = new Map<string, string[]>([['a', []], ['b', []]]) // prettier-ignore
      for (const { op, path } of steps) {
        const stack = trash.get(path)!
        const full = folder + path
        if (op === 'put') {
          living.set(path, done(await metadata.commitArtifact(commit(repository, full))).artifact.blob.digest)
        } else if (op === 'delete') {
          await remove(full)
          if (living.has(path)) stack.push(living.get(path)!)
          living.delete(path)
        } else {
          await restore(full, op === 'overwrite')
          if (stack.length > 0 && (op === 'overwrite' || !living.has(path))) living.set(path, stack.pop()!)
        }
      }
      for (const [path, stack] of trash) {
        t.equal((await metadata.findArtifact(repository.id, folder + path))?.blob.digest, living.get(path))
        t.equal((await trashed(folder + path)).length, stack.length)
      }
    }),
    { numRuns: 30 },
  )
})
