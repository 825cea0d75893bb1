/**
 * Brings a sealed copy of users and repositories onto the shards, so that a database that is lost for good can be made anew with them.
 * It is an artifact like any other (replicated, repaired, its older versions collected), in a repository no client can name.
 */
import { randomUUID } from 'node:crypto'
import type { ArtifactWriter } from '../artifacts/artifact-writer.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import { fingerprintOf, sealIdentity } from '../identity/sealed-identity.ts'
import type { Artifact, Metadata, Repository } from '../metadata/types.ts'
import type { PrimaryTask } from './primary.ts'

/** Client names begin with a letter or a digit. */
export const internalRepository = '.holdfast'
export const identityPath = 'identity'

export interface KeepIdentityDeps {
  readonly metadata: Pick<
    Metadata,
    'exportIdentity' | 'listRepositories' | 'createRepository' | 'findArtifact' | 'clusterId' | 'incarnation'
  >
  readonly writer: Pick<ArtifactWriter, 'put'>
  readonly secret: string
}

/**
 * Each step looks at the copy first and at the tables after that, and replaces no other copy than the one it looked at: a primary that was
 * paused in between and has a successor brings no older users back (I27). What is kept is looked at every time, whoever wrote it.
 */
export function keepIdentity(deps: KeepIdentityDeps): PrimaryTask {
  return {
    name: 'keep-identity',
    pauseMs: 10_000,
    async step(term) {
      const { metadata, secret } = deps
      const repository = await internalRepositoryOf(metadata)
      const kept = await metadata.findArtifact(repository.id, identityPath)
      const tables = await metadata.exportIdentity()
      const { clusterId, incarnation } = metadata
      const fingerprint = fingerprintOf(secret, tables)
      if (kept?.attributes['fingerprint'] === fingerprint) return 'idle'
      term.signal.throwIfAborted()
      const body = sealIdentity(secret, { clusterId, incarnation, takenAt: Date.now(), tables })
      await put(deps.writer, { repository, kept, body, fingerprint, signal: term.signal })
      return 'idle'
    },
  }
}

async function internalRepositoryOf(metadata: KeepIdentityDeps['metadata']): Promise<Repository> {
  const find = async (): Promise<Repository | undefined> =>
    (await metadata.listRepositories()).find(({ name }) => name === internalRepository)
  const found = await find()
  if (found !== undefined) return found
  try {
    return await metadata.createRepository({ name: internalRepository })
  } catch (error) {
    const created = isHoldfastError(error, 'CONFLICT') ? await find() : undefined
    if (created === undefined) throw error
    return created // by the primary before us
  }
}

interface Copy {
  readonly repository: Repository
  /** What it takes the place of. */
  readonly kept: Artifact | undefined
  readonly body: Buffer
  readonly fingerprint: string
  readonly signal: AbortSignal
}

/** Rejects with PRECONDITION_FAILED if another copy was written meanwhile. */
async function put(
  writer: Pick<ArtifactWriter, 'put'>,
  { repository, kept, body, fingerprint, signal }: Copy,
): Promise<void> {
  await writer.put({
    repository,
    path: identityPath,
    user: 'holdfast',
    contentType: 'application/octet-stream',
    attributes: { fingerprint },
    conditions: kept === undefined ? { absent: true } : { match: [kept.blob.digest] },
    body: chunksOf(body),
    expectedBytes: body.length,
    observe: () => {},
    requestId: randomUUID(),
    signal,
    verify: () => {},
  })
}

async function* chunksOf(body: Buffer): AsyncGenerator<Buffer> {
  for (let start = 0; start < body.length; start += 65_536) yield body.subarray(start, start + 65_536)
}
