import t from 'tap'
import { RecoveringShards } from '../../../proxy/tasks/recovering-shards.ts'
import { PlacementView } from '../../../shared/cluster-map.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { partitionCount } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { settlePartitions } from '../../../shared/placement/transition.ts'
import type { ShardStatus } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

const map = buildClusterMap(topologyOf(evenSpec(4, 4)))
const view = new PlacementView(map)
const [first, second] = map.shards.map(({ id }) => id) as [ShardId, ShardId]
const all = Array.from({ length: partitionCount }, (_, index) => index)

const recovering = (names: Record<string, string>) => (shard: ShardId) => {
  const name = names[shard]
  return (name === undefined ? {} : { recovering: name }) as unknown as ShardStatus
}
const owned = (by: PlacementView, shard: ShardId): number[] => all.filter(one => by.owners(one).includes(shard))

t.test('a shard is whole when each of its partitions was found so', async t => {
  const shards = new RecoveringShards()
  shards.notice(view, recovering({ [first]: 'x' }))
  t.same([...shards.partitions].sort(), owned(view, first).sort())
  for (const partition of all.slice(1)) shards.foundWhole(partition, view.owners(partition))
  const isOwned = view.owners(0).includes(first)
  t.equal(shards.whole().length, isOwned ? 0 : 1)
  shards.foundWhole(0, view.owners(0))
  t.same(shards.whole(), [{ shard: first, recovering: 'x' }])
  shards.notice(view, recovering({}))
  t.same(shards.whole(), [], 'told')
})

t.test('another loss, or another primary, begins anew', async t => {
  const shards = new RecoveringShards()
  shards.notice(view, recovering({ [first]: 'x', [second]: 'y' }))
  for (const partition of all) shards.foundWhole(partition, view.owners(partition))
  t.equal(shards.whole().length, 2)
  shards.notice(view, recovering({ [first]: 'z', [second]: 'y' }))
  t.same(shards.whole(), [{ shard: second, recovering: 'y' }])
  shards.forget()
  shards.notice(view, recovering({ [second]: 'y' }))
  t.same(shards.whole(), [])
})

t.test('a change of topology brings what comes by it, and takes along what goes', async t => {
  const shards = new RecoveringShards()
  shards.notice(view, recovering({ [first]: 'x' }))
  const begun = planChanges(map, [{ op: 'weight', shard: second, weight: 0 }]).next
  const during = new PlacementView(begun)
  shards.notice(during, recovering({ [first]: 'x' }))
  t.same([...shards.partitions].sort(), owned(view, first).sort(), 'the same as before')
  for (const partition of all)
    shards.foundWhole(partition, during.previousOwners(partition) ?? during.owners(partition))
  t.equal(shards.whole().length, 1, 'also in the middle of it')

  const late = new RecoveringShards()
  late.notice(during, recovering({ [first]: 'x', [second]: 'y' }))
  t.same([...late.partitions].sort(), [...new Set([...owned(view, first), ...owned(view, second)])].sort())
  const after = new PlacementView(settlePartitions(begun, all))
  late.notice(after, recovering({ [first]: 'x', [second]: 'y' }))
  t.same(late.whole(), [{ shard: second, recovering: 'y' }], 'who owns nothing lacks nothing')
})

t.test('who owns nothing is whole at once', async t => {
  const idle = planChanges(map, [{ op: 'weight', shard: first, weight: 0 }]).next
  const shards = new RecoveringShards()
  shards.notice(new PlacementView(settlePartitions(idle, all)), recovering({ [first]: 'x' }))
  t.same(shards.whole(), [{ shard: first, recovering: 'x' }])
})
