/**
 * Brings a sealed copy of users and repositories onto the shards, so that a database that is lost for good can be made anew with them.
 * It is an artifact like any other (replicated, repaired, its older versions collected), in a repository no client can name.
 */
import { randomUUID } from 'node:crypto'
import type { ArtifactWriter } from '../artifacts/artifact-writer.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import { fingerprintOf, sealIdentity } from '../identity/sealed-identity.ts'
import type { Metadata, Repository } from '../metadata/types.ts'
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

export function keepIdentity(deps: KeepIdentityDeps): PrimaryTask {
  let known: { readonly incarnation: string; readonly fingerprint: string } | undefined
  return {
    name: 'keep-identity',
    pauseMs: 10_000,
    async step(term) {
      const { metadata, secret } = deps
      const repository = await internalRepositoryOf(metadata)
      const tables = await metadata.exportIdentity()
      const { clusterId, incarnation } = metadata
      const fingerprint = fingerprintOf(secret, tables)
      if (known?.fingerprint === fingerprint && known.incarnation === incarnation) return 'idle'
      const kept = await metadata.findArtifact(repository.id, identityPath)
      if (kept?.attributes['fingerprint'] !== fingerprint) {
        const body = sealIdentity(secret, { clusterId, incarnation, takenAt: Date.now(), tables })
        await put(deps.writer, repository, body, fingerprint, term.signal)
      }
      known = { incarnation, fingerprint }
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

async function put(
  writer: Pick<ArtifactWriter, 'put'>,
  repository: Repository,
  body: Buffer,
  fingerprint: string,
  signal: AbortSignal,
): Promise<void> {
  await writer.put({
    repository,
    path: identityPath,
    user: 'holdfast',
    contentType: 'application/octet-stream',
    attributes: { fingerprint },
    conditions: {},
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
