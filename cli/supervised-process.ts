/** A child process that is kept running: started, watched, restarted when it dies, ended with its supervisor. */
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { HoldfastError } from '../shared/errors.ts'

/** What a child says over the IPC channel once it serves. */
export interface ReadyMessage {
  readonly holdfast: 'ready'
  readonly url?: string
}

export interface SupervisedOptions {
  readonly name: string
  readonly args: readonly string[]
  readonly env: NodeJS.ProcessEnv
  readonly pidFile: string
  /** stdout and stderr are appended here. */
  readonly logFile: string
  readonly readyMs: number
  readonly log: Logger
}

const restartPauseMs = 200
const restartPauseMsMax = 5_000
/** A child that lived this long had started well: the pause before its next restart is short again. */
const healthyMs = 10_000

export class SupervisedProcess {
  readonly #options: SupervisedOptions
  #child: ChildProcess | undefined
  #closing = false
  #pauseMs = restartPauseMs
  #watch: Promise<void> = Promise.resolve()

  constructor(options: SupervisedOptions) {
    this.#options = options
  }

  get name(): string {
    return this.#options.name
  }

  /** Resolves when the child says that it is ready; rejects if it ends or stays silent before. */
  async start(): Promise<void> {
    await this.#launch()
  }

  /** From now on it may end, and is not started again. */
  retire(): void {
    this.#closing = true
  }

  /** SIGTERM, and SIGKILL after `graceMs`. The child is not restarted. */
  async close(graceMs: number): Promise<void> {
    this.retire()
    const child = this.#child
    if (child !== undefined && child.exitCode === null && child.signalCode === null) {
      const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
      child.kill('SIGTERM')
      const late = setTimeout(() => child.kill('SIGKILL'), graceMs)
      await ended
      clearTimeout(late)
    }
    await this.#watch
    await rm(this.#options.pidFile, { force: true })
  }

  async #launch(): Promise<void> {
    if (this.#closing) throw new HoldfastError('SHUTTING_DOWN', `${this.name} is not to be started any more`)
    const { args, env, logFile, pidFile } = this.#options
    const output = openSync(logFile, 'a', 0o600)
    let child: ChildProcess
    try {
      child = spawn(process.execPath, ['--enable-source-maps', ...args], {
        env,
        stdio: ['ignore', output, output, 'ipc'],
      })
    } finally {
      closeSync(output)
    }
    this.#child = child
    const startedAt = performance.now()
    const ended = new Promise<string>(resolve => {
      child.once('exit', (code, signal) => resolve(signal ?? `exit code ${code}`))
      child.once('error', error => resolve(error.message))
    })
    if (child.pid !== undefined) await writeFile(pidFile, `${child.pid}\n`)
    await this.#ready(child, ended)
    this.#watch = ended.then(reason => this.#ended(reason, performance.now() - startedAt))
  }

  async #ready(child: ChildProcess, ended: Promise<string>): Promise<void> {
    const { name, readyMs, logFile } = this.#options
    const ready = new Promise<'ready'>(resolve => {
      child.on('message', message => {
        if ((message as Partial<ReadyMessage>).holdfast === 'ready') resolve('ready')
      })
    })
    const timeout = new AbortController()
    const late = sleep(readyMs, `not ready within ${readyMs} ms`, { signal: timeout.signal }).catch(() => '')
    const result = await Promise.race([ready, ended, late])
    timeout.abort()
    if (result === 'ready') return
    child.kill('SIGKILL')
    throw new HoldfastError('INTERNAL', `${name} did not start (${result}); see ${logFile}`, { name, logFile })
  }

  async #ended(reason: string, livedMs: number): Promise<void> {
    if (this.#closing) return
    const { log, name } = this.#options
    if (livedMs > healthyMs) this.#pauseMs = restartPauseMs
    log.warn({ process: name, reason, restartInMs: this.#pauseMs }, 'process ended, it is started again')
    await sleep(this.#pauseMs)
    this.#pauseMs = Math.min(this.#pauseMs * 2, restartPauseMsMax)
    if (this.#closing) return
    try {
      await this.#launch()
      log.info({ process: name }, 'process runs again')
    } catch (error) {
      log.error({ err: error, process: name }, 'process did not come back')
      // Not a recursion without end: each turn waits, up to restartPauseMsMax.
      this.#watch = this.#ended('failed start', 0)
    }
  }
}

/** Called by a child: tells its supervisor, if it has one, that it serves. */
export function reportReady(url: string): void {
  const message: ReadyMessage = { holdfast: 'ready', url }
  process.send?.(message)
}
