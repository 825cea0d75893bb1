/** Clocks that jump, of single processes: libfaketime, preloaded, reads the offset of each process from a file of its own. */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'

const run = promisify(execFile)
const cacheSeconds = 1
const sharedMemory = '/dev/shm'

export class Clocks {
  readonly #library: string
  readonly #folder: string

  constructor(library: string, folder: string) {
    this.#library = library
    this.#folder = folder
  }

  /** What a process must be started with for its clock to be moved. Its timers never notice: they go by the monotonic clock. */
  env(id: string): Record<string, string> {
    return {
      LD_PRELOAD: this.#library,
      FAKETIME_TIMESTAMP_FILE: this.#file(id),
      FAKETIME_CACHE_DURATION: String(cacheSeconds), // reading the file for each look would be most of the work
      DONT_FAKE_MONOTONIC: '1',
    }
  }

  /** Resolves when the process lives so many hours from now. */
  async shift(id: string, hours: number): Promise<void> {
    await this.set(id, hours)
    await sleep(cacheSeconds * 1_200)
  }

  async set(id: string, hours: number): Promise<void> {
    await writeFile(this.#file(id), `${hours < 0 ? '-' : '+'}${Math.abs(hours)}h\n`)
  }

  #file(id: string): string {
    return join(this.#folder, id)
  }
}

/** undefined where libfaketime is missing and cannot be installed (apt-get, as root). All processes begin with the right time. */
export async function findClocks(t: Pick<Test, 'teardown'>, ids: readonly string[]): Promise<Clocks | undefined> {
  const library = (await findLibrary()) ?? (await install().then(findLibrary))
  if (library === undefined) return undefined
  const folder = await mkdtemp(join(tmpdir(), 'hf-clock-'))
  t.teardown(async () => {
    await rm(folder, { recursive: true, force: true })
    await sweep()
  })
  const clocks = new Clocks(library, folder)
  for (const id of ids) await clocks.set(id, 0)
  return clocks
}

/** Processes that were killed leave their shared memory behind. */
async function sweep(): Promise<void> {
  for (const name of await readdir(sharedMemory).catch((): string[] => [])) {
    const pid = /faketime_(?:shm|sem)_(\d+)$/.exec(name)?.[1]
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) await rm(join(sharedMemory, name), { force: true })
  }
}

async function findLibrary(): Promise<string | undefined> {
  for (const parent of ['/usr/lib', '/usr/lib64', '/usr/local/lib']) {
    const names = await readdir(parent).catch((): string[] => [])
    for (const folder of ['.', ...names.filter(name => name.endsWith('-linux-gnu'))]) {
      const library = join(parent, folder, 'faketime', 'libfaketimeMT.so.1')
      const found = await readdir(join(parent, folder, 'faketime')).catch((): string[] => [])
      if (found.includes('libfaketimeMT.so.1')) return library
    }
  }
  return undefined
}

/** flock: two files may come here at once. Without root or network it stays missing. */
async function install(): Promise<void> {
  if (process.getuid?.() !== 0) return
  const script = 'apt-get update -qq && apt-get install -y -qq --no-install-recommends libfaketime'
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  const lock = join(tmpdir(), 'holdfast-test-apt.lock')
  await run('flock', [lock, 'sh', '-c', script], { env }).catch(() => undefined)
}
