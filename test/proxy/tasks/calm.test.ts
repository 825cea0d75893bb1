/** The primary's own work beside clients: what it may take of the time, and that it never stands still (I34). */
import fc from 'fast-check'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { NodeHealth } from '../../../proxy/routing/health.ts'
import { Calm, copyCostMs, stepRestMs, roomFor, stepShare } from '../../../proxy/tasks/calm.ts'
import type { ShardId } from '../../../shared/ids.ts'
import type { ShardStatus } from '../../../shared/wire.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
t.comment(`HOLDFAST_TEST_SEED=${seed}`)

const part = fc.double({ min: 0, max: 1, noNaN: true })
const shares = fc.array(fc.double({ min: 0.01, max: 1, noNaN: true }), { maxLength: 5 })
const never = new AbortController().signal

t.test(
  'I34: all of the time without clients, else half of it at most, and the busier anybody is the less',
  async () => {
    fc.assert(
      fc.property(shares, part, part, part, (told, load, more, other) => {
        if (stepShare({ shares: told, hasClients: false, load }) !== 1) return false
        const share = stepShare({ shares: told, hasClients: true, load })
        const isWithin = share >= 0.25 && share <= 0.5
        const loaded = stepShare({ shares: told, hasClients: true, load: Math.min(1, load + more) })
        const asked = stepShare({ shares: [...told, other], hasClients: true, load })
        const isBusy = load >= 0.6 || told.some(one => one <= 0.25)
        return isWithin && loaded <= share && asked <= share && (!isBusy || share === 0.25)
      }),
      { seed, numRuns: 2_000 },
    )
  },
)

t.test('I34: a rest has its end, and many nodes are talked to side by side', async t => {
  fc.assert(
    fc.property(fc.nat(1_000_000), part, fc.nat(5_000), (tookMs, load, nodes) => {
      const share = stepShare({ shares: [], hasClients: true, load })
      const rest = stepRestMs(tookMs, share)
      const isFair = rest === 40 || Math.abs(tookMs / (tookMs + rest) - share) < 1e-6 || tookMs === 0
      return rest >= 0 && rest <= 40 && isFair && roomFor(nodes, share) >= 1
    }),
    { seed, numRuns: 2_000 },
  )
  t.equal(stepRestMs(100, 1), 0)
  t.equal(roomFor(4, 0.5), 1, 'a small cluster')
  t.equal(roomFor(300, 0.5), 37)
  t.ok(copyCostMs({ blobs: 1, bytes: 0 }) > 0 && copyCostMs({ blobs: 0, bytes: 1e6 }) > 0)
})

/** Four nodes of one shard each; those whose share is 1 have no clients. */
function world() {
  const told = new Map<ShardId, number>(['a', 'b', 'c', 'd'].map(id => [id as ShardId, 1]))
  let at = 0
  const statusOf = (id: ShardId) => ({ id, background: { share: told.get(id) ?? 1, bytes: 0 } }) as ShardStatus
  const nodes = () => [...told.keys()].map(id => ({ status: { shards: [statusOf(id)] } }) as unknown as NodeHealth)
  const calm = new Calm({ health: { nodes, shardStatus: statusOf }, load: () => 0, now: () => at })
  const clients = (shard: string, share: number): void => {
    told.set(shard as ShardId, share)
    // Nodes are asked once a second.
    at += 1_000
  }
  return { calm, clients, pass: (ms: number) => void (at += ms) }
}

const on = (...shards: string[]) => shards as ShardId[]

async function mostAtOnce(calm: Calm, shards: readonly ShardId[]): Promise<number> {
  let [running, most] = [0, 0]
  const work = async () => {
    most = Math.max(most, (running += 1))
    await sleep(2)
    running -= 1
  }
  await Promise.all(Array.from({ length: 12 }, () => calm.step(shards, never, work)))
  return most
}

t.test('I34: one step at a time in a small cluster with clients, all at once without them', async t => {
  const { calm, clients } = world()
  t.equal(await mostAtOnce(calm, on('a', 'b')), 12)
  clients('c', 0.5)
  t.equal(calm.share(on('a')), 0.5, 'clients of another node share the machine of the primary, perhaps')
  t.equal(await mostAtOnce(calm, on('a', 'b')), 1)
  clients('c', 1)
  t.equal(await mostAtOnce(calm, on('a', 'b')), 12)
})

t.test('a node that does not tell, of an older release, has no clients', async t => {
  const calm = new Calm({
    health: { nodes: () => [{ status: { shards: [{}] } } as unknown as NodeHealth], shardStatus: () => undefined },
    load: () => 1,
    now: () => 0,
  })
  t.equal(calm.share(on('a')), 1)
})

t.test('I34: after a step nothing begins for as long as its rest lasts, what was spent elsewhere among it', async t => {
  const { calm, clients, pass } = world()
  clients('a', 0.25)
  const begun: string[] = []
  await calm.step(on('a'), never, async () => pass(20))
  const second = calm.step(on('a'), never, async () => void begun.push('second'))
  await sleep(20)
  t.same(begun, [], 'three times 20 ms, and not more than 40')
  pass(40)
  await second
  t.same(begun, ['second'])
  calm.spent(on('a'), 1_000_000)
  const third = calm.step(on('a'), never, async () => void begun.push('third'))
  await sleep(20)
  pass(1_900)
  await sleep(20)
  t.same(begun, ['second'])
  pass(100)
  await third
  t.same(begun, ['second', 'third'], 'a rest ends, whatever was spent')
})

t.test('who gives up leaves the queue, and what fails keeps nobody waiting', async t => {
  const { calm, clients } = world()
  clients('a', 0.5)
  const order: string[] = []
  const gone = new AbortController()
  const run = (name: string, signal = never) =>
    calm.step(on('a'), signal, async () => {
      order.push(name)
      await sleep(1)
      if (name === 'b') throw new Error('node')
    })
  // As many as may go at once stand before the one that leaves.
  const all = [run('a'), run('b'), run('c'), run('d'), run('left', gone.signal), run('e')]
  gone.abort(new Error('left'))
  const ends = await Promise.allSettled(all)
  t.same(order, ['a', 'b', 'c', 'd', 'e'])
  const words = ends.map(end => (end.status === 'rejected' ? (end.reason as Error).message : 'ok'))
  t.same(words, ['ok', 'node', 'ok', 'ok', 'left', 'ok'])
  await t.rejects(
    calm.step(on('a'), AbortSignal.abort(new Error('too late')), async () => {}),
    /too late/,
  )
})

t.test(
  'I34: where steps take long because of others, another one begins beside them, and then another one, up to four',
  async t => {
    const { calm, clients, pass } = world()
    clients('a', 0.5)
    let begun = 0
    let release = (): void => {}
    const stuck = new Promise<void>(resolve => (release = resolve))
    const all = Array.from({ length: 6 }, () => calm.step(on('a'), never, () => (begun++, stuck)))
    const counts: number[] = []
    for (let look = 0; look < 6; look += 1) {
      await sleep(60)
      counts.push(begun)
      pass(40)
    }
    t.same(counts, [1, 2, 3, 4, 4, 4])
    clients('a', 1)
    release()
    await Promise.all(all)
    t.equal(begun, 6)
  },
)
