/** The metadata of artifacts in the product's own PostgreSQL and schema: bytes of each, and what the large queries touch. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { pino } from 'pino'
import { startEmbeddedPostgres } from '../../cli/embedded-postgres.ts'
import { findArtifact, listArtifacts } from '../../proxy/metadata/artifacts.ts'
import { CollectionTables } from '../../proxy/metadata/collection.ts'
import { callTimeoutMs, type Database } from '../../proxy/metadata/database.ts'
import { pageOfReferences } from '../../proxy/metadata/inspection.ts'
import { listFolder } from '../../proxy/metadata/list-folder.ts'
import { openMetadata } from '../../proxy/metadata/open-metadata.ts'
import { countRepairs, dueRepairs } from '../../proxy/metadata/repairs.ts'
import { readSnapshot } from '../../proxy/metadata/snapshot.ts'
import type { Statement, Values } from '../../proxy/metadata/statement.ts'
import { surveyPageMin } from '../../proxy/tasks/survey-blobs.ts'
import type { Digest } from '../../shared/ids.ts'
import { cpuSeconds } from '../processes.ts'
import { type Figure, figure, timed } from './measure.ts'
import { artifacts, known } from './site.ts'

const silent = pino({ level: 'silent' })
const judgedPage = 5_000
const ages = { minAgeMs: 3_600_000, holdMs: 86_400_000 }
const middle = '80'.padEnd(64, '0') as Digest

/** Twenty repositories; blobs in the order in which they came, which says nothing of their digests. */
const filling = [
  `INSERT INTO repositories (name, format) SELECT 'repository-' || i, 'raw' FROM generate_series(1, 20) i`,
  `INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1, created_at, state_since)
  SELECT sha256(i::text::bytea), lpad(to_hex(i), 12, '0'), (i * 7919::bigint) % 4096, 4096 + (i % 1000) * 1500,
    decode(md5(i::text), 'hex'), substr(sha256(('sha1 ' || i)::bytea), 1, 20), now() - interval '30 days', now() - interval '30 days'
  FROM generate_series(1, $1::int) i`,
  `INSERT INTO artifacts (repository_id, path, digest, version, content_type, attributes, created_by, created_at, updated_at, outbox_seq)
  SELECT i % 20 + 1, format('com/example/group-%s/component-%s/1.%s.%s/component-%s-1.%s.%s.jar', i % 997, i / 50 % 4099, i / 5 % 10, i,
    i / 50 % 4099, i / 5 % 10, i), sha256(i::text::bytea), nextval('artifact_versions'), 'application/java-archive', '{}', 'ci-builder',
    now(), now(), nextval('outbox_seqs')
  FROM generate_series(1, $1::int) i`,
  `INSERT INTO downloads (repository_id, path, day) SELECT repository_id, path, current_date FROM artifacts`,
]

export async function databasePart(rows: number): Promise<Figure[]> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-scale-pg-'))
  const server = await startEmbeddedPostgres({ folder, log: silent })
  try {
    // Makes the schema, by its migrations.
    await (await openMetadata({ url: server.url, log: silent })).close()
    const client = new pg.Client({ connectionString: server.url })
    await client.connect()
    try {
      for (const sql of filling) await client.query(sql, sql.includes('$1') ? [rows] : [])
      await client.query('VACUUM ANALYZE')
      return [
        figure(
          'artifacts filled in',
          rows,
          'count',
          'by INSERT … SELECT: one blob and one download of each, twenty repositories',
        ),
        ...(await sizeFigures(client, rows)),
        ...(await queryFigures(client, rows)),
        ...(await passFigures(server.url, known(server.pid), rows)),
      ]
    } finally {
      await client.end()
    }
  } finally {
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
}

async function sizeFigures(client: pg.Client, rows: number): Promise<Figure[]> {
  const figures: Figure[] = []
  let all = 0
  for (const table of ['blobs', 'artifacts', 'downloads']) {
    const { rows: found } = await client.query<{ heap: string; indexes: string; names: string }>(
      `SELECT pg_table_size($1::text::regclass) AS heap, pg_indexes_size($1::text::regclass) AS indexes,
        (SELECT string_agg(indexrelname || ' ' || pg_relation_size(indexrelid) / $2::int, ', ') FROM pg_stat_user_indexes WHERE relname = $1::text) AS names`,
      [table, rows],
    )
    const { heap, indexes, names } = known(found[0])
    all += Number(heap) + Number(indexes)
    figures.push(figure(`${table}: per row`, Number(heap) / rows, 'bytes'))
    figures.push(figure(`${table}: indexes per row`, Number(indexes) / rows, 'bytes', names))
  }
  return [
    ...figures,
    figure('metadata per artifact, indexes included', all / rows, 'bytes'),
    figure('metadata of 10^9 artifacts', (all / rows) * artifacts, 'bytes', 'linear: every row has its own index entries, B-trees gain one level'), // prettier-ignore
  ]
}

interface Plan {
  readonly 'Node Type': string
  readonly 'Relation Name'?: string
  readonly 'Shared Hit Blocks': number
  readonly 'Shared Read Blocks': number
  readonly Plans?: readonly Plan[]
}
interface Explained {
  readonly ms: number
  readonly blocks: number
  /** Tables that are read from end to end. */
  readonly scans: readonly string[]
}

/** Takes statements as the product makes them, and has them explained instead of answered. */
class ExplainingDatabase {
  readonly #client: pg.Client
  found: Explained = { ms: 0, blocks: 0, scans: [] }

