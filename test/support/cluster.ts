/** A real cluster for a test: PostgreSQL, maybe Redis, storage nodes in zones and proxies, each a process of its own. */
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { decodeClusterMap, PlacementView } from '../../shared/cluster-map.ts'
import { parseShardId, type ShardId } from '../../shared/ids.ts'
import { wireAuthorization } from '../../shared/wire.ts'
import { ChaosRelay } from './chaos.ts'
import { Client, type ClientOptions } from './client.ts'
import { eventually } from './eventually.ts'
import { startTestPostgres, type TestPostgres } from './postgres.ts'
import { TestProcess } from './process.ts'
import { startTestRedis, type TestRedis } from './redis.ts'

export interface ClusterOptions {
  readonly proxies?: number
  readonly zones?: number
  readonly nodesPerZone?: number
  readonly shardsPerNode?: number
  readonly redis?: boolean
  /** Relays stand between everybody and the nodes: `node.chaos`. */
  readonly chaos?: boolean
  readonly logLevel?: string
  readonly proxyFlags?: readonly string[]
  readonly nodeFlags?: readonly string[]
  /** Changes the addresses under which the proxies find Redis and PostgreSQL: a place for a relay. */
  readonly redisUrl?: (url: string) => Promise<string>
  /** Where a shard's folder is, instead of a folder of the test. */
  readonly shardFolder?: (shard: string) => Promise<string | undefined>
  /** Of the build that all processes start with: `process.mainFile` replaces it for the next start of one. */
  readonly mainFile?: string
  readonly nodeWrapper?: (node: string) => readonly string[] | undefined
  readonly proxyWrapper?: (proxy: string) => readonly string[] | undefined
  /** Nobody is told the id of the cluster: the first proxy makes it up, and nodes learn it from the first map. */
  readonly unnamed?: boolean
  /** More variables for the process of this node or proxy. */
  readonly processEnv?: (id: string) => Readonly<Record<string, string>>
}

export interface ShardHandle {
  readonly id: ShardId
  readonly folder: string
}

export interface NodeHandle {
  readonly id: string
  readonly zone: string
  /** Reaches the node itself, past any relay. */
  readonly url: string
  readonly shards: readonly ShardHandle[]
  readonly process: TestProcess
  readonly chaos: ChaosRelay | undefined
  /** What the process is started with; read at each start. */
  readonly args: string[]
}

export interface ProxyHandle {
  readonly id: string
  readonly zone: string
  readonly stateFolder: string
  readonly process: TestProcess
  readonly url: string
}

export const replicas = 3

/** Resolves when every process is ready and the proxies answer `/readyz`. Everything ends with the test. */
export async function startCluster(t: Test, options: ClusterOptions = {}): Promise<Cluster> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-cluster-'))
  const cluster = new Cluster(folder, options)
  t.teardown(async () => {
    if (!t.passing()) t.comment(await cluster.logTails())
    await cluster.close()
    await rm(folder, { recursive: true, force: true })
  })
  const [postgres, redis] = await Promise.all([
    startTestPostgres(t),
    options.redis === true ? startTestRedis(t) : undefined,
  ])
  await cluster.start(postgres, redis)
  return cluster
}

export class Cluster {
  readonly folder: string
  readonly secret = randomBytes(24).toString('hex')
  readonly clusterId = 'test-' + randomBytes(6).toString('hex')
  readonly adminPassword = randomBytes(12).toString('base64url')
  readonly authorization = wireAuthorization(this.secret)
  readonly #options: ClusterOptions
  readonly #clients: Client[] = []
  nodes: readonly NodeHandle[] = []
  proxies: readonly ProxyHandle[] = []
  #postgres: TestPostgres | undefined
  #redis: TestRedis | undefined

  constructor(folder: string, options: ClusterOptions) {
    this.folder = folder
    this.#options = options
  }

