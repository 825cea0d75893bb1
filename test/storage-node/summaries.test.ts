import t from 'tap'
import { partitionCount } from '../../shared/partition.ts'
import { SetDigest, type SetSummary } from '../../shared/set-digest.ts'
import { type EntryListing, type PartitionSummary, type SummaryAnswer, wirePath } from '../../shared/wire.ts'
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
