/** The disk of the nearest node is slow, in what it reads and in what it flushes: what readers notice of it. */
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { startCluster } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { noTracing, tamperWithDisk } from '../support/disks.ts'
import { figure, percentile } from '../support/figures.ts'
import { seededRandom } from '../support/random.ts'

const delayMs = 300
const readers = 4
const readsEach = 500
const writes = 12

t.test(
  'a slow disk: no request fails, and readers are served by others',
  { skip: await noTracing(), timeout: 240_000 },
  async t => {
    const random = seededRandom(t)
    // Nothing from memory. The proxy stands in zone a and prefers its node.
    const cluster = await startCluster(t, { shardsPerNode: 1, proxyFlags: ['--hot-cache-bytes', '0'] })
    const client = cluster.client({ timeoutMs: 30_000 })
    const bodies = new Map(
      Array.from({ length: 120 }, (_, index) => [
        `raw/slow/${index}`,
        random.bytes(random.pick([2_000, 90_000, 400_000])),
      ]),
    )
    for (const [path, body] of bodies) t.equal((await client.put(path, body)).status, 201)
    const paths = [...bodies.keys()]
    await waitForFullCopies(cluster, paths)

    const measure = async (when: string): Promise<void> => {
      const readTimes: number[] = []
      const writeTimes: number[] = []
      const wrong: string[] = []
      const read = async (): Promise<void> => {
        for (let count = 0; count < readsEach; count++) {
          const path = random.pick(paths)
          const { status, body, ms, error } = await client.get(path)
          readTimes.push(ms)
          if (status !== 200 || !body.equals(bodies.get(path)!)) wrong.push(`GET ${path}: ${status} ${error?.message}`)
          await sleep(random.next() * 40)
        }
      }
      const write = async (): Promise<void> => {
        for (let count = 0; count < writes; count++) {
          const { status, ms, error } = await client.put(`raw/slow/${when}-${count}`, random.bytes(5_000))
          writeTimes.push(ms)
          if (status !== 201) wrong.push(`PUT: ${status} ${error?.message}`)
        }
      }
      await Promise.all([...Array.from({ length: readers }, read), write()])
      t.strictSame(wrong, [], `no request fails, ${when}`)
      figure(t, `slow-disk.read-p50-${when}`, percentile(readTimes, 50), 'ms')
      figure(t, `slow-disk.read-p99-${when}`, percentile(readTimes, 99), 'ms')
      figure(t, `slow-disk.write-p50-${when}`, percentile(writeTimes, 50), 'ms')
    }
    await measure('before')
    const hedges = await client.metric('holdfast_hedges_total')
    const mend = await tamperWithDisk(t, cluster.node('node-a').process.pid, { delayMs, reads: true })
    await measure('during')
    figure(t, 'slow-disk.hedges', (await client.metric('holdfast_hedges_total')) - hedges, 'count')
    await mend()
    await waitForFullCopies(cluster, paths)
    t.strictSame(cluster.crashes(), [])
  },
)
