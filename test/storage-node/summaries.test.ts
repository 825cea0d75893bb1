import t from 'tap'
import { partitionCount } from '../../shared/partition.ts'
import { SetDigest, type SetSummary } from '../../shared/set-digest.ts'
import {
  type EntriesAnswer,
  type EntryListing,
  type PartitionSummary,
  type ReferencesAnswer,
  type SummaryAnswer,
  wirePath,
} from '../../shared/wire.ts'
import { seededRandom } from '../support/random.ts'
import { type NodeClient, shardA, startNode, testBlob, testReference } from './fixtures.ts'

const partitions = [0, 1, 2, 0x0a3, 0x0a4, 0xfff]

async function summaries(client: NodeClient, from: number, count: number): Promise<readonly PartitionSummary[]> {
  const { json } = await client.call('GET', `${wirePath.summaries(shardA)}?from=${from}&count=${count}`)
  return (json as unknown as SummaryAnswer).partitions
}

async function entries(
  client: NodeClient,
  partition: number,
  kind: 'blobs' | 'references',
): Promise<{ summary: SetSummary; bytes: number }> {
  let sum = 0
  const digest = new SetDigest()
  const { json } = await client.call('GET', `${wirePath.entries(shardA, partition)}?of=${kind}`)
  for (const { key, version, bytes = 0 } of (json as unknown as EntryListing).entries) {
    sum += bytes
    digest.add(kind === 'blobs' ? key : `${key}@${version}`)
  }
  return { summary: digest.finish(), bytes: sum }
}

t.test('summaries are those of the names that the shard has, whatever is asked and was known before', async t => {
  const random = seededRandom(t)
  const { client } = await startNode(t)
  t.strictSame(await summaries(client, 0, partitionCount), [])
  const used = new Set<number>()
  for (let round = 1; round <= 12; round++) {
    for (let count = random.int(0, 30); count > 0; count--) {
      const blob = testBlob(random.int(1, 200), random.pick(partitions))
      used.add(blob.partition)
      await client.appendBlob(shardA, blob)
      if (random.next() < 0.7) continue
      const reference = testReference(`path-${random.int(1, 9)}`, round * 100 + count, blob)
      used.add(reference.partition)
      await client.appendReference(shardA, reference)
    }
    const wanted: PartitionSummary[] = []
    for (const partition of [...used].sort((a, b) => a - b)) {
      const [blobs, references] = [
        await entries(client, partition, 'blobs'),
        await entries(client, partition, 'references'),
      ]
      wanted.push({ partition, blobs: blobs.summary, references: references.summary, bytes: blobs.bytes })
    }
    const from = random.pick([0, 1, 3, 0x0a4, random.int(0, partitionCount - 1)])
    const count = random.pick([1, 2, 512, partitionCount])
    const inside = wanted.filter(({ partition }) => partition >= from && partition < from + count)
    t.strictSame(await summaries(client, from, count), inside, `${count} from ${from}`)
    t.strictSame(await summaries(client, 0, partitionCount), wanted)
  }
})

t.test('a partition of more names than one page of the index', async t => {
  const { client } = await startNode(t)
  for (let wave = 0; wave < 5; wave++) {
    await Promise.all(Array.from({ length: 500 }, () => client.appendBlob(shardA, testBlob(20, 7))))
  }
  await client.appendBlob(shardA, testBlob(20, 8))
  const found = await summaries(client, 0, partitionCount)
  t.strictSame(
    found.map(({ partition, blobs, bytes }) => [partition, blobs.count, bytes]),
    [
      [7, 2500, 50_000],
      [8, 1, 20],
    ],
  )
})

