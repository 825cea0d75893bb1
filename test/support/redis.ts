import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { access, mkdtemp, rm } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { createInterface } from 'node:readline'
import { Redis } from 'ioredis'
import type { Test } from 'tap'

/** A Redis server of one test file, without persistence; everything is gone after the test. */
export interface TestRedis {
  /** Stays the same after `stop` and `start`. */
  readonly url: string
  /** Undefined while the server is down. */
  readonly pid: number | undefined
  /** SIGKILL: what it held is lost, as Holdfast must bear. */
  stop(): Promise<void>
  start(): Promise<void>
  /** SIGSTOP: connections stay open and nothing answers. */
  pause(): void
  resume(): void
  flushAll(): Promise<void>
}

/**
 * Starts a private redis-server on a free port. It is found on PATH, else installed with apt-get when the tests run as
 * root, else this rejects and says what to install.
 */
export async function startTestRedis(t: Pick<Test, 'teardown'>): Promise<TestRedis> {
  const program = await findOrInstall()
  const folder = await mkdtemp(join(tmpdir(), 'hf-redis-'))
  let child: ChildProcess | undefined
  const stop = async (): Promise<void> => {
    const running = child
    child = undefined
    if (running === undefined) return
    const exited = once(running, 'exit')
    running.kill('SIGKILL') // reaches a stopped process too
    await exited
  }
  t.teardown(async () => {
    await stop()
    await rm(folder, { recursive: true, force: true })
  })
  const first = await launchOnFreePort(program, folder)
  child = first.child
  const url = `redis://127.0.0.1:${first.port}`
  return {
    url,
    get pid() {
      return child?.pid
    },
    stop,
    start: async () => {
      child ??= await launch(program, folder, first.port)
    },
    pause: () => void child?.kill('SIGSTOP'),
    resume: () => void child?.kill('SIGCONT'),
    flushAll: async () => {
      const client = new Redis(url, { lazyConnect: true, retryStrategy: () => null })
      await client.connect()
      await client.flushall()
      await client.quit()
    },
  }
}

/** Somebody may take the port between choosing and binding: then another one. */
async function launchOnFreePort(program: string, folder: string): Promise<{ child: ChildProcess; port: number }> {
  for (let attempt = 1; ; attempt++) {
    const port = await freePort()
    try {
      return { child: await launch(program, folder, port), port }
    } catch (error) {
      if (attempt === 5) throw error
    }
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** Resolves when the server accepts connections; rejects with its last lines when it ends before. */
async function launch(program: string, folder: string, port: number): Promise<ChildProcess> {
  const settings = ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--save', '', '--appendonly', 'no']
  const dieWithUs = (await findOnPath('setpriv')) === undefined ? [] : ['setpriv', '--pdeathsig', 'KILL']
  const [file = program, ...args] = [...dieWithUs, program, ...settings]
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const lines: string[] = []
  const output = createInterface({ input: child.stdout })
  await new Promise<void>((resolve, reject) => {
    output.on('line', line => {
      if (lines.push(line) > 20) lines.shift()
      if (/ready to accept connections/i.test(line)) resolve()
    })
    child.once('error', reject)
    child.once('exit', code => reject(new Error(`redis-server ended with ${code}: ${lines.join('\n')}`)))
  })
  return child
}

async function findOrInstall(): Promise<string> {
  const found = await findOnPath('redis-server')
  if (found !== undefined) return found
  const apt = await findOnPath('apt-get')
  if (apt === undefined || process.getuid?.() !== 0) {
    throw new Error(
      'these tests need redis-server on PATH: install it (Debian and Ubuntu: apt-get install redis-server)',
    )
  }
  await install()
  const installed = await findOnPath('redis-server')
  if (installed === undefined) throw new Error('apt-get install redis-server succeeded, but there is no redis-server')
  return installed
}

/**
 * flock: several test files may come here at once; all but the first find it installed. Debian starts the service right
 * after the installation: it was not wanted by anybody, so it is stopped and does not come back at the next boot.
 */
async function install(): Promise<void> {
  const script = `
    command -v redis-server >/dev/null && exit 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server || exit 1
    if [ -d /run/systemd/system ]; then systemctl disable --now redis-server
    else [ ! -x /etc/init.d/redis-server ] || /etc/init.d/redis-server stop; update-rc.d redis-server disable; fi
    exit 0`
  const lock = join(tmpdir(), 'holdfast-test-apt.lock')
  const child = spawn('flock', [lock, 'sh', '-c', script], { stdio: ['ignore', 'ignore', 'inherit'] })
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', resolve)
  })
  if (code !== 0) throw new Error(`apt-get install redis-server failed (${code}): install it by hand`)
}

async function findOnPath(name: string): Promise<string | undefined> {
  for (const folder of (process.env['PATH'] ?? '').split(delimiter)) {
    const path = join(folder, name)
    const exists = await access(path).then(
      () => true,
      () => false,
    )
    if (folder !== '' && exists) return path
  }
  return undefined
}
