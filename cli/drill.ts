/** `holdfast backup drill`: restores a backup into a cluster that lives only for this, reads it back, and says how long all that took. */
import { spawn, type ChildProcess } from 'node:child_process'
import { setMaxListeners } from 'node:events'
import { createHash, randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Pool } from 'undici'
import { credentialOptions } from '../proxy/backup/credentials.ts'
import type { ManifestArtifact } from '../proxy/backup/manifest.ts'
import { openBackupTarget } from '../proxy/backup/open-target.ts'
import { BackupStore } from '../proxy/backup/store.ts'
import { artifactTarget } from '../proxy/http/artifact-path.ts'
import { readConfig, type ConfigSource, type Options } from '../shared/config.ts'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { ApiClient, errorText, standardWriter, type Writer } from './client.ts'
import { restoreBackup } from './restore-backup.ts'
import { humanTime } from './task.ts'

export const drillOptions = {
  backupTarget: { kind: 'string', required: true, doc: 'Where the backups are: file:///folder or s3://bucket/prefix.' },
  backupPassphrase: { kind: 'secret', doc: 'Of encrypted backups.' },
  ...credentialOptions,
  backup: { kind: 'string', doc: 'Which backup; the newest where none is given.' },
  percent: { kind: 'int', min: 1, max: 100, default: 100, doc: 'How many of a hundred artifacts are read back.' },
  scratch: { kind: 'string', doc: 'Folder with room for all of it once; the one for temporary files if not given.' },
  json: { kind: 'bool', default: false, doc: 'Print JSON instead of text.' },
} as const satisfies Options

export interface DrillReport {
  readonly backup: string
  /** What would be lost if the cluster were lost now: the age of the backup. */
  readonly rpoMs: number
  /** From nothing to the last artifact restored. */
  readonly rtoMs: number
  readonly artifacts: number
  readonly missing: number
  readonly verified: number
  readonly wrong: number
}

const readyMs = 120_000
const endMs = 45_000
const readAtOnce = 8
/** Of what a cluster said that never was ready. */
const tailLines = 10
const secretPrefix = 'HOLDFAST_'

/** Resolves with the exit code: 1 if anything was missing or wrong. The scratch cluster and its folder are gone then. */
export async function drill(source: ConfigSource, write: Writer = standardWriter): Promise<number> {
  const ending = new AbortController()
  setMaxListeners(0, ending.signal) // each of the requests at once listens
  const end = (): void => ending.abort(new HoldfastError('SHUTTING_DOWN', 'the drill was ended'))
  // Whoever started us is gone, or wants us to end.
  for (const event of ['disconnect', 'SIGTERM', 'SIGINT'] as const) process.once(event, end)
  let json = source.args.includes('--json')
  try {
    const config = readConfig(drillOptions, source)
    json = config.json
    const store = await BackupStore.open(openBackupTarget(config.backupTarget, config), config.backupPassphrase)
    const id = await store.idOf(config.backup)
    const say = (line: string): void => write.err(`${line}\n`)
    const report = await practise({ ...config, store, id, env: source.env, say, signal: ending.signal })
    write.out((config.json ? JSON.stringify(report) : reportText(report)) + '\n')
    return report.missing + report.wrong === 0 ? 0 : 1
  } catch (error) {
    if (!isHoldfastError(error)) throw error
    write.err(errorText(error, json))
    return error.code === 'CONFIG_INVALID' ? 2 : 1
  } finally {
    for (const event of ['disconnect', 'SIGTERM', 'SIGINT'] as const) process.off(event, end)
  }
}

interface Practice {
  readonly store: BackupStore
  readonly id: string
  readonly percent: number
  readonly scratch: string | undefined
  readonly env: ConfigSource['env']
  readonly say: (line: string) => void
  readonly signal: AbortSignal
}

async function practise({ store, id, percent, scratch, env, say, signal }: Practice): Promise<DrillReport> {
  const { time } = await store.summary(id)
  const rpoMs = Date.now() - time
  const folder = await scratchFolder(scratch ?? tmpdir())
  const startedAt = performance.now()
  const password = randomBytes(18).toString('base64url')
  const port = await freePort()
  const cluster = startScratchCluster(folder, port, password, env)
  try {
    await ready(cluster, folder, say, signal)
    say(`scratch cluster ready after ${humanTime(performance.now() - startedAt)}`)
    const origin = `http://127.0.0.1:${port}`
    const client = new ApiClient(origin, { user: 'admin', password }, 60_000)
    const authorization = client.authorization ?? ''
    const restored = await restoreBackup(
      { store, client, origin, authorization, atOnce: 16, goesLive: false, signal, say },
      id,
    )
    const rtoMs = Math.round(performance.now() - startedAt)
    say(`${restored.artifacts} artifacts restored after ${humanTime(rtoMs)}`)
    const found = await readBack({ store, id, percent, origin, authorization, say, signal })
    return { backup: id, rpoMs, rtoMs, artifacts: restored.artifacts, missing: restored.missing, ...found }
  } finally {
    await endOf(cluster)
    await rm(folder, { recursive: true, force: true, maxRetries: 3 })
  }
}

async function scratchFolder(parent: string): Promise<string> {
  try {
    return await mkdtemp(join(parent, 'holdfast-drill-'))
  } catch (error) {
    const why = error instanceof Error && 'code' in error ? String(error.code) : 'unknown'
    const message = `no scratch cluster can be made in ${parent} (${why}): name a folder that exists with --scratch`
    throw new HoldfastError('CONFIG_INVALID', message, { parent }, { cause: error })
  }
}

