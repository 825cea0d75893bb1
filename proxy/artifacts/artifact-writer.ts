/**
 * Writing one artifact: bytes durable on the shards first, then the commit in PostgreSQL, then references and caches.
 * Whatever fails on the way leaves nothing visible (I8).
 */
import { hash } from 'node:crypto'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { Digest } from '../../shared/ids.ts'
import { partitionOf } from '../../shared/partition.ts'
import { inlineBlobBytesMax } from '../../shared/record.ts'
import type {
  Artifact,
  Blob,
  CommitArtifact,
  CommitResult,
  Metadata,
  Repository,
  WriteConditions,
} from '../metadata/types.ts'
import type { BlobWriter, WrittenBlob } from '../routing/types.ts'
import { referenceOf } from './reference.ts'
import type { Publisher } from './publisher.ts'
import { readUpload } from './upload-body.ts'

/** How often a commit is tried again after it met another writer or the collector; more means something is wrong. */
const commitTriesMax = 5

export interface Put {
  readonly repository: Repository
  readonly path: string
  readonly user: string
  readonly contentType: string | null
  readonly attributes: Readonly<Record<string, unknown>>
  readonly conditions: Pick<WriteConditions, 'absent' | 'match'>
  readonly body: AsyncIterable<Buffer>
  readonly expectedBytes: number | undefined
  /** Sees each chunk of the body once, in order. */
  readonly observe: (chunk: Buffer) => void
  readonly requestId: string
  readonly signal: AbortSignal
  /** Compares what the client declared with what arrived; throws CHECKSUM_MISMATCH. Called before anything becomes durable. */
  readonly verify: (actual: { sha256: Digest; sha1: string; md5: string }) => void
}

/** What the head of a request tells of its body. */
export interface DeclaredBody {
  readonly bytes?: number | undefined
  readonly sha256?: string
  readonly sha1?: string
  readonly md5?: string
}

export interface PutOutcome {
  readonly outcome: 'created' | 'replaced' | 'unchanged'
  readonly artifact: Artifact
}

export interface ArtifactWriterDeps {
  readonly metadata: Pick<
    Metadata,
    'findArtifact' | 'findBlob' | 'pinBlob' | 'commitArtifact' | 'digestReadable' | 'incarnation'
  >
  readonly writer: BlobWriter
  readonly publisher: Pick<Publisher, 'prepare' | 'publish' | 'invalidate' | 'withdraw'>
  readonly onMetadataUnavailable: () => void
  readonly metadataAvailable: () => boolean
  /** Why not, if that is more than that nobody answers. */
  readonly metadataProblem?: () => string | undefined
  readonly artifactBytesMax: number | undefined
}

/** Bytes that can be made durable: once as a new blob, or again as copies of one that has too few. */
interface Source {
  readonly digest: Digest
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
  write(under?: Pick<Blob, 'generation' | 'partition'>): Promise<WrittenBlob>
  discard(): Promise<void>
}

export class ArtifactWriter {
  readonly #deps: ArtifactWriterDeps
  underReplicated = 0
  deduplicated = 0

  constructor(deps: ArtifactWriterDeps) {
    this.#deps = deps
  }

  /** What can be refused before the body is asked for: policy, size, room, quorum, database. Throws. */
  admit(repository: Repository, path: string, expectedBytes: number | undefined): void {
    if (repository.redeploy === 'deny') {
      throw new HoldfastError('FORBIDDEN', `repository '${repository.name}' accepts no writes (redeploy policy 'deny')`)
    }
    const bytesMax = this.#bytesMax(repository)
    if (expectedBytes !== undefined && bytesMax !== undefined && expectedBytes > bytesMax) {
      throw tooLarge(repository, expectedBytes, bytesMax)
    }
    if (!this.#deps.metadataAvailable()) {
      const why = this.#deps.metadataProblem?.() ?? 'the database is away'
      throw new HoldfastError('METADATA_UNAVAILABLE', `${why}: artifacts can be read, not written`)
    }
    this.#deps.writer.admit(partitionOf(repository.name, path), expectedBytes)
  }

