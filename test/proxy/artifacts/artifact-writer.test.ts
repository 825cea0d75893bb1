import t, { type Test } from 'tap'
import { ArtifactWriter, type Put } from '../../../proxy/artifacts/artifact-writer.ts'
import type { Artifact, Blob, CommitArtifact, CommitResult } from '../../../proxy/metadata/types.ts'
import type { BlobWriter, WrittenBlob } from '../../../proxy/routing/types.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { newGeneration, type ShardId } from '../../../shared/ids.ts'
import { artifactOf, away, blobOf, repository } from './fixtures.ts'

/** PostgreSQL and shards that answer as told, and write down what they were asked. */
function setUp(_: Test) {
  const world = {
    log: [] as string[],
    commits: [] as CommitArtifact[],
    current: undefined as Artifact | undefined,
    existing: undefined as Blob | undefined,
    readable: true,
    quorum: true,
    pinned: true,
    missing: [] as ShardId[],
    answers: [] as (CommitResult | Error)[],
    stageFault: undefined as Error | undefined,
    withdrawn: [] as unknown[],
    metadataAvailable: true,
    announced: false,
  }
  const written = (blob: Blob, under?: Pick<Blob, 'generation' | 'partition'>): WrittenBlob => {
    world.log.push(under === undefined ? 'write' : `write under ${under.generation}`)
    return { ...blob, ...(under ?? { generation: newGeneration() }), missing: world.missing, handoffs: [] }
  }
  const writer: BlobWriter = {
    admit: () => {},
    writeSmall: async (partition, body, _, generation) =>
      written({ ...blobOf(body), partition }, generation === undefined ? undefined : { generation, partition }),
    stage: async (partition, body) => {
      if (world.stageFault !== undefined) throw world.stageFault
      const chunks: Buffer[] = []
      for await (const chunk of body) chunks.push(chunk)
      world.log.push('staged')
      const blob = { ...blobOf(Buffer.concat(chunks)), partition }
      return {
        ...blob,
        commit: async under => written(blob, under),
        abort: async () => void world.log.push('abort'),
      }
    },
    touch: async () => {
      world.log.push('touch')
      return { held: [], missing: world.missing, quorum: world.quorum }
    },
  }
  const service = new ArtifactWriter({
    metadata: {
      incarnation: 'i',
      findArtifact: async () => (world.log.push('find'), world.current),
      findBlob: async () => world.existing,
      pinBlob: async () => (world.log.push('pin'), world.pinned),
      digestReadable: async () => world.readable,
      commitArtifact: async commit => {
        world.log.push(`commit ${commit.blobIs}${world.announced ? '' : ' unannounced'}`)
        world.commits.push(commit)
        const answer = world.answers.shift()
        if (answer instanceof Error) throw answer
        return answer ?? created(commit.blob)
      },
    },
    writer,
    publisher: {
      prepare: async () => {
        await new Promise(setImmediate)
        world.announced = true
      },
      withdraw: (_, error) => void world.withdrawn.push((error as HoldfastError | undefined)?.code),
      publish: async ([one]) => void world.log.push(`publish ${one?.outboxSeq}`),
      invalidate: async () => void world.log.push('invalidate'),
    },
    onMetadataUnavailable: () => void world.log.push('metadata unavailable'),
    metadataAvailable: () => world.metadataAvailable,
    artifactBytesMax: 1_000_000,
  })
  return { world, service }
}

const created = (blob: Blob): CommitResult => ({
  outcome: 'created', artifact: artifactOf('p', 3, blob), outboxSeq: 5, incarnation: 'i',
}) // prettier-ignore

async function* bodyOf(...chunks: Buffer[]): AsyncGenerator<Buffer> {
  yield* chunks
}

const put = (body: Buffer[], change: Partial<Put> = {}): Put => ({
  repository,
  path: 'p',
  user: 'ann',
  contentType: null,
  attributes: {},
  conditions: {},
  body: bodyOf(...body),
  expectedBytes: undefined,
  observe: () => {},
  requestId: 'r',
  signal: new AbortController().signal,
  verify: () => {},
  ...change,
})
/** The facts of a checksum deploy. */
const facts = {
  repository, path: 'p', user: 'ann', contentType: null, attributes: {}, conditions: {}, requestId: 'r', verify: () => {},
} // prettier-ignore
const small = Buffer.from('hello')
const large = [Buffer.alloc(60_000, 1), Buffer.alloc(60_000, 2)]

t.test('I8: first the bytes, then the commit, then the publication', async t => {
  const { world, service } = setUp(t)
  t.match(await service.put(put([small])), { outcome: 'created', artifact: { version: 3 } })
  t.same(world.log, ['write', 'commit new', 'publish 5'])
  world.log.length = 0
  await service.put(put(large))
  t.same(world.log, ['staged', 'write', 'commit new', 'publish 5'])
  t.same(world.withdrawn, [])
})

