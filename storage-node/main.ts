/** A storage node in this process: its parts, in order, and the end in reverse. */
import type { Logger } from 'pino'
import { version } from '../shared/version.ts'
import type { StorageNodeConfig } from './config.ts'
import { StorageNode } from './node.ts'
import { WireServer } from './server.ts'
import type { Clock } from './shard.ts'
import { nodeFs, type StoreFs } from './store-fs.ts'

export type { StorageNodeConfig } from './config.ts'

export interface RunningStorageNode {
  /** Where the wire is served. */
  readonly url: string
  /** Drains (`drainMs`, else the configured one), makes everything durable, frees it. Safe to call twice. */
  readonly close: (drainMs?: number) => Promise<void>
}

const systemClock: Clock = { now: () => Date.now(), monotonic: () => performance.now() }

/**
 * Resolves when the node serves. A shard that cannot be opened is 'failed' in its status and the others serve. Rejects with
 * DATA_IN_USE when another process has this node's folders, CONFIG_INVALID when they belong to another cluster.
 */
export async function runStorageNode(
  config: StorageNodeConfig,
  log: Logger,
  { fs = nodeFs, clock = systemClock }: { fs?: StoreFs; clock?: Clock } = {},
): Promise<RunningStorageNode> {
  const node = new StorageNode(config, { fs, log, clock, version })
  await node.start()
  const server = new WireServer(node, log)
  let url: string
  try {
    url = await server.listen()
  } catch (error) {
    await node.close()
    throw error
  }
  log.info({ url, node: config.node, zone: config.zone }, 'storage node serves')
  let closing: Promise<void> | undefined
  const close = async (drainMs: number) => {
    await server.close(drainMs)
    await node.close()
    log.info('storage node is closed')
  }
  return { url, close: (drainMs = node.limits.drainMs) => (closing ??= close(drainMs)) }
}
