import { execFile } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { Logger } from 'pino'
import { isAlive } from './embedded-postgres/processes.ts'

/** How long an orphan may take to finish its requests before it is killed, in ms. */
const patienceMs = 1_000

/**
 * Ends processes of an earlier `holdfast up` on this folder that outlived it (it was killed -9). A process counts only if
 * its command line names this folder: a number alone may belong to somebody else by now. Call it with the folder's lock held.
 */
export async function endOrphans(folder: string, log: Logger): Promise<void> {
  const run = join(folder, 'run')
  const files = (await readdir(run)).filter(
    name => name.endsWith('.pid') && name !== 'postgres.pid' && name !== 'up.pid',
  )
  await Promise.all(
    files.map(async name => {
      const pid = Number(await readFile(join(run, name), 'utf8'))
      if (!Number.isInteger(pid) || pid <= 1 || !(await commandOf(pid)).includes(join(folder, '/'))) return
      log.warn({ pid, process: name.slice(0, -'.pid'.length) }, 'ending a process that outlived its supervisor')
      await end(pid)
    }),
  )
}

async function end(pid: number): Promise<void> {
  signal(pid, 'SIGTERM')
  const deadline = performance.now() + patienceMs
  // Not our child, so there is no event to wait for.
  while (isAlive(pid)) {
    if (performance.now() > deadline) signal(pid, 'SIGKILL')
    await sleep(20)
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch {
    // It ended by itself just now.
  }
}

async function commandOf(pid: number): Promise<string> {
  try {
    if (process.platform === 'linux') return (await readFile(`/proc/${pid}/cmdline`, 'utf8')).replaceAll('\0', ' ')
    return (await promisify(execFile)('ps', ['-o', 'command=', '-p', String(pid)])).stdout
  } catch {
    return '' // no such process
  }
}
