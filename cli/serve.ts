/** The commands that stay: `up`, `proxy`, `storage-node`. They own signals and the exit of their process. */
import { resolve } from 'node:path'
import { pino, type Logger } from 'pino'
import { readProxyConfig } from '../proxy/config.ts'
import { runProxy } from '../proxy/main.ts'
import type { ConfigSource } from '../shared/config.ts'
import { readStorageNodeConfig } from '../storage-node/options.ts'
import { runStorageNode } from '../storage-node/main.ts'
import { reportReady } from './supervised-process.ts'
import { readUpConfig } from './up-config.ts'
import { up } from './up.ts'

interface Running {
  readonly url: string
  close(): Promise<void>
}

/** `holdfast proxy` */
export async function serveProxy(source: ConfigSource): Promise<number> {
  const config = readProxyConfig(source)
  const log = pino({ level: config.logLevel, base: { process: 'proxy', pid: process.pid } })
  return serve(log, signal => runProxy(config, log, { signal, args: ['proxy', ...source.args] }))
}

/** `holdfast storage-node` */
export async function serveStorageNode(source: ConfigSource): Promise<number> {
  const { config, logLevel } = readStorageNodeConfig(source)
  const log = pino({ level: logLevel, base: { process: config.node, pid: process.pid } })
  return serve(log, () => runStorageNode(config, log))
}

/** `holdfast up` */
export async function serveUp(source: ConfigSource): Promise<number> {
  const config = readUpConfig(source)
  // What a person starts by hand talks to a person: one line each, on stderr, and only what matters.
  const log = pino({ level: config.logLevel, base: null, timestamp: false }, lineWriter())
  const main = process.argv[1] ?? ''
  return serve(log, async signal => {
    const cluster = await up(config, resolve(main), log, signal)
    if (cluster.newPassword !== undefined) {
      process.stdout.write(`Administrator: user admin, password ${cluster.newPassword} (kept in ${cluster.folder}/admin.password)\n`)
    }
    process.stdout.write(`Holdfast is ready: ${cluster.url}\n`)
    return cluster
  })
}

/**
 * Starts, tells the supervisor if there is one, and waits for the end: SIGTERM or SIGINT close cleanly, a second one exits at
 * once. Resolves with the exit code.
 */
async function serve(log: Logger, start: (signal: AbortSignal) => Promise<Running>): Promise<number> {
  const ending = new AbortController()
  const ended = new Promise<void>(resolveEnded => {
    const end = (): void => {
      if (ending.signal.aborted) process.exit(130)
      ending.abort()
      resolveEnded()
    }
    process.on('SIGTERM', end)
    process.on('SIGINT', end)
    process.once('disconnect', () => {
      if (!ending.signal.aborted) end()
    })
  })
  let running: Running
  try {
    running = await start(ending.signal)
  } catch (error) {
    if (ending.signal.aborted) return 0
    throw error
  }
  log.info({ url: running.url }, 'serving')
  reportReady(running.url)
  await ended
  log.info('ending')
  await running.close()
  return 0
}

function lineWriter(): { write: (line: string) => void } {
  return {
    write: line => {
      const { level, msg, err, ...facts } = JSON.parse(line) as Record<string, unknown> & { err?: { message?: string } }
      if (msg === 'serving' || msg === 'ending') return
      const word = Number(level) >= 50 ? 'error' : Number(level) >= 40 ? 'warning' : 'info'
      const more = Object.entries({ ...facts, ...(err === undefined ? {} : { error: err.message }) })
        .map(([key, value]) => `${key}=${typeof value === 'object' ? JSON.stringify(value) : String(value)}`)
        .join(' ')
      process.stderr.write(`holdfast: ${word}: ${String(msg)}${more === '' ? '' : ` (${more})`}\n`)
    },
  }
}
