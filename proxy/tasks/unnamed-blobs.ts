/** Which of the copies on shards PostgreSQL knows nothing of, or wants gone. */
import type { DoomedBlob } from '../metadata/collection-types.ts'
import type { Metadata } from '../metadata/types.ts'
import type { Term } from './primary.ts'

export interface UnnamedDeps {
  readonly metadata: Pick<Metadata, 'inspectBlobs' | 'reclaimUnconfirmed'>
}

export interface Copy extends DoomedBlob {
  /** When it was written, by the clock of its node or of the proxy that brought it; ms since 1970. */
  readonly time: number
}

/** A copy without a row may be an upload that is just being committed. */
export const leftoverAgeMsMin = 10_000

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
  const unknown = copies.filter(one => stateOf(one) === undefined && Date.now() - one.time >= minAgeMs)
  const verdicts = unknown.length === 0 ? [] : await metadata.reclaimUnconfirmed(unknown, term.token)
  return { unnamed: unknown.filter((_, index) => verdicts[index] === 'reclaim'), purging }
}
