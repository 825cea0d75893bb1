/**
 * `holdfast up`: a complete small cluster on one machine. One proxy, three storage nodes in three zones with two shards each,
 * and an embedded PostgreSQL unless a real one is given.
 */
import { join, resolve } from 'node:path'
import { rm, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { HoldfastError } from '../shared/errors.ts'
import { makeDataFolder, openClusterFolder, rotateLog, tryPort, type ClusterFolder } from './cluster-folder.ts'
import { startEmbeddedPostgres, type EmbeddedPostgres } from './embedded-postgres.ts'
import { lockFolder, type FolderLock } from './folder-lock.ts'
import { endOrphans } from './orphans.ts'
import { SupervisedProcess } from './supervised-process.ts'
import { checkChildren, nodeChild, proxyChild, type Child } from './up-children.ts'
import type { UpConfig } from './up-config.ts'

export interface RunningCluster {
  readonly url: string
  readonly folder: string
  /** Shown once, when it was made. */
  readonly newPassword: string | undefined
  close(): Promise<void>
}

const logBytesMax = 64 * 1024 * 1024
const readyMs = 30_000
const graceMs = 35_000

/** Resolves when the proxy answers. On any failure everything that was started is ended again. */
export async function up(config: UpConfig, main: string, log: Logger, signal: AbortSignal): Promise<RunningCluster> {
  const folder = resolve(config.data)
  const cluster = new LocalCluster(folder, config, main, log)
  // Children that are still starting are ended, so that nobody waits for them.
  const abort = (): void => void cluster.close()
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await cluster.start()
  } catch (error) {
    await cluster.close()
    throw error
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

class LocalCluster {
  readonly #folder: string
  readonly #config: UpConfig
  readonly #main: string
  readonly #log: Logger
  readonly #nodes: SupervisedProcess[] = []
  #proxy: SupervisedProcess | undefined
  #postgres: EmbeddedPostgres | undefined
  #lock: FolderLock | undefined
  /** Aborts with the end: nothing new is started. */
  readonly #ending = new AbortController()
  /** What `close` has to wait for, so that nothing comes up behind its back. */
  readonly #launching: Promise<unknown>[] = []
  #closing: Promise<void> | undefined

  constructor(folder: string, config: UpConfig, main: string, log: Logger) {
    this.#folder = folder
    this.#config = config
    this.#main = main
    this.#log = log
  }

  get #given() {
    return { folder: this.#folder, config: this.#config, env: process.env }
  }

  start(): Promise<RunningCluster> {
    const starting = this.#start()
    this.#launching.push(starting)
    return starting
  }

  async #start(): Promise<RunningCluster> {
    const { host, port, adminPassword } = this.#config
    checkChildren(this.#given)
    // The folder's lock comes first: nothing of a running cluster may be touched by a second start.
    await makeDataFolder(this.#folder)
    this.#lock = await lockFolder(join(this.#folder, 'run', 'up.lock'), `the data folder ${this.#folder}`)
    await endOrphans(this.#folder, this.#log)
    if ((await tryPort(port, host)) === undefined) {
      throw new HoldfastError(
        'CONFIG_INVALID',
        `port ${port} is in use: stop what listens there, or set HOLDFAST_PORT`,
        { port },
      )
    }
    const cluster = await openClusterFolder(this.#folder, adminPassword)
    await writeFile(join(this.#folder, 'run', 'up.pid'), `${process.pid}\n`)
    const parts = [this.#database(), this.#storageNodes(cluster)] as const
    this.#launching.push(...parts)
    const [postgresUrl] = await Promise.all(parts)
    await this.#startProxy(cluster, postgresUrl)
    return {
      url: `http://${host === '0.0.0.0' || host === '::' ? 'localhost' : host.includes(':') ? `[${host}]` : host}:${port}`,
      folder: this.#folder,
      newPassword: cluster.passwordIsNew ? cluster.adminPassword : undefined,
      close: () => this.close(),
    }
  }

  /** In reverse: the proxy answers its requests, then the nodes, then the database. */
  close(): Promise<void> {
    this.#closing ??= this.#closeAll()
    return this.#closing
  }

  async #closeAll(): Promise<void> {
    this.#ending.abort(new HoldfastError('SHUTTING_DOWN', 'the cluster is ending'))
    for (const node of this.#nodes) node.retire()
    await this.#proxy?.close(graceMs)
    await Promise.all(this.#nodes.map(node => node.close(graceMs)))
    await Promise.allSettled(this.#launching)
    await this.#postgres?.close()
    if (this.#lock === undefined) return
    for (const name of ['up', 'postgres']) await rm(join(this.#folder, 'run', `${name}.pid`), { force: true })
    await this.#lock.release()
  }

  async #database(): Promise<string> {
    if (this.#config.postgresUrl !== undefined) return this.#config.postgresUrl
    const postgres = await this.#startPostgres()
    return postgres.url
  }

  async #startPostgres(): Promise<EmbeddedPostgres> {
    const { signal } = this.#ending
    const postgres = await startEmbeddedPostgres({ folder: join(this.#folder, 'postgres'), log: this.#log, signal })
    this.#postgres = postgres
    if (postgres.pid !== undefined) await writeFile(join(this.#folder, 'run', 'postgres.pid'), `${postgres.pid}\n`)
    void postgres.exited.then(() => {
      if (signal.aborted) return
      this.#log.warn('the embedded database ended, it is started again')
      this.#launching.push(this.#restartPostgres())
    })
    return postgres
  }

  /** Until it comes back: without it nothing can be written. Never rejects. */
  async #restartPostgres(): Promise<void> {
    const { signal } = this.#ending
    for (let pauseMs = 200; !signal.aborted; pauseMs = Math.min(pauseMs * 2, 5_000)) {
      try {
        await this.#startPostgres()
        return
      } catch (error) {
        if (signal.aborted) return
        this.#log.error({ err: error, retryInMs: pauseMs }, 'the embedded database did not come back')
      }
      await sleep(pauseMs, undefined, { signal }).catch(() => {}) // woken early: the loop looks at the signal
    }
  }

  async #storageNodes(cluster: ClusterFolder): Promise<void> {
    for (const node of cluster.nodes) {
      this.#nodes.push(await this.#process(node.id, nodeChild(this.#given, cluster, node)))
    }
    this.#ending.signal.throwIfAborted()
    await Promise.all(this.#nodes.map(node => node.start()))
  }

  async #startProxy(cluster: ClusterFolder, postgresUrl: string): Promise<void> {
    this.#proxy = await this.#process('proxy', proxyChild(this.#given, cluster, postgresUrl))
    this.#ending.signal.throwIfAborted()
    await this.#proxy.start()
  }

  async #process(name: string, { args, env }: Child): Promise<SupervisedProcess> {
    const logFile = join(this.#folder, 'log', `${name}.log`)
    await rotateLog(logFile, logBytesMax)
    this.#ending.signal.throwIfAborted()
    return new SupervisedProcess({
      name,
      args: [this.#main, ...args],
      env,
      pidFile: join(this.#folder, 'run', `${name}.pid`),
      logFile,
      readyMs,
      log: this.#log,
    })
  }
}
