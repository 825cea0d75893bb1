/** Which repairs cannot wait: those of what has one copy left. */
import type { ShardId } from '../../shared/ids.ts'
import type { Metadata, RepairEntry } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'

/** A look at all that is due, while there was nothing urgent. */
const lookEveryMs = 5_000

/**
 * Is there one copy at most where anybody could get it? `owners`: of the partition, now and before; `isThere`: the shard exists, and its node
 * is not known to be down.
 */
export function isLastCopy(
  { missing, handoffs }: Pick<RepairEntry, 'missing' | 'handoffs'>,
  owners: readonly ShardId[],
  isThere: (shard: ShardId) => boolean,
): boolean {
  const lacking = new Set(missing)
  const holders = new Set([...owners.filter(owner => !lacking.has(owner)), ...(handoffs as readonly ShardId[])])
  return [...holders].filter(isThere).length <= 1
}

export interface QueueDeps {
  readonly metadata: Pick<Metadata, 'dueRepairs'>
  readonly view: Pick<ClusterView, 'current'>
}

export class UrgentFirst {
  readonly #deps: QueueDeps
  #looksAt = -Infinity

  constructor(deps: QueueDeps) {
    this.#deps = deps
  }

  /** As long as any is due that misses all copies but one, none that misses fewer. */
  async due(limit: number): Promise<readonly RepairEntry[]> {
    const { metadata, view } = this.#deps
    const missingMin = view.current().map.replicas - 1
    // With two copies of everything each of them misses all but one.
    if (missingMin >= 2 && performance.now() >= this.#looksAt) {
      // Before: a look that fails keeps the others waiting no longer than one that finds nothing.
      this.#looksAt = performance.now() + lookEveryMs
      const urgent = await metadata.dueRepairs(limit, missingMin)
      if (urgent.length > 0) {
        this.#looksAt = -Infinity
        return urgent
      }
    }
    return metadata.dueRepairs(limit)
  }
}
