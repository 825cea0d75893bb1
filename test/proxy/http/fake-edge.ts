/** A real EdgeServer over real artifact services; what lies below (PostgreSQL, shards, coordination) is a few Maps. */
import { hash } from 'node:crypto'
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { pino } from 'pino'
import type { Test } from 'tap'
import { Authenticator } from '../../../proxy/access/authenticator.ts'
import { LoginLimiter } from '../../../proxy/access/login-limiter.ts'
import { ArtifactChanges } from '../../../proxy/artifacts/artifact-changes.ts'
import { ArtifactWriter } from '../../../proxy/artifacts/artifact-writer.ts'
import { BodyCache } from '../../../proxy/artifacts/body-cache.ts'
import { Folders } from '../../../proxy/artifacts/folders.ts'
import { PathCache } from '../../../proxy/artifacts/path-cache.ts'
import { Publisher } from '../../../proxy/artifacts/publisher.ts'
import { referenceOf } from '../../../proxy/artifacts/reference.ts'
import { Repositories } from '../../../proxy/artifacts/repositories.ts'
import { Resolver } from '../../../proxy/artifacts/resolver.ts'
import { checkArtifactPath } from '../../../proxy/http/artifact-path.ts'
import { ArtifactRoutes } from '../../../proxy/http/artifact-routes.ts'
import { ClientAddresses } from '../../../proxy/http/client-address.ts'
import { Metrics } from '../../../proxy/http/metrics.ts'
import { AddressGuard } from '../../../proxy/outgoing/address-guard.ts'
import { UpstreamCache } from '../../../proxy/upstream/upstream-cache.ts'
import { UpstreamClient } from '../../../proxy/upstream/upstream-client.ts'
import { EdgeServer, type EdgeServerOptions } from '../../../proxy/http/server.ts'
import type { Artifact, Blob, FolderPage, Metadata, Repository } from '../../../proxy/metadata/types.ts'
import type {
  BlobReader,
  BlobWriter,
  ByteRange,
  ByteSink,
  FolderContents,
  StagedUpload,
} from '../../../proxy/routing/types.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { newGeneration, type Digest } from '../../../shared/ids.ts'

export const credentials = 'Basic ' + Buffer.from('admin:secret').toString('base64')

export interface EdgeWorld {
  readonly server: EdgeServer
  readonly url: string
  readonly metrics: Metrics
  readonly repositories: Repository[]
  readonly artifacts: Map<string, Artifact>
  readonly blobs: Map<Digest, Buffer>
  readonly store: FakeStore
  /** What was logged as an error: a request must never get there. */
  readonly errors: unknown[]
  readonly audits: Parameters<Metadata['audit']>[0][]
  readonly limiter: LoginLimiter
  folder: FolderPage
  /** Called when somebody's rights are asked. */
  onBegun: () => void
  leased: boolean
  /** By so much is it later than it is, for all that has to do with upstreams. */
  laterMs: number
  /** The shards tell their references; otherwise nobody can ask them. */
  shardsAnswer: boolean
  /** Thrown by every question to the database. */
  metadataFault: HoldfastError | undefined
  /** Puts an artifact there without HTTP. */
  add(path: string, body: Buffer | string, change?: Partial<Artifact>): Artifact
}

export const repositoryOf = (name: string, id: number, change: Partial<Repository> = {}): Repository => ({
  id,
  name,
  format: 'raw',
  type: 'hosted',
  upstream: null,
  redeploy: 'allow',
  artifactBytesMax: null,
  anonymousRead: true,
  trashDays: 7,
  ...change,
})

