/** Every copy of one artifact: bytes read to their end on each shard, and the reference record on each owner. */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionOf } from '../../shared/partition.ts'
import { wirePath, type ReferenceAnswer, type VerifyAnswer } from '../../shared/wire.ts'
import type { Artifact, Blob, Repository } from '../metadata/types.ts'
import { touchAll } from '../tasks/shard-contents.ts'
import type { InspectionDeps } from './types.ts'

/** A node that reads more slowly than 10 MB/s is taken for one that does not answer. */
const bytesPerMsMin = 10_000
const timeoutMs = 10_000

export interface Place {
  readonly shard: string
  readonly node: string
  readonly zone: string
}
export interface VerifiedCopy extends Place {
  readonly role: 'owner' | 'handoff'
  readonly state: 'good' | 'corrupt' | 'missing' | 'unreachable'
  /** What did not match, or why there is no answer. */
  readonly reason?: string
}
export interface VerifiedReference extends Place {
  readonly state: 'current' | 'old' | 'newer' | 'different' | 'missing' | 'unreachable'
  readonly version?: number
  readonly reason?: string
}
export interface Verification {
  readonly repository: string
  readonly path: string
  readonly version: number
  /** Of the path: where its references are. */
  readonly partition: number
  readonly blob: Pick<Blob, 'digest' | 'generation' | 'partition' | 'bytes'>
  readonly copiesWanted: number
  readonly copies: VerifiedCopy[]
  readonly references: VerifiedReference[]
  /** Every owner has a good copy and the newest reference. */
  readonly healthy: boolean
}

/** Bad and missing copies go to the repair queue. Rejects with ARTIFACT_NOT_FOUND, METADATA_UNAVAILABLE. */
export async function verifyArtifact(
  deps: InspectionDeps,
  repository: Repository,
  path: string,
): Promise<Verification> {
  const artifact = await deps.metadata.findArtifact(repository.id, path)
  if (artifact === undefined) throw new HoldfastError('ARTIFACT_NOT_FOUND', 'no such artifact', { path })
  const { digest, generation, partition: home, bytes } = artifact.blob
  const view = deps.view.current()
  const owners = view.owners(home)
  const handoffs = await holders(deps, artifact.blob, view.handoffs(home).slice(0, 2 * owners.length))
  const partition = partitionOf(repository.name, path)
  const [copies, references] = await Promise.all([
    Promise.all([
      ...owners.map(shard => verifyCopy(deps, artifact.blob, shard, 'owner')),
      ...handoffs.map(shard => verifyCopy(deps, artifact.blob, shard, 'handoff')),
    ]),
    Promise.all(view.owners(partition).map(shard => verifyReference(deps, repository.name, artifact, shard))),
  ])
  await queueReferences(deps, `${repository.name}/${path}`, partition, artifact.version, references)
  const healthy =
    copies.every(({ role, state }) => state === 'good' || (role === 'handoff' && state === 'unreachable')) &&
    references.every(({ state }) => state === 'current')
  return {
    repository: repository.name,
    path,
    version: artifact.version,
    partition,
    blob: { digest, generation, partition: home, bytes },
    copiesWanted: owners.length,
    copies,
    references,
    healthy,
  }
}

async function holders(deps: InspectionDeps, blob: Blob, shards: readonly ShardId[]): Promise<readonly ShardId[]> {
  const held = await Promise.all(
    shards.map(async shard => {
      // A shard that cannot be asked is no owner: its copy would be one too many.
      const [word] = await touchAll(deps, shard, [blob]).catch(() => [])
      return word === 'held' ? shard : []
    }),
  )
  return held.flat()
}

async function verifyCopy(
  deps: InspectionDeps,
  blob: Blob,
  shard: ShardId,
  role: VerifiedCopy['role'],
): Promise<VerifiedCopy> {
  const place = placeOf(deps, shard)
  try {
    const limit = timeoutMs + blob.bytes / bytesPerMsMin
    const path = wirePath.verify(shard, blob)
    const answer = await deps.clients.ofShard(shard).requestJson<VerifyAnswer>('GET', path, undefined, { timeoutMs: limit }) // prettier-ignore
    const { state, reason } = answer
    if (state !== 'good' && role === 'owner') deps.reportBadCopy(blob, shard, state)
    return { ...place, role, state, ...(reason === undefined ? {} : { reason }) }
  } catch (error) {
    return { ...place, role, state: 'unreachable', reason: reasonOf(error) }
  }
}

async function verifyReference(
  deps: InspectionDeps,
  repository: string,
  artifact: Artifact,
  shard: ShardId,
): Promise<VerifiedReference> {
  const place = placeOf(deps, shard)
  const key = encodeURIComponent(`${repository}/${artifact.path}`)
  const path = `${wirePath.references(shard, partitionOf(repository, artifact.path))}?key=${key}`
  try {
    const record = await deps.clients.ofShard(shard).requestJson<ReferenceAnswer>('GET', path)
    return { ...place, state: compareReference(record, artifact), version: record.version }
  } catch (error) {
    if (isHoldfastError(error, 'REFERENCE_NOT_FOUND')) return { ...place, state: 'missing' }
    if (isHoldfastError(error, 'RECORD_DAMAGED')) return { ...place, state: 'missing', reason: error.message }
    return { ...place, state: 'unreachable', reason: reasonOf(error) }
  }
}

function compareReference(record: ReferenceAnswer, { version, blob }: Artifact): VerifiedReference['state'] {
  if (record.version !== version) return record.version < version ? 'old' : 'newer'
  const same = record.blob?.digest === blob.digest && record.blob.generation === blob.generation
  return same ? 'current' : 'different'
}

async function queueReferences(
  deps: InspectionDeps,
  key: string,
  partition: number,
  version: number,
  references: readonly VerifiedReference[],
): Promise<void> {
  const missing = references.filter(({ state }) => state === 'missing' || state === 'old').map(({ shard }) => shard)
  if (missing.length === 0) return
  await deps.metadata.addRepairs([{ kind: 'reference', partition, key, version, missing, handoffs: [] }])
}

function placeOf({ view }: Pick<InspectionDeps, 'view'>, shard: ShardId): Place {
  const { id, zone } = view.current().node(shard)
  return { shard, node: id, zone }
}

function reasonOf(error: unknown): string {
  if (!isHoldfastError(error)) throw error
  return error.code
}
