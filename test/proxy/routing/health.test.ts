import fc from 'fast-check'
import t from 'tap'
import { HealthChecker } from '../../../proxy/routing/health-checker.ts'
import { type HealthOptions, HealthTable } from '../../../proxy/routing/health.ts'
import { RetryBudget } from '../../../proxy/routing/retry-budget.ts'
import type { NodeId, ShardId } from '../../../shared/ids.ts'
import type { NodeStatus } from '../../../shared/wire.ts'
import { fakeMap } from '../../support/fake-node.ts'
import { startCluster } from './read-support.ts'

const ids = ['a', 'b', 'c', 'd'] as NodeId[]
const [a, b, c, d] = ids as [NodeId, NodeId, NodeId, NodeId]

function table(options: Partial<HealthOptions> = {}): { health: HealthTable; clock: { ms: number }; told: string[] } {
  const clock = { ms: 1_000_000 }
  const told: string[] = []
  const health = new HealthTable({
    now: () => clock.ms,
    options,
    onChange: (node, state, reason) => told.push(`${node} ${state} ${reason ?? ''}`.trim()),
  })
  health.setNodes(ids)
  return { health, clock, told }
}

const status = (node: NodeId, more: Partial<NodeStatus> = {}): NodeStatus => ({
  version: '0',
  wire: 1,
  clusterId: 'test',
  node,
  zone: 'z' as NodeStatus['zone'],
  state: 'up',
  epoch: 1,
  shards: [],
  ...more,
})

t.test('three failed checks take a node down, two good ones bring it back, slowly', t => {
  const { health, clock, told } = table()
  health.checked(a, undefined)
  t.equal(health.state(a), 'suspect')
  health.checked(a, undefined)
  health.checked(a, undefined)
  t.equal(health.state(a), 'down')
  health.checked(a, status(a))
  t.equal(health.state(a), 'down', 'one good check is not enough')
  health.checked(a, undefined)
  health.checked(a, status(a))
  t.equal(health.state(a), 'down', 'nor are two with a failed one between')
  health.checked(a, status(a))
  t.equal(health.state(a), 'up')
  t.equal(health.share(a), 0.1)
  clock.ms += 5_000
  t.equal(health.share(a), 0.5)
  clock.ms += 6_000
  t.equal(health.share(a), 1)
  t.same(told, ['a suspect failing', 'a down checks failed', 'a up'])
  t.end()
})

t.test('three refused connections or five failures eject, longer each time, and a success between starts over', t => {
  const { health, clock } = table()
  for (const outcome of ['unreachable', 'unreachable', 'ok', 'unreachable', 'unreachable'] as const)
    health.observe(a, outcome)
  t.equal(health.state(a), 'suspect')
  health.observe(a, 'unreachable')
  t.equal(health.state(a), 'down')
  clock.ms += 5_001
  t.equal(health.state(a), 'up', 'the ejection ends by itself')
  t.equal(health.share(a), 0.1, 'into a slow start')
  for (let count = 0; count < 5; count += 1) health.observe(a, 'failed')
  clock.ms += 9_999
  t.equal(health.state(a), 'down', 'the second one lasts 10 s')
  clock.ms += 2
  t.equal(health.state(a), 'up')
  for (let round = 0; round < 30; round += 1) {
    for (let count = 0; count < 5; count += 1) health.observe(a, 'failed')
    clock.ms += 60_000
    t.equal(health.state(a), 'up', 'none lasts longer than 60 s')
  }
  t.end()
})

t.test('a node that is down may be back for half a minute after its last good check', t => {
  const { health, clock } = table()
  t.equal(health.mayBeBack(a), false, 'never seen')
  health.checked(a, status(a))
  for (let i = 0; i < 3; i++) health.checked(a, undefined)
  t.equal(health.state(a), 'down')
  clock.ms += 29_000
  t.equal(health.mayBeBack(a), true)
  clock.ms += 2_000
  t.equal(health.mayBeBack(a), false)
  t.end()
})

