import { createHash, randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import fc from 'fast-check'
import t from 'tap'
import { isHoldfastError } from '../../../shared/errors.ts'
import { newGeneration, type ShardId, type Zone } from '../../../shared/ids.ts'
import { eventually } from '../../support/eventually.ts'
import type { FakeWriteNode, Faults } from '../../support/fake-write-node.ts'
import { holders, startWriteCluster, type WriteCluster, zonesHolding } from '../../support/write-cluster.ts'

const mib = 1024 * 1024
const source = randomBytes(40 * mib)

async function* chunksOf(
  body: Buffer,
  chunkBytes = 64 * 1024,
  pulled?: (bytes: number) => void | Promise<void>,
): AsyncGenerator<Buffer> {
  for (let at = 0; at < body.length; at += chunkBytes) {
    await pulled?.(at)
    yield body.subarray(at, at + chunkBytes)
  }
}

const options = (expectedBytes?: number) => ({
  expectedBytes,
  bytesMax: undefined,
  signal: new AbortController().signal,
  requestId: 'request-1',
})

const ownersOf = (cluster: WriteCluster, partition: number): FakeWriteNode[] =>
  cluster.view
    .current()
    .owners(partition)
    .map(shard => cluster.node(shard))

const leftovers = (cluster: WriteCluster): string[] => cluster.nodes.flatMap(node => [...node.uploads.keys()])

/** Nodes hear of a dropped upload a little later than the caller. */
async function nothingStaysStaged(cluster: WriteCluster): Promise<boolean> {
  for (let i = 0; i < 100 && leftovers(cluster).length > 0; i += 1) await sleep(20)
  return leftovers(cluster).length === 0
}

t.test('I2: a body of any length, in any chunks, is on all owners when its commit resolves', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  for (const [bytes, chunkBytes, known] of [
    [65_537, 1_000, true],
    [5 * mib + 1, 100_000, false],
    [3 * mib, 2 * mib, true],
    [262_144, 262_144, false],
    [0, 1, true],
  ] as const) {
    const body = source.subarray(0, bytes)
    const staged = await cluster.writer.stage(3, chunksOf(body, chunkBytes), options(known ? bytes : undefined))
    t.equal(staged.digest, createHash('sha256').update(body).digest('hex'))
    t.equal(staged.md5, createHash('md5').update(body).digest('hex'))
    t.equal(staged.sha1, createHash('sha1').update(body).digest('hex'))
    t.equal(cluster.nodes.flatMap(node => [...node.blobs]).length, 0, 'nothing is a blob before the commit')
    const written = await staged.commit()
    t.match(written, { bytes, partition: 3, missing: [], handoffs: [] })
    t.equal(holders(cluster, written, body).length, 3)
    for (const node of cluster.nodes) node.blobs.clear()
  }
  t.same(leftovers(cluster), [])
  const before = cluster.nodes.map(({ connections }) => connections)
  for (let i = 0; i < 10; i += 1) {
    const body = source.subarray(i, i + 100_000)
    await (await cluster.writer.stage(3, chunksOf(body), options(body.length))).commit()
  }
  t.same(
    cluster.nodes.map(({ connections }) => connections),
    before,
    'short bodies use connections again',
  )
})

t.test('I8: whatever ends an upload early, nothing stays on any node', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const body = source.subarray(0, 4 * mib)
  async function* hangsUp(): AsyncGenerator<Buffer> {
    yield* chunksOf(body.subarray(0, mib))
    throw new Error('client left')
  }
  await t.rejects(cluster.writer.stage(3, hangsUp(), options(body.length)), { message: 'client left' })
  await t.rejects(cluster.writer.stage(3, chunksOf(body), { ...options(), bytesMax: mib }), { code: 'TOO_LARGE' })
  await t.rejects(cluster.writer.stage(3, chunksOf(body), options(mib)), { code: 'LENGTH_MISMATCH' })
  await t.rejects(cluster.writer.stage(3, chunksOf(body), options(5 * mib)), { code: 'LENGTH_MISMATCH' })
  const abort = new AbortController()
  let returned = false
  async function* silent(): AsyncGenerator<Buffer> {
    try {
      yield body
      setTimeout(() => abort.abort(new Error('deadline')), 20)
      await sleep(200)
      yield body
    } finally {
      returned = true
    }
  }
  await t.rejects(cluster.writer.stage(3, silent(), { ...options(), signal: abort.signal }), { message: 'deadline' })
  const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
  await staged.abort()
  t.ok(await nothingStaysStaged(cluster))
  await sleep(250)
  t.ok(returned, 'the body is told that nobody reads it any more')
  t.equal(cluster.nodes.flatMap(node => [...node.blobs]).length, 0)
})

