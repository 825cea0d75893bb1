/** PostgreSQL goes away while 48 writers are at every step of a write. */
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { Client } from '../support/client.ts'
import { startCluster } from '../support/cluster.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { backWithinMs, outages, refusedWithinMs } from '../support/postgres-outages.ts'
import { seededRandom, type Random } from '../support/random.ts'

/** Bodies in flight, sockets, garbage not yet collected; a queue without a bound passes it in seconds. */
const growthBytesMax = 200 * 2 ** 20

interface Write {
  readonly proxy: number
  readonly what: string
  readonly begunAt: number
  readonly endedAt: number
  readonly status: number
  readonly retryAfter: unknown
}

/** Many writes at once, so that some are at every step when something happens. Those answered are in `writes`. */
function startWriters(t: Test, clients: readonly Client[], random: Random) {
  const writes: Write[] = []
  const pending = new Set<number>()
  let running = true
  const work = async (writer: number): Promise<void> => {
    const proxy = writer % clients.length
    const client = clients[proxy]!
    while (running) {
      // Other paths from time to time: too many outcomes that nobody knows cannot be checked on one.
      const path = `raw/writers/${Math.floor(writes.length / 800)}/${random.int(1, 300)}`
      const begunAt = performance.now()
      pending.add(begunAt)
      const deletes = random.next() < 0.15
      const body = random.bytes(random.pick([300, 5_000, 100_000]))
      const { status, headers } = await (deletes ? client.delete(path) : client.put(path, body))
      pending.delete(begunAt)
      const what = `${deletes ? 'DELETE' : 'PUT'} ${path}`
      writes.push({ proxy, what, begunAt, endedAt: performance.now(), status, retryAfter: headers['retry-after'] })
      if (status === 503) await sleep(20) // as polite as a client that was told to come back
    }
  }
  const all = Promise.all(Array.from({ length: 48 }, (_, writer) => work(writer)))
  const stop = async (): Promise<void> => {
    running = false
    await all
  }
  t.teardown(stop)
  /** Is every write that was begun until then answered? */
  const answeredUntil = (time: number): boolean => [...pending].every(begunAt => begunAt > time)
  return { writes, answeredUntil, stop }
}

const done = ({ status }: Write): boolean => [200, 201, 204, 404].includes(status)

for (const redis of [false, true]) {
  t.test(
    `I15, I37: PostgreSQL goes away at any moment of a write, ${redis ? 'with' : 'without'} Redis: 503 within 2 s, back within 5 s`,
    async t => {
      const random = seededRandom(t)
      const cluster = await startCluster(t, { proxies: 2, redis })
      const history = new History()
      const clients = [0, 1].map(proxy => cluster.client({ proxy, history, timeoutMs: 20_000 }))
      const { writes, answeredUntil, stop } = startWriters(t, clients, random)
      const rss = (): Promise<number[]> => Promise.all(cluster.proxies.map(proxy => proxy.process.rssBytes()))
      for (const [name, begin, end] of [...outages, outages[1]!]) {
        const before = writes.length
        await eventually('writes go on', () => writes.slice(before).filter(done).length >= 300)
        const rssBefore = await rss()
        await begin(cluster)
        const goneAt = performance.now()
        const during = (): Write[] => writes.filter(write => write.endedAt > goneAt)
        await eventually('all are answered', () => answeredUntil(goneAt) && during().length > 1_500, {
          withinMs: 60_000,
        })
        const late = (write: Write): number => write.endedAt - Math.max(goneAt, write.begunAt)
        const slowest = during().reduce((a, b) => (late(a) > late(b) ? a : b))
        const [growth = 0] = (await rss()).map((bytes, at) => bytes - rssBefore[at]!).sort((a, b) => b - a)
        t.comment(
          `${name}: slowest ${late(slowest).toFixed(0)} ms (${slowest.what}: ${slowest.status}), ${growth >> 20} MiB more`,
        )
        figure(t, 'postgres.refused', late(slowest), 'ms')
        t.ok(late(slowest) < refusedWithinMs, `${slowest.what}: ${slowest.status} after ${late(slowest).toFixed(0)} ms`)
        const wrong = during().filter(
          write => !done(write) && !(write.status === 503 && /^\d+$/.test(String(write.retryAfter))),
        )
        t.strictSame(wrong, [], '503 with Retry-After, nothing else')
        t.ok(growth < growthBytesMax, `memory grew by ${growth >> 20} MiB`)
        await end(cluster)
        const backAt = performance.now()
        const first = (proxy: number): Write | undefined =>
          writes.find(write => write.proxy === proxy && write.begunAt > goneAt && write.endedAt > backAt && done(write))
        await eventually('both take writes again', () => clients.every((_, proxy) => first(proxy) !== undefined), {
          withinMs: backWithinMs,
        })
        const backMs = Math.max(...clients.map((_, proxy) => first(proxy)!.endedAt - backAt))
        t.comment(`${name}: back after ${backMs.toFixed(0)} ms`)
        figure(t, 'postgres.back', backMs, 'ms')
        t.ok(backMs < backWithinMs, `back after ${backMs.toFixed(0)} ms`)
      }
      await stop()
      for (const client of clients) await client.getAll(history.paths)
      t.strictSame(history.problems(), [], 'every answer is explained by the acknowledged writes')
      t.strictSame(cluster.crashes(), [])
    },
  )
}