export async function startEdge(
  t: Pick<Test, 'teardown'>,
  options: Partial<EdgeServerOptions> & {
    uploadsMax?: number
    trustProxy?: readonly string[]
    logLevel?: string
    metricsText?: () => Promise<string>
    api?: (request: IncomingMessage, response: ServerResponse) => void
  } = {},
): Promise<EdgeWorld> {
  const repositories = [
    repositoryOf('raw', 1),
    repositoryOf('once', 2, { redeploy: 'once', anonymousRead: false }),
    repositoryOf('deny', 3, { redeploy: 'deny' }),
    repositoryOf('small', 4, { artifactBytesMax: 1_000 }),
  ]
  const errors: unknown[] = []
  const artifacts = new Map<string, Artifact>()
  const store = new FakeStore()
  const metrics = new Metrics()
  const audits: EdgeWorld['audits'] = []
  let version = 0
  const now = (): number => performance.now()
  const addresses = new ClientAddresses(options.trustProxy ?? [])
  const limiter = new LoginLimiter(now)
  const nameOf = (id: number): string => repositories.find(repository => repository.id === id)?.name ?? '?'
  const asked = (): void => {
    if (world.metadataFault !== undefined) throw world.metadataFault
  }
  const metadata = {
    incarnation: 'i',
    listRepositories: async () => (asked(), [...repositories]),
    findUser: async (name: string) => (
      asked(),
      name === 'admin' ? { name, passwordHash: 'secret', admin: true } : undefined
    ),
    findArtifact: async (id: number, path: string) => (asked(), artifacts.get(`${nameOf(id)}/${path}`)),
    findBlob: async (wanted: { sha256: Digest } | { sha1: string }) => {
      asked()
      const found = [...artifacts.values()].find(({ blob }) =>
        'sha256' in wanted ? blob.digest === wanted.sha256 : blob.sha1 === wanted.sha1,
      )
      return found?.blob
    },
    pinBlob: async () => true,
    digestReadable: async () => true,
    commitArtifact: async commit => {
      asked()
      const key = `${commit.repository}/${commit.path}`
      const current = artifacts.get(key)
      if (commit.conditions.absent === true && current !== undefined)
        return { outcome: 'refused', reason: 'exists', current }
      const { match } = commit.conditions
      if (Array.isArray(match) && !match.includes(current?.blob.digest))
        return { outcome: 'refused', reason: 'no-match', current: current ?? null }
      const artifact = {
        ...artifactOf(commit.repositoryId, commit.path, commit.blob, ++version, commit.contentType),
        attributes: commit.attributes,
      }
      artifacts.set(key, artifact)
      return {
        outcome: current === undefined ? 'created' : 'replaced',
        artifact,
        outboxSeq: version,
        incarnation: 'i',
      } as const
    },
    deleteArtifact: async ({ repository, path }) => {
      asked()
      const key = `${repository}/${path}`
      return artifacts.delete(key) ? { path, version: ++version, outboxSeq: version } : undefined
    },
    listFolder: async () => (asked(), world.folder),
    audit: async entry => void audits.push(entry),
    settleOutbox: async () => {},
    addRepairs: async () => {},
    ping: async () => asked(),
    available: true,
    onAway: () => {},
  } as Partial<Metadata> as Metadata
  const cache = new PathCache({ entriesMax: 1_000 })
  const lists = new Repositories({ metadata, leaseUsable: () => world.leased, now })
  const silent = pino({ level: 'silent' })
  const publisher = new Publisher({
    metadata,
    references: { append: async () => ({ missing: [] }) },
    lease: { prepare: async () => {}, invalidate: async () => {} },
    invalidateLocal: keys => cache.invalidate(keys),
    log: silent,
  })
  const references = {
    newest: async (repository: string, path: string) => {
      if (!world.shardsAnswer) throw new HoldfastError('REPLICAS_UNREACHABLE', 'no shard answers')
      const artifact = artifacts.get(`${repository}/${path}`)
      return artifact === undefined ? undefined : referenceOf(repository, artifact, 'i')
    },
  }
  const listFromShards = (folder: string): FolderContents => {
    if (!world.shardsAnswer) throw new HoldfastError('REPLICAS_UNREACHABLE', 'no shard answers')
    const below = [...artifacts.keys()].filter(key => key.startsWith(folder) && !key.slice(folder.length).includes('/'))
    const children = below.map(key => ({ key, digest: artifacts.get(key)!.blob.digest, bytes: 5, time: 0 }))
    return { children, more: false }
  }
  const resolver = new Resolver({ metadata, references, cache, leaseUsable: () => world.leased })
  const writer = new ArtifactWriter({
    metadata,
    writer: store,
    publisher,
    onMetadataUnavailable: () => resolver.metadataFailed(),
    metadataAvailable: () => resolver.metadataAvailable,
    artifactBytesMax: undefined,
  })
  const client = new UpstreamClient({ guard: new AddressGuard(['127.0.0.1']), now: () => now() + world.laterMs })
  const routes = new ArtifactRoutes({
    authenticator: new Authenticator({
      metadata,
      passwords: { verify: async (phc, password) => phc === password },
      limiter,
      now,
    }),
    repositories: lists,
    resolver,
    folders: new Folders({ metadata, resolver, shards: { list: async folder => listFromShards(folder) } }),
    bodies: new BodyCache({ bytesMax: 2 ** 24, bodyBytesMax: 2 ** 20 }),
    reader: store,
    upstreams: new UpstreamCache({
      resolver,
      writer,
      client,
      fetchesMax: 20,
      now: () => now() + world.laterMs,
      time: () => Date.now() + world.laterMs,
      log: silent,
    }),
    writer,
    downloads: { note: () => undefined },
    log: silent,
    changes: new ArtifactChanges({
      metadata,
      publisher,
      checkPath: checkArtifactPath,
      brake: { share: 1, artifacts: 0 },
    }),
    metadata,
    uploadsMax: options.uploadsMax ?? 100,
    metrics,
    addressOf: request => {
      world.onBegun()
      return addresses.of(request)
    },
  })
  const server = new EdgeServer(
    {
      artifacts: routes,
      api: options.api ?? ((_, response) => void response.writeHead(204).end()),
      metrics,
      metricsText: options.metricsText ?? (() => metrics.registry.metrics()),
      readiness: () => ({ ready: true, problems: [] }),
      log: pino({ level: options.logLevel ?? 'error' }, { write: line => void errors.push(JSON.parse(line)) }),
    },
    {
      host: '127.0.0.1',
      port: 0,
      requestHeadBytesMax: 16_384,
      connectionsMax: 1_000,
      requestsMax: 1_000,
      idleMs: 60_000,
      clientGraceMs: 60_000,
      clientBytesPerSecondMin: 256,
      ...options,
    },
  )
  await server.listen()
  const world: EdgeWorld = {
    server,
    url: `http://127.0.0.1:${server.port}`,
    metrics,
    repositories,
    artifacts,
    blobs: store.blobs,
    store,
    errors,
    audits,
    limiter,
    folder: { entries: [] },
    onBegun: () => {},
    laterMs: 0,
    leased: true,
    shardsAnswer: false,
    metadataFault: undefined,
    add(key, body, change = {}) {
      const bytes = Buffer.from(body)
      const slash = key.indexOf('/')
      const id = repositories.find(({ name }) => name === key.slice(0, slash))?.id ?? 0
      const artifact = { ...artifactOf(id, key.slice(slash + 1), store.keep(bytes), ++version, null), ...change }
      artifacts.set(key, artifact)
      cache.invalidate([key])
      return artifact
    },
  }
  t.teardown(async () => {
    await server.close(0)
    resolver.close()
    await publisher.close()
  })
  return world
}

