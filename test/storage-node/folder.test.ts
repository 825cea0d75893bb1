import { hash } from 'node:crypto'
import t from 'tap'
import { behind } from '../../shared/key-order.ts'
import { encodeRecord } from '../../shared/record.ts'
import { type FolderAnswer, wirePath } from '../../shared/wire.ts'
import { type NodeClient, recovered, shardA, shardB, startNode, testBlob, testReference } from './fixtures.ts'

const blob = testBlob(Buffer.from('bytes'))

async function append(client: NodeClient, paths: readonly string[], version: number, op: 'put' | 'delete' = 'put') {
  for (let at = 0; at < paths.length; at += 500) {
    const batch = paths.slice(at, at + 500).map((path): [typeof shardA, Buffer] => {
      return [shardA, encodeRecord(testReference(path, version, op === 'put' ? blob : undefined))]
    })
    await client.append(...batch)
  }
}

async function folder(client: NodeClient, path: string, question: Record<string, unknown> = {}): Promise<FolderAnswer> {
  const key = `raw/${path}`
  const answer = await client.post(wirePath.folder(shardA), { folder: key, start: key, limit: 1_000, ...question })
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.body.toString()}`)
  return answer.json as unknown as FolderAnswer
}

const keysOf = ({ references }: FolderAnswer): string[] =>
  references.map(({ key, version, blob }) => `${key}@${version}${blob === undefined ? ' deleted' : ''}`).sort()

t.test(
  'I16: a shard tells the newest reference of each artifact in a folder, and of each folder a live one',
  async t => {
    const { client } = await startNode(t)
    await recovered(client, shardA)
    t.strictSame(await folder(client, ''), { references: [], undecided: [] })
    await append(client, ['a', 'b', 'f/1', 'f/2/3', 'gone/1', 'gone/2', 'half/1', 'half/2', 'fx', 'f-'], 1)
    await append(client, ['b', 'gone/1', 'gone/2', 'half/1'], 2, 'delete')
    const root = await folder(client, '')
    t.strictSame(keysOf({ ...root, references: root.references.filter(({ key }) => !key.startsWith('raw/f/')) }), [
      'raw/a@1',
      'raw/b@2 deleted',
      'raw/f-@1',
      'raw/fx@1',
      'raw/half/2@1',
    ])
    t.equal(root.references.filter(({ key }) => key.startsWith('raw/f/')).length, 1)
    t.match(root.references.find(({ key }) => key === 'raw/a')?.blob, { digest: blob.digest, bytes: 5 })
    t.strictSame(keysOf(await folder(client, 'f/')), ['raw/f/1@1', 'raw/f/2/3@1'])
    t.strictSame(keysOf(await folder(client, 'gone/')), ['raw/gone/1@2 deleted', 'raw/gone/2@2 deleted'])
    t.strictSame(keysOf(await folder(client, 'half/', { deep: true })), ['raw/half/1@2 deleted', 'raw/half/2@1'])
    t.strictSame(keysOf(await folder(client, 'never/')), [])
    const page = await folder(client, '', { limit: 2 })
    t.strictSame([keysOf(page), page.next], [['raw/a@1', 'raw/b@2 deleted'], behind('raw/b')])
    t.strictSame(keysOf(await folder(client, '', { limit: 1, start: behind('raw/f/') })), ['raw/fx@1'])
  },
)

t.test('what is no question about a folder is refused', async t => {
  const { client } = await startNode(t)
  for (const shard of [shardA, shardB]) await recovered(client, shard)
  const good = { folder: 'raw/', start: 'raw/', limit: 1 }
  t.equal((await client.post(wirePath.folder(shardA), good)).status, 200)
  const bad = [
    ...[{ folder: 'raw' }, { folder: 7 }, { folder: `${'x'.repeat(10_000)}/` }, { start: 'other/' }, { start: 7 }],
    ...[{ start: `raw/${'x'.repeat(40_000)}` }, { limit: 0 }, { limit: -1 }, { limit: 1.5 }, { limit: '3' }],
  ]
  for (const change of bad) {
    t.equal((await client.post(wirePath.folder(shardA), { ...good, ...change })).status, 400)
  }
  t.equal((await client.post('/v1/folder/unknown', good)).status, 404)
  t.equal((await client.call('GET', wirePath.folder(shardA))).status, 405)
  t.equal((await client.call('POST', wirePath.folder(shardA), '{', { authorization: 'Bearer x' })).status, 401)
  t.strictSame((await client.post(wirePath.folder(shardB), good)).json, { references: [], undecided: [] })
  const odd = ['\u{10ffff}x', '\uffff', '\0', '%', '"\\', '\ud800']
  for (const text of odd) {
    t.equal((await client.post(wirePath.folder(shardA), { ...good, start: `raw/${text}`, limit: 9e9 })).status, 200)
  }
})

t.test('an enormous folder comes in pages, each with a bounded part of the work', async t => {
  const { client } = await startNode(t)
  await recovered(client, shardA)
  const names = Array.from({ length: 6_000 }, (_, index) => `big/${hash('sha256', String(index)).slice(0, 20)}`)
  await append(client, names, 1)
  await append(client, ['a', 'z'], 1)
  const found: string[] = []
  for (let start: string | undefined = 'raw/big/'; start !== undefined;) {
    const page = await folder(client, 'big/', { start, limit: 1_000_000 })
    t.ok(page.references.length <= 3_000)
    found.push(...page.references.map(({ key }) => key.slice(4)).sort())
    start = page.next
  }
  t.strictSame(found, names.sort())
  t.strictSame(keysOf(await folder(client, '')).length, 3, 'of a folder one is told')
})
