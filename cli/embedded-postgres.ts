import { createRequire } from 'node:module'
import { mkdir } from 'node:fs/promises'
import type { Logger } from 'pino'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { findBinaries } from './embedded-postgres/binaries.ts'
import { lockFolder, type FolderLock } from './folder-lock.ts'
import {
  majorVersionOf,
  prepareFolder,
  prepareSocketFolder,
  socketUrl,
  type Layout,
} from './embedded-postgres/layout.ts'
import { chooseRunAs, giveSocketFolder } from './embedded-postgres/run-as.ts'
import { standardPath } from './embedded-postgres/run.ts'
import { clearTheWay, endOf, initialise, startServer, stopServer } from './embedded-postgres/server.ts'

/** The database of a cluster on one machine: a PostgreSQL server of our own, reachable through a private socket only. */
export interface EmbeddedPostgres {
  /** For pg: `postgres://holdfast@/holdfast?host=<socket folder>`, or `pglite:<folder>`. The same after a restart. */
  readonly url: string
  readonly kind: 'system' | 'npm' | 'pglite'
  /** The postmaster; undefined for PGlite, which lives in the process that opens it. */
  readonly pid: number | undefined
  /**
   * Resolves when the server ended by itself (a crash): start it again, the folder is free by then. Stays pending when
   * `close` ended it. Never rejects.
   */
  readonly exited: Promise<void>
  /** Ends the server (fast shutdown, by force after 8 s) and frees the folder. Safe to call twice. */
  close(): Promise<void>
}

export interface EmbeddedPostgresOptions {
  /** Everything of the database stands in here; made if it is missing. */
  readonly folder: string
  readonly log: Logger
  /** Aborts the start, leaving nothing running; without effect once it has resolved. */
  readonly signal?: AbortSignal
  /** Folders in which server programs are looked for, besides those of the distributions. Default: the usual ones. */
  readonly searchPath?: string
}

/**
 * Starts the embedded database on a folder and resolves when it takes connections: about a second on an empty folder,
 * 0.2 s later, longer only when there is much to recover after a crash. Whatever a crash left behind (a server without
 * supervisor, lock files, a half-made folder) is cleared first; nothing acknowledged is lost.
 *
 * Order: the npm package of this platform, PostgreSQL on the machine, PGlite (binaries.ts says why); a folder stays
 * with what initialised it. The PG* variables of this process are forgotten: they speak of somebody's own servers, and
 * pg, here and in the processes started after this, takes from them whatever a URL leaves open.
 *
 * Rejects with DATA_IN_USE when another process supervises the folder, POSTGRES_START_FAILED for everything else,
 * `signal.reason` on abort.
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  options.signal?.throwIfAborted()
  for (const name of Object.keys(process.env)) if (/^PG[A-Z]+$/.test(name)) delete process.env[name]
  try {
    const layout = await prepareFolder(options.folder)
    const lock = await lockFolder(layout.lock, 'the embedded database')
    try {
      return await startLocked(options, layout, lock)
    } catch (error) {
      await lock.release()
      throw error
    }
  } catch (error) {
    if (isHoldfastError(error) || options.signal?.aborted === true) throw error
    const message = `embedded PostgreSQL: cannot use the folder ${options.folder}`
    throw new HoldfastError('POSTGRES_START_FAILED', message, { folder: options.folder }, { cause: error })
  }
}

async function startLocked(
  { log, signal, searchPath = standardPath }: EmbeddedPostgresOptions,
  layout: Layout,
  lock: FolderLock,
): Promise<EmbeddedPostgres> {
  const began = performance.now()
  const dataMajor = await majorVersionOf(layout.data)
  const bornAsPglite = dataMajor === undefined && (await majorVersionOf(layout.pglite)) !== undefined
  if (bornAsPglite) return pglite(layout, lock, log)
  const { found: binaries, refused } = await findBinaries({ dataMajor, linksFolder: layout.links, searchPath })
  if (binaries === undefined) {
    if (dataMajor === undefined && hasPglite()) return pglite(layout, lock, log)
    throw noServer(layout, dataMajor, refused)
  }
  const socketFolder = await prepareSocketFolder(layout)
  await clearTheWay(layout, socketFolder, log)
  const runAs = await chooseRunAs(layout.folder, layout.data, binaries)
  await giveSocketFolder(runAs, socketFolder)
  const launch = { layout, binaries, runAs, socketFolder, log, signal }
  if (dataMajor === undefined) await initialise(launch)
  const child = await startServer(launch)
  const facts = { kind: binaries.kind, version: binaries.version, postmasterPid: child.pid, runAs: runAs.name }
  log.info({ ...facts, durationMs: Math.round(performance.now() - began) }, 'embedded PostgreSQL started')

  const ended = endOf(child)
  let closing: Promise<void> | undefined
  const exited = new Promise<void>(resolve => {
    void ended.then(async code => {
      if (closing !== undefined) return
      log.error({ postmasterPid: child.pid, code, signal: child.signalCode }, 'embedded PostgreSQL ended by itself')
      await lock
        .release()
        .catch((error: unknown) => log.error({ err: error }, 'cannot release the lock of the database'))
      resolve()
    })
  })
  const close = async (): Promise<void> => {
    await stopServer(layout, child, ended)
    await lock.release()
  }
  return {
    url: socketUrl(socketFolder),
    kind: binaries.kind,
    pid: child.pid,
    exited,
    close: () => (closing ??= close()),
  }
}

/** Only remembers the folder: PGlite runs inside the process that opens it. The lock keeps a second one out. */
async function pglite(layout: Layout, lock: FolderLock, log: Logger): Promise<EmbeddedPostgres> {
  if (!hasPglite()) throw noServer(layout, undefined, ['the data is of PGlite, which is not installed'])
  log.warn(
    { folder: layout.pglite },
    'no PostgreSQL found: using PGlite, which NEVER WRITES SAFELY TO DISK (no fsync): a power cut may lose or damage ' +
      'the metadata. Install PostgreSQL, or the npm package of this platform, or set HOLDFAST_POSTGRES_URL',
  )
  await mkdir(layout.pglite, { recursive: true, mode: 0o700 })
  return {
    url: `pglite:${layout.pglite}`,
    kind: 'pglite',
    pid: undefined,
    exited: new Promise<void>(() => {}),
    close: () => lock.release(),
  }
}

function hasPglite(): boolean {
  try {
    createRequire(import.meta.url).resolve('@electric-sql/pglite')
    return true
  } catch {
    return false // an optional package
  }
}

function noServer(layout: Layout, dataMajor: number | undefined, refused: readonly string[]): HoldfastError {
  const wanted = dataMajor === undefined ? 'PostgreSQL 14 or later' : `PostgreSQL ${dataMajor}, which made this data`
  return new HoldfastError(
    'POSTGRES_START_FAILED',
    `no server program for the embedded database: install ${wanted}, or set HOLDFAST_POSTGRES_URL`,
    { folder: layout.folder, dataMajor, refused },
  )
}
