/** The task that moves copies, against real storage nodes: interrupted anywhere, it loses nothing and ends where it should. */
import { createHash, hash, randomBytes } from 'node:crypto'
import { setMaxListeners } from 'node:events'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { NodeClients } from '../../../proxy/routing/node-client.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { HealthTable } from '../../../proxy/routing/health.ts'
import { ShardReferences } from '../../../proxy/routing/reference-store.ts'
import { WriteContext } from '../../../proxy/routing/write-context.ts'
import type { WrittenBlob } from '../../../proxy/routing/types.ts'
import { unhindered } from '../../../proxy/tasks/calm.ts'
import type { JobContext, JobParams } from '../../../proxy/tasks/job.ts'
import { movePartition } from '../../../proxy/tasks/move-partition.ts'
import { tallyOf, waitingText } from '../../../proxy/tasks/obstacles.ts'
import { rebalance } from '../../../proxy/tasks/rebalance.ts'
import { touchAll } from '../../../proxy/tasks/shard-contents.ts'
import { type ClusterMap, encodeClusterMap, PlacementView } from '../../../shared/cluster-map.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { type Digest, parseNodeId, parseShardId, parseZone, type ShardId } from '../../../shared/ids.ts'
import { partitionCount, partitionOf } from '../../../shared/partition.ts'
import { planChanges, type TopologyChange } from '../../../shared/placement/changes.ts'
import { movesOf } from '../../../shared/placement/transition.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { wirePath } from '../../../shared/wire.ts'
import { runStorageNode } from '../../../storage-node/main.ts'
import { seededRandom } from '../../support/random.ts'
import { writeSide } from '../../support/write-cluster.ts'
import { never, nodeConfig, quiet, secret } from '../../storage-node/fixtures.ts'

// Real disks under it, on machines that do other things too.
t.setTimeout(180_000)

const zones = ['a', 'b', 'c', 'c']
const drain: readonly TopologyChange[] = [{ op: 'weight', shard: 'n2-0', weight: 0 }]

async function startWorld(t: Test) {
  const folder = t.testdir()
  const nodes = await Promise.all(
    zones.map((zone, index) => {
      const id = parseShardId(`n${index}-0`) ?? never()
      return runStorageNode(
        nodeConfig(join(folder, `n${index}`), {
          node: parseNodeId(`n${index}`) ?? never(),
          zone: parseZone(zone) ?? never(),
          clusterId: 'test',
          shards: [{ id, folder: join(folder, `n${index}`, id), weight: 1 }],
        }),
        quiet,
        {},
      )
    }),
  )
  const urls = nodes.map(({ url }) => url)
  const side = writeSide(urls, zones, 3, 1, secret)
  t.teardown(async () => {
    side.context.close()
    await side.clients.close()
    await Promise.all(nodes.map(node => node.close(0)))
  })
  const signal = new AbortController().signal
  setMaxListeners(0, signal)
  for (const node of side.map.nodes) {
    await side.clients.get(node).requestJson('PUT', wirePath.clusterMap, Buffer.from(encodeClusterMap(side.map)))
  }
  const world = { newest: side.map, signal }
  const metadata = {
    // Everything that is written here is named.
    inspectBlobs: async () => Promise.resolve([]),
    reclaimUnconfirmed: async (blobs: readonly unknown[]) => Promise.resolve(blobs.map(() => 'live' as const)),
    loadClusterMap: async () => world.newest,
    publishClusterMap: async (map: ClusterMap) => {
      if (map.epoch <= world.newest.epoch) return false
      world.newest = map
      return true
    },
  }
  const holders = async (blob: WrittenBlob): Promise<ShardId[]> => {
    const shards = side.map.shards.map(({ id }) => id)
    const words = await Promise.all(shards.map(shard => touchAll(side, shard, [blob], signal).catch(() => [])))
    return shards.filter((_, index) => words[index]?.[0] === 'held')
  }
  return Object.assign(world, { ...side, nodes, metadata, holders, calm: unhindered })
}

type World = Awaited<ReturnType<typeof startWorld>>

