/** The commands that ask a running cluster: one small client of /api/v1, and how they end. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { readConfig, type ConfigOf, type ConfigSource, type Options } from '../shared/config.ts'
import { errorCodes, HoldfastError, isHoldfastError, type ErrorCode } from '../shared/errors.ts'

export const clientOptions = {
  url: { kind: 'string', doc: 'Where the cluster answers (default http://127.0.0.1:<port>).' },
  port: { kind: 'int', min: 1, max: 65_535, default: 8080, doc: 'Port on this machine, where no URL is given.' },
  user: { kind: 'string', default: 'admin', doc: 'Who asks.' },
  password: { kind: 'secret', doc: 'Their password; without it the one in <data>/admin.password is used.' },
  data: {
    kind: 'string',
    doc: 'Data folder of `holdfast up`, for its password; ./data where the cluster is on this machine, else none unless named.',
  },
  timeoutMs: {
    kind: 'int',
    unit: 'ms',
    min: 100,
    max: 3_600_000,
    default: 30_000,
    doc: 'How long to wait for an answer.',
  },
  json: { kind: 'bool', default: false, doc: 'Print JSON instead of text.' },
} as const satisfies Options

export type ClientConfig = ConfigOf<typeof clientOptions>

/** Larger answers are none of ours. */
const answerBytesMax = 64 * 1024 * 1024

export class ApiClient {
  /** `http://host:port` */
  readonly origin: string
  /** The header that says who asks; undefined: nobody. */
  readonly authorization: string | undefined
  readonly #base: string
  readonly #timeoutMs: number

  constructor(base: string, login: { user: string; password: string } | undefined, timeoutMs: number) {
    this.origin = base.replace(/\/+$/, '')
    this.#base = this.origin + '/api/v1'
    this.authorization = login && 'Basic ' + Buffer.from(`${login.user}:${login.password}`, 'utf8').toString('base64')
    this.#timeoutMs = timeoutMs
  }

  /**
   * Resolves with the JSON of a 2xx (undefined for an empty one). Rejects with the server's error code and message, or NODE_UNREACHABLE
   * when nobody answers in time, or somebody else does; the message says which. Nothing is tried twice.
   */
  async call(method: 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE', path: string, body?: unknown): Promise<unknown> {
    const response = await this.#send(method, path, body)
    const text = await this.#text(response)
    const answer = text === '' ? undefined : parseJson(text)
    if (!response.ok) throw refusalOf(response.status, answer)
    // Some other server's page.
    if (text !== '' && typeof answer !== 'object') throw this.noHoldfast()
    return answer
  }

  /** Does a Holdfast answer here? What an answer did not have, another server, with JSON of its own, does not have either. */
  async isHoldfast(): Promise<boolean> {
    try {
      const { info } = (await this.call('GET', '/openapi.json')) as { info?: { title?: unknown } }
      return info?.title === 'Holdfast'
    } catch {
      return false
    }
  }

  noHoldfast(cause?: unknown): HoldfastError {
    return new HoldfastError('NODE_UNREACHABLE', `no Holdfast answers at ${this.origin}`, {}, { cause })
  }

  async #send(method: string, path: string, body: unknown): Promise<Response> {
    try {
      return await fetch(this.#base + path, {
        method,
        redirect: 'error',
        signal: AbortSignal.timeout(this.#timeoutMs),
        headers: {
          ...(this.authorization === undefined ? {} : { authorization: this.authorization }),
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      })
    } catch (error) {
      throw this.#unreachable(error, `nobody answers at ${this.#base}`)
    }
  }

  async #text({ body }: Response): Promise<string> {
    const chunks: Uint8Array[] = []
    let bytes = 0
    try {
      for await (const chunk of (body ?? []) as AsyncIterable<Uint8Array>) {
        bytes += chunk.length
        if (bytes > answerBytesMax) throw new HoldfastError('TOO_LARGE', 'the answer is too large')
        chunks.push(chunk)
      }
    } catch (error) {
      if (isHoldfastError(error)) throw error
      throw this.#unreachable(error, 'the answer broke off')
    }
    return Buffer.concat(chunks).toString('utf8')
  }

  /** Somebody who is at work for longer than we wait is not the same as nobody. */
  #unreachable(error: unknown, message: string): HoldfastError {
    const late = error instanceof Error && error.name === 'TimeoutError'
    const told = late ? `no answer from ${this.#base} within ${this.#timeoutMs} ms: --timeout-ms waits longer` : message
    return new HoldfastError('NODE_UNREACHABLE', told, {}, { cause: error })
  }
}

const passwordHint =
  "the password is taken from HOLDFAST_PASSWORD, or from the file admin.password in the folder of 'holdfast up' (--data)"

