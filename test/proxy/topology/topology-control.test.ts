/** What operators ask of the topology, with nodes that are a function each: what is refused, and what is passed on to the task. */
import t from 'tap'
import { changesOf } from '../../../cli/topology.ts'
import type { JobRun } from '../../../proxy/metadata/job-types.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { paramsOf } from '../../../proxy/tasks/rebalance-params.ts'
import { estimateMoves } from '../../../proxy/topology/estimate.ts'
import { TopologyControl } from '../../../proxy/topology/topology-control.ts'
import { weightWarnings } from '../../../proxy/topology/weight-warnings.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges, type TopologyChange } from '../../../shared/placement/changes.ts'
import { abortTransition, movesOf, settlePartitions } from '../../../shared/placement/transition.ts'
import { emptySet } from '../../../shared/set-digest.ts'
import type { NodeStatus, ShardStatus } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

// Each plan takes a thread, and on a busy machine a second.
t.setTimeout(120_000)

const map = buildClusterMap(topologyOf(evenSpec(4, 3)))
const blobBytes = 1_000

/** Every shard holds one blob in each of its partitions, of 1,000 bytes unless told; null: nodes do not say how many. */
function world(bytesOf: (partition: number) => number | null = () => blobBytes) {
  const view = new ClusterView(map)
  const made = {
    free: new Map<string, number>(),
    runs: [] as { user: string; params: unknown }[],
    added: undefined as NodeStatus | undefined,
    run: null as { id: number; stoppedBy?: string } | null,
    /** What another proxy has published. */
    published: map,
    silent: new Set<string>(),
    /** Shards whose disk is lost. */
    failed: new Set<string>(),
    down: new Set<string>(),
  }
  const shardStatus = (id: string): ShardStatus => ({
    id: id as ShardId,
    weight: 100,
    state: made.failed.has(id) ? 'failed' : 'ok',
    bytesTotal: 1e9,
    bytesFree: made.free.get(id) ?? 9e8,
    bytesFreeMin: 1e6,
  })
  const statusOf = (node: string, shards: readonly string[]): NodeStatus =>
    ({ node, zone: 'z9', clusterId: '', epoch: 0, shards: shards.map(shardStatus) }) as unknown as NodeStatus
  const run = { id: 1 } as JobRun
  const control = new TopologyControl({
    view,
    renewMap: async () => Promise.resolve(void view.replace(made.published)),
    health: {
      nodes: () =>
        map.nodes.map(({ id }) => {
          const own = map.shards.filter(({ node }) => node === id).map(shard => shard.id)
          const state = made.down.has(id) ? 'down' : 'up'
          return { node: id, state, draining: false, status: statusOf(id, own) }
        }),
    },
    jobs: {
      run: async (_name, user, params) => {
        made.runs.push({ user, params })
        return Promise.resolve(run)
      },
      stop: async () => Promise.resolve(run),
      get: async () => Promise.resolve({ run: made.run } as never),
    },
    askNode: async url => Promise.resolve(url.endsWith(':9009') ? statusOf('n9', ['n9-s0']) : undefined),
    clients: {
      ofShard: shard => ({
        requestJson: async <Answer>(_method: string, path: string): Promise<Answer> => {
          if (path.includes('/entries/')) {
            return Promise.resolve({ entries: [{ key: `${'a'.repeat(64)}.1`, bytes: blobBytes }] } as Answer)
          }
          const owned = Array.from({ length: 4_096 }, (_, partition) => partition).filter(partition =>
            view.current().owners(partition).includes(shard),
          )
          const blobs = { count: 1, hash: 'f'.repeat(16) }
          if (made.silent.has(shard)) return Promise.reject(new HoldfastError('NODE_UNREACHABLE', 'away'))
          const said = (partition: number): { bytes?: number } => {
            const bytes = bytesOf(partition)
            return bytes === null ? {} : { bytes }
          }
          return Promise.resolve({ partitions: owned.map(partition => ({ partition, blobs, references: emptySet, ...said(partition) })) } as Answer) // prettier-ignore
        },
      }),
    },
  })
  return { made, control }
}

