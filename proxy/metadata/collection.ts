import type { Digest } from '../../shared/ids.ts'
import type {
  BlobStory,
  BlobVerdict,
  CollectionAges,
  CollectionStore,
  CountedBlobs,
  Disarmed,
  DoomedBlob,
  JudgedLoser,
} from './collection-types.ts'
import type { Database } from './database.ts'
import { fenced } from './leaders.ts'
import { naming } from './rows.ts'
import { statement } from './statement.ts'
import type { Blob } from './types.ts'
import { bytea } from './value-parsers.ts'

const namesShown = 20

const verdict = `CASE
  WHEN b.state = 'purging' THEN 'purging'
  WHEN ${naming.artifact} THEN 'referenced'
  WHEN ${naming.trash} THEN 'trash'
  WHEN ${naming.pin} THEN 'pinned'
  WHEN b.state = 'condemned' AND b.state_since >= now() - $1 * interval '1 millisecond' THEN 'condemned'
  WHEN b.state = 'condemned' THEN 'due'
  WHEN greatest(b.created_at, b.state_since) >= now() - $2 * interval '1 millisecond' THEN 'young'
  ELSE 'unused' END AS verdict`

interface JudgedRow {
  readonly digest: Digest
  readonly bytes: number
  readonly verdict: BlobVerdict
}
type DoomedRow = DoomedBlob

const judge = statement<JudgedRow>(
  'gc-judge',
  `SELECT b.digest, b.bytes, ${verdict} FROM blobs b WHERE b.digest > $3 ORDER BY b.digest LIMIT $4`,
)
/**
 * 'OFFSET 0': each row is looked up by its digest. Names that were lost several times come several times; those of the last one that the
 * page has no room for are skipped with it.
 */
const judgeLosers = statement<JudgedLoser>(
  'gc-judge-losers',
  `SELECT l.digest, coalesce(b.bytes, 0) AS bytes, coalesce(b.verdict, 'gone') AS verdict
  FROM (SELECT DISTINCT n.digest FROM (SELECT digest FROM lost_names WHERE digest > $3 ORDER BY digest LIMIT $4) n) l
    LEFT JOIN LATERAL (SELECT b.bytes, ${verdict} FROM blobs b WHERE b.digest = l.digest OFFSET 0) b ON true
  ORDER BY l.digest`,
)
/** One statement, so one snapshot: of each row that is deleted it sees the loss, and a later loss has a row that it does not see. */
const settleLosers = statement<{ count: number }>(
  'gc-settle-losers',
  `WITH page AS MATERIALIZED (SELECT b.digest, b.id FROM lost_names b WHERE b.digest = ANY ($1::bytea[])
    AND (${naming.artifact} OR ${naming.trash} OR NOT EXISTS (SELECT FROM blobs x WHERE x.digest = b.digest OFFSET 0)) LIMIT $2),
  settled AS (DELETE FROM lost_names l USING page p WHERE l.digest = p.digest AND l.id = p.id RETURNING 1)
  SELECT count(*) AS count FROM settled`,
)
/** A digest that loses its name every second of a day has 86,400; a statement takes a few times as many. */
const settledPage = 50_000
const addLosers = statement(
  'gc-add-losers',
  `INSERT INTO lost_names (digest) SELECT d FROM unnest($1::bytea[]) d
  WHERE NOT EXISTS (SELECT FROM lost_names n WHERE n.digest = d OFFSET 0)`,
)
const loadCounted = statement<CountedBlobs>(
  'gc-counted',
  `SELECT c.blobs, c.bytes, c.at, c.incarnation, floor(extract(epoch FROM now()) * 1000)::bigint - c.at AS "ageMs"
  FROM settings s, jsonb_to_record(s.value::jsonb) AS c (blobs bigint, bytes bigint, at bigint, incarnation text)
  WHERE s.key = 'gc_counted'`,
)
const noteCounted = statement(
  'gc-note-counted',
  `INSERT INTO settings (key, value)
  VALUES ('gc_counted', json_build_object('blobs', $1::bigint, 'bytes', $2::bigint, 'incarnation', $3::text,
    'at', floor(extract(epoch FROM now()) * 1000)::bigint)::text)
  ON CONFLICT (key) DO UPDATE SET value = excluded.value`,
)
const takeFromCounted = statement(
  'gc-take-from-counted',
  `UPDATE settings s SET value = (s.value::jsonb || jsonb_build_object('blobs', greatest(0, (s.value::jsonb->>'blobs')::bigint - $1::bigint),
    'bytes', greatest(0, (s.value::jsonb->>'bytes')::bigint - $2::bigint)))::text
  WHERE s.key = 'gc_counted'`,
)
const condemn = statement<Pick<Blob, 'digest' | 'bytes'>>(
  'gc-condemn',
  `SELECT digest, bytes FROM condemn_blobs_1($1, $2 * interval '1 millisecond')`,
)
const purge = statement<DoomedRow>(
  'gc-purge',
  `SELECT digest, generation, partition, bytes FROM purge_blobs_1($1 * interval '1 millisecond', $2)`,
)
const purging = statement<DoomedRow>(
  'gc-purging',
  `SELECT digest, generation, partition, bytes FROM (
    SELECT digest, generation, partition, bytes FROM blobs WHERE state = 'purging'
    UNION ALL SELECT digest, generation, partition, bytes FROM owed_drops) doomed
  WHERE digest > $1 ORDER BY digest LIMIT $2`,
)
/**
 * The fence outlives the row: a commit that slept all that time must not bring the generation back. Rows are looked up by their digests
 * before their state is: among all that are dying it would be found slowly.
 */
