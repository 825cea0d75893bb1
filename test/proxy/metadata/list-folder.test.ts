import fc from 'fast-check'
import t from 'tap'
import type { FolderEntry, Metadata, Repository } from '../../../proxy/metadata/types.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { commit, connect, done, open } from './fixtures.ts'

const server = await startTestPostgres(t)
const url = await server.createDatabase()
const metadata = await open(t, url)

/** All pages of a folder, put together. */
async function listAll(one: Metadata, repository: Repository, prefix: string, limit: number): Promise<FolderEntry[]> {
  const entries: FolderEntry[] = []
  for (let after = ''; ;) {
    const page = await one.listFolder(repository.id, prefix, after, limit)
    entries.push(...page.entries)
    if (page.entries.length > limit || (page.next !== undefined && page.entries.length < limit))
      throw new Error('page size')
    if (page.next === undefined) return entries
    after = page.next
  }
}

/** What a folder holds, the slow way: names with a '/' behind folders, in byte order. */
function naive(paths: readonly string[], prefix: string): string[] {
  const names = paths
    .filter(path => path.startsWith(prefix) && path.length > prefix.length)
    .map(path => path.slice(prefix.length))
    .map(rest => (rest.includes('/') ? rest.slice(0, rest.indexOf('/') + 1) : rest))
  return [...new Set(names)].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
}

const name = fc.string({
  unit: fc.constantFrom('a', 'b', '-', '.', '0', '\u0001', ' ', 'é', '\uffee', '😀'),
  minLength: 1,
  maxLength: 3,
})
const path = fc.array(name, { minLength: 1, maxLength: 4 }).map(parts => parts.join('/'))

t.test('a folder lists what a naive reading of all paths lists', async t => {
  let count = 0
  const property = fc.asyncProperty(
    fc.uniqueArray(path, { maxLength: 40 }),
    fc.uniqueArray(path, { maxLength: 5 }),
    fc.integer({ min: 1, max: 7 }),
    async (paths, deleted, limit) => {
      const repository = await metadata.createRepository({ name: `r${count++}` })
      const results = await metadata.commitArtifacts([...paths, ...deleted].map(one => commit(repository, one)))
      if (results.results.some(result => !('artifact' in result))) throw new Error('not committed')
      for (const one of deleted) {
        await metadata.deleteArtifact({
          repositoryId: repository.id,
          repository: repository.name,
          path: one,
          user: 'u',
        })
      }
      const live = paths.filter(one => !deleted.includes(one))
      const prefixes = new Set([
        '',
        ...paths.flatMap(one => [...one.matchAll(/\//g)].map(at => one.slice(0, at.index + 1))),
      ])
      for (const prefix of prefixes) {
        const entries = await listAll(metadata, repository, prefix, limit)
        const found = entries.map(entry => (entry.kind === 'folder' ? `${entry.name}/` : entry.name))
        const expected = naive(live, prefix)
        if (found.join('\n') !== expected.join('\n')) {
          throw new Error(`${JSON.stringify(prefix)}: ${JSON.stringify(found)} instead of ${JSON.stringify(expected)}`)
        }
      }
    },
  )
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 2 ** 31)
  t.comment(`seed ${seed}`)
  await fc.assert(property, { numRuns: 60, seed })
  t.pass()
})

t.test('an entry tells size, time and digest of an artifact', async t => {
  const repository = await metadata.createRepository({ name: 'facts' })
  const result = await metadata.commitArtifact(commit(repository, 'f/x'))
  const { blob, updatedAt } = done(result).artifact
  t.same(await metadata.listFolder(repository.id, 'f/', '', 10), {
    entries: [{ name: 'x', kind: 'artifact', bytes: blob.bytes, updatedAt, digest: blob.digest }],
  })
  t.same(await metadata.listFolder(repository.id, '', '', 10), { entries: [{ name: 'f', kind: 'folder' }] })
  t.same(await metadata.listFolder(repository.id, 'none/', '', 10), { entries: [] })
})

t.test('a page costs what is on it, not what lies below or was deleted', async t => {
  const repository = await metadata.createRepository({ name: 'large' })
  const client = await connect(t, url)
  await client.query(`INSERT INTO blobs VALUES ('\\x00', 'g', 1, 1, '', '');`)
  await client.query(
    `INSERT INTO artifacts (repository_id, path, digest, version, created_by, created_at, updated_at, outbox_seq)
    SELECT $1, folder || '/' || n, CASE WHEN folder <> 'deleted' THEN '\\x00'::bytea END, n, 'u', now(), now(), n
    FROM generate_series(1, 20000) n, unnest(ARRAY['a', 'b', 'deleted', 'z/deep/er']) folder`,
    [repository.id],
  )
  const cost = async (prefix: string): Promise<number> => {
    const read = async (): Promise<number> => {
      await client.query('SELECT pg_stat_clear_snapshot()')
      const { rows } = await client.query<{ n: string }>(
        `SELECT idx_tup_read n FROM pg_stat_user_indexes WHERE indexrelname = 'artifacts_live'`,
      )
      return Number(rows[0]?.n)
    }
    // Each connection reports its figures about once a second, at the end of a statement.
    const one = await open(t, url)
    const before = await read()
    await one.listFolder(repository.id, prefix, '', 10)
    await one.close()
    let after = await read()
    for (let i = 0; i < 100 && after === before; i++) {
      await new Promise(resolve => setTimeout(resolve, 50))
      after = await read()
    }
    return after - before
  }
  for (const [prefix, costMax] of [
    ['', 10], // three folders of 20,000 and one of tombstones
    ['a/', 20],
  ] as const) {
    const entriesRead = await cost(prefix)
    t.ok(entriesRead > 0 && entriesRead <= costMax, `'${prefix}' read ${entriesRead} index entries`)
  }
})
