/** `/repository/<repository>/<path>`: what each method means, in the order access, policy, work. */
import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import type { Logger } from 'pino'
import { decide, type Action } from '../access/decide.ts'
import type { Authenticator } from '../access/authenticator.ts'
import type { Principal } from '../access/principal.ts'
import { RefusalBudget } from '../access/refusal-budget.ts'
import type { ArtifactChanges } from '../artifacts/artifact-changes.ts'
import type { ArtifactWriter, Put, PutOutcome } from '../artifacts/artifact-writer.ts'
import type { DownloadLog } from '../artifacts/download-log.ts'
import type { BodyCache } from '../artifacts/body-cache.ts'
import type { Folders } from '../artifacts/folders.ts'
import type { CachedPath } from '../artifacts/path-cache.ts'
import type { Repositories } from '../artifacts/repositories.ts'
import type { Resolver } from '../artifacts/resolver.ts'
import type { Artifact, Metadata, Repository, WriteConditions } from '../metadata/types.ts'
import type { BlobReader } from '../routing/types.ts'
import { isProxy, type UpstreamCache } from '../upstream/upstream-cache.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { parseDigest, type Digest } from '../../shared/ids.ts'
import { prepareHead, type AnswerHead } from './answer-head.ts'
import { sendJson, sendText, type Exchange } from './answers.ts'
import { artifactTarget, parseArtifactTarget, type ArtifactTarget } from './artifact-path.ts'
import type { ClientAddresses } from './client-address.ts'
import { compareChecksums, parseDeclaredChecksums, type DeclaredChecksums } from './checksums.ts'
import { evaluateConditions, parseEntityTags } from './conditions.ts'
import { declaredContentType } from './content-types.ts'
import { listingHtml, listingJson } from './listing.ts'
import type { LaneAnswer, LaneRequest } from './fast-lane.ts'
import type { Metrics } from './metrics.ts'
import { ProxiedReads } from './proxied-reads.ts'
import { restoredAttributes } from './restored-attributes.ts'
import { newRequestId } from './request-id.ts'
import { serveArtifact, wholeBody, wholeBytesMax } from './serve-artifact.ts'

const allowedMethods = ['GET', 'HEAD', 'PUT', 'DELETE'] as const
const folderPageSize = 1_000

export interface ArtifactRoutesDeps {
  readonly authenticator: Authenticator
  readonly repositories: Repositories
  readonly resolver: Resolver
  readonly bodies: BodyCache
  readonly reader: BlobReader
  readonly writer: ArtifactWriter
  readonly upstreams: Pick<UpstreamCache, 'isCurrent' | 'current' | 'heal' | 'open'>
  readonly changes: ArtifactChanges
  readonly downloads: Pick<DownloadLog, 'note'>
  readonly folders: Pick<Folders, 'list'>
  readonly metadata: Pick<Metadata, 'listFolder' | 'audit'>
  readonly uploadsMax: number
  /** The client's address, for limits and audit. */
  readonly addressOf: ClientAddresses['of']
  readonly metrics: Pick<Metrics, 'receivedBytes' | 'sentBytes'>
  readonly log: Pick<Logger, 'warn'>
}

export class ArtifactRoutes {
  readonly #deps: ArtifactRoutesDeps
  readonly #refusals: RefusalBudget
  readonly #proxied: ProxiedReads
  #uploads = 0
  readonly #refusedInLane = new WeakMap<
    Socket,
    { readonly authorization: string | undefined; readonly error: unknown }
  >()

  constructor(deps: ArtifactRoutesDeps) {
    this.#deps = deps
    this.#refusals = new RefusalBudget(deps.log, () => performance.now())
    this.#proxied = new ProxiedReads({ ...deps, headOf })
  }