  constructor(client: pg.Client) {
    this.#client = client
  }

  async query<Row extends object>({ name, text }: Statement<Row>, values: Values = []): Promise<Row[]> {
    await this.#client.query('SET plan_cache_mode = force_generic_plan')
    const explain = { text: `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${text}`, values: [...values] }
    for (let run = 1; run <= 2; run += 1) {
      const { rows } = await this.#client.query<{ 'QUERY PLAN': [{ Plan: Plan; 'Execution Time': number }] }>(explain)
      const [{ Plan: plan, 'Execution Time': ms }] = known(rows[0])['QUERY PLAN']
      this.found = { ms, blocks: plan['Shared Hit Blocks'] + plan['Shared Read Blocks'], scans: scansOf(plan) }
    }
    // Nothing can be counted by an explanation; the caller wants a number.
    return name === 'count-repairs' ? ([{ count: 0 }] as unknown as Row[]) : []
  }

  read = <Row extends object>(statement: Statement<Row>, values?: Values): Promise<Row[]> =>
    this.query(statement, values)
}

function scansOf(plan: Plan): string[] {
  const own = plan['Node Type'] === 'Seq Scan' ? [plan['Relation Name'] ?? '?'] : []
  return [...own, ...(plan.Plans ?? []).flatMap(scansOf)]
}

async function queryFigures(client: pg.Client, rows: number): Promise<Figure[]> {
  const explaining = new ExplainingDatabase(client)
  // Only `query` and `read` are used by these.
  const database = explaining as unknown as Database
  const collection = new CollectionTables(database)
  const i = Math.floor(rows / 2)
  const { rows: found } = await client.query<{ id: number; path: string }>(
    'SELECT repository_id AS id, path FROM artifacts WHERE version = $1 LIMIT 1',
    [i],
  )
  const { id, path } = known(found[0])
  const folder = `${path.split('/').slice(0, 3).join('/')}/`
  const queries: [name: string, run: () => Promise<unknown>][] = [
    ['find an artifact', () => findArtifact(database, id, path)],
    ['list the root of a repository, 1,000', () => listFolder(database, id, '', '', 1_000)],
    ['list a folder of folders, 1,000', () => listFolder(database, id, folder, '', 1_000)],
    ['page of a recursive copy or cleanup, 1,000', () => listArtifacts(database, id, '', path, 1_000)],
    [`garbage collection: a page of ${judgedPage}`, () => collection.judge(middle, judgedPage, ages)],
    ['garbage collection: what is being deleted', () => collection.purging('', 1_000)],
    ['repairs that are due', () => dueRepairs(database, 400)],
    ['repairs counted', () => countRepairs(database)],
    ['fsck: a page of 1,000 references', () => pageOfReferences(database, { repositoryId: id, path }, 1_000)],
    ['backup: a page of 1,000 artifacts', () => readSnapshotPage(explaining, id, path)],
  ]
  const figures: Figure[] = []
  for (const [name, run] of queries) {
    await run()
    const { ms, blocks, scans } = explaining.found
    const scanned = scans.length === 0 ? 'by index' : `reads ${[...new Set(scans)].join(', ')} from end to end`
    figures.push(figure(`query: ${name}`, ms, 'ms', `${blocks} blocks touched; ${scanned}`))
  }
  return figures
}

async function readSnapshotPage(explaining: ExplainingDatabase, repositoryId: number, path: string): Promise<unknown> {
  const queryable = {
    query: async <Row extends object>(statement: Statement<Row>, values?: Values): Promise<Row[]> => {
      if (statement.name === 'snapshot-time') return [{ time: 0 }] as unknown as Row[]
      return explaining.query(statement, values)
    },
  }
  return readSnapshot(queryable, snapshot => snapshot.artifacts({ repositoryId, path }, 1_000))
}

/** The look at all blobs, as garbage collection takes it once a week, without its pauses. */
async function passFigures(url: string, pid: number, rows: number): Promise<Figure[]> {
  const metadata = await openMetadata({ url, log: silent })
  try {
    const before = cpuSeconds([pid])
    const pass = await timed(async () => {
      let judged = 0
      for (let after: Digest | '' = ''; ;) {
        const page = await metadata.collection.judge(after, judgedPage, ages)
        const last = page.at(-1)
        if (last === undefined) return judged
        judged += page.length
        after = last.digest
      }
    })
    const serverMs = (cpuSeconds([pid]) - before) * 1_000
    if (pass.result !== rows) throw new Error(`${pass.result} blobs judged instead of ${rows}`)
    const perBlob = (serverMs + pass.cpuMs) / rows
    return [
      figure('garbage collection: one pass, CPU per blob', perBlob, 'ms', `PostgreSQL ${(serverMs / rows).toFixed(4)} ms, proxy ${(pass.cpuMs / rows).toFixed(4)} ms`), // prettier-ignore
      figure(
        'garbage collection: the weekly pass over 10^9, CPU',
        (perBlob * artifacts) / 1_000,
        's',
        'with all of it in memory',
      ),
      figure('garbage collection: the weekly pass over 10^9, from a disk of 0.1 ms', (artifacts * 0.1) / 1_000, 's', 'one random read of the table of blobs for each: its order is not that of digests'), // prettier-ignore
      figure('garbage collection: longest random read a page can stand', callTimeoutMs / surveyPageMin, 'ms', `a call to PostgreSQL ends after ${callTimeoutMs} ms: slower disks than this fail pages of ${surveyPageMin}, the smallest`), // prettier-ignore
    ]
  } finally {
    await metadata.close()
  }
}
