import { stat } from 'node:fs'
import t, { type Test } from 'tap'
import { PathCache } from '../../../proxy/artifacts/path-cache.ts'
import { Repositories } from '../../../proxy/artifacts/repositories.ts'
import { Resolver } from '../../../proxy/artifacts/resolver.ts'
import type { Artifact, Repository } from '../../../proxy/metadata/types.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { eventually } from '../../support/eventually.ts'
import { artifactOf, away, gate, recordOf, repository } from './fixtures.ts'

function setUp(t: Test) {
  const world = {
    leased: true,
    asked: 0,
    find: async (path: string): Promise<Artifact | undefined> => artifactOf(path),
    ping: async (): Promise<void> => {},
    newest: async (_: string, path: string): Promise<ReferenceRecord | undefined> => recordOf(path, 1),
    states: [] as boolean[],
    cache: new PathCache({ entriesMax: 10 }),
  }
  const resolver = new Resolver({
    metadata: {
      findArtifact: (_, path) => {
        world.asked++
        return world.find(path)
      },
      ping: () => world.ping(),
    },
    references: { newest: (name, path) => world.newest(name, path) },
    cache: world.cache,
    leaseUsable: () => world.leased,
    onMetadataState: state => world.states.push(state),
  })
  t.teardown(() => resolver.close())
  return { world, resolver }
}

t.test('PostgreSQL is asked once; absence is remembered too; without a lease it is asked each time', async t => {
  const { world, resolver } = setUp(t)
  t.equal(resolver.peek('raw/a'), undefined)
  for (let turn = 0; turn < 3; turn++) t.match(await resolver.resolve(repository, 'a'), { source: 'current' })
  t.equal(world.asked, 1)
  t.equal(resolver.peek('raw/a')?.artifact?.path, 'a')
  world.find = async () => undefined
  for (let turn = 0; turn < 3; turn++) t.equal((await resolver.resolve(repository, 'b')).entry.artifact, null)
  t.equal(world.asked, 2)
  world.leased = false
  t.equal(resolver.peek('raw/a'), undefined)
  for (let turn = 0; turn < 3; turn++) await resolver.resolve(repository, 'a')
  t.equal(world.asked, 5)
})

t.test(
  'I7: with PostgreSQL away the shards tell, then what is kept, and nobody says "absent" who does not know',
  async t => {
    const { world, resolver } = setUp(t)
    await resolver.resolve(repository, 'kept')
    world.leased = false
    world.find = async () => {
      throw away()
    }
    world.ping = world.find as () => Promise<never>
    world.newest = async (_, path) => recordOf(path, 2)
    const newer = await resolver.resolve(repository, 'kept')
    t.equal(newer.source, 'shards')
    t.equal(newer.entry.artifact?.version, 2, 'a write that another proxy acknowledged meanwhile is seen')
    t.notOk(resolver.metadataAvailable)
    const { asked } = world
    await resolver.resolve(repository, 'other')
    t.equal(world.asked, asked, 'it is left alone while it is away')
    world.newest = async (_, path) => (path === 'gone' ? undefined : recordOf(path, 3, 'delete'))
    t.equal((await resolver.resolve(repository, 'gone')).entry.artifact, null)
    t.equal((await resolver.resolve(repository, 'deleted')).entry.artifact, null)
    world.newest = async () => {
      throw new HoldfastError('REPLICAS_UNREACHABLE', 'nobody')
    }
    t.match(await resolver.resolve(repository, 'kept'), { source: 'cache', entry: { artifact: { version: 1 } } })
    await t.rejects(resolver.resolve(repository, 'unknown'), { code: 'REPLICAS_UNREACHABLE' })
    world.leased = true
    t.equal((await resolver.resolve(repository, 'kept')).source, 'current', 'under a lease an entry is right')

    world.ping = async () => {}
    world.find = async path => artifactOf(path, 9)
    await eventually('a probe is answered', () => resolver.metadataAvailable, { everyMs: 5 })
    t.same(world.states, [false, true])
    t.equal(world.cache.size, 0, 'what was kept over the outage is gone')
    t.equal((await resolver.resolve(repository, 'kept')).entry.artifact?.version, 9)
  },
)

t.test('I7: an absence that was remembered is no answer once the lease is gone', async t => {
  const { world, resolver } = setUp(t)
  world.find = async () => undefined
  await resolver.resolve(repository, 'a')
  world.leased = false
  world.find = async () => {
    throw away()
  }
  world.newest = async () => {
    throw new HoldfastError('REPLICAS_UNREACHABLE', 'nobody')
  }
  await t.rejects(resolver.resolve(repository, 'a'), { code: 'REPLICAS_UNREACHABLE' })
})