  /**
   * The answer to a plain GET if nothing has to be asked: access, path and bytes are all in memory. No promise, no closure: this is
   * the hot path. Throws PATH_INVALID as the other paths do.
   */
  fromMemory({ target, authorization, ifNoneMatch }: LaneRequest, connection: object): LaneAnswer | undefined {
    const { repository: name, path } = parseArtifactTarget(target)
    const repository = this.#deps.repositories.peek(name)
    if (repository === undefined || repository === 'ask') return undefined
    const principal = this.#deps.authenticator.authenticateCached(authorization, connection)
    if (principal === undefined || decide(principal, 'read', repository) !== 'allow') return undefined
    const entry = this.#deps.resolver.peek(`${name}/${path}`)
    if (entry?.artifact == null || !this.#isKept(repository, entry.artifact)) return undefined
    const head = headOf(entry, repository, entry.artifact)
    if (ifNoneMatch !== undefined && ifNoneMatch !== head.etag) return undefined
    const body = ifNoneMatch === undefined ? this.#deps.bodies.get(entry.artifact.blob.digest) : undefined
    if (body === undefined && ifNoneMatch === undefined) return undefined
    this.#deps.downloads.note(entry, repository.id, path)
    return this.#laneAnswer(head, body)
  }

  /** The same with asking whoever has to be asked; undefined for all but the plain success of a small artifact. Rejects like `handle`. */
  async fromReplicas(request: LaneRequest, socket: Socket): Promise<LaneAnswer | undefined> {
    const { repository: name, path } = parseArtifactTarget(request.target)
    if (path === '' || path.endsWith('/')) return undefined
    const principal = await this.#authenticateInLane(request, socket)
    const repository = (await this.#deps.repositories.all()).get(name)
    if (repository === undefined || decide(principal, 'read', repository) !== 'allow') return undefined
    const { entry, source } = await this.#deps.resolver.resolve(repository, path)
    if (entry.artifact === null || source !== 'current' || entry.artifact.blob.bytes > wholeBytesMax) return undefined
    if (!this.#isKept(repository, entry.artifact)) return undefined
    const head = headOf(entry, repository, entry.artifact)
    const verdict = evaluateConditions('GET', { 'if-none-match': request.ifNoneMatch }, head)
    if (verdict === 'failed') return undefined
    this.#deps.downloads.note(entry, repository.id, path)
    return this.#laneAnswer(
      head,
      verdict === 'not-modified' ? undefined : await wholeBody(this.#deps, entry.artifact.blob),
    )
  }

  /** Nobody else has to be asked whether what is here is current. */
  #isKept(repository: Repository, artifact: Artifact): boolean {
    return !isProxy(repository) || this.#deps.upstreams.isCurrent(repository, artifact)
  }

  #laneAnswer({ lane }: AnswerHead, body: Buffer | undefined): LaneAnswer {
    const id = `X-Request-Id: ${newRequestId()}\r\n`
    if (body === undefined) return { status: 304, head: lane.notModified + id, body }
    this.#deps.metrics.sentBytes += body.length
    return { status: 200, head: lane.whole + id, body }
  }

  /** A login refused here is told to the client by `handle`, which must not count it a second time. */
  async #authenticateInLane({ authorization, forwardedFor }: LaneRequest, socket: Socket): Promise<Principal> {
    const address = this.#deps.addressOf({ socket, headers: { 'x-forwarded-for': forwardedFor } })
    try {
      return await this.#deps.authenticator.authenticate(authorization, address)
    } catch (error) {
      this.#refusedInLane.set(socket, { authorization, error })
      throw error
    }
  }

  /** Rejects with what the client shall be told. */
  async handle(exchange: Exchange, expectContinue: boolean): Promise<void> {
    const { request } = exchange
    const target = parseArtifactTarget(request.url ?? '')
    switch (request.method) {
      case 'GET':
      case 'HEAD': {
        const { repository } = await this.#access(exchange, target, 'read')
        return this.#read(exchange, repository, target)
      }
      case 'PUT': {
        const access = await this.#access(exchange, target, 'write')
        return this.#put(exchange, access, target, expectContinue)
      }
      case 'DELETE': {
        const access = await this.#access(exchange, target, 'delete')
        return this.#delete(exchange, access, target)
      }
      default:
        // Whoever may not even read learns nothing about methods.
        await this.#access(exchange, target, 'read')
        throw new HoldfastError('METHOD_NOT_ALLOWED', `${request.method} is not possible here`, {
          allow: [...allowedMethods],
        })
    }
  }

  async #access(exchange: Exchange, target: ArtifactTarget, action: Action): Promise<Access> {
    const { authenticator, repositories, metadata, addressOf } = this.#deps
    const address = addressOf(exchange.request)
    const refused = this.#refusedInLane.get(exchange.request.socket)
    this.#refusedInLane.delete(exchange.request.socket)
    if (refused !== undefined && refused.authorization === exchange.request.headers.authorization) throw refused.error
    const principal = await authenticator.authenticate(exchange.request.headers.authorization, address)
    const repository = (await repositories.all()).get(target.repository)
    const verdict = decide(principal, action, repository)
    if (verdict === 'allow') {
      if (repository === undefined) {
        throw new HoldfastError('REPOSITORY_NOT_FOUND', `no repository '${target.repository}'`, {
          repository: target.repository,
        })
      }
      return { principal, repository }
    }
    if (action !== 'read' && (!principal.anonymous || this.#refusals.take())) {
      const subject = `${target.repository}/${target.path}`
      // The refusal stands whether or not it can be written down.
      metadata.audit({ user: principal.name, action, subject, outcome: verdict, address }).catch(() => {})
    }
    throw verdict === 'unauthorized'
      ? new HoldfastError('UNAUTHORIZED', `log in to ${action} here`)
      : new HoldfastError('FORBIDDEN', `'${principal.name}' may not ${action} in repository '${target.repository}'`)
  }

