/** Asks an upstream for one path: redirects are followed, what its answer means is decided here, and one that fails is left alone for a while. */
import type { IncomingMessage } from 'node:http'
import { LRUCache } from 'lru-cache'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { version } from '../../shared/version.ts'
import { encodeArtifactPath } from '../http/artifact-path.ts'
import { type DeclaredChecksums, parseDeclaredChecksums } from '../http/checksums.ts'
import type { Upstream } from '../metadata/types.ts'
import type { AddressGuard } from '../outgoing/address-guard.ts'
import { OriginHttp } from '../outgoing/origin-http.ts'
import { Breaker } from './breaker.ts'

const connectMs = 5_000
const headMsMax = 30_000
/** An upstream that sends nothing for so long has broken off. */
const silentMs = 30_000
/** To one origin for what is stored, and as many for what passes through: slow clients hold only each other up. */
const connectionsMax = 32
const queueMs = 10_000
const originsMax = 200
const redirectsMax = 5
/** More of an answer that nobody reads is not waited for, nor longer. */
const unreadBytesMax = 64 * 1024
const unreadMsMax = 1_000
const retryAfterMsMax = 60_000
/** An upstream that we have waited for so long in all has to have sent more than so little by then: else it holds a place for nothing. */
const dripMs = 60_000
const dripBytesPerSec = 1_024

/** By which an upstream says whether a copy is still what it has; as it sent them. */
export interface Validators {
  readonly etag?: string
  readonly lastModified?: string
}

export interface UpstreamBody {
  readonly kind: 'body'
  /** Whoever does not read them to their end calls their `return`. Rejects with UPSTREAM_UNAVAILABLE where it breaks off. */
  readonly chunks: AsyncIterableIterator<Buffer>
  /** As declared; undefined: it did not say. */
  readonly bytes: number | undefined
  readonly contentType: string | undefined
  readonly validators: Validators
  /** What it declares about the bytes. */
  readonly checksums: DeclaredChecksums
}
/** 'absent': it says that there is nothing. */
export type UpstreamAnswer = UpstreamBody | { readonly kind: 'unchanged' } | { readonly kind: 'absent' }

export interface UpstreamAsk {
  readonly method: 'GET' | 'HEAD'
  readonly path: string
  /** Of the copy that is here. */
  readonly validators: Validators
  /** Until the head of the answer is here, and of each redirect. */
  readonly headMs?: number
  /** Its body is taken as a client takes it. */
  readonly passes?: boolean
  readonly signal: AbortSignal
}

export interface UpstreamClientDeps {
  readonly guard: AddressGuard
  /** Monotonic, ms. */
  readonly now: () => number
}

export class UpstreamClient {
  readonly #deps: UpstreamClientDeps
  readonly #origins = new LRUCache<string, OriginHttp>({ max: originsMax })
  readonly #breakers = new LRUCache<string, Breaker>({ max: originsMax })
  requests = 0
  failures = 0

  constructor(deps: UpstreamClientDeps) {
    this.#deps = deps
  }

  /**
   * UPSTREAM_UNAVAILABLE when it does not answer, or says that it cannot now, or failed a moment ago; UPSTREAM_FAILED for an answer that
   * will not be another one next time; the signal's reason.
   */
  async ask(upstream: Upstream, ask: UpstreamAsk): Promise<UpstreamAnswer> {
    const { now } = this.#deps
    const breaker = this.#breakerOf(new URL(upstream.url).origin)
    const waitMs = breaker.waitMs(now())
    if (waitMs > 0) throw unavailable('the upstream failed a moment ago and is not asked again yet', waitMs)
    this.requests += 1
    try {
      const answer = await this.#follow(new URL(encodeArtifactPath(ask.path), upstream.url), ask)
      breaker.succeeded()
      return answer
    } catch (error) {
      if (ask.signal.aborted || isHoldfastError(error, 'OVERLOADED')) breaker.gaveUp()
      else {
        this.failures += 1
        // What it refuses it has answered.
        if (isHoldfastError(error, 'UPSTREAM_UNAVAILABLE')) breaker.failed(now(), Number(error.data['retryMs'] ?? 0))
        else breaker.succeeded()
      }
      throw error
    }
  }

