/** The queue of repairs as people see it: how much waits, for whom, and that it goes on now instead of later. */
import type { Digest } from '../../shared/ids.ts'
import type { Database } from './database.ts'
import { statement } from './statement.ts'
import { bytea } from './value-parsers.ts'

export interface RepairBacklog {
  /** Blobs and references with fewer than R copies. */
  readonly blobs: number
  readonly references: number
  /** What the blobs' missing copies have together; extrapolated from two thousand of them. */
  readonly bytes: number
  /**
   * Of all: those that are tried as soon as there is time, those that have failed and wait for another attempt, and those that lack a copy
   * on a shard that is away, which count as neither.
   */
  readonly due: number
  readonly failing: number
  readonly waiting: number
  /** Of the entry that waits longest; null: none. */
  readonly oldestAgeMs: number | null
  /** Shards that lack most; fifty at most. */
  readonly shards: readonly { readonly shard: string; readonly copies: number }[]
}

/** No owner has a good copy of it. */
export interface LostBlob {
  readonly digest: Digest
  /** `<repository>/<path>`; five at most. */
  readonly names: readonly string[]
}

const totals = statement<Omit<RepairBacklog, 'bytes' | 'oldestAgeMs' | 'shards'> & { oldest_ms: number | null }>(
  'repair-totals',
  `SELECT count(*) FILTER (WHERE kind = 'blob') AS blobs, count(*) FILTER (WHERE kind = 'reference') AS references,
    count(*) FILTER (WHERE due_at <= now() AND NOT missing && $1::text[]) AS due,
    count(*) FILTER (WHERE attempts > 0 AND NOT missing && $1::text[]) AS failing,
    count(*) FILTER (WHERE missing && $1::text[]) AS waiting,
    (extract(epoch FROM now() - min(created_at)) * 1000)::bigint AS oldest_ms
  FROM repairs`,
)
const meanBytes = statement<{ mean: number }>(
  'repair-mean-bytes',
  `SELECT coalesce(avg(b.bytes * cardinality(r.missing)), 0)::bigint AS mean
  FROM (SELECT digest, missing FROM repairs WHERE kind = 'blob' LIMIT 2000) r JOIN blobs b ON b.digest = r.digest`,
)
const lacking = statement<{ shard: string; copies: number }>(
  'repair-shards',
  `SELECT shard, count(*) AS copies FROM repairs, unnest(missing) AS shard GROUP BY shard
  ORDER BY copies DESC, shard LIMIT 50`,
)
const names = statement<LostBlob>(
  'repair-names',
  `SELECT d.digest, ARRAY(SELECT r.name || '/' || a.path FROM artifacts a JOIN repositories r ON r.id = a.repository_id
    WHERE a.digest = d.digest LIMIT 5) AS names
  FROM unnest($1::bytea[]) AS d (digest)`,
)
/** There may be millions: a page of these is far from what a statement may take. */
const hurriedPage = 20_000
const hurry = statement<{ last: number | null; count: number }>(
  'hurry-repairs',
  `WITH page AS MATERIALIZED (SELECT id FROM repairs WHERE id > $1 ORDER BY id LIMIT $3),
  hurried AS (
    UPDATE repairs r SET due_at = now(), attempts = 0 FROM page p
    WHERE r.id = p.id AND (r.due_at > now() OR r.attempts > 0) AND ($2::text[] IS NULL OR r.missing && $2::text[]) RETURNING 1)
  SELECT (SELECT max(id) FROM page) AS last, (SELECT count(*) FROM hurried) AS count`,
)
const want = statement(
  'want-comparison',
  `INSERT INTO settings (key, value) VALUES ('comparison_wanted', clock_timestamp()::text)
  ON CONFLICT (key) DO UPDATE SET value = excluded.value`,
)
const wanted = statement<{ value: string }>(
  'comparison-wanted',
  `SELECT value FROM settings WHERE key = 'comparison_wanted'`,
)

export class RepairQueue {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  /** `away`: shards that take nothing for now. */
  async backlog(away: readonly string[] = []): Promise<RepairBacklog> {
    const [[row], [sample], shards] = await Promise.all([
      this.#database.query(totals, [away]),
      this.#database.query(meanBytes),
      this.#database.query(lacking),
    ])
    const { oldest_ms: oldestAgeMs, ...counts } = row!
    return { ...counts, bytes: Math.round(counts.blobs * sample!.mean), oldestAgeMs, shards }
  }

  /** What names these blobs. */
  namesOf(digests: readonly Digest[]): Promise<readonly LostBlob[]> {
    return this.#database.query(names, [digests.map(bytea)])
  }

  /** Whatever waits for another attempt is due, and the primary compares all shards once more. Resolves with how many waited. */
  async runNow(): Promise<number> {
    const count = await this.hurry()
    await this.#database.query(want)
    return count
  }

  /** What waits for one of these shards (absent: for any) is due now. Resolves with how many that were. */
  async hurry(shards?: readonly string[]): Promise<number> {
    let count = 0
    for (let after = 0; ;) {
      const [row] = await this.#database.query(hurry, [after, shards ?? null, hurriedPage])
      count += row!.count
      if (row!.last === null) return count
      after = row!.last
    }
  }

  /** Another value than before: somebody has asked for a comparison since. */
  async comparisonWanted(): Promise<string | undefined> {
    const [row] = await this.#database.query(wanted)
    return row?.value
  }
}
