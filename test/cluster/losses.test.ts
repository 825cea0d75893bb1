/** Uploads that meet a death on their way, and what is left when most of the cluster is away. */
import { EventEmitter, once } from 'node:events'
import t from 'tap'
import type { Client } from '../support/client.ts'
import { startCluster } from '../support/cluster.ts'
import { unconfirmed, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { History } from '../support/history.ts'
import { seededRandom } from '../support/random.ts'
import { stagedFiles } from '../support/shard-files.ts'

t.test(
  'I8: a proxy is killed in uploads whose clients try again at the other one: all succeed, nothing is left',
  async t => {
    const random = seededRandom(t)
    const nodeFlags = ['--staged-hold-ms', '10000']
    const cluster = await startCluster(t, { proxies: 2, nodeFlags, proxyFlags: ['--abandoned-ms', '20000'] })
    const clients = [0, 1].map(proxy => cluster.client({ proxy, timeoutMs: 30_000 })) as [Client, Client]
    const bodies = new Map<string, Buffer>()
    let stopping = false
    let [repeated, told, slowest] = [0, 0, 0]
    const upload = async (worker: number): Promise<void> => {
      for (let count = 0; !stopping; count++) {
        const path = `raw/again/${worker}-${count}`
        const body = random.bytes(random.pick([2_000, 200_000, 3_000_000]))
        const begun = performance.now()
        let answer = await clients[0].put(path, body)
        if (answer.status === 0) repeated++
        for (let tries = 1; (answer.status === 0 || answer.status === 503) && tries < 5; tries++) {
          if (answer.status === 503) told++
          answer = await clients[1].put(path, body)
        }
        slowest = Math.max(slowest, performance.now() - begun)
        if (answer.status !== 201 && answer.status !== 200)
          t.fail(`${path}: ${answer.status} ${answer.error?.message ?? answer.body.toString()}`)
        bodies.set(path, body)
      }
    }
    const workers = Promise.all([1, 2, 3, 4, 5, 6].map(upload))
    for (let round = 0; round < 2; round++) {
      await eventually('uploads in the middle', async () => (await stagedFiles(cluster)).length >= 3, { everyMs: 1 })
      const before = repeated
      await cluster.proxies[0]!.process.kill()
      await eventually('they are repeated', () => repeated >= before + 6)
      await cluster.proxies[0]!.process.start()
    }
    stopping = true
    await workers
    figure(t, 'proxy-killed.upload', slowest, 'ms')
    figure(t, 'proxy-killed.repeated', repeated, 'count')
    figure(t, 'proxy-killed.refused', told, 'count')
    for (const [path, body] of bodies) {
      if (!(await clients[1].get(path)).body.equals(body)) t.fail(`${path} is not what was put`)
    }
    await eventually('nothing is staged', async () => (await stagedFiles(cluster)).length === 0, { withinMs: 60_000 })
    await eventually('nothing is unconfirmed', async () => (await unconfirmed(cluster)).length === 0, {
      withinMs: 90_000,
    })
    await waitForFullCopies(cluster, bodies.keys())
    t.strictSame(cluster.crashes(), [])
  },
)

t.test(
  'a node is killed at 10, 50 and 90 % of uploads: all succeed, and it has its copies soon after its return',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t)
    const client = cluster.client({ timeoutMs: 30_000 })
    const gate = new EventEmitter().setMaxListeners(0)
    let held = 0
    const uploads = [0.1, 0.5, 0.9, 0.1, 0.5, 0.9].map((fraction, index) => {
      const body = random.bytes(4_000_000)
      let isHeld = false
      const path = `raw/upload/${index}`
      const done = client.upload(path, body, bytes => {
        if (isHeld || bytes < fraction * body.length) return undefined
        isHeld = true
        held++
        return once(gate, 'open').then(() => undefined)
      })
      return { path, body, done }
    })
    await eventually('all are in the middle', () => held === uploads.length)
    const node = random.pick(cluster.nodes)
    await node.process.kill()
    const killedAt = performance.now()
    gate.emit('open')
    for (const { path, done } of uploads) t.equal(await done, 201, path)
    figure(t, 'upload-kill.end', performance.now() - killedAt, 'ms')
    await node.process.start()
    const backAt = performance.now()
    await waitForFullCopies(cluster, uploads.map(({ path }) => path), 60_000) // prettier-ignore
    figure(t, 'upload-kill.copies-back', performance.now() - backAt, 'ms')
    for (const { path, body } of uploads) t.ok((await client.get(path)).body.equals(body), path)
    t.strictSame(cluster.crashes(), [])
  },
)

t.test(
  'I1, I7: two of three zones are down: all is readable, writes are refused with 503, nothing is lost',
  async t => {
    const random = seededRandom(t)
    const history = new History()
    const cluster = await startCluster(t, { proxyFlags: ['--hot-cache-bytes', '0'] })
    const client = cluster.client({ history, timeoutMs: 30_000 })
    const bodies = new Map(
      Array.from({ length: 40 }, (_, index) => [
        `raw/zones/${index}`,
        random.bytes(random.pick([0, 500, 90_000, 900_000])),
      ]),
    )
    for (const [path, body] of bodies) t.equal((await client.put(path, body)).status, 201)
    await waitForFullCopies(cluster, bodies.keys())
    const [left, ...gone] = random.shuffled(cluster.nodes)
    await Promise.all(gone.map(node => node.process.kill()))
    for (const [path, body] of bodies) {
      const answer = await client.get(path)
      t.ok(answer.status === 200 && answer.body.equals(body), `${path}, from ${left!.id} alone: ${answer.status}`)
      figure(t, 'zones-down.read', answer.ms, 'ms')
    }
    for (const size of [300, 300_000]) {
      const answer = await client.put('raw/zones/new', random.bytes(size))
      t.equal(answer.status, 503, answer.body.toString())
      figure(t, 'zones-down.refused', answer.ms, 'ms')
    }
    t.equal((await client.get('raw/zones/new')).status, 404, 'what was refused is not there')
    await Promise.all(gone.map(node => node.process.start()))
    const backAt = performance.now()
    await eventually(
      'writes are taken again',
      async () => (await client.put('raw/zones/after', Buffer.from('x'))).status < 300,
    )
    figure(t, 'zones-down.back', performance.now() - backAt, 'ms')
    await client.getAll(history.paths)
    t.strictSame(history.problems(), [])
    await waitForFullCopies(cluster, await client.presentOf(history.paths))
    t.strictSame(cluster.crashes(), [])
  },
)