t.test('failures long ago do not count as in a row', t => {
  const { health, clock } = table()
  for (let count = 0; count < 20; count += 1) {
    health.observe(a, 'failed')
    clock.ms += 10_001
  }
  t.equal(health.state(a), 'up')
  t.equal(health.ejectionCount, 0)
  t.end()
})

t.test('at most half of the nodes are ejected by failed requests', t => {
  const { health } = table()
  for (const node of ids) for (let count = 0; count < 50; count += 1) health.observe(node, 'failed')
  t.same(
    ids.map(node => health.state(node)),
    ['down', 'down', 'suspect', 'suspect'],
  )
  health.setNodes([c, d])
  t.equal(health.state(a), 'up', 'a node that left the map is forgotten')
  t.end()
})

t.test('draining, failed, full and read-only are what the node last said', t => {
  const { health } = table()
  const shard = (id: string, state: 'ok' | 'full' | 'read-only' | 'failed', bytesFree = 100) => ({
    id: id as ShardId,
    weight: 1,
    state,
    bytesTotal: 1_000,
    bytesFree,
  })
  const shards = [shard('a-0', 'ok'), shard('a-1', 'full'), shard('a-2', 'read-only'), shard('a-3', 'failed')]
  health.checked(a, status(a, { state: 'draining', shards }))
  t.ok(health.draining(a))
  t.same(
    shards.map(({ id }) => health.shardState(id)),
    ['ok', 'full', 'read-only', 'failed'],
  )
  t.same(
    shards.map(({ id }) => health.writable(a, id, 50)),
    [true, false, false, false],
  )
  t.notOk(health.writable(a, 'a-0' as ShardId, 100), 'no room')
  t.ok(health.writable(b, 'b-0' as ShardId), 'nothing known yet')
  health.checked(a, status(a, { shards: shards.slice(0, 1) }))
  t.equal(health.shardState('a-3' as ShardId), 'ok', 'a shard no longer named is as good as unknown')
  t.notOk(health.draining(a))
  t.end()
})

t.test('I39: a node that said that it goes is down with the first silence, and up with the first answer', t => {
  for (const leave of [
    (health: HealthTable) => health.checked(a, undefined),
    (health: HealthTable) => health.observe(a, 'unreachable'),
  ]) {
    const { health, clock } = table()
    health.checked(a, status(a, { run: 'first' }))
    for (let i = 0; i < 5; i++) health.observe(a, 'failed')
    health.checked(a, status(a, { state: 'draining', run: 'first' }))
    leave(health)
    t.equal(health.state(a), 'down')
    t.ok(health.draining(a))
    for (let i = 0; i < 9; i++) health.observe(a, 'unreachable')
    clock.ms += 2_000
    health.checked(a, status(a, { run: 'second' }))
    t.equal(health.state(a), 'up', 'what it did before does not count')
    t.equal(health.run(a), 'second')
    t.equal(health.share(a), 0.1, 'its caches are empty')
  }
  t.end()
})

t.test('whatever happens, passive ejection takes at most half of the nodes, and all come back', t => {
  const event = fc.record({
    node: fc.constantFrom(...ids),
    outcome: fc.constantFrom('ok' as const, 'failed' as const, 'unreachable' as const),
    pause: fc.nat(3_000),
  })
  fc.assert(
    fc.property(fc.array(event, { maxLength: 200 }), events => {
      const { health, clock } = table()
      for (const { node, outcome, pause } of events) {
        clock.ms += pause
        health.observe(node, outcome)
        if (ids.filter(id => health.state(id) === 'down').length > 2) return false
      }
      clock.ms += 70_001
      return ids.every(id => health.state(id) === 'up')
    }),
  )
  t.end()
})

