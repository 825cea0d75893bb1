/** A cleanup policy from the download to the trash and back: what the proxy noted, what is previewed, what goes. */
import pg from 'pg'
import t from 'tap'
import { cleanup } from '../../cli/cleanup.ts'
import { repo } from '../../cli/repo.ts'
import { trash } from '../../cli/trash.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { seededRandom } from '../support/random.ts'

type Command = typeof cleanup

async function run(cluster: Cluster, command: Command, ...args: string[]): Promise<{ code: number; out: unknown }> {
  const env = { HOLDFAST_URL: cluster.proxies[0]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  let out = ''
  const write = { out: (text: string) => void (out += text), err: (text: string) => void (out += text) }
  const code = await command({ args: [...args, '--json'], env }, write)
  return { code, out: JSON.parse(out) as unknown }
}

async function sql(cluster: Cluster, text: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: cluster.postgres.url })
  await client.connect()
  try {
    return (await client.query<object>(text)).rows
  } finally {
    await client.end()
  }
}

t.test('what nobody downloads, and old versions: previewed, deleted, restored', { timeout: 120_000 }, async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t)
  const client = cluster.client()
  t.match(await run(cluster, repo, 'create', 'other', '--anonymous-read', 'on'), { code: 0 })
  const versions = ['1.0', '1.1', '1.2', '2.0'].flatMap(version => [`raw/app/${version}/a`, `raw/app/${version}/b`])
  const paths = [...versions, 'raw/old/used', 'raw/old/unused', 'raw/old/new', 'raw/elsewhere', 'other/old/unused']
  const bodies = new Map(paths.map((path, index) => [path, random.bytes(1_000 + index)]))
  for (const [path, body] of bodies) t.equal((await client.put(path, body)).status, 201, path)
  for (const path of ['raw/old/used', 'raw/old/used', 'raw/elsewhere']) t.equal((await client.get(path)).status, 200)
  t.equal((await client.get('raw/old/none')).status, 404)

  // What waits to be written down is not lost with an orderly end.
  await cluster.proxies[0]!.process.terminate()
  t.match(await sql(cluster, 'SELECT path FROM downloads ORDER BY path'), [{ path: 'elsewhere' }, { path: 'old/used' }])
  await sql(
    cluster,
    `UPDATE artifacts SET updated_at = now() - interval '40 days' WHERE path IN ('old/used', 'old/unused')`,
  )
  await sql(
    cluster,
    `UPDATE settings SET value = (value::bigint - 90 * 86400000::bigint)::text WHERE key = 'downloads_recorded_since'`,
  )
  await cluster.proxies[0]!.process.start()

  const inRaw = ['--repositories', 'raw'] as const
  const stale = ['--path', 'old/**', '--unchanged-days', '20', '--not-downloaded-days', '30'] as const
  t.match(await run(cluster, cleanup, 'create', 'stale', ...inRaw, ...stale), { code: 0, out: { enabled: false } })
  const newest = ['--path', 'app/**', '--keep-newest', '2', '--keep-newest-of', 'folders'] as const
  t.match(await run(cluster, cleanup, 'create', 'versions', ...inRaw, ...newest), { code: 0 })
  const typo = await run(cluster, cleanup, 'create', 'typo', '--repositories', 'raw,rwa', ...stale)
  t.match(typo, { code: 2, out: { code: 'BAD_REQUEST', message: "no repository 'rwa'" } })
  const [staleDoomed, versionsDoomed] = [['raw/old/unused'], versions.slice(0, 4)]
  for (const [name, doomed] of [['stale', staleDoomed], ['versions', versionsDoomed]] as const) {
    const bytes = doomed.reduce((sum, path) => sum + bodies.get(path)!.length, 0)
    const { code, out } = await run(cluster, cleanup, 'preview', name)
    t.same([code, out], [0, { artifacts: doomed.length, bytes, first: doomed, examined: 12, complete: true }], name)
  } // prettier-ignore
  t.match(await run(cluster, cleanup, 'run', 'stale'), { code: 1 }, 'a policy that is not switched on deletes nothing')
  for (const path of paths) t.equal((await client.get(path)).status, 200, `${path} after the previews`)

  for (const name of ['stale', 'versions']) {
    t.match(await run(cluster, cleanup, 'set', name, '--enabled', 'on'), { code: 0, out: { enabled: true } })
  }
  t.match(await run(cluster, cleanup, 'run'), { code: 0, out: { run: { state: 'succeeded' } } })
  const doomed = [...staleDoomed, ...versionsDoomed].sort()
  for (const path of paths) t.equal((await client.get(path)).status, doomed.includes(path) ? 404 : 200, path)
  const listed = (await run(cluster, trash, 'list', 'raw')).out as { entries: { path: string; deletedBy: string }[] }
  const entries = listed.entries.map(({ path, deletedBy }) => [`raw/${path}`, deletedBy])
  const by = (path: string): string => `cleanup:${staleDoomed.includes(path) ? 'stale' : 'versions'}`
  t.same(entries.sort(), doomed.map(path => [path, by(path)])) // prettier-ignore

  t.match(await run(cluster, trash, 'restore', 'raw/'), { code: 0, out: { restored: doomed.length, refused: 0 } })
  for (const [path, body] of bodies) t.ok((await client.get(path)).body.equals(body), path)
  t.same(cluster.crashes(), [])
})
