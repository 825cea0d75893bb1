/**
 * The first cluster map, and the addresses of nodes that moved. A new cluster asks the storage nodes named in the configuration who
 * they are; once all have answered, the primary computes the table and publishes epoch 1.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { request } from 'undici'
import { sealClusterMap, type ClusterMap, type MapNode } from '../../shared/cluster-map.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { buildClusterMap } from '../../shared/placement.ts'
import { wireAuthorization, wirePath, type NodeStatus } from '../../shared/wire.ts'
import type { Coordinator } from '../coordination/types.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import { primaryRole, type PrimaryTask } from '../tasks/primary.ts'

const pauseMs = 250
const askMs = 2_000
/** How long a start waits for its turn to publish new addresses, in ms. Another proxy is primary then, and will follow them itself. */
const turnMs = 5_000

export interface FirstMapDeps {
  readonly metadata: Pick<Metadata, 'loadClusterMap' | 'publishClusterMap' | 'issueToken' | 'clusterId'>
  readonly coordinator: Pick<Coordinator, 'acquire'>
  readonly log: Logger
}

export interface FirstMapOptions {
  /** `http://host:port` of each storage node of a new cluster. */
  readonly storageNodes: readonly string[]
  readonly replicas: number
  readonly secret: string
}

export interface FoundNode {
  readonly url: string
  readonly status: NodeStatus
}

/** The newest map of the cluster; made if there is none yet. Waits as long as it takes, until `signal` aborts. */
export async function firstClusterMap(
  deps: FirstMapDeps,
  options: FirstMapOptions,
  signal: AbortSignal,
): Promise<ClusterMap> {
  let told = ''
  const startedAt = performance.now()
  for (;;) {
    signal.throwIfAborted()
    const found = await askNodes(options, signal)
    const map = await deps.metadata.loadClusterMap()
    if (map !== undefined && withNewAddresses(map, found) === undefined) return map
    const written = found.find(({ status }) => status.shards.some(({ newest }) => newest !== undefined))
    if (map === undefined && written !== undefined) {
      throw new HoldfastError(
        'CONFIG_INVALID',
        `the database is empty, but the node at ${written.url} has artifacts: restore the database, or run 'holdfast metadata rebuild'`,
        { url: written.url },
      )
    }
    const silent = options.storageNodes.filter(url => !found.some(node => node.url === url))
    const waiting = map === undefined && silent.length > 0 ? `waiting for storage nodes: ${silent.join(', ')}` : ''
    if (waiting !== told && waiting !== '') deps.log.info({ silent }, 'waiting for storage nodes')
    told = waiting
    if (map !== undefined || (silent.length === 0 && found.length > 0)) {
      const published =
        map === undefined
          ? await publishFirst(deps, buildClusterMap(topologyOf(deps.metadata.clusterId, options.replicas, found)))
          : await publishAsPrimary(deps, () => withNewAddresses(map, found))
      if (published !== undefined) return published
      if (map !== undefined && performance.now() - startedAt > turnMs) return map
    } else if (options.storageNodes.length === 0) {
      throw new HoldfastError('CONFIG_INVALID', 'a new cluster needs --storage-nodes: the addresses of its first nodes')
    }
    await sleep(pauseMs, undefined, { signal })
  }
}

/** The topology that the nodes themselves declare. Pure. */
export function topologyOf(
  clusterId: string,
  replicas: number,
  found: readonly FoundNode[],
): Parameters<typeof buildClusterMap>[0] {
  for (const { url, status } of found) {
    if (status.clusterId !== '' && status.clusterId !== clusterId) {
      throw new HoldfastError(
        'TOPOLOGY_INVALID',
        `the node at ${url} belongs to another cluster (${status.clusterId})`,
        { url },
      )
    }
  }
  return {
    clusterId,
    replicas,
    spread: 'strict',
    nodes: found.map(({ url, status }) => ({ id: status.node, zone: status.zone, url })),
    shards: found.flatMap(({ status }) => status.shards.map(({ id, weight }) => ({ id, node: status.node, weight }))),
  }
}