t.test('I8: a node that does not hear that an upload is over is told again', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const body = source.subarray(0, mib)
  for (const node of cluster.nodes) node.faults.deafToDiscards = 3
  const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
  await staged.abort()
  t.ok(leftovers(cluster).length > 0, 'they have not heard')
  t.ok(cluster.context.discards.size > 0)
  for (let i = 0; i < 1_000 && cluster.context.discards.size > 0; i += 1) await sleep(20)
  t.same(leftovers(cluster), [])
  t.equal(cluster.context.discards.size, 0)
  // And there is an end to it.
  for (const node of cluster.nodes) node.faults.deafToDiscards = 1_000
  for (let i = 0; i < 5; i += 1) await (await cluster.writer.stage(3, chunksOf(body), options(body.length))).abort()
  cluster.context.close()
  t.equal(cluster.context.discards.size, 0, 'nothing goes on behind the end')
})

t.test('a shard that refuses at once is replaced while the start of the body is still at hand', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b', 'c'])
  const [full] = cluster.view.current().owners(3)
  cluster.node(full as ShardId).faults.refuse = 'INSUFFICIENT_STORAGE'
  const body = source.subarray(0, 8 * mib)
  const slowStart = chunksOf(body, 64 * 1024, at => (at < mib ? sleep(5) : undefined))
  const written = await (await cluster.writer.stage(3, slowStart, options(body.length))).commit()
  t.same(written.missing, [full])
  t.equal(written.handoffs.length, 1)
  t.equal(cluster.view.current().zone(written.handoffs[0] as ShardId), cluster.view.current().zone(full as ShardId))
  t.equal(holders(cluster, written, body).length, 3)
})

t.test(
  'I2: an owner that dies in the middle of a body is left behind; a needed one is replaced by a late joiner',
  async t => {
    for (const replicas of [3, 2]) {
      const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { replicas })
      const [victim] = ownersOf(cluster, 3)
      ;(victim as FakeWriteNode).faults.dieAfterBytes = 9 * mib
      const body = source.subarray(0, 20 * mib)
      const written = await (
        await cluster.writer.stage(3, chunksOf(body), options(replicas === 3 ? body.length : undefined))
      ).commit()
      const held = holders(cluster, written, body)
      t.equal(held.length, 2, `R = ${replicas}`)
      t.equal(zonesHolding(cluster, held), 2)
      t.equal(written.handoffs.length, replicas === 3 ? 0 : 1)
      t.equal(cluster.context.counters.lateJoins, replicas === 3 ? 0 : 1)
      t.ok(await nothingStaysStaged(cluster))
    }
  },
)

t.test('I39: nodes that are restarted one after another during an upload take its bytes again', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const { health, nodeId } = cluster
  const body = source.subarray(0, 10 * mib)
  let runs = 0
  const check = (index: number, state: 'up' | 'draining'): void => {
    const id = nodeId(index)
    const status = { version: '0', wire: 1, clusterId: 'test', node: id, zone: 'a' as Zone, epoch: 1, shards: [] }
    if (state === 'up') runs += 1
    health.checked(id, { ...status, state, run: `run ${state === 'up' ? runs : 'before'}` })
  }
  for (const index of [0, 1, 2]) check(index, 'up')
  const restartAt = new Map([2, 4, 6].map((at, index) => [at * mib, index]))
  const restart = async (at: number): Promise<void> => {
    const index = restartAt.get(at)
    const node = cluster.nodes[index ?? -1]
    if (index === undefined || node === undefined) return
    check(index, 'draining')
    node.die()
    health.checked(nodeId(index), undefined)
    await node.start()
    check(index, 'up')
    // The body goes on when the upload has noticed.
    await sleep(100)
  }
  const written = await (
    await cluster.writer.stage(3, chunksOf(body, 64 * 1024, restart), options(body.length))
  ).commit()
  const held = holders(cluster, written, body)
  t.ok(held.length >= 2)
  t.ok(zonesHolding(cluster, held) >= 2)
  t.ok(await nothingStaysStaged(cluster))
})