  async #read(exchange: Exchange, repository: Repository, target: ArtifactTarget): Promise<void> {
    const { path } = target
    if (path === '' || path.endsWith('/')) return this.#list(exchange, repository, target)
    if (isProxy(repository)) {
      if ((await this.#proxied.read(exchange, repository, path)) === 'answered') return
    } else if (await this.#serve(exchange, repository, path)) return
    if (await this.#virtualChecksum(exchange, repository, path)) return
    if (await this.#redirectToFolder(exchange, repository, path)) return
    throw new HoldfastError('ARTIFACT_NOT_FOUND', `nothing at ${repository.name}/${path}`)
  }

  /** False, with nothing answered: there is nothing. */
  async #serve(exchange: Exchange, repository: Repository, path: string): Promise<boolean> {
    const { entry, source } = await this.#deps.resolver.resolve(repository, path)
    const { artifact } = entry
    if (artifact === null) return false
    if (exchange.request.method === 'GET') this.#deps.downloads.note(entry, repository.id, path)
    await serveArtifact(this.#deps, exchange, artifact.blob, headOf(entry, repository, artifact), source)
    return true
  }

  /** `<path>.sha256`, `.sha1`, `.md5` of an artifact, unless such a file was really uploaded: lower-case hex. */
  async #virtualChecksum(exchange: Exchange, repository: Repository, path: string): Promise<boolean> {
    const match = /^(.+)\.(sha256|sha1|md5)$/s.exec(path)
    if (match === null) return false
    const { entry, source } = await this.#deps.resolver.resolve(repository, match[1] ?? '')
    if (entry.artifact === null) return false
    const { digest, sha1, md5 } = entry.artifact.blob
    const hex = { sha256: digest, sha1, md5 }[match[2] as 'sha256' | 'sha1' | 'md5']
    const { request, response, requestId } = exchange
    const headers = { 'cache-control': 'no-cache', ...(source === 'current' ? {} : { 'holdfast-metadata': source }) }
    sendText(response, 200, 'text/plain', hex, requestId, headers, request.method === 'HEAD')
    return true
  }

  /** A person who left out the slash of a folder gets it added. Programs get their 404 without another query. */
  async #redirectToFolder(exchange: Exchange, repository: Repository, path: string): Promise<boolean> {
    const { request, response, requestId } = exchange
    if (request.headers.accept?.includes('text/html') !== true) return false
    // Without PostgreSQL it is not worth asking all shards for everything that is missed.
    const page = await this.#deps.metadata.listFolder(repository.id, path + '/', '', 1).catch((error: unknown) => {
      if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
    })
    if (page === undefined || page.entries.length === 0) return false
    const location = artifactTarget(repository.name, path + '/')
    // An artifact may be written there any time, and programs are told otherwise.
    const headers = { location, 'cache-control': 'no-cache', vary: 'accept' }
    sendText(response, 301, 'text/plain', location + '\n', requestId, headers, request.method === 'HEAD')
    return true
  }

  async #list(exchange: Exchange, repository: Repository, target: ArtifactTarget): Promise<void> {
    const { request, response, requestId } = exchange
    const json = request.headers.accept?.includes('application/json') === true
    if (!json) {
      const index = await this.#deps.resolver.resolve(repository, target.path + 'index.html')
      if (index.entry.artifact !== null) {
        const head = headOf(index.entry, repository, index.entry.artifact)
        response.setHeader('vary', 'accept')
        return serveArtifact(this.#deps, exchange, index.entry.artifact.blob, head, index.source)
      }
    }
    const after = new URLSearchParams(target.query).get('after') ?? ''
    const question = { after, limit: folderPageSize, signal: exchange.signal }
    const { page, source } = await this.#deps.folders.list(repository, target.path, question)
    if (page.entries.length === 0 && target.path !== '' && after === '') {
      throw new HoldfastError('ARTIFACT_NOT_FOUND', `no folder ${repository.name}/${target.path}`)
    }
    const listing = { repository: repository.name, folder: target.path, page }
    const headers = {
      'cache-control': 'no-cache',
      vary: 'accept',
      'content-security-policy': "default-src 'none'; style-src 'unsafe-inline'",
      ...(source === 'current' ? {} : { 'holdfast-metadata': source }),
    }
    const headOnly = request.method === 'HEAD'
    if (json) sendJson(response, 200, listingJson(listing), requestId, headers, headOnly)
    else sendText(response, 200, 'text/html; charset=utf-8', listingHtml(listing), requestId, headers, headOnly)
  }

