import type { Digest } from '../../shared/ids.ts'
import type {
  BlobStory,
  BlobVerdict,
  CollectionAges,
  CollectionStore,
  Disarmed,
  DoomedBlob,
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
/** The fence outlives the row: a commit that slept all that time must not bring the generation back. */
const finish = statement(
  'gc-finish',
  `WITH gone AS (
    DELETE FROM blobs b USING unnest($1::bytea[], $2::text[]) AS d (digest, generation)
    WHERE b.digest = d.digest AND b.generation = d.generation AND b.state = 'purging'
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