  /**
   * What the path, as it is now, would refuse: so that nobody sends a body for nothing. Throws. The commit decides all the same, under
   * the row's lock; and an upload that its path cannot refuse costs no question.
   */
  async foresee(
    { repository, path, conditions }: Pick<Put, 'repository' | 'path' | 'conditions'>,
    body: DeclaredBody,
  ): Promise<void> {
    const { absent, match } = conditions
    if (absent !== true && match === undefined && repository.redeploy !== 'once') return
    const current = await this.#deps.metadata.findArtifact(repository.id, path).catch((error: unknown) => {
      if (isHoldfastError(error, 'METADATA_UNAVAILABLE')) this.#deps.onMetadataUnavailable()
      throw error
    })
    const reason = refusalReason({ ...conditions, redeploy: repository.redeploy }, current?.blob, body)
    if (reason !== undefined) throw refusal(reason)
  }

  /** Resolves when the artifact is durable and visible through every proxy. */
  async put(put: Put): Promise<PutOutcome> {
    const bytesMax = this.#bytesMax(put.repository)
    const limits = { smallBytesMax: inlineBlobBytesMax, expectedBytes: put.expectedBytes, bytesMax }
    const body = await readUpload(put.body, limits, put.observe, put.signal)
    const partition = partitionOf(put.repository.name, put.path)
    const source =
      body.kind === 'small' ? this.#small(partition, body.bytes) : await this.#staged(partition, put, body.chunks)
    try {
      put.verify({ sha256: source.digest, sha1: source.sha1, md5: source.md5 })
      return await this.#commit(put, source)
    } finally {
      await source.discard()
    }
  }

  /**
   * Checksum deploy: an artifact without bytes, if a blob with this digest is there, verified, and named by an artifact the
   * caller may read. undefined: no such blob, the client must send it.
   */
  async putByChecksum(
    put: Omit<Put, 'body' | 'expectedBytes' | 'observe' | 'signal'>,
    checksum: { sha256: Digest } | { sha1: string },
    readable: readonly number[],
  ): Promise<PutOutcome | undefined> {
    const blob = await this.#deps.metadata.findBlob(checksum)
    if (blob === undefined || !(await this.#deps.metadata.digestReadable(blob.digest, readable))) return undefined
    // Only now: it names the checksums of what it finds.
    put.verify({ sha256: blob.digest, sha1: blob.sha1, md5: blob.md5 })
    const bytesMax = this.#bytesMax(put.repository)
    if (bytesMax !== undefined && blob.bytes > bytesMax) throw tooLarge(put.repository, blob.bytes, bytesMax)
    const touched = await this.#deps.writer.touch(blob)
    if (!touched.quorum) return undefined
    const keys = [`${put.repository.name}/${put.path}`]
    await this.#deps.publisher.prepare(keys)
    const copies = { missing: touched.missing, handoffs: [] }
    const result = await this.#deps.metadata
      .commitArtifact(this.#commitOf(put, blob, 'existing', copies))
      .catch((error: unknown) => this.#failed(keys, error))
    if (result.outcome !== 'blob-gone' && result.outcome !== 'blob-exists')
      return this.#finish(put.repository, keys, result)
    this.#deps.publisher.withdraw(keys, undefined)
    return undefined
  }

  #bytesMax(repository: Repository): number | undefined {
    const limits = [repository.artifactBytesMax, this.#deps.artifactBytesMax].filter(limit => typeof limit === 'number')
    return limits.length === 0 ? undefined : Math.min(...limits)
  }

  #small(partition: number, bytes: Buffer): Source {
    const checksums = { digest: hash('sha256', bytes) as Digest, sha1: hash('sha1', bytes), md5: hash('md5', bytes) }
    return {
      ...checksums,
      bytes: bytes.length,
      write: under => this.#deps.writer.writeSmall(under?.partition ?? partition, bytes, checksums, under?.generation),
      discard: async () => {},
    }
  }

  async #staged(partition: number, put: Put, chunks: AsyncIterableIterator<Buffer>): Promise<Source> {
    const { expectedBytes, signal, requestId } = put
    const bytesMax = undefined // counted by readUpload
    const options = { expectedBytes, bytesMax, signal, requestId }
    const staged = await this.#deps.writer.stage(partition, chunks, options).catch((error: unknown) => {
      // It may have been refused before its first chunk was read. Not awaited: a client that sends nothing would hold us here.
      void chunks.return?.().catch(() => undefined)
      throw error
    })
    let committed = false
    return {
      digest: staged.digest,
      bytes: staged.bytes,
      md5: staged.md5,
      sha1: staged.sha1,
      write: async under => {
        committed = true
        return staged.commit(under)
      },
      discard: async () => {
        if (!committed) await staged.abort()
      },
    }
  }

  async #commit(put: Put, source: Source): Promise<PutOutcome> {
    const keys = [`${put.repository.name}/${put.path}`]
    // Announced while the bytes are on their way: it costs no time of its own.
    const announced = this.#deps.publisher.prepare(keys)
    const result = await this.#commitBytes(put, source, announced).catch(async (error: unknown) => {
      await announced // never rejects; an announcement ends after it began
      return this.#failed(keys, error)
    })
    return this.#finish(put.repository, keys, result)
  }

  #failed(keys: readonly string[], error: unknown): never {
    if (isHoldfastError(error, 'METADATA_UNAVAILABLE')) this.#deps.onMetadataUnavailable()
    this.#deps.publisher.withdraw(keys, error)
    throw error
  }

  async #commitBytes(put: Put, source: Source, announced: Promise<void>): Promise<SettledCommit> {
    let existing = await this.#deps.metadata.findBlob({ sha256: source.digest })
    for (let tries = 1; tries <= commitTriesMax; tries++) {
      const ready = await (existing === undefined ? this.#writeNew(source) : this.#verifyOrWrite(put, source, existing))
      await announced
      const result = await this.#deps.metadata.commitArtifact(this.#commitOf(put, ready.blob, ready.blobIs, ready))
      if (result.outcome === 'blob-exists') existing = result.blob
      else if (result.outcome === 'blob-gone') existing = undefined
      else return result
    }
    throw new HoldfastError('CONFLICT', 'the same bytes are being written and collected again and again; try again', {
      digest: source.digest,
    })
  }

  async #writeNew(source: Source): Promise<ReadyBlob> {
    const written = await source.write()
    if (written.missing.length > 0) this.underReplicated++
    return { blob: written, blobIs: 'new', missing: written.missing, handoffs: written.handoffs }
  }

  /** The database's word is not enough (I24): the nodes must hold the bytes, else they get them again. */
  async #verifyOrWrite({ requestId }: Put, source: Source, existing: Blob): Promise<ReadyBlob> {
    const touched = await this.#deps.writer.touch(existing)
    if (touched.quorum) {
      this.deduplicated++
      return { blob: existing, blobIs: 'existing', missing: touched.missing, handoffs: [] }
    }
    // Under a generation that is just being purged the bytes would go with it, and for a large body there is no second copy of them.
    if (!(await this.#deps.metadata.pinBlob(existing, requestId))) return this.#writeNew(source)
    const written = await source.write({ generation: existing.generation, partition: existing.partition })
    if (written.missing.length > 0) this.underReplicated++
    return { blob: existing, blobIs: 'existing', missing: written.missing, handoffs: written.handoffs }
  }

  #commitOf(
    put: Omit<Put, 'body' | 'expectedBytes' | 'observe' | 'verify' | 'signal'>,
    blob: Blob,
    blobIs: 'new' | 'existing',
    copies: { missing: readonly string[]; handoffs: readonly string[] },
  ): CommitArtifact {
    const { digest, generation, partition, bytes, md5, sha1 } = blob
    return {
      repositoryId: put.repository.id,
      repository: put.repository.name,
      path: put.path,
      contentType: put.contentType,
      attributes: put.attributes,
      user: put.user,
      conditions: { ...put.conditions, redeploy: put.repository.redeploy },
      blob: { digest, generation, partition, bytes, md5, sha1 },
      blobIs,
      missing: copies.missing,
      handoffs: copies.handoffs,
    }
  }

  async #finish(repository: Repository, keys: readonly string[], result: SettledCommit): Promise<PutOutcome> {
    if (result.outcome === 'refused') return this.#failed(keys, refusal(result.reason))
    const { artifact, outcome } = result
    if (result.outboxSeq === null) await this.#deps.publisher.invalidate(keys)
    else {
      const record = referenceOf(repository.name, artifact, result.incarnation)
      await this.#deps.publisher.publish([{ record, outboxSeq: result.outboxSeq }])
    }
    return { outcome, artifact }
  }
}

