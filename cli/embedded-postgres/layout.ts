import { chmod, lstat, mkdir, mkdtemp, open, readFile, realpath, rename, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

/**
 * What stands in the folder of the embedded database:
 *
 *     pgdata/         the data of a real PostgreSQL (its PG_VERSION names the major version it stays with)
 *     pgdata.new/     an initdb that did not finish; thrown away at the next start
 *     pglite/         the data of PGlite instead
 *     socket/         mode 0700, .s.PGSQL.5432
 *     socket-folder   the path of a folder in the system's temporary folder, when ours is too long for a socket
 *     lib/            links to the libraries of the npm package
 *     lock            who supervises the server (see folder-lock.ts)
 *     postgres.log    and postgres.log.1, the one before
 */
export interface Layout {
  readonly folder: string
  readonly data: string
  readonly unfinishedData: string
  readonly pglite: string
  readonly socket: string
  readonly socketRecord: string
  readonly links: string
  readonly lock: string
  readonly log: string
}

/** sun_path holds 108 bytes on Linux and 104 on macOS, with the closing NUL. */
const socketPathBytesMax = 100
const logBytesMax = 4 * 1024 * 1024

/** Makes the folder (mode 0700) if needed and names what stands in it; all paths are absolute and without links. */
export async function prepareFolder(path: string): Promise<Layout> {
  await mkdir(resolve(path), { recursive: true, mode: 0o700 })
  const folder = await realpath(path)
  return {
    folder,
    data: join(folder, 'pgdata'),
    unfinishedData: join(folder, 'pgdata.new'),
    pglite: join(folder, 'pglite'),
    socket: join(folder, 'socket'),
    socketRecord: join(folder, 'socket-folder'),
    links: join(folder, 'lib'),
    lock: join(folder, 'lock'),
    log: join(folder, 'postgres.log'),
  }
}

/** The major version that initialised a data folder; undefined: there is no data. */
export async function majorVersionOf(dataFolder: string): Promise<number | undefined> {
  const text = await readFile(join(dataFolder, 'PG_VERSION'), 'utf8').catch(() => undefined)
  return text === undefined ? undefined : Number.parseInt(text, 10)
}

/** The server's socket in a socket folder. */
export function socketPath(socketFolder: string): string {
  return join(socketFolder, '.s.PGSQL.5432')
}

/** The connection string of the database `holdfast` behind that socket folder, as pg reads it. */
export function socketUrl(socketFolder: string, database = 'holdfast'): string {
  return `postgres://holdfast@/${database}?host=${encodeURIComponent(socketFolder)}`
}

/**
 * A folder for the socket that only its owner can enter: whoever gets in is the database's superuser. It stays the same
 * from start to start, so that a connection string stays good.
 */
export async function prepareSocketFolder(layout: Layout): Promise<string> {
  const folder = fits(layout.socket) ? layout.socket : await temporarySocketFolder(layout)
  await mkdir(folder, { recursive: true, mode: 0o700 })
  await chmod(folder, 0o700)
  return folder
}

function fits(socketFolder: string): boolean {
  return Buffer.byteLength(socketPath(socketFolder)) <= socketPathBytesMax
}

async function temporarySocketFolder(layout: Layout): Promise<string> {
  const recorded = (await readFile(layout.socketRecord, 'utf8').catch(() => '')).trim()
  if (recorded !== '' && (await isPrivateFolder(recorded, layout))) return recorded
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-pg-'))
  await writeFile(layout.socketRecord, folder, { mode: 0o600 })
  return folder
}

/** In a folder that all may write to, the name may meanwhile be somebody else's. */
async function isPrivateFolder(path: string, layout: Layout): Promise<boolean> {
  const [found, ours] = await Promise.all([lstat(path).catch(() => undefined), stat(layout.folder)])
  if (found === undefined || !found.isDirectory() || (found.mode & 0o077) !== 0) return false
  return found.uid === process.getuid?.() || found.uid === ours.uid
}

/**
 * Opens the server's log for appending; one that grew large becomes `postgres.log.1` first. Between starts it hardly
 * grows: failed statements are reported to whoever sent them, not logged.
 */
export async function openLog(layout: Layout): Promise<Awaited<ReturnType<typeof open>>> {
  const size = await stat(layout.log).then(
    found => found.size,
    () => 0,
  )
  if (size > logBytesMax) await rename(layout.log, `${layout.log}.1`)
  return open(layout.log, 'a', 0o600)
}

/** The last lines of the log, for an error's data. */
export async function logTail(layout: Layout): Promise<readonly string[]> {
  const text = await readFile(layout.log, 'utf8').catch(() => '')
  return text.trimEnd().split('\n').slice(-20)
}
