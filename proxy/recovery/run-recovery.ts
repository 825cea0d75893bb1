/** A recovery as a process of its own: what it needs of a proxy's parts, built and closed. */
import { randomBytes } from 'node:crypto'
import type { Logger } from 'pino'
import { request } from 'undici'
import { decodeClusterMap, type ClusterMap } from '../../shared/cluster-map.ts'
import { HoldfastError } from '../../shared/errors.ts'
import { wireAuthorization, wirePath } from '../../shared/wire.ts'
import { loadPasswords } from '../access/passwords.ts'
import { adminName } from '../first-start.ts'
import { openMetadata } from '../metadata/open-metadata.ts'
import { ReplicatedBlobReader } from '../routing/blob-reader.ts'
import { ClusterView } from '../routing/cluster-view.ts'
import { HealthTable } from '../routing/health.ts'
import { NodeClients } from '../routing/node-client.ts'
import { ShardReferences } from '../routing/reference-store.ts'
import { WriteContext } from '../routing/write-context.ts'
import { askNodes, type FoundNode, withNewAddresses } from '../topology/first-map.ts'
import { recover, type RecoveryDeps, type RecoveryOptions, type RecoveryReport } from './recover.ts'

const askMs = 10_000

export interface RecoveryConfig {
  readonly postgresUrl: string
  readonly secret: string
  /** Addresses of some of the nodes; the others are found through the cluster map. */
  readonly storageNodes: readonly string[]
  readonly adminPassword: string | undefined
}

export interface FinishedRecovery extends RecoveryReport {
  /** Of an administrator that was made because none could be restored: to be shown once. */
  readonly newPassword?: string
}

/** Rejects as `recover` does, with METADATA_UNAVAILABLE, and with NODE_UNREACHABLE if no storage node answers. */
export async function runRecovery(
  config: RecoveryConfig,
  options: RecoveryOptions,
  tools: { log: Logger; progress: (line: string) => void; signal: AbortSignal },
): Promise<FinishedRecovery> {
  const { log, progress, signal } = tools
  const { found, map } = await findCluster(config, signal)
  const metadata = await openMetadata({ url: config.postgresUrl, log, clusterId: map.clusterId })
  try {
    const view = new ClusterView((await metadata.loadClusterMap(map.epoch)) ?? map)
    const password = config.adminPassword ?? randomBytes(15).toString('base64url')
    const newAdmin = async () => ({ name: adminName, passwordHash: await (await loadPasswords()).hash(password) })
    const report = await withNodes(config, view, found, parts =>
      recover({ ...parts, metadata, view, secret: config.secret, newAdmin, progress }, options),
    )
    return report.adminMade && config.adminPassword === undefined ? { ...report, newPassword: password } : report
  } finally {
    await metadata.close()
  }
}

type NodeParts = Pick<RecoveryDeps, 'clients' | 'references' | 'reader' | 'statuses'>

async function withNodes<Result>(
  { secret }: RecoveryConfig,
  view: ClusterView,
  found: readonly FoundNode[],
  work: (parts: NodeParts) => Promise<Result>,
): Promise<Result> {
  const health = new HealthTable({ now: () => performance.now() })
  const clients = new NodeClients({ clusterSecret: secret, view, health })
  const context = new WriteContext({ view, health, clients })
  try {
    const statuses = found.map(({ status }) => status)
    for (const { id } of view.current().map.nodes) {
      health.checked(
        id,
        statuses.find(({ node }) => node === id),
      )
    }
    const references = new ShardReferences({ context, view, health, clients })
    const reader = new ReplicatedBlobReader({ view, clients, health, zone: undefined, onBadReplica: () => {} })
    return await work({ clients, references, reader, statuses })
  } finally {
    context.close()
    await clients.close()
  }
}

/** The newest map any node has, and all nodes that answer. */
async function findCluster(
  config: RecoveryConfig,
  signal: AbortSignal,
): Promise<{ found: readonly FoundNode[]; map: ClusterMap }> {
  const named = await askNodes(config, signal)
  const maps = (await Promise.all(named.map(({ url }) => mapOf(config, url)))).filter(map => map !== undefined)
  const newest = maps.reduce<ClusterMap | undefined>(
    (a, b) => (a === undefined || b.epoch > a.epoch ? b : a),
    undefined,
  )
  if (newest === undefined) {
    throw new HoldfastError(
      'NODE_UNREACHABLE',
      'no storage node with a cluster map answers: are --storage-nodes and HOLDFAST_SECRET right?',
    )
  }
  const others = newest.nodes.filter(({ id }) => !named.some(({ status }) => status.node === id)).map(({ url }) => url)
  const found = [...named, ...(await askNodes({ ...config, storageNodes: others }, signal))]
  const mine = found.filter(({ status }) => status.clusterId === newest.clusterId)
  return { found: mine, map: withNewAddresses(newest, mine) ?? newest }
}

async function mapOf({ secret }: RecoveryConfig, url: string): Promise<ClusterMap | undefined> {
  const headers = { authorization: wireAuthorization(secret) }
  const answer = await request(url + wirePath.clusterMap, { headers, signal: AbortSignal.timeout(askMs) })
  const text = await answer.body.text()
  return answer.statusCode === 200 ? decodeClusterMap(text) : undefined // a node that never had one
}
