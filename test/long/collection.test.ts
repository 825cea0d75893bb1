/** Garbage collection without any hold, under load that uploads and deletes the same few bytes all the time: the worst that can be done to it. */
import t from 'tap'
import { gc } from '../../cli/gc.ts'
import { repo } from '../../cli/repo.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { Load, tallyText } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'
import { blobFiles } from '../support/shard-files.ts'

const rounds = 5

async function run(cluster: Cluster, command: typeof gc, ...args: string[]): Promise<{ code: number; text: string }> {
  const env = { HOLDFAST_URL: cluster.proxies[0]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  let text = ''
  const write = { out: (part: string) => void (text += part), err: (part: string) => void (text += part) }
  return { code: await command({ args, env }, write), text }
}

t.test(
  'I1, I11, I12: what is uploaded while it is collected stays; what is unused goes',
  { timeout: 180_000 },
  async t => {
    const random = seededRandom(t)
    const proxyFlags = ['--gc-min-age-ms', '0', '--gc-hold-ms', '0']
    const cluster = await startCluster(t, { proxies: 2, proxyFlags })
    const history = new History()
    const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 30_000 }))
    t.equal((await run(cluster, repo, 'set', 'raw', '--trash-days', '0')).code, 0)
    await eventually('a primary', async () => (await run(cluster, gc, 'plan')).code === 0, {
      withinMs: 40_000,
      everyMs: 500,
    })

    const load = new Load(t, { random, clients, smallPaths: 20, largePaths: 10 })
    let purged = 0
    for (let round = 0; round < rounds; round++) {
      load.phase(`round ${round}`)
      await load.progress(20, 20)
      const victim = round === 3 ? random.pick(cluster.nodes) : undefined
      await victim?.process.kill()
      const { text } = await run(cluster, gc, 'run', '--force')
      purged += Number(/purged: (\d+) blobs/.exec(text)?.[1] ?? 0)
      if (victim === undefined) continue
      await victim.process.start()
      await cluster.allNodesUp()
    }
    await load.stop()
    t.same(load.wrong, [])
    t.same(load.failures, [])
    t.same(history.problems(), [])
    t.comment(tallyText(load.total), `${purged} blobs purged meanwhile`)
    figure(t, 'collection.write', load.total.writeMsMax, 'ms')
    figure(t, 'collection.purged', purged, 'count')
    t.ok(purged > 0, 'something was collected while it was uploaded again')

    const live = new Set<string>()
    for (const { path, status, headers } of await clients[0]!.getAll(history.paths)) {
      if (status === 200) live.add(String(headers['etag']).slice(1, -1))
      else t.equal(status, 404, path)
    }
    await eventually(
      'nothing but what is named is left',
      async () => {
        // Of an upload that was given up all owners may hold the same copy: that shows only to a look at everything.
        await run(cluster, gc, 'run', '--force', '--full')
        const files = await blobFiles(cluster)
        const left = files.filter(name => !live.has(name.split('/').at(-1)!.slice(0, 64)))
        if (left.length > 0) throw new Error(`left: ${left.join(' ')}`)
        return true
      },
      { withinMs: 60_000, everyMs: 500 },
    )
  },
)
