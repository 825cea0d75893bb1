/** Starts a storage node; see `runStorageNode`. Run as a program it takes its configuration from arguments and environment. */
import { realpathSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { type Logger, pino } from 'pino'
import { toHoldfastError } from '../shared/errors.ts'
import { version } from '../shared/version.ts'
import type { StorageNodeConfig } from './config.ts'
import { armCrashPoint } from './crash-point.ts'
import { StorageNode } from './node.ts'
import { readStorageNodeConfig } from './options.ts'
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
    node.draining = true
    await server.close(drainMs)
    await node.close()
    log.info('storage node is closed')
  }
  return { url, close: (drainMs = node.limits.drainMs) => (closing ??= close(drainMs)) }
}

/** Serves until SIGTERM or SIGINT, then drains; a second signal ends the process at once. */
async function main(): Promise<void> {
  armCrashPoint(process.env['HF_CRASH_AT'])
  const { config, logLevel } = readStorageNodeConfig({ args: process.argv.slice(2), env: process.env })
  const log = pino({ level: logLevel, base: { process: `storage-node ${config.node}` } })
  const running = await runStorageNode(config, log)
  const stop = () => {
    process.once('SIGTERM', () => process.exit(1))
    process.once('SIGINT', () => process.exit(1))
    running.close().then(
      () => process.exit(0),
      (error: unknown) => {
        log.error({ err: error }, 'closing failed')
        process.exit(1)
      },
    )
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  main().catch((error: unknown) => {
    const { code, message, data } = toHoldfastError(error)
    process.stderr.write(`storage-node: ${code}: ${message} ${JSON.stringify(data)}\n`)
    if (code === 'INTERNAL') process.stderr.write(`${String((error as Error).stack)}\n`)
    process.exit(1)
  })
}
