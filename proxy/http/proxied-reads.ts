/** GET and HEAD in a repository of type 'proxy': from the copy that is here, else from the upstream, whatever of the two can be had. */
import { createHash } from 'node:crypto'
import { pipeline } from 'node:stream/promises'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { DownloadLog } from '../artifacts/download-log.ts'
import type { CachedPath } from '../artifacts/path-cache.ts'
import type { Resolver } from '../artifacts/resolver.ts'
import type { Artifact, Blob, Repository } from '../metadata/types.ts'
import type { Cached, ProxyRepository, UpstreamCache } from '../upstream/upstream-cache.ts'
import type { UpstreamBody } from '../upstream/upstream-client.ts'
import { passedHead, type AnswerHead } from './answer-head.ts'
import type { Exchange } from './answers.ts'
import { LiveBody } from './live-body.ts'
import { serveArtifact, type ServeDeps } from './serve-artifact.ts'

/** What keeps us from storing, or from reading what is stored, keeps no client from what its upstream has. */
const passable = [
  'METADATA_UNAVAILABLE',
  'QUORUM_NOT_REACHED',
  'INSUFFICIENT_STORAGE',
  'REPLICAS_UNREACHABLE',
  'TOO_LARGE',
] as const

export interface ProxiedReadsDeps extends ServeDeps {
  readonly upstreams: Pick<UpstreamCache, 'current' | 'heal' | 'open'>
  readonly resolver: Pick<Resolver, 'resolve'>
  readonly downloads: Pick<DownloadLog, 'note'>
  readonly headOf: (entry: CachedPath, repository: Repository, artifact: Artifact) => AnswerHead
}

export class ProxiedReads {
  readonly #deps: ProxiedReadsDeps

  constructor(deps: ProxiedReadsDeps) {
    this.#deps = deps
  }

  /** 'absent', with nothing answered: neither has it. */
  async read(exchange: Exchange, repository: ProxyRepository, path: string): Promise<'answered' | 'absent'> {
    const { request, response, signal } = exchange
    const method = request.method === 'HEAD' ? 'HEAD' : 'GET'
    const live = isPlain(exchange) ? new LiveBody(exchange, repository, path) : undefined
    let cached: Cached
    exchange.waits = true // what others have begun to fetch, too, may take long
    try {
      cached = await this.#deps.upstreams.current(repository, path, { method, signal, watcher: live })
    } catch (error) {
      if (response.headersSent || !isHoldfastError(error, ...passable)) throw error
      return this.#pass(exchange, repository, path, error)
    } finally {
      exchange.waits = false
    }
    if (live?.artifact !== undefined) {
      await live.finish(this.#deps.reader, live.artifact)
      return 'answered'
    }
    // It had got a part of what then could not be fetched. Who asks again gets the copy that was here before.
    if (response.headersSent) throw new HoldfastError('UPSTREAM_UNAVAILABLE', 'the upstream broke off')
    if (cached.there !== undefined) return this.#send(exchange, repository, path, cached.there)
    if (cached.entry.artifact === null) return 'absent'
    if (cached.stale) response.setHeader('Warning', '110 - "Response is Stale"')
    if (method === 'GET') this.#deps.downloads.note(cached.entry, repository.id, path)
    return this.#serve(exchange, repository, cached, cached.entry.artifact)
  }

  async #serve(
    exchange: Exchange,
    repository: ProxyRepository,
    { entry, source }: Cached,
    artifact: Artifact,
  ): Promise<'answered' | 'absent'> {
    const { upstreams, headOf } = this.#deps
    try {
      await serveArtifact(this.#deps, exchange, artifact.blob, headOf(entry, repository, artifact), source)
    } catch (error) {
      if (exchange.response.headersSent || !isHoldfastError(error, 'REPLICAS_UNREACHABLE')) throw error
      const healed = await upstreams.heal(repository, artifact)
      if (healed === 'gone') throw error
      if (healed === 'failed') return this.#pass(exchange, repository, artifact.path, error, artifact.blob)
      await serveArtifact(this.#deps, exchange, healed.blob, headOf({ artifact: healed }, repository, healed), source)
    }
    return 'answered'
  }

  /**
   * Straight from the upstream, without a trace here. Where something is known to be at the path, it has to be that. `problem`: why; told
   * to the client if the upstream does not have it either.
   */
  async #pass(
    exchange: Exchange,
    repository: ProxyRepository,
    path: string,
    problem: HoldfastError,
    expected?: Blob,
  ): Promise<'answered' | 'absent'> {
    const { request, signal } = exchange
    const method = request.method === 'HEAD' ? 'HEAD' : 'GET'
    const answer = await this.#deps.upstreams.open(repository, path, method, signal).catch((error: unknown) => {
      throw expected === undefined ? error : problem
    })
    if (answer.kind !== 'body') {
      if (expected !== undefined) throw problem
      // What it has no more may be kept here: only who knows that it is not may say that there is nothing (I7).
      const { entry } = await this.#deps.resolver.resolve(repository, path)
      if (entry.artifact !== null) throw problem
      return 'absent'
    }
    if (expected !== undefined && answer.bytes !== expected.bytes) {
      await answer.chunks.return?.()
      throw problem
    }
    return this.#send(exchange, repository, path, answer, expected)
  }

  async #send(
    { request, response, requestId, signal }: Exchange,
    repository: ProxyRepository,
    path: string,
    body: UpstreamBody,
    expected?: Blob,
  ): Promise<'answered'> {
    const head = passedHead(repository, path, body)
    response.writeHead(200, [...head, 'Holdfast-Metadata', 'upstream', 'X-Request-Id', requestId])
    if (request.method === 'HEAD') {
      response.end()
      await body.chunks.return?.()
    } else {
      const chunks = expected === undefined ? body.chunks : verified(body.chunks, expected)
      await pipeline(chunks, response, { signal }).catch((error: unknown) => {
        // The end of a complete answer aborts the signal, before the pipeline has noticed that it is through.
        if (!response.writableFinished) throw error
      })
    }
    return 'answered'
  }
}

/** For everybody else the copy has to be there first. */
function isPlain({ request: { method, headers } }: Exchange): boolean {
  return method === 'GET' && headers.range === undefined && headers['if-match'] === undefined
}

/** The same chunks, the last one only if all of them are what they should be (I5). */
async function* verified(chunks: AsyncIterable<Buffer>, { digest: expected }: Blob): AsyncGenerator<Buffer> {
  const sha256 = createHash('sha256')
  let last: Buffer | undefined
  for await (const chunk of chunks) {
    if (last !== undefined) yield last
    sha256.update(chunk)
    last = chunk
  }
  const found = sha256.digest('hex')
  if (found !== expected)
    throw new HoldfastError('UPSTREAM_FAILED', 'the upstream has other bytes', { expected, found })
  if (last !== undefined) yield last
}
