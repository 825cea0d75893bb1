/** The tasks that talk to storage nodes, with nodes that are a function each: what is asked of whom, and what follows. */
import t from 'tap'
import type { RepairEntry } from '../../../proxy/metadata/types.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import type { NodeHealth } from '../../../proxy/routing/health.ts'
import { ReclaimUploads } from '../../../proxy/tasks/reclaim-uploads.ts'
import { RepairCopies } from '../../../proxy/tasks/repair-copies.ts'
import { MapKeeper } from '../../../proxy/topology/map-keeper.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { partitionOf } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import type { NodeStatus, TransferRequest, UnconfirmedAnswer } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'
import { artifactOf, away, blobOf, repository, silent } from '../artifacts/fixtures.ts'

const map = buildClusterMap(topologyOf(evenSpec(5, 5)))
const view = new ClusterView(map)
const partition = partitionOf('raw', 'a')
const [first, second, third] = view.current().owners(partition) as [ShardId, ShardId, ShardId]
const [spare, other] = map.shards.map(({ id }) => id).filter(id => ![first, second, third].includes(id)) as [ShardId, ShardId] // prettier-ignore
const term = { token: 5, signal: new AbortController().signal }

interface Call {
  readonly shard: ShardId
  readonly what: string
  readonly body: unknown
  readonly fence: string | undefined
  readonly background: string | undefined
}

/** Nodes that hold what `held` says, and write down what they are asked. */
function nodes() {
  const world = {
    calls: [] as Call[],
    held: new Set<ShardId>([first, second]),
    fail: new Map<ShardId, HoldfastError>(),
    unconfirmed: new Map<ShardId, UnconfirmedAnswer[]>(),
    clients: {
      ofShard: (shard: ShardId) => ({
        requestJson: async <Answer>(
          method: string,
          path: string,
          body?: unknown,
          options?: { fence?: string | undefined; background?: string | undefined },
        ): Promise<Answer> => {
          const what = `${method} ${path.split('?')[0]}`.replace(`/${shard}`, '')
          world.calls.push({ shard, what, body, fence: options?.fence, background: options?.background })
          const fault = world.fail.get(shard)
          if (fault !== undefined) throw fault
          if (what.endsWith('/transfer')) {
            const result = world.held.has(shard) ? 'held' : 'copied'
            world.held.add(shard)
            return { results: [result] } as Answer
          }
          if (what.includes('/unconfirmed')) return (world.unconfirmed.get(shard)?.shift() ?? { blobs: [] }) as Answer
          return { results: [] } as Answer
        },
      }),
    },
  }
  return world
}

function repairs(...entries: Partial<RepairEntry>[]) {
  const queue = entries.map((entry, index): RepairEntry => ({
    id: index + 1, kind: 'blob', partition, missing: [third], handoffs: [], attempts: 0, ...entry,
  })) // prettier-ignore
  const world = {
    ...nodes(),
    down: new Set<ShardId>(),
    log: [] as string[],
    /** Of the repair that was postponed last. */
    attempts: undefined as number | undefined,
    due: async (_missingMin?: number): Promise<readonly RepairEntry[]> => queue.splice(0),
    /** For which shards all that waited was made due. */
    hurried: [] as string[],
    appended: [] as ReferenceRecord[],
    appendMissing: [] as ShardId[],
    artifact: artifactOf('a', 9) as ReturnType<typeof artifactOf> | undefined,
    repositories: [repository],
  }
  const task = new RepairCopies({
    metadata: {
      incarnation: 'i',
      dueRepairs: (_, missingMin) => world.due(missingMin),
      finishRepair: async (id, token) => void world.log.push(`done ${id} ${token}`),
      finishRepairs: async (ids, token) => ids.forEach(id => world.log.push(`done ${id} ${token}`)),
      postponeRepairs: async (later, token) => {
        for (const { id, retryMs, missing, attempts } of later) {
          world.attempts = attempts
          world.log.push(`later ${id} ${token} ${retryMs} ${missing.join()}`)
        }
      },
      repairQueue: {
        hurry: async shards => {
          world.hurried.push(shards?.join() ?? 'all')
          return 0
        },
      },
      listRepositories: async () => world.repositories,
      findArtifacts: async wanted => wanted.map(() => world.artifact),
    },
    references: {
      appendTo: async (record, shards) => {
        world.appended.push(record)
        return new Set(shards.filter(shard => !world.appendMissing.includes(shard)))
      },
    },
    clients: world.clients,
    view,
    health: {
      state: node => ([...world.down].some(shard => view.current().node(shard).id === node) ? 'down' : 'up'),
      writable: (_, shard) => !world.down.has(shard),
    },
    log: silent,
    now: () => 0,
  })
  return { world, task }
}