t.test('I33: retries and hedges stay within 25 % of the requests in any 10 s', t => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 40 }), fc.nat(8)), { minLength: 1, maxLength: 800 }),
      steps => {
        let ms = 0
        const budget = new RetryBudget(() => ms)
        const log: { at: number; requests: number; extra: number }[] = []
        for (const [pause, wishes] of steps) {
          ms += pause
          budget.request()
          let extra = 0
          for (let wish = 0; wish < wishes; wish += 1) extra += Number(budget.tryHedge()) + Number(budget.tryRetry())
          log.push({ at: ms, requests: 1, extra })
        }
        // The bursts and the few that are always there come on top, once.
        for (const { at: start } of log.filter((_, index) => index % 50 === 0)) {
          const window = log.filter(({ at }) => at >= start && at < start + 10_000)
          const extra = window.reduce((sum, entry) => sum + entry.extra, 0)
          if (extra > 0.25 * window.length + 2 * 5 + 2 * 3) return false
        }
        return true
      },
    ),
  )
  t.end()
})

t.test('a quiet proxy may retry three times in 10 s, and what was forced is paid back first', t => {
  let ms = 0
  const budget = new RetryBudget(() => ms)
  const spend = (): number => {
    let count = 0
    while (budget.tryRetry()) count += 1
    return count
  }
  t.equal(spend(), 5)
  t.equal(spend(), 0)
  ms += 10_000
  t.equal(spend(), 3)
  for (let count = 0; count < 100; count += 1) budget.forced()
  ms += 10_000
  t.equal(spend(), 0)
  for (let count = 0; count < 28; count += 1) budget.request()
  t.equal(spend(), 3)
  t.end()
})

t.test('the checker notices a dead node, a frozen one, an impostor and a newer map', async t => {
  const cluster = await startCluster(t, { nodeCount: 4 })
  const [dead, frozen, other, newer] = cluster.nodes
  if (dead === undefined || frozen === undefined || other === undefined || newer === undefined)
    throw new Error('four nodes')
  const epochs: number[] = []
  const checker = new HealthChecker({
    ...cluster,
    intervalMs: 100,
    timeoutMs: 500,
    onNewerEpoch: (_node, epoch) => epochs.push(epoch),
  })
  t.teardown(() => checker.close())
  await checker.start()
  await dead.stop()
  frozen.statusDelayMs = 10_000
  other.status = { node: 'z' as NodeId }
  newer.status = { epoch: 7 }
  const states = (): string =>
    cluster.health
      .nodes()
      .map(({ state }) => state)
      .join(' ')
  while (states() !== 'down down down up') await new Promise(resolve => setImmediate(resolve))
  t.ok(epochs.includes(7))
  frozen.statusDelayMs = 0
  other.status = {}
  await dead.start()
  while (states() !== 'up up up up') await new Promise(resolve => setImmediate(resolve))
  cluster.view.replace(fakeMap(cluster.nodes.slice(1), 3, 8))
  await checker.start()
  t.same(
    cluster.health.nodes().map(({ node }) => node),
    ['b', 'c', 'd'],
    'nodes come and go with the map',
  )
})

t.test('a node that fails its requests is soon asked last, although its checks are good', async t => {
  const cluster = await startCluster(t)
  const [ill] = cluster.nodes
  if (ill === undefined) throw new Error('there are nodes')
  ill.fault = () => ({ cutAt: 0 })
  const blobs = Array.from({ length: 20 }, (_, index) => cluster.put(Buffer.from(`blob ${index}`)))
  for (const blob of blobs) await cluster.reader.readWhole(blob)
  t.equal(cluster.health.state(ill.id), 'suspect')
  t.ok(ill.requests.length >= 2 && ill.requests.length <= 5, `${ill.requests.length} requests`)
  for (let count = 0; count < 3; count += 1) cluster.health.observe(ill.id, 'failed')
  t.equal(cluster.health.state(ill.id), 'down')
  for (const node of cluster.nodes.slice(1)) await node.stop()
  ill.fault = () => ({})
  const [blob] = blobs
  if (blob !== undefined)
    t.equal((await cluster.reader.readWhole(blob)).toString(), 'blob 0', 'but it is asked when no other is left')
})
