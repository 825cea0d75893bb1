/** Folders told by shards that are maps in memory: the node's own walk, the proxy's own merge, nothing in between. */
import assert from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { type FolderLimits, folderLimits, ShardFolders } from '../../../proxy/routing/folder-store.ts'
import type { ClusterMap } from '../../../shared/cluster-map.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { Digest, Generation, NodeId, ShardId, Zone } from '../../../shared/ids.ts'
import { behind, childOf, inKeyOrder } from '../../../shared/key-order.ts'
import { partitionName, partitionOf } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { type FolderRequest, type VersionsRequest, wirePath } from '../../../shared/wire.ts'
import { encodeReferenceLocation, type ListRange, referenceKey } from '../../../storage-node/index.ts'
import { FolderWalk, walkLimits } from '../../../storage-node/walk-folder.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1e9)
const repository = 'repo'
const signal = new AbortController().signal

const maps = new Map<string, ClusterMap>()

function mapOf(nodes: number, replicas: number): ClusterMap {
  const known = maps.get(`${nodes} ${replicas}`)
  if (known !== undefined) return known
  const ids = Array.from({ length: nodes }, (_, index) => `n${index}`)
  const map = buildClusterMap({
    clusterId: 'test',
    replicas,
    spread: 'strict',
    nodes: ids.map((id, index) => ({ id: id as NodeId, zone: `z${index % 3}` as Zone, url: `http://${id}:1` })),
    shards: ids.map(id => ({ id: `${id}-0` as ShardId, node: id as NodeId, weight: 1 })),
  })
  maps.set(`${nodes} ${replicas}`, map)
  return map
}

/** Shards of which each may be away, or not know the route. */
class World {
  readonly shards = new Map<ShardId, Map<string, ReferenceRecord>>()
  readonly away = new Set<ShardId>()
  limits = walkLimits
  questions = 0
  readonly view: ClusterView
  readonly folders: ShardFolders