t.test('a missing copy is pulled from those who have it, and the entry is gone', async t => {
  const blob = blobOf('x')
  const { world, task } = repairs({ blob })
  t.equal(await task.step(term), 'more')
  t.equal(await task.step(term), 'idle')
  t.match(world.calls, [
    {
      shard: third,
      what: 'POST /v1/transfer',
      fence: 'primary:5',
      body: { shard: third, blobs: [{ digest: blob.digest, sources: [{ shard: second }, { shard: first }] }] },
    },
  ])
  t.same(world.log, ['done 1 5'])
  t.same(task.rate, { entriesPerSec: 1, bytesPerSec: blob.bytes })
  t.equal(task.copied, 1)
})

t.test('what has one copy left is copied first, and in a hurry; the rest is not', async t => {
  const [last, usual] = [blobOf('x'), blobOf('y')]
  const { world, task } = repairs({ blob: usual }, { blob: last, missing: [second, third] })
  await task.step(term)
  const digestsIn = (body: unknown) => (body as TransferRequest).blobs.map(({ digest }) => digest)
  const told = world.calls.map(({ background, shard, body }) => [background, shard, digestsIn(body)])
  t.same(told, [
    ['urgent', second, [last.digest]],
    ['urgent', third, [last.digest]],
    ['usual', third, [usual.digest]],
  ])
  const down = repairs({ blob: usual })
  down.world.down.add(first)
  await down.task.step(term)
  t.same(
    down.world.calls.map(({ background }) => background),
    ['urgent'],
    'the other one is on a node that is down',
  )
})

t.test('entries that lack all copies but one are asked for before all others, and not with every step', async t => {
  const asked: (number | undefined)[] = []
  const { world, task } = repairs({ blob: blobOf('x'), missing: [second, third] })
  const waiting = [await world.due()]
  world.due = async missingMin => {
    asked.push(missingMin)
    return missingMin === undefined ? [] : (waiting.pop() ?? [])
  }
  t.equal(await task.step(term), 'more')
  t.equal(await task.step(term), 'idle')
  t.equal(await task.step(term), 'idle')
  t.same(asked, [2, 2, undefined, undefined])
})

t.test('while the owner is away nothing is asked; when it is back the handoff goes last', async t => {
  const entry: Partial<RepairEntry> = { blob: blobOf('x'), handoffs: [spare], attempts: 7 }
  const { world, task } = repairs(entry)
  world.down.add(third)
  await task.step(term)
  t.same(world.calls, [])
  t.same(world.log, [`later 1 5 600000 ${third}`])
  t.equal(world.attempts, 0, 'when it is back the first failure does not cost a minute')
  t.same(world.hurried, ['all'], 'the primary before may have postponed more')
  await task.step(term)
  t.same(world.hurried, ['all'])
  world.down.clear()
  await task.step(term)
  await task.step(term)
  t.same(world.hurried, ['all', third], 'what waited for it is due when it is back, once')
  world.down.add(third)

  const back = repairs(entry)
  await back.task.step(term)
  t.same(
    back.world.calls.map(({ shard, what }) => [what, shard]),
    [
      ['POST /v1/transfer', third],
      ['POST /v1/transfer', first],
      ['POST /v1/transfer', second],
      ['POST /v1/drop', spare],
    ],
  )
  t.match(back.world.calls.at(-1)?.body, { reason: 'moved' })
  t.same(back.world.log, ['done 1 5'])
})