t.test(
  'names and references of several partitions in one answer are those of each by itself, as far as there is room',
  async t => {
    const { client } = await startNode(t)
    const post = async <Answer>(path: string, body: object): Promise<Answer> => {
      const { status, json } = await client.call('POST', path, JSON.stringify(body))
      t.equal(status, 200)
      return json as unknown as Answer
    }
    const wanted: { partition: number; key: string }[] = []
    for (const partition of partitions.slice(0, 3)) {
      for (let index = 0; index < 3; index++) {
        const blob = testBlob(50, partition)
        await client.appendBlob(shardA, blob)
        const reference = testReference(`p/${'x'.repeat(300)}/${partition}/${index}`, index + 1, blob)
        await client.appendReference(shardA, reference)
        wanted.push({ partition: reference.partition, key: `${reference.repository}/${reference.path}` })
      }
    }
    const lists = [...new Set(wanted.map(({ partition }) => partition)), 9].flatMap(partition => [
      { partition, of: 'blobs' as const },
      { partition, of: 'references' as const },
    ])
    const limit = 2
    const some = await post<EntriesAnswer>(wirePath.entriesOf(shardA), { lists, limit })
    t.equal(some.lists.length, lists.length)
    for (const [index, { partition, of }] of lists.entries()) {
      const { json } = await client.call('GET', `${wirePath.entries(shardA, partition)}?of=${of}&limit=${limit}`)
      const alone = json as unknown as EntryListing
      const withoutAge = (one: EntryListing | null | undefined) => ({ next: one?.next, names: one?.entries.map(({ heldMs: _, ...entry }) => entry) }) // prettier-ignore
      t.same(withoutAge(some.lists[index]), withoutAge(alone))
    }

    const asked = [...wanted, { partition: 5, key: 'raw/none' }]
    const { references } = await post<ReferencesAnswer>(wirePath.allReferences(shardA), { references: asked })
    t.equal(references.at(-1), null, 'what is not there is told to who asks for it alone')
    for (const [index, { partition, key }] of wanted.entries()) {
      const { json } = await client.call(
        'GET',
        `${wirePath.references(shardA, partition)}?key=${encodeURIComponent(key)}`,
      )
      t.same(references[index], json)
    }

    // More than 10,000 names, and more than 4 MiB of records, are not for one answer.
    for (let wave = 0; wave < 6; wave++) {
      await Promise.all(Array.from({ length: 500 }, () => client.appendBlob(shardA, testBlob(10, 7))))
    }
    const often = Array.from({ length: 6 }, () => ({ partition: 7, of: 'blobs' }))
    const full = await post<EntriesAnswer>(wirePath.entriesOf(shardA), { lists: often, limit: 10_000 })
    t.same(full.lists.map(one => one?.entries.length), [3_000, 3_000, 3_000, 3_000, undefined, undefined]) // prettier-ignore
    const same = Array.from({ length: 10_000 }, () => wanted[0])
    const many = await post<ReferencesAnswer>(wirePath.allReferences(shardA), { references: same })
    t.equal(many.references.length, same.length)
    t.equal(many.references.at(-1), null)
    t.ok(JSON.stringify(many).length < 5 * 1024 * 1024)

    for (const [path, body] of [
      [wirePath.entriesOf(shardA), { lists: [{ partition: 4_096, of: 'blobs' }], limit: 1 }],
      [wirePath.entriesOf(shardA), { lists: [{ partition: 1, of: 'files' }], limit: 1 }],
      [wirePath.entriesOf(shardA), { lists: [], limit: 0 }],
      [wirePath.entriesOf(shardA), { lists: Array.from({ length: 10_001 }, () => often[0]), limit: 1 }],
      [wirePath.allReferences(shardA), { references: [{ partition: 1, key: 7 }] }],
      [wirePath.allReferences(shardA), { references: [{ partition: -1, key: 'raw/a' }] }],
      [wirePath.allReferences(shardA), {}],
    ] as const) {
      t.equal((await client.call('POST', path, JSON.stringify(body))).status, 400)
    }
    t.equal((await client.call('POST', wirePath.entriesOf('nobody' as never), '{"lists":[],"limit":1}')).status, 404)
  },
)
