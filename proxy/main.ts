/**
 * The proxy process: one worker in this process, or with `--workers N` a parent that forks N of them, restarts those that die, and
 * adds up their metrics. All workers share the public port.
 */
import cluster, { type Worker } from 'node:cluster'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { AggregatorRegistry, type Registry } from 'prom-client'
import { HoldfastError } from '../shared/errors.ts'
import type { ProxyConfig } from './config.ts'
import { startProxyWorker } from './worker.ts'

export interface RunningProxy {
  readonly url: string
  close(): Promise<void>
}

/** Forks run the same file. */
const program = process.argv[1] ?? ''
const restartPauseMs = 1_000
/** The parent gives a worker that does not answer 5 s. */
const metricsWaitMs = 6_000

/** Resolves when the public port answers (with several workers: when all are up). `args` are those of this process, for its forks. */
export async function runProxy(
  config: ProxyConfig,
  log: Logger,
  options: { signal: AbortSignal; args: readonly string[] },
): Promise<RunningProxy> {
  if (cluster.isWorker) return runForked(config, log, options.signal)
  if (config.workers === 1) return startProxyWorker({ config, log, signal: options.signal, program })
  const parent = new Parent(config, log, options.args)
  try {
    return { url: await parent.start(options.signal), close: () => parent.close() }
  } catch (error) {
    await parent.close()
    throw error
  }
}

/** What forks and their parent say to each other. */
type Message =
  | { readonly holdfast: 'listening'; readonly url: string }
  | { readonly holdfast: 'failed'; readonly message: string }
  | { readonly holdfast: 'metrics?'; readonly id: number }
  /** No text: a worker did not answer, and a sum without it would be a counter that goes back. */
  | { readonly holdfast: 'metrics'; readonly id: number; readonly text: string | null }

async function runForked(config: ProxyConfig, log: Logger, signal: AbortSignal): Promise<RunningProxy> {
  const say = (message: Message): void => {
    process.send?.(message)
  }
  try {
    const worker = await startProxyWorker({ config, log, signal, metricsText: metricsOfAllWorkers(say), program })
    shareMetrics(worker.metrics.registry)
    say({ holdfast: 'listening', url: worker.url })
    return worker
  } catch (error) {
    say({ holdfast: 'failed', message: error instanceof Error ? error.message : String(error) })
    throw error
  }
}

function shareMetrics(registry: Registry): void {
  AggregatorRegistry.setRegistries(registry)
  // Listens for the parent's questions from now on.
  void new AggregatorRegistry()
}

function metricsOfAllWorkers(say: (message: Message) => void): () => Promise<string> {
  const waiting = new Map<number, (text: string | null) => void>()
  let lastId = 0
  process.on('message', (message: Message) => {
    if (message.holdfast === 'metrics') waiting.get(message.id)?.(message.text)
  })
  return async () => {
    const id = ++lastId
    const answer = new Promise<string | null>(resolve => waiting.set(id, resolve))
    const timer = setTimeout(() => waiting.get(id)?.(null), metricsWaitMs)
    say({ holdfast: 'metrics?', id })
    const text = await answer
    waiting.delete(id)
    clearTimeout(timer)
    if (text === null) throw new HoldfastError('OVERLOADED', 'not all workers answered in time')
    return text
  }
}

class Parent {
  readonly #config: ProxyConfig
  readonly #log: Logger
  readonly #args: readonly string[]
  readonly #aggregator = new AggregatorRegistry()
  #closing = false

  constructor(config: ProxyConfig, log: Logger, args: readonly string[]) {
    this.#config = config
    this.#log = log
    this.#args = args
  }

  async start(signal: AbortSignal): Promise<string> {
    cluster.setupPrimary({ args: [...this.#args], serialization: 'json' })
    cluster.on('message', (worker: Worker, message: Message) => {
      if (message.holdfast === 'metrics?') void this.#answerMetrics(worker, message.id)
    })
    cluster.on('exit', (worker, code, reason) => void this.#replace(worker, reason ?? `exit code ${code}`))
    const urls = await Promise.all(Array.from({ length: this.#config.workers }, () => this.#fork(signal)))
    return urls[0] ?? ''
  }

  async close(): Promise<void> {
    this.#closing = true
    const workers = Object.values(cluster.workers ?? {}).filter(worker => worker !== undefined)
    await Promise.all(
      workers.map(async worker => {
        const ended = new Promise<void>(resolve => worker.once('exit', () => resolve()))
        worker.process.kill('SIGTERM')
        const late = setTimeout(
          () => worker.process.kill('SIGKILL'),
          this.#config.lingerMs + this.#config.drainMs + 5_000,
        )
        await ended
        clearTimeout(late)
      }),
    )
  }

  async #fork(signal?: AbortSignal): Promise<string> {
    const worker = cluster.fork()
    return new Promise((resolve, reject) => {
      signal?.addEventListener('abort', () => reject(new HoldfastError('SHUTTING_DOWN', 'the proxy is ending')), {
        once: true,
      })
      worker.once('exit', () => reject(new HoldfastError('INTERNAL', 'a proxy worker ended before it was ready')))
      worker.on('message', (message: Message) => {
        if (message.holdfast === 'listening') resolve(message.url)
        if (message.holdfast === 'failed') reject(new HoldfastError('INTERNAL', message.message))
      })
    })
  }

  async #replace(worker: Worker, reason: string): Promise<void> {
    if (this.#closing) return
    this.#log.warn({ pid: worker.process.pid, reason }, 'proxy worker ended, another one is started')
    await sleep(restartPauseMs)
    if (this.#closing) return
    // If this one does not come up either, its own exit brings us back here.
    await this.#fork().catch((error: unknown) => this.#log.error({ err: error }, 'a proxy worker did not come up'))
  }

  async #answerMetrics(worker: Worker, id: number): Promise<void> {
    const text = await this.#aggregator.clusterMetrics().catch((error: unknown) => {
      this.#log.warn({ err: error }, 'metrics of a worker are missing')
      return null
    })
    if (worker.isConnected()) worker.send({ holdfast: 'metrics', id, text } satisfies Message)
  }
}
