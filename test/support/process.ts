/** A real process of the product under test, and every way to treat it badly. */
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, existsSync, openSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { builtFile } from './paths.ts'

export interface ProcessOptions {
  readonly name: string
  /** Behind `holdfast`: the command and its flags. */
  readonly args: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly logFile: string
  readonly readyMs?: number
  /** Put before the program, e.g. ['strace', '-f', …]. The process must still be the one that speaks on the channel. */
  readonly wrapper?: readonly string[]
  /** Of another build than the one that is tested. */
  readonly mainFile?: string
}

/** HOLDFAST_TEST_MAIN tests another build than this tree's: an older release, an installed package. */
export const mainFile = process.env['HOLDFAST_TEST_MAIN'] ?? builtFile('cli/main.ts')

const setpriv = (process.env['PATH'] ?? '')
  .split(':')
  .map(folder => join(folder, 'setpriv'))
  .find(existsSync)

export class TestProcess {
  readonly name: string
  readonly #options: ProcessOptions
  /** Read at each start: another build takes its place with a restart. */
  mainFile: string
  #child: ChildProcess | undefined
  #exited: Promise<string> = Promise.resolve('never started')
  #url: string | undefined
  /** How often it ended without being asked to. */
  crashes = 0
  #asked = false

  constructor(options: ProcessOptions) {
    this.name = options.name
    this.#options = options
    this.mainFile = options.mainFile ?? mainFile
    if (!existsSync(this.mainFile)) throw new Error(`${this.mainFile} is missing: run npm run build`)
  }

  get pid(): number {
    const pid = this.#child?.pid
    if (pid === undefined) throw new Error(`${this.name} does not run`)
    return pid
  }

  get running(): boolean {
    return this.#child !== undefined
  }

  /** What it said when it was ready. */
  get url(): string {
    if (this.#url === undefined) throw new Error(`${this.name} was never ready`)
    return this.#url
  }

  /** Resolves when the process says that it serves. */
  async start(): Promise<void> {
    await this.launch()
  }

  /** Starts it with `extra` flags and resolves when it is ready; `ready: false` does not wait for that. */
  async launch({ extra = [], ready = true }: { extra?: readonly string[]; ready?: boolean } = {}): Promise<void> {
    const { args, env, logFile, wrapper = [] } = this.#options
    if (this.#child !== undefined) throw new Error(`${this.name} runs already`)
    const output = openSync(logFile, 'a')
    // A test that is killed takes its processes along, also those it had stopped.
    const prefix = setpriv === undefined ? [] : [setpriv, '--pdeathsig', 'KILL', '--']
    const command = [...prefix, ...wrapper, process.execPath, '--enable-source-maps', this.mainFile, ...args, ...extra]
    const child = spawn(command[0] as string, command.slice(1), {
      env: { PATH: process.env['PATH'] ?? '', ...env },
      stdio: ['ignore', output, output, 'ipc'],
      // A group of its own: a signal reaches its workers too, and a Ctrl-C in the terminal reaches only the test.
      detached: true,
    })
    closeSync(output)
    this.#child = child
    this.#asked = false
    this.#exited = new Promise(resolve => {
      const ended = (how: string): void => {
        if (this.#child === child) this.#child = undefined
        if (!this.#asked) this.crashes++
        resolve(how)
      }
      child.once('exit', (code, signal) => ended(signal ?? `exit code ${code}`))
      child.once('error', error => ended(error.message))
    })
    if (ready) await this.#ready(child)
  }

  /** SIGKILL to the process and what it started; resolves when it is gone. */
  async kill(): Promise<void> {
    if (this.#child === undefined) return
    this.#asked = true
    this.signal('SIGKILL')
    await this.#exited
  }

  /** SIGSTOP: its connections stay open and nothing answers. */
  stop(): void {
    this.signal('SIGSTOP')
  }

  cont(): void {
    this.signal('SIGCONT')
  }

  /** SIGTERM; resolves with how it ended, rejects (after SIGKILL) if that takes longer than `withinMs`. */
  async terminate(withinMs = 40_000): Promise<string> {
    if (this.#child === undefined) return 'not running'
    this.#asked = true
    // Only the process itself: whether it ends its workers is its own business.
    this.#child.kill('SIGTERM')
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<undefined>(resolve => (timer = setTimeout(resolve, withinMs, undefined)))
    const how = await Promise.race([this.#exited, late])
    clearTimeout(timer)
    if (how !== undefined) return how
    await this.kill()
    throw new Error(`${this.name} did not end within ${withinMs} ms of SIGTERM`)
  }

  async restart(): Promise<void> {
    await this.kill()
    await this.start()
  }

  signal(name: NodeJS.Signals): void {
    try {
      process.kill(-this.pid, name)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error // it has just ended
    }
  }

  /** How the last run ended; pending while it runs. */
  get exited(): Promise<string> {
    return this.#exited
  }

  /** Resident memory in bytes. */
  async rssBytes(): Promise<number> {
    const text = await readFile(`/proc/${this.pid}/status`, 'utf8')
    return Number(/VmRSS:\s+(\d+) kB/.exec(text)?.[1] ?? NaN) * 1024
  }

  /** Open file descriptors: sockets and files. */
  async logTail(lines = 15): Promise<string> {
    const text = await readFile(this.#options.logFile, 'utf8').catch(() => '')
    return text.trimEnd().split('\n').slice(-lines).join('\n')
  }

  async #ready(child: ChildProcess): Promise<void> {
    const { readyMs = 30_000 } = this.#options
    let timer: NodeJS.Timeout | undefined
    const ready = new Promise<'ready'>(resolve => {
      child.on('message', (message: { holdfast?: string; url?: string }) => {
        if (message.holdfast !== 'ready') return
        this.#url = message.url
        resolve('ready')
      })
    })
    const late = new Promise<string>(resolve => (timer = setTimeout(resolve, readyMs, `silent for ${readyMs} ms`)))
    const result = await Promise.race([ready, this.#exited, late])
    clearTimeout(timer)
    if (result === 'ready') return
    await this.kill()
    throw new Error(`${this.name} did not start (${result}):\n${await this.logTail()}`)
  }
}
