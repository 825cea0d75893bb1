import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, chown, mkdir, mkdtemp, readFile, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import pg from 'pg'
import { pino, type Logger } from 'pino'
import t, { type Test } from 'tap'
import { startEmbeddedPostgres, type EmbeddedPostgres } from '../../cli/embedded-postgres.ts'
import { parseVersion, unfit } from '../../cli/embedded-postgres/binaries.ts'
import { isAlive, serverProcesses, signalAll, waitUntilGone } from '../../cli/embedded-postgres/processes.ts'
import { waysToRun } from '../../cli/embedded-postgres/run-as.ts'
import { builtFile } from '../support/paths.ts'

const silent = pino({ level: 'silent' })
const isRoot = process.getuid?.() === 0
const nobody = 65_534
const built = builtFile('cli/embedded-postgres.ts')

/** Below /tmp, whose short names leave room for a socket's path; gone after the test. */
async function temporaryFolder(t: Test): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-epg-'))
  t.teardown(async () => {
    await endOfServer(folder)
    await rm(folder, { recursive: true, force: true })
  })
  return folder
}

/** One folder with `writeRow`'s row in it for all tests that leave it in order: initdb and copies take long. */
async function sharedFolder(t: Test): Promise<string> {
  const folder = await (shared ??= makeShared())
  t.teardown(() => endOfServer(folder))
  return folder
}

let shared: Promise<string> | undefined

async function makeShared(): Promise<string> {
  const folder = await temporaryFolder(t)
  const server = await startEmbeddedPostgres({ folder, log: silent })
  await writeRow(server.url)
  await server.close()
  return folder
}

async function endOfServer(folder: string): Promise<void> {
  signalAll(await serverProcesses(join(folder, 'pgdata')), 'SIGKILL')
  await waitUntilGone(join(folder, 'pgdata'), 10_000)
}

async function start(t: Test, folder: string, log: Logger = silent): Promise<EmbeddedPostgres> {
  const server = await startEmbeddedPostgres({ folder, log })
  t.teardown(() => server.close())
  return server
}

/** Pids of a folder's server; unlike a look at the pid alone, blind to zombies that nobody has reaped yet. */
async function pidsOf(folder: string): Promise<readonly number[]> {
  return (await serverProcesses(join(folder, 'pgdata'))).map(one => one.pid)
}

async function query(url: string, statement: string): Promise<readonly Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {}) // servers are killed here
  await client.connect()
  try {
    return (await client.query<Record<string, unknown>>(statement)).rows
  } finally {
    await client.end()
  }
}

async function writeRow(url: string): Promise<void> {
  await query(url, "create table if not exists kept as select 'acknowledged' as word")
}

async function hasRow(url: string): Promise<boolean> {
  return (await query(url, 'select word from kept'))[0]?.['word'] === 'acknowledged'
}

interface Supervisor {
  readonly process: ChildProcess
  readonly url: string
  readonly pid: number
  /** Why it could not start; then there is neither URL nor pid. */
  readonly refusal?: string
}

