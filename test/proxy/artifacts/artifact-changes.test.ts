import t, { type Test } from 'tap'
import { ArtifactChanges, type Place } from '../../../proxy/artifacts/artifact-changes.ts'
import { checkBrake, countNeeded } from '../../../proxy/artifacts/delete-brake.ts'
import type { Artifact, CommitResult } from '../../../proxy/metadata/types.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { artifactOf, away, blobOf, repository } from './fixtures.ts'

const target = { ...repository, id: 2, name: 'target' }

function setUp(_: Test, paths: readonly string[]) {
  const artifacts = new Map<string, Artifact>(paths.map(path => [path, artifactOf(path)]))
  const world = {
    artifacts,
    log: [] as string[],
    version: 10,
    fault: undefined as Error | undefined,
    answer: undefined as CommitResult | undefined,
    /** What others do before a commit. */
    meanwhile: () => {},
  }
  const below = (prefix: string, after: string): Artifact[] =>
    [...artifacts.values()].filter(({ path }) => path.startsWith(prefix) && path > after).sort((a, b) => (a.path < b.path ? -1 : 1)) // prettier-ignore
  const remove = (path: string) => {
    artifacts.delete(path)
    return { path, version: ++world.version, outboxSeq: world.version }
  }
  const changes = new ArtifactChanges({
    metadata: {
      incarnation: 'i',
      findArtifact: async (_, path) => artifacts.get(path),
      listArtifacts: async (_, prefix, after, limit) => below(prefix, after).slice(0, limit),
      deleteArtifact: async ({ path }, conditions) => {
        if (world.fault !== undefined) throw world.fault
        const found = artifacts.get(path)
        if (found === undefined) return undefined
        const match = conditions?.match
        if (match !== undefined && match !== '*' && !match.includes(found.blob.digest)) {
          throw new HoldfastError('PRECONDITION_FAILED', 'no')
        }
        return remove(path)
      },
      countArtifacts: async (_, prefix, most) => Math.min(most, below(prefix, '').length),
      deleteFolder: async ({ prefix }, limit) =>
        below(prefix, '')
          .slice(0, limit)
          .map(({ path }) => remove(path)),
      commitArtifacts: async (commits, deletes = []) => {
        if (world.fault !== undefined) throw world.fault
        world.log.push(`commit ${commits.length} and ${deletes.length}`)
        world.meanwhile()
        for (const { path, match } of deletes) {
          const digest = artifacts.get(path)?.blob.digest
          const fits = match === undefined || match === '*' || (digest !== undefined && match.includes(digest))
          if (!fits) throw new HoldfastError('PRECONDITION_FAILED', 'no')
        }
        const results = commits.map(
          ({ path, blob }): CommitResult =>
            world.answer ?? {
              outcome: 'created', artifact: artifactOf(path, ++world.version, blob), outboxSeq: world.version, incarnation: 'i',
            }, // prettier-ignore
        )
        return { results, deleted: world.answer === undefined ? deletes.map(({ path }) => remove(path)) : [] }
      },
    },
    publisher: {
      prepare: async keys => void world.log.push(`prepare ${keys.length}`),
      withdraw: (keys, error) => void world.log.push(`withdraw ${keys.length} ${(error as HoldfastError).code}`),
      publish: async (publications, announced = []) => {
        const records = publications.map(({ record }) => `${record.op} ${record.repository}/${record.path}`)
        world.log.push(`publish ${records.length > 3 ? records.length : records.join()} of ${announced.length}`)
      },
    },
    brake: { share: 0.5, artifacts: 1_200 },
    checkPath: path => {
      if (path.length > 100) throw new HoldfastError('URI_TOO_LONG', 'too long')
    },
  })
  return { world, changes }
}

const at = (path: string): Place => ({ repository, path })
const to = (path: string): Place => ({ repository: target, path })
const many = Array.from({ length: 1_200 }, (_, index) => `f/${String(index).padStart(5, '0')}`)