t.test('a checksum that is wrong leaves nothing, not even an announcement', async t => {
  const { world, service } = setUp(t)
  const verify = (): never => {
    throw new HoldfastError('CHECKSUM_MISMATCH', 'no')
  }
  await t.rejects(service.put(put([small], { verify })), { code: 'CHECKSUM_MISMATCH' })
  await t.rejects(service.put(put(large, { verify })), { code: 'CHECKSUM_MISMATCH' })
  t.same(world.log, ['staged', 'abort'])
  t.notOk(world.announced)
})

t.test(
  'I24: bytes that are there already are verified on the nodes, and written again where too few hold them',
  async t => {
    const { world, service } = setUp(t)
    world.existing = blobOf(small)
    await service.put(put([small]))
    t.same(world.log, ['touch', 'commit existing', 'publish 5'])
    t.equal(world.commits[0]?.blob.generation, world.existing.generation)
    t.equal(service.deduplicated, 1)
    world.log.length = 0
    world.quorum = false
    await service.put(put([small]))
    t.same(world.log, ['touch', 'pin', `write under ${world.existing.generation}`, 'commit existing', 'publish 5'])
    world.quorum = true
    world.log.length = 0
    world.existing = blobOf(Buffer.concat(large))
    await service.put(put(large))
    t.same(world.log, ['staged', 'touch', 'commit existing', 'publish 5', 'abort'], 'the second copy is dropped')
  },
)

t.test('I10: bytes are not given to a generation that is going for good', async t => {
  const { world, service } = setUp(t)
  Object.assign(world, { existing: blobOf(Buffer.concat(large)), quorum: false, pinned: false })
  await service.put(put(large))
  t.same(world.log, ['staged', 'touch', 'pin', 'write', 'commit new', 'publish 5'])
  t.not(world.commits[0]?.blob.generation, world.existing?.generation)
})

t.test('another writer of the same bytes, and the collector, are met by trying again, not for ever', async t => {
  const { world, service } = setUp(t)
  const other = blobOf(small)
  world.answers = [{ outcome: 'blob-exists', blob: other }, { outcome: 'blob-gone' }]
  await service.put(put([small]))
  t.same(world.log, ['write', 'commit new', 'touch', 'commit existing', 'write', 'commit new', 'publish 5'])
  t.equal(world.commits[1]?.blob.generation, other.generation)
  world.answers = Array.from({ length: 20 }, () => ({ outcome: 'blob-gone' }))
  await t.rejects(service.put(put([small])), { code: 'CONFLICT' })
  t.equal(20 - world.answers.length, 5)
  t.same(world.withdrawn, ['CONFLICT'])
})

t.test('a refused condition says which, and takes the announcement back', async t => {
  const { world, service } = setUp(t)
  for (const [reason, code] of [
    ['exists', 'PRECONDITION_FAILED'],
    ['no-match', 'PRECONDITION_FAILED'],
    ['redeploy', 'REDEPLOY_REFUSED'],
  ] as const) {
    world.answers = [{ outcome: 'refused', reason, current: null }]
    await t.rejects(service.put(put([small])), { code })
  }
  t.same(world.withdrawn, ['PRECONDITION_FAILED', 'PRECONDITION_FAILED', 'REDEPLOY_REFUSED'])
  t.notOk(world.log.includes('publish 5'))
})

t.test('a commit without an answer: the write fails, the announcement is left to run out', async t => {
  const { world, service } = setUp(t)
  for (const body of [[small], large]) {
    world.answers = [away()]
    await t.rejects(service.put(put(body)), { code: 'METADATA_UNAVAILABLE' })
  }
  t.same(world.withdrawn, ['METADATA_UNAVAILABLE', 'METADATA_UNAVAILABLE'])
  t.ok(world.log.includes('metadata unavailable'))
  world.existing = blobOf(small)
  world.answers = [away()]
  await t.rejects(service.putByChecksum(facts, { sha1: 'x' }, [1]), { code: 'METADATA_UNAVAILABLE' })
  t.equal(world.withdrawn.length, 3)
})

