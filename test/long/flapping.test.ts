/** A node that comes and goes every two seconds for a minute: no request fails, and nothing is repaired more often than it was written. */
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { startCluster } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { endWithoutFault, Load, tallyText } from '../support/load.ts'
import { seededRandom } from '../support/random.ts'

const cycles = 15

t.test('a node flaps for a minute: no failed request, no storm of repairs', { timeout: 240_000 }, async t => {
  const cluster = await startCluster(t, { chaos: true })
  const history = new History()
  const client = cluster.client({ history, timeoutMs: 30_000 })
  const load = new Load(t, { random: seededRandom(t), clients: [client], concurrency: 6 })
  await load.progress(60, 40)
  const relay = cluster.node('node-b').chaos!

  load.phase('flapping')
  for (let cycle = 0; cycle < cycles; cycle++) {
    relay.mode = cycle % 2 === 0 ? 'cut' : 'blackhole'
    await sleep(2_000)
    relay.mode = 'pass'
    await sleep(2_000)
  }
  const flapped = { ...load.current }
  load.phase('afterwards')
  await cluster.allNodesUp(90_000)
  await load.progress(20, 10)
  await endWithoutFault(t, load, history)
  const living = await client.presentOf(history.paths)
  await waitForFullCopies(cluster, living, 90_000)

  const repaired = (await client.metric('holdfast_repaired_copies_total')) + (await client.metric('holdfast_repaired_references_total')) // prettier-ignore
  t.comment(`flapping: ${tallyText(flapped)}; ${repaired} copies and references repaired`)
  const asked = flapped.reads + flapped.writes + flapped.deletes + load.failures.length
  figure(t, 'flapping.failed', (100 * load.failures.length) / asked, '%')
  figure(t, 'flapping.read', flapped.readMsMax, 'ms')
  figure(t, 'flapping.write', flapped.writeMsMax, 'ms')
  // Of each write the node can have missed its blob and its reference once, and a deletion is a reference.
  const missed = 2 * load.total.writes + load.total.deletes
  figure(t, 'flapping.repaired', repaired, 'count')
  figure(t, 'flapping.missed', missed, 'count')
  t.ok(repaired <= missed, `${repaired} repairs, ${missed} can have been missed`)
  t.ok(flapped.readMsMax < 5_000 && flapped.writeMsMax < 12_000, 'nothing waits for it for long')
  t.strictSame(cluster.crashes(), [])
})