  constructor({ nodes, replicas, limits }: { nodes: number; replicas: number; limits?: FolderLimits }) {
    const map = mapOf(nodes, replicas)
    for (const { id } of map.shards) this.shards.set(id, new Map())
    this.view = new ClusterView(map)
    this.folders = new ShardFolders({
      view: this.view,
      health: { state: () => 'up', shardState: () => 'ok' },
      clients: {
        ofShard: () => ({ requestJson: (...call: [string, string, unknown]) => this.#answer(call) }) as never,
      },
      ...(limits === undefined ? {} : { limits }),
    })
  }

  async #answer([, path, body]: [string, string, unknown]): Promise<unknown> {
    this.questions += 1
    const shard = path === wirePath.versions ? (body as VersionsRequest).shard : (path.split('/').at(-1) as ShardId)
    if (this.away.has(shard)) throw new HoldfastError('NODE_UNREACHABLE', 'away')
    const records = this.shards.get(shard) ?? new Map<string, ReferenceRecord>()
    if (path === wirePath.versions) {
      return { versions: (body as VersionsRequest).references.map(({ key }) => records.get(key)?.version ?? null) }
    }
    const sorted = [...records]
      .map(([key, record]) => [referenceKey(partitionName(record.partition), key), record] as const)
      .sort(([a], [b]) => inKeyOrder(a, b))
    const value = encodeReferenceLocation({ segment: 1, frameOffset: 0, frameBytes: 1, version: 1 })
    const deps = {
      list: async ({ from = '', before, limit }: ListRange) =>
        sorted
          .filter(([key]) => inKeyOrder(key, from) >= 0 && (before === undefined || inKeyOrder(key, before) < 0))
          .slice(0, limit)
          .map(([key]): [string, Buffer] => [key, value]),
      read: async (indexKey: string) => records.get(indexKey.slice('r/000/'.length)),
    }
    // What travels is JSON.
    return JSON.parse(JSON.stringify(await new FolderWalk(deps, body as FolderRequest, this.limits).run(signal)))
  }

  /** Who may hold a reference of the path. */
  holders(path: string): ShardId[] {
    const view = this.view.current()
    const partition = partitionOf(repository, path)
    return [...view.owners(partition), ...view.handoffs(partition).slice(0, 2)]
  }

  write(path: string, version: number, op: 'put' | 'delete', shards: readonly ShardId[]): void {
    const key = `${repository}/${path}`
    for (const shard of shards) {
      const records = this.shards.get(shard)
      if ((records?.get(key)?.version ?? 0) < version) records?.set(key, recordOf(path, version, op))
    }
  }

  /** What a listing must be: the newest of each path on the shards that are there. */
  model(folder: string): string[] {
    const newest = new Map<string, ReferenceRecord>()
    for (const [shard, records] of this.shards) {
      if (this.away.has(shard)) continue
      for (const [key, record] of records) {
        if (record.version > (newest.get(key)?.version ?? 0)) newest.set(key, record)
      }
    }
    const live = [...newest].filter(([key, { op }]) => op === 'put' && key.startsWith(folder))
    return [...new Set(live.map(([key]) => childOf(folder, key)))].sort(inKeyOrder).map(child => {
      const record = newest.get(child)
      return record === undefined || child.endsWith('/') ? child : `${child}@${record.time}`
    })
  }

  /** Of each partition enough owners are there to say that something is absent. */
  get isEnough(): boolean {
    const view = this.view.current()
    return Array.from({ length: 4096 }, (_, partition) => view.owners(partition)).every(
      owners => owners.filter(owner => !this.away.has(owner)).length >= Math.min(2, owners.length),
    )
  }

  async all(folder: string, limit: number): Promise<string[]> {
    const found: string[] = []
    for (let start: string | undefined = folder; start !== undefined;) {
      const { children, more } = await this.folders.list(folder, start, limit, signal)
      found.push(...children.map(({ key, time }) => (time === undefined ? key : `${key}@${time}`)))
      const last = children.at(-1)
      if (children.length > limit || (more && last === undefined)) throw new Error('not a page')
      start = more && last !== undefined ? behind(last.key) : undefined
    }
    return found
  }
}

function recordOf(path: string, version: number, op: 'put' | 'delete'): ReferenceRecord {
  const facts = { kind: 'reference', partition: partitionOf(repository, path), repository, path, op, version } as const
  const blob = {
    digest: 'd'.repeat(64) as Digest,
    generation: 'abcdefghijkl' as Generation,
    ...{ partition: 7, bytes: version, md5: 'm', sha1: 's' },
  }
  return { ...facts, incarnation: 'i', time: version, user: 'u', ...(op === 'put' ? { blob } : {}) }
}

const segment = fc.constantFrom('a', 'b', 'a-', 'a!', 'a0', '0', 'é', '#%&"\\', '\uffff', '\u{10000}', '\u{10ffff}x')
const path = fc.array(segment, { minLength: 1, maxLength: 4 }).map(segments => segments.join('/'))
const write = fc.record({
  /** Which of the paths of a run: few, so that each has many versions. */
  at: fc.nat(),
  op: fc.constantFrom<('put' | 'delete')[]>('put', 'delete'),
  /** Which of those who may hold it have it. */
  mask: fc.integer({ min: 1, max: 31 }),
})
const sizes = fc.constantFrom(1, 2, 5, 1_000)

t.test('I15, I16: a listing without PostgreSQL is what the shards know together, or none', async t => {
  t.comment(`seed ${seed}`)
  let [right, refused] = [0, 0]
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        nodes: fc.integer({ min: 1, max: 6 }),
        replicas: fc.integer({ min: 1, max: 4 }),
        paths: fc.array(path, { minLength: 1, maxLength: 12 }),
        writes: fc.array(write, { maxLength: 60 }),
        away: fc.array(fc.nat(5), { maxLength: 2 }),
        folder: fc.oneof(
          fc.constant(''),
          path.map(text => `${text}/`),
        ),
        limit: sizes,
        childrenMax: sizes,
        entriesMax: fc.constantFrom(1, 64, 200_000),
        recordsMax: fc.constantFrom(0, 1, 3, 10_000),
        keyBytesMax: fc.constantFrom(1, 30, 1_000_000),
      }),
      async ({ nodes, replicas, paths, writes, away, folder, limit, ...limits }) => {
        const world = new World({ nodes, replicas })
        world.limits = { ...limits }
        writes.forEach(({ at, op, mask }, index) => {
          const path = paths[at % paths.length] ?? ''
          world.write(path, index + 1, op, world.holders(path).filter((_, bit) => (mask & (1 << bit)) !== 0)) // prettier-ignore
        })
        for (const index of away) world.away.add(`n${index}-0` as ShardId)
        const key = `${repository}/${folder}`
        if (world.isEnough) {
          right += 1
          assert.deepEqual(await world.all(key, limit), world.model(key))
        } else {
          refused += 1
          await assert.rejects(world.all(key, limit), { code: 'REPLICAS_UNREACHABLE' })
        }
      },
    ),
    { seed, numRuns: 300 },
  )
  t.ok(right > 50 && refused > 20, `${right} right, ${refused} refused`)
})

