/** What all commands that stay have in common: signals, readiness, a clean end. They own the exit of their process. */
import { setFlagsFromString } from 'node:v8'
import type { Logger } from 'pino'
import { reportReady } from './supervised-process.ts'

export interface Running {
  readonly url: string
  close(): Promise<void>
}

/**
 * Starts, tells the supervisor if there is one, and waits for the end: SIGTERM or SIGINT close cleanly, a second one exits at
 * once. Under a supervisor only its word counts: a Ctrl-C in the terminal, and many a service manager, signal everybody at once, and a
 * storage node must not end before the proxy that still answers from it. Resolves with the exit code.
 *
 * `heapGrowingPercent`: how far the heap, with the bodies that hang on it, may grow between two full collections, of what the last one left.
 */
export async function serve(
  log: Logger,
  start: (signal: AbortSignal) => Promise<Running>,
  { heapGrowingPercent }: { readonly heapGrowingPercent?: number } = {},
): Promise<number> {
  if (heapGrowingPercent !== undefined) setFlagsFromString(`--heap-growing-percent=${heapGrowingPercent}`)
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
