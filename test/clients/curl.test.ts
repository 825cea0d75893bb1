/** A newcomer's first hour: `holdfast up`, and curl as the only client. */
import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { hash } from 'node:crypto'
import { chown, mkdtemp, mkdir, readdir, readFile, readlink, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { freePort } from '../support/cluster.ts'
import { eventually } from '../support/eventually.ts'
import { mainFile } from '../support/process.ts'
import { seededRandom, type Random } from '../support/random.ts'

interface Result {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

async function run(file: string, args: readonly string[], env = process.env): Promise<Result> {
  return new Promise(resolve => {
    execFile(file, args, { env, maxBuffer: 64 * 1024 * 1024, encoding: 'latin1' }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code ?? -1), stdout, stderr })
    })
  })
}

/** Processes that run from this folder, or with it on their command line, but for ourselves. */
async function processesOf(folder: string): Promise<number[]> {
  const found: number[] = []
  for (const name of await readdir('/proc')) {
    const pid = Number(name)
    if (!Number.isInteger(pid) || pid === process.pid) continue
    const command = await readFile(`/proc/${pid}/cmdline`, 'latin1').catch(() => '')
    const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => '')
    if (command.includes(folder) || cwd.startsWith(folder)) found.push(pid)
  }
  return found
}

/** A secret that is no matter of the storage nodes. */
const proxyOnly = 'what only a proxy may know'

class Newcomer {
  readonly folder: string
  readonly data: string
  readonly url: string
  readonly #env: NodeJS.ProcessEnv
  /** Put before the program: to start it as somebody else. */
  readonly #wrapper: readonly string[]
  #up: ChildProcess | undefined
  #exited: Promise<number | null> = Promise.resolve(null)
  output = ''
  password = ''

  constructor(folder: string, port: number, wrapper: readonly string[] = []) {
    this.folder = folder
    this.#wrapper = wrapper
    this.data = join(folder, 'data')
    this.url = `http://127.0.0.1:${port}`
    // Neither the settings of whoever runs the tests nor the instruments of the test runner.
    const { PATH, HOME } = process.env
    const theirs = {
      HOLDFAST_STAGED_HOLD_MS: '90m',
      HOLDFAST_BACKUP_PASSPHRASE: proxyOnly,
      AWS_SECRET_ACCESS_KEY: proxyOnly,
    }
    this.#env = { PATH, HOME, HOLDFAST_DATA: this.data, HOLDFAST_PORT: String(port), ...theirs }
  }

