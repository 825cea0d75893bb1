/**
 * `npm run bench:gc [-- --blobs 20000 --files 500 --kept 100000]`: how fast unused blobs go. The product's own PostgreSQL and schema, three
 * storage nodes in three zones as `holdfast storage-node` runs them, three copies of each blob; the task runs in this process, as it does in
 * the primary. `--files`: so many of the blobs are files of 80 KiB, the others are 1 KiB in the log. `--kept`: rows of blobs that are named
 * and stay (no bytes). Each blob was named and lost its name; minimum age and hold are none, so one run does all of it.
 */
import { hash, randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import pg from 'pg'
import { pino } from 'pino'
import { startEmbeddedPostgres } from '../cli/embedded-postgres.ts'
import type { CollectionStore } from '../proxy/metadata/collection-types.ts'
import { openMetadata } from '../proxy/metadata/open-metadata.ts'
import type { Metadata } from '../proxy/metadata/types.ts'
import { ClusterView } from '../proxy/routing/cluster-view.ts'
import { HealthTable } from '../proxy/routing/health.ts'
import { type NodeClient, NodeClients } from '../proxy/routing/node-client.ts'
import { collectGarbage } from '../proxy/tasks/collect-garbage.ts'
import { type Digest, newGeneration, type NodeId, type Zone } from '../shared/ids.ts'
import { buildClusterMap } from '../shared/placement.ts'
import { cpuSeconds } from './processes.ts'
import { type BlobBody, type Node, put, secret, startNode, stop } from './storage-nodes.ts'

const filledTogether = 500
const ids = ['a', 'b', 'c']
const { values: args } = parseArgs({
  options: {
    blobs: { type: 'string', default: '20000' },
    files: { type: 'string', default: '500' },
    kept: { type: 'string', default: '100000' },
  },
})

/** Where the time of the run went: seconds by name, counted while they last, also at once. */
class Clock {
  readonly seconds = new Map<string, number>()

  async time<Result>(name: string, work: () => Promise<Result>): Promise<Result> {
    const startedAt = performance.now()
    try {
      return await work()
    } finally {
      this.seconds.set(name, (this.seconds.get(name) ?? 0) + (performance.now() - startedAt) / 1_000)
    }
  }

  /** The same object, its methods timed by their names. */
  around<Target extends object>(target: Target, prefix: string): Target {
    return new Proxy(target, {
      get: (object, name) => {
        const value: unknown = Reflect.get(object, name, object)
        if (typeof value !== 'function') return value
        return (...values: unknown[]) =>
          this.time(`${prefix} ${String(name)}`, async () => Reflect.apply(value, object, values) as unknown)
      },
    })
  }
}

await main()

async function main(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-gc-'))
  const nodes: Node[] = []
  const log = pino({ level: 'silent' })
  const server = await startEmbeddedPostgres({ folder, log })
  try {
    for (const id of ids) nodes.push(await startNode(folder, id))
    const metadata = await openMetadata({ url: server.url, log })
    try {
      const client = new pg.Client({ connectionString: server.url })
      await client.connect()
      await fill(client, metadata, nodes)
      await client.end()
      await measure(metadata, nodes, server.pid ?? 0)
    } finally {
      await metadata.close()
    }
  } finally {
    for (const node of nodes) await stop(node)
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
}

async function fill(client: pg.Client, metadata: Metadata, nodes: readonly Node[]): Promise<void> {
  const { id } = await metadata.createRepository({ name: 'bench', trashDays: 0 })
  const [blobs, files] = [Number(args.blobs), Number(args.files)]
  for (let start = 0; start < blobs; start += filledTogether) {
    const count = Math.min(filledTogether, blobs - start)
    const bodies = Array.from({ length: count }, (_, at) => bodyOf(start + at < files ? 80 * 1024 : 1024))
    await Promise.all(nodes.map(node => put(node, bodies)))
    await insert(client, id, 'unused', bodies.map(({ body, ...key }) => ({ ...key, bytes: body.length }))) // prettier-ignore
  }
  await client.query(
    `WITH kept AS (
      INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1)
      SELECT sha256(i::text::bytea), lpad(to_hex(i), 12, '0'), i % 4096, 1000, '', '' FROM generate_series(1, $1::int) i RETURNING digest)
    INSERT INTO artifacts (repository_id, path, digest, version, created_by, created_at, updated_at, outbox_seq)
    SELECT $2, 'kept/' || encode(digest, 'hex'), digest, nextval('artifact_versions'), 'bench', now(), now(), 0 FROM kept`,
    [Number(args.kept), id],
  )
  await client.query(`UPDATE artifacts SET digest = NULL WHERE path LIKE 'unused/%'`)
  await client.query('VACUUM ANALYZE')
  await client.query('CHECKPOINT')
}

function bodyOf(size: number): BlobBody {
  const body = randomBytes(size)
  const digest = hash('sha256', body) as Digest
  return { partition: Number.parseInt(digest.slice(0, 3), 16), digest, generation: newGeneration(), body }
}

async function insert(
  client: pg.Client,
  repository: number,
  folder: string,
  blobs: readonly { digest: string; generation: string; partition: number; bytes: number }[],
): Promise<void> {
  await client.query(
    `WITH new AS (
      INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1)
      SELECT decode(d, 'hex'), g, p, b, '', '' FROM unnest($3::text[], $4::text[], $5::int[], $6::bigint[]) AS x (d, g, p, b)
      RETURNING digest)
    INSERT INTO artifacts (repository_id, path, digest, version, created_by, created_at, updated_at, outbox_seq)
    SELECT $1, $2 || '/' || encode(digest, 'hex'), digest, nextval('artifact_versions'), 'bench', now(), now(), 0 FROM new`,
    [repository, folder, ...(['digest', 'generation', 'partition', 'bytes'] as const).map(key => blobs.map(blob => blob[key]))], // prettier-ignore
  )
}

async function measure(metadata: Metadata, nodes: readonly Node[], postgres: number): Promise<void> {
  const view = new ClusterView(
    buildClusterMap({
      clusterId: 'bench',
      replicas: 3,
      spread: 'strict',
      nodes: nodes.map(({ url }, at) => ({ id: ids[at] as NodeId, zone: ids[at] as Zone, url })),
      shards: nodes.map(({ shard }, at) => ({ id: shard, node: ids[at] as NodeId, weight: 1 })),
    }),
  )
  const health = new HealthTable({ now: () => performance.now() })
  const clients = new NodeClients({ clusterSecret: secret, view, health })
  const token = await metadata.issueToken('primary', 'bench')
  try {
    for (const what of ['with everything that is unused', 'again, with nothing to do']) {
      await runOnce(what, { metadata, view, clients, token, nodes, postgres })
    }
  } finally {
    await clients.close()
  }
}

interface Setting {
  readonly metadata: Metadata
  readonly view: ClusterView
  readonly clients: NodeClients
  readonly token: number
  readonly nodes: readonly Node[]
  readonly postgres: number
}

async function runOnce(what: string, { metadata, view, clients, token, nodes, postgres }: Setting): Promise<void> {
  const clock = new Clock()
  const lines: string[] = []
  const job = collectGarbage({
    metadata,
    collection: clock.around<CollectionStore>(metadata.collection, 'sql'),
    incarnation: () => metadata.incarnation,
    view,
    clients: {
      ofShard: shard => {
        const client = clients.ofShard(shard)
        const requestJson: NodeClient['requestJson'] = (method, path, ...rest) =>
          clock.time(`node ${path.replace(/^\/v1\/(\w+).*/, '$1')}`, () => client.requestJson(method, path, ...rest))
        return { requestJson }
      },
    },
    ages: { minAgeMs: 0, holdMs: 0 },
  })
  const pids = nodes.map(node => node.process.pid ?? 0)
  const used = () => ({ nodes: cpuSeconds(pids), postgres: cpuSeconds([postgres]), primary: process.cpuUsage() })
  const before = used()
  const startedAt = performance.now()
  const signal = new AbortController().signal
  let sweptFrom: number | undefined
  await job.run({
    runId: 1,
    term: { token, signal },
    checkpoint: undefined,
    params: { force: true },
    // As much as the real one: a row that is durable.
    save: checkpoint => {
      if (checkpoint.phase === 'sweep') sweptFrom ??= performance.now()
      const entry = { user: 'bench', action: 'save', subject: JSON.stringify(checkpoint), outcome: 'ok', address: '' }
      return clock.time('sql save', () => metadata.audit(entry))
    },
    progress: () => {},
    log: line => void lines.push(line),
    pause: async () => {},
  })
  const endedAt = performance.now()
  const seconds = (endedAt - startedAt) / 1_000
  const sweep = (endedAt - (sweptFrom ?? endedAt)) / 1_000
  const after = used()
  const own = (after.primary.user + after.primary.system - before.primary.user - before.primary.system) / 1e6
  const purged = Number(/purged: (\d+) blobs/.exec(lines.at(-1) ?? '')?.[1] ?? 0)
  const list = [...clock.seconds].sort(([, one], [, other]) => other - one).map(([name, time]) => `${name} ${time.toFixed(2)}`) // prettier-ignore
  console.log(
    `${what}: ${purged} blobs in ${seconds.toFixed(2)} s (${sweep.toFixed(2)} s of it the sweep), ${((purged / seconds) * 60).toFixed(0)} blobs a minute on each of ${nodes.length} nodes\n` +
      `  CPU seconds: PostgreSQL ${(after.postgres - before.postgres).toFixed(2)}, nodes together ${(after.nodes - before.nodes).toFixed(2)}, primary ${own.toFixed(2)}\n` +
      `  seconds waited (several at once count each): ${list.join(', ')}`,
  )
}
