/** References and artifacts say the same thing in two places; here is the one translation between them. Pure. */
import type { ReferenceRecord } from '../../shared/record.ts'
import { partitionOf } from '../../shared/partition.ts'
import type { Artifact, DeletedArtifact, OutboxEntry } from '../metadata/types.ts'

/** The reference record of an artifact as committed. */
export function referenceOf(repository: string, artifact: Artifact, incarnation: string): ReferenceRecord {
  return {
    kind: 'reference',
    partition: partitionOf(repository, artifact.path),
    repository,
    path: artifact.path,
    op: 'put',
    version: artifact.version,
    incarnation,
    time: artifact.updatedAt,
    user: artifact.createdBy,
    blob: artifact.blob,
    ...(artifact.contentType === null ? {} : { contentType: artifact.contentType }),
    ...(Object.keys(artifact.attributes).length === 0 ? {} : { attributes: artifact.attributes }),
  }
}

/** The tombstone of a deleted path. */
export function tombstoneOf(
  repository: string,
  deleted: DeletedArtifact,
  facts: { incarnation: string; user: string; time: number },
): ReferenceRecord {
  return {
    kind: 'reference',
    partition: partitionOf(repository, deleted.path),
    repository,
    path: deleted.path,
    op: 'delete',
    version: deleted.version,
    ...facts,
  }
}

/** The record an outbox entry still owes to the shards. */
export function referenceOfOutbox(entry: OutboxEntry, incarnation: string): ReferenceRecord {
  if (entry.op === 'put' && entry.artifact !== null) return referenceOf(entry.repository, entry.artifact, incarnation)
  const { user, time } = entry
  return tombstoneOf(
    entry.repository,
    { path: entry.path, version: entry.version, outboxSeq: entry.seq },
    { incarnation, user, time },
  )
}

/** An artifact as the shards tell it while PostgreSQL is away; undefined for a tombstone. */
export function artifactOfReference(record: ReferenceRecord, repositoryId: number): Artifact | undefined {
  if (record.op === 'delete' || record.blob === undefined) return undefined
  return {
    repositoryId,
    path: record.path,
    version: record.version,
    blob: record.blob,
    contentType: record.contentType ?? null,
    attributes: record.attributes ?? {},
    createdBy: record.user,
    createdAt: record.time,
    updatedAt: record.time,
  }
}
