/**
 * Shards whose disk was set up empty, or lost a reference. Such a shard may lack what was acknowledged, so its word that a path is absent
 * counts for nothing (I7), until each of its partitions has been compared with all other owners and was found to lack none. Then it
 * is told, and it counts.
 */
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import type { ShardStatus } from '../../shared/wire.ts'

interface Recovery {
  readonly recovering: string
  /** Not yet found whole. */
  readonly partitions: Set<number>
}

export class RecoveringShards {
  readonly #shards = new Map<ShardId, Recovery>()
  #epoch: number | undefined

  /** Partitions that are still to be found whole. */
  get partitions(): ReadonlySet<number> {
    return new Set([...this.#shards.values()].flatMap(({ partitions }) => [...partitions]))
  }

  /** Takes note of what the shards say of themselves; true if there are others than before. */
  notice(view: PlacementView, statusOf: (shard: ShardId) => ShardStatus | undefined): boolean {
    if (view.map.epoch !== this.#epoch) this.#adopt(view)
    const fresh = new Map<ShardId, Set<number>>()
    for (const { id } of view.map.shards) {
      const { recovering } = statusOf(id) ?? {}
      if (recovering === undefined) this.#shards.delete(id)
      else if (this.#shards.get(id)?.recovering !== recovering) {
        const partitions = new Set<number>()
        fresh.set(id, partitions)
        this.#shards.set(id, { recovering, partitions })
      }
    }
    if (fresh.size === 0) return false
    for (let partition = 0; partition < partitionCount; partition++) {
      for (const owner of ownersSoFar(view, partition)) fresh.get(owner)?.add(partition)
    }
    return true
  }

  /** By a newer map: partitions that went elsewhere are no longer asked for, and those that came are filled by the change itself. */
  #adopt(view: PlacementView): void {
    this.#epoch = view.map.epoch
    for (const [shard, { partitions }] of this.#shards) {
      for (const partition of partitions) {
        if (!view.allOwners(partition).includes(shard)) partitions.delete(partition)
      }
    }
  }

  /** All owners so far of the partition have said what they have, and it is the same. */
  foundWhole(partition: number, owners: readonly ShardId[]): void {
    for (const owner of owners) this.#shards.get(owner)?.partitions.delete(partition)
  }

  /** Those that may be told that they have all. */
  whole(): readonly { readonly shard: ShardId; readonly recovering: string }[] {
    return [...this.#shards].flatMap(([shard, { recovering, partitions }]) =>
      partitions.size === 0 ? [{ shard, recovering }] : [],
    )
  }

  forget(): void {
    this.#shards.clear()
  }
}

/** While a partition gets other owners, those before: the others are being filled by them. */
export function ownersSoFar(view: PlacementView, partition: number): readonly ShardId[] {
  return view.previousOwners(partition) ?? view.owners(partition)
}
