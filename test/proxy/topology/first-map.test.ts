import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import type { Metadata } from '../../../proxy/metadata/types.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import {
  firstClusterMap,
  followAddresses,
  topologyOf,
  withNewAddresses,
  type FirstMapOptions,
} from '../../../proxy/topology/first-map.ts'
import { decodeClusterMap, encodeClusterMap, type ClusterMap } from '../../../shared/cluster-map.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { parseNodeId, parseShardId, parseZone } from '../../../shared/ids.ts'
import { wireAuthorization, type NodeStatus } from '../../../shared/wire.ts'
import { eventually } from '../../support/eventually.ts'
import { silent } from '../artifacts/fixtures.ts'

const secret = 'a-secret-of-the-test'

function statusOf(name: string, clusterId = 'c'): NodeStatus {
  const shards = [1, 2].map(index => ({ id: parseShardId(`${name}-${index}`), weight: 1, state: 'ok', bytesTotal: 1, bytesFree: 1 })) // prettier-ignore
  return { node: parseNodeId(name), zone: parseZone(name.slice(-1)), clusterId, epoch: 0, state: 'ok', shards } as unknown as NodeStatus // prettier-ignore
}

/** A storage node as far as its status goes. */
async function node(t: Test, name: string, port = 0): Promise<{ url: string; close: () => Promise<void> }> {
  const server = createServer((request, response) => {
    const allowed = request.headers.authorization === wireAuthorization(secret)
    response.writeHead(allowed ? 200 : 401, { connection: 'close' }).end(JSON.stringify(statusOf(name)))
  }).listen(port, '127.0.0.1')
  await once(server, 'listening')
  const close = async (): Promise<void> => {
    if (!server.listening) return
    server.close()
    await once(server, 'close')
  }
  t.teardown(close)
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, close }
}

/** What PostgreSQL does: compare-and-set on the epoch, a token that grows. */
function store() {
  const world = {
    map: undefined as ClusterMap | undefined,
    token: 0,
    leaseFree: true,
    published: 0,
    fault: undefined as HoldfastError | undefined,
  }
  const metadata: Pick<Metadata, 'loadClusterMap' | 'publishClusterMap' | 'issueToken' | 'clusterId'> = {
    clusterId: 'c',
    loadClusterMap: async () => world.map,
    issueToken: async () => ++world.token,
    publishClusterMap: async (map, token) => {
      if (world.fault !== undefined) throw world.fault
      if (token !== world.token) throw new HoldfastError('LEASE_LOST', 'older token')
      if (map.epoch <= (world.map?.epoch ?? 0)) return false
      world.published++
      world.map = map
      return true
    },
  }
  const coordinator = {
    acquire: async () => {
      if (!world.leaseFree) return undefined
      return { token: ++world.token, signal: new AbortController().signal, release: async () => {} }
    },
  }
  return { world, deps: { metadata, coordinator, log: silent } }
}

const options = (storageNodes: readonly string[]): FirstMapOptions => ({ storageNodes, replicas: 3, secret })
const never = new AbortController().signal

t.test('a new cluster waits for all its nodes, then one of the proxies that start makes the map', async t => {
  const { world, deps } = store()
  const up = await Promise.all(['n-a', 'n-b'].map(name => node(t, name)))
  const last = await node(t, 'n-c')
  await last.close()
  const port = Number(new URL(last.url).port)
  const urls = [...up.map(({ url }) => url), last.url]
  const waiting = Promise.all([1, 2].map(() => firstClusterMap(deps, options(urls), never)))
  await new Promise(setImmediate)
  t.equal(world.published, 0)
  await node(t, 'n-c', port)
  const [one, two] = await waiting
  t.equal(world.published, 1)
  t.equal(one?.epoch, 1)
  t.same(two?.nodes, one?.nodes)
  t.same(one?.nodes.map(({ url }) => url).sort(), [...urls].sort())
  t.equal(one?.shards.length, 6)
  t.same(decodeClusterMap(encodeClusterMap(one as ClusterMap)).epoch, 1)
})

t.test('a start that is ended does not wait; one without nodes says what it needs', async t => {
  const { deps } = store()
  const ending = new AbortController()
  const waiting = firstClusterMap(deps, options(['http://127.0.0.1:1']), ending.signal)
  ending.abort(new Error('ended'))
  await t.rejects(waiting)
  await t.rejects(firstClusterMap(deps, options([]), never), { code: 'CONFIG_INVALID' })
})

t.test('a known cluster starts at once, also while its nodes are away', async t => {
  const { world, deps } = store()
  const nodes = await Promise.all(['n-a', 'n-b', 'n-c'].map(name => node(t, name)))
  const map = await firstClusterMap(deps, options(nodes.map(({ url }) => url)), never)
  for (const { close } of nodes) await close()
  t.same(await firstClusterMap(deps, options(nodes.map(({ url }) => url)), never), map)
  t.same(await firstClusterMap(deps, options([]), never), map)
  t.equal(world.published, 1)
})

t.test('nodes that moved are followed: at a start, and by whoever is primary', async t => {
  const { world, deps } = store()
  const nodes = await Promise.all(['n-a', 'n-b', 'n-c'].map(name => node(t, name)))
  const before = await firstClusterMap(deps, options(nodes.map(({ url }) => url)), never)
  const moved = await node(t, 'n-c')
  await nodes[2]?.close()
  const now = options([...nodes.slice(0, 2).map(({ url }) => url), moved.url])
  world.leaseFree = false
  t.equal((await firstClusterMap(deps, now, never)).epoch, 1, 'another proxy is primary: the start goes on without')

  const view = new ClusterView(before)
  let state: 'up' | 'down' = 'up'
  const health = { nodes: () => before.nodes.map(({ id }) => ({ node: id, state, draining: false })) }
  const task = followAddresses({ metadata: deps.metadata, view, health, log: silent }, now)
  const term = { token: world.token, signal: never }
  await task.step(term)
  t.equal(world.map?.epoch, 1, 'nothing is looked for while every node answers')
  state = 'down'
  await task.step(term)
  t.equal(world.map?.epoch, 2)
  t.equal(view.current().map.nodes.find(({ id }) => id === 'n-c')?.url, moved.url)
  await task.step(term)
  t.equal(world.published, 2)

  world.leaseFree = true
  world.map = before
  t.equal((await firstClusterMap(deps, now, never)).epoch, 2, 'at a start')
})

t.test('nodes of another cluster are refused', async t => {
  const found = ['n-a', 'n-b'].map((name, index) => ({ url: `http://n${index}`, status: statusOf(name, index === 0 ? 'c' : 'other') })) // prettier-ignore
  t.throws(() => topologyOf('c', 3, found), { code: 'TOPOLOGY_INVALID' })
  const { world, deps } = store()
  const nodes = await Promise.all(['n-a', 'n-b', 'n-c'].map(name => node(t, name)))
  await firstClusterMap(deps, options(nodes.map(({ url }) => url)), never)
  const stranger = { url: 'http://elsewhere', status: statusOf('n-a', 'other') }
  t.equal(withNewAddresses(world.map as ClusterMap, [stranger]), undefined)
  await eventually('published once', () => world.published === 1)
})
