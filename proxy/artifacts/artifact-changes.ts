/** Changes that move no bytes: delete, copy and move, of one artifact or of everything below a folder. */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type {
  Artifact,
  CommitArtifact,
  DeletedArtifact,
  Metadata,
  Repository,
  WriteConditions,
} from '../metadata/types.ts'
import { refusal, tooLarge } from './artifact-writer.ts'
import { announced } from './announced.ts'
import { checkBrake, countNeeded, type BrakeLimits } from './delete-brake.ts'
import type { Publication, Publisher } from './publisher.ts'
import { referenceOf, tombstoneOf } from './reference.ts'

/** Artifacts changed in one transaction; a folder larger than this is several, each visible as a whole. */
const pageSize = 500

export interface Place {
  readonly repository: Repository
  /** An artifact, or a folder with its trailing '/' ('' is the whole repository). */
  readonly path: string
}

export interface ArtifactChangesDeps {
  readonly metadata: Pick<
    Metadata,
    | 'findArtifact'
    | 'deleteArtifact'
    | 'deleteFolder'
    | 'countArtifacts'
    | 'listArtifacts'
    | 'commitArtifacts'
    | 'incarnation'
  >
  readonly publisher: Pick<Publisher, 'prepare' | 'publish' | 'withdraw'>
  /** Throws if no client could name this path. */
  readonly checkPath: (path: string) => void
  readonly brake: BrakeLimits
}

export class ArtifactChanges {
  readonly #deps: ArtifactChangesDeps

  constructor(deps: ArtifactChangesDeps) {
    this.#deps = deps
  }