  get postgres(): TestPostgres {
    return present(this.#postgres, 'PostgreSQL')
  }

  get redis(): TestRedis {
    return present(this.#redis, 'Redis')
  }

  async start(postgres: TestPostgres, redis: TestRedis | undefined): Promise<void> {
    this.#postgres = postgres
    this.#redis = redis
    await mkdir(join(this.folder, 'log'))
    const { zones = 3, nodesPerZone = 1, proxies = 1 } = this.#options
    const names = Array.from({ length: zones * nodesPerZone }, (_, index) => ({
      id: `node-${zoneName(index % zones)}${nodesPerZone === 1 ? '' : Math.floor(index / zones) + 1}`,
      zone: zoneName(index % zones),
    }))
    this.nodes = await Promise.all(names.map(({ id, zone }) => this.#node(id, zone)))
    await Promise.all(this.nodes.map(node => node.process.start()))
    const storageNodes = this.nodes.map(node => (node.chaos ? `http://127.0.0.1:${node.chaos.port}` : node.url))
    const redisUrl = redis === undefined ? undefined : ((await this.#options.redisUrl?.(redis.url)) ?? redis.url)
    this.proxies = await Promise.all(
      Array.from({ length: proxies }, (_, index) =>
        this.#proxy(`proxy-${index + 1}`, zoneName(index % zones), storageNodes, redisUrl),
      ),
    )
    await Promise.all(this.proxies.map(proxy => proxy.process.start()))
  }

  /** A client of one proxy (the first one) or of what stands before them, as the administrator. Closed with the cluster. */
  client(options: ClientOptions & { proxy?: number; url?: string; anonymous?: boolean } = {}): Client {
    const { proxy = 0, url = present(this.proxies[proxy], `proxy ${proxy}`).url, anonymous = false, ...rest } = options
    const client = new Client(url, { ...(anonymous ? {} : { password: this.adminPassword }), ...rest })
    this.#clients.push(client)
    return client
  }

  node(id: string): NodeHandle {
    return present(
      this.nodes.find(node => node.id === id),
      id,
    )
  }

  /** The node that has this shard. */
  nodeOf(shard: ShardId): NodeHandle {
    return present(
      this.nodes.find(node => node.shards.some(({ id }) => id === shard)),
      shard,
    )
  }

  /** Names one more shard folder in the node's configuration and restarts it. */
  async giveShard(id: string): Promise<ShardHandle> {
    const node = this.node(id)
    const shard = present(parseShardId(`${id}-${node.shards.length + 1}`), id)
    const handle = { id: shard, folder: join(this.folder, 'shards', shard) }
    node.args.push('--shard', `${shard}=${handle.folder}`)
    await node.process.terminate()
    await node.process.start()
    this.nodes = this.nodes.map(one => (one.id === id ? { ...one, shards: [...one.shards, handle] } : one))
    return handle
  }

  /** Starts one more node, which no proxy knows of yet. */
  async addNode(id: string, zone: string): Promise<NodeHandle> {
    const node = await this.#node(id, zone)
    this.nodes = [...this.nodes, node]
    await node.process.start()
    return node
  }

  inZone(zone: string): readonly NodeHandle[] {
    return this.nodes.filter(node => node.zone === zone)
  }

  /** The cluster map as the first proxy keeps it on its disk. */
  async placement(): Promise<PlacementView> {
    const { stateFolder } = present(this.proxies[0], 'proxy')
    return new PlacementView(decodeClusterMap(await readFile(join(stateFolder, 'cluster-map.json'), 'utf8')))
  }

  /** Resolves when every proxy believes that every node is well. */
  async allNodesUp(withinMs = 20_000): Promise<void> {
    for (const { url } of this.proxies) {
      const client = new Client(url)
      const allUp = async (): Promise<boolean> => (await client.metric('holdfast_node_up')) === this.nodes.length
      await eventually(`all nodes up, as ${url} sees it`, allUp, { withinMs }).finally(() => client.close())
    }
  }

  /** Processes that ended although nobody had asked them to. */
  crashes(): string[] {
    return [...this.nodes, ...this.proxies].filter(({ process }) => process.crashes > 0).map(({ id }) => id)
  }

  async logTails(): Promise<string> {
    const all = [...this.nodes, ...this.proxies]
    const tails = await Promise.all(all.map(async ({ id, process }) => `--- ${id}\n${await process.logTail()}`))
    return tails.join('\n')
  }

  async close(): Promise<void> {
    await Promise.all(this.#clients.map(client => client.close()))
    await Promise.all([...this.proxies, ...this.nodes].map(({ process }) => process.kill()))
    for (const { chaos } of this.nodes) await chaos?.close()
  }

  get #clusterIdEnv(): Record<string, string> {
    return this.#options.unnamed === true ? {} : { HOLDFAST_CLUSTER_ID: this.clusterId }
  }

  get #build(): { mainFile?: string } {
    const { mainFile } = this.#options
    return mainFile === undefined ? {} : { mainFile }
  }

  async #node(id: string, zone: string): Promise<NodeHandle> {
    const port = await freePort()
    const { shardsPerNode = 2, logLevel = 'info', nodeFlags = [], chaos = false } = this.#options
    const shards = await Promise.all(
      Array.from({ length: shardsPerNode }, async (_, index): Promise<ShardHandle> => {
        const shard = present(parseShardId(`${id}-${index + 1}`), id)
        return {
          id: shard,
          folder: (await this.#options.shardFolder?.(shard)) ?? join(this.folder, 'shards', shard),
        }
      }),
    )
    const flags = ['--node', id, '--zone', zone, '--host', '127.0.0.1', '--port', String(port)]
    flags.push('--state-folder', join(this.folder, 'nodes', id), '--log-level', logLevel)
    for (const shard of shards) flags.push('--shard', `${shard.id}=${shard.folder}`)
    const wrapper = this.#options.nodeWrapper?.(id)
    const args = ['storage-node', ...flags, ...nodeFlags]
    const process = new TestProcess({
      name: id,
      args,
      env: {
        HOLDFAST_SECRET: this.secret,
        ...this.#clusterIdEnv,
        ...this.#options.processEnv?.(id),
      },
      logFile: join(this.folder, 'log', `${id}.log`),
      ...this.#build,
      ...(wrapper === undefined ? {} : { wrapper }),
    })
    const relay = chaos ? new ChaosRelay({ host: '127.0.0.1', port }) : undefined
    await relay?.listen()
    return { id, zone, url: `http://127.0.0.1:${port}`, shards, process, chaos: relay, args }
  }

  async #proxy(
    id: string,
    zone: string,
    storageNodes: readonly string[],
    redisUrl: string | undefined,
  ): Promise<ProxyHandle> {
    const port = await freePort()
    const stateFolder = join(this.folder, 'proxies', id)
    const { logLevel = 'info', proxyFlags = [] } = this.#options
    const wrapper = this.#options.proxyWrapper?.(id)
    const flags = ['--host', '127.0.0.1', '--port', String(port), '--state-folder', stateFolder, '--zone', zone]
    flags.push('--storage-nodes', storageNodes.join(','), '--log-level', logLevel)
    const process = new TestProcess({
      name: id,
      args: ['proxy', ...flags, ...proxyFlags],
      env: {
        HOLDFAST_SECRET: this.secret,
        ...this.#clusterIdEnv,
        HOLDFAST_POSTGRES_URL: this.postgres.url,
        HOLDFAST_ADMIN_PASSWORD: this.adminPassword,
        ...(redisUrl === undefined ? {} : { HOLDFAST_REDIS_URL: redisUrl }),
        ...this.#options.processEnv?.(id),
      },
      logFile: join(this.folder, 'log', `${id}.log`),
      ...this.#build,
      ...(wrapper === undefined ? {} : { wrapper }),
    })
    return { id, zone, stateFolder, process, url: `http://127.0.0.1:${port}` }
  }
}

const zoneName = (index: number): string => String.fromCharCode(97 + index)

function present<Value>(value: Value | undefined, what: string): Value {
  if (value === undefined) throw new Error(`this cluster has no ${what}`)
  return value
}

/** Below the range the kernel gives to connections: nobody takes the port while its process is being restarted. */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries++) {
    const port = 10_000 + Math.floor(Math.random() * 22_000)
    const server = createServer()
    const free = await new Promise<boolean>(resolve => {
      server.once('error', () => resolve(false))
      server.listen({ port, host: '127.0.0.1', exclusive: true }, () => server.close(() => resolve(true)))
    })
    if (free) return port
  }
  throw new Error('no free port')
}