async function write(
  world: World,
  path: string,
  bytes: number,
): Promise<{ blob: WrittenBlob; record: ReferenceRecord }> {
  const body = randomBytes(bytes)
  const partition = partitionOf('raw', path)
  const digest = hash('sha256', body) as Digest
  const checksums = { digest, md5: createHash('md5').update(body).digest('hex'), sha1: hash('sha1', body) }
  const blob = await world.writer.writeSmall(partition, body, checksums)
  const record = referenceTo(path, blob, 1)
  await world.references.append(record)
  return { blob, record }
}

function referenceTo(path: string, blob: WrittenBlob, version: number): ReferenceRecord {
  const { digest, generation, partition, bytes, md5, sha1 } = blob
  return {
    kind: 'reference', partition: partitionOf('raw', path), repository: 'raw', path, version, op: 'put',
    incarnation: 'one', time: 1_700_000_000_000, user: 'admin', blob: { digest, generation, partition, bytes, md5, sha1 },
  } // prettier-ignore
}

class PrimaryDied extends Error {}

/** Runs the task as primary after primary, each of which dies where `dies` says so; resolves when one of them has finished. */
async function carryOut(
  world: World,
  params: JobParams,
  dies: () => boolean,
  between: () => Promise<void>,
): Promise<{ takeovers: number; lines: readonly string[]; notes: readonly string[] }> {
  const lines: string[] = []
  const notes: string[] = []
  let checkpoint: unknown
  const job = rebalance({ ...world, now: () => performance.now(), adoptionMs: 0, leftoverAgeMs: 10_000 })
  for (let takeovers = 0; ; takeovers += 1) {
    let dead = false
    const mayDie = async (): Promise<void> => {
      dead ||= dies()
      if (dead) throw new PrimaryDied('the primary died')
      return Promise.resolve()
    }
    const context: JobContext<never> = {
      runId: 1,
      term: { token: takeovers + 1, signal: world.signal },
      checkpoint: checkpoint as never,
      params,
      save: async next => {
        await mayDie()
        checkpoint = structuredClone(next)
      },
      progress: ({ note = '' }) => void notes.push(note),
      log: line => void lines.push(line),
      pause: mayDie,
    }
    try {
      await job.run(context)
      return { takeovers, lines, notes }
    } catch (error) {
      if (!(error instanceof PrimaryDied)) throw error
      await between()
    }
  }
}

t.test(
  'I20, I21: a shard is drained by primaries that die again and again; W copies are always where readers look',
  async t => {
    const random = seededRandom(t)
    const world = await startWorld(t)
    const written = await Promise.all(
      Array.from({ length: 80 }, (_, i) => write(world, `a/${i}`, random.int(1, 3_000))),
    )
    const params = { changes: drain, epoch: world.newest.epoch, force: false }
    const check = async (): Promise<void> => {
      const view = new PlacementView(world.newest)
      for (const { blob } of random.next() < 0.2 ? written : written.slice(0, 10)) {
        const held = await world.holders(blob)
        const asked = view.allOwners(blob.partition).filter(shard => held.includes(shard))
        if (asked.length < 2) throw new Error(`${blob.digest} is on ${held.join(', ')}`)
        if (!view.sources(blob.partition).every(shard => held.includes(shard))) throw new Error('a source lacks it')
      }
      const late = await write(world, `late/${random.int(1, 1_000_000)}`, 500)
      written.push(late)
    }
    let steps = random.int(1, 12)
    const dies = (): boolean => --steps === 0 || random.next() < 0.05
    const { takeovers, lines } = await carryOut(world, params, dies, check)
    t.comment(`${takeovers} takeovers`, ...lines)
    t.ok(takeovers > 0, 'somebody died on the way')
    t.equal(world.newest.previous, undefined)
    const view = new PlacementView(world.newest)
    for (const { blob, record } of written) {
      const held = await world.holders(blob)
      t.ok(
        view.owners(blob.partition).every(shard => held.includes(shard)),
        `${record.path} is on its new owners`,
      )
      t.strictSame(await world.references.newest('raw', record.path), record)
    }
    const left = await Promise.all(
      written.map(async ({ blob }) => (await world.holders(blob)).includes('n2-0' as ShardId)),
    )
    // Whoever died between settling and releasing left copies to anti-entropy; an undisturbed run leaves none.
    if (takeovers === 0) t.same(left.filter(Boolean).length, 0)
  },
)

