/**
 * The names that the old and the new owners of a moving partition hold, side by side, without asking all of them: where the old ones have
 * said that they hold the same, one speaks for all, and a new one that has said that it holds nothing is not asked what. Of nearly empty
 * partitions, which most are, the questions are what moving costs (I34).
 *
 * What was said was said after nodes began to refuse writes by maps from before the change, and what is written since goes to the new owners:
 * nothing is missed. A new owner that was brought something is asked itself, so that nobody's word is taken for it that it is there.
 */
import type { ShardId } from '../../shared/ids.ts'
import { emptySet, sameSet, type SetSummary } from '../../shared/set-digest.ts'
import type { Entry } from '../../shared/wire.ts'
import type { ShardSummary } from './compare-sets.ts'
import type { MoveCalls } from './move-calls.ts'
import { namesInStep, type NamesStretch } from './shard-contents.ts'

/** Of larger ones the questions are the least of it. */
const namesMax = 500

export interface Owners {
  /** Old ones that answer. */
  readonly from: readonly ShardId[]
  readonly to: readonly ShardId[]
  /** What they have said that they hold. */
  readonly summaries: ReadonlyMap<ShardId, ShardSummary>
  /** New ones that were brought something since. */
  readonly filled: ReadonlySet<ShardId>
}

export interface Spokesman {
  readonly shard: ShardId
  /** Holds what all old owners hold, as they said. */
  readonly set: SetSummary
  /** New owners that are asked as well; the others hold the same as it, or nothing. */
  readonly others: readonly ShardId[]
}

/** Undefined: the old owners differ, or hold more than a few names, so that all are asked. */
export function spokesmanOf(partition: number, kind: 'blobs' | 'references', owners: Owners): Spokesman | undefined {
  const { from, to, filled } = owners
  const [shard] = from
  if (shard === undefined) return undefined
  const set = setOf(shard, partition, kind, owners)
  if (set.count > namesMax || !from.every(one => sameSet(setOf(one, partition, kind, owners), set))) return undefined
  const others = to.filter(one => {
    const own = setOf(one, partition, kind, owners)
    return filled.has(one) || (own.count > 0 && !sameSet(own, set))
  })
  return { shard, set, others }
}

/** As `namesInStep` of all of them. */
export async function* namesOfOwners(
  calls: Pick<MoveCalls, 'names'>,
  { partition, of }: { readonly partition: number; readonly of: 'blobs' | 'references' },
  owners: Owners,
): AsyncGenerator<NamesStretch> {
  const { from, to } = owners
  const all = [...new Set([...from, ...to])]
  const list: MoveCalls['names'] = (shard, page) => calls.names(shard, page)
  const expected = Math.max(...all.map(shard => setOf(shard, partition, of, owners).count))
  const spokesman = spokesmanOf(partition, of, owners)
  if (spokesman === undefined) {
    yield* namesInStep(list, all, { partition, of, expected })
  } else {
    const { shard, set, others } = spokesman
    const asked = [...new Set([shard, ...others])]
    for await (const { after, held } of namesInStep(list, asked, { partition, of, expected })) {
      const names = held.get(shard) ?? new Map<string, Entry>()
      // It has lost something since, or another one has so much that this is only a part: all are asked.
      if (after === undefined && names.size < set.count) {
        yield* namesInStep(list, all, { partition, of, expected })
        return
      }
      const namesOf = (one: ShardId): ReadonlyMap<string, Entry> => {
        return held.get(one) ?? (setOf(one, partition, of, owners).count === 0 ? new Map() : names)
      }
      yield { after, held: new Map(all.map(one => [one, namesOf(one)])) }
    }
  }
}

function setOf(
  shard: ShardId,
  partition: number,
  kind: 'blobs' | 'references',
  { summaries }: Pick<Owners, 'summaries'>,
): SetSummary {
  return summaries.get(shard)?.get(partition)?.[kind] ?? emptySet
}
