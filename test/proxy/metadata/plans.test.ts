/** What statements read: with many rows around, a page costs about as many rows as it has. */
import t from 'tap'
import * as artifacts from '../../../proxy/metadata/artifacts.ts'
import { CleanupTables } from '../../../proxy/metadata/cleanup.ts'
import { CollectionTables } from '../../../proxy/metadata/collection.ts'
import { Database } from '../../../proxy/metadata/database.ts'
import * as inspection from '../../../proxy/metadata/inspection.ts'
import { listFolder } from '../../../proxy/metadata/list-folder.ts'
import { pendingOutbox } from '../../../proxy/metadata/outbox.ts'
import { dueRepairs } from '../../../proxy/metadata/repairs.ts'
import { readSnapshot } from '../../../proxy/metadata/snapshot.ts'
import { statement, type Queryable, type Statement, type Values } from '../../../proxy/metadata/statement.ts'
import { TrashTables } from '../../../proxy/metadata/trash.ts'
import { listAudit } from '../../../proxy/metadata/users.ts'
import type { Digest } from '../../../shared/ids.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { connect, open, silent } from './fixtures.ts'

const server = await startTestPostgres(t)
const rows = 20_000

interface PlanNode {
  readonly 'Node Type': string
  readonly 'Actual Rows': number
  readonly 'Actual Loops': number
  readonly 'Rows Removed by Filter'?: number
  readonly Plans?: readonly PlanNode[]
}

/** Rows that the scans of a plan touched, also those that they threw away. */
function rowsRead(node: PlanNode): number {
  const below = (node.Plans ?? []).reduce((sum, plan) => sum + rowsRead(plan), 0)
  const isScan = /Scan$/.test(node['Node Type']) && !/^(CTE|Subquery|Function|WorkTable)/.test(node['Node Type'])
  if (!isScan) return below
  return below + (node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0)) * node['Actual Loops']
}

const literal = (value: unknown): string => {
  if (value === null) return 'NULL'
  const text = Array.isArray(value)
    ? `{${value.map(one => JSON.stringify(one)).join()}}`
    : `${value as string | number}`
  return `'${text.replaceAll("'", "''")}'`
}