  async #follow(first: URL, ask: UpstreamAsk): Promise<UpstreamAnswer> {
    let url = first
    for (let redirects = 0; redirects <= redirectsMax; redirects += 1) {
      const response = await this.#send(url, ask)
      const { statusCode = 0, headers } = response
      if (statusCode === 200) return bodyOf(response, ask.path)
      leave(response)
      // One that was asked about no copy can say this by mistake only: it is no word about what there is.
      if (statusCode === 304 && isAsked(ask.validators)) return { kind: 'unchanged' }
      if (statusCode === 404 || statusCode === 410) return { kind: 'absent' }
      const { location } = headers
      if (![301, 302, 303, 307, 308].includes(statusCode) || location === undefined) throw refusal(response)
      const next = URL.canParse(location, url.href) ? new URL(location, url) : undefined
      const isSafe = next?.protocol === 'https:' || (next?.protocol === 'http:' && url.protocol === 'http:')
      if (next === undefined || !isSafe) {
        throw new HoldfastError('UPSTREAM_FAILED', 'the upstream redirects to where no artifact can be fetched from')
      }
      url = next
    }
    throw new HoldfastError('UPSTREAM_FAILED', `the upstream redirects more than ${redirectsMax} times`)
  }

  async #send(url: URL, ask: UpstreamAsk): Promise<IncomingMessage> {
    const { method, validators, headMs = headMsMax, passes = false, signal } = ask
    this.#deps.guard.check(url)
    const { etag, lastModified } = validators
    const headers = {
      'user-agent': `Holdfast/${version}`,
      accept: '*/*',
      'accept-encoding': 'identity',
      ...(etag === undefined ? {} : { 'if-none-match': etag }),
      ...(etag !== undefined || lastModified === undefined ? {} : { 'if-modified-since': lastModified }),
    }
    try {
      const path = url.pathname + url.search
      return await this.#originOf(url.origin, passes).ask({ method, path, headers, body: undefined, headMs, signal })
    } catch (error) {
      signal.throwIfAborted()
      if (isHoldfastError(error)) throw error
      if ((error as NodeJS.ErrnoException).code === 'EBUSY') {
        throw new HoldfastError('OVERLOADED', 'too many requests to this upstream at once', {}, { cause: error })
      }
      throw new HoldfastError('UPSTREAM_UNAVAILABLE', 'the upstream does not answer', {}, { cause: error })
    }
  }

  #originOf(origin: string, passes: boolean): OriginHttp {
    const key = `${origin} ${passes}`
    let http = this.#origins.get(key)
    if (http === undefined) {
      const { lookup } = this.#deps.guard
      http = new OriginHttp(origin, { connections: connectionsMax, queueMs, connectMs, silentMs, lookup })
      this.#origins.set(key, http)
    }
    return http
  }

  #breakerOf(origin: string): Breaker {
    let breaker = this.#breakers.get(origin)
    if (breaker === undefined) this.#breakers.set(origin, (breaker = new Breaker()))
    return breaker
  }
}

const isAsked = ({ etag, lastModified }: Validators): boolean => etag !== undefined || lastModified !== undefined

function bodyOf(response: IncomingMessage, path: string): UpstreamBody {
  const { headers } = response
  const encoding = headers['content-encoding']?.toLowerCase() ?? 'identity'
  // Some servers call a file that is compressed by itself encoded.
  if (encoding !== 'identity' && !/\.(?:gz|tgz|svgz|bz2|xz|zst|br|z)$/i.test(path)) {
    response.destroy()
    throw new HoldfastError('UPSTREAM_FAILED', `the upstream sends '${encoding}', although identity was asked for`)
  }
  const length = headers['content-length']
  const { etag } = headers
  const lastModified = headers['last-modified']
  return {
    kind: 'body',
    chunks: chunksOf(response),
    bytes: length === undefined ? undefined : Number(length),
    contentType: headers['content-type'],
    validators: { ...(etag === undefined ? {} : { etag }), ...(lastModified === undefined ? {} : { lastModified }) },
    checksums: checksumsOf(response),
  }
}

/** No generator: the `return` of one that has not begun would not reach the response. */
function chunksOf(response: IncomingMessage): AsyncIterableIterator<Buffer> {
  const chunks = response[Symbol.asyncIterator]() as AsyncIterator<Buffer>
  let [bytes, waitedMs] = [0, 0]
  response.on('error', () => {}) // also when nobody reads any more
  return {
    async next() {
      const askedAt = performance.now()
      const next = await chunks.next().catch((error: unknown) => {
        throw new HoldfastError('UPSTREAM_UNAVAILABLE', 'the upstream broke off', {}, { cause: error })
      })
      if (next.done === true) return next
      waitedMs += performance.now() - askedAt
      bytes += next.value.length
      if (waitedMs > dripMs && bytes / waitedMs < dripBytesPerSec / 1_000) {
        response.destroy()
        throw new HoldfastError('UPSTREAM_UNAVAILABLE', 'the upstream sends too slowly')
      }
      return next
    },
    async return() {
      response.destroy()
      return { done: true, value: undefined }
    },
    [Symbol.asyncIterator]() {
      return this
    },
  }
}

/** Malformed ones declare nothing. */
function checksumsOf({ headers }: IncomingMessage): DeclaredChecksums {
  try {
    const declared = Object.entries(parseDeclaredChecksums(headers))
    // Only what a write computes anyway.
    return Object.fromEntries(declared.filter(([algorithm]) => algorithm !== 'sha512'))
  } catch (error) {
    if (!isHoldfastError(error, 'BAD_REQUEST')) throw error
    return {}
  }
}

function refusal({ statusCode = 0, headers }: IncomingMessage): HoldfastError {
  if (statusCode < 500 && statusCode !== 429 && statusCode !== 408) {
    return new HoldfastError('UPSTREAM_FAILED', `the upstream answers with status ${statusCode}`, {
      status: statusCode,
    })
  }
  const seconds = Number(headers['retry-after'] ?? 0)
  return unavailable(`the upstream answers with status ${statusCode}`, seconds > 0 ? seconds * 1_000 : 0)
}

function unavailable(message: string, retryMs: number): HoldfastError {
  const waitMs = Math.min(retryMs, retryAfterMsMax)
  const data = waitMs > 0 ? { retryMs: waitMs, retryAfterSeconds: waitMs / 1_000 } : {}
  return new HoldfastError('UPSTREAM_UNAVAILABLE', message, data)
}

/** Reads what little there is, so that the connection can be used again. */
function leave(response: IncomingMessage): void {
  let bytes = 0
  const timer = setTimeout(() => response.destroy(), unreadMsMax).unref()
  response.once('close', () => clearTimeout(timer))
  response.on('error', () => {}) // nobody waits for it
  response.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes > unreadBytesMax) response.destroy()
  })
}
