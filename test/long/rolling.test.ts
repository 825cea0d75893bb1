/** Every process is restarted by SIGTERM, one after another, under load: nobody who uses the cluster notices. */
import t, { type Test } from 'tap'
import { startBalancer } from '../support/balancer.ts'
import { startCluster, type ClusterOptions } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { endWithoutFault, Load } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'
import { SlowTransfers } from '../support/slow-transfers.ts'

async function restartAll(t: Test, options: ClusterOptions, balancer: { checkMs?: number }): Promise<void> {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { proxies: 2, ...options })
  const { url } = await startBalancer(t, cluster.proxies.map(proxy => proxy.url), balancer) // prettier-ignore
  const history = new History()
  const client = cluster.client({ url, history, timeoutMs: 30_000 })
  const load = new Load(t, { random, clients: [client], concurrency: 8, smallPaths: 200 })
  await load.progress(60, 30)
  const slow = new SlowTransfers(cluster.client({ url }), random)
  for (const round of [1, 2]) {
    for (const { id, process } of [...cluster.nodes, ...cluster.proxies]) {
      load.phase(`${id} restarted, round ${round}`)
      const from = performance.now()
      t.equal(await process.terminate(), 'exit code 0')
      const ended = performance.now()
      // As soon as it says that it is ready the next one is told to go: nobody waits for repairs.
      await process.start()
      t.comment(`${id}: ended in ${(ended - from).toFixed(0)} ms, up in ${(performance.now() - ended).toFixed(0)} ms`)
      t.strictSame(load.takeFailures(), [], `no request fails while ${id} restarts`)
    }
  }
  await load.progress(60, 30)
  await slow.stop()
  t.strictSame(slow.failures, [], `no slow transfer fails, of ${slow.done}`)
  await endWithoutFault(t, load, history)
  figure(t, 'rolling.read', load.total.readMsMax, 'ms')
  figure(t, 'rolling.write', load.total.writeMsMax, 'ms')
  figure(t, 'rolling.operations', history.size, 'count')
  await waitForFullCopies(cluster, [...history.writtenPaths, ...slow.paths])
  t.strictSame(cluster.crashes(), [])
}

t.test(
  'I39: every process is restarted twice under load, coordinated by PostgreSQL: no request fails',
  { timeout: 400_000 },
  t => restartAll(t, {}, {}),
)

t.test(
  'I39: the same with two workers in each proxy and Redis, behind a balancer that asks who is ready',
  { timeout: 400_000 },
  t => restartAll(t, { redis: true, proxyFlags: ['--workers', '2', '--linger-ms', '1s'] }, { checkMs: 250 }),
)
