/**
 * Who has how many of the copies that should be there: many blobs or references at once, one question to each shard. While owners change,
 * the old ones are asked as well: their copies count until the partition is settled.
 */
import { isHoldfastError } from '../../shared/errors.ts'
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { BlobKey } from '../../shared/wire.ts'
import { touchAll, versionsOf } from '../tasks/shard-contents.ts'
import type { InspectionDeps } from './types.ts'

export interface Census {
  /** Owners that have a copy, and old owners of a partition that is moving. */
  readonly held: readonly ShardId[]
  /** Owners that have none. */
  readonly missing: readonly ShardId[]
  /** Owners, and old ones, that could not be asked: nothing is known of their copies. */
  readonly unknown: readonly ShardId[]
  /** There are too few copies, or in too few zones, even if those that could not be asked have one. */
  readonly tooFew: boolean
  /** Zones that the copies are in, and that they are to be in at least. */
  readonly zones: number
  readonly zonesWanted: number
  /** The partition is not settled. */
  readonly moving: boolean
}

export type CensusDeps = Pick<InspectionDeps, 'clients' | 'view' | 'health' | 'log'>

/** Of each blob, which of its owners have it, in the order asked. */
export async function countCopies(deps: CensusDeps, blobs: readonly BlobKey[]): Promise<readonly Census[]> {
  const view = deps.view.current()
  const answers = await askOwners(deps, view, blobs, (shard, wanted) => touchAll(deps, shard, wanted))
  return blobs.map(({ partition }, index) =>
    censusOf(view, partition, owner => {
      const word = answers.get(owner)?.get(index)
      return word === undefined || word === 'unavailable' ? undefined : word === 'held'
    }),
  )
}

/** Of each path, which of its owners have this version or a newer one, in the order asked. */
export async function countReferences(
  deps: CensusDeps,
  references: readonly { readonly partition: number; readonly key: string; readonly version: number }[],
): Promise<readonly Census[]> {
  const view = deps.view.current()
  const answers = await askOwners(deps, view, references, (shard, wanted) => versionsOf(deps, shard, wanted))
  return references.map(({ partition, version }, index) =>
    censusOf(view, partition, owner => {
      const found = answers.get(owner)?.get(index)
      return found === undefined ? undefined : (found ?? 0) >= version
    }),
  )
}

/**
 * `has`: undefined where nobody knows. A partition that moves has all its copies if there are as many as both the old and the new owners are
 * to have, in as many zones as these stand in, on whichever of them.
 */
function censusOf(view: PlacementView, partition: number, has: (owner: ShardId) => boolean | undefined): Census {
  const owners = view.owners(partition)
  const before = view.previousOwners(partition)
  const all = view.allOwners(partition)
  const zonesOf = (shards: readonly ShardId[]): number => new Set(shards.map(shard => view.zone(shard))).size
  const held = all.filter(owner => has(owner) === true)
  const unknown = all.filter(owner => has(owner) === undefined)
  const missing = owners.filter(owner => has(owner) === false)
  const wanted = Math.min(owners.length, before?.length ?? owners.length)
  const zonesWanted = Math.min(zonesOf(owners), zonesOf(before ?? owners))
  const hoped = [...held, ...unknown]
  const tooFew = hoped.length < wanted || zonesOf(hoped) < zonesWanted
  return { held, missing, unknown, tooFew, zones: zonesOf(held), zonesWanted, moving: before !== undefined }
}

/** Asks each owner, old ones too, about its part of the items; answers by shard and place in the list. Owners that cannot be asked are left out. */
async function askOwners<Item extends { readonly partition: number }, Answer>(
  deps: CensusDeps,
  view: PlacementView,
  items: readonly Item[],
  ask: (shard: ShardId, items: readonly Item[]) => Promise<readonly Answer[]>,
): Promise<ReadonlyMap<ShardId, ReadonlyMap<number, Answer>>> {
  const places = new Map<ShardId, number[]>()
  for (const [index, { partition }] of items.entries()) {
    for (const owner of view.allOwners(partition)) places.set(owner, [...(places.get(owner) ?? []), index])
  }
  const answers = new Map<ShardId, ReadonlyMap<number, Answer>>()
  const asked = [...places].map(async ([shard, indexes]) => {
    if (deps.health.state(view.node(shard).id) === 'down') return
    try {
      // Every index is one of `items`.
      const wanted = indexes.map(index => items[index] as Item)
      const words = await ask(shard, wanted)
      answers.set(shard, new Map(indexes.flatMap((index, at) => (at in words ? [[index, words[at] as Answer]] : []))))
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      deps.log.debug({ err: error, shard }, 'a shard could not be asked for its copies')
    }
  })
  await Promise.all(asked)
  return answers
}