  async #put(
    exchange: Exchange,
    { principal, repository }: Access,
    target: ArtifactTarget,
    expectContinue: boolean,
  ): Promise<void> {
    const { request, response } = exchange
    const { writer } = this.#deps
    if (repository.upstream !== null) {
      const message = `repository '${repository.name}' has an upstream: what it has cannot be written here`
      throw new HoldfastError('METHOD_NOT_ALLOWED', message, { allow: ['GET', 'HEAD', 'DELETE'] })
    }
    // RFC 9110 14.5: taken for a whole artifact, the part would replace all that was there.
    if (request.headers['content-range'] !== undefined) {
      const message = 'an upload cannot be resumed, nor a part be replaced (Content-Range): send the whole body'
      throw new HoldfastError('BAD_REQUEST', message)
    }
    if (target.path === '' || target.path.endsWith('/')) {
      throw new HoldfastError('PATH_INVALID', 'an artifact needs a name: the path ends in "/"', { path: target.path })
    }
    const declared = parseDeclaredChecksums(request.headers)
    const facts = {
      repository,
      path: target.path,
      user: principal.name,
      contentType: declaredContentType(request.headers['content-type']),
      attributes: restoredAttributes(request.headers, principal),
      conditions: writeConditions(request.headers),
      requestId: exchange.requestId,
    }
    if (request.headers['x-checksum-deploy']?.toString().toLowerCase() === 'true') {
      if (request.headers['transfer-encoding'] !== undefined || (contentLength(request) ?? 0) > 0) {
        const message = 'a checksum deploy has no body: leave it out, or X-Checksum-Deploy to upload it'
        throw new HoldfastError('BAD_REQUEST', message)
      }
      writer.admit(repository, target.path, 0)
      return this.#putByChecksum(exchange, principal, facts, declared)
    }
    const expectedBytes = contentLength(request)
    writer.admit(repository, target.path, expectedBytes)
    if (this.#uploads >= this.#deps.uploadsMax) throw new HoldfastError('OVERLOADED', 'too many uploads at once')
    this.#uploads++
    try {
      await writer.foresee(facts, { ...declared, bytes: expectedBytes })
      if (expectContinue) response.writeContinue()
      const sha512 = declared.sha512 === undefined ? undefined : createHash('sha512')
      const outcome = await writer.put({
        ...facts,
        // Whoever stops reading wants to answer: the connection must outlive that.
        body: request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>,
        expectedBytes,
        signal: exchange.signal,
        observe: chunk => {
          sha512?.update(chunk)
          this.#deps.metrics.receivedBytes += chunk.length
        },
        verify: actual =>
          compareChecksums(declared, sha512 === undefined ? actual : { ...actual, sha512: sha512.digest('hex') }),
      })
      sendWritten(exchange, repository, outcome)
    } finally {
      this.#uploads--
    }
  }

  async #putByChecksum(
    exchange: Exchange,
    principal: Principal,
    facts: Omit<Parameters<ArtifactWriter['putByChecksum']>[0], 'verify'>,
    declared: DeclaredChecksums,
  ): Promise<void> {
    const sha256 = parseDigest(declared.sha256 ?? '')
    if (sha256 === undefined && declared.sha1 === undefined) {
      throw new HoldfastError('BAD_REQUEST', 'a checksum deploy needs X-Checksum-Sha256 or X-Checksum-Sha1')
    }
    const readable = [...(await this.#deps.repositories.all()).values()]
      .filter(repository => decide(principal, 'read', repository) === 'allow')
      .map(repository => repository.id)
    const checksum = sha256 === undefined ? { sha1: declared.sha1 ?? '' } : { sha256 }
    const verify: Put['verify'] = actual => compareChecksums(declared, actual, 'the artifact that is here')
    // Nobody keeps the sha512 of what is here: only an upload can be compared with it.
    const outcome =
      declared.sha512 === undefined
        ? await this.#deps.writer.putByChecksum({ ...facts, verify }, checksum, readable)
        : undefined
    if (outcome === undefined)
      throw new HoldfastError('ARTIFACT_NOT_FOUND', 'no artifact is known to have these checksums: send the bytes')
    sendWritten(exchange, facts.repository, outcome)
  }

  async #delete(exchange: Exchange, { principal, repository }: Access, target: ArtifactTarget): Promise<void> {
    const { request, response, requestId } = exchange
    const isFolder = target.path === '' || target.path.endsWith('/')
    const query = new URLSearchParams(target.query)
    let deleted = 1
    const { absent, match } = writeConditions(request.headers)
    if (absent !== undefined || (isFolder && match !== undefined)) {
      throw new HoldfastError('BAD_REQUEST', 'a deletion understands If-Match, and of one artifact only')
    }
    if (!isFolder) {
      await this.#deps.changes.deleteArtifact({ repository, path: target.path }, principal.name, match)
    } else if (query.get('recursive') === 'true') {
      const confirmed = confirmedCount(query.get('confirm'))
      deleted = await this.#deps.changes.deleteFolder({ repository, path: target.path }, principal.name, confirmed)
    } else {
      throw new HoldfastError('BAD_REQUEST', 'this is a folder: add ?recursive=true to delete everything below it')
    }
    response.writeHead(204, { 'x-request-id': requestId, 'holdfast-deleted': String(deleted) })
    response.end()
  }
}

