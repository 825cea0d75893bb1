import { resolve } from 'node:path'
import { pino } from 'pino'
import type { ConfigSource } from '../shared/config.ts'
import { serve } from './serve.ts'
import { readUpConfig } from './up-config.ts'
import { up } from './up.ts'

/** `holdfast up` */
export async function serveUp(source: ConfigSource): Promise<number> {
  const config = readUpConfig(source)
  // What a person starts by hand talks to a person: one line each, on stderr, and only what matters.
  const log = pino({ level: config.logLevel, base: null, timestamp: false }, lineWriter())
  const main = process.argv[1] ?? ''
  return serve(log, async signal => {
    const cluster = await up(config, resolve(main), log, signal)
    if (cluster.newPassword !== undefined) {
      process.stdout.write(
        `Administrator: user admin, password ${cluster.newPassword} (kept in ${cluster.folder}/admin.password)\n`,
      )
    }
    process.stdout.write(`Holdfast is ready: ${cluster.url}\n`)
    return cluster
  })
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