const finish = statement(
  'gc-finish',
  `WITH dying AS MATERIALIZED (
    SELECT d.digest, d.generation FROM unnest($1::bytea[], $2::text[]) AS d (digest, generation),
      LATERAL (SELECT b.generation, b.state FROM blobs b WHERE b.digest = d.digest OFFSET 0) b
    WHERE b.generation = d.generation AND b.state = 'purging'),
  gone AS (
    DELETE FROM blobs b USING dying d WHERE b.digest = d.digest AND b.generation = d.generation
    RETURNING b.digest, b.generation),
  settled AS (
    DELETE FROM owed_drops o USING unnest($1::bytea[], $2::text[]) AS d (digest, generation)
    WHERE o.digest = d.digest AND o.generation = d.generation)
  INSERT INTO blob_fences (digest, generation) SELECT digest, generation FROM gone ON CONFLICT DO NOTHING`,
)
const explain = statement<
  JudgedRow & { created_at: number; since: number; names: string[]; trash: string[]; pin_count: number }
>(
  'gc-explain',
  `SELECT b.digest, b.bytes, ${verdict}, b.created_at, b.state_since AS since,
    ARRAY(SELECT r.name || '/' || a.path FROM artifacts a JOIN repositories r ON r.id = a.repository_id
      WHERE a.digest = b.digest LIMIT ${namesShown}) AS names,
    ARRAY(SELECT r.name || '/' || t.path FROM trash_refs t JOIN repositories r ON r.id = t.repository_id
      WHERE t.digest = b.digest LIMIT ${namesShown}) AS trash,
    (SELECT count(*) FROM pins p WHERE p.digest = b.digest AND p.expires_at > now()) AS pin_count
  FROM blobs b WHERE b.digest = $3`,
)
const loadDisarmed = statement<{ value: string }>('gc-disarmed', `SELECT value FROM settings WHERE key = 'gc_disarmed'`)
const disarm = statement(
  'gc-disarm',
  `INSERT INTO settings (key, value)
  VALUES ('gc_disarmed', json_build_object('reason', $1::text, 'by', $2::text, 'at', floor(extract(epoch FROM now()) * 1000))::text)
  ON CONFLICT (key) DO NOTHING`,
)
const arm = statement('gc-arm', `DELETE FROM settings WHERE key = 'gc_disarmed'`)
const newestVersion = statement<{ version: number }>(
  'gc-newest-version',
  'SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS version FROM artifact_versions',
)

