import type { ChildProcess } from 'node:child_process'
import { open, readFile, rename, rm, rmdir } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Logger } from 'pino'
import { HoldfastError } from '../../shared/errors.ts'
import type { Binaries } from './binaries.ts'
import { logTail, openLog, socketPath, socketUrl, type Layout } from './layout.ts'
import { isAlive, serverProcesses, signalAll, waitUntilGone } from './processes.ts'
import type { RunAs } from './run-as.ts'
import { start } from './run.ts'

/** All that a start has decided. */
export interface Launch {
  readonly layout: Layout
  readonly binaries: Binaries
  readonly runAs: RunAs
  readonly socketFolder: string
  readonly log: Logger
  readonly signal: AbortSignal | undefined
}

/** A fast shutdown rolls back what is open and writes one checkpoint: well under a second, unless the disk is ill. */
const stopTimeoutMs = 8_000
/** Recovery after a crash replays at most max_wal_size; a slow disk may take minutes over it. */
const readyTimeoutMs = 600_000

/** Arguments of the server. What is given here wins over postgresql.conf. Pure. */
export function serverArguments(dataFolder: string, socketFolder: string): readonly string[] {
  const settings: Readonly<Record<string, string>> = {
    listen_addresses: '',
    port: '5432', // names the socket file only
    unix_socket_directories: `"${socketFolder.replaceAll('"', '""')}"`, // a list: commas and blanks need the quotes
    unix_socket_permissions: '0700',
    // what is acknowledged is on the disk
    fsync: 'on',
    full_page_writes: 'on',
    synchronous_commit: 'on',
    wal_level: 'replica',
    // small: the proxies cache what is read often, and the page cache does the rest
    shared_buffers: '32MB',
    max_connections: '60',
    max_wal_size: '512MB',
    max_logical_replication_workers: '0',
    max_parallel_workers_per_gather: '0', // /dev/shm is small in containers
    jit: 'off', // short statements only
    timezone: 'UTC',
    log_timezone: 'UTC',
    // failed statements are answers to a client, who logs them once; what concerns the server itself is logged here
    log_min_messages: 'log',
    log_checkpoints: 'off',
    logging_collector: 'off',
  }
  return ['-D', dataFolder, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])]
}

/** Initialises the data folder; it appears under its name when it is complete and on disk, or not at all. */
export async function initialise({ layout, binaries, runAs, signal }: Launch): Promise<void> {
  await rmdir(layout.data).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error // it holds something, and no PG_VERSION: not ours to overwrite
  })
  await rm(layout.unfinishedData, { recursive: true, force: true })
  const options = [
    '--auth=trust',
    '--locale=C',
    '-E',
    'UTF8',
    '-U',
    'holdfast',
    '--data-checksums',
    '--no-instructions',
  ]
  const output = await openLog(layout)
  try {
    const stdio = ['ignore', output.fd, output.fd] as const
    const command = [...runAs.prefix, binaries.initdb, ...options, '-D', layout.unfinishedData]
    const how = { libraries: binaries.libraries, uid: runAs.uid, gid: runAs.gid }
    const child = start(command, { ...how, stdio: [...stdio], detached: true, signal })
    const code = await endOf(child)
    signal?.throwIfAborted()
    if (code !== 0) throw await failure(layout, 'initdb failed', { code })
  } finally {
    await output.close()
  }
  await rename(layout.unfinishedData, layout.data)
  const parent = await open(layout.folder)
  await parent.sync().finally(() => parent.close()) // a power cut must not undo the rename once rows were acknowledged
}

/**
 * Starts the server and waits until the database `holdfast` takes connections. Rejects with POSTGRES_START_FAILED, or
 * the signal's reason, leaving no process behind.
 */
export async function startServer(launch: Launch): Promise<ChildProcess> {
  const { layout, binaries, runAs, socketFolder } = launch
  const output = await openLog(layout)
  const command = [...runAs.prefix, binaries.postgres, ...serverArguments(layout.data, socketFolder)]
  const how = { libraries: binaries.libraries, uid: runAs.uid, gid: runAs.gid }
  const child = start(command, { ...how, stdio: ['ignore', output.fd, output.fd], detached: true })
  await output.close() // the child has its own
  const ended = endOf(child)
  try {
    await waitUntilReady(launch, child, ended)
    await ensureDatabase(socketFolder)
    return child
  } catch (error) {
    await stopServer(layout, child, ended)
    if (error instanceof HoldfastError || launch.signal?.aborted === true) throw error
    throw await failure(layout, 'the database does not answer', {}, error)
  }
}

/** Fast shutdown, then by force. Resolves when no process of the server is left. */
export async function stopServer(layout: Layout, child: ChildProcess, ended: Promise<unknown>): Promise<void> {
  child.kill('SIGINT')
  if (await within(ended, stopTimeoutMs)) return
  signalAll(await serverProcesses(layout.data), 'SIGKILL')
  child.kill('SIGKILL')
  await ended
  await waitUntilGone(layout.data, stopTimeoutMs)
}

