import { pino } from 'pino'
import { readProxyConfig } from '../proxy/config.ts'
import { runProxy } from '../proxy/main.ts'
import type { ConfigSource } from '../shared/config.ts'
import { serve } from './serve.ts'

/**
 * Where little happens V8 by itself allows 7 MB beside a living heap of 45 MB, bodies included: with 30 requests a second it collected every
 * 0.6 s, for 30 ms of both processors, which was the p99 of reads. Less than a storage node gets: a proxy under load has a larger heap.
 */
const heapGrowingPercent = 100

/** `holdfast proxy` */
export async function serveProxy(source: ConfigSource): Promise<number> {
  const config = readProxyConfig(source)
  const log = pino({ level: config.logLevel, base: { process: 'proxy', pid: process.pid } })
  const start = (signal: AbortSignal) => runProxy(config, log, { signal, args: ['proxy', ...source.args] })
  return serve(log, start, { heapGrowingPercent })
}
