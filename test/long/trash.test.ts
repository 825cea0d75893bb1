/** A folder is deleted at one proxy and restored at the other: bytes, caches and the references on the shards. */
import t from 'tap'
import { deleteArtifacts } from '../../cli/delete.ts'
import { task } from '../../cli/task.ts'
import { trash } from '../../cli/trash.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { verifyCopies, waitForFullCopies } from '../support/copies.ts'
import { figure } from '../support/figures.ts'
import { seededRandom } from '../support/random.ts'

type Command = typeof trash

function commandLine(cluster: Cluster, proxy: number) {
  const env = { HOLDFAST_URL: cluster.proxies[proxy]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  return async (command: Command, ...args: string[]): Promise<{ code: number; out: unknown }> => {
    let out = ''
    const write = { out: (text: string) => void (out += text), err: (text: string) => void (out += text) }
    const code = await command({ args: [...args, '--json'], env }, write)
    return { code, out: JSON.parse(out) as unknown }
  }
}

t.test('I37: a folder is deleted, and restored with its bytes and references', { timeout: 120_000 }, async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { proxies: 2 })
  const [first, second] = [commandLine(cluster, 0), commandLine(cluster, 1)]
  const clients = [cluster.client(), cluster.client({ proxy: 1 })]
  const bodies = new Map(
    Array.from({ length: 12 }, (_, i) => [`raw/f/${i % 3}/${i}`, random.bytes(i % 4 === 0 ? 300_000 : 2_000 + i)]),
  )
  for (const [path, body] of bodies) t.equal((await clients[0]!.put(path, body)).status, 201)
  await clients[0]!.put('raw/other', random.bytes(10))
  // Both have it in their caches.
  for (const client of clients) for (const path of bodies.keys()) t.equal((await client.get(path)).status, 200)
  const before = (await verifyCopies(cluster, 'raw/f/0/0')).newest

  t.match(await first(deleteArtifacts, 'raw/f/'), { code: 0, out: { artifacts: 12 } })
  for (const client of clients) for (const path of bodies.keys()) t.equal((await client.get(path)).status, 404, path)
  for (const path of bodies.keys()) t.match((await verifyCopies(cluster, path)).newest, { op: 'delete' })
  t.match(await second(trash, 'list', 'raw/f/'), { code: 0, out: { complete: true, entries: { length: 12 } } })
  t.match(await second(task, 'run', 'collect-garbage', '--wait'), { code: 0 })
  t.match(await second(task, 'run', 'empty-trash', '--wait'), { code: 0 })

  const newer = random.bytes(100)
  t.equal((await clients[0]!.put('raw/f/1/1', newer)).status, 201)
  const restoredAt = performance.now()
  t.match(await second(trash, 'restore', 'raw/f/'), {
    code: 1,
    out: { restored: 11, refused: 1, refusals: [{ path: 'f/1/1', reason: 'exists' }] },
  })
  figure(t, 'trash.restored', performance.now() - restoredAt, 'ms')
  const expected = new Map([...bodies, ['raw/f/1/1', newer]])
  for (const client of clients) {
    for (const [path, body] of expected) t.ok((await client.get(path)).body.equals(body), path)
  }
  await waitForFullCopies(cluster, expected.keys())
  const after = (await verifyCopies(cluster, 'raw/f/0/0')).newest
  t.match(after, { op: 'put', blob: { digest: before?.blob?.digest, generation: before?.blob?.generation } })
  t.ok(after!.version > before!.version)

  t.match(await first(trash, 'restore', 'raw/f/1/1', '--overwrite'), { code: 0, out: { restored: 1 } })
  for (const client of clients) t.ok((await client.get('raw/f/1/1')).body.equals(bodies.get('raw/f/1/1')!))
  t.match(await first(deleteArtifacts, 'raw/f/'), { code: 0 })
  t.match(await first(trash, 'purge', 'raw/f/'), { code: 0, out: { artifacts: 12 } })
  for (const verb of ['restore', 'purge']) {
    t.match(await first(trash, verb, 'raw/f/'), { code: 1, out: { code: 'ARTIFACT_NOT_FOUND' } }, verb)
  }
})
