import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process'

/** Where programs are looked for when the caller passes no PATH; also the PATH of every program we start. */
export const standardPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin'

/** How a program is started: under which user, with which libraries. */
export interface RunOptions {
  readonly libraries?: readonly string[]
  readonly uid?: number | undefined
  readonly gid?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/** What a program printed (both streams, at most 64 KiB) and its exit code; null when it could not start or was killed. */
export interface RunResult {
  readonly code: number | null
  readonly output: string
}

const outputCharsMax = 64 * 1024

/** Runs a short program to its end. Never rejects: a program that is missing or was aborted has the code null. */
export function run(command: readonly string[], options: RunOptions): Promise<RunResult> {
  const child = start(command, { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  const collect = (chunk: Buffer): void => {
    if (output.length < outputCharsMax) output += chunk.toString()
  }
  child.stdout?.on('data', collect)
  child.stderr?.on('data', collect)
  return new Promise(resolve => {
    child.once('error', error => resolve({ code: null, output: output + error.message }))
    child.once('close', code => resolve({ code, output }))
  })
}

/**
 * Starts a program with an environment of our own: the user's PGPORT, PGOPTIONS, LC_ALL and the like must not reach the
 * server. `detached`: in its own session, so that Ctrl-C in the terminal reaches us only, and we stop the database last.
 */
export function start(
  command: readonly string[],
  options: RunOptions & { readonly stdio: StdioOptions; readonly detached?: boolean },
): ChildProcess {
  const [program = '', ...args] = command
  const libraries = (options.libraries ?? []).join(':')
  return spawn(program, args, {
    stdio: options.stdio,
    detached: options.detached ?? false,
    cwd: '/',
    killSignal: 'SIGKILL',
    env: {
      PATH: standardPath,
      LC_ALL: 'C',
      TZ: 'UTC',
      ...(libraries === '' ? {} : { LD_LIBRARY_PATH: libraries, DYLD_LIBRARY_PATH: libraries }),
    },
    ...(options.uid === undefined ? {} : { uid: options.uid }),
    ...(options.gid === undefined ? {} : { gid: options.gid }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  })
}
