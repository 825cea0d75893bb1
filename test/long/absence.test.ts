/** A node that was away for 40 days, while everything that could forget a deletion had its chance to: nothing that was deleted comes back. */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import t from 'tap'
import { fsck } from '../../cli/copies.ts'
import { gc } from '../../cli/gc.ts'
import { repo } from '../../cli/repo.ts'
import { task } from '../../cli/task.ts'
import { partitionOf } from '../../shared/partition.ts'
import { wirePath } from '../../shared/wire.ts'
import { findClocks } from '../support/clock.ts'
import type { Client } from '../support/client.ts'
import { startCluster, type Cluster, type NodeHandle } from '../support/cluster.ts'
import { askNode, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { seededRandom } from '../support/random.ts'
import { blobFiles } from '../support/shard-files.ts'

const days = 40

async function run(cluster: Cluster, command: typeof gc, ...args: string[]): Promise<{ code: number; text: string }> {
  const env = { HOLDFAST_URL: cluster.proxies[0]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  let text = ''
  const write = { out: (part: string) => void (text += part), err: (part: string) => void (text += part) }
  return { code: await command({ args, env }, write), text }
}

/** PostgreSQL cannot be told another time: what it wrote becomes older instead. */
async function grownOld(cluster: Cluster): Promise<void> {
  const database = new pg.Client({ connectionString: cluster.postgres.url })
  await database.connect()
  try {
    await database.query(`UPDATE artifacts SET updated_at = updated_at - interval '${days} days'`)
    await database.query('DELETE FROM repairs')
  } finally {
    await database.end()
  }
}

const segmentsOf = (node: NodeHandle): Promise<string[]> => readdir(join(node.shards[0]!.folder, 'log'))

/** What the node has of a path: put, delete, or nothing. */
async function wordOf(cluster: Cluster, node: NodeHandle, path: string): Promise<string> {
  const url = `${wirePath.references(node.shards[0]!.id, partitionOf('raw', path.slice(4)))}?key=${encodeURIComponent(path)}`
  const { status, body } = await askNode(cluster, node, url)
  return status === 200 ? (JSON.parse(body.toString()) as { op: string }).op : 'none'
}

async function proxySees(client: Client, up: number): Promise<void> {
  await eventually(`${up} nodes up`, async () => (await client.metric('holdfast_node_up')) === up, { withinMs: 30_000 })
}

t.test(
  'I16: what was deleted while a node was away for 40 days does not come back with it, with PostgreSQL away or not',
  { timeout: 280_000 },
  async t => {
    const random = seededRandom(t)
    const names = ['node-a', 'node-b', 'node-c', 'proxy-1', 'proxy-2']
    const clocks = await findClocks(t, names)
    if (clocks === undefined) t.comment('libfaketime is not there: the clocks stay right')
    const cluster = await startCluster(t, {
      proxies: 2,
      shardsPerNode: 1,
      proxyFlags: ['--gc-min-age-ms', '0', '--gc-hold-ms', '0', '--anti-entropy-ms', '1h'],
      nodeFlags: ['--segment-bytes-max', '1000000', '--compact-pause-ms', '300', '--compact-hold-ms', '100'],
      processEnv: id => clocks?.env(id) ?? {},
    })
    const [client, reader] = [0, 1].map(proxy => cluster.client({ proxy, timeoutMs: 30_000 })) as [Client, Client]
    t.equal((await run(cluster, repo, 'set', 'raw', '--trash-days', '0')).code, 0)
    const bodies = new Map<string, Buffer>()
    for (let number = 0; number < 32; number += 1) bodies.set(`raw/gone/${number}`, random.bytes(number % 4 === 0 ? 100_000 : 2_000)) // prettier-ignore
    for (let number = 0; number < 16; number += 1) bodies.set(`raw/kept/${number}`, random.bytes(2_000))
    for (const [path, body] of bodies) t.equal((await client.put(path, body)).status, 201)
    await waitForFullCopies(cluster, bodies.keys())
    const gone = [...bodies.keys()].filter(path => path.startsWith('raw/gone/'))
    const kept = [...bodies.keys()].filter(path => path.startsWith('raw/kept/'))
    const [away, ...others] = cluster.nodes as [NodeHandle, NodeHandle, NodeHandle]

    await away.process.kill()
    for (const path of gone) t.equal((await client.delete(path)).status, 204)
    const segments = await Promise.all(others.map(segmentsOf))
    for (const id of names.slice(1)) await clocks?.set(id, days * 24)
    await grownOld(cluster)
    await eventually('garbage is collected', async () => {
      const { text } = await run(cluster, gc, 'run', '--force')
      const files = await blobFiles(cluster)
      if (files.every(name => name.startsWith('node-a'))) return true
      throw new Error(text)
    }, { withinMs: 60_000, everyMs: 500 }) // prettier-ignore
    for (const name of ['housekeeping', 'empty-trash']) t.equal((await run(cluster, task, 'run', name, '--wait')).code, 0) // prettier-ignore
    // Every segment that has the deletions is compacted away, and the nodes start anew from what is left.
    const isRewritten = async (): Promise<boolean> => {
      for (let count = 0; count < 20; count += 1) await client.put('raw/kept/0', random.bytes(60_000))
      await run(cluster, gc, 'run', '--force')
      const now = await Promise.all(others.map(segmentsOf))
      return now.every((files, index) => !files.some(file => segments[index]!.includes(file)))
    }
    await eventually('the log is written anew', isRewritten, { withinMs: 90_000, everyMs: 500 })
    bodies.delete('raw/kept/0')
    for (const node of others) {
      await node.process.terminate()
      await node.process.start()
      await proxySees(client, 2)
    }

    // Nothing of all this has ever been asked of the second proxy: it can only believe the shards.
    await proxySees(reader, 2)
    await cluster.postgres.stop()
    await away.process.start()
    await proxySees(reader, 3)
    for (const path of gone) t.equal(await wordOf(cluster, away, path), 'put', 'it knows of no deletion')
    const seen = new Map<string, number>()
    const ask = async (paths: readonly string[], allowed: readonly number[], when: string): Promise<void> => {
      for (const path of paths) {
        const { status, body } = await reader.get(path)
        seen.set(`${when}: ${status}`, (seen.get(`${when}: ${status}`) ?? 0) + 1)
        if (!allowed.includes(status)) t.fail(`${when}: ${path} is answered ${status}`)
        if (status === 200) t.ok(bodies.get(path)?.equals(body))
      }
    }
    const part = (paths: readonly string[], which: number): string[] => paths.filter((_, at) => at % 4 === which)
    await ask(part(gone, 0), [404], 'all there')
    await ask(part(kept, 1), [200], 'all there')
    for (const [index, node] of others.entries()) {
      await node.process.kill()
      await proxySees(reader, 2)
      await ask(part(gone, 1 + index), [404, 503], `without ${node.id}`)
      await ask(part(kept, 2 + index), [200], `without ${node.id}`)
      if (index === 0) await node.process.start()
      await proxySees(reader, index === 0 ? 3 : 2)
    }
    await others[0].process.kill()
    await proxySees(reader, 1)
    await ask(part(gone, 3), [503], 'alone')
    t.comment(JSON.stringify(Object.fromEntries(seen)))

    for (const node of others) await node.process.start()
    await cluster.postgres.start()
    await proxySees(client, 3)
    await eventually('the deletions are on the node that was away', async () => {
      const words = await Promise.all(gone.map(path => wordOf(cluster, away, path)))
      return words.every(word => word === 'delete')
    }, { withinMs: 90_000, everyMs: 500 }) // prettier-ignore
    for (const path of gone) t.equal((await reader.get(path)).status, 404)
    await eventually('and the bytes are gone from it', async () => {
      await run(cluster, gc, 'run', '--force')
      return (await blobFiles(cluster)).length === 0
    }, { withinMs: 90_000, everyMs: 500 }) // prettier-ignore
    for (const path of kept) t.equal((await reader.get(path)).status, 200)
    await eventually('fsck is clean', async () => {
      const found = await run(cluster, fsck)
      if (found.code === 0) return true
      throw new Error(found.text)
    }, { withinMs: 60_000, everyMs: 500 }) // prettier-ignore
  },
)
