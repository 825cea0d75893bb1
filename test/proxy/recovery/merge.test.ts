import fc from 'fast-check'
import t from 'tap'
import { databaseDoubt, incarnationOrder, nextIncarnation } from '../../../proxy/recovery/judge-database.ts'
import { compareReferences, mergeReferences, sortKey } from '../../../proxy/recovery/merge-references.ts'
import { checkCoverage } from '../../../proxy/recovery/recover.ts'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { parseNodeId, parseShardId, parseZone } from '../../../shared/ids.ts'
import { partitionOf } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { beginTransition } from '../../../shared/placement/transition.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'

const incarnations = ['first', 'r1~a', 'r2~b', 'r12~c']
const recordOf = (
  path: string,
  incarnation: string,
  version: number,
  op: 'put' | 'delete' = 'put',
): ReferenceRecord => ({
  kind: 'reference',
  partition: partitionOf('r', path),
  repository: 'r',
  path,
  op,
  version,
  incarnation,
  time: 1,
  user: 'u',
})

/** What one shard has: for each path the last it was told. Some paths sort differently as text and as bytes. */
const shard = fc
  .dictionary(
    fc.constantFrom('a', 'a/b', 'a.b', 'é', '\u{1f600}', '\uffee', 'z', 'z/0', 'z0'),
    fc.record({
      incarnation: fc.constantFrom(...incarnations),
      version: fc.integer({ min: 1, max: 6 }),
      op: fc.constantFrom('put' as const, 'delete' as const),
    }),
  )
  .map(paths =>
    Object.entries(paths)
      .map(([path, { incarnation, version, op }]) => recordOf(path, incarnation, version, op))
      .sort((a, b) => Buffer.compare(sortKey(a), sortKey(b))),
  )

async function* listingOf(records: readonly ReferenceRecord[]): AsyncGenerator<ReferenceRecord> {
  for (const record of records) {
    if (record.version % 2 === 0) await Promise.resolve()
    yield record
  }
}

async function merged(shards: readonly (readonly ReferenceRecord[])[]): Promise<ReferenceRecord[]> {
  const all: ReferenceRecord[] = []
  for await (const record of mergeReferences(shards.map(listingOf))) all.push(record)
  return all
}

t.test('I14: the merge of all shards has each path once, with the newest reference that any of them has', async t => {
  await fc.assert(
    fc.asyncProperty(fc.array(shard, { maxLength: 5 }), async shards => {
      const result = await merged(shards)
      const byPath = new Map(result.map(record => [record.path, record]))
      const everything = shards.flat()
      t.equal(byPath.size, result.length)
      t.equal(byPath.size, new Set(everything.map(({ path }) => path)).size)
      for (const record of everything) t.ok(compareReferences(byPath.get(record.path)!, record) >= 0)
      for (const record of result) t.ok(everything.includes(record))
      const keys = result.map(sortKey)
      t.strictSame(
        keys,
        [...keys].sort((a, b) => Buffer.compare(a, b)),
      )
      // The order of the shards, and telling one twice, change nothing but who is quoted.
      const again = await merged([...shards, ...shards].reverse())
      t.strictSame(
        again.map(({ path, version, incarnation }) => [path, version, incarnation]),
        result.map(({ path, version, incarnation }) => [path, version, incarnation]),
      )
    }),
    { numRuns: 200, verbose: 1 },
  )
})

t.test('a listing that breaks off breaks off the merge', async t => {
  const broken = async function* (): AsyncGenerator<ReferenceRecord> {
    yield recordOf('a', 'first', 1)
    throw new Error('gone')
  }
  await t.rejects(async () => {
    for await (const record of mergeReferences([listingOf([recordOf('b', 'first', 1)]), broken()])) void record
  }, /gone/)
})

t.test('I13: a database is doubted that has issued less than a shard knows, or is another one', async t => {
  const shards = (incarnation: string, version: number) => [
    { id: 'new' },
    { id: 's', newest: { incarnation, version } },
  ]
  const own = { incarnation: 'r2~own', issued: 10 }
  t.equal(databaseDoubt(own, [{ id: 'new' }]), undefined)
  t.equal(databaseDoubt(own, shards('r2~own', 10)), undefined)
  t.equal(databaseDoubt(own, shards('first', 10)), undefined, 'it was made from that')
  t.match(databaseDoubt(own, shards('r2~own', 11)), /knows version 11, the database has issued 10/)
  t.match(databaseDoubt(own, shards('first', 11)), /knows version 11/)
  t.match(databaseDoubt(own, shards('r2~other', 1)), /another database/)
  t.match(databaseDoubt(own, shards('r3~later', 1)), /another database/)
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...incarnations)), known => {
      const next = incarnationOrder(nextIncarnation(known))
      t.ok(known.every(one => incarnationOrder(one) < next))
    }),
  )
})

t.test('I14: while owners change, enough of the old and of the new ones must answer', async t => {
  const topologyOf = (weights: Readonly<Record<string, number>>) => ({
    clusterId: 'c',
    replicas: 3,
    spread: 'strict' as const,
    nodes: Object.keys(weights).map(id => ({ id: parseNodeId(id)!, zone: parseZone(id)!, url: `http://${id}:1` })),
    shards: Object.entries(weights).map(([id, weight]) => ({ id: parseShardId(id)!, node: parseNodeId(id)!, weight })),
  })
  const before = buildClusterMap(topologyOf({ a: 1, b: 1, c: 1 }))
  const moving = beginTransition(before, topologyOf({ a: 0, b: 0, c: 0, d: 1, e: 1, f: 1 }))
  const check = (map: typeof before, readable: string, force = false): void =>
    checkCoverage({ view: new ClusterView(map) }, [...readable].map(id => parseShardId(id)!), { away: [], recovering: [] }, force) // prettier-ignore
  check(before, 'ab')
  t.throws(() => check(before, 'a'), { code: 'REPLICAS_UNREACHABLE' })
  check(moving, 'abde')
  for (const readable of ['def', 'adef', 'abc', 'abcd']) {
    t.throws(() => check(moving, readable), { code: 'REPLICAS_UNREACHABLE' }, readable)
  }
  check(moving, 'def', true)
})
