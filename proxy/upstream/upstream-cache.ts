/**
 * Repositories of type 'proxy': what is asked for is fetched from the upstream once and kept like any artifact, on R shards, with its
 * reference. What has a version in its path is never asked for again; of the rest the upstream is asked, when the copy is old, whether it
 * has changed. A copy that cannot be asked about is served as it is. And what was lost on all shards comes from the upstream again.
 *
 * One fetch of a path at a time in this worker, whoever asks; it goes on when its client leaves. Two workers may fetch the same at once,
 * and store it once: the digest is the same.
 */
import { setMaxListeners } from 'node:events'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { abortable } from '../../shared/abortable.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { Digest } from '../../shared/ids.ts'
import type { ArtifactWriter, Put } from '../artifacts/artifact-writer.ts'
import type { Resolved, Resolver } from '../artifacts/resolver.ts'
import { compareChecksums } from '../http/checksums.ts'
import { declaredContentType } from '../http/content-types.ts'
import { newRequestId } from '../http/request-id.ts'
import type { Artifact, Repository, Upstream } from '../metadata/types.ts'
import { isImmutable } from './freshness.ts'
import type { UpstreamAnswer, UpstreamBody, UpstreamClient, Validators } from './upstream-client.ts'

/** A client that could have the copy does not wait longer for the word that it is current. */
const revalidateMs = 5_000
/** After an upstream could not be asked, its copy is served without another attempt for so long. */
const staleMs = 30_000
const remembered = 200_000
const goneMs = 60_000
const goneMax = 10_000
/** Of paths, which clients choose: they may be long. */
const rememberedChars = 32 * 1024 * 1024
/** Longer ones are not kept: they travel with every reference. */
const validatorCharsMax = 256
/** Who has written what was fetched. */
const writerName = 'holdfast'

export type ProxyRepository = Repository & { readonly upstream: NonNullable<Repository['upstream']> }
export const isProxy = (repository: Repository): repository is ProxyRepository => repository.upstream !== null

/** Sees the bytes of a fetch while they are being stored. */
export interface Watcher {
  begin(body: UpstreamBody): void
  /** Shall see nothing more; false: it has begun. */
  leave(): boolean
  take(chunk: Buffer): void
  /** They are durable, as this artifact. */
  stored(artifact: Artifact): void
}

export interface Cached extends Resolved {
  /** The upstream could not be asked whether it is still this. */
  readonly stale: boolean
  /** There is no copy, but the upstream has it: the head of its answer. */
  readonly there?: UpstreamBody
}

export interface Wanted {
  /** For a HEAD nothing is fetched, unless there is a copy that is old. */
  readonly method: 'GET' | 'HEAD'
  readonly signal: AbortSignal
  readonly watcher?: Watcher | undefined
}

export interface UpstreamCacheDeps {
  readonly resolver: Pick<Resolver, 'resolve'>
  readonly writer: Pick<ArtifactWriter, 'admit' | 'put'>
  readonly client: Pick<UpstreamClient, 'ask'>
  readonly fetchesMax: number
  /** Monotonic, ms. */
  readonly now: () => number
  /** Milliseconds since 1970. */
  readonly time: () => number
  readonly log: Pick<Logger, 'info' | 'warn' | 'error'>
}

interface Verdict {
  readonly until: number
  readonly is: 'current' | 'stale' | 'absent'
}
type Fetched = 'stored' | 'kept' | 'absent'
/** As it is stored now. 'gone': the upstream does not give these bytes any more. */
export type Healed = Artifact | 'gone' | 'failed'

