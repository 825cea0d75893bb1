import { link, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { randomBytes } from 'node:crypto'
import { HoldfastError } from '../shared/errors.ts'
import { processIdentity } from './embedded-postgres/processes.ts'

/** Held by one process at a time; a lock whose holder is gone counts as free. */
export interface FolderLock {
  /** Gives the lock back. Safe to call twice. */
  release(): Promise<void>
}

/**
 * Takes the lock file at `path`, or rejects with DATA_IN_USE when the process that holds it lives; `what` names the thing in the error. It tells an orphaned
 * server, which may be stopped, from one whose supervisor is at work, which must not be touched. It does not have to be
 * perfect (three starters within one millisecond could pass it): PostgreSQL's own lock file is the last instance.
 */
export async function lockFolder(path: string, what: string): Promise<FolderLock> {
  const identity = await processIdentity(process.pid)
  const content = JSON.stringify({ pid: process.pid, identity, nonce: randomBytes(8).toString('hex') })
  for (let attempt = 0; attempt < 5; attempt++) {
    if (await createExclusively(path, content)) return { release: () => removeIfOurs(path, content) }
    const found = await readIfThere(path)
    if (found === undefined) continue
    const holder = await livingHolder(found)
    if (holder !== undefined) throw inUse(path, what, holder)
    await removeIfOurs(path, found)
  }
  throw inUse(path, what, undefined)
}

function inUse(path: string, what: string, pid: number | undefined): HoldfastError {
  const who = pid === undefined ? 'another process' : `process ${pid}`
  return new HoldfastError('DATA_IN_USE', `${what} is already in use by ${who}: stop it first`, {
    path,
    pid,
  })
}

/** link() is the one call that both publishes a complete file and fails when there is one already. */
async function createExclusively(path: string, content: string): Promise<boolean> {
  const temporary = `${path}.${randomBytes(8).toString('hex')}`
  await writeFile(temporary, content, { flag: 'wx', mode: 0o600 })
  try {
    await link(temporary, path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  } finally {
    await rm(temporary, { force: true })
  }
}

/** Removes the lock with exactly this content; one that somebody else took in between is put back. */
async function removeIfOurs(path: string, content: string): Promise<void> {
  if ((await readIfThere(path)) !== content) return
  const aside = `${path}.${randomBytes(8).toString('hex')}`
  try {
    await rename(path, aside)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    throw error
  }
  const taken = await readIfThere(aside)
  if (taken !== undefined && taken !== content) await createExclusively(path, taken)
  await rm(aside, { force: true })
}

async function livingHolder(content: string): Promise<number | undefined> {
  const holder = parse(content)
  if (holder === undefined) return undefined
  return (await processIdentity(holder.pid)) === holder.identity ? holder.pid : undefined
}

function parse(content: string): { pid: number; identity: string } | undefined {
  try {
    const value = JSON.parse(content) as { pid?: unknown; identity?: unknown } | null
    if (typeof value?.pid !== 'number' || typeof value.identity !== 'string') return undefined
    return { pid: value.pid, identity: value.identity }
  } catch {
    return undefined // torn by a power cut: nobody that lived through it holds the lock
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
