/** Disks that fail: what a machine with the rights for it lets a test do to them. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, statfs } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import type { Test } from 'tap'

const run = promisify(execFile)

/** false: this machine lets us; else why not. */
async function impossible(command: string, args: readonly string[], reason: string): Promise<string | false> {
  return run(command, args).then(
    () => false as const,
    () => reason,
  )
}

/** Why there can be no small disks; false: there can. */
export function noMounts(): Promise<string | false> {
  const args = ['-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']
  return impossible('unshare', args, 'needs the right to mount a small disk')
}

/** Why the flushes of a process cannot be tampered with; false: they can. */
export function noTracing(): Promise<string | false> {
  const reason = 'needs strace: the storage node has its own test with a disk that fails'
  return impossible('strace', ['-o', '/dev/null', '-e', 'inject=fsync:error=EIO', 'true'], reason)
}

/** Mounted in a folder that is gone after the test. `size` as tmpfs has it: '40m'. */
export async function mountSmallDisk(t: Pick<Test, 'teardown'>, size: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-disk-'))
  await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', folder])
  t.teardown(async () => {
    await run('umount', ['-l', folder])
    await rm(folder, { recursive: true })
  })
  return folder
}

export async function resizeDisk(folder: string, size: string): Promise<void> {
  await run('mount', ['-o', `remount,size=${size}`, folder])
}

/** Leaves nothing free on a disk of `mountSmallDisk`, whoever writes to it meanwhile. */
export async function fillDisk(folder: string): Promise<void> {
  for (let tries = 0; ; tries++) {
    const { blocks, bfree, bsize } = await statfs(folder)
    try {
      await resizeDisk(folder, String((blocks - bfree) * bsize))
      return
    } catch (error) {
      if (tries === 20) throw error // it cannot become smaller than what is on it, and that grows
    }
  }
}

/** What happens to each flush of a process: it fails, or takes so much longer; `reads`: each read from a file, too. */
export type DiskFault = { readonly error: 'EIO' } | { readonly delayMs: number; readonly reads?: boolean }

/** From now on, for every fsync and fdatasync of the process (and pread64); the result ends that. */
export async function tamperWithDisk(
  t: Pick<Test, 'teardown'>,
  pid: number,
  fault: DiskFault,
): Promise<() => Promise<void>> {
  const how = 'error' in fault ? `error=${fault.error}` : `delay_exit=${fault.delayMs * 1_000}`
  const calls = 'reads' in fault && fault.reads === true ? 'fsync,fdatasync,pread64,preadv' : 'fsync,fdatasync'
  const inject = ['-e', `trace=${calls}`, '-e', `inject=${calls}:${how}`]
  const child = spawn('strace', ['-f', '-p', String(pid), ...inject, '-o', '/dev/null'], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const exited = once(child, 'exit')
  const [line] = (await Promise.race([once(createInterface({ input: child.stderr }), 'line'), exited])) as unknown[]
  if (!/attached/.test(String(line))) throw new Error(`strace could not attach: ${String(line)}`)
  const end = async (): Promise<void> => {
    child.kill('SIGINT') // detaches
    await exited
  }
  t.teardown(end)
  return end
}
