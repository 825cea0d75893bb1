/** A client of the cluster that believes nothing: it checks every body against its ETag and writes down all it did and saw. */
import { createHash, hash } from 'node:crypto'
import { once } from 'node:events'
import { get, type IncomingMessage } from 'node:http'
import { Readable } from 'node:stream'
import { Pool } from 'undici'
import { atMost } from '../../shared/at-most.ts'
import type { History } from './history.ts'

const readsAtOnce = 16

export interface Answer {
  /** 0: no answer; `error` says why. */
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
  readonly error?: Error
  readonly ms: number
}

export interface ClientOptions {
  /** A request that takes longer has failed. */
  readonly timeoutMs?: number
  readonly connections?: number
  readonly history?: History
  readonly password?: string | undefined
}

export class Client {
  readonly origin: string
  readonly #pool: Pool
  readonly #timeoutMs: number
  readonly #history: History | undefined
  readonly #authorization: string | undefined

  constructor(origin: string, { timeoutMs = 10_000, connections = 64, history, password }: ClientOptions = {}) {
    this.origin = origin
    this.#pool = new Pool(origin, { connections, headersTimeout: 0, bodyTimeout: 0, keepAliveTimeout: 4_000 })
    this.#timeoutMs = timeoutMs
    this.#history = history
    this.#authorization = password === undefined ? undefined : basic('admin', password)
  }

