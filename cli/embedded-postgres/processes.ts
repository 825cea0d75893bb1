import { execFile } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

/** One process of a PostgreSQL server: the postmaster or one of its children. */
export interface ServerProcess {
  readonly pid: number
  readonly parentPid: number
}

/**
 * The processes of the PostgreSQL server that works in `dataFolder` (an absolute path without symbolic links), the
 * postmaster and its children, also those that outlived it. Only processes of this pid namespace are seen, and only
 * those this user may look at. Empty when there are none.
 */
export async function serverProcesses(dataFolder: string): Promise<readonly ServerProcess[]> {
  return process.platform === 'linux' ? fromProc(dataFolder) : fromPs(dataFolder)
}

/** Does a process with this number exist? One of another user counts. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** Sends a signal to each of the processes; those that ended meanwhile are passed over. */
export function signalAll(processes: readonly ServerProcess[], signal: NodeJS.Signals): void {
  for (const { pid } of processes) {
    try {
      process.kill(pid, signal)
    } catch {
      // It ended by itself (ESRCH), or is not ours to signal (EPERM): whoever waits for its end notices.
    }
  }
}

/** Waits until no server process is left in `dataFolder`; false when some are after `timeoutMs`. */
export async function waitUntilGone(dataFolder: string, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs
  // They are not our children (or no longer only ours), so there is no event to wait for.
  while ((await serverProcesses(dataFolder)).length > 0) {
    if (performance.now() > deadline) return false
    await sleep(10)
  }
  return true
}

/**
 * What tells this process from a later one with the same number: boot and start time. Undefined when there is no such
 * process that lives. Two containers may both hold a pid 1, a restarted one holds the same pid again: the number alone says little.
 */
export async function processIdentity(pid: number): Promise<string | undefined> {
  try {
    if (process.platform !== 'linux') return (await ps(['-o', 'lstart=', '-p', String(pid)])).trim() || undefined
    const [stat, boot] = await Promise.all([
      readFile(`/proc/${pid}/stat`, 'utf8'),
      readFile('/proc/sys/kernel/random/boot_id', 'utf8'),
    ])
    // Field 22 of proc(5) is the start time; the name before it may contain blanks, hence from the last parenthesis.
    const fields = fieldsAfterName(stat)
    // Dead, only not yet collected by its parent (a container may have nobody who does).
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined
    return `${boot.trim()}/${fields[19]}`
  } catch {
    return undefined // no such process: /proc and ps both fail then
  }
}

/**
 * Every process of PostgreSQL has its data folder as working directory, whatever its command line shows (children
 * rewrite it). The executable is checked too: a shell that somebody left in that folder must not be taken for a server.
 * Synchronous: a few microseconds per process, at start only.
 */
function fromProc(dataFolder: string): readonly ServerProcess[] {
  const found: ServerProcess[] = []
  for (const name of readdirSync('/proc')) {
    const pid = Number(name)
    if (!Number.isInteger(pid)) continue
    try {
      if (readlinkSync(`/proc/${pid}/cwd`) !== dataFolder) continue
      // The executable may have been replaced by an upgrade since: " (deleted)".
      if (!/\/postgres( \(deleted\))?$/.test(readlinkSync(`/proc/${pid}/exe`))) continue
      const parentPid = Number(fieldsAfterName(readFileSync(`/proc/${pid}/stat`, 'utf8'))[1])
      found.push({ pid, parentPid })
    } catch {
      // Ended between two reads, or of another user: neither is a server that we could have started.
    }
  }
  return found
}

/** Without /proc: the postmaster is known by its -D argument, the others by their parent. */
async function fromPs(dataFolder: string): Promise<readonly ServerProcess[]> {
  const all = (await ps(['-axo', 'pid=,ppid=,command=']))
    .split('\n')
    .map(line => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line))
    .filter(match => match !== null)
    .map(match => ({ pid: Number(match[1]), parentPid: Number(match[2]), command: match[3] ?? '' }))
  const roots = new Set(all.filter(one => one.command.includes(`postgres -D ${dataFolder} `)).map(one => one.pid))
  return all.filter(one => roots.has(one.pid) || roots.has(one.parentPid))
}

function fieldsAfterName(stat: string): readonly string[] {
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')
}

async function ps(args: readonly string[]): Promise<string> {
  return (await promisify(execFile)('ps', args, { maxBuffer: 8 * 1024 * 1024 })).stdout
}