const options = { user: 'admin', force: false }

t.test(
  'a change that would fill a shard into its reserve is refused, by name and number, unless it is forced',
  async t => {
    const { made, control } = world()
    const drain = [{ op: 'drain-shard', shard: 'n3-s0' }] as const
    const calm = await control.plan(drain)
    t.same(calm.problems, [])
    t.notOk('bytesTo' in calm.estimate)
    const gains = calm.shards.find(({ shard }) => shard === 'n0-s0')?.gains ?? 0
    t.ok(gains > 0)
    const needed = gains * blobBytes

    made.free.set('n0-s0', 1e6 + needed)
    t.match(await control.apply(drain, options), { id: 1 }, 'just enough')
    made.free.set('n0-s0', 1e6 + needed - 1)
    const problem = `shard n0-s0 has no room: about ${needed} bytes would be copied to it, ${1e6 + needed - 1} bytes are free, of which 1000000 must stay free`
    t.same((await control.plan(drain)).problems, [problem])
    await t.rejects(control.apply(drain, options), {
      code: 'TOPOLOGY_INVALID',
      message: `${problem} (--force does it nevertheless)`,
    })
    t.equal(made.runs.length, 1, 'nothing was begun')
    await control.apply(drain, { ...options, force: true })
    t.match(made.runs[1], { user: 'admin', params: { force: true, epoch: map.epoch } })
  },
)

t.test('a node that is to be added is asked for its room', async t => {
  const { made, control } = world()
  const add = [{ op: 'add-node', url: 'http://10.0.0.1:9009' }] as const
  t.same((await control.plan(add)).problems, [])
  made.free.set('n9-s0', 2e6)
  await t.rejects(control.apply(add, options), { code: 'TOPOLOGY_INVALID', message: /shard n9-s0 has no room: .* 2000000 bytes are free/ }) // prettier-ignore
})

t.test('a plan takes as long as the disk that gets most, at the rate of each', async t => {
  const { control } = world()
  // The only one of its zone, so that what it has goes to several others.
  const drain = [{ op: 'drain-shard', shard: 'n1-s0' }] as const
  const rate = 1_000
  const { shards, estimate } = await control.plan(drain, { bytesPerSecond: rate })
  const gaining = shards.filter(({ gains }) => gains > 0)
  const most = Math.max(...gaining.map(({ gains }) => gains))
  t.ok(gaining.length > 1, 'several get some')
  t.equal(estimate.slowest?.bytes, most * blobBytes)
  t.ok(gaining.some(({ node, gains }) => node === estimate.slowest?.node && gains === most))
  t.equal(estimate.seconds, Math.ceil((most * blobBytes) / rate) + 8)
  t.ok(estimate.bytes > most * blobBytes)
  const fast = (await control.plan(drain, { bytesPerSecond: 1e12 })).estimate.seconds
  t.ok(fast >= 8 && fast < 15, `blobs and references take their time too: ${fast} s`)
})

t.test('the disks of one node are filled side by side, as fast as the node takes it', async t => {
  const { moves } = planChanges(map, [{ op: 'weight', shard: 'n1-s0', weight: 0 }])
  const partitions = Array.from({ length: 4_096 }, (_, partition) => {
    return { partition, blobs: { count: 1, hash: 'f'.repeat(16) }, references: emptySet, bytes: blobBytes }
  })
  const clients = { ofShard: () => ({ requestJson: async <Answer>() => Promise.resolve({ partitions } as Answer) }) }
  const estimate = (nodeOf: (shard: string) => string) =>
    estimateMoves({ clients }, moves, { bytesPerSecond: 1_000, nodeOf }, new AbortController().signal)
  const together = await estimate(() => 'big')
  const alone = await estimate(shard => shard)
  t.equal(together.seconds, alone.seconds)
  t.same(together.slowest, { node: 'big', bytes: together.bytes })
  t.ok(together.bytes > (alone.slowest?.bytes ?? 0), 'of several disks')
})

