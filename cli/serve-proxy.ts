import { pino } from 'pino'
import { readProxyConfig } from '../proxy/config.ts'
import { runProxy } from '../proxy/main.ts'
import type { ConfigSource } from '../shared/config.ts'
import { serve } from './serve.ts'

/** `holdfast proxy` */
export async function serveProxy(source: ConfigSource): Promise<number> {
  const config = readProxyConfig(source)
  const log = pino({ level: config.logLevel, base: { process: 'proxy', pid: process.pid } })
  return serve(log, signal => runProxy(config, log, { signal, args: ['proxy', ...source.args] }))
}
