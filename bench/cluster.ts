/** A cluster as `npm start` makes it, for a bench. */
import { type ChildProcess, spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { tryPort } from '../cli/cluster-folder.ts'

export interface Cluster {
  readonly url: string
  readonly authorization: string
  readonly pid: number
  readonly proxyPid: number
  close(): Promise<void>
}

/** Resolves when it serves. What is in `folder` already is served again. */
export async function startCluster(folder: string, env: Record<string, string>): Promise<Cluster> {
  const port = await freePort()
  const password = 'benchmark-password'
  const main = join(import.meta.dirname, '..', 'cli', 'main.js')
  const data = join(folder, 'data')
  const child = spawn(process.execPath, [main, 'up', '--data', data, '--host', '127.0.0.1', '--port', String(port)], {
    env: { ...process.env, HOLDFAST_ADMIN_PASSWORD: password, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await ready(child)
  const proxyPid = Number(await readFile(join(data, 'run', 'proxy.pid'), 'utf8'))
  return {
    url: `http://127.0.0.1:${port}`,
    authorization: 'Basic ' + Buffer.from(`admin:${password}`).toString('base64'),
    pid: child.pid ?? 0,
    proxyPid,
    close: async () => {
      if (child.exitCode !== null) return
      const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
      child.kill('SIGINT')
      await ended
    },
  }
}

async function ready(child: ChildProcess): Promise<void> {
  let output = ''
  await new Promise<void>((resolve, reject) => {
    child.stdout?.on('data', (chunk: Buffer) => {
      output += chunk.toString()
      if (output.includes('Holdfast is ready')) resolve()
    })
    child.once('exit', () => reject(new Error(`the cluster did not start: ${output}`)))
  })
}

export async function freePort(): Promise<number> {
  const port = await tryPort(0)
  if (port === undefined) throw new Error('no free port')
  return port
}
