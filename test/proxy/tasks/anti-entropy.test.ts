/** Anti-entropy while the cluster map changes between a comparison and the closer look, with shards that are a function each. */
import t from 'tap'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { AntiEntropy } from '../../../proxy/tasks/anti-entropy.ts'
import { unhindered } from '../../../proxy/tasks/calm.ts'
import type { ClusterMap } from '../../../shared/cluster-map.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { partitionCount } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { movesOf, settlePartitions } from '../../../shared/placement/transition.ts'
import { emptySet } from '../../../shared/set-digest.ts'
import type { PartitionSummary } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'
import { silent } from '../artifacts/fixtures.ts'

const term = { token: 5, signal: new AbortController().signal }
const spec = evenSpec(5, 5)
/** With a shard that owns nothing. */
const map = buildClusterMap(topologyOf({ ...spec, nodes: [...spec.nodes, { name: 'n5', zone: 'z5', weights: [0] }] }))
const idle = 'n5-s0' as ShardId
const all = Array.from({ length: partitionCount }, (_, index) => index)

/** `holders` have a blob in the partition, and nobody has anything else. */
function world(partition: number, holders: readonly ShardId[]) {
  const view = new ClusterView(map)
  const listed: ShardId[] = []
  const asked: { by: string | undefined } = { by: undefined }
  const summary: PartitionSummary = { partition, blobs: { count: 1, hash: 'f'.repeat(16) }, references: emptySet }
  const task = new AntiEntropy({
    metadata: {
      inspectBlobs: async () => [],
      inspectVersions: async () => [],
      addRepairs: async () => undefined,
      countRepairs: async () => 0,
      repairQueue: { comparisonWanted: async () => asked.by },
    },
    clients: {
      ofShard: shard => ({
        requestJson: async <Answer>(_method: string, path: string): Promise<Answer> => {
          if (!path.includes('/entries/')) {
            const isAsked = partition < 512 && path.includes('from=0&') && holders.includes(shard)
            return { partitions: isAsked ? [summary] : [] } as Answer
          }
          listed.push(shard)
          return { entries: [{ key: `${'a'.repeat(64)}.1`, bytes: 1, time: 1 }] } as Answer
        },
      }),
    },
    view,
    health: { state: () => 'up', shardState: () => 'ok', shardStatus: () => undefined },
    calm: unhindered,
    log: silent,
    now: () => 0,
    roundMs: 600_000,
  })
  return { task, view, listed, asked }
}

/** A step that compares, another map, a step that looks closer. */
async function acrossMaps(
  partition: number,
  holders: readonly ShardId[],
  next: ClusterMap,
): Promise<readonly ShardId[]> {
  const { task, view, listed } = world(partition, holders)
  await task.step(term)
  t.equal(task.differing, 1)
  view.replace(next)
  await task.step(term)
  return listed
}

const change = planChanges(map, [{ op: 'weight', shard: 'n0-s0', weight: 0 }]).next
const move = movesOf(change).find(one => one.partition < 512)!

t.test('a comparison that somebody asks for begins at once, and only once', async t => {
  const { task, asked } = world(3, [])
  while ((await task.step(term)) === 'more');
  t.equal(task.rounds, 1)
  await task.step(term)
  t.equal(task.rounds, 1)
  asked.by = 'now'
  await task.step(term)
  await task.step(term)
  t.equal(task.rounds, 2)
})

t.test('a stray that left the cluster since is not asked, and stops nothing', async t => {
  const gone = planChanges(map, [{ op: 'remove-shard', shard: idle }]).next
  const listed = await acrossMaps(3, [idle], gone)
  t.same([...listed].sort(), [...new ClusterView(gone).current().owners(3)].sort())
})

t.test('a partition that has begun to move since is left to the task that moves it', async t => {
  t.same(await acrossMaps(move.partition, [move.from[0] as ShardId], change), [])
})

t.test('a stray that has become an owner since is asked once', async t => {
  const arrived = move.to.find(id => !move.from.includes(id)) as ShardId
  const listed = await acrossMaps(move.partition, [arrived], settlePartitions(change, all))
  t.same([...listed].sort(), [...move.to].sort())
})