type SettledCommit = Exclude<CommitResult, { outcome: 'blob-exists' } | { outcome: 'blob-gone' }>

interface ReadyBlob {
  readonly blobIs: CommitArtifact['blobIs']
  readonly blob: Blob
  readonly missing: readonly string[]
  readonly handoffs: readonly string[]
}

/**
 * As the commit function has it, as far as the head tells of the body: under 'once' the same bytes may come again, and only a length or a
 * checksum says that they are others. Pure.
 */
export function refusalReason(
  { absent, match, redeploy }: WriteConditions,
  current: Blob | undefined,
  body: DeclaredBody,
): Parameters<typeof refusal>[0] | undefined {
  if (absent === true && current !== undefined) return 'exists'
  if (match !== undefined && (current === undefined || (match !== '*' && !match.includes(current.digest)))) {
    return 'no-match'
  }
  if (redeploy !== 'once' || current === undefined) return undefined
  const { bytes = current.bytes, sha256 = current.digest, sha1 = current.sha1, md5 = current.md5 } = body
  const same = bytes === current.bytes && sha256 === current.digest && sha1 === current.sha1 && md5 === current.md5
  return same ? undefined : 'redeploy'
}

export function tooLarge(repository: Repository, bytes: number, bytesMax: number): HoldfastError {
  const message = `${bytes} bytes are more than the ${bytesMax} that repository '${repository.name}' accepts`
  return new HoldfastError('TOO_LARGE', message, { bytesMax })
}

/** The error a refused condition becomes. */
export function refusal(reason: 'exists' | 'no-match' | 'redeploy'): HoldfastError {
  switch (reason) {
    case 'exists':
      return new HoldfastError('PRECONDITION_FAILED', 'the path exists already (If-None-Match: *)')
    case 'no-match':
      return new HoldfastError('PRECONDITION_FAILED', 'the path does not have the digest named in If-Match')
    case 'redeploy':
      return new HoldfastError(
        'REDEPLOY_REFUSED',
        "the path exists with other bytes, and the repository's redeploy policy is 'once'",
      )
  }
}
