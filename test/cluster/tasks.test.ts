/** Tasks of a real cluster: asked for at any proxy, done by the primary, finished by the next one when it is killed. */
import t from 'tap'
import { task } from '../../cli/task.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { connect } from '../proxy/metadata/fixtures.ts'

function commandLine(cluster: Cluster, proxy: number): (...args: string[]) => Promise<{ code: number; out: unknown }> {
  const env = { HOLDFAST_URL: cluster.proxies[proxy]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  return async (...args) => {
    let out = ''
    const write = { out: (text: string) => void (out += text), err: (text: string) => void (out += text) }
    const code = await task({ args: [...args, '--json'], env }, write)
    return { code, out: JSON.parse(out) as unknown }
  }
}

t.test('tasks of a cluster of two proxies', { timeout: 120_000 }, async t => {
  const cluster = await startCluster(t, { proxies: 2 })
  const lines = [commandLine(cluster, 0), commandLine(cluster, 1)] as const
  const database = await connect(t, cluster.postgres.url)
  const primaryIndex = async (): Promise<number | undefined> => {
    for (const index of [0, 1]) {
      const client = cluster.client({ proxy: index, timeoutMs: 1_000 })
      if ((await client.metric('holdfast_primary')) === 1) return index
    }
    return undefined
  }
  const first = await eventually('a primary', primaryIndex, { withinMs: 40_000 })

  for (const line of lines) {
    t.match(await line('run', 'housekeeping', '--wait'), { code: 0, out: { state: 'succeeded', takeovers: 0 } })
  }
  const client = cluster.client({ proxy: first })
  await eventually('the metrics say so', async () => {
    return (await client.metric('holdfast_task_last_success_timestamp_seconds')) > 1_700_000_000
  })

  await database.query(
    `INSERT INTO pins SELECT decode(md5(i::text), 'hex'), 'u', now() - interval '1 minute' FROM generate_series(1, 60000) i`,
  )
  const other = lines[1 - first]!
  t.match(await other('run', 'housekeeping'), { code: 0, out: { id: 3, state: 'queued' } })
  await eventually('it is at work', async () => {
    const { rows } = await database.query<{ count: number }>('SELECT count(*)::int AS count FROM pins')
    return (rows[0]?.count ?? 60_000) < 58_000
  })
  await cluster.proxies[first]!.process.kill()
  const killedAt = performance.now()
  const { rows } = await database.query<{ count: number }>('SELECT count(*)::int AS count FROM pins')
  t.comment(`killed with ${rows[0]?.count} of 60000 rows left`)
  const done = await eventually(
    'the other proxy finished it',
    async () => {
      const { out } = await other('show', 'housekeeping')
      const run = (out as { runs: { state: string }[] }).runs[0]
      return run?.state === 'running' || run?.state === 'queued' ? undefined : run
    },
    { withinMs: 60_000 },
  )
  figure(t, 'primary-killed.task-done', performance.now() - killedAt, 'ms')
  t.match(done, { id: 3, state: 'succeeded', takeovers: 1 })
  t.match((await database.query('SELECT FROM pins')).rowCount, 0)
})