/** The map of the next epoch with the addresses at which its nodes answered; undefined if none has moved. Pure. */
export function withNewAddresses(map: ClusterMap, found: readonly FoundNode[]): ClusterMap | undefined {
  const urls = new Map(
    found.filter(({ status }) => status.clusterId === map.clusterId).map(({ url, status }) => [status.node, url]),
  )
  const nodes = map.nodes.map((node): MapNode => ({ ...node, url: urls.get(node.id) ?? node.url }))
  if (nodes.every((node, index) => node.url === map.nodes[index]?.url)) return undefined
  return sealClusterMap({ ...map, epoch: map.epoch + 1, nodes })
}

/**
 * For the primary: while a node does not answer where the map says, it may be found at one of the addresses of the configuration; the
 * map follows it there.
 */
export function followAddresses(
  deps: {
    metadata: Pick<Metadata, 'publishClusterMap'>
    view: Pick<ClusterView, 'current' | 'replace'>
    health: Pick<HealthTable, 'nodes'>
    log: Logger
  },
  options: FirstMapOptions,
): PrimaryTask {
  return {
    name: 'follow-node-addresses',
    pauseMs: 5_000,
    async step(term) {
      if (deps.health.nodes().every(({ state }) => state !== 'down')) return 'idle'
      const map = withNewAddresses(deps.view.current().map, await askNodes(options, term.signal))
      if (map === undefined || !(await deps.metadata.publishClusterMap(map, term.token))) return 'idle'
      deps.view.replace(map)
      deps.log.info({ epoch: map.epoch }, 'cluster map published: a storage node has another address')
      return 'idle'
    },
  }
}

/**
 * Before there is a map there is no primary that could be disturbed, and of several proxies that start at once the fencing token
 * and the epoch let one win. So nobody waits for a lease here: a young Redis gives none until it is sure that it has forgotten none.
 */
async function publishFirst({ metadata, log }: FirstMapDeps, map: ClusterMap): Promise<ClusterMap | undefined> {
  try {
    const token = await metadata.issueToken(primaryRole, 'first-map')
    if (!(await metadata.publishClusterMap(map, token))) return undefined
    log.info({ epoch: map.epoch, nodes: map.nodes.length, shards: map.shards.length }, 'cluster map published')
    return map
  } catch (error) {
    if (isHoldfastError(error, 'LEASE_LOST')) return undefined // another proxy starts at the same time
    throw error
  }
}

async function publishAsPrimary(
  deps: FirstMapDeps,
  make: () => ClusterMap | undefined,
): Promise<ClusterMap | undefined> {
  const leadership = await deps.coordinator.acquire(primaryRole)
  if (leadership === undefined) return undefined
  try {
    const map = make()
    if (map === undefined || !(await deps.metadata.publishClusterMap(map, leadership.token))) return undefined
    deps.log.info({ epoch: map.epoch, nodes: map.nodes.length, shards: map.shards.length }, 'cluster map published')
    return map
  } finally {
    await leadership.release()
  }
}

/** Those that answer. */
export async function askNodes(
  { storageNodes, secret }: Pick<FirstMapOptions, 'storageNodes' | 'secret'>,
  signal: AbortSignal,
): Promise<FoundNode[]> {
  const answers = await Promise.all(
    storageNodes.map(async (url): Promise<FoundNode | undefined> => {
      const status = await askNode(url, secret, signal)
      return status && { url, status }
    }),
  )
  return answers.filter(answer => answer !== undefined)
}

/** What the node at this address says of itself; undefined: nobody answers there, or no node of ours. */
export async function askNode(url: string, secret: string, signal?: AbortSignal): Promise<NodeStatus | undefined> {
  const timeout = AbortSignal.timeout(askMs)
  try {
    const answer = await request(url + wirePath.status, {
      headers: { authorization: wireAuthorization(secret) },
      signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]),
    })
    const body = await answer.body.json()
    return answer.statusCode === 200 ? (body as NodeStatus) : undefined
  } catch {
    return undefined // not up yet: the caller says for whom it waits
  }
}
