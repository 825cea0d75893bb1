/** Sets of shards compared: against oracles that look at every member. */
import fc from 'fast-check'
import t from 'tap'
import {
  behind,
  differingReferences,
  fewNames,
  missingBlobs,
  splitKey,
  suspect,
} from '../../../proxy/tasks/compare-sets.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { emptySet, SetDigest, sameSet, type SetSummary } from '../../../shared/set-digest.ts'
import { blocksOf } from '../../../proxy/tasks/block-summaries.ts'
import { batchesOf } from '../../../proxy/tasks/shard-contents.ts'
import type { PartitionSummary } from '../../../shared/wire.ts'

const shard = (name: string): ShardId => name as ShardId
const owners = ['a', 'b', 'c'].map(shard)
const strays = ['x', 'y'].map(shard)
const seed = Date.now() & 0x7fffffff
t.comment(`seed ${seed}`)
const check = <Ts extends [unknown, ...unknown[]]>(property: fc.IProperty<Ts>): void =>
  fc.assert(property, { seed, numRuns: 500 })

const digestOf = (texts: Iterable<string>): SetSummary => {
  const digest = new SetDigest()
  for (const text of texts) digest.add(text)
  return digest.finish()
}
const name = fc.integer({ min: 0, max: 30 }).map(number => `blob-${number}`)
const names = fc.uniqueArray(name)

t.test('the digest of a set depends on its members, not on their order', async t => {
  check(
    fc.property(names, fc.infiniteStream(fc.nat()), (texts, random) => {
      const shuffled = texts
        .map(text => ({ text, at: random.next().value as number }))
        .sort((a, b) => a.at - b.at)
        .map(({ text }) => text)
      return sameSet(digestOf(texts), digestOf(shuffled))
    }),
  )
  check(
    fc.property(names, names, (a, b) => {
      const equal = a.length === b.length && a.every(text => b.includes(text))
      return sameSet(digestOf(a), digestOf(b)) === equal
    }),
  )
  t.strictSame(digestOf([]), emptySet)
})

t.test('swapped ends of like paths do not cancel each other out', async t => {
  const pairs = new Map<string, string>()
  for (let one = 0; one < 60; one++) {
    for (let other = one + 1; other < 60; other++) {
      for (const texts of [
        [`p${one}@${other}`, `p${other}@${one}`],
        [`p${one}@${one}`, `p${other}@${other}`],
      ]) {
        const { hash } = digestOf(texts)
        t.notOk(pairs.has(hash), `${texts.join()} and ${pairs.get(hash)}`)
        pairs.set(hash, texts.join())
      }
    }
  }
})

const holdings = fc
  .dictionary(fc.constantFrom(...owners, ...strays), names)
  .map(held => new Map(Object.entries(held).map(([id, blobs]) => [shard(id), new Set(blobs)])))

t.test('I9: a partition is suspect exactly when an owner lacks something, or somebody else has it', async () => {
  check(
    fc.property(holdings, held => {
      const answers = new Map(
        [...held].map(([id, blobs]) => {
          const summary: PartitionSummary = { partition: 7, blobs: digestOf(blobs), references: digestOf(blobs) }
          return [id, new Map(blobs.size === 0 ? [] : [[7, summary]])]
        }),
      )
      const found = suspect(7, owners, answers)
      const missing = missingBlobs(owners, held)
      const references = differingReferences(
        new Map(
          [...held]
            .filter(([id]) => owners.includes(id))
            .map(([id, blobs]) => [id, new Map([...blobs].map(one => [one, 1]))]),
        ),
      )
      const others = strays.filter(id => (held.get(id)?.size ?? 0) > 0)
      if ([...found.strays].sort().join() !== others.join()) return false
      return found.blobs === missing.length > 0 && found.references === references.length > 0
    }),
  )
})

