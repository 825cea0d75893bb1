import type { Artifact, CommitResult } from './types.ts'

/** Something that was deleted and can be restored. Times are milliseconds since 1970 by PostgreSQL's clock. */
export interface TrashEntry {
  readonly id: number
  /** As it was, with the blob it named. */
  readonly artifact: Artifact
  readonly deletedBy: string
  readonly deletedAt: number
  /** When the bytes may go. */
  readonly expiresAt: number
}

/** An artifact, or everything below a folder: '' or a path with its trailing '/'. */
export interface TrashPlace {
  readonly repositoryId: number
  readonly path: string
}

/** Where a list was left: after this entry. */
export interface TrashCursor {
  readonly path: string
  readonly id: number
}

export interface Restored {
  readonly entry: TrashEntry
  readonly result: CommitResult
}

export interface TrashStore {
  /** In the order of paths, each with its newest deletion first. */
  list(place: TrashPlace, after: TrashCursor | undefined, limit: number): Promise<readonly TrashEntry[]>
  /** The newest deletion of each path beyond `after`, in the order of paths. */
  newest(place: TrashPlace, after: string, limit: number): Promise<readonly TrashEntry[]>
  /**
   * Commits the references again, in one transaction; each entry has its own outcome, and leaves the trash with it. Never over a living
   * artifact ('refused', 'exists') unless `overwrite`, and then only where the repository lets it be replaced.
   */
  restore(
    entries: readonly TrashEntry[],
    how: { repository: string; user: string; overwrite: boolean; redeploy: 'allow' | 'once' },
  ): Promise<readonly Restored[]>
  /** Forgets up to `limit` entries for good; resolves with how many there were. */
  purge(place: TrashPlace, limit: number): Promise<number>
  /** The same for entries whose time is over. Fenced by the primary's token. */
  expire(limit: number, token: number): Promise<{ readonly entries: number; readonly bytes: number }>
}