  /** One request; never rejects. `path` is `<repository>/<path>`, or begins with '/' for any other route. */
  async request(
    method: string,
    path: string,
    { body, headers = {}, timeoutMs = this.#timeoutMs }: RequestOptions = {},
  ): Promise<Answer> {
    const startedAt = performance.now()
    try {
      const response = await this.#pool.request({
        method: method,
        path: path.startsWith('/') ? path : `/repository/${path}`,
        headers: { ...(this.#authorization === undefined ? {} : { authorization: this.#authorization }), ...headers },
        body: body ?? null,
        signal: AbortSignal.timeout(timeoutMs),
      })
      const bytes = Buffer.from(await response.body.arrayBuffer())
      const ms = performance.now() - startedAt
      return { status: response.statusCode, headers: response.headers, body: bytes, ms }
    } catch (thrown) {
      const error = thrown instanceof Error ? thrown : new Error(String(thrown))
      return { status: 0, headers: {}, body: Buffer.alloc(0), error, ms: performance.now() - startedAt }
    }
  }

  /** PUT; the history learns whether it happened, did not, or nobody knows. */
  async put(path: string, body: Buffer, headers: Record<string, string> = {}): Promise<Answer> {
    const digest = hash('sha256', body)
    const called = performance.now()
    const answer = await this.request('PUT', path, { body, headers })
    const done = answer.status === 201 || answer.status === 200
    if (done && answer.headers['x-checksum-sha256'] !== digest) throw new WrongAnswer(`PUT ${path}: wrong checksum`)
    const refused = answer.status >= 400 && answer.status < 500
    if (!refused) {
      const returned = done ? performance.now() : Infinity
      this.#history?.record(path, { called, returned, sets: digest, note: `PUT ${answer.status}` })
    }
    return answer
  }

  /** Reads them all, a few at a time; in the order of the paths, without the bodies. */
  getAll(paths: Iterable<string>): Promise<(Omit<Answer, 'body'> & { readonly path: string })[]> {
    return atMost(readsAtOnce, [...paths], async path => {
      const { status, headers, ms } = await this.get(path)
      return { path, status, headers, ms }
    })
  }

  /** Those that are there. */
  async presentOf(paths: Iterable<string>): Promise<string[]> {
    return (await this.getAll(paths)).filter(({ status }) => status === 200).map(({ path }) => path)
  }

  /** GET of a whole artifact; throws WrongAnswer when a complete 200 has other bytes than its ETag says (I5). */
  async get(path: string, headers: Record<string, string> = {}): Promise<Answer> {
    const called = performance.now()
    const answer = await this.request('GET', path, { headers })
    const returned = performance.now()
    const source = answer.headers['holdfast-metadata']
    const weak = source !== undefined
    const note = `GET ${answer.status}${source === undefined ? '' : ` (${String(source)})`}`
    if (answer.status === 200) {
      const value = hash('sha256', answer.body)
      if (answer.headers['etag'] !== `"${value}"`) {
        throw new WrongAnswer(`GET ${path}: ETag ${String(answer.headers['etag'])}, but the body is ${value}`)
      }
      this.#history?.record(path, { called, returned, needs: { value }, note, weak })
    } else if (answer.status === 404) {
      this.#history?.record(path, { called, returned, needs: 'absent', note, weak })
    }
    return answer
  }

  async delete(path: string): Promise<Answer> {
    const called = performance.now()
    const answer = await this.request('DELETE', path)
    const note = `DELETE ${answer.status}`
    if (answer.status === 204) {
      this.#history?.record(path, { called, returned: performance.now(), needs: 'present', sets: null, note })
    } else if (answer.status === 404) {
      this.#history?.record(path, { called, returned: performance.now(), needs: 'absent', note })
    } else if (answer.status === 0 || answer.status >= 500) {
      this.#history?.record(path, { called, returned: Infinity, sets: null, note })
    }
    return answer
  }

  /** A copy or a move within what the API calls artifacts: no bytes go this way. */
  async transfer(kind: 'copy' | 'move', from: string, to: string): Promise<Answer> {
    const called = performance.now()
    const answer = await this.request('POST', `/api/v1/artifacts/${kind}`, {
      body: Buffer.from(JSON.stringify({ from: placeOf(from), to: placeOf(to) })),
      headers: { 'content-type': 'application/json' },
    })
    const { status } = answer
    const done = status === 200
    const returned = done ? performance.now() : Infinity
    const note = `${kind} ${from} -> ${to} ${status}`
    if (done || status === 0 || status >= 500) {
      this.#history?.recordCopy(from, to, { called, returned, note })
      const gone = { called, returned, sets: null, note, ...(done ? { needs: 'present' as const } : {}) }
      if (kind === 'move') this.#history?.record(from, gone)
    } else if (status === 404) {
      this.#history?.record(from, { called, returned: performance.now(), needs: 'absent', note })
    }
    return answer
  }

  /**
   * Reads a body slowly, only hashing it: `pause` is awaited between chunks. Rejects when the body ends early or its digest is
   * not the ETag. Not with undici: a connection that ends while its reader pauses breaks it, although all bytes are there.
   */
  async download(path: string, pause: (bytes: number) => Promise<void> | undefined): Promise<string> {
    const headers = this.#authorization === undefined ? {} : { authorization: this.#authorization }
    const request = get(`${this.origin}/repository/${path}`, { agent: false, headers })
    const [response] = (await once(request, 'response')) as [IncomingMessage]
    if (response.statusCode !== 200) throw new WrongAnswer(`GET ${path}: ${response.statusCode}`)
    const sha256 = createHash('sha256')
    let bytes = 0
    for await (const chunk of response as AsyncIterable<Buffer>) {
      sha256.update(chunk)
      bytes += chunk.length
      await pause(bytes)
    }
    const digest = sha256.digest('hex')
    if (response.headers.etag !== `"${digest}"`) throw new WrongAnswer(`GET ${path}: wrong bytes`)
    return digest
  }

  /** PUT of a body that comes slowly: `pause` is awaited between chunks of 64 KiB. */
  async upload(path: string, body: Buffer, pause: (bytes: number) => Promise<void> | undefined): Promise<number> {
    async function* chunks() {
      for (let at = 0; at < body.length; at += 65_536) {
        yield body.subarray(at, at + 65_536)
        await pause(at)
      }
    }
    const response = await this.#pool.request({
      method: 'PUT',
      path: `/repository/${path}`,
      headers: {
        ...(this.#authorization === undefined ? {} : { authorization: this.#authorization }),
        'content-length': String(body.length),
      },
      body: Readable.from(chunks()),
    })
    await response.body.dump()
    return response.statusCode
  }

  /** One value of /metrics: the sum over all label sets of a name that match. */
  async metric(name: string, labels: RegExp = /^/): Promise<number> {
    const { body } = await this.request('GET', '/metrics')
    let sum = 0
    for (const line of body.toString().split('\n')) {
      const match = /^([a-z_]+)(\{[^}]*\})? ([0-9.e+-]+)$/i.exec(line)
      if (match?.[1] === name && labels.test(match[2] ?? '')) sum += Number(match[3])
    }
    return sum
  }

  async close(): Promise<void> {
    await this.#pool.destroy()
  }
}

interface RequestOptions {
  readonly body?: Buffer | undefined
  readonly headers?: Record<string, string>
  readonly timeoutMs?: number
}

/** The cluster said something untrue. Nothing excuses that, whatever fault there is. */
export class WrongAnswer extends Error {}

function placeOf(path: string): { repository: string; path: string } {
  const slash = path.indexOf('/')
  return { repository: path.slice(0, slash), path: path.slice(slash + 1) }
}

export function basic(user: string, password: string): string {
  return 'Basic ' + Buffer.from(`${user}:${password}`).toString('base64')
}