export class UpstreamCache {
  readonly #deps: UpstreamCacheDeps
  /** By `repository/path`: what the upstream last said. Of this worker only: others go by when the copy was stored. */
  readonly #verdicts = new LRUCache<string, Verdict>({
    max: remembered,
    maxSize: rememberedChars,
    sizeCalculation: (_, key) => key.length,
  })
  readonly #fetches = new Map<string, Promise<Fetched>>()
  readonly #heals = new Map<string, Promise<Healed>>()
  /** Blobs whose upstream does not have them any more: not looked for with every read. */
  readonly #gone = new LRUCache<string, true>({ max: goneMax, ttl: goneMs })
  readonly #closing = new AbortController()
  /** Fetched and stored; copies the upstream confirmed; served although it could not be asked; blobs brought back. */
  readonly counts = { stored: 0, confirmed: 0, stale: 0, healed: 0 }

  constructor(deps: UpstreamCacheDeps) {
    this.#deps = deps
    // As many as there are fetches listen to it.
    setMaxListeners(0, this.#closing.signal)
  }

  /** May this copy be served without a question? No I/O: for the hot path. */
  isCurrent({ name, upstream }: ProxyRepository, artifact: Artifact): boolean {
    const { path } = artifact
    if (isImmutable(path) || this.#verdict(`${name}/${path}`) === 'current') return true
    return isFresh(artifact, upstream, this.#deps.time())
  }

  /** A repository's settings have changed. */
  forget(): void {
    this.#verdicts.clear()
    this.#gone.clear()
  }

  /**
   * What there is at the path, from the upstream if need be; an artifact of null: it says that there is nothing. UPSTREAM_UNAVAILABLE,
   * UPSTREAM_FAILED or OVERLOADED when there is no copy and none can be had; else rejects as the resolver and writer do, or with the
   * signal's reason.
   */
  async current(repository: ProxyRepository, path: string, { method, signal, watcher }: Wanted): Promise<Cached> {
    const { resolver, log } = this.#deps
    const key = `${repository.name}/${path}`
    const found = await resolver.resolve(repository, path)
    const { artifact } = found.entry
    const verdict = this.#verdict(key)
    if (artifact === null ? verdict === 'absent' : this.isCurrent(repository, artifact)) {
      return { ...found, stale: false }
    }
    // What PostgreSQL cannot be told of would not be kept.
    if (artifact !== null && (verdict === 'stale' || found.source !== 'current')) return this.#stale(found)
    if (artifact === null && method === 'HEAD') return this.#look(repository, path, found, signal)
    try {
      const fetching = this.#fetchOnce(repository, path, artifact, watcher)
      const fetched = await abortable(artifact === null ? fetching : inTime(fetching, watcher), signal)
      if (fetched !== 'stored') return { ...found, stale: false }
    } catch (error) {
      if (artifact === null || signal.aborted || !isHoldfastError(error)) throw error
      log.warn({ err: error, repository: repository.name, path }, 'a copy cannot be compared with its upstream')
      this.#judge(key, 'stale', staleMs)
      return this.#stale(found)
    }
    return { ...(await resolver.resolve(repository, path)), stale: false }
  }

  /** What the upstream has there now, for whoever asks: nothing is stored. Rejects as `current` does. */
  open(
    { upstream }: ProxyRepository,
    path: string,
    method: 'GET' | 'HEAD',
    signal: AbortSignal,
  ): Promise<UpstreamAnswer> {
    return this.#deps.client.ask(upstream, { method, path, validators: {}, passes: method === 'GET', signal })
  }

  /**
   * Stores the artifact's bytes again, of which no copy can be read: under the same generation, so that nothing else changes. What may
   * change at its path comes back as whatever the upstream has there now.
   */
  heal(repository: ProxyRepository, artifact: Artifact): Promise<Healed> {
    const key = `${repository.name}/${artifact.path} ${artifact.blob.digest}`
    const running = this.#heals.get(key)
    if (running !== undefined) return running
    if (this.#gone.has(key)) return Promise.resolve('gone')
    if (this.#heals.size >= this.#deps.fetchesMax) return Promise.resolve('failed')
    const healing = this.#heal(repository, artifact)
      .then(healed => {
        if (healed === 'gone') this.#gone.set(key, true)
        return healed
      })
      .finally(() => this.#heals.delete(key))
    this.#heals.set(key, healing)
    return healing
  }

  /** Breaks off what is being fetched. */
  async close(): Promise<void> {
    this.#closing.abort(new HoldfastError('SHUTTING_DOWN', 'this proxy is about to end'))
    await Promise.allSettled([...this.#fetches.values(), ...this.#heals.values()])
  }

  async #look(repository: ProxyRepository, path: string, found: Resolved, signal: AbortSignal): Promise<Cached> {
    const answer = await this.open(repository, path, 'HEAD', signal)
    if (answer.kind === 'body') return { ...found, stale: false, there: answer }
    this.#judge(`${repository.name}/${path}`, 'absent', repository.upstream.absentMaxAgeSeconds * 1_000)
    return { ...found, stale: false }
  }

  #stale(found: Resolved): Cached {
    this.counts.stale += 1
    return { ...found, stale: true }
  }

  #verdict(key: string): Verdict['is'] | undefined {
    const verdict = this.#verdicts.get(key)
    return verdict === undefined || verdict.until <= this.#deps.now() ? undefined : verdict.is
  }

  #judge(key: string, is: Verdict['is'], forMs: number): void {
    this.#verdicts.set(key, { is, until: this.#deps.now() + forMs })
  }

  #fetchOnce(
    repository: ProxyRepository,
    path: string,
    held: Artifact | null,
    watcher: Watcher | undefined,
  ): Promise<Fetched> {
    const key = `${repository.name}/${path}`
    const running = this.#fetches.get(key)
    if (running !== undefined) return running
    if (this.#fetches.size >= this.#deps.fetchesMax) throw new HoldfastError('OVERLOADED', 'too many fetches at once')
    const fetching = this.#fetch(repository, path, held, watcher).finally(() => this.#fetches.delete(key))
    fetching.catch(() => undefined) // whoever waits is told; all of them may have left
    this.#fetches.set(key, fetching)
    return fetching
  }

  async #fetch(
    repository: ProxyRepository,
    path: string,
    held: Artifact | null,
    watcher: Watcher | undefined,
  ): Promise<Fetched> {
    const { client, writer } = this.#deps
    const { upstream } = repository
    const key = `${repository.name}/${path}`
    const { signal } = this.#closing
    writer.admit(open(repository), path, undefined)
    const waits =
      held === null ? { validators: {} } : { validators: validatorsOf(held, upstream), headMs: revalidateMs }
    const answer = await client.ask(upstream, { method: 'GET', path, ...waits, signal })
    if (answer.kind === 'body') {
      let digest: Digest | undefined
      const conditions = held === null ? { absent: true } : { match: [held.blob.digest] }
      const storing = this.#store(repository, path, answer, conditions, found => (digest = found), watcher)
      const artifact = await storing.catch((error: unknown) => this.#written(repository, path, error))
      this.counts.stored += 1
      this.#judge(key, 'current', upstream.maxAgeSeconds * 1_000)
      if (artifact.blob.digest === digest) watcher?.stored(artifact)
      return 'stored'
    }
    if (held === null) {
      this.#judge(key, 'absent', upstream.absentMaxAgeSeconds * 1_000)
      return 'absent'
    }
    // Also what the upstream has no more: a build that used it yesterday shall have it tomorrow.
    this.#judge(key, 'current', upstream.maxAgeSeconds * 1_000)
    this.counts.confirmed += 1
    return 'kept'
  }

  /** What somebody else has written there meanwhile: another worker, or a client since the repository has no upstream any more. */
  async #written(repository: ProxyRepository, path: string, error: unknown): Promise<Artifact> {
    if (!isHoldfastError(error, 'PRECONDITION_FAILED')) throw error
    const { artifact } = (await this.#deps.resolver.resolve(repository, path)).entry
    if (artifact !== null) return artifact
    throw new HoldfastError('UPSTREAM_UNAVAILABLE', 'it was deleted while it was fetched', {}, { cause: error })
  }

  async #heal(repository: ProxyRepository, { path, blob }: Artifact): Promise<Healed> {
    const { client, writer, log } = this.#deps
    const subject = { repository: repository.name, path, digest: blob.digest }
    try {
      writer.admit(open(repository), path, blob.bytes)
      const ask = { method: 'GET', path, validators: {}, signal: this.#closing.signal } as const
      const answer = await client.ask(repository.upstream, ask)
      if (answer.kind !== 'body') {
        log.error(subject, 'no copy of a blob can be read, and its upstream has it no more')
        return 'gone'
      }
      const artifact = await this.#store(repository, path, answer, { match: [blob.digest] }, found => {
        if (found !== blob.digest && isImmutable(path)) throw otherBytes(blob.digest, found)
      })
      if (artifact.blob.digest === blob.digest) this.counts.healed += 1
      log.warn(
        { ...subject, now: artifact.blob.digest },
        'no copy of a blob could be read: fetched from its upstream again',
      )
      return artifact
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      log.error(
        { err: error, ...subject },
        'no copy of a blob can be read, and it could not be fetched from its upstream again',
      )
      return isHoldfastError(error, 'UPSTREAM_FAILED') ? 'gone' : 'failed'
    }
  }

  async #store(
    repository: ProxyRepository,
    path: string,
    body: UpstreamBody,
    conditions: Put['conditions'],
    check: (digest: Digest) => void,
    watcher?: Watcher,
  ): Promise<Artifact> {
    const { writer } = this.#deps
    try {
      writer.admit(open(repository), path, body.bytes)
      watcher?.begin(body)
      const { artifact } = await writer.put({
        repository: open(repository),
        path,
        user: writerName,
        contentType: declaredContentType(body.contentType),
        attributes: { upstream: { from: repository.upstream.url, ...kept(body.validators) } },
        // A client's write since then stands: the repository may have been cut off from its upstream meanwhile.
        conditions,
        body: body.chunks,
        expectedBytes: body.bytes,
        observe: chunk => watcher?.take(chunk),
        requestId: newRequestId(),
        signal: this.#closing.signal,
        verify: actual => {
          compareChecksums(body.checksums, actual)
          check(actual.sha256)
        },
      })
      return artifact
    } catch (error) {
      await body.chunks.return?.()
      if (!isHoldfastError(error, 'CHECKSUM_MISMATCH', 'LENGTH_MISMATCH')) throw error
      throw new HoldfastError('UPSTREAM_FAILED', 'the upstream sends other bytes than it declares', error.data, {
        cause: error,
      })
    }
  }
}