t.test(
  'I21: the copies of old owners go to the trash when all is settled, and not before a new owner has them',
  async t => {
    const world = await startWorld(t)
    const written = await Promise.all(Array.from({ length: 40 }, (_, i) => write(world, `b/${i}`, 1_000)))
    await carryOut(
      world,
      { changes: drain, epoch: 1 },
      () => false,
      async () => Promise.resolve(),
    )
    for (const { blob } of written) t.notOk((await world.holders(blob)).includes('n2-0' as ShardId))
    t.equal(world.newest.writesFrom, 2)
  },
)

t.test(
  'I20, I21: an owner that keeps its partitions and is gone keeps no change waiting, and no copy goes meanwhile',
  async t => {
    const world = await startWorld(t)
    const written = await Promise.all(Array.from({ length: 40 }, (_, i) => write(world, `gone/${i}`, 1_000)))
    await world.nodes[0]!.close(0)
    const { lines } = await carryOut(
      world,
      { changes: drain, epoch: 1 },
      () => false,
      async () => Promise.resolve(),
    )
    t.notMatch(lines.join(), /partitions wait/)
    t.equal(world.newest.previous, undefined, 'it is settled')
    const [before, after] = [new PlacementView(world.map), new PlacementView(world.newest)]
    for (const { blob, record } of written) {
      const wanted = new Set([...before.owners(blob.partition), ...after.owners(blob.partition)])
      wanted.delete('n0-0' as ShardId)
      t.same((await world.holders(blob)).sort(), [...wanted].sort())
      t.strictSame(await world.references.newest('raw', record.path), record)
    }
  },
)

t.test('I22: a write by the map from before is refused by the nodes, and repeated under the newest one', async t => {
  const world = await startWorld(t)
  const { blob } = await write(world, 'c/first', 100)
  // A proxy that slept through it all.
  const view = new ClusterView(world.map)
  const health = new HealthTable({ now: () => performance.now() })
  const clients = new NodeClients({ clusterSecret: secret, view, health })
  let renewed = 0
  const renewMap = async (): Promise<void> => {
    renewed += 1
    await Promise.resolve()
    view.replace(world.newest)
  }
  const context = new WriteContext({ view, health, clients, renewMap })
  const asleep = new WriteContext({ view: new ClusterView(world.map), health, clients })
  t.teardown(async () => {
    context.close()
    asleep.close()
    await clients.close()
  })
  await carryOut(
    world,
    { changes: drain, epoch: 1 },
    () => false,
    async () => Promise.resolve(),
  )

  const stuck = new ShardReferences({ context: asleep, view, health, clients })
  await t.rejects(stuck.append(referenceTo('c/first', blob, 2)), { code: 'QUORUM_NOT_REACHED' })
  t.match(await world.references.newest('raw', 'c/first'), { version: 1 }, 'refused, not half written')
  await new ShardReferences({ context, view, health, clients }).append(referenceTo('c/first', blob, 3))
  t.equal(renewed, 1)
  t.match(await world.references.newest('raw', 'c/first'), { version: 3 })
})

class Paused extends Error {}

