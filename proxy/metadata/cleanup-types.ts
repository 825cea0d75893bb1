import type { Digest } from '../../shared/ids.ts'
import type { DeletedArtifact, Repository } from './types.ts'

/** All that are given must hold of an artifact for it to be deleted; at least one of the first three is given. */
export interface CleanupConditions {
  /** Written longer ago than this. */
  readonly unchangedDays?: number
  /** Neither written nor downloaded for so long. */
  readonly notDownloadedDays?: number
  /**
   * Not among the newest versions of its group. 'artifacts': each artifact is a version, its folder the group (what stands in no folder is
   * one, too). 'folders': each folder
   * with artifacts directly in it is a version, the folder above is the group; what stands in no folder is none. Among those that fit
   * `path` and `prerelease`. What came back from the trash ranks by when it had been written.
   */
  readonly keepNewest?: { readonly count: number; readonly of: 'artifacts' | 'folders' }
  /** Glob of the whole path: `*` and `?` within a segment, `**` any number of segments. */
  readonly path?: string
  /** Only pre-releases, or never them. */
  readonly prerelease?: 'only' | 'never'
}

export interface CleanupPolicy {
  readonly name: string
  /** By name; null: all. */
  readonly repositories: readonly string[] | null
  readonly conditions: CleanupConditions
  /** One that is not deletes nothing; it can be previewed. */
  readonly enabled: boolean
}

/** An artifact as policies see it. Times are milliseconds since 1970 by PostgreSQL's clock. */
export interface CleanupCandidate {
  readonly path: string
  readonly digest: Digest
  readonly version: number
  readonly bytes: number
  /** When it was written here, or restored. */
  readonly updatedAt: number
  /** Of one that came back from the trash: when it had been written. */
  readonly writtenAt: number | null
  /** Beginning of the last day on which it was downloaded; null: of no download is known. */
  readonly downloadedAt: number | null
}

export interface Download {
  readonly repositoryId: number
  readonly path: string
}

export interface CleanupStore {
  /** By name. */
  listPolicies(): Promise<readonly CleanupPolicy[]>
  /** CONFLICT if there is one of this name. */
  createPolicy(policy: CleanupPolicy, user: string): Promise<void>
  /** NOT_FOUND if there is none. */
  changePolicy(policy: CleanupPolicy, user: string): Promise<void>
  /** False: there was none. */
  deletePolicy(name: string): Promise<boolean>

  /** The clock of PostgreSQL, and since when downloads are recorded. */
  facts(): Promise<{ readonly now: number; readonly recordedSince: number }>
  /** A page of the living artifacts in the order of their paths. */
  candidates(repositoryId: number, after: string, limit: number): Promise<readonly CleanupCandidate[]>
  /** Into the trash, those that still have these bytes. Fenced by the primary's token. */
  remove(
    repository: Pick<Repository, 'id' | 'name'>,
    doomed: readonly Pick<CleanupCandidate, 'path' | 'digest' | 'version'>[],
    user: string,
    token: number,
  ): Promise<readonly DeletedArtifact[]>

  /** These were downloaded today. */
  recordDownloads(downloads: readonly Download[]): Promise<void>
  /**
   * Looks at the next `limit` records behind `after` (by repository and path) and forgets those of paths that are no more. Resolves with the
   * last one it looked at; undefined: there was none. Fenced.
   */
  forgetDownloads(after: Download, limit: number, token: number): Promise<Download | undefined>
}