t.test('I9: a handoff is not dropped before every owner was heard to hold its copy', async t => {
  const unheard = repairs({ blob: blobOf('x'), handoffs: [spare] })
  unheard.world.down.add(second)
  await unheard.task.step(term)
  t.notOk(unheard.world.calls.some(({ what }) => what.endsWith('/drop')))
  t.same(unheard.world.log, [`later 1 5 600000 ${second}`])

  const emptied = repairs({ blob: blobOf('x'), handoffs: [spare] })
  emptied.world.held.delete(first)
  await emptied.task.step(term)
  t.equal(emptied.task.copied, 2, 'an owner that lost its copy since gets it again')
  t.match(emptied.world.calls.find(({ shard }) => shard === first)?.body, { blobs: [{ sources: [{ shard: second }, { shard: spare }, { shard: third }] }] }) // prettier-ignore

  const moved = repairs({ blob: blobOf('x'), missing: [other], handoffs: [spare] })
  moved.world.held.delete(third)
  await moved.task.step(term)
  t.ok(moved.world.held.has(third), 'the map has changed since: its owners count, not those of then')
})

t.test('sources that are down are not named', async t => {
  const { world, task } = repairs({ blob: blobOf('x'), handoffs: [spare] })
  world.down.add(first)
  await task.step(term)
  t.match(world.calls[0]?.body, { blobs: [{ sources: [{ shard: second }, { shard: spare }] }] })
})

t.test('what fails is tried again later, ever later, and keeps nothing else waiting', async t => {
  const { world, task } = repairs({ blob: blobOf('x'), attempts: 3 }, { blob: blobOf('y'), missing: [second] })
  world.fail.set(third, new HoldfastError('NODE_UNREACHABLE', 'gone'))
  await task.step(term)
  t.same(world.log.sort(), ['done 2 5', `later 1 5 8000 ${third}`])
  const late = repairs({ blob: blobOf('x'), attempts: 1_000 })
  late.world.fail.set(third, new HoldfastError('SHARD_FAILED', 'broken'))
  await late.task.step(term)
  t.same(late.world.log, [`later 1 5 60000 ${third}`])
})

t.test('a batch asks for the next one, and a lost term writes nothing down', async t => {
  const many = repairs(...Array.from({ length: 400 }, () => ({ blob: blobOf('x') })))
  t.equal(await many.task.step(term), 'more')
  t.equal(many.world.log.length, 400)
  t.equal(many.world.calls.length, 1, 'many blobs in one request')
  const lost = repairs({ blob: blobOf('x') })
  await lost.task.step({ token: 5, signal: AbortSignal.abort() })
  t.same(lost.world.log, [])
})

t.test('a missing reference is appended as PostgreSQL knows it now', async t => {
  const entry: Partial<RepairEntry> = { kind: 'reference', key: 'raw/a', version: 4 }
  const { world, task } = repairs(entry)
  await task.step(term)
  t.match(world.appended, [{ op: 'put', repository: 'raw', path: 'a', version: 9 }])
  t.same(world.log, ['done 1 5'])
  const gone = repairs(entry)
  gone.world.artifact = undefined
  await gone.task.step(term)
  t.match(gone.world.appended, [{ op: 'delete', path: 'a', version: 4 }])
  const lacking = repairs(entry)
  lacking.world.appendMissing = [third]
  await lacking.task.step(term)
  t.same(lacking.world.log, [`later 1 5 1000 ${third}`])
})

t.test('I3, I9: what a shard lacked that owns the partition no more is due to the owners of now', async t => {
  const blob = repairs({ blob: blobOf('x'), missing: [other] })
  await blob.task.step(term)
  t.ok(blob.world.held.has(third), 'whoever came in its place gets the copy')
  t.same(blob.world.log, ['done 1 5'])
  const away = repairs({ blob: blobOf('x'), missing: [other] })
  away.world.down.add(third)
  await away.task.step(term)
  t.same(away.world.log, [`later 1 5 600000 ${third}`], 'until then it is not done')

  const reference = repairs({ kind: 'reference', key: 'raw/a', version: 4, missing: [other] })
  reference.world.appendMissing = [third]
  await reference.task.step(term)
  t.equal(reference.task.appended, 2)
  t.same(reference.world.log, [`later 1 5 1000 ${third}`])
})