t.test('a page reads no more than itself, however much lies around it', async t => {
  const url = await server.createDatabase()
  await open(t, url) // the schema
  const client = await connect(t, url)
  const digest = (of: string): string => `sha256(convert_to(${of}, 'UTF8'))`
  await client.query(`
    INSERT INTO repositories (name) VALUES ('r'), ('s');
    INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1)
      SELECT ${digest('i::text')}, 'g', 1, 1, '', '' FROM generate_series(1, ${rows}) i;
    INSERT INTO artifacts (repository_id, path, digest, version, created_by, created_at, updated_at, outbox_seq)
      SELECT 1, CASE WHEN i <= 20 THEN 'a/' || i ELSE 'z/' || i END, ${digest('i::text')}, i, 'u', now(), now(), i
      FROM generate_series(1, ${rows}) i;
    INSERT INTO trash_refs (repository_id, path, digest, version, created_by, created_at, updated_at, deleted_by, deleted_at, expires_at)
      SELECT 1, CASE WHEN i <= 20 THEN 'a/' || i ELSE 'z/' || i END, ${digest('i::text')}, i, 'u', now(), now(), 'd', now(), now() + interval '1 day'
      FROM generate_series(1, ${rows}) i;
    INSERT INTO lost_names (digest) SELECT digest FROM blobs;
    INSERT INTO downloads SELECT 1, path, now()::date FROM artifacts;
    INSERT INTO outbox SELECT i, 1, 'r', 'z/' || i, 'put', i, 'u', now() - interval '1 hour' FROM generate_series(21, ${rows}) i;
    INSERT INTO repairs (kind, subject, partition, digest, generation, missing, handoffs, due_at)
      SELECT 'blob', i, 1, ${digest('i::text')}, 'g', '{}', '{}', now() + interval '1 day' FROM generate_series(1, ${rows}) i;
    INSERT INTO audit (user_name, action, subject, outcome, address) SELECT 'u', 'a', 's', 'done', '' FROM generate_series(1, ${rows});
    ANALYZE`)
  const database = new Database(
    { url, poolSize: 3, commitLanes: 1 },
    { log: silent, prepare: async () => {}, onDown: () => {} },
  )
  t.teardown(() => database.close())
  await database.start()

  /** Rows that one run of the statement touches, with the settings of our connections. Changes nothing. */
  async function costOf(sql: Statement<object>, values: Values): Promise<number> {
    const stop = new Error('undo')
    let plan: PlanNode | undefined
    const explain = async (transaction: Queryable): Promise<never> => {
      const run = (text: string) => transaction.query(statement<{ 'QUERY PLAN': [{ Plan: PlanNode }] }>('', text))
      await run(`PREPARE cost AS ${sql.text}`)
      const args = values.length === 0 ? '' : `(${values.map(literal).join()})`
      plan = (await run(`EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE cost${args}`))[0]!['QUERY PLAN'][0].Plan
      await run('DEALLOCATE cost')
      throw stop
    }
    await database.transaction(explain).catch((error: unknown) => {
      if (error !== stop) throw error
    })
    return rowsRead(plan!)
  }

  /** What `use` asks of the database, each with its cost. */
  async function costs(use: (through: Database) => Promise<unknown>): Promise<Map<string, number>> {
    const asked: { sql: Statement<object>; values: Values }[] = []
    const query: Queryable['query'] = (sql, values = []) => {
      asked.push({ sql, values })
      return database.query(sql, values)
    }
    const spy = { query, read: query, transaction: (work: (to: Queryable) => unknown) => work({ query }) }
    await use(spy as unknown as Database)
    const found = new Map<string, number>()
    for (const { sql, values } of asked) {
      found.set(sql.name, Math.max(found.get(sql.name) ?? 0, await costOf(sql, values)))
    }
    return found
  }

  const target = { repositoryId: 1, repository: 'r', prefix: 'a/', user: 'u' }
  const folder = { repositoryId: 1, path: 'a/' }
  const ages = { minAgeMs: 0, holdMs: 0 }
  const middle = '80'.repeat(32) as Digest
  const token = 0
  await client.query(`INSERT INTO leaders VALUES ('primary', 0, 'test', now())`)
  const uses: Readonly<Record<string, (of: Database) => Promise<unknown>>> = {
    listFolder: of => listFolder(of, 1, 'a/', '', 100),
    listRoot: of => listFolder(of, 1, '', '', 100),
    listArtifacts: of => artifacts.listArtifacts(of, 1, 'a/', '', 100),
    listAllArtifacts: of => artifacts.listArtifacts(of, 1, '', '', 20),
    countArtifacts: of => artifacts.countArtifacts(of, 1, 'a/', 100),
    trashList: of => new TrashTables(of, () => 'i').list(folder, undefined, 100),
    trashListOfRepository: of =>
      new TrashTables(of, () => 'i').list({ repositoryId: 1, path: '' }, { path: 'z/15', id: 2 ** 40 }, 20),
    trashListOfOne: of => new TrashTables(of, () => 'i').list({ repositoryId: 1, path: 'a/1' }, undefined, 100),
    trashNewest: of => new TrashTables(of, () => 'i').newest(folder, '', 100),
    trashExpire: of => new TrashTables(of, () => 'i').expire(100, token),
    candidates: of => new CleanupTables(of).candidates(1, 'z/15', 20),
    recordDownloads: of => new CleanupTables(of).recordDownloads([{ repositoryId: 1, path: 'z/15' }]),
    forgetDownloads: of => new CleanupTables(of).forgetDownloads({ repositoryId: 1, path: 'z/15' }, 20, token),
    judge: of => new CollectionTables(of).judge(middle, 20, ages),
    judgeLosers: of => new CollectionTables(of).judgeLosers(middle, 20, ages),
    settleLosers: of => new CollectionTables(of).settleLosers([middle], token),
    addLosers: of => new CollectionTables(of).addLosers([middle], token),
    purging: of => new CollectionTables(of).purging(middle, 20),
    finishPurge: of =>
      new CollectionTables(of).finishPurge(
        [{ digest: middle, generation: 'g' as never, partition: 1, bytes: 1 }],
        token,
      ),
    pageOfBlobs: of => inspection.pageOfBlobs(of, middle, 20),
    pageOfReferences: of => inspection.pageOfReferences(of, { repositoryId: 1, path: 'z/15' }, 20),
    pendingOutbox: of => pendingOutbox(of, 0, 20),
    inspectBlobs: of => inspection.inspectBlobs(of, [middle]),
    inspectVersions: of => inspection.inspectVersions(of, [{ repository: 'r', path: 'z/15' }]),
    dueRepairs: of => dueRepairs(of, 20),
    urgentRepairs: of => dueRepairs(of, 20, 2),
    snapshotArtifacts: of =>
      readSnapshot(of, snapshot => snapshot.artifacts({ repositoryId: 1, path: 'z/15' }, 20, [2])),
    snapshotBlobs: of => readSnapshot(of, snapshot => snapshot.namedBlobs(middle, 20, [2])),
    trashPurge: of => new TrashTables(of, () => 'i').purge({ repositoryId: 1, path: 'a/1' }, 100),
    deleteFolder: of => artifacts.deleteFolder(of, target, 100),
    listAudit: of => listAudit(of, rows, 20),
  }
  for (const [name, use] of Object.entries(uses)) {
    for (const [sql, cost] of await costs(use)) t.ok(cost <= 200, `${name}: ${sql} reads ${cost} rows`)
  }
})
