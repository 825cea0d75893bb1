/** Garbage collection against a real PostgreSQL, with shards that are a set each. */
import t, { type Test } from 'tap'
import type { CollectionAges, CollectionStore } from '../../../proxy/metadata/collection-types.ts'
import type { Blob, Metadata, Repository } from '../../../proxy/metadata/types.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { collectGarbage } from '../../../proxy/tasks/collect-garbage.ts'
import { isMuch } from '../../../proxy/tasks/garbage-amounts.ts'
import type { JobContext, JobParams } from '../../../proxy/tasks/job.ts'
import { surveyBlobs, type SurveyDeps } from '../../../proxy/tasks/survey-blobs.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { type Digest, newGeneration, type ShardId } from '../../../shared/ids.ts'
import { partitionCount } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { emptySet, SetDigest } from '../../../shared/set-digest.ts'
import type { BlobKey, DropRequest, Entry, PartitionSummary, ShardStatus } from '../../../shared/wire.ts'
import { evenSpec, known, topologyOf } from '../../shared/topologies.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { blob, commit, connect, digestOf, done, open, put } from '../metadata/fixtures.ts'

const server = await startTestPostgres(t)
const map = buildClusterMap(topologyOf(evenSpec(6, 3)))
const view = new ClusterView(map)
/** Old enough at once, and held no time. */
const atOnce: CollectionAges = { minAgeMs: 0, holdMs: 0 }
const held: CollectionAges = { minAgeMs: 0, holdMs: 3_600_000 }

const nameOf = ({ digest, generation }: Pick<BlobKey, 'digest' | 'generation'>): string => `${digest}.${generation}`

class World {
  readonly url: string
  readonly metadata: Metadata
  readonly token: number
  /** What each shard holds. */
  readonly shards = new Map<ShardId, Set<string>>(map.shards.map(({ id }) => [id, new Set<string>()]))
  readonly away = new Set<ShardId>()
  /** Copies it lost: corrupt, or without a file. */
  readonly losses = new Map<ShardId, Map<string, BlobKey>>()
  newest: ShardStatus['newest']
  readonly lines: string[] = []
  readonly asked: string[] = []
  checkpoint: unknown
  /** Called before each step that saves. */
  onSave: () => void = () => {}

  private constructor(url: string, metadata: Metadata, token: number) {
    this.url = url
    this.metadata = metadata
    this.token = token
  }

  static async start(t: Test): Promise<World> {
    const url = await server.createDatabase()
    const metadata = await open(t, url)
    return new World(url, metadata, await metadata.issueToken('primary', 'test'))
  }

