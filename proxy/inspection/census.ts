/** Who has how many of the copies that should be there: many blobs or references at once, one question to each shard. */
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId, Zone } from '../../shared/ids.ts'
import type { BlobKey } from '../../shared/wire.ts'
import { touchAll, versionsOf } from '../tasks/shard-contents.ts'
import type { InspectionDeps } from './types.ts'

export interface BlobCopies {
  readonly held: readonly ShardId[]
  readonly missing: readonly ShardId[]
  /** Owners that could not be asked: nothing is known of their copies. */
  readonly unknown: readonly ShardId[]
}

export type CensusDeps = Pick<InspectionDeps, 'clients' | 'view' | 'health' | 'log'>

/** Of each blob, which of its owners have it, in the order asked. */
export async function countCopies(deps: CensusDeps, blobs: readonly BlobKey[]): Promise<readonly BlobCopies[]> {
  const view = deps.view.current()
  const answers = await askOwners(deps, blobs, (shard, wanted) => touchAll(deps, shard, wanted))
  return blobs.map((blob, index) => {
    const words = view.owners(blob.partition).map(owner => ({ owner, word: answers.get(owner)?.get(index) }))
    return {
      held: words.filter(({ word }) => word === 'held').map(({ owner }) => owner),
      missing: words.filter(({ word }) => word === 'missing').map(({ owner }) => owner),
      unknown: words.filter(({ word }) => word === undefined || word === 'unavailable').map(({ owner }) => owner),
    }
  })
}

/** Of each path, the version that each owner that answered has; 0: none. In the order asked. */
export async function countReferences(
  deps: CensusDeps,
  references: readonly { readonly partition: number; readonly key: string }[],
): Promise<readonly ReadonlyMap<ShardId, number>[]> {
  const view = deps.view.current()
  const answers = await askOwners(deps, references, (shard, wanted) => versionsOf(deps, shard, wanted))
  return references.map(({ partition }, index) => {
    const found = new Map<ShardId, number>()
    for (const owner of view.owners(partition)) {
      const version = answers.get(owner)?.get(index)
      if (version !== undefined) found.set(owner, version ?? 0)
    }
    return found
  })
}

/** Asks each owner about its part of the items; answers by shard and place in the list. Owners that cannot be asked are left out. */
async function askOwners<Item extends { readonly partition: number }, Answer>(
  deps: CensusDeps,
  items: readonly Item[],
  ask: (shard: ShardId, items: readonly Item[]) => Promise<readonly Answer[]>,
): Promise<ReadonlyMap<ShardId, ReadonlyMap<number, Answer>>> {
  const view = deps.view.current()
  const places = new Map<ShardId, number[]>()
  for (const [index, { partition }] of items.entries()) {
    for (const owner of view.owners(partition)) places.set(owner, [...(places.get(owner) ?? []), index])
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

/** How many zones these shards stand in. */
export function zonesOf({ view }: Pick<CensusDeps, 'view'>, shards: readonly ShardId[]): ReadonlySet<Zone> {
  return new Set(shards.map(shard => view.current().zone(shard)))
}