  /** ARTIFACT_NOT_FOUND if there is none, PRECONDITION_FAILED if it is not one of `match`. */
  async deleteArtifact({ repository, path }: Place, user: string, match?: WriteConditions['match']): Promise<void> {
    const target = { repositoryId: repository.id, repository: repository.name, path, user }
    await announced(this.#deps.publisher, [`${repository.name}/${path}`], async () => {
      const deleted = await this.#deps.metadata.deleteArtifact(target, match === undefined ? undefined : { match })
      if (deleted === undefined) throw notFound(repository, path)
      return this.#tombstones(repository, [deleted], user)
    })
  }

  /**
   * A page at a time, each as a whole; resolves with how many there were. ARTIFACT_NOT_FOUND if there was nothing. CONFLICT, with nothing
   * deleted, if there are so many that their number (or a higher one) has to be `confirmed`.
   */
  async deleteFolder({ repository, path }: Place, user: string, confirmed?: number): Promise<number> {
    await this.#brake(repository, path, confirmed)
    const target = { repositoryId: repository.id, repository: repository.name, prefix: path, user }
    let count = 0
    for (;;) {
      const page = await this.#deps.metadata.listArtifacts(repository.id, path, '', pageSize)
      const keys = page.map(artifact => `${repository.name}/${artifact.path}`)
      const deleted = await announced(this.#deps.publisher, keys, async () =>
        this.#tombstones(repository, await this.#deps.metadata.deleteFolder(target, pageSize), user),
      )
      count += deleted
      if (deleted < pageSize) break
    }
    if (count === 0) throw notFound(repository, path)
    return count
  }

  async #brake(repository: Repository, path: string, confirmed: number | undefined): Promise<void> {
    const { metadata, brake } = this.#deps
    const few = await metadata.countArtifacts(repository.id, path, brake.artifacts + 1)
    if (few <= brake.artifacts) return
    const doomed = await metadata.countArtifacts(repository.id, path, Infinity)
    const all = await metadata.countArtifacts(repository.id, '', countNeeded(doomed, brake))
    checkBrake(doomed, all, brake, confirmed)
  }

  /**
   * Copies or moves an artifact, or a folder with all that is below it. The target follows its repository's redeploy policy.
   * A page of a folder is changed as a whole or not at all; resolves with how many artifacts were changed. CONFLICT, with nothing changed
   * in this page, if a source did not stay what it was.
   */
  async transfer(kind: 'copy' | 'move', from: Place, to: Place, user: string): Promise<number> {
    if (to.repository.redeploy === 'deny') {
      throw new HoldfastError(
        'FORBIDDEN',
        `repository '${to.repository.name}' accepts no writes (redeploy policy 'deny')`,
      )
    }
    if (to.repository.upstream !== null) {
      throw new HoldfastError('FORBIDDEN', `repository '${to.repository.name}' has only what its upstream has`)
    }
    const isFolder = from.path === '' || from.path.endsWith('/')
    if (isFolder !== (to.path === '' || to.path.endsWith('/'))) {
      throw new HoldfastError('BAD_REQUEST', 'source and target must both be artifacts, or both folders ending in "/"')
    }
    const sameRepository = from.repository.id === to.repository.id
    if (sameRepository && (isFolder ? overlap(from.path, to.path) : from.path === to.path)) {
      throw new HoldfastError('BAD_REQUEST', 'source and target overlap')
    }
    if (!isFolder) {
      const source = await this.#deps.metadata.findArtifact(from.repository.id, from.path)
      if (source === undefined) throw notFound(from.repository, from.path)
      await this.#transferPage(kind, [source], from, to, user)
      return 1
    }
    let count = 0
    let after = ''
    for (;;) {
      const page = await this.#deps.metadata.listArtifacts(from.repository.id, from.path, after, pageSize)
      if (page.length > 0) await this.#transferPage(kind, page, from, to, user)
      count += page.length
      const last = page.at(-1)
      if (last === undefined || page.length < pageSize) break
      after = last.path
    }
    if (count === 0) throw notFound(from.repository, from.path)
    return count
  }

  async #transferPage(
    kind: 'copy' | 'move',
    page: readonly Artifact[],
    from: Place,
    to: Place,
    user: string,
  ): Promise<void> {
    const commits = page.map(source => this.#commitOf(source, to, to.path + source.path.slice(from.path.length), user))
    const deletes = page.map(source => ({
      repositoryId: from.repository.id,
      repository: from.repository.name,
      path: source.path,
      user,
      // A move leaves no trash: what was written over the source since it was looked at must not go with it.
      match: [source.blob.digest],
    }))
    const gone = kind === 'move' ? deletes : []
    const keys = [...commits, ...gone].map(change => `${change.repository}/${change.path}`)
    await announced(this.#deps.publisher, keys, () => this.#commitPage(commits, gone, from, to, user))
  }

  async #commitPage(
    commits: readonly CommitArtifact[],
    gone: Parameters<Metadata['commitArtifacts']>[1],
    from: Place,
    to: Place,
    user: string,
  ): Promise<Publication[]> {
    const { results, deleted } = await this.#deps.metadata.commitArtifacts(commits, gone).catch((error: unknown) => {
      // Nobody asked for a condition: it is the one that a move makes for itself.
      if (isHoldfastError(error) && error.code === 'PRECONDITION_FAILED') throw sourceChanged(error)
      throw error
    })
    const publications: Publication[] = this.#tombstones(from.repository, deleted, user)
    for (const result of results) {
      if (result.outcome === 'refused') throw refusal(result.reason)
      if (result.outcome === 'blob-gone' || result.outcome === 'blob-exists') {
        throw sourceChanged()
      }
      if (result.outboxSeq !== null) {
        const record = referenceOf(to.repository.name, result.artifact, result.incarnation)
        publications.push({ record, outboxSeq: result.outboxSeq })
      }
    }
    return publications
  }

  #commitOf(source: Artifact, to: Place, path: string, user: string): CommitArtifact {
    const { artifactBytesMax: bytesMax } = to.repository
    this.#deps.checkPath(path)
    if (bytesMax !== null && source.blob.bytes > bytesMax) throw tooLarge(to.repository, source.blob.bytes, bytesMax)
    return {
      repositoryId: to.repository.id,
      repository: to.repository.name,
      path,
      contentType: source.contentType,
      attributes: source.attributes,
      user,
      conditions: { redeploy: to.repository.redeploy },
      blob: source.blob,
      // The source's reference keeps the copies alive and repaired: no need to touch them one by one.
      blobIs: 'existing',
      missing: [],
      handoffs: [],
    }
  }

  #tombstones(repository: Repository, deleted: readonly DeletedArtifact[], user: string): Publication[] {
    const facts = { incarnation: this.#deps.metadata.incarnation, user, time: Date.now() }
    return deleted.map(one => ({ record: tombstoneOf(repository.name, one, facts), outboxSeq: one.outboxSeq }))
  }
}

function overlap(a: string, b: string): boolean {
  return a.startsWith(b) || b.startsWith(a)
}

function sourceChanged(cause?: Error): HoldfastError {
  return new HoldfastError(
    'CONFLICT',
    'a source was changed or deleted while it was being copied; try again',
    {},
    {
      cause,
    },
  )
}

function notFound(repository: Repository, path: string): HoldfastError {
  return new HoldfastError('ARTIFACT_NOT_FOUND', `nothing at ${repository.name}/${path}`)
}