t.test('a deletion is announced, committed and published as a tombstone', async t => {
  const { world, changes } = setUp(t, ['a'])
  await changes.deleteArtifact(at('a'), 'ann')
  t.same(world.log, ['prepare 1', 'publish delete raw/a of 1'])
  await t.rejects(changes.deleteArtifact(at('a'), 'ann'), { code: 'ARTIFACT_NOT_FOUND' })
  t.equal(world.log.at(-1), 'withdraw 1 ARTIFACT_NOT_FOUND')
})

t.test('a deletion under a condition that does not hold changes nothing', async t => {
  const { world, changes } = setUp(t, ['a'])
  await t.rejects(changes.deleteArtifact(at('a'), 'ann', []), { code: 'PRECONDITION_FAILED' })
  t.ok(world.artifacts.has('a'))
  t.same(world.log, ['prepare 1', 'withdraw 1 PRECONDITION_FAILED'])
  world.fault = away()
  await t.rejects(changes.deleteArtifact(at('a'), 'ann'), { code: 'METADATA_UNAVAILABLE' })
  t.equal(world.log.at(-1), 'withdraw 1 METADATA_UNAVAILABLE')
})

t.test('a folder goes in pages, each as a whole', async t => {
  const { world, changes } = setUp(t, [...many, 'other'])
  t.equal(await changes.deleteFolder(at('f/'), 'ann'), 1_200)
  t.same([...world.artifacts.keys()], ['other'])
  t.same(world.log, ['prepare 500', 'publish 500 of 500', 'prepare 500', 'publish 500 of 500', 'prepare 200', 'publish 200 of 200']) // prettier-ignore
  await t.rejects(
    changes.deleteFolder(at('f/'), 'ann'),
    { code: 'ARTIFACT_NOT_FOUND' },
    'a slip of the path is no success',
  )
  await t.rejects(changes.deleteFolder(at('f/'), 'ann', 9), { code: 'ARTIFACT_NOT_FOUND' })
})

t.test('a folder that is much of its repository goes only when its number is confirmed', async t => {
  const more = [...many, 'f/last']
  const { world, changes } = setUp(t, more)
  const refused = { code: 'CONFLICT', data: { artifacts: 1_201, of: 1_201, confirm: 1_201 } }
  await t.rejects(changes.deleteFolder(at('f/'), 'ann'), refused)
  await t.rejects(changes.deleteFolder(at('f/'), 'ann', 1_200), refused)
  t.same(world.log, [], 'nothing was announced')
  t.equal(world.artifacts.size, 1_201)
  t.equal(await changes.deleteFolder(at('f/'), 'ann', 1_201), 1_201)
  const others = more.map(path => `g/${path}`)
  const half = setUp(t, [...more, ...others])
  t.equal(await half.changes.deleteFolder(at('f/'), 'ann'), 1_201, 'no more than its share')
})

t.test('the brake asks for as little counting as it needs', async t => {
  const limits = { share: 0.05, artifacts: 1_000 }
  t.equal(countNeeded(2_000, limits), 40_000)
  t.doesNotThrow(() => checkBrake(2_000, countNeeded(2_000, limits), limits), 'what lies beyond does not matter')
  t.throws(() => checkBrake(2_000, 39_999, limits), { code: 'CONFLICT' })
  t.doesNotThrow(() => checkBrake(1_000, 1_000, limits))
  t.doesNotThrow(() => checkBrake(5_000, 5_000, { share: 1, artifacts: 0 }))
  t.equal(countNeeded(7, { share: 0, artifacts: 0 }), 7)
})