/** The fetch of what there is a copy of: after a while UPSTREAM_UNAVAILABLE, unless the watcher's client has begun to get it. It goes on. */
async function inTime(fetching: Promise<Fetched>, watcher: Watcher | undefined): Promise<Fetched> {
  const late = new AbortController()
  const timer = setTimeout(() => {
    if (watcher?.leave() === false) return
    late.abort(new HoldfastError('UPSTREAM_UNAVAILABLE', `no copy is fetched again within ${revalidateMs} ms`))
  }, revalidateMs)
  try {
    return await abortable(fetching, late.signal)
  } finally {
    clearTimeout(timer)
  }
}

/** Clients may not write there; its upstream always may. */
const open = (repository: Repository): Repository => ({ ...repository, redeploy: 'allow' })

function kept(validators: Validators): Validators {
  return Object.fromEntries(
    Object.entries(validators).filter(([, text]: [string, string]) => text.length <= validatorCharsMax),
  )
}

/** As `kept` left them with the artifact; those of another upstream say nothing to this one. */
function validatorsOf({ attributes }: Artifact, { url }: Upstream): Validators {
  const { from, ...validators } = (attributes['upstream'] ?? {}) as Validators & { readonly from?: string }
  return from === url ? validators : {}
}

/**
 * It was stored so lately that whoever did has asked for us, too. Two clocks are compared: one that is off by more than the age makes us
 * ask, no worse.
 */
function isFresh({ attributes, updatedAt }: Artifact, { url, maxAgeSeconds }: Upstream, time: number): boolean {
  const { from } = (attributes['upstream'] ?? {}) as { readonly from?: string }
  return from === url && Math.abs(time - updatedAt) < maxAgeSeconds * 1_000
}

function otherBytes(expected: Digest, found: Digest): HoldfastError {
  return new HoldfastError('UPSTREAM_FAILED', 'the upstream has other bytes there now', { expected, found })
}