t.test(
  'I16: a folder whose deletion one owner has missed is gone, and one that only one owner knows is there',
  async t => {
    const world = new World({ nodes: 3, replicas: 3 })
    const [first, second, third] = world.holders('x') as [ShardId, ShardId, ShardId]
    for (let index = 0; index < 20; index++) world.write(`gone/${index}`, 1, 'put', [first, second, third])
    for (let index = 0; index < 20; index++) world.write(`gone/${index}`, 2, 'delete', [second, third])
    for (let index = 0; index < 20; index++) world.write(`kept/${index}`, 1, 'put', [first, second, third])
    for (let index = 0; index < 20; index++) world.write(`kept/${index}`, 2, 'delete', [first])
    world.write('kept/3', 3, 'put', [second])
    for (const limit of [1, 10]) t.strictSame(await world.all('repo/', limit), ['repo/kept/'])
    t.strictSame(await world.all('repo/gone/', 10), [])
    t.strictSame(await world.all('repo/kept/', 10), ['repo/kept/3@3'])
  },
)

t.test('I7: a node of a release without the route has not answered', async t => {
  const world = new World({ nodes: 4, replicas: 3 })
  world.write('a', 1, 'put', world.holders('a'))
  world.away.add('n0-0' as ShardId)
  t.strictSame(await world.all('repo/', 10), ['repo/a@1'], 'one of them is no harm')
  world.away.add('n1-0' as ShardId)
  await t.rejects(world.all('repo/', 10), { code: 'REPLICAS_UNREACHABLE' })
  const single = new World({ nodes: 2, replicas: 2 })
  single.away.add('n0-0' as ShardId)
  await t.rejects(single.all('repo/', 10), { code: 'REPLICAS_UNREACHABLE' }, 'with R = 2 both owners must say so')
})

t.test(
  'so many deletions that a listing takes too long: what was found before, then an error that names the limit',
  async t => {
    const limits: FolderLimits = { ...folderLimits, referencesMax: 100 }
    const world = new World({ nodes: 3, replicas: 3, limits })
    world.write('a', 1, 'put', world.holders('a'))
    for (let index = 0; index < 400; index++) world.write(`b${index}`, 2, 'delete', world.holders('b'))
    world.write('c', 3, 'put', world.holders('c'))
    const page = await world.folders.list('repo/', 'repo/', 1, signal)
    t.strictSame([page.children.map(({ key }) => key), page.more], [['repo/a'], true])
    await t.rejects(world.folders.list('repo/', behind('repo/a'), 1, signal), {
      code: 'METADATA_UNAVAILABLE',
      message: /100 references/,
    })
  },
)

t.test('whoever leaves is asked for nothing more', async t => {
  const world = new World({ nodes: 3, replicas: 3 })
  const left = AbortSignal.abort(new Error('left'))
  await t.rejects(world.folders.list('repo/', 'repo/', 1, left), { message: 'left' })
  t.equal(world.questions, 0)
})