t.test('I30: a replica frozen in the middle of a body delays the upload by less than 6 s', async t => {
  for (const replicas of [3, 2]) {
    const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { replicas })
    const upload = async (): Promise<number> => {
      const startedAt = performance.now()
      const written = await (await cluster.writer.stage(3, chunksOf(source), options(source.length))).commit()
      t.equal(holders(cluster, written, source).length, 3 - (written.missing.length || 3 - replicas))
      return performance.now() - startedAt
    }
    const undisturbedMs = await upload()
    const [victim] = ownersOf(cluster, 3)
    victim?.reset({ freezeAfterBytes: 2 * mib })
    const ms = await upload()
    t.ok(ms - undisturbedMs < 6_000, `R = ${replicas}: ${ms.toFixed()} ms, else ${undisturbedMs.toFixed()} ms`)
    t.equal(cluster.context.counters.underReplicated, 1)
  }
})

t.test('I30: a replica frozen at the end, or at the commit, delays by less than 6 s', async t => {
  const body = source.subarray(0, mib)
  for (const [replicas, when] of [
    [3, 'end'],
    [2, 'end'],
    [3, 'commit'],
    [2, 'commit'],
  ] as const) {
    const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { replicas })
    const [victim] = ownersOf(cluster, 3)
    if (when === 'end') (victim as FakeWriteNode).faults.freezeAfterBytes = mib
    const startedAt = performance.now()
    const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
    if (when === 'commit') (victim as FakeWriteNode).freeze()
    const written = await staged.commit()
    const ms = performance.now() - startedAt
    t.ok(ms < 6_000, `R = ${replicas}, at the ${when}: ${ms.toFixed()} ms`)
    t.ok(zonesHolding(cluster, holders(cluster, written, body)) >= 2)
    t.equal(written.missing.length, 1)
  }
})

t.test('I38: the proxy never holds more than 4 MiB for a slow replica, which is dropped after 5 s', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const [slow] = ownersOf(cluster, 3)
  ;(slow as FakeWriteNode).faults.bytesPerSecond = 1.5 * mib
  let ahead = 0
  const pulled = (at: number): void => {
    const received = [...(slow as FakeWriteNode).uploads.values()].reduce((sum, { bytes }) => sum + bytes, 0)
    if (received > 0) ahead = Math.max(ahead, at - received)
  }
  const startedAt = performance.now()
  const written = await (
    await cluster.writer.stage(3, chunksOf(source, 64 * 1024, pulled), options(source.length))
  ).commit()
  const ms = performance.now() - startedAt
  t.ok(ahead < 24 * mib, `${(ahead / mib).toFixed(1)} MiB ahead of the slow one`)
  t.ok(ms < 15_000, `${ms.toFixed()} ms`)
  t.equal(holders(cluster, written, source).length, 2)
  t.equal(written.missing.length, 1)
})

t.test(
  'I30: nodes that answer before the body is known to have ended, because they know its length, are believed',
  async t => {
    const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
    const body = source.subarray(0, 3 * mib)
    async function* lateEnd(): AsyncGenerator<Buffer> {
      yield* chunksOf(body)
      const answered = (node: FakeWriteNode): boolean => [...node.uploads.values()].some(({ complete }) => complete)
      await eventually('all have answered', () => cluster.nodes.every(answered))
      await sleep(50) // until the answers are here
    }
    const staged = await cluster.writer.stage(3, lateEnd(), options(body.length))
    const written = await staged.commit()
    t.same(written.missing, [])
    t.equal(holders(cluster, written, body).length, 3)
  },
)

t.test('I38: when all replicas stop reading, the client is not read either', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  for (const node of cluster.nodes) node.faults.freezeAfterBytes = mib
  let pulledBytes = 0
  const abort = new AbortController()
  const body = chunksOf(source, 64 * 1024, at => {
    pulledBytes = at
  })
  const staged = cluster.writer.stage(3, body, { ...options(source.length), signal: abort.signal })
  await Promise.race([staged.catch(() => undefined), sleep(1_500)])
  const held = pulledBytes
  t.ok(held < 16 * mib, `${(held / mib).toFixed(1)} MiB taken`)
  for (const node of cluster.nodes) node.thaw()
  const written = await (await staged).commit()
  t.equal(holders(cluster, written, source).length, 3, 'and goes on when they do')
})