t.test('copies and moves carry what the source has, in pages', async t => {
  const { world, changes } = setUp(t, [...many, 'other'])
  t.equal(await changes.transfer('copy', at('f/'), to('g/'), 'ann'), 1_200)
  t.same(world.log.slice(0, 3), ['prepare 500', 'commit 500 and 0', 'publish 500 of 500'])
  t.equal(await changes.transfer('move', at('f/'), to(''), 'ann'), 1_200)
  t.same([...world.artifacts.keys()], ['other'])
  world.log.length = 0
  t.equal(await changes.transfer('move', at('other'), to('renamed'), 'ann'), 1)
  t.same(world.log, ['prepare 2', 'commit 1 and 1', 'publish delete raw/other,put target/renamed of 2'])
})

t.test(
  'a move takes nothing along that was written over its source meanwhile, nor what another move has taken',
  async t => {
    const { world, changes } = setUp(t, ['a', 'b'])
    const other = artifactOf('a', 11, blobOf('other'))
    world.meanwhile = () => void world.artifacts.set('a', other)
    await t.rejects(changes.transfer('move', at('a'), to('c'), 'ann'), { code: 'CONFLICT' })
    t.equal(world.artifacts.get('a'), other)
    world.meanwhile = () => void world.artifacts.delete('b')
    await t.rejects(changes.transfer('move', at('b'), to('c'), 'ann'), { code: 'CONFLICT' })
    t.equal(await changes.transfer('copy', at('a'), to('c'), 'ann'), 1, 'a copy has been one of what was there')
    t.same(
      world.log.filter(line => line.startsWith('withdraw')),
      ['withdraw 2 CONFLICT', 'withdraw 2 CONFLICT'],
    )
  },
)

t.test('what cannot be transferred is refused before anything happens', async t => {
  const { world, changes } = setUp(t, ['f/a', 'f/b/c', 'x'])
  const rejects = async (from: Place, target: Place, code: string): Promise<void> => {
    await t.rejects(changes.transfer('copy', from, target, 'ann'), { code }, `${from.path} -> ${target.path}`)
  }
  await rejects(at('none'), to('y'), 'ARTIFACT_NOT_FOUND')
  await rejects(at('none/'), to('y/'), 'ARTIFACT_NOT_FOUND')
  await rejects(at('f/'), to('y'), 'BAD_REQUEST')
  await rejects(at('x'), to('y/'), 'BAD_REQUEST')
  await rejects(at('x'), at('x'), 'BAD_REQUEST')
  await rejects(at('f/'), at('f/b/'), 'BAD_REQUEST')
  await rejects(at('f/b/'), at('f/'), 'BAD_REQUEST')
  await rejects(at(''), at('f/'), 'BAD_REQUEST')
  await rejects(at('x'), { ...to('y'), repository: { ...target, redeploy: 'deny' } }, 'FORBIDDEN')
  await rejects(at('f/b/c'), { ...to('y'), repository: { ...target, artifactBytesMax: 1 } }, 'TOO_LARGE')
  await rejects(at('f/'), to('d'.repeat(99) + '/'), 'URI_TOO_LONG')
  t.same(world.log, [], 'nothing was announced')
})

t.test('a target that refuses, and a source that goes away, end the announcement', async t => {
  const { world, changes } = setUp(t, ['a', 'b'])
  world.answer = { outcome: 'refused', reason: 'redeploy', current: null }
  await t.rejects(changes.transfer('move', at('a'), to('c'), 'ann'), { code: 'REDEPLOY_REFUSED' })
  world.answer = { outcome: 'blob-gone' }
  await t.rejects(changes.transfer('copy', at('a'), to('c'), 'ann'), { code: 'CONFLICT' })
  t.same(world.log.filter(line => line.startsWith('withdraw')), ['withdraw 2 REDEPLOY_REFUSED', 'withdraw 1 CONFLICT']) // prettier-ignore
  world.log.length = 0
  world.answer = { outcome: 'unchanged', artifact: artifactOf('c'), outboxSeq: null, incarnation: 'i' }
  t.equal(await changes.transfer('copy', at('a'), to('c'), 'ann'), 1)
  t.equal(world.log.at(-1), 'publish  of 1', 'a copy that changes nothing takes its announcement back')
})
