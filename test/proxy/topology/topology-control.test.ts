/** What operators ask of the topology, with nodes that are a function each: what is refused, and what is passed on to the task. */
import t from 'tap'
import { changeOf } from '../../../cli/topology.ts'
import type { JobRun } from '../../../proxy/metadata/job-types.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { TopologyControl } from '../../../proxy/topology/topology-control.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { emptySet } from '../../../shared/set-digest.ts'
import type { NodeStatus, ShardStatus } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

const map = buildClusterMap(topologyOf(evenSpec(4, 3)))
const blobBytes = 1_000

/** Every shard holds one blob of 1,000 bytes in each of its partitions. */
function world() {
  const view = new ClusterView(map)
  const made = {
    free: new Map<string, number>(),
    runs: [] as { user: string; params: unknown }[],
    added: undefined as NodeStatus | undefined,
    /** What another proxy has published. */
    published: map,
  }
  const shardStatus = (id: string): ShardStatus => ({
    id: id as ShardId,
    weight: 1,
    state: 'ok',
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
          return { node: id, state: 'up', draining: false, status: statusOf(id, own) }
        }),
    },
    jobs: {
      run: async (_name, user, params) => {
        made.runs.push({ user, params })
        return Promise.resolve(run)
      },
      stop: async () => Promise.resolve(run),
      get: async () => Promise.reject(new Error('nobody asks')),
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
          return Promise.resolve({ partitions: owned.map(partition => ({ partition, blobs, references: emptySet })) } as Answer) // prettier-ignore
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
    await t.rejects(control.apply(drain, options), { code: 'TOPOLOGY_INVALID', message: problem })
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

t.test('a plan takes as long as the node that gets most, at the rate of each', async t => {
  const { control } = world()
  // The only one of its zone, so that what it has goes to several others.
  const drain = [{ op: 'drain-shard', shard: 'n1-s0' }] as const
  const rate = 1_000
  const { shards, estimate } = await control.plan(drain, rate)
  const gaining = shards.filter(({ gains }) => gains > 0)
  const most = Math.max(...gaining.map(({ gains }) => gains))
  t.ok(gaining.length > 1, 'several get some')
  t.equal(estimate.slowest?.bytes, most * blobBytes)
  t.ok(gaining.some(({ node, gains }) => node === estimate.slowest?.node && gains === most))
  t.equal(estimate.seconds, Math.ceil((most * blobBytes) / rate) + 8)
  t.ok(estimate.bytes > most * blobBytes)
  const fast = (await control.plan(drain, 1e12)).estimate.seconds
  t.ok(fast >= 8 && fast < 15, `blobs and references take their time too: ${fast} s`)
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
})

t.test('a node is taken out by hand as long as enough others are in, and only what is out is taken in', async t => {
  const { made, control } = world()
  const out = changeOf(['node', 'out', 'n3'], undefined)
  t.same([out, changeOf(['shard', 'in', 'n3-s0'], undefined)], [
    { op: 'out-node', node: 'n3' },
    { op: 'in-shard', shard: 'n3-s0' },
  ]) // prettier-ignore
  await control.apply([out], options)
  t.match(made.runs[0], { params: { changes: [{ op: 'out', shard: 'n3-s0', since: Number, auto: false }] } })
  await t.rejects(control.apply([{ op: 'in-node', node: 'n3' }], options), { code: 'NOT_FOUND' })
  await t.rejects(control.apply([{ op: 'in-shard', shard: 'n3-s0' }], options), { code: 'CONFLICT' })
  await t.rejects(control.apply([{ op: 'out-node', node: 'n77' }], options), { code: 'NOT_FOUND' })
})
