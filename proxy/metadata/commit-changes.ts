/** The translation between commits and the function in the database that does a group of them. Pure. */
import assert from 'node:assert/strict'
import { HoldfastError } from '../../shared/errors.ts'
import type { ArtifactRow, BlobRow } from './rows.ts'
import { statement, type Queryable } from './statement.ts'
import type { Artifact, CommitArtifact, CommitResult, DeletedArtifact, WriteConditions } from './types.ts'
import { bytea } from './value-parsers.ts'

export interface DeleteArtifact {
  readonly repositoryId: number
  readonly repository: string
  readonly path: string
  readonly user: string
  readonly match?: WriteConditions['match']
}

export type Change =
  { readonly op: 'put'; readonly put: CommitArtifact } | { readonly op: 'delete'; readonly delete: DeleteArtifact }

/** What became of one change. */
export interface ChangeRow extends BlobRow, Pick<ArtifactRow, 'version' | 'created_by' | 'created_at' | 'updated_at'> {
  readonly ord: number
  readonly outcome:
    | 'created'
    | 'replaced'
    | 'unchanged'
    | 'refused'
    | 'blob-exists'
    | 'blob-gone'
    | 'no-repository'
    | 'deleted'
    | 'absent'
  readonly reason: 'exists' | 'no-match' | 'redeploy' | null
  readonly outbox_seq: number | null
}

/** Where deletions go. 'final': nowhere, as those of a move, by which nothing is lost. */
export type Deletions = 'trash' | 'final'

const commitChanges = statement<ChangeRow>(
  'commit-changes-2',
  `SELECT ord, outcome, reason, version, outbox_seq, digest, generation, partition, bytes, md5, sha1,
    created_by, created_at, updated_at
  FROM commit_changes_2($1, $2)`,
)

/** One round trip and one transaction for all; each row says what became of the change at its place. */
export async function runChanges(
  database: Queryable,
  changes: readonly Change[],
  deletions: Deletions,
): Promise<readonly ChangeRow[]> {
  const items = changes.map(encodeChange)
  const rows = await database.query(commitChanges, [JSON.stringify(items), deletions === 'trash'])
  assert(rows.length === changes.length, 'a row for each change')
  return rows.sort((a, b) => a.ord - b.ord)
}

/** The result of a write. `current` is what stands in the way of a refused one. Throws REPOSITORY_NOT_FOUND. */
export function commitResultOf(
  put: CommitArtifact,
  row: ChangeRow,
  incarnation: string,
  current: Artifact | null,
): CommitResult {
  switch (row.outcome) {
    case 'created':
    case 'replaced':
    case 'unchanged':
      return { outcome: row.outcome, artifact: artifactOfChange(put, row), outboxSeq: row.outbox_seq, incarnation }
    case 'blob-exists':
      return { outcome: 'blob-exists', blob: blobOfChange(row) }
    case 'blob-gone':
      return { outcome: 'blob-gone' }
    case 'refused':
      assert(row.reason !== null, 'a refusal has a reason')
      return { outcome: 'refused', reason: row.reason, current }
    case 'no-repository':
      throw repositoryGone(put.repository)
    case 'deleted':
    case 'absent':
      return assert.fail('outcome of a deletion')
  }
}

/** The result of a deletion; undefined: there was nothing. Throws PRECONDITION_FAILED, REPOSITORY_NOT_FOUND. */
export function deleteResultOf(target: DeleteArtifact, row: ChangeRow): DeletedArtifact | undefined {
  if (row.outcome === 'absent') return undefined
  if (row.outcome === 'no-repository') throw repositoryGone(target.repository)
  if (row.outcome === 'refused') {
    throw new HoldfastError('PRECONDITION_FAILED', 'the artifact is not the one that was to be deleted', {
      path: target.path,
    })
  }
  assert(row.outcome === 'deleted' && row.outbox_seq !== null, 'outcome of a deletion')
  return { path: target.path, version: row.version, outboxSeq: row.outbox_seq }
}

function repositoryGone(repository: string): HoldfastError {
  return new HoldfastError('REPOSITORY_NOT_FOUND', `repository '${repository}' was deleted`, { repository })
}

function blobOfChange({ digest, generation, partition, bytes, md5, sha1 }: ChangeRow): Artifact['blob'] {
  return { digest, generation, partition, bytes, md5, sha1 }
}

function artifactOfChange(put: CommitArtifact, row: ChangeRow): Artifact {
  return {
    repositoryId: put.repositoryId,
    path: put.path,
    version: row.version,
    blob: blobOfChange(row),
    contentType: put.contentType,
    attributes: put.attributes,
    createdBy: row.created_by,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
  }
}

function encodeChange(change: Change, ord: number): Record<string, unknown> {
  if (change.op === 'delete') {
    const { repositoryId, repository, path, user, match } = change.delete
    return { ord, op: 'delete', repository_id: repositoryId, repository, path, user_name: user, ...encodeMatch(match) }
  }
  const { put } = change
  const { blob, conditions } = put
  return {
    ord,
    op: 'put',
    repository_id: put.repositoryId,
    repository: put.repository,
    path: put.path,
    user_name: put.user,
    absent: conditions.absent === true,
    ...encodeMatch(conditions.match),
    redeploy: conditions.redeploy,
    content_type: put.contentType,
    attributes: put.attributes,
    is_new: put.blobIs === 'new',
    digest: bytea(blob.digest),
    generation: blob.generation,
    partition: blob.partition,
    bytes: blob.bytes,
    md5: bytea(blob.md5),
    sha1: bytea(blob.sha1),
    missing: put.missing,
    handoffs: put.handoffs,
  }
}

function encodeMatch(match: WriteConditions['match']): Record<string, unknown> {
  if (match === undefined || match === '*') return { match_any: match === '*' }
  return { match_any: false, match: match.map(bytea) }
}
