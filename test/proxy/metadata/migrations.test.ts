import { fork } from 'node:child_process'
import { once } from 'node:events'
import t from 'tap'
import { migrations } from '../../../proxy/metadata/migrations/index.ts'
import type { Migration } from '../../../proxy/metadata/migrations/migration.ts'
import { checksumOf, planMigrations } from '../../../proxy/metadata/migrate.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { commit, connect, open, put } from './fixtures.ts'
import { builtFile } from '../../support/paths.ts'

function migration(number: number, change: Partial<Migration> = {}): Migration {
  return { number, name: `m${number}`, schema: 1, phase: 'expand', sql: `CREATE TABLE t${number} ()`, ...change }
}
const applied = (one: Migration) => ({ ...one, checksum: checksumOf(one) })

t.test('planMigrations', async t => {
  const [one, two, three] = [migration(1), migration(2), migration(3, { schema: 2 })] as const
  const plan = (known: Migration[], done: Migration[]): number[] =>
    planMigrations(known, done.map(applied)).map(step => step.number)
  t.same(plan([three, one, two], []), [1, 2, 3], 'by number')
  t.same(plan([one, two, three], [one, three]), [2], 'a number that was left out is caught up')
  t.same(plan([one, two], [one, two, three]), [], 'one version ahead is served')
  const later = migration(4, { schema: 3 })
  t.throws(() => plan([one, two], [one, two, three, later]), { code: 'SCHEMA_UNSUPPORTED' })
  t.throws(() => plan([one], [{ ...one, sql: 'SELECT 1' }]), { code: 'SCHEMA_UNSUPPORTED', data: { number: 1 } })
})

t.test('the list of migrations is in order and names each number once', async t => {
  const numbers = migrations.map(one => one.number)
  t.same(
    numbers,
    [...new Set(numbers)].sort((a, b) => a - b),
  )
})

t.test('against a server', async t => {
  const server = await startTestPostgres(t)

  t.test('four processes that start at once apply each step once', async t => {
    const url = await server.createDatabase()
    const children = Array.from({ length: 4 }, () => fork(builtFile('test/proxy/metadata/open-once.ts'), [url]))
    const answers = await Promise.all(children.map(child => once(child, 'message')))
    t.same(
      answers.map(([answer]: unknown[]) => (answer as { error?: string }).error),
      [undefined, undefined, undefined, undefined],
    )
    t.equal(new Set(answers.map(([answer]: unknown[]) => JSON.stringify(answer))).size, 1, 'and agree who they are')
    const client = await connect(t, url)
    const { rows } = await client.query('SELECT number, checksum FROM schema_migrations ORDER BY number')
    t.same(
      rows,
      migrations.map(one => ({ number: one.number, checksum: checksumOf(one) })),
    )
  })

  t.test('a second start changes nothing; an altered or far newer schema is refused', async t => {
    const url = await server.createDatabase()
    const first = await open(t, url)
    const repository = await first.createRepository({ name: 'r' })
    await put(first, commit(repository, 'a'))
    const second = await open(t, url)
    t.ok(await second.findArtifact(repository.id, 'a'))
    const client = await connect(t, url)
    const rewrite = (sql: string) => client.query(sql)

    await rewrite(`INSERT INTO schema_migrations (number, name, schema, phase, checksum)
      SELECT 900, 'next', max(schema) + 1, 'expand', '' FROM schema_migrations`)
    await (await open(t, url)).ping()
    await rewrite('UPDATE schema_migrations SET schema = schema + 1 WHERE number = 900')
    await t.rejects(open(t, url), { code: 'SCHEMA_UNSUPPORTED' })
    await rewrite('DELETE FROM schema_migrations WHERE number = 900')
    await rewrite(`UPDATE schema_migrations SET checksum = 'x' WHERE number = 1`)
    await t.rejects(open(t, url), { code: 'SCHEMA_UNSUPPORTED', data: { number: 1 } })
    await second.ping()
  })

  t.test('a step that needs a table which a backup reads gives way, and is done later', async t => {
    const url = await server.createDatabase()
    const metadata = await open(t, url)
    const reader = await connect(t, url)
    await reader.query('BEGIN; SELECT FROM repositories')
    const step = migration(902, { sql: 'ALTER TABLE repositories ADD COLUMN later integer' })
    const known = [...migrations, step]
    const upgraded = open(t, url, { migrations: known })
    await t.rejects(upgraded, { code: 'METADATA_UNAVAILABLE', data: { sqlState: '55P03' } })
    await metadata.createRepository({ name: 'meanwhile' })
    await reader.query('COMMIT')
    await (await open(t, url, { migrations: known })).ping()
  })

  t.test('a proxy of the release before goes on while artifacts get columns', async t => {
    const url = await server.createDatabase()
    const older = await open(t, url, { migrations: migrations.filter(({ number }) => number < 15) })
    const repository = await older.createRepository({ name: 'r' })
    const change = async (path: string): Promise<void> => {
      await put(older, commit(repository, path))
      await put(older, commit(repository, path))
      await older.deleteArtifact({ repositoryId: repository.id, repository: 'r', path, user: 'ann' })
    }
    // Whatever its sessions have prepared is of the table as it was.
    await Promise.all(Array.from({ length: 20 }, (_, index) => change(`before/${index}`)))
    await open(t, url)
    await Promise.all(Array.from({ length: 20 }, (_, index) => change(`after/${index}`)))
    const place = { repositoryId: repository.id, path: 'after/' }
    const entries = await older.trash.newest(place, '', 100)
    t.equal(entries.length, 20)
    await older.trash.restore(entries, { repository: 'r', user: 'ann', overwrite: false, redeploy: 'allow' })
    t.equal((await older.listArtifacts(repository.id, 'after/', '', 100)).length, 20)
  })

  t.test('a step that fails leaves nothing of itself behind', async t => {
    const url = await server.createDatabase()
    const broken = migration(901, { sql: 'CREATE TABLE half (); SELECT 1/0' })
    await t.rejects(open(t, url, { migrations: [...migrations, broken] }), { code: 'INTERNAL' })
    const client = await connect(t, url)
    const { rows } = await client.query(`SELECT to_regclass('half') half, to_regclass('artifacts') artifacts`)
    t.same(rows, [{ half: null, artifacts: null }])
    await (await open(t, url)).ping()
  })
})