for (const replicas of [2, 4]) {
  t.test(
    `I20, I21, I22: ${replicas} copies instead of 3 are aborted half-way, and the abort is aborted and that one too, by primaries that die`,
    async t => {
      const random = seededRandom(t)
      const world = await startWorld(t)
      const written = await Promise.all(Array.from({ length: 40 }, (_, i) => write(world, `r/${i}`, random.int(1, 2_000)))) // prettier-ignore
      const check = async (): Promise<void> => {
        const { map } = world.view.current()
        for (const { blob, record } of random.shuffled(written).slice(0, 10)) {
          const held = await world.holders(blob)
          const asked = world.view
            .current()
            .allOwners(blob.partition)
            .filter(shard => held.includes(shard))
          if (asked.length < 2) throw new Error(`epoch ${map.epoch}: ${blob.digest} is on ${held.join(', ')}`)
          const found = await world.references.newest('raw', record.path)
          if (found?.version !== record.version) throw new Error(`epoch ${map.epoch}: ${record.path} is not found`)
        }
        written.push(await write(world, `late/${map.epoch}/${random.int(1, 1_000_000)}`, 500))
      }
      const isHalf = (): boolean => {
        const left = world.view.current().unsettled().length
        return left > 0 && left < partitionCount
      }
      const half = async (params: JobParams): Promise<void> => {
        const pause = async (): Promise<never> => Promise.reject(new Paused('paused'))
        const from = world.newest.epoch
        await t.rejects(
          carryOut(world, params, () => world.newest.epoch > from && isHalf(), pause),
          { message: 'paused' },
        )
        const left = new Set(world.view.current().unsettled())
        for (const partition of never) if (!left.has(partition)) never.delete(partition)
        await check()
      }
      const never = new Set(Array.from({ length: partitionCount }, (_, partition) => partition))
      const first = world.newest
      await half({ changes: [{ op: 'replicas', replicas }], epoch: first.epoch, force: true })
      t.match(world.newest, { replicas, copies: replicas, writesFrom: first.epoch + 1 })
      let asleep = world.newest
      for (const [turn, wanted] of [3, replicas, 3].entries()) {
        const before = world.view.current()
        const { epoch } = before.map
        const abort = { abort: true, epoch }
        if (turn < 2) await half(abort)
        else {
          asleep = before.map
          let steps = random.int(1, 6)
          const dies = (): boolean => --steps === 0 || random.next() < 0.1
          const { takeovers, lines } = await carryOut(world, abort, dies, check)
          t.comment(`${takeovers} takeovers`, ...lines)
          t.ok(takeovers > 0, 'somebody died on the way')
          t.match(lines.join('; '), /aborted, .*; 3 copies of everything again/)
        }
        t.match(world.newest, { replicas: wanted, copies: wanted, writesFrom: epoch + 1 })
      }
      t.equal(world.newest.previous, undefined)
      const [old, now] = [new PlacementView(first), world.view.current()]
      const moved = [...never].filter(partition => now.owners(partition).join() !== old.owners(partition).join())
      t.same(moved, [], `${never.size} partitions that were never settled are where they were`)
      for (const { blob, record } of written) {
        const held = await world.holders(blob)
        const owners = world.view.current().owners(blob.partition)
        t.ok(owners.every(shard => held.includes(shard)), `${record.path} is on all its owners`) // prettier-ignore
        t.strictSame(await world.references.newest('raw', record.path), record)
        const done = await world.references.appendTo(record, owners)
        t.equal(done.size, owners.length)
      }
      // A proxy that slept since before the last abort.
      const view = new ClusterView(asleep)
      const health = new HealthTable({ now: () => performance.now() })
      const clients = new NodeClients({ clusterSecret: secret, view, health })
      const context = new WriteContext({ view, health, clients })
      t.teardown(async () => {
        context.close()
        await clients.close()
      })
      const { blob, record } = written[0]!
      const stuck = new ShardReferences({ context, view, health, clients })
      await t.rejects(stuck.append(referenceTo(record.path, blob, 2)), { code: 'QUORUM_NOT_REACHED' })
    },
  )
}

t.test('a plan that is out of date, or would leave too few copies, is refused before anything moves', async t => {
  const world = await startWorld(t)
  const calm = [() => false, async () => Promise.resolve()] as const
  await t.rejects(carryOut(world, { changes: drain, epoch: 7 }, ...calm), { code: 'CONFLICT' })
  const tooMuch = [...drain, { op: 'weight', shard: 'n3-0', weight: 0 }]
  await t.rejects(carryOut(world, { changes: tooMuch, epoch: 1 }, ...calm), { code: 'TOPOLOGY_INVALID' })
  t.throws(() => rebalance({ ...world, now: () => 0, leftoverAgeMs: 10_000 }).checkParams?.({ changes: [{ op: 'add-shard' }] }), { code: 'BAD_REQUEST' }) // prettier-ignore
  t.equal(world.newest.epoch, 1)
})