t.test('a change is judged by the newest map, whichever proxy is asked', async t => {
  const { made, control } = world()
  const { next } = planChanges(map, [{ op: 'weight', shard: 'n3-s0', weight: 0 }])
  made.published = next
  await t.rejects(
    control.plan([{ op: 'reweight-shard', shard: 'n2-s0', weight: 2 }]),
    { code: 'CONFLICT' },
    'unsettled',
  )
  await control.abort('admin')
  t.match(made.runs, [{ params: { abort: true, epoch: next.epoch } }])
  made.run = { id: 9 }
  await t.rejects(control.abort('admin'), { code: 'CONFLICT', message: /topology pause/ }, 'says what to do first')
})

t.test('an abort that cannot be is refused before anything is begun, and goes at the rate it is told', async t => {
  const { made, control } = world()
  await t.rejects(control.abort('admin'), { code: 'CONFLICT', message: /no change of topology/ })
  const fewer = planChanges(map, [
    { op: 'weight', shard: 'n2-s0', weight: 0 },
    { op: 'weight', shard: 'n3-s0', weight: 0 },
  ])
  made.published = fewer.next
  await t.rejects(control.abort('admin'), {
    code: 'TOPOLOGY_INVALID',
    message: /only be finished, not aborted: 3 copies need 3 nodes with a shard that is not drained: there are 2/,
  })
  t.equal(made.runs.length, 0)
  const { next } = planChanges(map, [{ op: 'replicas', replicas: 2 }])
  made.published = { ...next, epoch: next.epoch + 1 }
  await control.abort('admin', 5_000)
  t.match(made.runs, [{ params: { abort: true, epoch: next.epoch + 1, bytesPerSecond: 5_000 } }])
})

t.test('an abort that cannot be is refused before anything is begun, and goes at the rate it is told', async t => {
  const { made, control } = world()
  await t.rejects(control.abort('admin'), { code: 'CONFLICT', message: /no change of topology/ })
  const fewer = planChanges(map, [
    { op: 'weight', shard: 'n2-s0', weight: 0 },
    { op: 'weight', shard: 'n3-s0', weight: 0 },
  ])
  made.published = fewer.next
  await t.rejects(control.abort('admin'), {
    code: 'TOPOLOGY_INVALID',
    message: /only be finished, not aborted: 3 copies need 3 nodes with a shard that is not drained: there are 2/,
  })
  t.equal(made.runs.length, 0)
  const { next } = planChanges(map, [{ op: 'replicas', replicas: 2 }])
  made.published = { ...next, epoch: next.epoch + 1 }
  await control.abort('admin', 5_000)
  t.match(made.runs, [{ params: { abort: true, epoch: next.epoch + 1, bytesPerSecond: 5_000 } }])
})

t.test('a node is taken out by hand as long as enough others are in, and only what is out is taken in', async t => {
  const { made, control } = world()
  const out = { op: 'out-node', node: 'n3' } as const
  t.same([...changesOf(['node', 'out', 'n3'], undefined), ...changesOf(['shard', 'in', 'n3-s0'], undefined)], [
    out,
    { op: 'in-shard', shard: 'n3-s0' },
  ]) // prettier-ignore
  await control.apply([out], options)
  t.match(made.runs[0], { params: { changes: [{ op: 'out', shard: 'n3-s0', since: Number, auto: false }] } })
  await t.rejects(control.apply([{ op: 'in-node', node: 'n3' }], options), { code: 'NOT_FOUND' })
  await t.rejects(control.apply([{ op: 'in-shard', shard: 'n3-s0' }], options), { code: 'CONFLICT' })
  await t.rejects(control.apply([{ op: 'out-node', node: 'n77' }], options), { code: 'NOT_FOUND' })
})