/** Resolves with the exit code when the child has ended or could not start (null then, and when a signal ended it). */
export function endOf(child: ChildProcess): Promise<number | null> {
  return new Promise(resolve => {
    if (child.exitCode !== null || child.signalCode !== null) resolve(child.exitCode)
    child.once('error', () => resolve(null))
    child.once('exit', code => resolve(code))
  })
}

/**
 * Makes the data folder free to start on. The caller holds the folder's lock, so a server that still works here lost
 * its supervisor to a crash: it is stopped. Lock files left behind, whose pid is now another program's (of another boot
 * or container) or a zombie's that nobody reaps (we may be pid 1 of a container), are removed: PostgreSQL itself would
 * take that pid for a server and refuse. Rejects with DATA_IN_USE when a server answers that we cannot see (another
 * container on the same folder).
 */
export async function clearTheWay(layout: Layout, socketFolder: string, log: Logger): Promise<void> {
  const orphans = await serverProcesses(layout.data)
  const recordedPid = Number.parseInt(await readFile(pidFile(layout), 'utf8').catch(() => ''), 10)
  if (orphans.length > 0) {
    log.warn({ pids: orphans.map(orphan => orphan.pid) }, 'stopping an embedded PostgreSQL left behind by a crash')
    const postmaster = orphans.filter(orphan => orphan.pid === recordedPid)
    // Without their postmaster the others end by themselves; SIGQUIT hurries those that wait for a client.
    signalAll(postmaster.length > 0 ? postmaster : orphans, postmaster.length > 0 ? 'SIGINT' : 'SIGQUIT')
    signalAll(orphans, 'SIGCONT') // whoever was stopped could not obey
    if (!(await waitUntilGone(layout.data, stopTimeoutMs))) signalAll(await serverProcesses(layout.data), 'SIGKILL')
    if (!(await waitUntilGone(layout.data, stopTimeoutMs))) throw await failure(layout, 'the old server does not end')
  }
  if (await answers(socketPath(socketFolder))) {
    throw new HoldfastError('DATA_IN_USE', 'another server, perhaps in another container, works on this data', {
      folder: layout.folder,
    })
  }
  await rm(`${socketPath(socketFolder)}.lock`, { force: true })
  // Where we see all processes. Elsewhere, and when the pid is free, PostgreSQL's own check is left to do its work.
  const seesAll = process.platform === 'linux'
  if (seesAll && recordedPid > 0 && isAlive(recordedPid)) await rm(pidFile(layout), { force: true })
}

function pidFile(layout: Layout): string {
  return join(layout.data, 'postmaster.pid')
}

/** pg_ctl's way: the eighth line of the server's pid file says how far it is. */
async function waitUntilReady(
  { layout, log, signal }: Launch,
  child: ChildProcess,
  ended: Promise<unknown>,
): Promise<void> {
  let hasEnded = false
  void ended.then(() => (hasEnded = true))
  const began = performance.now()
  for (let round = 1; ; round++) {
    signal?.throwIfAborted()
    if (hasEnded) throw await failure(layout, 'the server ended at its start', { code: child.exitCode })
    const lines = (await readFile(pidFile(layout), 'utf8').catch(() => '')).split('\n')
    if (lines[0] === String(child.pid) && lines[7]?.trim() === 'ready') return
    if (performance.now() - began > readyTimeoutMs) throw await failure(layout, 'the server did not become ready')
    if (round % 1_000 === 0) log.warn({ status: lines[7]?.trim() }, 'embedded PostgreSQL is still recovering')
    await sleep(10)
  }
}

/** Creates the database `holdfast` at the first start, or at the next if that one did not get so far. */
async function ensureDatabase(socketFolder: string): Promise<void> {
  const options = { connectionTimeoutMillis: 10_000, query_timeout: 30_000 }
  const client = new pg.Client({ connectionString: socketUrl(socketFolder, 'postgres'), ...options })
  client.on('error', () => {}) // a lost connection also fails the statement that waits for it
  try {
    await client.connect()
    const found = await client.query("select from pg_database where datname = 'holdfast'")
    if (found.rowCount === 0) await client.query('create database holdfast')
  } finally {
    await client.end()
  }
}

function answers(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}

/** Did it settle within this time? */
async function within(promise: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  const timer = new AbortController()
  const timeout = sleep(timeoutMs, false, { signal: timer.signal }).catch(() => false)
  try {
    return await Promise.race([promise.then(() => true), timeout])
  } finally {
    timer.abort()
  }
}

async function failure(
  layout: Layout,
  what: string,
  data: Readonly<Record<string, unknown>> = {},
  cause?: unknown,
): Promise<HoldfastError> {
  const facts = { ...data, folder: layout.folder, log: await logTail(layout) }
  return new HoldfastError('POSTGRES_START_FAILED', `embedded PostgreSQL: ${what} (see ${layout.log})`, facts, {
    cause,
  })
}
