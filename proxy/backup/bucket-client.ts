/** One signed request to a bucket, tried again while that may help. Redirects are not followed: they would need another signature. */
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import type { LookupFunction } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { codeOf, isCertificate, isPassing, refusalOf, silenceOf, type Refusal } from './bucket-errors.ts'
import { OriginHttp } from '../outgoing/origin-http.ts'
import { addressOf, type BucketPlace } from './bucket-url.ts'
import { textOf } from './bucket-xml.ts'
import { type BucketCredentials, encodeQuery, type RequestToSign, sha256, signV4 } from './sign-v4.ts'

/** With pauses of 0.25 s, doubled up to 8 s, it is given up after half a minute, and what each try took. */
const triesMax = 8
const pauseMaxMs = 8_000
const connectMs = 10_000
/** For an answer to begin, and for its next bytes. */
const silentMsDefault = 30_000
/** A body that goes out slower than this is cut off. */
const slowestBytesPerMs = 64
const connections = 16
/** Lists of 1,000 names; answers to everything else are smaller. */
const answerBytesMax = 8 * 1024 * 1024

export interface BucketDeps {
  readonly credentials: () => Promise<BucketCredentials>
  /** Milliseconds since 1970. */
  readonly now: () => number
  /** The first pause before another try. */
  readonly pauseMs: number
  /** Of all parts but the last; 5 MiB at least (8 MiB). */
  readonly partBytesMin?: number
  /** In place of DNS. */
  readonly lookup?: LookupFunction
  /** For an answer to begin, and for its next bytes (30 s). */
  readonly silentMs?: number
}

export interface BucketRequest {
  readonly method: 'GET' | 'HEAD' | 'PUT' | 'POST' | 'DELETE'
  /** '': the bucket itself. */
  readonly key: string
  readonly query?: RequestToSign['query']
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Buffer
  /** For people, if it fails: 'blobs/3f/… cannot be written'. */
  readonly what: string
  readonly signal?: AbortSignal | undefined
  /** For the answer to begin. */
  readonly patienceMs?: number
}

export interface BucketAnswer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  /** Whole; of an error too. */
  readonly text: string
  /** `<Code>` of an error; also of one that comes with status 200, as the end of an upload may. */
  readonly code: string
  /** An earlier try may have had its effect, though no answer came. */
  readonly unsure: boolean
}

export class BucketClient {
  readonly place: BucketPlace
  readonly #deps: BucketDeps
  readonly #http: OriginHttp
  readonly #silentMs: number

  /** Connects when first asked. Idle connections keep no process alive. */
  constructor(place: BucketPlace, deps: BucketDeps) {
    this.place = place
    this.#deps = deps
    const { lookup, silentMs = silentMsDefault } = deps
    this.#silentMs = silentMs
    this.#http = new OriginHttp(addressOf(place, '').origin, { connections, connectMs, silentMs, lookup })
  }

  /**
   * Resolves with 2xx, and with every status in `accept`. Rejects with what `refusalOf` and `silenceOf` make of the last try, or with
   * the signal's reason.
   */
  ask(request: BucketRequest, accept: readonly number[] = []): Promise<BucketAnswer> {
    return this.#tried(request, async (response, unsure) => {
      const text = await wholeText(response)
      const code = request.method === 'HEAD' ? '' : errorCodeOf(text)
      const { statusCode: status = 500, headers } = response
      const good = status < 300 && code === ''
      if (good || (status >= 300 && accept.includes(status))) return { status, headers, text, code, unsure }
      return refusal(status < 300 ? 500 : status, code, headers)
    })
  }

  /** The same with an answer of 2xx whose body is still to be read, to its end or destroyed. */
  open(request: BucketRequest): Promise<IncomingMessage> {
    return this.#tried(request, async response => {
      const { statusCode: status = 500, headers } = response
      if (status < 300) return response
      return refusal(status, errorCodeOf(await wholeText(response)), headers)
    })
  }

  /** What an answer that `ask` resolved with means, if it is not what was hoped for. */
  refused(what: string, { status, code, headers }: BucketAnswer): HoldfastError {
    return refusalOf(this.place, what, refusal(status, code, headers).refusal, this.#deps.now())
  }

  async #tried<Result extends object>(
    request: BucketRequest,
    read: (response: IncomingMessage, unsure: boolean) => Promise<Result | Failed>,
  ): Promise<Result> {
    const { what, signal } = request
    let unsure = false
    for (let tries = 1; ; tries++) {
      let failure: HoldfastError
      try {
        const result = await read(await this.#send(request), unsure)
        if (!('refusal' in result)) return result
        failure = refusalOf(this.place, what, result.refusal, this.#deps.now())
        if (!isPassing(result.refusal) || tries === triesMax) throw failure
        unsure ||= result.refusal.status >= 500
      } catch (error) {
        signal?.throwIfAborted()
        if (isHoldfastError(error)) throw error
        failure = silenceOf(this.place, what, error)
        if (isCertificate(codeOf(error)) || tries === triesMax) throw failure
        unsure = true
      }
      const pause = Math.min(this.#deps.pauseMs * 2 ** (tries - 1), pauseMaxMs) * (0.5 + Math.random() / 2)
      await sleep(pause, undefined, { signal }).catch(() => {}) // looked at next
      signal?.throwIfAborted()
    }
  }

  async #send({
    method,
    key,
    query = [],
    headers = {},
    body,
    signal,
    patienceMs = this.#silentMs,
  }: BucketRequest): Promise<IncomingMessage> {
    const { host, path } = addressOf(this.place, key)
    const bodySha256 = sha256(body ?? '')
    const { region } = this.place
    const toSign = { method, host, path, query, headers, bodySha256 }
    const signed = signV4(toSign, await this.#deps.credentials(), region, this.#deps.now())
    return this.#http.ask({
      method,
      path: query.length === 0 ? path : `${path}?${encodeQuery(query)}`,
      headers: signed,
      body,
      headMs: patienceMs + Math.ceil((body?.length ?? 0) / slowestBytesPerMs),
      signal,
    })
  }
}

interface Failed {
  readonly refusal: Refusal
}

function refusal(status: number, code: string, headers: IncomingHttpHeaders): Failed {
  const { date, 'x-amz-bucket-region': region } = headers
  return {
    refusal: {
      status,
      code,
      region: typeof region === 'string' && /^[a-z0-9-]{1,63}$/.test(region) ? region : undefined,
      date: typeof date === 'string' ? Date.parse(date) : undefined,
    },
  }
}

function errorCodeOf(text: string): string {
  if (!text.includes('<Error>')) return ''
  const code = textOf(text, 'Code') ?? ''
  return /^[A-Za-z]{1,64}$/.test(code) ? code : ''
}

async function wholeText(body: IncomingMessage): Promise<string> {
  const taken: Buffer[] = []
  let bytes = 0
  for await (const chunk of body as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > answerBytesMax) throw new HoldfastError('CONFLICT', 'the backup target answers with far too much')
    taken.push(chunk)
  }
  return Buffer.concat(taken).toString('utf8')
}
