/** A cluster of an older build is replaced, process after process and under load, by this one. */
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { startBalancer } from '../support/balancer.ts'
import { startCluster } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { endWithoutFault, Load } from '../support/load.ts'
import { buildOlder } from '../support/older-build.ts'
import { mainFile } from '../support/process.ts'
import { seededRandom } from '../support/random.ts'
import { SlowTransfers } from '../support/slow-transfers.ts'

/** There is no release yet: a commit from which upgrades are to work. */
const commit = process.env['HOLDFAST_TEST_UPGRADE_FROM'] ?? '36c1979'

t.test(
  'I39: proxies, then nodes, are replaced by this build one after another: no request fails, all data is there',
  { timeout: 400_000 },
  async t => {
    const older = process.env['HOLDFAST_TEST_UPGRADE_MAIN'] ?? (await buildOlder(t, commit))
    if (older === undefined) {
      t.pass('upgraded', { skip: `this tree has no history back to ${commit}` })
      return
    }
    const random = seededRandom(t)
    const cluster = await startCluster(t, { proxies: 2, mainFile: older })
    const balancer = await startBalancer(t, cluster.proxies.map(proxy => proxy.url), { checkMs: 100 }) // prettier-ignore
    const { url } = balancer
    const history = new History()
    const load = new Load(t, {
      random,
      clients: [cluster.client({ url, history, timeoutMs: 30_000 })],
      concurrency: 8,
      smallPaths: 200,
    })
    await load.progress(100, 60)
    // Written by the older build, and not touched any more.
    load.folder = 'during'
    const before = [...history.writtenPaths].filter(path => !path.startsWith('raw/during/'))
    const slow = new SlowTransfers(cluster.client({ url }), random)
    for (const { id, process } of [...cluster.proxies, ...cluster.nodes]) {
      load.phase(`${id} replaced`)
      // How a process ends is the older build's business, and not all of them end as gently as this one: see docs/operations.md.
      balancer.takeOut(process.url)
      await sleep(1_000)
      await process.terminate()
      process.mainFile = mainFile
      await process.start()
      balancer.putBack(process.url)
      await load.progress(30, 15)
      t.strictSame(load.takeFailures(), [], `no request fails while ${id} is replaced`)
    }
    await slow.stop()
    t.strictSame(slow.failures, [], `no slow transfer fails, of ${slow.done}`)
    await endWithoutFault(t, load, history)
    figure(t, 'upgrade.read', load.total.readMsMax, 'ms')
    figure(t, 'upgrade.write', load.total.writeMsMax, 'ms')
    const reader = cluster.client({ url, history })
    const answers = await reader.getAll(before)
    t.strictSame(
      answers.filter(({ status }) => status !== 200 && status !== 404),
      [],
      `all ${before.length} paths of before answer`,
    )
    t.strictSame(history.problems(), [], 'I1: with what was acknowledged')
    await waitForFullCopies(cluster, [...history.writtenPaths, ...slow.paths], 120_000)
    t.strictSame(cluster.crashes(), [])
  },
)
