/** What storage nodes lost, and what the primary makes of it, with nodes and a database that are a function each. */
import t from 'tap'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { HeedLosses, type LossesDeps } from '../../../proxy/tasks/heed-losses.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { newGeneration, type ShardId } from '../../../shared/ids.ts'
import { partitionCount } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { settlePartitions } from '../../../shared/placement/transition.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'
import { blobOf, silent } from '../artifacts/fixtures.ts'

const shared = new ClusterView(buildClusterMap(topologyOf(evenSpec(5, 5))))
const term = { token: 5, signal: new AbortController().signal }

function world(view = shared) {
  const blob = { ...blobOf('a'), state: 'live' as 'live' | 'purging', ageMs: 1e6, named: true }
  const owners = view.current().owners(blob.partition)
  const made = {
    blob,
    owners,
    lost: new Map<ShardId, number>(),
    good: new Set<ShardId>(),
    away: new Set<ShardId>(),
    asked: [] as ShardId[],
    /** What is on every list beside the blob, after it. */
    more: [] as Pick<typeof blob, 'digest' | 'generation' | 'partition'>[],
    repairs: [] as unknown[],
    errors: [] as unknown[],
    now: 0,
  }
  const deps: LossesDeps = {
    metadata: {
      inspectBlobs: async digests => (digests.includes(blob.digest) ? [made.blob] : []),
      addRepairs: async repairs => void made.repairs.push(...repairs),
    },
    clients: {
      ofShard: shard => ({
        requestJson: async <Answer>(_method: string, path: string): Promise<Answer> => {
          if (made.away.has(shard)) throw new HoldfastError('NODE_UNREACHABLE', 'gone')
          if (path.includes('/verify/')) return { state: made.good.has(shard) ? 'good' : 'missing' } as Answer
          made.asked.push(shard)
          const losses = [blob, ...made.more].map(({ digest, generation, partition }) => {
            return { digest, generation, partition, time: 1, why: 'told so' }
          })
          return { losses } as Answer
        },
      }),
    },
    view,
    health: {
      state: () => 'up',
      shardStatus: id => ({ id, weight: 1, state: 'ok', bytesTotal: 1, bytesFree: 1, losses: made.lost.get(id) ?? 0 }),
    },
    log: { ...silent, error: (facts: unknown) => void made.errors.push(facts) } as typeof silent,
    now: () => made.now,
  }
  return { ...made, made, task: new HeedLosses(deps) }
}

t.test('a lost copy is queued for repair at once, asked about again only later or when more are lost', async t => {
  const { made, owners, task, blob } = world()
  const [first] = owners as [ShardId]
  await task.step(term)
  t.strictSame(made.asked, [], 'nothing is lost, nobody is asked')
  made.lost.set(first, 1)
  await task.step(term)
  t.match(made.repairs, [{ kind: 'blob', partition: blob.partition, missing: [first], blob: { digest: blob.digest } }])
  await task.step(term)
  t.equal(made.asked.length, 1)
  made.lost.set(first, 2)
  await task.step(term)
  t.equal(made.asked.length, 2)
  made.now += 61_000
  await task.step(term)
  t.equal(made.asked.length, 3)
  t.equal(task.hopelessCount, 0)
})

t.test('what is being purged, and what a shard does not own, is not repaired', async t => {
  const { made, owners, task, blob } = world()
  const stranger = shared.current().map.shards.find(({ id }) => !owners.includes(id))?.id as ShardId
  made.lost.set(stranger, 1)
  await task.step(term)
  blob.state = 'purging'
  made.lost.set(owners[0] as ShardId, 1)
  await task.step(term)
  t.equal(made.asked.length, 2)
  t.strictSame(made.repairs, [])
})

t.test('I26: a blob that every owner lost is named, once none of them has it good', async t => {
  const { made, owners, task, blob } = world()
  for (const owner of owners) made.lost.set(owner, 1)
  made.good.add(owners[1] as ShardId)
  await task.step(term)
  t.equal(task.hopelessCount, 0, 'one was healed meanwhile')
  made.good.clear()
  made.now += 61_000
  await task.step(term)
  t.equal(task.hopelessCount, 1)
  t.match(made.errors[0], { digest: blob.digest })
  made.good.add(owners[0] as ShardId)
  made.now += 61_000
  await task.step(term)
  t.equal(task.hopelessCount, 0, 'somebody brought it')
})

t.test('a node that does not answer keeps nobody else waiting', async t => {
  const { made, owners, task } = world()
  for (const owner of owners) made.lost.set(owner, 1)
  made.away.add(owners[0] as ShardId)
  await task.step(term)
  t.equal(made.asked.length, owners.length - 1)
})

t.test(
  'I26: a blob is hopeless no longer than it is on the lists of all owners, and than this proxy is primary',
  async t => {
    const healed = world()
    for (const owner of healed.owners) healed.made.lost.set(owner, 1)
    await healed.task.step(term)
    t.equal(healed.task.hopelessCount, 1)
    healed.made.away.add(healed.owners[0] as ShardId)
    healed.made.now += 61_000
    await healed.task.step(term)
    t.equal(healed.task.hopelessCount, 1, 'a node that does not answer has healed nothing')
    healed.made.lost.set(healed.owners[1] as ShardId, 0)
    await healed.task.step(term)
    t.equal(healed.task.hopelessCount, 0, 'its list is empty: nobody asks it any more')

    const deposed = world()
    for (const owner of deposed.owners) deposed.made.lost.set(owner, 1)
    await deposed.task.step(term)
    t.equal(deposed.task.hopelessCount, 1)
    await deposed.task.ended()
    t.equal(deposed.task.hopelessCount, 0)
    await deposed.task.step(term)
    t.equal(deposed.task.hopelessCount, 1, 'the next term finds it again')

    const view = new ClusterView(shared.current().map)
    const moved = world(view)
    const [leaving] = moved.owners as [ShardId]
    for (const owner of moved.owners) moved.made.lost.set(owner, 1)
    await moved.task.step(term)
    t.equal(moved.task.hopelessCount, 1)
    const { next } = planChanges(view.current().map, [{ op: 'weight', shard: leaving, weight: 0 }])
    const settled = settlePartitions(
      next,
      Array.from({ length: partitionCount }, (_, index) => index),
    )
    view.replace(planChanges(settled, [{ op: 'remove-shard', shard: leaving }]).next)
    await moved.task.step(term)
    t.equal(moved.task.hopelessCount, 0, 'a new owner has lost nothing')
  },
)

t.test('of two generations of a digest on one list, the living one is repaired', async t => {
  const { made, owners, task, blob } = world()
  made.more.push({ ...blob, generation: newGeneration() })
  made.lost.set(owners[0] as ShardId, 2)
  await task.step(term)
  t.match(made.repairs, [{ blob: { digest: blob.digest, generation: blob.generation } }])
  t.equal(made.repairs.length, 1)
})
