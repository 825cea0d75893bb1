import t, { type Test } from 'tap'
import { Publisher, type Publication } from '../../../proxy/artifacts/publisher.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { eventually } from '../../support/eventually.ts'
import { away, gate, recordOf, silent } from './fixtures.ts'

function setUp(t: Test) {
  const world = {
    log: [] as string[],
    settled: [] as number[],
    repairs: [] as unknown[],
    append: async (): Promise<{ missing: readonly ShardId[] }> => ({ missing: [] }),
    prepare: async (_: readonly string[]): Promise<void> => {},
    invalidate: async (_: readonly string[]): Promise<void> => {},
    addRepairs: async (): Promise<void> => {},
    settle: async (): Promise<void> => {},
    available: true,
    goAway: (): void => {},
  }
  const publisher = new Publisher({
    metadata: {
      settleOutbox: async seqs => {
        await world.settle()
        world.settled.push(...seqs)
      },
      addRepairs: async repairs => {
        await world.addRepairs()
        world.repairs.push(...repairs)
      },
      get available() {
        return world.available
      },
      onAway: listener => {
        world.goAway = () => {
          world.available = false
          listener()
        }
      },
    },
    references: {
      append: record => {
        world.log.push(`append ${record.path}`)
        return world.append()
      },
    },
    lease: {
      prepare: keys => {
        world.log.push(`prepare ${keys.join()}`)
        return world.prepare(keys)
      },
      invalidate: keys => {
        world.log.push(`tell ${keys.join()}`)
        return world.invalidate(keys)
      },
    },
    invalidateLocal: keys => void world.log.push(`drop ${keys.join()}`),
    log: silent,
  })
  t.teardown(() => publisher.close())
  return { world, publisher }
}

const publication = (path: string, outboxSeq: number): Publication => ({ record: recordOf(path, outboxSeq), outboxSeq })

t.test('I37: a change is published when the own cache, all others and the shards know it', async t => {
  const { world, publisher } = setUp(t)
  const told = gate()
  const appended = gate<{ missing: readonly ShardId[] }>()
  world.invalidate = () => told.promise
  world.append = () => appended.promise
  let done = false
  const publishing = publisher.publish([publication('a', 1)]).then(() => (done = true))
  t.same(world.log, ['drop raw/a', 'tell raw/a', 'append a'], 'the own cache first, then both at once')
  appended.open({ missing: [] })
  await new Promise(setImmediate)
  t.notOk(done, 'not before the other caches have acknowledged')
  told.open()
  await publishing
  await publisher.close()
  t.same(world.settled, [1])
  t.same(world.repairs, [])
})

t.test('keys that were announced and did not change are taken back with the others', async t => {
  const { world, publisher } = setUp(t)
  await publisher.publish([publication('a', 1)], ['raw/b', 'raw/a'])
  t.same(world.log.slice(0, 2), ['drop raw/b,raw/a', 'tell raw/b,raw/a'])
})

t.test('a reference that is on a majority but not everywhere is repaired', async t => {
  const { world, publisher } = setUp(t)
  world.append = async () => ({ missing: ['s2' as ShardId] })
  await publisher.publish([publication('a', 1)])
  t.match(world.repairs, [{ kind: 'reference', key: 'raw/a', version: 1, missing: ['s2'], handoffs: [] }])
  t.equal(publisher.underReplicated, 1)
  world.addRepairs = async () => {
    throw away()
  }
  await publisher.publish([publication('b', 2)])
  await publisher.close()
  t.same(world.settled, [1], 'what could not be noted stays in the outbox, for the primary')
})

t.test('a reference without a majority fails the write, and stays in the outbox', async t => {
  const { world, publisher } = setUp(t)
  world.append = async () => {
    throw new HoldfastError('QUORUM_NOT_REACHED', 'no')
  }
  await t.rejects(publisher.publish([publication('a', 1)]), { code: 'QUORUM_NOT_REACHED' })
  await publisher.close()
  t.same(world.settled, [])
})

