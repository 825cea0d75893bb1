/** How `holdfast up` starts its storage nodes and its proxy, and whether they would take what they are given. Pure. */
import { join } from 'node:path'
import { readProxyConfig } from '../proxy/config.ts'
import type { ConfigSource } from '../shared/config.ts'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { readStorageNodeConfig } from '../storage-node/options.ts'
import { localNodes, replacedShardsOf, type ClusterFolder, type LocalNode } from './cluster-folder.ts'
import { nodeEnvironment } from './node-environment.ts'
import type { UpConfig } from './up-config.ts'

export interface Child {
  readonly args: readonly [command: string, ...flags: string[]]
  readonly env: NodeJS.ProcessEnv
}

interface Given {
  /** The data folder, absolute. */
  readonly folder: string
  readonly config: UpConfig
  /** Other settings (HOLDFAST_HOT_CACHE_BYTES…) reach the part that has them as they are; flags win over the environment. */
  readonly env: NodeJS.ProcessEnv
}
type Cluster = Pick<ClusterFolder, 'clusterId' | 'secret' | 'nodes' | 'adminPassword'>

export function nodeChild({ folder, config, env }: Given, cluster: Cluster, node: LocalNode): Child {
  const flags = ['--node', node.id, '--zone', node.zone, '--host', '127.0.0.1', '--port', String(node.port)]
  flags.push('--state-folder', join(folder, 'nodes', node.id))
  for (const shard of node.shards) flags.push('--shard', `${shard.id}=${shard.folder}`)
  return {
    args: ['storage-node', ...flags],
    env: {
      ...nodeEnvironment(env),
      HOLDFAST_SECRET: cluster.secret,
      HOLDFAST_CLUSTER_ID: cluster.clusterId,
      // A node refuses shards that are not its own.
      HOLDFAST_REPLACED_SHARDS: replacedShardsOf(node, cluster.nodes, config.replacedShards).join(','),
      HOLDFAST_LOG_LEVEL: 'info',
      // Each sync of a shard holds one of libuv's threads: with its default of four, reads would wait for writes.
      UV_THREADPOOL_SIZE: env['UV_THREADPOOL_SIZE'] ?? '12',
    },
  }
}

export function proxyChild({ folder, config, env }: Given, cluster: Cluster, postgresUrl: string): Child {
  const { host, port, workers, redisUrl } = config
  const flags = ['--host', host, '--port', String(port), '--workers', String(workers)]
  const nodes = cluster.nodes.map(node => `http://127.0.0.1:${node.port}`).join(',')
  flags.push('--state-folder', join(folder, 'proxy'), '--storage-nodes', nodes)
  return {
    args: ['proxy', ...flags],
    env: {
      ...env,
      HOLDFAST_SECRET: cluster.secret,
      HOLDFAST_CLUSTER_ID: cluster.clusterId,
      HOLDFAST_POSTGRES_URL: postgresUrl,
      HOLDFAST_ADMIN_PASSWORD: cluster.adminPassword,
      HOLDFAST_LOG_LEVEL: 'info',
      ...(redisUrl === undefined ? {} : { HOLDFAST_REDIS_URL: redisUrl }),
    },
  }
}

/**
 * Throws CONFIG_INVALID with all that the parts would refuse, before any of them is started, or anything is written. What they are not
 * given by a person stands here as it could be.
 */
export function checkChildren(given: Given): void {
  const nodes = localNodes(given.folder, [1, 2, 3])
  const cluster: Cluster = { clusterId: 'c', secret: 'x'.repeat(64), nodes, adminPassword: 'x'.repeat(20) }
  const problems = [
    ...nodes.flatMap(node => problemsOf(readStorageNodeConfig, nodeChild(given, cluster, node))),
    ...problemsOf(readProxyConfig, proxyChild(given, cluster, given.config.postgresUrl ?? 'postgres://x')),
  ]
  if (problems.length === 0) return
  const all = [...new Set(problems)]
  throw new HoldfastError('CONFIG_INVALID', `the configuration is wrong: ${all.join('; ')}`, { problems: all })
}

function problemsOf(read: (source: ConfigSource) => unknown, { args: [, ...args], env }: Child): readonly string[] {
  try {
    read({ args, env })
    return []
  } catch (error) {
    if (!isHoldfastError(error, 'CONFIG_INVALID')) throw error
    return error.data['problems'] as readonly string[]
  }
}
