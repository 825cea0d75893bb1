/** Puts a backup into an empty cluster through its ordinary API and writes, so that all that holds of a write holds of what is restored. */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { LRUCache } from 'lru-cache'
import { Pool } from 'undici'
import type {
  ManifestArtifact,
  ManifestPolicy,
  ManifestRepository,
  ManifestTask,
  ManifestUser,
} from '../proxy/backup/manifest.ts'
import type { BackupStore } from '../proxy/backup/store.ts'
import { artifactTarget } from '../proxy/http/artifact-path.ts'
import { attributesHeader } from '../proxy/http/restored-attributes.ts'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import type { Digest } from '../shared/ids.ts'
import type { ApiClient } from './client.ts'

const triesMax = 6
const retryMs = 500
const userPage = 50
const historyPage = 100
/** The API takes 64 KiB. */
const historyBytes = 60 * 1024
/** Digests that were sent before, and need no second sending; 64 bytes each and some. */
const sentMax = 200_000
const toldMax = 50

export interface RestoreDeps {
  readonly store: BackupStore
  readonly client: Pick<ApiClient, 'call'>
  /** `http://host:port` */
  readonly origin: string
  /** Of the administrator. */
  readonly authorization: string
  readonly atOnce: number
  /** Also what changes by itself from then on: cleanup policies, settings of tasks, and where artifacts are fetched from. */
  readonly goesLive: boolean
  readonly signal: AbortSignal
  /** One line for people. */
  readonly say: (line: string) => void
}

export interface Restored {
  readonly backup: string
  readonly state: 'begun' | 'resumed'
  readonly repositories: number
  /** Those that were added; who was there kept their password. */
  readonly users: number
  /** Cleanup policies. */
  readonly policies: number
  /** Whose settings were changed. */
  readonly tasks: number
  readonly artifacts: number
  /** Were there already. */
  readonly skipped: number
  /** Sent; equal bytes only once, mostly. */
  readonly bytes: number
  /** Artifacts whose bytes the backup does not have, or has damaged. */
  readonly missing: number
}

/** Resolves when all is there but for `missing`. CONFLICT if the cluster is not empty. A restore that broke off is resumed by the same call. */
export async function restoreBackup(deps: RestoreDeps, backup: string): Promise<Restored> {
  await deps.store.summary(backup).catch((error: unknown) => {
    if (!isHoldfastError(error, 'BACKUP_DAMAGED')) throw error
    deps.say(`${error.message}; all that is restored stands in the manifest`)
  })
  await deps.store.checkManifest(backup)
  const { state } = (await deps.client.call('POST', '/restore', { backup })) as Pick<Restored, 'state'>
  const pool = new Pool(deps.origin, { connections: deps.atOnce, headersTimeout: 120_000, bodyTimeout: 120_000 })
  try {
    return await new Restore(deps, pool, backup, state).run()
  } finally {
    await pool.destroy()
  }
}

class Restore {
  readonly #deps: RestoreDeps
  readonly #pool: Pool
  readonly #backup: string
  readonly #state: Restored['state']
  readonly #sent = new LRUCache<Digest, true>({ max: sentMax })
  #artifacts = 0
  #skipped = 0
  #bytes = 0
  #missing = 0

  constructor(deps: RestoreDeps, pool: Pool, backup: string, state: Restored['state']) {
    this.#deps = deps
    this.#pool = pool
    this.#backup = backup
    this.#state = state
  }