t.test('nodes that do not tell bytes are estimated by a sample of names', async t => {
  const drain = [{ op: 'drain-shard', shard: 'n3-s0' }] as const
  const [told, sampled] = [await world().control.plan(drain), await world(() => null).control.plan(drain)]
  t.ok(told.estimate.bytes > 0)
  t.same(sampled.estimate, told.estimate)
  const uneven = await world(partition => partition).control.plan(drain)
  t.ok(uneven.estimate.bytes > 10 * blobBytes, 'and others are believed')
})

t.test('by bytes: swaps where counts are even, what they bring, and what is refused', async t => {
  const uneven = (partition: number): number => (partition % 64 === 5 ? 1_000_000 : 100)
  const { made, control } = world(uneven)
  const plan = await control.plan([], { byBytes: true })
  const swaps = plan.byBytes?.swaps ?? 0
  t.ok(swaps > 0)
  t.equal(plan.partitions, swaps * 2)
  t.equal(plan.estimate.bytes, plan.byBytes?.bytes)
  t.ok(plan.byBytes?.spread.some(({ before, after }) => after < before))
  t.notOk(plan.byBytes?.spread.some(({ before, after }) => after > before))
  t.match(await control.apply([], { ...options, byBytes: true }), { id: 1 })
  t.match(made.runs, [{ params: { epoch: map.epoch, changes: [{ op: 'swap', swaps: [] }] } }])
  const { changes } = made.runs[0]!.params as { changes: TopologyChange[] }
  t.equal(paramsOf({ changes, epoch: map.epoch }).changes, changes, 'the task takes them')
  t.match(planChanges(map, changes).moves, { length: swaps * 2 })
  for (const wrong of [{ partition: 4096 }, { from: -1 }, { to: '1' }, { more: 1 }]) {
    const swap = { partition: 0, from: 0, other: 1, to: 1, ...wrong }
    t.throws(() => paramsOf({ changes: [{ op: 'swap', swaps: [swap] }] }), { code: 'BAD_REQUEST' })
  }

  await t.rejects(control.apply([], options), { code: 'BAD_REQUEST' })
  await t.rejects(world().control.apply([], { ...options, byBytes: true }), { code: 'CONFLICT', message: /no swap/ })
  await t.rejects(world(() => null).control.plan([], { byBytes: true }), { code: 'REPLICAS_UNREACHABLE', message: /of 4096 partitions/ }) // prettier-ignore
  const one = map.shards[0]!.id
  made.silent.add(one)
  t.match((await control.plan([], { byBytes: true })).byBytes, { swaps }, 'one that is away: the others know')
})

t.test('a shard that has lost its disk is shown as failed, though its node is up', async t => {
  const { made, control } = world()
  made.failed.add('n1-s0').add('n2-s0')
  made.down.add('n2')
  const states = new Map((await control.show()).shards.map(({ shard, state }) => [shard, state]))
  t.equal(states.get('n0-s0'), 'up')
  t.equal(states.get('n1-s0'), 'failed')
  t.equal(states.get('n2-s0'), 'down', 'what its node said before is old')
})

t.test('an abort says which weights it leaves, and so does whoever looks afterwards', async t => {
  const { made, control } = world()
  t.same((await control.show()).warnings, [])
  made.published = planChanges(map, [{ op: 'weight', shard: 'n3-s0', weight: 0 }]).next
  t.same((await control.show()).warnings, [], 'a drain under way is no surprise')
  const text =
    /^n3-s0 has weight 0 and \d+ partitions: the next change moves them; 'shard reweight n3-s0 --weight 100' keeps them$/
  t.match((await control.abort('admin')).warnings, [text])
  made.published = abortTransition(made.published)
  const { warnings, shards } = await control.show()
  t.match(warnings, [text])
  t.equal(warnings.length, 1)
  t.ok(shards.find(({ shard }) => shard === 'n3-s0')!.partitions > 0)
})