  async run(ages: CollectionAges, params: JobParams = {}, token = this.token): Promise<void> {
    const job = collectGarbage({
      metadata: this.metadata,
      collection: this.metadata.collection,
      incarnation: () => this.metadata.incarnation,
      view,
      clients: { ofShard: shard => ({ requestJson: this.#ask(shard) }) },
      ages,
    })
    job.checkParams?.(params)
    const ending = new AbortController()
    await job.run({
      runId: 1,
      term: { token, signal: ending.signal },
      checkpoint: this.checkpoint as never,
      params,
      save: async checkpoint => {
        this.onSave()
        this.checkpoint = JSON.parse(JSON.stringify(checkpoint)) as unknown
      },
      progress: () => {},
      log: line => void this.lines.push(line),
      pause: async () => {},
    } satisfies JobContext<never>)
    this.checkpoint = undefined
  }

  hold(one: Pick<Blob, 'digest' | 'generation'>): void {
    for (const blobs of this.shards.values()) blobs.add(nameOf(one))
  }

  holders(one: Pick<Blob, 'digest' | 'generation'>): number {
    return [...this.shards.values()].filter(blobs => blobs.has(nameOf(one))).length
  }

  /** Blobs of partition 7, the only one in use. */
  #summaries(shard: ShardId): PartitionSummary[] {
    const keys = new SetDigest()
    for (const key of this.shards.get(shard)!) keys.add(key)
    return [{ partition, blobs: keys.finish(), references: emptySet }]
  }

  #entries(shard: ShardId): Entry[] {
    return [...this.shards.get(shard)!].map(key => ({ key, bytes: 1, time: Date.now() - 60_000 }))
  }

  #ask =
    (shard: ShardId) =>
    async <Answer>(_method: string, path: string, body?: unknown): Promise<Answer> => {
      this.asked.push(`${shard} ${path.split('/')[2] ?? ''}`)
      if (this.away.has(shard)) throw new HoldfastError('NODE_UNREACHABLE', 'away')
      if (path.endsWith('/status')) {
        return {
          shards: [
            {
              id: shard,
              state: 'ok',
              losses: this.losses.get(shard)?.size ?? 0,
              ...(this.newest === undefined ? {} : { newest: this.newest }),
            },
          ],
        } as Answer
      }
      if (path.includes('/summaries/')) return { partitions: this.#summaries(shard) } as Answer
      if (path.includes('/entries/')) return { entries: this.#entries(shard) } as Answer
      if (path.includes('/losses/')) {
        const losses = [...(this.losses.get(shard)?.values() ?? [])].map(one => ({ ...one, time: 0, why: 'corrupt' }))
        return { losses } as Answer
      }
      const { blobs } = body as DropRequest
      for (const one of blobs) this.losses.get(shard)?.delete(nameOf(one))
      return {
        results: blobs.map(one => (this.shards.get(shard)!.delete(nameOf(one)) ? 'dropped' : 'missing')),
      } as Answer
    }
}

/** Where every blob of these tests lies. */
const partition = 7
const owners = view.current().owners(partition)
const stranger = known(map.shards.find(({ id }) => !owners.includes(id))).id

/** Of a run by itself, without a database. */
function contextOf(hears: {
  save: (checkpoint: { phase: string; after: string }) => void
  note: (note: string | undefined) => void
}): JobContext<never> {
  return {
    runId: 1,
    term: { token: 1, signal: new AbortController().signal },
    checkpoint: undefined,
    params: {},
    save: async checkpoint => hears.save(checkpoint),
    progress: ({ note }) => hears.note(note),
    log: () => {},
    pause: async () => {},
  }
}

/** An artifact that was written and deleted again, so that its blob is unused. */
async function garbage(world: World, path: string, text?: string): Promise<Blob> {
  const repository =
    (await world.metadata.listRepositories()).find(({ name }) => name === 'r') ??
    (await world.metadata.createRepository({ name: 'r', trashDays: 0 }))
  const { artifact } = await put(world.metadata, commit(repository, path, { blob: blob(text) }))
  world.hold(artifact.blob)
  await world.metadata.deleteArtifact({ repositoryId: repository.id, repository: 'r', path, user: 'alice' })
  return artifact.blob
}

t.test('I12: an unused blob is condemned, held, then leaves every shard; one that is named stays', async t => {
  const world = await World.start(t)
  const { metadata } = world
  const unused = await garbage(world, 'unused')
  const [repository] = await metadata.listRepositories()
  const named = done(await metadata.commitArtifact(commit(repository!, 'named'))).artifact.blob
  world.hold(named)

  await world.run(held, { plan: true })
  t.match(world.lines.join('\n'), /unused: 1 blobs/)
  t.match(await metadata.collection.explain(unused.digest, held), { verdict: 'unused', references: [] })
  await world.run(held)
  t.match(await metadata.collection.explain(unused.digest, held), { verdict: 'condemned' })
  t.equal(world.holders(unused), 6, 'nothing leaves before the hold is over')
  await world.run(atOnce)
  t.equal(world.holders(unused), 0)
  t.equal(await metadata.collection.explain(unused.digest, held), undefined)
  t.equal(world.holders(named), 6)
  t.match(await metadata.collection.explain(named.digest, held), { verdict: 'referenced', references: ['r/named'] })

  const late = commit(repository!, 'late', { blob: unused, blobIs: 'existing' })
  t.match(await metadata.commitArtifact(late), { outcome: 'blob-gone' }, 'I11: a commit that comes late is refused')
  t.match(await metadata.commitArtifact({ ...late, blobIs: 'new' }), { outcome: 'blob-gone' }, 'even as new')
  const again = { ...unused, generation: newGeneration() }
  done(await metadata.commitArtifact({ ...late, blob: again, blobIs: 'new' }))
})

t.test('a commit makes a condemned blob live again, and a young one is not looked at', async t => {
  const world = await World.start(t)
  const { metadata } = world
  const one = await garbage(world, 'one')
  await world.run({ minAgeMs: 3_600_000, holdMs: 0 })
  t.match(await metadata.collection.explain(one.digest, { minAgeMs: 3_600_000, holdMs: 0 }), { verdict: 'young' })
  await world.run(held)
  const [repository] = await metadata.listRepositories()
  done(await metadata.commitArtifact(commit(repository!, 'two', { blob: one, blobIs: 'existing' })))
  await world.run(atOnce)
  t.equal(world.holders(one), 6)
})

t.test('I12: whatever waits for the lock of a blob decides by what was committed meanwhile', async t => {
  const url = await server.createDatabase()
  const metadata = await open(t, url)
  const token = await metadata.issueToken('primary', 'test')
  const repository = await metadata.createRepository({ name: 'r', trashDays: 0 })
  const one = done(await metadata.commitArtifact(commit(repository, 'a'))).artifact.blob
  await metadata.deleteArtifact({ repositoryId: repository.id, repository: 'r', path: 'a', user: 'alice' })
  const uploader = await connect(t, url)
  for (const step of ['condemn', 'purge'] as const) {
    await uploader.query('BEGIN')
    await uploader.query(`SELECT FROM blobs WHERE digest = '\\x${one.digest}' FOR SHARE`)
    await uploader.query(
      `INSERT INTO artifacts (repository_id, path, digest, version, created_by, created_at, updated_at, outbox_seq)
      VALUES ($1, $2, '\\x${one.digest}', 1000, 'bob', now(), now(), 1000)`,
      [repository.id, step],
    )
    const { collection } = metadata
    const deciding = step === 'condemn' ? collection.condemn([one.digest], 0, token) : collection.purge(0, 10, token)
    const watcher = await connect(t, url)
    for (;;) {
      const { rows } = await watcher.query(`SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'`)
      if (rows.length > 0) break
    }
    await uploader.query('COMMIT')
    t.same(await deciding, [], `${step} waited, and then saw the reference`)
    t.match(await metadata.collection.explain(one.digest, held), { verdict: 'referenced' })
    await uploader.query('DELETE FROM artifacts WHERE path = $1', [step])
    // For the next step.
    t.equal((await collection.condemn([one.digest], 0, token)).length, 1)
  }
})

t.test('pins and the trash keep a blob', async t => {
  const url = await server.createDatabase()
  const metadata = await open(t, url)
  const token = await metadata.issueToken('primary', 'test')
  const repository = await metadata.createRepository({ name: 'r', trashDays: 0 })
  const behind = await connect(t, url)
  const digests: Digest[] = []
  for (const path of ['pinned', 'expired', 'trashed']) {
    digests.push(done(await metadata.commitArtifact(commit(repository, path))).artifact.blob.digest)
    await metadata.deleteArtifact({ repositoryId: repository.id, repository: 'r', path, user: 'alice' })
  }
  const [pinned, expired, trashed] = digests as [Digest, Digest, Digest]
  await behind.query(
    `INSERT INTO pins VALUES ('\\x${pinned}', 'u1', now() + interval '1 hour'), ('\\x${expired}', 'u2', now() - interval '1 second')`,
  )
  await behind.query(
    `INSERT INTO trash_refs (repository_id, path, digest, version, created_by, created_at, updated_at, deleted_by, deleted_at, expires_at)
    VALUES ($1, 'trashed', '\\x${trashed}', 1, 'a', now(), now(), 'a', now(), now() + interval '1 day')`,
    [repository.id],
  )
  const judged = await metadata.collection.judge('', 100, held)
  t.same(new Map(judged.map(({ digest, verdict }) => [digest, verdict])), new Map([[pinned, 'pinned'], [expired, 'unused'], [trashed, 'trash']])) // prettier-ignore
  t.same(
    (await metadata.collection.condemn(digests, 0, token)).map(({ digest }) => digest),
    [expired],
  )
})

t.test('a shard that is away is told by a later run; the blob is not forgotten', async t => {
  const world = await World.start(t)
  const one = await garbage(world, 'one')
  await world.run(held)
  world.away.add(owners[0]!)
  // Those elsewhere are swept when its row is gone.
  for (const [id, blobs] of world.shards) if (!owners.includes(id)) blobs.clear()
  await world.run(atOnce)
  t.equal(world.holders(one), 1)
  t.match(await world.metadata.collection.explain(one.digest, held), { verdict: 'purging' })
  world.away.clear()
  await world.run(held)
  t.equal(world.holders(one), 0)
  t.equal(await world.metadata.collection.explain(one.digest, held), undefined)
})

t.test('bytes uploaded again while their old generation is being deleted live on under a new one', async t => {
  const world = await World.start(t)
  const one = await garbage(world, 'one', 'the same bytes')
  await world.run(held)
  world.away.add(owners[0]!)
  await world.run(atOnce)
  const [repository] = await world.metadata.listRepositories()
  const again = blob('the same bytes')
  done(await world.metadata.commitArtifact(commit(repository!, 'again', { blob: again })))
  world.hold(again)
  world.away.clear()
  await world.run(atOnce)
  await world.run(atOnce)
  t.equal(world.holders(again), 6, 'I10: a deletion names its generation')
  t.equal(world.holders(one), 0, 'and the shard that was away has been told')
  t.same(await world.metadata.collection.purging('', 10), [])
  t.match(await world.metadata.collection.explain(one.digest, held), { verdict: 'referenced' })
})

t.test('I13: a database that is older than what the shards know disarms garbage collection', async t => {
  const world = await World.start(t)
  const one = await garbage(world, 'one')
  await world.run(held)
  const { incarnation, collection } = world.metadata
  world.newest = { incarnation, version: 1_000_000 }
  await t.rejects(world.run(atOnce), { code: 'CONFLICT', message: /disarmed itself: .* restored from an older copy/ })
  world.newest = undefined
  await t.rejects(world.run(atOnce), { code: 'CONFLICT', message: /is disarmed/ }, 'and it stays so')
  t.equal(world.holders(one), 6)
  await collection.arm()
  world.newest = { incarnation: 'another', version: 1 }
  await t.rejects(world.run(atOnce), { message: /another database/ })
  await collection.arm()
  world.newest = { incarnation, version: await collection.newestVersion() }
  await world.run(atOnce)
  t.equal(world.holders(one), 0)
})

t.test('shards of two zones away: too few are left to be asked', async t => {
  const world = await World.start(t)
  await garbage(world, 'one')
  for (const zone of ['z0', 'z1', 'z2'].slice(0, 2)) {
    for (const node of map.nodes.filter(one => one.zone.endsWith(zone.slice(1)))) {
      for (const shard of map.shards) if (shard.node === node.id) world.away.add(shard.id)
    }
  }
  t.ok(world.away.size >= 4)
  await t.rejects(world.run(atOnce), { message: /several zones/ })
})

/** 1,100 artifacts below many/, and some garbage. */
async function writeMany(world: World): Promise<Repository> {
  await garbage(world, 'first')
  const repository = (await world.metadata.listRepositories())[0]!
  const paths = Array.from({ length: 1_100 }, (_, index) => `many/${index}`)
  for (let start = 0; start < paths.length; start += 500) {
    const some = paths.slice(start, start + 500).map(path => commit(repository, path))
    await Promise.all(some.map(one => world.metadata.commitArtifact(one)))
  }
  return repository
}

t.test('the brake looks at blobs and at bytes, each by itself, and lets little pass', async t => {
  const GiB = 1024 ** 3
  const all = { blobs: 10_000, bytes: 10_000 * GiB }
  t.equal(isMuch({ blobs: 1_000, bytes: 500 * GiB }, all), false)
  t.equal(isMuch({ blobs: 1_001, bytes: 1 }, all), true)
  t.equal(isMuch({ blobs: 1, bytes: 501 * GiB }, all), true, 'few, and large')
  t.equal(isMuch({ blobs: 900, bytes: 50 * GiB }, { blobs: 900, bytes: 50 * GiB }), false)
  t.equal(isMuch({ blobs: 900, bytes: 51 * GiB }, { blobs: 900, bytes: 51 * GiB }), true)
})

t.test('more than 5 % of everything stops the run, unless it is forced', async t => {
  const world = await World.start(t)
  const { metadata } = world
  const repository = await writeMany(world)
  await metadata.deleteFolder({ repositoryId: repository.id, repository: 'r', prefix: 'many/', user: 'alice' }, 2_000)
  await t.rejects(world.run(held), { code: 'CONFLICT', message: /1101 of 1101 blobs .* more than 5 %/ })
  world.checkpoint = undefined
  await world.run(held, { force: true })
  t.match(world.lines.at(-2), 'condemned: 1101 blobs')
})

t.test('a run that is resumed behind the brake is braked all the same', async t => {
  const world = await World.start(t)
  const { metadata } = world
  const repository = await writeMany(world)
  const died = new Error('the primary died')
  world.onSave = () => {
    if ((world.checkpoint as { phase?: string } | undefined)?.phase === 'condemn') throw died
  }
  await t.rejects(world.run(held), died)
  world.onSave = () => {}
  await metadata.deleteFolder({ repositoryId: repository.id, repository: 'r', prefix: 'many/', user: 'alice' }, 2_000)
  await t.rejects(world.run(held), { code: 'CONFLICT', message: /more than 5 %/ })
})

t.test('a shard that does not answer is asked once in a sweep, and named', async t => {
  const world = await World.start(t)
  world.away.add(stranger)
  await world.run(held, { full: true })
  t.match(world.lines, new Set([`not looked at, for they did not answer: ${stranger}`]))
  t.ok(world.asked.filter(one => one === `${stranger} summaries`).length === 1)
})

t.test(
  'an ordinary run looks at what lost a name; all blobs are looked at once a week, and when somebody asks',
  async t => {
    const world = await World.start(t)
    const { metadata } = world
    const { collection } = metadata
    await world.run(held)
    t.match(
      await collection.counted(),
      { blobs: 0, incarnation: metadata.incarnation },
      'a new cluster begins with that',
    )
    const behind = await connect(t, world.url)
    const forget = (one: Blob) => behind.query(`DELETE FROM lost_names WHERE digest = '\\x${one.digest}'`)
    const verdictOf = async (one: Blob) => (await collection.explain(one.digest, held))?.verdict

    const [noted, missed] = [await garbage(world, 'noted'), await garbage(world, 'missed')]
    const [repository] = await metadata.listRepositories()
    done(await metadata.commitArtifact(commit(repository!, 'named')))
    await forget(missed)
    await world.run(held, { plan: true })
    t.same(world.lines.slice(-2), ['of the blobs that lost a name, or wait since they have none:', 'unused: 1 blobs, 16 bytes']) // prettier-ignore
    await world.run(held)
    t.equal(await verdictOf(noted), 'condemned')
    t.equal(await verdictOf(missed), 'unused', 'what nobody noted is not looked for each night')
    await world.run(held, { plan: true })
    t.match(world.lines.at(-1), 'condemned: 1 blobs', 'the plan names what waits')

    world.lines.length = 0
    await world.run(held, { plan: true, full: true })
    t.match(world.lines[0], 'all blobs: 3 blobs')
    t.same(world.lines.slice(1).map(line => line.split(',')[0]).sort(), ['condemned: 1 blobs', 'referenced: 1 blobs', 'unused: 1 blobs']) // prettier-ignore
    t.equal(await verdictOf(missed), 'unused', 'a plan changes nothing')
    await world.run(held, { full: true })
    t.equal(await verdictOf(missed), 'condemned')
    t.match(await collection.counted(), { blobs: 3 })

    const change = (fields: string) => behind.query(`UPDATE settings SET value = (value::jsonb || ${fields})::text WHERE key = 'gc_counted'`) // prettier-ignore
    const reasons = {
      'a week has passed': `jsonb_build_object('at', (value::jsonb->>'at')::bigint - 7 * 86400000)`,
      'the clock was set back': `jsonb_build_object('at', (value::jsonb->>'at')::bigint + 86400000)`,
      'another database': `'{"incarnation": "another"}'`,
    }
    for (const [reason, fields] of Object.entries(reasons)) {
      const one = await garbage(world, reason)
      await forget(one)
      await change(fields)
      await world.run(held)
      t.equal(await verdictOf(one), 'condemned', reason)
      t.match(await collection.counted(), { incarnation: metadata.incarnation })
    }
    await world.run(atOnce)
    t.match(await collection.counted(), { blobs: 1 }, 'what is deleted is taken off')
    await world.run(atOnce)
    const { rows } = await behind.query('SELECT FROM lost_names')
    t.same(rows, [], 'nothing is looked at for ever')
  },
)

t.test('a cluster that has grown since it was counted is counted again before the brake is pulled', async t => {
  const world = await World.start(t)
  const { metadata } = world
  await world.run(held)
  const behind = await connect(t, world.url)
  await garbage(world, 'first')
  await behind.query(`
    INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1)
      SELECT sha256(i::text::bytea), 'g', 7, 1, '', '' FROM generate_series(1, 40000) i;
    INSERT INTO artifacts (repository_id, path, digest, version, created_by, created_at, updated_at, outbox_seq)
      SELECT 1, 'grown/' || i, sha256(i::text::bytea), nextval('artifact_versions'), 'u', now(), now(), 0 FROM generate_series(1, 40000) i;
    UPDATE artifacts SET digest = NULL WHERE path LIKE 'grown/1___'`)
  await world.run(held)
  t.ok(world.lines.some(line => line.includes('counted again')))
  t.match(world.lines.at(-2), 'condemned: 1001 blobs')
  t.match(await metadata.collection.counted(), { blobs: 40_001 })
})

t.test('a survey that was cut off goes on where it was', async t => {
  const asked: string[] = []
  const digests = Array.from({ length: 3_000 }, (_, index) => digestOf(String(index))).sort()
  const collection = {
    judge: async (after: string, limit: number) => {
      asked.push(after)
      return digests.filter(digest => digest > after).slice(0, limit).map(digest => ({ digest, bytes: 2, verdict: 'referenced' as const })) // prettier-ignore
    },
    addLosers: async () => t.fail('all of them are named'),
  } as unknown as SurveyDeps['collection']
  const deps = { collection, ages: held, token: 1, plan: false, pause: async () => {}, step: async () => {} }
  const half = { found: { referenced: { blobs: 1_500, bytes: 3_000 } }, after: digests[1_499]! }
  t.same(await surveyBlobs(deps, half), { referenced: { blobs: 3_000, bytes: 6_000 } })
  t.equal(asked[0], digests[1_499])
})

t.test('I27: an old primary condemns and purges nothing', async t => {
  const world = await World.start(t)
  const one = await garbage(world, 'one')
  const old = world.token
  await world.metadata.issueToken('primary', 'the next')
  await t.rejects(world.run(held, {}, old), { code: 'LEASE_LOST' })
  t.match(await world.metadata.collection.explain(one.digest, held), { verdict: 'unused' })
})

t.test('a run that was cut off at any step is resumed and ends the same', async t => {
  for (let cut = 1; cut <= 5; cut++) {
    const world = await World.start(t)
    const one = await garbage(world, 'one')
    await world.run(held)
    let saves = 0
    world.onSave = () => {
      if (++saves === cut) throw new HoldfastError('METADATA_UNAVAILABLE', 'the primary ends here')
    }
    await t.rejects(world.run(atOnce), { code: 'METADATA_UNAVAILABLE' })
    world.onSave = () => {}
    await world.run(atOnce)
    t.equal(world.holders(one), 0, `cut at save ${cut}`)
    t.equal(await world.metadata.collection.explain(one.digest, held), undefined)
  }
})

t.test('a copy that a repair brought home after its blob was deleted is swept', async t => {
  const world = await World.start(t)
  const one = await garbage(world, 'one')
  await world.run(atOnce)
  await world.run(atOnce)
  t.equal(world.holders(one), 0)
  const [first] = map.shards
  world.shards.get(first!.id)!.add(nameOf(one))
  const [repository] = await world.metadata.listRepositories()
  const named = done(await world.metadata.commitArtifact(commit(repository!, 'named'))).artifact.blob
  world.hold(named)
  world.shards.get(first!.id)!.delete(nameOf(named))
  await world.run(held)
  t.equal(world.holders(one), 0)
  t.equal(world.holders(named), 5, 'what is named stays wherever it is')
})

t.test(
  'a handoff that was away is swept when it is back, and what nobody misses leaves its list of losses',
  async t => {
    const world = await World.start(t)
    const one = await garbage(world, 'one')
    const [repository] = await world.metadata.listRepositories()
    const named = done(await world.metadata.commitArtifact(commit(repository!, 'named'))).artifact.blob
    world.losses.set(stranger, new Map([one, named].map(lost => [nameOf(lost), { ...lost, partition }])))
    await world.run(held)
    t.same([...world.losses.get(stranger)!.keys()].length, 2, 'a condemned blob may be named again')
    world.away.add(stranger)
    await world.run(atOnce)
    t.equal(world.holders(one), 1)
    t.equal(await world.metadata.collection.explain(one.digest, held), undefined, 'nobody waits for a shard that is no owner') // prettier-ignore
    world.away.clear()
    await world.run(atOnce)
    t.equal(world.holders(one), 0)
    t.same([...world.losses.get(stranger)!.keys()], [nameOf(named)])
  },
)

t.test(
  'owners old and new are told, each of its own blobs, many at once; only what all have heard is forgotten',
  async t => {
    const changing = planChanges(map, [{ op: 'weight', shard: stranger, weight: 0 }]).next
    const now = new ClusterView(changing)
    const place = now.current()
    const doomed = Array.from({ length: 2_500 }, (_, index) => ({
      ...blob(),
      partition: (index * 37) % partitionCount,
    }))
    const frozen = place.owners(0)[0]!
    const waiting = [...doomed]
    const told = new Map<ShardId, string[][]>(changing.shards.map(({ id }) => [id, []]))
    const forgotten: string[] = []
    const collection: Partial<CollectionStore> = {
      judgeLosers: async () => [],
      counted: async () => ({ blobs: 0, bytes: 0, at: 0, ageMs: 0, incarnation: 'one' }),
      takeFromCounted: async () => {},
      disarmed: async () => undefined,
      newestVersion: async () => 1,
      purge: async (_holdMs, limit) => waiting.splice(0, limit),
      purging: async () => [],
      finishPurge: async blobs => void forgotten.push(...blobs.map(nameOf)),
    }
    const job = collectGarbage({
      metadata: { inspectBlobs: async () => [], reclaimUnconfirmed: async () => [] },
      collection: collection as CollectionStore,
      incarnation: () => 'one',
      view: now,
      clients: {
        ofShard: shard => ({
          requestJson: async <Answer>(_method: string, path: string, body?: unknown): Promise<Answer> => {
            if (path.endsWith('/status')) return { shards: [{ id: shard, state: 'ok' }] } as Answer
            if (path.includes('/summaries/')) return { partitions: [] } as Answer
            if (shard === frozen) throw new HoldfastError('NODE_UNREACHABLE', 'no answer in 120 s')
            told.get(shard)!.push((body as DropRequest).blobs.map(nameOf))
            return { results: [] } as Answer
          },
        }),
      },
      ages: atOnce,
    })
    await job.run(contextOf({ save: () => {}, note: () => {} }))
    t.ok(place.unsettled().length > 0)
    for (const { id } of changing.shards) {
      if (id === frozen) continue
      const own = doomed.filter(one => place.allOwners(one.partition).includes(id)).map(nameOf)
      t.same(told.get(id)!.flat().sort(), own.sort(), id)
      t.equal(told.get(id)!.length, Math.ceil(own.length / 1_000), 'no more requests than it takes')
    }
    const settled = doomed.filter(one => !place.allOwners(one.partition).includes(frozen)).map(nameOf)
    t.ok(settled.length > 0)
    t.same(forgotten.sort(), settled.sort())
  },
)

t.test('a frozen shard costs its time limit once a phase, and every page is a step that is saved', async t => {
  const doomed = ['a', 'b', 'c', 'd'].map(text => ({ ...blob(text), partition })).sort((one, other) => (one.digest < other.digest ? -1 : 1)) // prettier-ignore
  const purged = [...doomed]
  const frozen = owners[1]!
  const told = new Map<ShardId, number>()
  const saved: { phase: string; after: string }[] = []
  const notes = new Set<string | undefined>()
  const collection: Partial<CollectionStore> = {
    judgeLosers: async () => [],
    counted: async () => ({ blobs: 0, bytes: 0, at: 0, ageMs: 0, incarnation: 'one' }),
    takeFromCounted: async () => {},
    disarmed: async () => undefined,
    newestVersion: async () => 1,
    purge: async () => purged.splice(0, 1),
    purging: async after => doomed.filter(({ digest }) => digest > after).slice(0, 2),
    finishPurge: async () => void t.fail('a shard has not been told'),
  }
  const job = collectGarbage({
    metadata: { inspectBlobs: async () => [], reclaimUnconfirmed: async () => [] },
    collection: collection as CollectionStore,
    incarnation: () => 'one',
    view,
    clients: {
      ofShard: shard => ({
        requestJson: async <Answer>(_method: string, path: string): Promise<Answer> => {
          if (path.endsWith('/status')) return { shards: [{ id: shard, state: 'ok' }] } as Answer
          if (path.includes('/summaries/')) return { partitions: [] } as Answer
          told.set(shard, (told.get(shard) ?? 0) + 1)
          if (shard === frozen) throw new HoldfastError('NODE_UNREACHABLE', 'no answer in 120 s')
          return { results: [] } as Answer
        },
      }),
    },
    ages: atOnce,
  })
  await job.run(contextOf({ save: checkpoint => void saved.push(checkpoint), note: note => void notes.add(note) }))
  t.equal(told.get(frozen), 2, 'once while purging, once more for what is left from before')
  t.equal(told.get(owners[0]!), 6, 'the other owners hear of every page')
  t.equal(saved.filter(({ phase }) => phase === 'purge').length, 1 + 4)
  t.same(
    saved.filter(({ phase }) => phase === 'finish').map(({ after }) => after),
    ['', doomed[1]!.digest, doomed[3]!.digest],
    'what is saved after a page is its last blob',
  )
  t.ok(notes.has('deleting blobs, 1 shards are away'))
})
