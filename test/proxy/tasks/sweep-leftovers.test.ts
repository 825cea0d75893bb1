/** What no row names, on shards that are maps in memory. */
import t from 'tap'
import { type Copy, stayOf, unwantedAmong } from '../../../proxy/tasks/unnamed-blobs.ts'
import { type SweepDeps, sweepLeftovers, sweepLosses } from '../../../proxy/tasks/sweep-leftovers.ts'
import type { InspectedBlob } from '../../../proxy/metadata/types.ts'
import { PlacementView } from '../../../shared/cluster-map.ts'
import type { Digest, Generation, ShardId } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { type Entry, type LossListing, wirePath } from '../../../shared/wire.ts'
import { emptySet } from '../../../shared/set-digest.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'
import { shardA, startNode, testBlob } from '../../storage-node/fixtures.ts'

const partition = 7
const keyAt = (index: number): string => `${String(index).repeat(64)}.${'0'.repeat(12)}`
const map = buildClusterMap(topologyOf(evenSpec(4, 3)))
const view = new PlacementView(map)
const owners = view.owners(partition)
const term = { token: 1, signal: new AbortController().signal }

type StayOf = (shard: ShardId) => Pick<Entry, 'time' | 'heldMs'>
const hour = 3_600_000

/** `held`: keys on each shard; `named`: those that have a row. */
function world(
  held: ReadonlyMap<ShardId, readonly string[]>,
  named: readonly string[],
  stay: StayOf = () => ({ time: 0 }),
) {
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
          return { entries: keys.map(key => ({ key, bytes: 1, ...stay(shard) })) } as Answer
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
  t.same(await sweepLeftovers(deps, { from: 0, count: 16, thorough: false }, 10, term), { dropped: [], silent: [] })
  const { dropped: swept } = await sweepLeftovers(deps, { from: 0, count: 16, thorough: true }, 10, term)
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
    const { deps, dropped } = world(everywhere([keyAt(2)]), [], () => ({ time }))
    await sweepLeftovers(deps, { from: 0, count: 16, thorough: true }, 10_000, term)
    t.same(dropped, [], 'also of nodes that tell nothing else')
  }
})

t.test('I29: shards tell for how long they have had it, and times in records count for nothing', async t => {
  const sweep = async (stay: StayOf, keys = everywhere([keyAt(2)])) => {
    const { deps, dropped, judged } = world(keys, [], stay)
    await sweepLeftovers(deps, { from: 0, count: 16, thorough: true }, 10_000, term)
    t.equal(judged() > 0, dropped.length > 0, 'PostgreSQL fences nothing off that stays')
    return dropped.length
  }
  for (const hours of [-48, 0, 48]) {
    const time = Date.now() + hours * hour
    t.equal(await sweep(() => ({ time, heldMs: 9_999 })), 0)
    t.equal(await sweep(() => ({ time, heldMs: 10_000 })), owners.length)
  }
  // Seen on all, since one of them has something else too.
  const keys = new Map<ShardId, readonly string[]>(everywhere([keyAt(2)])).set(owners[2]!, [keyAt(2), keyAt(3)])
  const old = { time: 0, heldMs: 10_000 }
  const started = { time: 0, heldMs: 5 }
  t.equal(await sweep(shard => (shard === owners[0] ? old : started), keys), 3, 'two nodes were started since')
  t.equal(
    await sweep(shard => (shard === owners[0] ? { time: 0 } : started), keys),
    0,
    'one node is of an older release',
  )
})

t.test(
  'I29: a node and a proxy whose clocks are days off cost no upload in hand, a leftover goes when it is old',
  async t => {
    const clock = { wall: Date.now(), passed: 0, now: () => clock.wall, monotonic: () => clock.passed }
    const { client } = await startNode(t, {}, { clock })
    const shard = owners[0]!
    const ofShard: SweepDeps['clients']['ofShard'] = asked => ({
      requestJson: async <Answer>(method: string, path: string): Promise<Answer> => {
        if (asked !== shard) return { partitions: [] } as Answer
        return (await client.call(method, path.replace(`/${shard}`, `/${shardA}`))).json as Answer
      },
    })
    const { deps, dropped } = world(new Map(), [])
    const sweep = async (): Promise<number> => {
      await sweepLeftovers({ ...deps, clients: { ofShard } }, { from: 0, count: 16, thorough: true }, 10_000, term)
      return dropped.splice(0).length
    }
    for (const hours of [-48, 48]) await client.appendBlob(shardA, testBlob(10, partition), Date.now() + hours * hour)
    clock.wall -= 48 * hour
    t.equal((await client.put(shardA, testBlob(100_000, partition))).status, 200)
    t.equal(await sweep(), 0)
    clock.passed = 9_000
    t.equal(await sweep(), 0)
    clock.passed = 10_000
    t.equal(await sweep(), 3)
  },
)

t.test('I29: a loss is taken off its list when it has been there for long enough, whatever its time says', async t => {
  const [digest, generation] = keyAt(2).split('.') as [Digest, Generation]
  const sweep = async (stay: { time: number; heldMs?: number }): Promise<number> => {
    const { deps, dropped } = world(new Map(), [])
    const listing: LossListing = { losses: [{ digest, generation, partition, why: 'corrupt', ...stay }] }
    const requestJson = async <Answer>(_method: string, path: string): Promise<Answer> => {
      t.ok(path.startsWith(wirePath.losses(owners[0]!)))
      return Promise.resolve(listing as Answer)
    }
    const swept = await sweepLosses(
      { ...deps, clients: { ofShard: () => ({ requestJson }) } },
      owners[0]!,
      10_000,
      term,
    )
    t.equal(dropped.length, swept)
    return swept
  }
  t.equal(await sweep({ time: Date.now() - 48 * hour, heldMs: 9_999 }), 0)
  t.equal(await sweep({ time: Date.now() + 48 * hour, heldMs: 10_000 }), 1)
  t.equal(await sweep({ time: Date.now() - 48 * hour }), 1, 'a node of an older release')
})

t.test('of several copies the one that was there first tells how old they are', t => {
  t.same(stayOf([{ time: 5 }, { time: 3 }]), { time: 3 })
  t.same(stayOf([{ time: 5, heldMs: 7 }, { time: 3 }, { time: 9, heldMs: 8 }]), { time: 3, heldMs: 8 })
  t.same(stayOf([{}]), { time: 0 })
  t.end()
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