  /** Resolves when the last line, with the URL, was printed. */
  async up(): Promise<void> {
    const [file = '', ...args] = [...this.#wrapper, process.execPath, mainFile, 'up']
    const child = spawn(file, args, { env: this.#env, stdio: ['ignore', 'pipe', 'pipe'] })
    this.#up = child
    this.#exited = new Promise(resolve => child.once('exit', resolve))
    this.output = ''
    const keep = (line: string): string => (this.output += line + '\n')
    createInterface({ input: child.stderr }).on('line', keep)
    const ready = new Promise<'ready'>(resolve => {
      createInterface({ input: child.stdout }).on('line', line => {
        keep(line)
        if (line.startsWith('Holdfast is ready: ')) resolve('ready')
      })
    })
    if ((await Promise.race([ready, this.#exited])) !== 'ready') throw new Error(`no start:\n${this.output}`)
    this.password = (await readFile(join(this.data, 'admin.password'), 'utf8')).trim()
  }

  /** A second one, on the same data; resolves when it ends. */
  upAgain(port: number): Promise<Result> {
    const [file = '', ...args] = [process.execPath, mainFile, 'up']
    return run(file, args, { ...this.#env, HOLDFAST_PORT: String(port) })
  }

  /** Ctrl-C; resolves with the exit code. */
  async interrupt(): Promise<number | null> {
    this.#up?.kill('SIGINT')
    return this.#exited
  }

  /** SIGKILL to everything at once. */
  async killAll(): Promise<void> {
    for (let pids = await processesOf(this.folder); pids.length > 0; pids = await processesOf(this.folder)) {
      for (const pid of [this.#up?.pid ?? 0, ...pids]) if (pid > 1) kill(pid)
    }
    this.#up?.kill('SIGKILL')
    await this.#exited
  }

  curl(path: string, ...args: string[]): Promise<Result> {
    return run('curl', ['-sS', '-u', `admin:${this.password}`, ...args, `${this.url}/repository/raw/${path}`])
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has just ended.
  }
}

async function start(t: Test, user?: { readonly id: number; readonly wrapper: readonly string[] }): Promise<Newcomer> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-curl-'))
  if (user !== undefined) await chown(folder, user.id, user.id)
  const newcomer = new Newcomer(folder, await freePort(), user?.wrapper)
  t.teardown(async () => {
    await newcomer.killAll()
    await rm(folder, { recursive: true, force: true })
  })
  const since = performance.now()
  await newcomer.up()
  t.comment(`ready after ${(performance.now() - since).toFixed(0)} ms`)
  return newcomer
}

async function fileOf(folder: string, name: string, bytes: Buffer): Promise<string> {
  const file = join(folder, name)
  await writeFile(file, bytes)
  return file
}

const noCurl = (await run('curl', ['--version'])).code === 0 ? false : 'needs curl'

t.test('holdfast up, and curl', { skip: noCurl }, async t => {
  const random = seededRandom(t)
  const newcomer = await start(t)
  const { folder } = newcomer
  const body = random.bytes(5_000_000)
  const file = await fileOf(folder, 'tool.tar.gz', body)

  await t.test('says what a newcomer needs to know', async t => {
    t.match(newcomer.output, /Administrator: user admin, password \S+ \(kept in .*admin\.password\)/)
    t.equal((await stat(join(newcomer.data, 'admin.password'))).mode & 0o777, 0o600)
    t.match(newcomer.output.trimEnd().split('\n').at(-1), /^Holdfast is ready: http:/, 'the last line is the URL')
    const names = (await readdir(join(newcomer.data, 'run'))).filter(name => name.endsWith('.pid'))
    t.strictSame(
      names.sort(),
      ['node-a', 'node-b', 'node-c', 'postgres', 'proxy', 'up'].map(name => `${name}.pid`),
    )
  })

  await t.test(
    'gives its processes the settings that they have, and the storage nodes no secret but theirs',
    async t => {
      const environmentOf = async (name: string): Promise<string[]> => {
        const pid = (await readFile(join(newcomer.data, 'run', `${name}.pid`), 'utf8')).trim()
        return (await readFile(`/proc/${pid}/environ`, 'utf8')).split('\0')
      }
      for (const node of ['node-a', 'node-b', 'node-c']) {
        const environment = await environmentOf(node)
        t.equal(
          environment.find(one => one.includes(proxyOnly) || one.includes(newcomer.password)),
          undefined,
          node,
        )
        t.ok(environment.includes('HOLDFAST_STAGED_HOLD_MS=90m'))
        t.ok(environment.some(one => one.startsWith('PATH=')))
      }
      t.ok((await environmentOf('proxy')).includes(`HOLDFAST_BACKUP_PASSPHRASE=${proxyOnly}`))
    },
  )

  await t.test('uploads: a file, a pipe, with and without 100-continue', async t => {
    const put = await newcomer.curl('tool.tar.gz', '-T', file, '-w', '%{http_code}')
    t.equal(put.stdout, '201', put.stderr)
    const expecting = ['-H', 'Expect: 100-continue', '--expect100-timeout', '30', '-v']
    const polite = await newcomer.curl('polite', '-T', file, ...expecting)
    t.match(polite.stderr, /< HTTP\/1\.1 100 Continue[\s\S]*< HTTP\/1\.1 201/, 'the body was asked for')
    const piped = await newcomer.curl('piped', '-X', 'PUT', '--data-binary', `@${file}`, '-H', 'Transfer-Encoding: chunked', '-w', '%{http_code}') // prettier-ignore
    t.equal(piped.stdout, '201', piped.stderr)
    for (const name of ['tool.tar.gz', 'polite', 'piped']) {
      const { stdout } = await newcomer.curl(name)
      t.equal(hash('sha256', Buffer.from(stdout, 'latin1')), hash('sha256', body), name)
    }
  })

  await t.test('refused before the body is sent: no credentials, no such repository', async t => {
    const stranger = await run('curl', ['-sS', '-v', '-T', file, '-H', 'Expect: 100-continue', '--expect100-timeout', '30', `${newcomer.url}/repository/raw/x`]) // prettier-ignore
    t.match(stranger.stderr, /< HTTP\/1\.1 401/)
    t.notMatch(stranger.stderr, /100 Continue/)
    t.match(stranger.stdout, /UNAUTHORIZED/)
    const nowhere = await newcomer.curl('../none/x', '--path-as-is', '-T', file, '-w', '%{http_code}')
    t.match(nowhere.stdout, /PATH_INVALID[\s\S]*400$/)
  })

  await t.test('downloads: ranges, resumption, revalidation, heads', async t => {
    const part = await newcomer.curl('tool.tar.gz', '-r', '1000-1999')
    t.equal(Buffer.from(part.stdout, 'latin1').equals(body.subarray(1000, 2000)), true, '-r')
    const last = await newcomer.curl('tool.tar.gz', '-r', '-10', '-w', '%{http_code}')
    t.equal(Buffer.from(last.stdout.slice(0, -3), 'latin1').equals(body.subarray(-10)), true, 'the last bytes')
    const partial = await fileOf(folder, 'partial', body.subarray(0, 1_234_567))
    const resumed = await newcomer.curl('tool.tar.gz', '-C', '-', '-o', partial, '-w', '%{http_code}')
    t.equal(resumed.stdout, '206', resumed.stderr)
    t.equal((await readFile(partial)).equals(body), true, '-C - completes what was there')
    const etag = `"${hash('sha256', body)}"`
    const again = await newcomer.curl('tool.tar.gz', '-H', `If-None-Match: ${etag}`, '-w', '%{http_code}')
    t.equal(again.stdout, '304', 'nothing is sent twice')
    const head = await newcomer.curl('tool.tar.gz', '-I')
    t.match(head.stdout, /Content-Length: 5000000/i)
    t.match(head.stdout.toLowerCase(), `etag: ${etag}`)
    const checksum = await newcomer.curl('tool.tar.gz.sha256')
    t.equal(checksum.stdout.trim(), hash('sha256', body), 'the checksum beside it')
    t.equal((await newcomer.curl('missing', '-w', '%{http_code}', '-o', '/dev/null')).stdout, '404')
  })

  await t.test('a second start on the same data is refused, and says why', async t => {
    const second = await newcomer.upAgain(await freePort())
    t.not(second.code, 0)
    t.match(second.stderr, /data folder .* is already in use by process \d+/)
    t.equal((await newcomer.curl('tool.tar.gz', '-o', '/dev/null', '-w', '%{http_code}')).stdout, '200')
  })

  await t.test('a start on a port that is taken is refused, and says what to do', async t => {
    const other = new Newcomer(join(folder, 'other'), Number(new URL(newcomer.url).port))
    await mkdir(other.folder)
    await t.rejects(other.up(), /port \d+ is in use.*HOLDFAST_PORT/)
    t.strictSame(await processesOf(other.folder), [])
  })

  await t.test('a tree of files goes in and out while a node is killed in between', async t => {
    const files = await makeTree(random, join(folder, 'tree'), 300)
    const victim = Number(await readFile(join(newcomer.data, 'run', 'node-b.pid'), 'utf8'))
    const upload = run('curl', transferArguments(newcomer, files, 'put'))
    await eventually('some files arrived', async () => {
      const { stdout } = await newcomer.curl('tree/', '-H', 'Accept: application/json')
      return stdout.length > 2_000
    })
    process.kill(victim, 'SIGKILL')
    const { stdout, stderr } = await upload
    t.equal(stdout.split('\n').filter(code => code === '201').length, files.length, stderr)
    await run('curl', transferArguments(newcomer, files, 'get'))
    for (const { name, bytes } of files) {
      const found = await readFile(join(folder, 'out', name))
      if (!found.equals(bytes)) t.fail(`${name} differs`)
    }
    await eventually('the node was started again', async () => {
      return Number(await readFile(join(newcomer.data, 'run', 'node-b.pid'), 'utf8')) !== victim
    })
  })

  await t.test('I4: after kill -9 of everything it starts again, and nothing is lost', async t => {
    const written = await newcomer.curl('just-written', '-T', file, '-w', '%{http_code}')
    t.equal(written.stdout, '201')
    await newcomer.killAll()
    t.strictSame(await processesOf(folder), [])
    await newcomer.up()
    t.notMatch(newcomer.output, /password/, 'the password is the same as before, and is not shown again')
    for (const name of ['tool.tar.gz', 'polite', 'just-written', 'tree/17.txt']) {
      const { stdout } = await newcomer.curl(name, '-o', '/dev/null', '-w', '%{http_code}')
      t.equal(stdout, '200', name)
    }
    const { stdout } = await newcomer.curl('just-written')
    t.equal(Buffer.from(stdout, 'latin1').equals(body), true)
    t.equal((await newcomer.curl('after', '-T', file, '-w', '%{http_code}')).stdout, '201')
  })

  await t.test('the supervisor alone is killed: its processes end with it, and a start succeeds', async t => {
    const supervisor = Number(await readFile(join(newcomer.data, 'run', 'up.pid'), 'utf8'))
    process.kill(supervisor, 'SIGKILL')
    await newcomer.up()
    t.equal((await newcomer.curl('after', '-o', '/dev/null', '-w', '%{http_code}')).stdout, '200')
  })

  await t.test('Ctrl-C ends it and leaves no process behind', async t => {
    t.equal(await newcomer.interrupt(), 0, newcomer.output)
    t.strictSame(await processesOf(folder), [])
    t.strictSame(
      (await readdir(join(newcomer.data, 'run'))).filter(name => name.endsWith('.pid')),
      [],
      'nor a pid file',
    )
    await newcomer.up()
    t.equal((await newcomer.curl('after', '-o', '/dev/null', '-w', '%{http_code}')).stdout, '200', 'all is still there')
  })
})

const nobody = 65534
const asNobody = ['setpriv', `--reuid=${nobody}`, `--regid=${nobody}`, '--clear-groups', '--']
const noOther = (await run(asNobody[0] ?? '', [...asNobody.slice(1), 'test', '-r', mainFile])).code !== 0

t.test(
  'holdfast up as an ordinary user',
  { skip: noCurl || (noOther ? 'needs root, and a tree that others may read' : false) },
  async t => {
    const newcomer = await start(t, { id: nobody, wrapper: asNobody })
    const file = await fileOf(newcomer.folder, 'file', Buffer.from('an ordinary file'))
    const put = await newcomer.curl('file', '-T', file, '-w', '%{http_code}')
    t.equal(put.stdout, '201', put.stderr)
    t.equal((await newcomer.curl('file')).stdout, 'an ordinary file')
    t.equal((await stat(join(newcomer.data, 'cluster.json'))).uid, nobody)
    t.equal(await newcomer.interrupt(), 0, newcomer.output)
    t.strictSame(await processesOf(newcomer.folder), [])
  },
)

interface TreeFile {
  readonly name: string
  readonly bytes: Buffer
}

async function makeTree(random: Random, folder: string, count: number): Promise<TreeFile[]> {
  await mkdir(folder)
  const files: TreeFile[] = []
  for (let index = 0; index < count; index++) {
    const name = `${index}.txt`
    const bytes = random.bytes(random.pick([0, 120, 3_000, 20_000, 90_000]))
    await writeFile(join(folder, name), bytes)
    files.push({ name, bytes })
  }
  return files
}

/** One curl for all files, in parallel, like a build tool that publishes. */
function transferArguments(newcomer: Newcomer, files: readonly TreeFile[], direction: 'put' | 'get'): string[] {
  const args = ['-sS', '-Z', '--parallel-max', '8']
  files.forEach(({ name }, index) => {
    if (index > 0) args.push('--next', '-sS')
    args.push('-u', `admin:${newcomer.password}`)
    if (direction === 'put')
      args.push('-T', join(newcomer.folder, 'tree', name), '-w', '%{http_code}\n', '-o', '/dev/null')
    else args.push('--create-dirs', '-o', join(newcomer.folder, 'out', name))
    args.push(`${newcomer.url}/repository/raw/tree/${name}`)
  })
  return args
}