t.test('a change that moves nothing is carried out by whoever is primary next, wherever the last one died', async t => {
  const world = await startWorld(t)
  const changes = world.map.shards.map(({ id, weight }): TopologyChange => ({ op: 'weight', shard: id, weight: weight * 2 })) // prettier-ignore
  for (let point = 1; point <= 3; point += 1) {
    const epoch = world.newest.epoch
    const doubled = changes.map(one => ({ ...one, weight: 2 ** point }))
    let steps = 0
    const { takeovers, lines } = await carryOut(
      world,
      { changes: doubled, epoch },
      () => ++steps === point,
      async () => Promise.resolve(),
    )
    t.equal(takeovers, point < 3 ? 1 : 0, `died at step ${point}`)
    t.equal(lines.at(-1), 'nothing is to be moved')
    t.equal(world.newest.epoch, epoch + 1)
    t.ok(world.newest.shards.every(({ weight }) => weight === 2 ** point))
  }
})

t.test('a partition that cannot settle says why, in the log and in the progress, and settles when it can', async t => {
  const world = await startWorld(t)
  const { blob, record } = await write(world, 'd/0', 100)
  const more = await Promise.all(Array.from({ length: 20 }, (_, i) => write(world, `d/${i + 1}`, 100)))
  let refusals = 0
  const references = {
    appendTo: async (one: ReferenceRecord, shards: readonly ShardId[]) =>
      // More than one pass over any partition would repeat, if it took the refusal for success.
      refusals++ < 30 ? new Set<ShardId>() : world.references.appendTo(one, shards),
  }
  const { lines, notes } = await carryOut(
    { ...world, references: Object.assign(Object.create(world.references) as World['references'], references) },
    { changes: drain, epoch: 1 },
    () => false,
    async () => Promise.resolve(),
  )
  t.match(lines.join('; '), /\d+ partitions? waits?: new owners did not take references \(n\d-0/)
  t.match(notes.join('; '), /bytes copied; \d+ partitions? waits?: new owners did not take references/)
  t.notMatch(notes.at(-1), /wait/)
  for (const one of [record, ...more.map(written => written.record)]) {
    const owners = new PlacementView(world.newest).owners(one.partition)
    const done = await world.references.appendTo(one, owners)
    t.equal(done.size, owners.length)
    t.strictSame(await world.references.newest('raw', one.path), one)
  }
  t.ok((await world.holders(blob)).length >= 3)
})

t.test('whom the last pass waited for is forgotten as soon as the next one gets on', async t => {
  const world = await startWorld(t)
  await Promise.all(Array.from({ length: 20 }, (_, i) => write(world, `g/${i}`, 100)))
  let refuses = true
  const appendTo: World['references']['appendTo'] = async (record, shards) =>
    refuses ? new Set() : world.references.appendTo(record, shards)
  const references = Object.assign(Object.create(world.references) as World['references'], { appendTo })
  const told: { readonly note?: string; readonly waits?: boolean }[] = []
  const job = rebalance({ ...world, references, now: () => performance.now(), adoptionMs: 0, leftoverAgeMs: 10_000 })
  await job.run({
    runId: 1,
    term: { token: 1, signal: world.signal },
    checkpoint: undefined,
    params: { changes: drain, epoch: 1 },
    save: async () => Promise.resolve(),
    progress: progress => void told.push(progress),
    log: () => {},
    // Between two passes: whoever was away is back.
    pause: async ms => {
      await Promise.resolve()
      if (ms >= 1_000) refuses = false
    },
  })
  const waiting = told.findIndex(({ waits }) => waits === true)
  t.match(told[waiting], { note: /partitions? waits?: new owners did not take references/ })
  const since = told.slice(waiting + 1).filter(({ waits }) => waits !== true)
  t.ok(since.length > 2, 'it got on')
  t.notMatch(since.map(({ note }) => note).join(), /wait/)
  t.notOk(
    told.slice(0, waiting).some(({ waits }) => waits),
    'there was something to do',
  )
})

t.test('I21, I34: old copies go, and of empty partitions nobody is asked for names', async t => {
  const world = await startWorld(t)
  const written = await Promise.all(Array.from({ length: 20 }, (_, i) => write(world, `f/${i}`, 100)))
  let lists = 0
  const ofShard = (shard: ShardId) => {
    const client = world.clients.ofShard(shard)
    const requestJson: typeof client.requestJson = (method, path, ...more) => {
      if (path.startsWith('/v1/entries/')) lists += 1
      return client.requestJson(method, path, ...more)
    }
    return { requestJson }
  }
  const get: World['clients']['get'] = node => world.clients.get(node)
  const clients = { get, ofShard } as unknown as World['clients']
  const moving = movesOf(planChanges(world.newest, drain).next).length
  await carryOut(
    { ...world, clients },
    { changes: drain, epoch: 1 },
    () => false,
    async () => Promise.resolve(),
  )
  t.ok(moving > 1_000 && lists <= written.length * 12, `${lists} lists of names for ${moving} partitions`)
  const view = new PlacementView(world.newest)
  for (const { blob } of written) {
    t.same([...(await world.holders(blob))].sort(), [...view.owners(blob.partition)].sort())
  }
})

t.test('a settlement that fails in the middle of the copying ends the run, and the next one goes on', async t => {
  const world = await startWorld(t)
  const written = await Promise.all(Array.from({ length: 30 }, (_, i) => write(world, `e/${i}`, 100)))
  let publishes = 0
  let now = 0
  const metadata = {
    ...world.metadata,
    publishClusterMap: async (map: ClusterMap) => {
      publishes += 1
      if (publishes === 4) throw new HoldfastError('METADATA_UNAVAILABLE', 'the database is away')
      return world.metadata.publishClusterMap(map)
    },
  }
  // Time goes by only while something is copied, so that it is time to settle in the middle of a partition.
  const appendTo: World['references']['appendTo'] = (record, shards) => {
    now += 4_000
    return world.references.appendTo(record, shards)
  }
  const references = Object.assign(Object.create(world.references) as World['references'], { appendTo })
  const job = rebalance({ ...world, references, metadata, now: () => now, adoptionMs: 0, leftoverAgeMs: 10_000 })
  const lines: string[] = []
  const context: JobContext<never> = {
    runId: 1,
    term: { token: 1, signal: world.signal },
    checkpoint: undefined,
    params: { changes: drain, epoch: 1 },
    save: async () => Promise.resolve(),
    progress: () => {},
    log: line => void lines.push(line),
    pause: async () => Promise.resolve(),
  }
  await t.rejects(job.run(context), { code: 'METADATA_UNAVAILABLE' })
  t.not(world.newest.previous, undefined, 'it is not done')
  t.notMatch(lines.join(), /wait/, 'it is nothing that a partition waits for')
  await job.run({ ...context, params: {} })
  t.equal(world.newest.previous, undefined)
  const view = new PlacementView(world.newest)
  for (const { blob } of written) {
    const held = await world.holders(blob)
    t.same([...held].sort(), [...view.owners(blob.partition)].sort(), 'new owners have it, and no others')
  }
})

t.test('who is waited for is named, and counted', async t => {
  const { map } = writeSide(['http://127.0.0.1:1', 'http://127.0.0.1:2', 'http://127.0.0.1:3', 'http://127.0.0.1:4'], zones, 3, 1, secret) // prettier-ignore
  const view = new PlacementView(planChanges(map, drain).next)
  const [move] = movesOf(view.map)
  const asked = (...shards: readonly string[]) =>
    movePartition(
      { view: () => view } as unknown as Parameters<typeof movePartition>[0],
      move!.partition,
      new Map(shards.map(shard => [shard as ShardId, new Map()])),
    )
  const kept = move!.to.filter(id => move!.from.includes(id))
  const added = move!.to.find(id => !move!.from.includes(id))!
  t.equal(await asked(...move!.to), undefined)
  t.same(await asked(...kept), { reason: 'new owners do not answer', shards: [added] })
  t.equal(await asked(added, ...move!.from.slice(1)), undefined, 'one that stays an owner may be away')
  t.same(await asked(added), { reason: 'too few old owners answer', shards: move!.from })

  const one = { reason: 'new owners do not answer', shards: ['b' as ShardId] }
  const two = { reason: 'too few old owners answer', shards: ['c', 'a'] as unknown as ShardId[] }
  t.equal(waitingText(tallyOf([])), '')
  t.equal(waitingText(tallyOf([one])), '1 partition waits: new owners do not answer (b)')
  t.equal(
    waitingText(tallyOf([one, two, { ...two, shards: ['a' as ShardId] }])),
    '3 partitions wait: 2 too few old owners answer (a, c); 1 new owners do not answer (b)',
  )
})
