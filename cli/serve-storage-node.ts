import { pino } from 'pino'
import type { ConfigSource } from '../shared/config.ts'
import { runStorageNode } from '../storage-node/main.ts'
import { readStorageNodeConfig } from '../storage-node/options.ts'
import { serve } from './serve.ts'

/** `holdfast storage-node` */
export async function serveStorageNode(source: ConfigSource): Promise<number> {
  const { config, logLevel } = readStorageNodeConfig(source)
  const log = pino({ level: logLevel, base: { process: config.node, pid: process.pid } })
  return serve(log, () => runStorageNode(config, log))
}