function artifactOf(
  repositoryId: number,
  path: string,
  blob: Blob,
  version: number,
  contentType: string | null,
): Artifact {
  const time = Date.UTC(2026, 0, 1) + version
  return {
    repositoryId,
    path,
    version,
    blob,
    contentType,
    attributes: {},
    createdBy: 'admin',
    createdAt: time,
    updatedAt: time,
  }
}

/** Shards that are one Map. */
export class FakeStore implements BlobReader, BlobWriter {
  readonly blobs = new Map<Digest, Buffer>()
  /** Bytes of streams that were begun and neither committed nor aborted. */
  staging = 0
  aborted = 0
  fault: HoldfastError | undefined
  /** Thrown by a stream after so many bytes. */
  cutAfter: number | undefined
  /** A stage that waits for this before it begins. */
  stageGate: Promise<void> = Promise.resolve()

  keep(bytes: Buffer): Blob {
    const digest = hash('sha256', bytes) as Digest
    this.blobs.set(digest, bytes)
    return {
      digest,
      generation: newGeneration(),
      partition: 1,
      bytes: bytes.length,
      md5: hash('md5', bytes),
      sha1: hash('sha1', bytes),
    }
  }

  async readWhole({ digest }: Blob): Promise<Buffer> {
    if (this.fault !== undefined) throw this.fault
    return this.blobs.get(digest) as Buffer
  }

  async stream(
    { digest }: { digest: Digest },
    range: ByteRange | undefined,
    sink: ByteSink,
    { onStart, signal }: { onStart: () => void; signal: AbortSignal },
  ): Promise<void> {
    if (this.fault !== undefined) throw this.fault
    const all = this.blobs.get(digest) as Buffer
    const bytes = range === undefined ? all : all.subarray(range.first, range.last + 1)
    onStart()
    for (let at = 0; at < bytes.length; at += 65_536) {
      if (this.cutAfter !== undefined && at >= this.cutAfter) return sink.destroy()
      const chunk = bytes.subarray(at, at + 65_536)
      await new Promise<void>(resolve => {
        const leave = (): void => resolve()
        signal.addEventListener('abort', leave, { once: true })
        sink.write(chunk, () => {
          signal.removeEventListener('abort', leave)
          resolve()
        })
      })
      if (signal.aborted || sink.destroyed) return
    }
    sink.end()
  }

  admit(): void {
    if (this.fault !== undefined) throw this.fault
  }

  async writeSmall(partition: number, body: Buffer): ReturnType<BlobWriter['writeSmall']> {
    if (this.fault !== undefined) throw this.fault
    return { ...this.keep(body), partition, missing: [], handoffs: [] }
  }

  async stage(
    partition: number,
    body: AsyncIterable<Buffer>,
    { signal }: { signal: AbortSignal },
  ): Promise<StagedUpload> {
    await Promise.race([this.stageGate, once(signal, 'abort')])
    if (this.fault !== undefined) throw this.fault
    this.staging++
    const chunks: Buffer[] = []
    try {
      const left = once(signal, 'abort').then(() => Promise.reject(signal.reason as Error))
      const read = async (): Promise<void> => {
        for await (const chunk of body) chunks.push(chunk)
      }
      await Promise.race([read(), left])
    } catch (error) {
      this.staging--
      this.aborted++
      throw error
    }
    const bytes = Buffer.concat(chunks)
    const blob = this.keep(bytes)
    return {
      ...blob,
      commit: async under => {
        this.staging--
        return { ...blob, ...under, partition, missing: [], handoffs: [] }
      },
      abort: async () => {
        this.staging--
        this.aborted++
      },
    }
  }

  async touch(): ReturnType<BlobWriter['touch']> {
    return { held: [], missing: [], quorum: true }
  }
}