t.test('what is missing is what an oracle finds, blob by blob and shard by shard', async () => {
  check(
    fc.property(holdings, held => {
      const found = new Map(missingBlobs(owners, held).map(one => [one.key, one]))
      for (let number = 0; number <= 30; number++) {
        const key = `blob-${number}`
        const has = (id: ShardId): boolean => held.get(id)?.has(key) === true
        const anybody = [...owners, ...strays].some(has)
        const missing = anybody ? owners.filter(id => held.has(id) && !has(id)) : []
        const handoffs = strays.filter(has)
        const one = found.get(key)
        if ((one !== undefined) !== (missing.length > 0 || handoffs.length > 0)) return false
        if (
          one !== undefined &&
          (one.missing.join() !== missing.join() || [...one.handoffs].sort().join() !== handoffs.join())
        )
          return false
      }
      return true
    }),
  )
})

const versions = fc.dictionary(fc.constantFrom(...owners), fc.dictionary(name, fc.integer({ min: 1, max: 4 })))

t.test(
  'I16: owners behind the version of the database are told, tombstone or not; owners ahead are left alone',
  async t => {
    check(
      fc.property(versions, fc.integer({ min: 1, max: 4 }), (held, current) => {
        const known = new Map(Object.entries(held).map(([id, paths]) => [shard(id), new Map(Object.entries(paths))]))
        return differingReferences(known).every(reference => {
          const lacking = behind(reference, current)
          return [...known].every(([id, paths]) => lacking.includes(id) === (paths.get(reference.key) ?? 0) < current)
        })
      }),
    )
    t.strictSame(splitKey('raw/a/b'), { repository: 'raw', path: 'a/b' })
  },
)

t.test('requests are short: few blobs, few bytes, or one large one; nothing is left out', async () => {
  check(
    fc.property(fc.array(fc.integer({ min: 0, max: 150 }), { maxLength: 300 }), sizes => {
      const batches = batchesOf(sizes, size => size, 100)
      const isShort = (batch: readonly number[]): boolean =>
        batch.length === 1 || (batch.length <= 64 && batch.reduce((sum, size) => sum + size, 0) <= 100)
      const isFull = (batch: readonly number[], next: readonly number[] | undefined): boolean =>
        next === undefined || !isShort([...batch, next[0] ?? 0])
      return (
        batches.flat().join() === sizes.join() &&
        batches.every((batch, index) => isShort(batch) && isFull(batch, batches[index + 1]))
      )
    }),
  )
})

t.test('a step takes so many suspects that their names are few, but one in any case', t => {
  const of = (...names: number[]) => names.map(count => ({ names: count }))
  const limits = { namesMax: 100, countMax: 3 }
  t.equal(fewNames([], limits).length, 0)
  t.equal(fewNames(of(1_000, 1), limits).length, 1)
  t.equal(fewNames(of(60, 40, 1), limits).length, 2)
  t.equal(fewNames(of(0, 0, 0, 0), limits).length, 3)
  const blobs = { count: 5, hash: 'a'.repeat(16) }
  const answers = new Map(['a', 'b', 'c'].map((id, index) => [id as ShardId, new Map([[7, { partition: 7, blobs: index === 1 ? emptySet : blobs, references: emptySet }]])])) // prettier-ignore
  t.match(suspect(7, ['a', 'b'] as ShardId[], answers), { blobs: true, strays: ['c'], names: 10 })
  t.end()
})

t.test(
  'summaries are asked for in blocks: each partition in one of them, none long or wide, however far apart they lie',
  async () => {
    const some = fc.uniqueArray(fc.nat(4_095), { maxLength: 1_000 }).map(list => list.sort((a, b) => a - b))
    fc.assert(
      fc.property(some, partitions => {
        const blocks = blocksOf(partitions)
        const isWhole = blocks.flat().join() === partitions.join()
        const isNarrow = blocks.every(block => block.length <= 128 && (block.at(-1) ?? 0) - (block[0] ?? 0) < 512)
        // At most one for each 512 of them, and one for each 128 that are asked for.
        return isWhole && isNarrow && blocks.length <= 9 + partitions.length / 128
      }),
    )
  },
)