/** What a command gets to work with. */
export interface ClientCommand<Table extends Options> {
  readonly client: ApiClient
  readonly config: ClientConfig & ConfigOf<Table>
  /** A line of text, or with --json the document. */
  readonly print: (text: string, document: unknown) => void
}

/**
 * Runs a command against the API: reads its options beside the client's, prints its result, or its error (as JSON with --json).
 * Resolves with the exit code: what `work` returns, 1 for a failure, 2 for a wrong question.
 */
export async function runClientCommand<const Table extends Options>(
  options: Table,
  source: ConfigSource,
  work: (command: ClientCommand<Table>) => Promise<number>,
  write: Writer = standardWriter,
): Promise<number> {
  let json = source.args.includes('--json')
  let noPassword: string | undefined
  try {
    const config = readConfig({ ...clientOptions, ...options }, source) as ClientConfig & ConfigOf<Table>
    const print = (text: string, document: unknown): void =>
      write.out((config.json ? JSON.stringify(document, null, 2) : text) + '\n')
    json = config.json
    const base = config.url ?? `http://127.0.0.1:${config.port}`
    if (!/^https?:\/\/[^/?#@\s]+\/?$/.test(base) || !URL.canParse(base)) {
      throw new HoldfastError('CONFIG_INVALID', `the URL must be http://host:port, not '${base}'`)
    }
    const known = await login(config, base)
    if ('noPassword' in known) noPassword = known.noPassword
    const client = new ApiClient(base, 'user' in known ? known : undefined, config.timeoutMs)
    return await work({ client, config, print }).catch(async (error: unknown) => {
      if (isHoldfastError(error) || (await client.isHoldfast())) throw error
      throw client.noHoldfast(error)
    })
  } catch (error) {
    if (!isHoldfastError(error)) throw error
    write.err(errorText(error, json))
    if (!json && isHoldfastError(error, 'UNAUTHORIZED')) {
      write.err(`${noPassword === undefined ? '' : `${noPassword}: `}${passwordHint}\n`)
    }
    return error.code === 'CONFIG_INVALID' || error.code === 'BAD_REQUEST' ? 2 : 1
  }
}

/** How a command says what went wrong: a line of text, or with --json a document. */
export function errorText({ code, message }: HoldfastError, json: boolean): string {
  return (json ? JSON.stringify({ code, message }) : `holdfast: ${message} [${code}]`) + '\n'
}

/** The same for a command whose words (what shall be done, to what) stand before its options. */
export function runWordCommand<const Table extends Options>(
  options: Table,
  { args, env }: ConfigSource,
  work: (command: ClientCommand<Table>, words: readonly string[]) => Promise<number>,
  write?: Writer,
): Promise<number> {
  const count = args.findIndex(arg => arg.startsWith('-'))
  const words = count < 0 ? args : args.slice(0, count)
  // In the promise, so that whatever is wrong with the words is told like everything else.
  return runClientCommand(
    options,
    { args: args.slice(words.length), env },
    async command => work(command, words),
    write,
  )
}

export interface Writer {
  readonly out: (text: string) => void
  readonly err: (text: string) => void
}
export const standardWriter: Writer = {
  out: text => void process.stdout.write(text),
  err: text => void process.stderr.write(text),
}

/** The password of the cluster on this machine is told to no other host, unless its folder is named. Without one, it says why. */
async function login(
  { user, password, data }: ClientConfig,
  base: string,
): Promise<{ user: string; password: string } | { noPassword: string }> {
  if (password !== undefined) return { user, password }
  const folder = data ?? (isThisMachine(base) ? './data' : undefined)
  if (folder === undefined) return { noPassword: 'no password was given' }
  const file = join(folder, 'admin.password')
  try {
    return { user, password: (await readFile(file, 'utf8')).trim() }
  } catch (error) {
    // No data folder here, or not ours to read: ask without credentials, the answer says what is missing.
    const { code } = error as NodeJS.ErrnoException
    return { noPassword: code === 'ENOENT' ? `there is no ${file}` : `${file} cannot be read (${code})` }
  }
}

function isThisMachine(base: string): boolean {
  const { hostname } = new URL(base)
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname)
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch {
    // Some other server's page: its status says enough.
    return undefined
  }
}

function refusalOf(status: number, answer: unknown): HoldfastError {
  const { code, message } = (typeof answer === 'object' && answer !== null ? answer : {}) as Record<string, unknown>
  const known = errorCodes.find((one): one is ErrorCode => one === code) ?? 'INTERNAL'
  return new HoldfastError(known, typeof message === 'string' ? message : `the server answers ${status}`, { status })
}
