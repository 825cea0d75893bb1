/** Have enough shards answered to say what there is, and what there is not? Pure. */
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import { referenceAbsenceQuorum } from '../../shared/quorum.ts'

/** The owners of a partition of whom `needed` must answer before a path is said to be absent; while they change, also those before. */
export function ownerQuorums(view: PlacementView): (partition: number) => readonly OwnerQuorum[] {
  const before = view.before()
  const quorumOf = ({ map, owners }: Pick<PlacementView, 'map' | 'owners'>, partition: number): OwnerQuorum => {
    const all = owners(partition)
    return { owners: all, needed: referenceAbsenceQuorum(map.replicas, all.length) }
  }
  const now = { map: view.map, owners: (partition: number) => view.owners(partition) }
  return partition =>
    view.previousOwners(partition) === undefined
      ? [quorumOf(now, partition)]
      : [quorumOf(now, partition), quorumOf(before, partition)]
}

export interface OwnerQuorum {
  readonly owners: readonly ShardId[]
  readonly needed: number
}

export function isMet({ owners, needed }: OwnerQuorum, answered: { has(shard: ShardId): boolean }): boolean {
  let count = 0
  for (const owner of owners) if (answered.has(owner)) count += 1
  return count >= needed
}

/** Which partitions are answered for: cheap to ask after every answer, for it goes on where it stopped. */
export class AnsweredPartitions {
  readonly #quorumsOf: (partition: number) => readonly OwnerQuorum[]
  /** Those before it are. */
  #lacking = 0

  constructor(view: PlacementView) {
    this.#quorumsOf = ownerQuorums(view)
  }

  /** The first partition for which too few of its owners have answered; undefined: all are answered for. `answered` may only grow. */
  lacking(answered: ReadonlySet<ShardId>): number | undefined {
    while (this.#lacking < partitionCount) {
      if (!this.#quorumsOf(this.#lacking).every(quorum => isMet(quorum, answered))) return this.#lacking
      this.#lacking += 1
    }
    return undefined
  }
}