  async run(): Promise<Restored> {
    const { client, store } = this.#deps
    const repositories: ManifestRepository[] = []
    const users: ManifestUser[] = []
    const policies: ManifestPolicy[] = []
    const tasks: ManifestTask[] = []
    const running = new Set<Promise<void>>()
    let failure: { readonly error: unknown } | undefined
    for await (const entry of store.readManifest(this.#backup)) {
      if (failure !== undefined) break
      if (entry.kind === 'user') users.push(entry)
      if (this.#deps.goesLive && entry.kind === 'policy') policies.push(entry)
      if (this.#deps.goesLive && entry.kind === 'task') tasks.push(entry)
      if (entry.kind === 'repository') {
        repositories.push(entry)
        await this.#makeRepository(entry)
      }
      if (entry.kind !== 'artifact') continue
      const work: Promise<void> = this.#restore(entry)
        .catch((error: unknown) => void (failure ??= { error }))
        .finally(() => running.delete(work))
      running.add(work)
      if (running.size >= this.#deps.atOnce) await Promise.race(running)
    }
    await Promise.all(running)
    if (failure !== undefined) throw failure.error
    await this.#restoreHistory()
    for (const repository of repositories) await this.#finishRepository(repository)
    const added = await this.#addUsers(users)
    // Last: they may delete.
    for (const policy of policies) await this.#addPolicy(policy)
    for (const task of tasks) await this.#setTask(task)
    await client.call('POST', '/restore/end', {})
    return {
      backup: this.#backup,
      state: this.#state,
      repositories: repositories.length,
      users: added,
      policies: policies.length,
      tasks: tasks.length,
      artifacts: this.#artifacts,
      skipped: this.#skipped,
      bytes: this.#bytes,
      missing: this.#missing,
    }
  }

  /** When and by whom each was written, once all bytes are there. Repeated as a whole by a restore that is resumed. */
  async #restoreHistory(): Promise<void> {
    const { client, store, signal } = this.#deps
    let page: object[] = []
    let bytes = 0
    const flush = async (): Promise<void> => {
      signal.throwIfAborted()
      if (page.length > 0) await client.call('POST', '/restore/history', { artifacts: page })
      page = []
      bytes = 0
    }
    for await (const entry of store.readManifest(this.#backup)) {
      if (entry.kind !== 'artifact') continue
      const { repository, path, digest, createdBy, createdAt, updatedAt } = entry
      // PostgreSQL has microseconds, the API has not.
      const times = { createdAt: Math.floor(createdAt), updatedAt: Math.floor(updatedAt) }
      const history = { repository, path, digest, createdBy, ...times }
      const more = Buffer.byteLength(JSON.stringify(history)) + 1
      if (page.length >= historyPage || bytes + more > historyBytes) await flush()
      page.push(history)
      bytes += more
    }
    await flush()
  }

  /** Open for writing until all is there: what it may refuse (a policy, a limit) was accepted once. */
  async #makeRepository({ name, format, upstream }: ManifestRepository): Promise<void> {
    const kind = format === 'raw' ? {} : { format }
    try {
      await this.#deps.client.call('POST', '/repositories', { name, ...kind })
    } catch (error) {
      if (!isHoldfastError(error, 'CONFLICT')) throw error
      // A restore that broke off may have given it its upstream already.
      const source = upstream === undefined ? {} : { upstream: null }
      const open = { redeploy: 'allow', artifactBytesMax: null, ...source }
      await this.#deps.client.call('PATCH', `/repositories/${encodeURIComponent(name)}`, open)
    }
  }

  async #finishRepository({
    name,
    kind: _kind,
    format: _format,
    type: _type,
    upstream,
    ...settings
  }: ManifestRepository): Promise<void> {
    // What was restored came from there.
    const source = this.#deps.goesLive && upstream != null ? { upstream, force: true } : {}
    await this.#deps.client.call('PATCH', `/repositories/${encodeURIComponent(name)}`, { ...settings, ...source })
  }

  async #addUsers(users: readonly ManifestUser[]): Promise<number> {
    let count = 0
    for (let start = 0; start < users.length; start += userPage) {
      const page = users.slice(start, start + userPage)
      const body = page.map(({ name, passwordHash, admin }) => ({ name, passwordHash, admin }))
      const { added } = (await this.#deps.client.call('POST', '/restore/users', { users: body })) as { added: string[] }
      count += added.length
    }
    return count
  }

  async #addPolicy({ kind: _, name, ...settings }: ManifestPolicy): Promise<void> {
    const { client } = this.#deps
    try {
      await client.call('POST', '/cleanup/policies', { name, ...settings })
    } catch (error) {
      if (!isHoldfastError(error, 'CONFLICT')) throw error
      await client.call('PATCH', `/cleanup/policies/${encodeURIComponent(name)}`, settings)
    }
  }

