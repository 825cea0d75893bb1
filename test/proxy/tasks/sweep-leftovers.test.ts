/** What no row names, on shards that are maps in memory. */
import t from 'tap'
import { type Copy, unwantedAmong } from '../../../proxy/tasks/unnamed-blobs.ts'
import { type SweepDeps, sweepLeftovers } from '../../../proxy/tasks/sweep-leftovers.ts'
import type { InspectedBlob } from '../../../proxy/metadata/types.ts'
import { PlacementView } from '../../../shared/cluster-map.ts'
import type { Digest, Generation, ShardId } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { emptySet } from '../../../shared/set-digest.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

const partition = 7
const keyAt = (index: number): string => `${String(index).repeat(64)}.${'0'.repeat(12)}`
const map = buildClusterMap(topologyOf(evenSpec(4, 3)))
const view = new PlacementView(map)
const owners = view.owners(partition)
const term = { token: 1, signal: new AbortController().signal }

/** `held`: keys on each shard; `named`: those that have a row. */
function world(held: ReadonlyMap<ShardId, readonly string[]>, named: readonly string[], time = 0) {
  const dropped: string[] = []
  let judged = 0
  const deps: SweepDeps = {
    view: { current: () => view },
    clients: {
      ofShard: shard => ({
        requestJson: async <Answer>(_method: string, path: string): Promise<Answer> => {
          await Promise.resolve()
          const keys = held.get(shard) ?? []
          const blobs = keys.length === 0 ? emptySet : { count: keys.length, hash: keys.join() }
          if (path.includes('/summaries/'))
            return { partitions: [{ partition, blobs, references: emptySet }] } as Answer
          return { entries: keys.map(key => ({ key, bytes: 1, time })) } as Answer
        },
      }),
    },
    metadata: {
      inspectBlobs: async () =>
        Promise.resolve(
          named.map(key => ({ digest: key.slice(0, 64), generation: key.slice(65), state: 'live' }) as InspectedBlob),
        ),
      reclaimUnconfirmed: async blobs => {
        judged += blobs.length
        return Promise.resolve(blobs.map(() => 'reclaim' as const))
      },
    },
    drop: async (shard, blobs) => {
      dropped.push(...blobs.map(({ digest }) => `${shard} ${digest[0]}`))
      return Promise.resolve(true)
    },
  }
  return { deps, dropped, judged: () => judged }
}

const everywhere = (keys: readonly string[]) => new Map(owners.map(owner => [owner, keys]))

t.test('I36: what all owners hold and nothing names is found by a thorough sweep only', async t => {
  const { deps, dropped, judged } = world(everywhere([keyAt(1), keyAt(2)]), [keyAt(1)])
  t.same(await sweepLeftovers(deps, { from: 0, count: 16, thorough: false }, 10, term), [])
  const swept = await sweepLeftovers(deps, { from: 0, count: 16, thorough: true }, 10, term)
  t.match(swept, [{ digest: '2'.repeat(64), partition }])
  t.same(dropped.sort(), owners.map(owner => `${owner} 2`).sort(), 'from each of them')
  t.equal(judged(), 1, 'asked about once')
})

t.test('I36: what one owner holds alone, or a shard that is no owner, is found by every sweep', async t => {
  const held = new Map<ShardId, readonly string[]>(everywhere([keyAt(1)])).set(owners[0]!, [keyAt(1), keyAt(2)])
  const stranger = map.shards.map(({ id }) => id).find(id => !owners.includes(id))!
  const { deps, dropped } = world(held.set(stranger, [keyAt(3)]), [keyAt(1)])
  await sweepLeftovers(deps, { from: 0, count: 16, thorough: false }, 10, term)
  t.same(dropped.sort(), [`${owners[0]} 2`, `${stranger} 3`].sort())
})

t.test('I29: what is young, or has a time that is still to come, may be an upload that gets its row yet', async t => {
  for (const time of [Date.now() - 5_000, Date.now() + 48 * 3_600_000]) {
    const { deps, dropped } = world(everywhere([keyAt(2)]), [], time)
    await sweepLeftovers(deps, { from: 0, count: 16, thorough: true }, 10_000, term)
    t.same(dropped, [])
  }
})

t.test('what is being purged is told from what nothing names', async t => {
  const { deps } = world(new Map(), [])
  const copies = [1, 2].map((index): Copy => {
    const key = keyAt(index)
    const name = { digest: key.slice(0, 64) as Digest, generation: key.slice(65) as Generation }
    return { ...name, partition, bytes: 1, time: 0 }
  })
  const row = { ...copies[0], state: 'purging' } as unknown as InspectedBlob
  const metadata = { ...deps.metadata, inspectBlobs: async () => Promise.resolve([row]) }
  t.same(await unwantedAmong({ metadata }, copies, 10, term), { unnamed: [copies[1]], purging: [copies[0]] })
})