t.test('commits that fail or go unheard are made good by others', async t => {
  const body = source.subarray(0, 2 * mib)
  for (const commit of ['refuse', 'die-before', 'die-after'] as const) {
    for (const replicas of [2, 3]) {
      const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { replicas })
      const [victim] = ownersOf(cluster, 3)
      ;(victim as FakeWriteNode).faults.commit = commit
      const written = await (await cluster.writer.stage(3, chunksOf(body), options(body.length))).commit()
      const claimed = cluster.view
        .current()
        .owners(3)
        .filter(shard => !written.missing.includes(shard))
      const held = holders(cluster, written, body)
      t.ok(
        [...claimed, ...written.handoffs].every(shard => held.includes(shard)),
        `${commit}, R = ${replicas}`,
      )
      t.ok(zonesHolding(cluster, [...claimed, ...written.handoffs]) >= 2)
    }
  }
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  for (const node of cluster.nodes) node.faults.commit = 'refuse'
  const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
  await t.rejects(staged.commit(), { code: 'QUORUM_NOT_REACHED' })
  t.ok(await nothingStaysStaged(cluster))
})

t.test('I5: a replica that received other bytes than were sent is not counted', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a'])
  const [victim] = ownersOf(cluster, 3)
  ;(victim as FakeWriteNode).faults.corruptUploads = true
  const body = source.subarray(0, 3 * mib)
  const written = await (await cluster.writer.stage(3, chunksOf(body), options(body.length))).commit()
  t.equal(written.missing.length, 1)
  t.ok(holders(cluster, written, body).length >= 2)
})

t.test('staged bytes become further copies of an existing blob, also in another partition, and once more', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b', 'c'])
  const view = cluster.view.current()
  const body = source.subarray(0, 3 * mib)
  const other = Array.from({ length: 4096 }, (_, i) => i).find(
    p => !view.owners(p).some(s => view.owners(3).includes(s)),
  ) as number
  const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
  for (const partition of [other, 3]) {
    const under = { generation: newGeneration(), partition }
    const written = await staged.commit(under)
    t.match(written, { ...under, missing: [], handoffs: [] })
    t.same(holders(cluster, written, body).sort(), [...view.owners(partition)].sort())
  }
  const again = await staged.commit()
  t.equal(holders(cluster, again, body).length, 3)
  t.ok(await nothingStaysStaged(cluster))
})

t.test('a node that is gone when bytes become further copies is replaced, whoever has the bytes by then', async t => {
  for (const bytes of [300_000, 3 * mib]) {
    for (const [replicas, again] of [
      [2, false],
      [2, true],
      [3, true],
    ] as const) {
      const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { replicas })
      const view = cluster.view.current()
      const body = source.subarray(0, bytes)
      const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
      // What another upload of the same bytes had become, under which these are copies once more.
      if (again) await staged.commit()
      const partition = view.owners(5).join() === view.owners(3).join() ? 6 : 5
      const targets = ownersOf(cluster, partition)
      targets.at(-1)?.die()
      // The others have the bytes, but have not said so yet.
      for (const node of targets) node.faults.answerDelayMs = 200
      const written = await staged.commit({ generation: newGeneration(), partition })
      const held = holders(cluster, written, body)
      t.ok(held.length >= 2 && zonesHolding(cluster, held) >= 2, `${bytes} bytes, R = ${replicas}: ${held.join()}`)
    }
  }
})

t.test('a joiner waits for the only replica that has the bytes while that one commits them', async t => {
  for (const seems of ['well', 'down']) {
    const cluster = await startWriteCluster(t, ['a', 'b', 'c'], { replicas: 2 })
    const [slow, refusing] = ownersOf(cluster, 3) as [FakeWriteNode, FakeWriteNode]
    const body = source.subarray(0, 3 * mib)
    const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
    slow.faults.commitDelayMs = 3_000
    refusing.faults.commit = 'refuse'
    const commit = staged.commit()
    // A busy node may miss its checks and yet finish what it has begun.
    const id = cluster.nodeId(cluster.nodes.indexOf(slow))
    for (let n = 0; n < 3 && seems === 'down'; n += 1) cluster.health.checked(id, undefined)
    const written = await commit
    const held = holders(cluster, written, body)
    t.ok(held.length >= 2 && zonesHolding(cluster, held) >= 2, `seems ${seems}: ${held.join()}`)
  }
})

t.test('a small body needs nobody to hand it over, since the proxy still has it', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b', 'c'])
  const body = source.subarray(0, mib)
  const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
  for (const node of ownersOf(cluster, 3)) {
    node.uploads.clear()
    node.faults.commit = 'refuse'
  }
  const written = await staged.commit()
  const held = holders(cluster, written, body)
  t.ok(held.length >= 2 && zonesHolding(cluster, held) >= 2, held.join())
  const asked = cluster.nodes.flatMap(({ requests }) => requests).filter(line => line.startsWith('GET '))
  t.same(asked, [])
})