t.test('settling is batched, and failing is harmless', async t => {
  const { world, publisher } = setUp(t)
  await Promise.all([1, 2, 3].map(seq => publisher.publish([publication(`p${seq}`, seq)])))
  t.same(world.settled, [])
  await eventually('settled by itself', () => world.settled.length === 3, { everyMs: 5 })
  world.settle = async () => {
    throw away()
  }
  await publisher.publish([publication('a', 4)])
  await publisher.close()
  t.same(world.settled, [1, 2, 3])
})

t.test('an announcement without a change is taken back at once, and nothing is thrown', async t => {
  const { world, publisher } = setUp(t)
  world.invalidate = async () => {
    throw new HoldfastError('COORDINATION_UNAVAILABLE', 'away')
  }
  await publisher.prepare(['raw/a'])
  publisher.withdraw(['raw/a'], new HoldfastError('PRECONDITION_FAILED', 'no'))
  t.same(world.log, ['prepare raw/a', 'drop raw/a', 'tell raw/a'])
  await new Promise(setImmediate)
})

t.test('I37: while nobody knows whether a commit happened, the others go on asking PostgreSQL', async t => {
  const { world, publisher } = setUp(t)
  publisher.withdraw(['raw/a'], away())
  t.same(world.log, ['drop raw/a'])
  await eventually('until it must have happened or never will', () => world.log.length === 3, { everyMs: 10 })
  t.same(world.log.slice(1), ['drop raw/a', 'tell raw/a'])
  publisher.withdraw(['raw/b'], away())
  await publisher.close()
})

t.test('I15: who waits for others to be told hears soon after PostgreSQL is away, and telling goes on', async t => {
  const { world, publisher } = setUp(t)
  const told = gate()
  world.invalidate = () => told.promise
  world.prepare = () => told.promise
  const waiting = [publisher.publish([publication('a', 1)]), publisher.invalidate(['!repositories'])]
  const preparing = publisher.prepare(['raw/b'])
  const refused = Promise.all(waiting.map(one => t.rejects(one, { code: 'METADATA_UNAVAILABLE' })))
  const awayAt = performance.now()
  world.goAway()
  await refused
  await preparing
  await t.rejects(publisher.publish([publication('c', 3)]), { code: 'METADATA_UNAVAILABLE' }, 'so does who comes later')
  t.ok(performance.now() - awayAt < 1_500, `after ${Math.round(performance.now() - awayAt)} ms`)
  t.same(
    world.log.filter(line => line.startsWith('tell')),
    ['tell raw/a', 'tell !repositories', 'tell raw/c'],
  )
  told.open()
})

t.test('an outage that is over before patience is, and one that others can be told in, fails nothing', async t => {
  const { world, publisher } = setUp(t)
  const told = gate()
  world.invalidate = () => told.promise
  const slow = publisher.publish([publication('a', 1)])
  world.goAway()
  world.available = true
  let decided = false
  void slow.then(
    () => (decided = true),
    () => (decided = true),
  )
  await new Promise(resolve => setTimeout(resolve, 700))
  t.notOk(decided)
  told.open()
  await slow
  world.goAway()
  world.invalidate = async () => {}
  await publisher.publish([publication('b', 2)])
})

t.test(
  'I37: an outcome that a frozen PostgreSQL left open is settled only after it has been back for a while',
  async t => {
    const { world, publisher } = setUp(t)
    world.goAway()
    publisher.withdraw(['raw/a'], away())
    const drops = (): number => world.log.filter(line => line === 'drop raw/a').length
    await eventually('the first look: still away', () => drops() === 2, { everyMs: 10 })
    world.available = true
    await eventually('the second look: back, but since when?', () => drops() === 3, { everyMs: 10 })
    t.notOk(world.log.includes('tell raw/a'))
    await eventually('told', () => world.log.includes('tell raw/a'), { everyMs: 10 })
  },
)
