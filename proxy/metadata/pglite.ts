import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import pg from 'pg'
import type { Logger } from 'pino'
import { HoldfastError } from '../../shared/errors.ts'
import { valueParsers } from './value-parsers.ts'

/** PostgreSQL inside our own process, for machines that can run no real one. */
export interface OpenPglite {
  /** The one client there can be: PGlite has a single session. */
  client(): pg.Client
  close(): Promise<void>
}

/** Opens (or makes) the database in `folder`. DATA_IN_USE if another process has it: a second opener would destroy it. */
export async function openPglite(folder: string, log: Logger): Promise<OpenPglite> {
  const path = resolve(folder)
  await mkdir(dirname(path), { recursive: true })
  const release = await lock(`${path}.lock`)
  try {
    const { PGlite } = await import('@electric-sql/pglite')
    const { createPgConfig } = await import('@electric-sql/pglite/node-postgres')
    const pglite = await PGlite.create(path)
    log.warn(
      { folder: path },
      'PGlite serves as the database: one process, slower, and not safe against power loss (it never calls fsync)',
    )
    return {
      client: () => new pg.Client({ ...createPgConfig(pglite), types: valueParsers }),
      close: async () => {
        await pglite.close()
        await release()
      },
    }
  } catch (error) {
    await release()
    throw error
  }
}

/** After a container's restart our own pid may stand in a file that a predecessor left. */
const heldHere = new Set<string>()

/** Process id in an exclusively created file; one whose process is gone is taken over. */
async function lock(path: string): Promise<() => Promise<void>> {
  for (let attempt = 0; attempt < 3; attempt++) {
    try {
      await writeFile(path, String(process.pid), { flag: 'wx', mode: 0o600 })
      heldHere.add(path)
      return async () => {
        heldHere.delete(path)
        await rm(path, { force: true })
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    }
    const pid = Number(await readFile(path, 'utf8').catch(() => ''))
    if (heldHere.has(path) || (pid !== process.pid && isAlive(pid))) break
    await rm(path, { force: true })
  }
  throw new HoldfastError('DATA_IN_USE', 'the embedded database is already in use by another process', { path })
}

function isAlive(pid: number): boolean {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