t.test('I8: uploads that nobody committed are fenced off by PostgreSQL, then dropped, shard by shard', async t => {
  const world = nodes()
  const blobs = ['a', 'b', 'c'].map(text => ({ ...blobOf(text), ageMs: 10 }))
  world.unconfirmed.set(first, [{ blobs: blobs.slice(0, 2), next: 'n' }, { blobs: blobs.slice(2) }])
  world.fail.set(map.shards[0]?.id as ShardId, new HoldfastError('SHARD_UNKNOWN', 'no'))
  const asked: [string[], number][] = []
  const task = new ReclaimUploads({
    metadata: {
      reclaimUnconfirmed: async (some, token) => {
        if (some.length > 0) asked.push([some.map(({ digest }) => digest), token])
        return some.map(({ digest }) => (digest === blobs[0]?.digest ? 'live' : 'reclaim'))
      },
    },
    clients: world.clients,
    view,
    log: silent,
    abandonedMs: 1_000,
  })
  if (map.shards[0]?.id === first) world.fail.clear()
  await task.step(term)
  t.same(asked, [
    [blobs.slice(0, 2).map(({ digest }) => digest), 5],
    [[blobs[2]?.digest], 5],
  ])
  const drops = world.calls.filter(({ what }) => what.endsWith('/drop'))
  t.match(drops, [
    { shard: first, fence: 'primary:5', body: { reason: 'deleted', blobs: [{ digest: blobs[1]?.digest }] } },
    { shard: first, body: { blobs: [{ digest: blobs[2]?.digest }] } },
  ])
  t.equal(task.reclaimed, 2)
  t.equal(new Set(world.calls.map(({ shard }) => shard)).size, map.shards.length, 'a shard in trouble keeps no other waiting') // prettier-ignore
})

t.test('I27: reclaiming ends at once when the token is no longer the newest', async t => {
  const world = nodes()
  for (const fault of [new HoldfastError('LEASE_LOST', 'no'), away()]) {
    world.calls.length = 0
    const task = new ReclaimUploads({
      metadata: {
        reclaimUnconfirmed: async () => {
          throw fault
        },
      },
      clients: world.clients,
      view,
      log: silent,
      abandonedMs: 1_000,
    })
    await t.rejects(task.step(term), { code: fault.code })
    t.equal(world.calls.length, 1)
  }
})

t.test('nodes with an older map get the newest one, also when one of them does not take it', async t => {
  const sent: string[] = []
  const status = (epoch: number): NodeStatus => ({ epoch }) as NodeStatus
  const [broken, behind, current, away, silentOne] = map.nodes.map(({ id }) => id)
  const health = (state: NodeHealth['state'], epoch?: number): Omit<NodeHealth, 'node'> =>
    ({ state, draining: false, ...(epoch === undefined ? {} : { status: status(epoch) }) }) // prettier-ignore
  const known: NodeHealth[] = [
    { node: broken!, ...health('up', map.epoch - 1) },
    { node: behind!, ...health('up', map.epoch - 1) },
    { node: current!, ...health('up', map.epoch) },
    { node: away!, ...health('down', map.epoch - 1) },
    { node: silentOne!, ...health('up') },
  ]
  const keeper = new MapKeeper({
    metadata: { loadClusterMap: async () => undefined },
    view,
    health: { nodes: () => known },
    clients: {
      get: ({ id }) => ({
        requestJson: async <Answer>(_: string, __: string, ___: unknown, options?: { fence?: string }) => {
          sent.push(`${id} ${options?.fence}`)
          if (id === broken) throw new HoldfastError('NODE_UNREACHABLE', 'no')
          return {} as Answer
        },
      }),
    },
    stateFolder: t.testdir(),
    log: silent,
  })
  await t.rejects(keeper.distribution.step(term), { code: 'NODE_UNREACHABLE' })
  t.same(sent, [`${broken} primary:5`, `${behind} primary:5`])
})

t.test('while no node is behind, the map is not even encoded', async t => {
  const keeper = new MapKeeper({
    metadata: { loadClusterMap: async () => undefined },
    // To encode this one is a bug, and is told as one.
    view: new ClusterView({ ...map, checksum: 'none' }),
    health: { nodes: () => map.nodes.map(({ id }) => ({ node: id, state: 'up', draining: false, status: { epoch: map.epoch } as NodeStatus })) }, // prettier-ignore
    clients: { get: () => t.fail('nobody is told') as never },
    stateFolder: t.testdir(),
    log: silent,
  })
  t.equal(await keeper.distribution.step(term), 'idle')
})
