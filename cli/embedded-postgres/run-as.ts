import { chown, lchown, lstat, readFile, readdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { HoldfastError } from '../../shared/errors.ts'
import type { Binaries } from './binaries.ts'
import { run } from './run.ts'

/**
 * A way to start the server as somebody who is not root. Every way ends in exec: the pid that we started is the
 * postmaster's.
 */
export interface RunAs {
  readonly name: 'self' | 'owner' | 'namespace' | 'nobody' | 'nobody-reaching'
  /** What to put in front of the command. */
  readonly prefix: readonly string[]
  readonly uid?: number
  readonly gid?: number
  /** Who must own the data folder on disk; undefined: whoever runs us, nothing to change. */
  readonly owner: Owner | undefined
}

export interface Owner {
  readonly uid: number
  readonly gid: number
}

/** What the ways depend on; passed in, so that the decision is pure. */
export interface RunAsFacts {
  readonly uid: number
  /** Who owns the data on disk; undefined: there is none yet. */
  readonly dataOwner: Owner | undefined
  /** The contents of /etc/passwd. */
  readonly passwd: string
  /** Whether this machine's setpriv can tie the server's life to ours. */
  readonly canDieWithParent: boolean
}

/**
 * The ways to try, best first. Pure.
 *
 * PostgreSQL refuses uid 0, and initdb a uid without an entry in passwd (a container with an arbitrary user).
 * 0. As root: the user who owns the data, if that is not root. So `sudo` once takes nothing from its user.
 * 1. A user namespace: the process stays root's on disk, so it reaches a folder below a private home, and is no root to
 *    itself. Containers often forbid it.
 * 2. The user nobody, when every folder on the way lets others pass.
 * 3. The user nobody with the one capability to pass private folders, which containers leave to their root.
 *
 * The server dies with us where setpriv can arrange it (SIGINT: fast shutdown); elsewhere the next start finds it.
 */
export function waysToRun({ uid, dataOwner, passwd, canDieWithParent }: RunAsFacts): readonly RunAs[] {
  const accounts = parsePasswd(passwd)
  const withUs = canDieWithParent ? ['setpriv', '--pdeathsig', 'INT'] : []
  const self: RunAs = { name: 'self', prefix: withUs, owner: undefined }
  if (uid !== 0 && accounts.some(account => account.uid === uid)) return [self]
  const nobody = accounts.find(account => account.name === 'nobody') ?? accounts.find(account => account.uid !== 0)
  // Without /etc/passwd entries (macOS keeps users elsewhere) an ordinary user runs the server as is.
  if (nobody === undefined) return uid === 0 ? [] : [self]
  const map = ['unshare', '--user', `--map-user=${nobody.uid}`, `--map-group=${nobody.gid}`]
  const owner = uid === 0 ? { uid: 0, gid: 0 } : undefined
  const namespace: RunAs = { name: 'namespace', prefix: [...map, ...withUs], owner }
  if (uid !== 0) return [namespace, self]
  const become = ['setpriv', `--reuid=${nobody.uid}`, `--regid=${nobody.gid}`, '--clear-groups']
  const reach = ['--inh-caps=+dac_override', '--ambient-caps=+dac_override']
  const asOwner = dataOwner === undefined || dataOwner.uid === 0 ? [] : [dataOwner]
  return [
    ...asOwner.map(({ uid, gid }): RunAs => ({ name: 'owner', prefix: withUs, uid, gid, owner: { uid, gid } })),
    namespace,
    { name: 'nobody', prefix: withUs, uid: nobody.uid, gid: nobody.gid, owner: nobody },
    { name: 'nobody-reaching', prefix: [...become, ...reach, ...withUs.slice(1)], owner: nobody },
  ]
}

interface Account {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

function parsePasswd(passwd: string): readonly Account[] {
  return passwd
    .split('\n')
    .map(line => line.split(':'))
    .filter(fields => /^\d+$/.test(fields[2] ?? '') && /^\d+$/.test(fields[3] ?? ''))
    .map(fields => ({ name: fields[0] ?? '', uid: Number(fields[2]), gid: Number(fields[3]) }))
}

/**
 * Finds the way that works here: each is tried on the real folder and the real program. Once it resolves, `folder` and
 * all in it belong to whom the way needs. Rejects with POSTGRES_START_FAILED and what the operator can do.
 */
export async function chooseRunAs(folder: string, dataFolder: string, binaries: Binaries): Promise<RunAs> {
  const uid = process.getuid?.() ?? -1
  const [dataOwner, passwd, canDieWithParent] = await Promise.all([
    lstat(dataFolder).catch(() => undefined),
    readFile('/etc/passwd', 'utf8').catch(() => ''),
    knowsPdeathsig(),
  ])
  if (uid !== 0 && dataOwner !== undefined && dataOwner.uid !== uid) throw foreignData(dataFolder, dataOwner.uid, uid)
  const refused: string[] = []
  for (const way of waysToRun({ uid, dataOwner, passwd, canDieWithParent })) {
    const reason = await tryRun(way, folder, binaries)
    if (reason === undefined) {
      if (way.owner !== undefined) await giveTo(way.owner, folder)
      return way
    }
    refused.push(`${way.name}: ${reason}`)
  }
  throw new HoldfastError(
    'POSTGRES_START_FAILED',
    `PostgreSQL must not run as ${uid === 0 ? 'root' : `uid ${uid}`} and no other way works here: start Holdfast as an ` +
      'ordinary user with a data folder of its own, or put data and program where the user nobody can reach them, ' +
      'or allow user namespaces, or set HOLDFAST_POSTGRES_URL to a PostgreSQL server',
    { folder, refused },
  )
}

function foreignData(dataFolder: string, owner: number, uid: number): HoldfastError {
  const advice = `start Holdfast as that user, or give the folder to this one: chown -R ${uid} ${dirname(dataFolder)}`
  return new HoldfastError(
    'POSTGRES_START_FAILED',
    `the embedded database belongs to uid ${owner}, this is uid ${uid}: ${advice}`,
    { dataFolder, owner, uid },
  )
}

/** --pdeathsig came with util-linux 2.33; busybox has another setpriv, macOS none. */
async function knowsPdeathsig(): Promise<boolean> {
  if (process.platform !== 'linux') return false
  return (await run(['setpriv', '--pdeathsig', 'INT', 'true'], {})).code === 0
}

/** Can this way pass all folders above ours and reach the program and its libraries? Undefined: yes. */
async function tryRun(way: RunAs, folder: string, binaries: Binaries): Promise<string | undefined> {
  // Of our folder only the way to it is tried: it belongs to the user of the last start until it is given to this one.
  const outside = binaries.libraries.filter(path => !path.startsWith(folder))
  const script =
    'cd "$1" && shift && for path; do test -r "$path" -a -x "$path" || { echo "$path: not reachable"; exit 1; }; done'
  const command = [...way.prefix, '/bin/sh', '-c', script, 'sh', dirname(folder), binaries.postgres, ...outside]
  const result = await run(command, { uid: way.uid, gid: way.gid })
  return result.code === 0 ? undefined : result.output.trim().slice(-300) || `exit code ${result.code}`
}

/** Makes `owner` the owner of the whole tree; one look when it already is (a start killed half-way starts over). */
async function giveTo(owner: Owner, folder: string): Promise<void> {
  if ((await lstat(folder)).uid === owner.uid) return
  await chownBelow(owner, folder)
  await chown(folder, owner.uid, owner.gid) // last: its owner says that the rest is done
}

/** Gives the socket folder, which may stand elsewhere and is often new, to the user of the server. */
export async function giveSocketFolder(runAs: RunAs, socketFolder: string): Promise<void> {
  if (runAs.owner !== undefined) await chown(socketFolder, runAs.owner.uid, runAs.owner.gid)
}

async function chownBelow(owner: Owner, folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) await chownBelow(owner, path)
    await lchown(path, owner.uid, owner.gid) // never through a link to what is not ours
  }
}
