/** What all commands that stay have in common: signals, readiness, a clean end. They own the exit of their process. */
import { setFlagsFromString } from 'node:v8'
import type { Logger } from 'pino'
import { reportReady } from './supervised-process.ts'

export interface Running {
  readonly url: string
  close(): Promise<void>
}

/**
 * How far the heap, with the bodies that hang on it, may grow between two full collections, in percent of what the last one left. By itself
 * V8 allows 7 MB beside a heap of 45 MB where little happens, since its share of the time stays small; but with 30 requests a second it
 * collected every 0.6 s, for 30 ms of both processors: that was the p99 of reads.
 */
const heapGrowthPercent = 100

/**
 * Starts, tells the supervisor if there is one, and waits for the end: SIGTERM or SIGINT close cleanly, a second one exits at
 * once. Under a supervisor only its word counts: a Ctrl-C in the terminal, and many a service manager, signal everybody at once, and a
 * storage node must not end before the proxy that still answers from it. Resolves with the exit code.
 */
export async function serve(log: Logger, start: (signal: AbortSignal) => Promise<Running>): Promise<number> {
  setFlagsFromString(`--heap-growing-percent=${heapGrowthPercent}`)
  const ending = new AbortController()
  const supervised = process.send !== undefined
  const ended = new Promise<string>(resolveEnded => {
    const end = (why: string): void => {
      if (ending.signal.aborted && !supervised) process.exit(130)
      ending.abort()
      resolveEnded(why)
    }
    process.on('SIGTERM', () => end('SIGTERM'))
    process.on('SIGINT', () => {
      if (!supervised) end('SIGINT')
    })
    process.once('disconnect', () => {
      if (!ending.signal.aborted) end('the supervisor is gone')
    })
  })
  let running: Running
  try {
    running = await start(ending.signal)
  } catch (error) {
    if (ending.signal.aborted) return 0
    throw error
  }
  log.info({ url: running.url }, 'serving')
  reportReady(running.url)
  log.info({ why: await ended }, 'ending')
  await running.close()
  return 0
}