interface Access {
  readonly principal: Principal
  readonly repository: Repository
}

function headOf(entry: CachedPath, repository: Repository, artifact: Artifact): AnswerHead {
  return (entry.prepared ??= prepareHead(repository, artifact)) as AnswerHead
}

function sendWritten(
  { response, requestId }: Exchange,
  repository: Repository,
  { artifact, outcome }: PutOutcome,
): void {
  const { etag } = prepareHead(repository, artifact)
  const { digest, sha1, md5 } = artifact.blob
  response.writeHead(outcome === 'created' ? 201 : 200, [
    'Location',
    artifactTarget(repository.name, artifact.path),
    'ETag',
    etag,
    'X-Checksum-Sha256',
    digest,
    'X-Checksum-Sha1',
    sha1,
    'X-Checksum-Md5',
    md5,
    'X-Request-Id',
    requestId,
    'Content-Length',
    '0',
  ])
  response.end()
}

/** BAD_REQUEST for a length that is none; node:http has refused contradicting ones before. */
function contentLength(request: IncomingMessage): number | undefined {
  const header = request.headers['content-length']
  if (header === undefined) return undefined
  const length = Number(header)
  if (!/^\d{1,15}$/.test(header) || !Number.isSafeInteger(length)) {
    throw new HoldfastError('BAD_REQUEST', 'Content-Length is not a number of bytes', { contentLength: header })
  }
  return length
}

/** How many artifacts may go with a folder, where so many go that it has to be said. */
function confirmedCount(text: string | null): number | undefined {
  if (text === null) return undefined
  if (!/^\d{1,15}$/.test(text)) throw new HoldfastError('BAD_REQUEST', 'confirm is a number of artifacts')
  return Number(text)
}

/** Only what a write can honour: `If-None-Match: *`, and `If-Match` with strong tags that are our digests. No condition is passed over. */
function writeConditions(headers: IncomingMessage['headers']): Pick<WriteConditions, 'absent' | 'match'> {
  const ifNoneMatch = headers['if-none-match']
  if (ifNoneMatch !== undefined && ifNoneMatch.trim() !== '*') {
    throw new HoldfastError('BAD_REQUEST', 'a write understands If-None-Match only with "*"')
  }
  const absent = ifNoneMatch === undefined ? {} : { absent: true }
  const ifMatch = headers['if-match']
  // RFC 9110 13.1.4: beside If-Match it does not count.
  if (ifMatch === undefined && headers['if-unmodified-since'] !== undefined) {
    throw new HoldfastError('BAD_REQUEST', 'a write does not understand If-Unmodified-Since: send If-Match')
  }
  if (ifMatch === undefined) return absent
  const tags = parseEntityTags(ifMatch)
  if (tags === '*') return { ...absent, match: '*' }
  const digests = tags
    .filter(tag => !tag.weak)
    .map(tag => parseDigest(tag.tag.slice(1, -1)))
    .filter((digest): digest is Digest => digest !== undefined)
  return { ...absent, match: digests }
}
