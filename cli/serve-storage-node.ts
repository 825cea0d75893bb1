import { pino } from 'pino'
import type { ConfigSource } from '../shared/config.ts'
import { armCrashPoint } from '../storage-node/crash-point.ts'
import { runStorageNode } from '../storage-node/main.ts'
import { readStorageNodeConfig } from '../storage-node/options.ts'
import { serve } from './serve.ts'

/**
 * A storage node has a small heap through which the bytes of bodies stream. V8 counts those bytes when it decides to collect, so by
 * default it marks the same living heap of some 30 MB five times a second: 45 % of the node's CPU at 64 KiB uploads. Growing to
 * seven times the living heap first leaves 10 %, and 110 MB resident.
 */
const heapGrowingPercent = 600

/** `holdfast storage-node` */
export async function serveStorageNode(source: ConfigSource): Promise<number> {
  armCrashPoint(source.env['HF_CRASH_AT'])
  const { config, logLevel } = readStorageNodeConfig(source)
  const log = pino({ level: logLevel, base: { process: config.node, pid: process.pid } })
  return serve(log, () => runStorageNode(config, log), { heapGrowingPercent })
}