/** Another process that starts the database and stays; `prefix` runs it as somebody else. */
async function startSupervisor(t: Test, folder: string, prefix: readonly string[] = []): Promise<Supervisor> {
  const script = `
    import { pino } from ${JSON.stringify(import.meta.resolve('pino'))}
    import { startEmbeddedPostgres } from ${JSON.stringify(`file://${built}`)}
    const log = pino({ level: 'silent' })
    const server = await startEmbeddedPostgres({ folder: ${JSON.stringify(folder)}, log }).catch(error => {
      console.log(JSON.stringify({ refusal: error.code + ': ' + error.message }))
      process.exit(1)
    })
    console.log(JSON.stringify({ url: server.url, pid: server.pid }))
    process.stdin.resume().once('end', async () => {
      await server.close()
      process.exit(0)
    })`
  // Nothing of this process's environment may matter.
  const clean = ['env', '-i', `PATH=${process.env['PATH']}`]
  const command = [...prefix, ...clean, process.execPath, '--input-type=module', '-e', script]
  const child = spawn(command[0] ?? '', command.slice(1), { stdio: ['pipe', 'pipe', 'inherit'], cwd: '/' })
  t.teardown(() => child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout })
  const [line] = (await Promise.race([
    once(lines, 'line'),
    once(child, 'exit').then(() => ['{}']), // reported by the test that misses the pid
  ])) as [string]
  return { process: child, ...(JSON.parse(line) as { url: string; pid: number }) }
}

async function killSupervisor({ process: child }: Supervisor): Promise<void> {
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
}

t.test('a first start makes a database, a later one finds its rows, and close leaves nothing behind', async t => {
  const folder = await temporaryFolder(t)
  const first = await start(t, folder)
  t.not(first.kind, 'pglite')
  t.ok(isAlive(first.pid ?? -1))
  await writeRow(first.url)
  const settings = await query(
    first.url,
    `select name, setting from pg_settings where name in ('fsync', 'synchronous_commit', 'full_page_writes',
      'listen_addresses', 'data_checksums', 'server_encoding') order by name`,
  )
  t.strictSame(Object.fromEntries(settings.map(row => [row['name'], row['setting']])), {
    data_checksums: 'on',
    fsync: 'on',
    full_page_writes: 'on',
    listen_addresses: '',
    server_encoding: 'UTF8',
    synchronous_commit: 'on',
  })
  t.equal((await stat(join(folder, 'socket'))).mode & 0o777, 0o700, 'whoever reaches the socket is superuser')
  await first.close()
  await first.close()
  t.notOk(isAlive(first.pid ?? -1))
  t.strictSame(await serverProcesses(join(folder, 'pgdata')), [])
  t.strictSame(
    (await readdir(folder)).filter(name => name.startsWith('lock')),
    [],
  )

  const second = await start(t, folder)
  t.equal(second.url, first.url, 'a connection string stays good')
  t.ok(await hasRow(second.url))
})

t.test("an operator's settings for other servers of theirs do not reach it", async t => {
  const folder = await sharedFolder(t)
  const foreign = {
    PGPORT: '6543', PGSSLMODE: 'require', PGOPTIONS: '-c no_such=1', PGUSER: 'ann', PGDATABASE: 'hers', PGHOST: 'db', PGCLIENTENCODING: 'none', PGSSLNEGOTIATION: 'direct',
  } // prettier-ignore
  Object.assign(process.env, foreign)
  t.teardown(() => {
    for (const name of Object.keys(foreign)) delete process.env[name]
  })
  const server = await start(t, folder)
  t.ok(await hasRow(server.url))
  for (const name of Object.keys(foreign)) t.notOk(name in process.env, 'nor the processes that are started next')
})

t.test('after kill -9 of the server and its supervisor the next start has every acknowledged row', async t => {
  const folder = await sharedFolder(t)
  for (let round = 0; round < 3; round++) {
    const supervisor = await startSupervisor(t, folder)
    await query(supervisor.url, `create table round_${round} as select ${round} as number`)
    signalAll(await serverProcesses(join(folder, 'pgdata')), 'SIGKILL')
    await killSupervisor(supervisor)
  }
  const server = await start(t, folder)
  t.ok(await hasRow(server.url))
  t.strictSame(await query(server.url, 'select * from round_0, round_1 as b(c), round_2 as d(e)'), [
    { number: 0, c: 1, e: 2 },
  ])
})

t.test('a server whose supervisor was killed is stopped and replaced, even if it hangs', async t => {
  const folder = await sharedFolder(t)
  const supervisor = await startSupervisor(t, folder)
  process.kill(supervisor.pid, 'SIGSTOP') // so that it cannot notice the death of its parent
  await killSupervisor(supervisor)
  t.ok(isAlive(supervisor.pid), 'an orphan')

  const server = await start(t, folder)
  t.notOk((await pidsOf(folder)).includes(supervisor.pid), 'the orphan is gone')
  t.not(server.pid, supervisor.pid)
  t.ok(await hasRow(server.url))
})

t.test('children that outlived their postmaster are gone before the next one starts', async t => {
  const folder = await sharedFolder(t)
  const first = await start(t, folder)
  const processes = await serverProcesses(join(folder, 'pgdata'))
  const children = processes.filter(one => one.pid !== first.pid)
  t.ok(children.length > 0)
  signalAll(children, 'SIGSTOP') // so that they cannot notice its death
  process.kill(first.pid ?? -1, 'SIGKILL')
  await first.exited

  const second = await start(t, folder)
  const pids = await pidsOf(folder)
  t.notOk(
    children.some(child => pids.includes(child.pid)),
    'all are new',
  )
  t.ok(await hasRow(second.url))
})

t.test('a second start on a folder in use is refused and harms nothing', async t => {
  const folder = await sharedFolder(t)
  const supervisor = await startSupervisor(t, folder)
  const refusal = { code: 'DATA_IN_USE', data: { pid: supervisor.process.pid } }
  await t.rejects(startEmbeddedPostgres({ folder, log: silent }), refusal, 'another process has it')
  t.ok(await hasRow(supervisor.url))
  supervisor.process.stdin?.end()
  await once(supervisor.process, 'exit')

  const server = await start(t, folder)
  await t.rejects(startEmbeddedPostgres({ folder, log: silent }), { code: 'DATA_IN_USE', data: { pid: process.pid } })
  t.ok(await hasRow(server.url))
  await rm(join(folder, 'lock'))
  await writeFile(join(folder, 'lock'), '{"torn')
  t.strictSame(
    (await serverProcesses(join(folder, 'pgdata'))).some(one => one.pid === server.pid),
    true,
  )
})

t.test('lock files whose pid now is another program are no obstacle', async t => {
  const folder = await sharedFolder(t)
  const first = await start(t, folder)
  const pidFile = join(folder, 'pgdata/postmaster.pid')
  const content = await readFile(pidFile, 'utf8')
  await first.close()
  // As after the restart of a container: both pids live, as something else.
  await writeFile(pidFile, content.replace(/^\d+/, String(process.pid)))
  await writeFile(join(folder, 'socket/.s.PGSQL.5432.lock'), content.replace(/^\d+/, String(process.pid)))
  await writeFile(join(folder, 'lock'), JSON.stringify({ pid: process.pid, identity: 'of an earlier boot' }))
  const second = await start(t, folder)
  t.ok(await hasRow(second.url))
})

t.test('when the server dies by itself `exited` resolves and the next start works at once', async t => {
  const folder = await sharedFolder(t)
  const first = await start(t, folder)
  process.kill(first.pid ?? -1, 'SIGKILL')
  await first.exited
  const second = await start(t, folder)
  t.ok(await hasRow(second.url))
  await first.close()
  t.ok(await hasRow(second.url), 'closing the dead one does not touch its successor')
})

t.test('an aborted start leaves no process, and the next one works', async t => {
  const folder = await temporaryFolder(t)
  const [early, duringInit] = [AbortSignal.abort(new Error('changed my mind')), new AbortController()]
  await t.rejects(startEmbeddedPostgres({ folder, log: silent, signal: early }), { message: 'changed my mind' })
  const starting = startEmbeddedPostgres({ folder, log: silent, signal: duringInit.signal })
  while (!existsSync(join(folder, 'pgdata.new/PG_VERSION'))) await new Promise(resolve => setImmediate(resolve))
  duringInit.abort(new Error('too slow'))
  await t.rejects(starting, { message: 'too slow' })
  t.strictSame(await serverProcesses(join(folder, 'pgdata')), [])

  const whileStarting = new AbortController()
  const initialised = startEmbeddedPostgres({ folder, log: silent, signal: whileStarting.signal })
  while (!existsSync(join(folder, 'pgdata/postmaster.pid'))) await new Promise(resolve => setImmediate(resolve))
  whileStarting.abort(new Error('still too slow'))
  await t.rejects(initialised, { message: 'still too slow' })
  t.strictSame(await serverProcesses(join(folder, 'pgdata')), [])

  const server = await start(t, folder)
  await writeRow(server.url)
})

t.test('a folder whose path is too long for a socket gets one elsewhere, the same at each start', async t => {
  const folder = join(await temporaryFolder(t), 'long'.repeat(25), "blank, 'quote' and ümlaut")
  const first = await start(t, folder)
  const socketFolder = await readFile(join(folder, 'socket-folder'), 'utf8')
  t.teardown(() => rm(socketFolder, { recursive: true, force: true }))
  await writeRow(first.url)
  t.equal((await stat(socketFolder)).mode & 0o777, 0o700)
  await first.close()
  const second = await start(t, folder)
  t.equal(second.url, first.url)
  await second.close()
  // A cleaner of the temporary folder, or somebody who got there first, must not matter.
  await rm(socketFolder, { recursive: true })
  await mkdir(socketFolder, { mode: 0o777 })
  await chmod(socketFolder, 0o777)
  const third = await start(t, folder)
  t.teardown(async () => rm(await readFile(join(folder, 'socket-folder'), 'utf8'), { recursive: true, force: true }))
  t.not(third.url, first.url, 'a folder that others can enter is not used')
  t.ok(await hasRow(third.url))
  await third.close()
})

t.test('data of a version that nobody here can serve is refused and left alone', async t => {
  const folder = await temporaryFolder(t)
  await mkdir(join(folder, 'pgdata'))
  await writeFile(join(folder, 'pgdata/PG_VERSION'), '9\n')
  const refusal = { code: 'POSTGRES_START_FAILED', data: { dataMajor: 9 }, message: /PostgreSQL 9/ }
  await t.rejects(startEmbeddedPostgres({ folder, log: silent }), refusal)
  t.strictSame(await readdir(join(folder, 'pgdata')), ['PG_VERSION'])
  await rm(join(folder, 'pgdata/PG_VERSION'))
  await writeFile(join(folder, 'pgdata/something'), '')
  await t.rejects(startEmbeddedPostgres({ folder, log: silent }), { code: 'POSTGRES_START_FAILED' }, 'not overwritten')
  t.strictSame(await readdir(join(folder, 'pgdata')), ['something'])
})

t.test('a server that does not start says why', async t => {
  const folder = await sharedFolder(t)
  const configuration = join(folder, 'pgdata/postgresql.conf')
  const good = await readFile(configuration)
  t.teardown(() => writeFile(configuration, good))
  await writeFile(configuration, 'no_such_setting = on\n')
  const refusal = { code: 'POSTGRES_START_FAILED', data: { log: /no_such_setting/ } }
  // A start that was killed in another test may have left a file of its own.
  const locks = async () => (await readdir(folder)).filter(name => name.startsWith('lock'))
  const before = await locks()
  const error: unknown = await startEmbeddedPostgres({ folder, log: silent }).catch((thrown: unknown) => thrown)
  t.match({ ...(error as object), data: { log: String((error as { data: { log: unknown } }).data.log) } }, refusal)
  t.strictSame(await locks(), before)
})

t.test('data made by a PostgreSQL of the machine stays with it', async t => {
  const majors = await readdir('/usr/lib/postgresql').catch(() => [] as string[])
  const major = majors.find(name => Number(name) >= 14 && Number(name) !== 18)
  if (major === undefined) return void t.pass('skipped: no second PostgreSQL on this machine')
  const folder = await temporaryFolder(t)
  const data = join(folder, 'pgdata')
  const initdb = [`/usr/lib/postgresql/${major}/bin/initdb`, '-A', 'trust', '-U', 'holdfast', '-D', data]
  const as = isRoot ? ['unshare', '--user', `--map-user=${nobody}`, `--map-group=${nobody}`] : ['env']
  execFileSync(as[0] ?? '', [...as.slice(1), ...initdb], { stdio: 'ignore' })
  const server = await start(t, folder)
  t.equal(server.kind, 'system')
  t.match(await query(server.url, 'show server_version_num'), [{ server_version_num: new RegExp(`^${major}`) }])
})

t.test('a large log is set aside at the next start', async t => {
  const folder = await sharedFolder(t)
  await writeFile(join(folder, 'postgres.log'), Buffer.alloc(5 * 1024 * 1024, 'x\n'))
  await start(t, folder)
  t.equal((await stat(join(folder, 'postgres.log.1'))).size, 5 * 1024 * 1024)
  t.ok((await stat(join(folder, 'postgres.log'))).size < 64 * 1024)
})

t.test('data of PGlite stays with PGlite, says that it is not safe, and is opened once', async t => {
  const folder = await temporaryFolder(t)
  await mkdir(join(folder, 'pglite'))
  await writeFile(join(folder, 'pglite/PG_VERSION'), '17\n')
  const lines: string[] = []
  const server = await start(t, folder, pino({ level: 'warn' }, { write: line => lines.push(line) }))
  t.match(server, { kind: 'pglite', url: `pglite:${folder}/pglite`, pid: undefined })
  t.match(lines.join(''), /no fsync/)
  await t.rejects(startEmbeddedPostgres({ folder, log: silent }), { code: 'DATA_IN_USE' })
  await server.close()
  await (await start(t, folder)).close()
})

t.test('as root', { skip: isRoot ? false : 'needs root' }, async t => {
  t.test('it runs in a folder that nobody else can reach, with an inconvenient name', async t => {
    const home = await temporaryFolder(t)
    await chmod(home, 0o700)
    const server = await start(t, join(home, 'a, \'b\' "c" ü'))
    await writeRow(server.url)
    t.ok(await hasRow(server.url))
    await server.close()
  })

  t.test('data of another user is served as that user; where he cannot go it changes hands', async t => {
    const folder = await sharedFolder(t)
    const first = await start(t, folder)
    await first.close()
    execFileSync('chown', ['-R', `${nobody}:${nobody}`, folder])
    const second = await start(t, folder)
    const { uid } = await stat(`/proc/${second.pid}`)
    t.equal(uid, nobody)
    t.equal((await stat(join(folder, 'pgdata'))).uid, nobody, 'he keeps it')
    t.ok(await hasRow(second.url))
    await second.close()

    const home = await temporaryFolder(t)
    await rename(folder, join(home, 'moved'))
    const third = await start(t, join(home, 'moved'))
    t.ok(await hasRow(third.url))
    await third.close()
    await rename(join(home, 'moved'), folder)
  })

  t.test('an ordinary user can run it too, and is told when the data is not his', async t => {
    if (!existsSync('/usr/bin/setpriv')) return void t.pass('skipped: no setpriv')
    const as = ['setpriv', `--reuid=${nobody}`, `--regid=${nobody}`, '--clear-groups']
    try {
      execFileSync(as[0] ?? '', [...as.slice(1), 'test', '-r', built, '-a', '-x', process.execPath])
    } catch {
      return void t.pass('skipped: the project stands where an ordinary user cannot read it')
    }
    const folder = await temporaryFolder(t)
    await chown(folder, nobody, nobody)
    const supervisor = await startSupervisor(t, folder, as)
    await writeRow(supervisor.url)
    const processes = await serverProcesses(join(folder, 'pgdata'))
    t.ok(processes.length > 1)
    for (const { pid } of processes) t.equal((await stat(`/proc/${pid}`)).uid, nobody)
    supervisor.process.stdin?.end()
    await once(supervisor.process, 'exit')
    t.strictSame(await serverProcesses(join(folder, 'pgdata')), [])

    await chown(join(folder, 'pgdata'), 0, 0)
    const refused = await startSupervisor(t, folder, as)
    t.match(refused.refusal, /POSTGRES_START_FAILED: .*belongs to uid 0, this is uid 65534/)
  })
})

t.test('the server ends when its supervisor is killed', async t => {
  if (!existsSync('/usr/bin/setpriv')) return void t.pass('skipped: no setpriv')
  const folder = await sharedFolder(t)
  const supervisor = await startSupervisor(t, folder)
  await killSupervisor(supervisor)
  t.ok(await waitUntilGone(join(folder, 'pgdata'), 10_000))
  const answer = once(connect(join(folder, 'socket/.s.PGSQL.5432')), 'connect')
  await t.rejects(answer, { code: /ENOENT|ECONNREFUSED/ })
})

t.test('versions', async t => {
  t.strictSame(parseVersion('postgres (PostgreSQL) 18.4\n'), { version: '18.4', major: 18 })
  t.strictSame(parseVersion('postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)'), { version: '15.18', major: 15 })
  t.strictSame(parseVersion('postgres (PostgreSQL) 19beta1'), { version: '19beta1', major: 19 })
  t.equal(parseVersion('something else'), undefined)
  t.match(unfit(13, undefined), /14 is the oldest/)
  t.equal(unfit(14, undefined), undefined)
  t.match(unfit(18, 15), /the data is of 15/)
  t.equal(unfit(15, 15), undefined)
})

t.test('who the server can run as', async t => {
  const passwd =
    'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533::/:/bin/false\nalice:x:1001:1001::/home/alice:/bin/sh\n'
  const names = (facts: Partial<Parameters<typeof waysToRun>[0]>): readonly string[] =>
    waysToRun({ uid: 0, dataOwner: undefined, passwd, canDieWithParent: true, ...facts }).map(way => way.name)
  t.strictSame(names({ uid: 1001 }), ['self'])
  t.strictSame(names({ uid: 4711 }), ['namespace', 'self'], 'initdb wants a name for its uid')
  t.strictSame(names({}), ['namespace', 'nobody', 'nobody-reaching'])
  t.strictSame(names({ dataOwner: { uid: 0, gid: 0 } }), ['namespace', 'nobody', 'nobody-reaching'])
  t.strictSame(names({ dataOwner: { uid: 1001, gid: 7 } }), ['owner', 'namespace', 'nobody', 'nobody-reaching'])
  t.strictSame(names({ uid: 501, passwd: '' }), ['self'])
  for (const way of waysToRun({ uid: 0, dataOwner: undefined, passwd, canDieWithParent: false })) {
    t.notOk(way.prefix.includes('--pdeathsig'), `${way.name} without what this setpriv does not know`)
  }
  t.match(waysToRun({ uid: 0, dataOwner: undefined, passwd, canDieWithParent: true }), [
    { prefix: ['unshare', '--user', '--map-user=65534', '--map-group=65533', 'setpriv', '--pdeathsig', 'INT'] },
    { prefix: ['setpriv', '--pdeathsig', 'INT'], uid: 65534, gid: 65533 },
    { prefix: ['setpriv', '--reuid=65534', '--regid=65533', '--clear-groups'] },
  ])
})