t.test('a database that hangs is not waited for; one that fails otherwise is no outage', async t => {
  const { world, resolver } = setUp(t)
  world.find = () => new Promise(() => {})
  world.ping = () => new Promise(() => {})
  t.equal((await resolver.resolve(repository, 'a')).source, 'shards', 'after a second')
  t.equal(resolver.metadataAvailable, false)
  const second = setUp(t)
  second.world.find = async () => {
    throw new HoldfastError('INTERNAL', 'a bug')
  }
  await t.rejects(second.resolver.resolve(repository, 'a'), { code: 'INTERNAL' })
  t.ok(second.resolver.metadataAvailable)
})

t.test('a worker that stood still itself does not take the database for away', async t => {
  const { world, resolver } = setUp(t)
  // The answer is there all the while, and waits to be handled.
  world.find = path => new Promise(resolve => stat('.', () => resolve(artifactOf(path))))
  const asked = resolver.resolve(repository, 'a')
  for (const until = performance.now() + 1_200; performance.now() < until;);
  t.match(await asked, { source: 'current' })
  t.ok(resolver.metadataAvailable)
})

t.test('I37: a read that began before a write and ends after it is not kept', async t => {
  const { world, resolver } = setUp(t)
  const slow = gate<Artifact>()
  world.find = () => slow.promise
  const reading = resolver.resolve(repository, 'a')
  world.cache.invalidate(['raw/a'])
  slow.open(artifactOf('a', 1))
  t.equal((await reading).entry.artifact?.version, 1)
  t.equal(resolver.peek('raw/a'), undefined)
})

t.test('the list of repositories', async t => {
  const listOf = (...names: string[]): Repository[] =>
    names.map((name, index) => ({ ...repository, name, id: index + 1 }))
  const begin = () => {
    const world = {
      now: 0,
      leased: true,
      reads: 0,
      list: async (): Promise<readonly Repository[]> => listOf('raw'),
    }
    const repositories = new Repositories({
      metadata: {
        listRepositories: () => {
          world.reads++
          return world.list()
        },
      },
      leaseUsable: () => world.leased,
      now: () => world.now,
    })
    return { world, repositories }
  }

  t.test('is read once under a lease, once a second without, and shared by all who wait', async t => {
    const { world, repositories } = begin()
    t.equal(repositories.peek('raw'), 'ask')
    await Promise.all([repositories.all(), repositories.all(), repositories.get('raw')])
    t.equal(world.reads, 1)
    t.match(repositories.peek('raw'), { id: 1 })
    t.equal(repositories.peek('none'), undefined)
    await t.rejects(repositories.get('none'), { code: 'REPOSITORY_NOT_FOUND' })
    world.now = 100_000
    await repositories.all()
    t.equal(world.reads, 1)
    world.leased = false
    t.equal(repositories.peek('raw'), 'ask')
    await repositories.all()
    world.now += 999
    t.match(repositories.peek('raw'), { id: 1 })
    world.now += 1
    t.equal(repositories.peek('raw'), 'ask')
    t.equal(world.reads, 2)
  })

  t.test('an invalidation makes every later reader ask, also while a reading is under way', async t => {
    const { world, repositories } = begin()
    const old = gate<Repository[]>()
    world.list = () => old.promise
    const before = repositories.all()
    repositories.invalidate()
    world.list = async () => listOf('raw', 'new')
    t.ok((await repositories.all()).has('new'))
    old.open(listOf('raw'))
    await before
    t.match(repositories.peek('new'), { id: 2 }, 'the older reading changes nothing any more')
    t.equal(world.reads, 2)
  })

  t.test('a change that could not be followed is followed as soon as PostgreSQL answers', async t => {
    const { world, repositories } = begin()
    await repositories.all()
    repositories.invalidate()
    world.list = async () => {
      throw away()
    }
    t.ok((await repositories.all()).has('raw'), 'the known list serves meanwhile')
    t.match(repositories.peek('raw'), { id: 1 })
    world.list = async () => listOf('raw', 'new')
    world.now += 1_000
    t.equal(repositories.peek('new'), 'ask', 'the lease does not make the old list right')
    t.ok((await repositories.all()).has('new'))
  })

  t.test('nobody sees it before it has been read', async t => {
    const { world, repositories } = begin()
    world.list = async () => {
      throw away()
    }
    await t.rejects(repositories.all(), { code: 'METADATA_UNAVAILABLE' })
    t.equal(repositories.peek('raw'), 'ask')
    world.list = async () => listOf('raw')
    await repositories.all()
    repositories.invalidate()
    world.list = async () => {
      throw new HoldfastError('INTERNAL', 'a bug')
    }
    await t.rejects(repositories.all(), { code: 'INTERNAL' })
  })
})
