import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import pg from 'pg'
import { pino } from 'pino'
import type { Test } from 'tap'
import { startEmbeddedPostgres, type EmbeddedPostgres } from '../../cli/embedded-postgres.ts'
import { serverProcesses, signalAll, waitUntilGone } from '../../cli/embedded-postgres/processes.ts'

/** A PostgreSQL server of one test file, durable like the product's; everything is gone after the test. */
export interface TestPostgres {
  /** The superuser's connection string; stays the same after `stop` and `start`. */
  readonly url: string
  /** Pid of the postmaster; undefined while the server is down. */
  readonly pid: number | undefined
  /** A new database, empty or a copy of the one that `template` (one of these URLs) names; resolves to its URL. */
  createDatabase(template?: string): Promise<string>
  /** A clean shutdown. */
  stop(): Promise<void>
  /** SIGKILL to the postmaster and all its children at once, like a power cut to the process. */
  kill(): Promise<void>
  start(): Promise<void>
  /** SIGSTOP to all processes of the server: connections stay open and nothing answers. */
  pause(): Promise<void>
  resume(): Promise<void>
}

/** Of the run: see test/run.mjs. Without one (a file run by hand) every server is initialised anew. */
const template = process.env['HOLDFAST_TEST_RUN_FOLDER'] && join(process.env['HOLDFAST_TEST_RUN_FOLDER'], 'pgdata')

/** Starts a private server (about a second; less when the run has initialised one already) that is torn down with `t`. */
export async function startTestPostgres(t: Pick<Test, 'teardown'>): Promise<TestPostgres> {
  // Not t.testdir(): its long names leave no room for a socket's path.
  const folder = await mkdtemp(join(tmpdir(), 'hf-pg-'))
  const data = join(folder, 'pgdata')
  const launch = (): Promise<EmbeddedPostgres> => startEmbeddedPostgres({ folder, log: pino({ level: 'silent' }) })
  if (template !== undefined) await fromTemplate(template, data, launch)
  let server: EmbeddedPostgres | undefined = await launch()
  const { url } = server
  let databaseCount = 0

  const stop = async (): Promise<void> => {
    await resume(data)
    await server?.close()
    server = undefined
  }
  t.teardown(async () => {
    await stop()
    await rm(folder, { recursive: true, force: true })
  })
  return {
    url,
    get pid() {
      return server?.pid
    },
    stop,
    start: async () => {
      server ??= await launch()
    },
    kill: async () => {
      const exited = server?.exited
      signalAll(await serverProcesses(data), 'SIGKILL')
      await exited
      await waitUntilGone(data, 10_000)
      server = undefined
    },
    createDatabase: async template => {
      const name = `test_${++databaseCount}`
      const from = template === undefined ? '' : ` template "${databaseOf(template)}"`
      await execute(url, `create database "${name}"${from}`)
      return withDatabase(url, name)
    },
    pause: () => pause(data),
    resume: () => resume(data),
  }
}

/** Fills `data` with what one server of this run was initialised with; the first one makes it. */
async function fromTemplate(template: string, data: string, launch: () => Promise<EmbeddedPostgres>): Promise<void> {
  if (!existsSync(template)) {
    await (await launch()).close()
    const unfinished = `${template}.${process.pid}`
    await copy(data, unfinished)
    await rename(unfinished, template).catch(() => rm(unfinished, { recursive: true })) // another file was first
    return
  }
  await mkdir(dirname(data), { recursive: true, mode: 0o700 })
  await copy(template, data)
}

/** With owners and modes, to which PostgreSQL looks. */
async function copy(from: string, to: string): Promise<void> {
  await promisify(execFile)('cp', ['-a', from, to])
}

/** One statement on a connection of its own. */
async function execute(connectionString: string, statement: string): Promise<void> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    await client.query(statement)
  } finally {
    await client.end()
  }
}

function databaseOf(url: string): string {
  return /@\/([^?]*)\?/.exec(url)?.[1] ?? 'holdfast'
}

function withDatabase(url: string, name: string): string {
  return url.replace(`/${databaseOf(url)}?`, `/${name}?`)
}

/** The postmaster may fork between looking and stopping: look until nobody new is there. */
async function pause(data: string): Promise<void> {
  const stopped = new Set<number>()
  for (;;) {
    const fresh = (await serverProcesses(data)).filter(one => !stopped.has(one.pid))
    if (fresh.length === 0) return
    signalAll(fresh, 'SIGSTOP')
    for (const one of fresh) stopped.add(one.pid)
    await sleep(5)
  }
}

async function resume(data: string): Promise<void> {
  signalAll(await serverProcesses(data), 'SIGCONT')
}
