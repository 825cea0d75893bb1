import t from 'tap'
import { atMost } from '../../shared/at-most.ts'
import type { Client } from '../support/client.ts'
import { startCluster } from '../support/cluster.ts'
import { waitUntilWhole } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { encodeArtifactPath } from '../../proxy/http/artifact-path.ts'

interface Entry {
  readonly name: string
  readonly kind: string
}
interface Listing {
  readonly entries: readonly Entry[]
  readonly next?: string
}

const asJson = { accept: 'application/json' }
/** A page asks three nodes on two busy cores to look into 4,096 partitions each. */
const timeoutMs = 60_000

/** Every page of a folder as it came, so that pages and their ends are compared, too. */
async function pagesOf(client: Client, folder: string): Promise<unknown[]> {
  const pages: unknown[] = []
  for (let after = '', more = true; more;) {
    const answer = await client.request('GET', `${folder}?after=${encodeURIComponent(after)}`, {
      headers: asJson,
      timeoutMs,
    })
    if (answer.status !== 200) return [...pages, answer.status]
    const page = JSON.parse(answer.body.toString()) as Listing
    pages.push(page)
    after = page.next ?? ''
    more = page.next !== undefined
  }
  return pages
}

t.test('I15, I16: without PostgreSQL folders are listed as with it, by a proxy that has just started, too', async t => {
  const cluster = await startCluster(t, { proxies: 2, redis: true })
  const admin = cluster.client({ proxy: 1 })
  const body = Buffer.from(JSON.stringify({ name: 'open', anonymousRead: true }))
  const headers = { 'content-type': 'application/json' }
  t.equal((await admin.request('POST', '/api/v1/repositories', { body, headers })).status, 201)

  const put = async (path: string): Promise<void> => {
    const target = path.split('/').map(encodeURIComponent).join('/')
    const { status } = await admin.put(target, Buffer.from(`bytes of ${path}`))
    if (status !== 201 && status !== 200) throw new Error(`PUT ${path}: ${status}`)
  }
  const remove = async (path: string): Promise<void> => {
    const { status } = await admin.delete(path.split('/').map(encodeURIComponent).join('/'))
    if (status !== 204) throw new Error(`DELETE ${path}: ${status}`)
  }
  const numbered = (count: number, name: (index: number) => string): string[] =>
    Array.from({ length: count }, (_, index) => name(index))
  const odd = ['é', 'a b', '#%?"', '<b>&', '\uffff', '\u{10000}', 'a!', 'a-', 'a', '0', '-']
  const deep = `raw/deep/${numbered(40, index => `level-${index}`).join('/')}/end`
  const gone = numbered(60, index => `raw/gone/sub-${index % 7}/${index}`)
  const partly = numbered(40, index => `raw/partly/sub-${index % 4}/${index}`)
  await atMost(16, [
    ...numbered(1_100, index => `raw/many/file-${index * 7}`),
    ...numbered(1_050, index => `open/folders/${index}/x/y`),
    ...odd.flatMap(name => [`raw/odd/${name}`, `raw/odd/${name}-folder/${name}`, `raw/odd/${name}.d/x`]),
    ...[deep, 'raw/a/index.html', 'raw/a/b', 'raw/both', 'raw/both-not/x', 'open/top'],
    ...gone,
    ...partly,
  ], put) // prettier-ignore
  await atMost(
    16,
    numbered(300, index => `raw/many/file-${index * 7}`),
    remove,
  )
  // One node misses deletions: what it says of them is old.
  await cluster.nodes[0]!.process.kill()
  await atMost(8, gone, remove)
  await atMost(8, partly.filter((_, index) => index % 4 !== 1), remove) // prettier-ignore
  await put('raw/partly/sub-2/again')
  await cluster.nodes[0]!.process.start()

  const oddFolders = odd.map(name => `raw/odd/${encodeArtifactPath(name)}-folder/`)
  const deepFolders = deep.split('/').slice(0, -1).map((_, index, parts) => `${parts.slice(0, index + 1).join('/')}/`) // prettier-ignore
  const folders = ['raw/many/', 'open/', 'open/folders/', 'raw/odd/', 'raw/partly/', 'raw/partly/sub-2/', 'raw/a/']
  folders.push(
    ...oddFolders.slice(0, 4),
    ...deepFolders.filter((_, index) => index % 13 === 0),
    'raw/gone/',
    'raw/never/',
  )
  folders.push('raw/partly/sub-1/', 'raw/partly/sub-3/')
  const expected = new Map<string, unknown[]>()
  for (const folder of folders) expected.set(folder, await pagesOf(admin, folder))
  t.equal(expected.get('open/folders/')!.length, 2, 'more than a page of folders')
  t.strictSame(expected.get('raw/gone/'), [404])
  t.match(expected.get('raw/partly/'), [{ entries: [{ name: 'sub-1', kind: 'folder' }, { name: 'sub-2' }] }])
  const html = (await admin.request('GET', 'raw/odd/')).body.toString()

  await cluster.proxies[0]!.process.kill()
  await waitUntilWhole(cluster)
  await cluster.postgres.stop()
  await cluster.redis.stop()
  await cluster.proxies[0]!.process.start()
  const cold = cluster.client({ proxy: 0 })
  const anonymous = cluster.client({ proxy: 0, anonymous: true })
  const startedAt = performance.now()
  for (const folder of folders) t.strictSame(await pagesOf(cold, folder), expected.get(folder), folder)
  t.comment(`${((performance.now() - startedAt) / folders.length).toFixed(0)} ms a folder`)
  t.strictSame(await pagesOf(admin, 'raw/many/'), expected.get('raw/many/'), 'a proxy that had the database')

  const page = await cold.request('GET', 'raw/odd/', { timeoutMs })
  t.equal(page.body.toString(), html, 'the page for people')
  t.match(page.headers, { 'holdfast-metadata': 'shards', vary: 'accept', 'content-type': /text\/html/ })
  t.equal((await cold.request('GET', 'raw/a/')).body.toString(), 'bytes of raw/a/index.html')
  t.equal((await cold.request('HEAD', 'open/', { headers: asJson, timeoutMs })).status, 200)
  t.equal((await anonymous.request('GET', 'open/', { headers: asJson, timeoutMs })).status, 200)
  for (const folder of ['raw/', 'raw/never/', 'raw/gone/', 'nowhere/']) {
    t.equal((await anonymous.request('GET', folder, { headers: asJson })).status, 401, `nothing is said of ${folder}`)
  }
  for (const after of ['zzz', 'both/', 'both', '%00', '../open', '\u{10ffff}'.repeat(50), 'x'.repeat(3_000)]) {
    const target = `raw/?after=${encodeURIComponent(after)}`
    const { status } = await cold.request('GET', target, { headers: asJson, timeoutMs })
    t.equal(status, 200, after.slice(0, 20))
  }

  await cluster.nodes[2]!.process.kill()
  for (const folder of ['raw/partly/', 'raw/gone/', 'open/folders/']) {
    t.strictSame(await pagesOf(cold, folder), expected.get(folder), `${folder} with one node dead`)
  }
  await cluster.nodes[1]!.process.kill()
  for (const folder of ['raw/partly/', 'raw/gone/', 'raw/']) {
    const answer = await cold.request('GET', folder, { headers: asJson, timeoutMs })
    t.equal(answer.status, 503, `${folder} with one node left`)
    t.match(answer.headers['retry-after'], /^\d+$/)
    t.match(answer.body.toString(), /REPLICAS_UNREACHABLE/)
  }
  await Promise.all([cluster.nodes[1]!.process.start(), cluster.nodes[2]!.process.start(), cluster.postgres.start()])
  await eventually(
    'the database is asked again',
    async () => {
      const answer = await cold.request('GET', 'raw/odd/', { timeoutMs })
      return answer.status === 200 && answer.headers['holdfast-metadata'] === undefined
    },
    { withinMs: 30_000 },
  )
  t.strictSame(cluster.crashes(), [])
})