export class CollectionTables implements CollectionStore {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  judge(after: Digest | '', limit: number, { minAgeMs, holdMs }: CollectionAges): Promise<readonly JudgedRow[]> {
    return this.#database.query(judge, [holdMs, minAgeMs, bytea(after), limit])
  }

  judgeLosers(
    after: Digest | '',
    limit: number,
    { minAgeMs, holdMs }: CollectionAges,
  ): Promise<readonly JudgedLoser[]> {
    return this.#database.query(judgeLosers, [holdMs, minAgeMs, bytea(after), limit])
  }

  async settleLosers(digests: readonly Digest[], token: number): Promise<void> {
    for (let count = settledPage; count >= settledPage;) {
      const values = [digests.map(bytea), settledPage]
      const [row] = await fenced(this.#database, token, transaction => transaction.query(settleLosers, values))
      count = row!.count
    }
  }

  async addLosers(digests: readonly Digest[], token: number): Promise<void> {
    await fenced(this.#database, token, transaction => transaction.query(addLosers, [digests.map(bytea)]))
  }

  async counted(): Promise<CountedBlobs | undefined> {
    const [row] = await this.#database.query(loadCounted)
    return row
  }

  async noteCounted(
    { blobs, bytes, incarnation }: Pick<CountedBlobs, 'blobs' | 'bytes' | 'incarnation'>,
    token: number,
  ): Promise<void> {
    const values = [blobs, bytes, incarnation]
    await fenced(this.#database, token, transaction => transaction.query(noteCounted, values))
  }

  async takeFromCounted({ blobs, bytes }: Pick<CountedBlobs, 'blobs' | 'bytes'>, token: number): Promise<void> {
    await fenced(this.#database, token, transaction => transaction.query(takeFromCounted, [blobs, bytes]))
  }

  condemn(
    digests: readonly Digest[],
    minAgeMs: number,
    token: number,
  ): Promise<readonly Pick<Blob, 'digest' | 'bytes'>[]> {
    return fenced(this.#database, token, transaction => transaction.query(condemn, [digests.map(bytea), minAgeMs]))
  }

  purge(holdMs: number, limit: number, token: number): Promise<readonly DoomedBlob[]> {
    return fenced(this.#database, token, transaction => transaction.query(purge, [holdMs, limit]))
  }

  purging(after: Digest | '', limit: number): Promise<readonly DoomedBlob[]> {
    return this.#database.query(purging, [bytea(after), limit])
  }

  async finishPurge(blobs: readonly DoomedBlob[], token: number): Promise<void> {
    const values = [blobs.map(blob => bytea(blob.digest)), blobs.map(blob => blob.generation)]
    await fenced(this.#database, token, transaction => transaction.query(finish, values))
  }

  async explain(digest: Digest, { minAgeMs, holdMs }: CollectionAges): Promise<BlobStory | undefined> {
    const [row] = await this.#database.query(explain, [holdMs, minAgeMs, bytea(digest)])
    if (row === undefined) return undefined
    const { bytes, since, trash } = row
    return {
      digest,
      bytes,
      verdict: row.verdict,
      createdAt: row.created_at,
      since,
      references: row.names,
      trash,
      pins: row.pin_count,
    }
  }

  async disarmed(): Promise<Disarmed | undefined> {
    const [row] = await this.#database.query(loadDisarmed)
    return row === undefined ? undefined : (JSON.parse(row.value) as Disarmed)
  }

  async disarm(reason: string, by: string): Promise<void> {
    await this.#database.query(disarm, [reason, by])
  }

  async arm(): Promise<void> {
    await this.#database.query(arm)
  }

  async newestVersion(): Promise<number> {
    const [row] = await this.#database.query(newestVersion)
    return row!.version
  }
}
