import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { HealthChecker } from '../../../proxy/routing/health-checker.ts'
import { HealthTable } from '../../../proxy/routing/health.ts'
import { NodeClients } from '../../../proxy/routing/node-client.ts'
import { MapKeeper, type MapKeeperDeps } from '../../../proxy/topology/map-keeper.ts'
import { decodeClusterMap, encodeClusterMap, type ClusterMap } from '../../../shared/cluster-map.ts'
import { eventually } from '../../support/eventually.ts'
import { fakeMap, startFakeNodes, testSecret } from '../../support/fake-node.ts'
import { away, gate, silent } from '../artifacts/fixtures.ts'

async function setUp(t: Test, overrides: Partial<MapKeeperDeps> = {}) {
  const nodes = await startFakeNodes(3)
  t.teardown(() => Promise.all(nodes.map(node => node.stop())))
  const view = new ClusterView(fakeMap(nodes, 3))
  const world = {
    newer: fakeMap(nodes, 3, 7),
    loads: 0,
    asked: 0,
    load: async (newerThan = 0): Promise<ClusterMap | undefined> =>
      world.newer.epoch > newerThan ? world.newer : undefined,
    answer: async (): Promise<unknown> => JSON.parse(encodeClusterMap(world.newer)) as unknown,
  }
  const stateFolder = t.testdir()
  const keeper = new MapKeeper({
    metadata: { loadClusterMap: newerThan => (world.loads++, world.load(newerThan)) },
    view,
    health: { nodes: () => [] },
    clients: { get: () => ({ requestJson: async <Answer>() => (world.asked++, (await world.answer()) as Answer) }) },
    stateFolder,
    log: silent,
    ...overrides,
  })
  t.teardown(() => keeper.close())
  const kept = async (): Promise<number> =>
    decodeClusterMap(await readFile(join(stateFolder, 'cluster-map.json'), 'utf8')).epoch
  return { nodes, view, world, keeper, kept, informant: view.current().map.nodes[0]! }
}

const epochOf = (view: ClusterView): number => view.current().map.epoch

t.test('a node that reports a newer map makes the proxy fetch it at once, not with the next poll', async t => {
  const { nodes, view, keeper, kept } = await setUp(t)
  await keeper.start()
  const health = new HealthTable({ now: () => performance.now() })
  const clients = new NodeClients({ clusterSecret: testSecret, view, health })
  const onNewerEpoch: NonNullable<ConstructorParameters<typeof HealthChecker>[0]['onNewerEpoch']> = (node, epoch) =>
    void keeper.catchUp(node, epoch)
  const checker = new HealthChecker({ view, clients, health, onNewerEpoch, intervalMs: 50 })
  t.teardown(async () => {
    await checker.close()
    await clients.close()
  })
  await checker.start()
  t.equal(epochOf(view), 1)
  nodes[1]!.status = { epoch: 7 }
  const since = performance.now()
  await eventually('the newer map', () => epochOf(view) === 7, { everyMs: 5, withinMs: 4_000 }) // a poll comes after 5 s
  t.comment(`after ${Math.round(performance.now() - since)} ms`)
  await eventually('on disk too', async () => (await kept()) === 7)
})

t.test('many nodes that report it cost one look, and what is known already costs none', async t => {
  const { view, world, keeper, informant } = await setUp(t)
  const loaded = gate<ClusterMap | undefined>()
  world.load = () => loaded.promise
  const calls = [1, 2, 3].map(() => keeper.catchUp(informant, 7))
  loaded.open(world.newer)
  await Promise.all(calls)
  t.same([epochOf(view), world.loads, world.asked], [7, 1, 0])
  await keeper.catchUp(informant, 7)
  t.equal(world.loads, 1)
})

t.test(
  'the newest map is fetched once, and what this proxy published itself comes to its disk all the same',
  async t => {
    const { nodes, view, world, keeper, kept } = await setUp(t)
    const fetched: number[] = []
    const load = world.load
    world.load = async newerThan => {
      const map = await load(newerThan)
      if (map !== undefined) fetched.push(map.epoch)
      return map
    }
    for (let look = 0; look < 3; look += 1) await keeper.renew()
    t.same([fetched, await kept()], [[7], 7])
    world.newer = fakeMap(nodes, 3, 8)
    view.replace(world.newer)
    await keeper.renew()
    t.same([fetched, await kept()], [[7], 8])
  },
)

t.test('while PostgreSQL is away the map comes from the node that reported it', async t => {
  const { nodes, view, world, keeper, kept, informant } = await setUp(t)
  world.load = async () => {
    throw away()
  }
  world.answer = async () => ({ ...world.newer, epoch: 9 })
  await keeper.catchUp(informant, 9)
  t.equal(epochOf(view), 1, 'a map with a wrong checksum is refused')
  world.answer = async () => JSON.parse(encodeClusterMap(world.newer)) as unknown
  await keeper.catchUp(informant, 7)
  t.same([epochOf(view), await kept()], [7, 7])
  await keeper.close()
  world.newer = fakeMap(nodes, 3, 8)
  await keeper.catchUp(informant, 8)
  t.equal(world.loads, 2, 'a closed keeper asks nobody')
})