t.test('a shard that an aborted change had added is named: the next change would fill it', async t => {
  const added = planChanges(map, [{ op: 'add-shard', shard: 'n0-s1', node: 'n0', weight: 50 }]).next
  const aborted = abortTransition(added)
  const settled = settlePartitions(aborted, movesOf(aborted).map(({ partition }) => partition)) // prettier-ignore
  t.same(weightWarnings(aborted), [], 'it may still have something to give back')
  t.match(weightWarnings(settled), [/^n0-s1 has weight 50 and no partitions: the next change fills it; 'shard remove n0-s1'/]) // prettier-ignore
  const out = planChanges(map, [{ op: 'out', shard: 'n3-s0', since: 1, auto: true }]).next
  t.same(weightWarnings(abortTransition(out)), [], 'what is out is meant to be')
})

t.test('a weight of 0 is no reweighting, and the bounds of weights and copies are named', async t => {
  const { made, control } = world()
  const reweight = (weight: number) => control.apply([{ op: 'reweight-shard', shard: 'n0-s0', weight }], options)
  await t.rejects(reweight(0), { code: 'BAD_REQUEST', message: /use 'shard drain n0-s0'/ })
  for (const wrong of [-5, 0.0001, 1_000_001, 99_999_999_999, 1.0005]) {
    await t.rejects(reweight(wrong), { code: 'BAD_REQUEST', message: /a weight must be 0\.001 to 1000000/ })
  }
  await t.rejects(control.plan([{ op: 'add-shard', shard: 'n0-s0', weight: 0 }]), { code: 'BAD_REQUEST' })
  for (const replicas of [-1, 0, 17]) {
    await t.rejects(control.plan([{ op: 'replicas', replicas }]), { code: 'BAD_REQUEST', message: /must be 1 to 16/ })
  }
  t.equal(made.runs.length, 0)
  await reweight(0.001)
  t.match(made.runs, [{ params: { changes: [{ op: 'weight', weight: 0.001 }] } }])
})

t.test('changes of the same shard that contradict each other are refused', async t => {
  const { control } = world()
  const drain = { op: 'drain-shard', shard: 'n0-s0' } as const
  const reweight = { op: 'reweight-shard', shard: 'n0-s0', weight: 50 } as const
  const text = 'changes that contradict each other: shard n0-s0 drained, and shard n0-s0 has weight 50'
  await t.rejects(control.plan([drain, reweight]), { code: 'BAD_REQUEST', message: text })
  await t.rejects(control.apply([{ op: 'drain-node', node: 'n0' }, reweight], { ...options, force: true }), { code: 'BAD_REQUEST' }) // prettier-ignore
  for (const other of [{ ...reweight, weight: 60 }, { op: 'out-shard', shard: 'n0-s0' } as const]) {
    await t.rejects(control.plan([reweight, other]), { code: 'BAD_REQUEST', message: /contradict/ })
  }
  await t.rejects(control.plan([{ op: 'replicas', replicas: 2 }, { op: 'replicas', replicas: 3 }]), { message: /contradict/ }) // prettier-ignore
  t.match(await control.plan([drain, drain]), { problems: [] }, 'the same twice')
  t.match(await control.plan([reweight, { ...reweight, shard: 'n1-s0' }]), { problems: [] }, 'of two shards')
  const added = [{ op: 'add-node', url: 'http://10.0.0.1:9009' }, { op: 'reweight-shard', shard: 'n9-s0', weight: 2 }] as const // prettier-ignore
  t.match(await control.plan(added), { problems: [] }, 'added with another weight than its node says')
})

t.test('what is still pausing can be neither resumed nor aborted, and says so', async t => {
  const { made, control } = world()
  made.published = planChanges(map, [{ op: 'weight', shard: 'n3-s0', weight: 0 }]).next
  made.run = { id: 9, stoppedBy: 'admin' }
  await t.rejects(control.resume('admin'), { code: 'CONFLICT', message: /still pausing.*: 'topology resume' it then/ })
  await t.rejects(control.abort('admin'), { code: 'CONFLICT', message: /still pausing.*: 'topology abort' it then/ })
  made.run = null
  t.match(await control.resume('admin'), { id: 1 })
})