  async #setTask({ kind: _, name, ...settings }: ManifestTask): Promise<void> {
    try {
      await this.#deps.client.call('PATCH', `/tasks/${encodeURIComponent(name)}`, settings)
    } catch (error) {
      if (!isHoldfastError(error, 'NOT_FOUND')) throw error
      this.#deps.say(`this release has no task '${name}': its settings are not restored`)
    }
  }

  async #restore(artifact: ManifestArtifact): Promise<void> {
    for (let tries = 1; ; tries++) {
      this.#deps.signal.throwIfAborted()
      try {
        await this.#restoreOnce(artifact)
        return
      } catch (error) {
        const again = isHoldfastError(error, 'NODE_UNREACHABLE', 'OVERLOADED') && tries < triesMax
        if (!again) throw error
        await sleep(retryMs * 2 ** tries, undefined, { signal: this.#deps.signal })
      }
    }
  }

  async #restoreOnce(artifact: ManifestArtifact): Promise<void> {
    const { digest, bytes, repository, path } = artifact
    if (this.#state === 'resumed' && (await this.#isThere(artifact))) {
      this.#skipped++
      this.#artifacts++
      return
    }
    const headers = headersOf(artifact, this.#deps.authorization)
    if (this.#sent.has(digest)) {
      const status = await this.#put(artifact, { ...headers, 'x-checksum-deploy': 'true' }, undefined)
      if (status < 300) {
        this.#artifacts++
        return
      }
    }
    try {
      const body = wholeBlob(this.#deps.store, digest, bytes)
      const status = await this.#put(artifact, { ...headers, 'content-length': String(bytes) }, body)
      if (status >= 300) throw new HoldfastError('BACKUP_DAMAGED', `the cluster refuses it (${status})`)
    } catch (error) {
      if (!isHoldfastError(error, 'NOT_FOUND', 'BACKUP_DAMAGED')) throw error
      if (this.#missing++ < toldMax) this.#deps.say(`${repository}/${path} is not restored: ${error.message}`)
      return
    }
    this.#sent.set(digest, true)
    this.#bytes += bytes
    this.#artifacts++
  }

  async #isThere({ repository, path, digest }: ManifestArtifact): Promise<boolean> {
    const headers = { authorization: this.#deps.authorization }
    const answer = await this.#request('HEAD', artifactTarget(repository, path), headers, undefined)
    return answer.status === 200 && answer.etag === `"${digest}"`
  }

  /** 2xx, or 4xx that speaks of these bytes; what is no answer to that is thrown. */
  async #put(
    { repository, path }: ManifestArtifact,
    headers: Record<string, string>,
    body: AsyncIterable<Buffer> | undefined,
  ): Promise<number> {
    const { status } = await this.#request('PUT', artifactTarget(repository, path), headers, body)
    // 408: the target was too slow for the cluster's patience. That says nothing about the bytes.
    if (status === 503 || status === 429 || status === 408) {
      throw new HoldfastError('OVERLOADED', 'the cluster asks to wait, or has waited too long')
    }
    if (status === 401 || status === 403) throw new HoldfastError('FORBIDDEN', `the cluster answers ${status}`)
    if (status >= 500) throw new HoldfastError('NODE_UNREACHABLE', `the cluster answers ${status}`)
    return status
  }

  async #request(
    method: 'PUT' | 'HEAD',
    path: string,
    headers: Record<string, string>,
    body: AsyncIterable<Buffer> | undefined,
  ): Promise<{ readonly status: number; readonly etag: string | undefined }> {
    // What the body failed with is what the request then fails with, in words of its own.
    let broken: { readonly error: unknown } | undefined
    const watched = async function* (chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
      try {
        yield* chunks
      } catch (error) {
        broken = { error }
        throw error
      }
    }
    try {
      const { signal } = this.#deps
      const response = await this.#pool.request({ method, path, headers, signal, body: body === undefined ? null : watched(body) as never }) // prettier-ignore
      await response.body.dump()
      const { etag } = response.headers
      return { status: response.statusCode, etag: typeof etag === 'string' ? etag : undefined }
    } catch (error) {
      this.#deps.signal.throwIfAborted()
      if (broken !== undefined) throw broken.error
      throw new HoldfastError('NODE_UNREACHABLE', 'the cluster does not answer', {}, { cause: error })
    }
  }
}

/**
 * The bytes of a blob, of which the last ones come only once all are known to be good: a request that says how many bytes come must not
 * be broken by other ones, which would look like a cluster that does not answer. BACKUP_DAMAGED, NOT_FOUND.
 */
async function* wholeBlob(store: BackupStore, digest: Digest, bytes: number): AsyncGenerator<Buffer> {
  const sha256 = createHash('sha256')
  let found = 0
  let waiting: Buffer | undefined
  for await (const chunk of store.getBlob(digest)) {
    found += chunk.length
    if (found > bytes)
      throw new HoldfastError('BACKUP_DAMAGED', `it is damaged in the backup (more than ${bytes} bytes)`)
    if (waiting !== undefined) yield waiting
    sha256.update(chunk)
    waiting = chunk
  }
  if (found < bytes)
    throw new HoldfastError('BACKUP_DAMAGED', `it is damaged in the backup (${found} of ${bytes} bytes)`)
  if (sha256.digest('hex') !== digest)
    throw new HoldfastError('BACKUP_DAMAGED', 'it is damaged in the backup (checksum)')
  if (waiting !== undefined) yield waiting
}

function headersOf(
  { digest, contentType, attributes }: ManifestArtifact,
  authorization: string,
): Record<string, string> {
  const given = Object.keys(attributes).length > 0
  return {
    authorization,
    'x-checksum-sha256': digest,
    ...(contentType === null ? {} : { 'content-type': contentType }),
    ...(given ? { [attributesHeader]: Buffer.from(JSON.stringify(attributes)).toString('base64url') } : {}),
  }
}