/** A process of its own that ends by itself when we do: the channel to us breaks. One copy of everything is enough. */
function startScratchCluster(folder: string, port: number, password: string, env: ConfigSource['env']): ChildProcess {
  const inherited = Object.entries(env).filter(([name]) => !name.startsWith(secretPrefix))
  const own = { HOLDFAST_ADMIN_PASSWORD: password, HOLDFAST_REPLICAS: '1' }
  const args = [resolve(process.argv[1] ?? ''), 'up', '--data', folder, '--host', '127.0.0.1', '--port', String(port)]
  return spawn(process.execPath, args, {
    env: { ...Object.fromEntries(inherited), ...own },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
}

/** What it says before it is ready is said if it never is. */
async function ready(cluster: ChildProcess, folder: string, say: Practice['say'], signal: AbortSignal): Promise<void> {
  const timeout = AbortSignal.timeout(readyMs)
  let text = ''
  let errors = ''
  cluster.stderr?.on('data', (chunk: Buffer) => (errors = (errors + chunk.toString()).slice(-8_000)))
  try {
    await new Promise<void>((done, failed) => {
      const fail = (why: string): void => failed(new HoldfastError('CONFLICT', `the scratch cluster ${why}`))
      cluster.once('error', error => fail(`cannot be started: ${error.message}`))
      // Not 'exit': its last words may be on their way then.
      cluster.once('close', code => fail(`ended with ${code ?? 'a signal'} before it was ready`))
      timeout.addEventListener('abort', () => fail(`was not ready after ${humanTime(readyMs)}`), { once: true })
      signal.addEventListener('abort', () => failed(signal.reason as Error), { once: true })
      cluster.stdout?.on('data', (chunk: Buffer) => {
        text = (text + chunk.toString()).slice(-2_000)
        if (text.includes('Holdfast is ready')) done()
      })
    })
  } catch (error) {
    if (!signal.aborted) for (const line of await lastWords(folder, errors)) say(line)
    throw error
  }
}

/** Its own, and the end of the log that they name: it goes with the folder. */
async function lastWords(folder: string, errors: string): Promise<readonly string[]> {
  const lines = errors.trim().split('\n').slice(-tailLines)
  const named = [...errors.matchAll(/see ([^\s)]+\.log)/g)].at(-1)?.[1]
  if (named?.startsWith(folder) !== true) return lines
  const log = await readFile(named, 'utf8').catch(() => '') // it says nothing then
  return [...lines, ...log.trim().split('\n').slice(-tailLines)].filter(line => line !== '')
}

async function endOf(cluster: ChildProcess): Promise<void> {
  if (cluster.exitCode !== null || cluster.signalCode !== null || cluster.pid === undefined) return
  const exited = new Promise<void>(done => cluster.once('exit', () => done()))
  cluster.kill('SIGTERM')
  const late = setTimeout(() => cluster.kill('SIGKILL'), endMs)
  await exited
  clearTimeout(late)
}

interface ReadBack extends Pick<Practice, 'store' | 'id' | 'percent' | 'say' | 'signal'> {
  readonly origin: string
  readonly authorization: string
}

async function readBack(options: ReadBack): Promise<{ verified: number; wrong: number }> {
  const { store, id, percent, origin, authorization, say, signal } = options
  const pool = new Pool(origin, { connections: readAtOnce })
  const running = new Set<Promise<void>>()
  let verified = 0
  let wrong = 0
  const read = async (artifact: ManifestArtifact): Promise<void> => {
    const path = artifactTarget(artifact.repository, artifact.path)
    const found = await digestAt(pool, path, authorization, signal)
    verified++
    if (found === artifact.digest) return
    if (wrong++ < 50) say(`${artifact.repository}/${artifact.path}: ${found}, not ${artifact.digest}`)
  }
  try {
    for await (const entry of store.readManifest(id)) {
      signal.throwIfAborted()
      if (entry.kind !== 'artifact' || Number.parseInt(entry.digest.slice(-8), 16) % 100 >= percent) continue
      const work: Promise<void> = read(entry).finally(() => running.delete(work))
      running.add(work)
      if (running.size >= readAtOnce) await Promise.race(running)
    }
    await Promise.all(running)
  } finally {
    await Promise.allSettled(running)
    await pool.destroy()
  }
  return { verified, wrong }
}

/** The digest of what is there, or words that say why there is none. */
async function digestAt(pool: Pool, path: string, authorization: string, signal: AbortSignal): Promise<string> {
  for (let tries = 1; ; tries++) {
    try {
      const { statusCode, body } = await pool.request({ method: 'GET', path, headers: { authorization }, signal })
      const sha256 = createHash('sha256')
      for await (const chunk of body as AsyncIterable<Buffer>) sha256.update(chunk)
      return statusCode === 200 ? sha256.digest('hex') : `status ${statusCode}`
    } catch (error) {
      signal.throwIfAborted()
      if (tries === 3) return error instanceof Error ? error.message : 'no answer'
      await sleep(500 * tries, undefined, { signal })
    }
  }
}

function freePort(): Promise<number> {
  return new Promise((done, failed) => {
    const server = createServer()
    server.once('error', failed)
    server.listen({ port: 0, host: '127.0.0.1' }, () => {
      const { port } = server.address() as AddressInfo
      server.close(() => done(port))
    })
  })
}

function reportText({ backup, rpoMs, rtoMs, artifacts, missing, verified, wrong }: DrillReport): string {
  return [
    `backup ${backup}: ${artifacts} artifacts restored, ${missing} missing; ${verified} read back, ${wrong} wrong`,
    `RPO ${humanTime(rpoMs)} (age of the backup), RTO ${humanTime(rtoMs)} (from nothing to the last artifact)`,
  ].join('\n')
}