t.test('bytes that nodes have forgotten are asked for once, and are missed soon when nobody has them', async t => {
  const body = source.subarray(0, 3 * mib)
  for (const restarted of [1, 3]) {
    const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b', 'c'])
    const view = cluster.view.current()
    const other = Array.from({ length: 4096 }, (_, i) => i).find(
      p => !view.owners(p).some(shard => view.owners(3).includes(shard)),
    ) as number
    const staged = await cluster.writer.stage(3, chunksOf(body), options(body.length))
    for (const node of ownersOf(cluster, 3).slice(0, restarted)) node.uploads.clear()
    for (const node of cluster.nodes) node.requests.length = 0
    const commit = staged.commit({ generation: newGeneration(), partition: other })
    if (restarted === 1) t.equal(holders(cluster, await commit, body).length, 3)
    else await t.rejects(commit, { code: 'QUORUM_NOT_REACHED', data: { forgotten: 3 } })
    const asked = cluster.nodes.flatMap(({ requests }) => requests).filter(line => line.startsWith('GET '))
    t.ok(asked.length <= 6, `${asked.length} requests for bytes`)
    t.ok(await nothingStaysStaged(cluster))
  }
})

t.test('a kept connection that the node had closed costs no replica', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const body = source.subarray(0, 300_000)
  await (await cluster.writer.stage(3, chunksOf(body), options(body.length))).commit()
  for (const node of cluster.nodes) {
    node.die()
    await node.start()
  }
  const written = await (await cluster.writer.stage(3, chunksOf(body), options(body.length))).commit()
  t.same(written.missing, [])
})

t.test(
  'I2, I8: nodes that die, freeze or refuse at random: acknowledged means W copies in two zones, else nothing stays',
  async t => {
    const seed = Date.now()
    t.comment(`seed ${seed}`)
    const bytes = fc.integer({ min: 0, max: 7 * mib })
    const fault: fc.Arbitrary<Faults> = fc.oneof(
      { weight: 4, arbitrary: fc.constant({}) },
      { weight: 3, arbitrary: bytes.map(dieAfterBytes => ({ dieAfterBytes })) },
      { weight: 1, arbitrary: fc.constant<Faults>({ refuse: 'INSUFFICIENT_STORAGE' }) },
      {
        weight: 1,
        arbitrary: fc.constantFrom<Faults>({ commit: 'refuse' }, { commit: 'die-before' }, { commit: 'die-after' }),
      },
      { weight: 1, arbitrary: fc.constant<Faults>({ bytesPerSecond: 40 * mib }) },
    )
    const outcomes = { acknowledged: 0, refused: 0 }
    const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b'])
    await fc.assert(
      fc.asyncProperty(
        fc.array(fault, { minLength: 5, maxLength: 5 }),
        fc.integer({ min: 65_000, max: 8 * mib }),
        fc.integer({ min: 1_000, max: 200_000 }),
        fc.boolean(),
        async (faults, bytes, chunkBytes, known) => {
          for (const [i, node] of cluster.nodes.entries()) {
            node.die()
            await node.start()
            node.reset(faults[i] ?? {})
            for (let n = 0; n < 2; n += 1) cluster.health.observe(cluster.nodeId(i), 'ok')
          }
          const body = source.subarray(0, bytes)
          try {
            const staged = await cluster.writer.stage(3, chunksOf(body, chunkBytes), options(known ? bytes : undefined))
            const written = await staged.commit()
            const held = holders(cluster, written, body)
            const owners = cluster.view.current().owners(3)
            outcomes.acknowledged += 1
            t.ok(held.length >= 2 && zonesHolding(cluster, held) >= 2, held.join())
            t.ok(
              [...owners.filter(owner => !written.missing.includes(owner)), ...written.handoffs].every(s =>
                held.includes(s),
              ),
            )
          } catch (error) {
            outcomes.refused += 1
            t.ok(isHoldfastError(error, 'QUORUM_NOT_REACHED', 'INSUFFICIENT_STORAGE'), String(error))
            t.ok(
              faults.filter(fault => Object.keys(fault).length > 0).length >= 2,
              `${JSON.stringify(faults)} ${inspect(error)}`,
            )
          }
          t.ok(await nothingStaysStaged(cluster), `left: ${leftovers(cluster).join()} ${JSON.stringify(faults)}`)
        },
      ),
      { seed, numRuns: 60 },
    )
    t.comment(JSON.stringify(outcomes))
    t.ok(outcomes.acknowledged > 10)
  },
)