t.test('what the path would refuse is known before the body; what it cannot refuse is not asked for', async t => {
  const { world, service } = setUp(t)
  const { digest, sha1, bytes } = (world.existing = blobOf(small))
  const other = blobOf('other').digest
  const once = { ...repository, redeploy: 'once' } as const
  const foresee = (change: Partial<Put>, body: Parameters<typeof service.foresee>[1] = {}): Promise<void> =>
    service.foresee(put([], change), body)
  await foresee({}, { bytes: 1, sha1: 'x' })
  t.same(world.log, [], 'the hot path: no question')
  for (const change of [{ conditions: { absent: true } }, { repository: once }]) await foresee(change, { bytes: 1 })
  t.same(world.log, ['find', 'find'])
  for (const match of ['*', [digest]] as const) {
    await t.rejects(foresee({ conditions: { match } }), { code: 'PRECONDITION_FAILED' }, 'there is nothing')
  }
  world.current = artifactOf('p', 1, world.existing)
  await t.rejects(foresee({ conditions: { absent: true } }), { code: 'PRECONDITION_FAILED' })
  await t.rejects(foresee({ conditions: { match: [other] } }), { code: 'PRECONDITION_FAILED' })
  await foresee({ conditions: { match: [other, digest] } })
  await foresee({ conditions: { match: '*' } })
  for (const body of [{ bytes: bytes + 1 }, { bytes, sha256: other }, { sha1: 'x' }, { bytes, md5: 'x' }]) {
    await t.rejects(foresee({ repository: once }, body), { code: 'REDEPLOY_REFUSED' })
  }
  for (const body of [{}, { bytes }, { bytes, sha256: digest, sha1 }]) {
    await foresee({ repository: once }, body)
  }
  t.notOk(world.announced)
})

t.test('I8: a checksum deploy writes nothing where the checksums contradict what it found', async t => {
  const { world, service } = setUp(t)
  const found: unknown[] = []
  const verify: Put['verify'] = actual => {
    found.push(actual)
    throw new HoldfastError('CHECKSUM_MISMATCH', 'no')
  }
  const { digest: sha256, sha1, md5 } = (world.existing = blobOf(small))
  world.readable = false
  t.equal(await service.putByChecksum({ ...facts, verify }, { sha256 }, [1]), undefined)
  t.same(found, [], 'of what one may not read the checksums are not told')
  world.readable = true
  await t.rejects(service.putByChecksum({ ...facts, verify }, { sha256 }, [1]), { code: 'CHECKSUM_MISMATCH' })
  t.same(found, [{ sha256, sha1, md5 }])
  t.same(world.log, [])
})

t.test('the same bytes again need no publication, but everybody hears that the announcement is over', async t => {
  const { world, service } = setUp(t)
  world.answers = [{ outcome: 'unchanged', artifact: artifactOf('p', 2), outboxSeq: null, incarnation: 'i' }]
  t.equal((await service.put(put([small]))).outcome, 'unchanged')
  t.same(world.log, ['write', 'commit new', 'invalidate'])
})

t.test('copies that are missing are noted with the commit', async t => {
  const { world, service } = setUp(t)
  world.missing = ['s3' as ShardId]
  await service.put(put([small]))
  t.same(world.commits[0]?.missing, ['s3'])
  t.equal(service.underReplicated, 1)
})

t.test('an upload that is refused before its first chunk lets go of the body', async t => {
  const { world, service } = setUp(t)
  world.stageFault = new HoldfastError('QUORUM_NOT_REACHED', 'no')
  let returned = false
  async function* body(): AsyncGenerator<Buffer> {
    try {
      yield* large
    } finally {
      returned = true
    }
  }
  await t.rejects(service.put(put([], { body: body() })), { code: 'QUORUM_NOT_REACHED' })
  await new Promise(setImmediate)
  t.ok(returned)
})

t.test('what can be refused before the body is', async t => {
  const { world, service } = setUp(t)
  t.throws(() => service.admit({ ...repository, redeploy: 'deny' }, 'p', 1), { code: 'FORBIDDEN' })
  t.throws(() => service.admit(repository, 'p', 1_000_001), { code: 'TOO_LARGE' })
  t.throws(() => service.admit({ ...repository, artifactBytesMax: 10 }, 'p', 11), { code: 'TOO_LARGE' })
  service.admit(repository, 'p', undefined)
  world.metadataAvailable = false
  t.throws(() => service.admit(repository, 'p', 1), { code: 'METADATA_UNAVAILABLE' })
  t.same(world.log, [])
})

t.test('a checksum deploy needs a blob that the caller may read, the nodes hold and the repository takes', async t => {
  const { world, service } = setUp(t)
  const deploy = (change: Partial<typeof facts> = {}) =>
    service.putByChecksum({ ...facts, ...change }, { sha1: 'x' }, [1])
  t.equal(await deploy(), undefined, 'no such blob')
  world.existing = blobOf(small)
  world.readable = false
  t.equal(await deploy(), undefined, 'not readable')
  world.readable = true
  world.quorum = false
  t.equal(await deploy(), undefined, 'not held')
  world.quorum = true
  await t.rejects(deploy({ repository: { ...repository, artifactBytesMax: 1 } }), { code: 'TOO_LARGE' })
  t.match(await deploy(), { outcome: 'created' })
  world.answers = [{ outcome: 'blob-gone' }]
  t.equal(await deploy(), undefined, 'collected in between')
  t.equal(world.withdrawn.length, 1)
})
