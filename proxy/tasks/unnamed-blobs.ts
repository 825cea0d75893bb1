/** Which of the copies on shards PostgreSQL knows nothing of, or wants gone. */
import type { DoomedBlob } from '../metadata/collection-types.ts'
import type { Metadata } from '../metadata/types.ts'
import type { Term } from './primary.ts'

export interface UnnamedDeps {
  readonly metadata: Pick<Metadata, 'inspectBlobs' | 'reclaimUnconfirmed'>
}

/** What shards tell of the age of a copy. */
export interface Stay {
  /** When it was written, by the clock of its node or of the proxy that brought it; ms since 1970. */
  readonly time?: number | undefined
  /** For how long at least a shard has had it, in ms by its node's monotonic clock. */
  readonly heldMs?: number | undefined
}

export type Copy = DoomedBlob & Stay

/** A copy without a row may be an upload that is just being committed. */
export const leftoverAgeMsMin = 10_000

/** Of all copies together: the generation was made before the first of them. */
export function stayOf(told: readonly Stay[]): Stay {
  const held = told.flatMap(({ heldMs }) => heldMs ?? [])
  const time = Math.min(...told.map(one => one.time ?? 0))
  return held.length === 0 ? { time } : { time, heldMs: Math.max(...held) }
}

/**
 * A copy without a row is a leftover, or of an upload that is about to be committed, for which its generation was made: bytes for an
 * older generation have a row, which is pinned meanwhile. Whether a shard has the copy as confirmed tells nothing, since a change of
 * topology brings new owners also what is in hand. So its age has to tell, and not by the times in records, which are of other processes,
 * whose clocks may be days off (I29): the shards say for how long they have had it, never too much. After a start of its nodes a leftover
 * stays a while longer. Only where all that answer are of the release before, the times have to do.
 *
 * Whatever is believed, nothing acknowledged is lost: the generation is fenced off, and a commit that comes after all is refused. A
 * database that lacks rows, since it was restored from an older copy, is kept out of use until it has caught up.
 */
function isOld({ time = 0, heldMs }: Stay, minAgeMs: number): boolean {
  return (heldMs ?? Date.now() - time) >= minAgeMs
}

/**
 * `unnamed`: no row has their generation, and from now on no commit can bring it to life. `purging`: they have been condemned for good,
 * and who purges tells their shards. `minAgeMs`: younger ones without a row are neither, they may still get it. Rejects with LEASE_LOST,
 * METADATA_UNAVAILABLE.
 */
export async function unwantedAmong<One extends Copy>(
  { metadata }: UnnamedDeps,
  copies: readonly One[],
  minAgeMs: number,
  term: Pick<Term, 'token'>,
): Promise<{ readonly unnamed: readonly One[]; readonly purging: readonly One[] }> {
  if (copies.length === 0) return { unnamed: [], purging: [] }
  const rows = await metadata.inspectBlobs([...new Set(copies.map(({ digest }) => digest))])
  const states = new Map(rows.map(({ digest, generation, state }) => [`${digest}.${generation}`, state]))
  const stateOf = ({ digest, generation }: One): string | undefined => states.get(`${digest}.${generation}`)
  const purging = copies.filter(one => stateOf(one) === 'purging')
  const unknown = copies.filter(one => stateOf(one) === undefined && isOld(one, minAgeMs))
  const verdicts = unknown.length === 0 ? [] : await metadata.reclaimUnconfirmed(unknown, term.token)
  return { unnamed: unknown.filter((_, index) => verdicts[index] === 'reclaim'), purging }
}
