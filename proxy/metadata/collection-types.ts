import type { Digest } from '../../shared/ids.ts'
import type { Blob } from './types.ts'

/**
 * Why a blob stays, or that it may go: named by an artifact, by something in the trash, by an upload under way; too young; found without
 * all of these ('unused'), waiting since then ('condemned'), waited long enough ('due'), being deleted ('purging').
 */
export const blobVerdicts = ['referenced', 'trash', 'pinned', 'young', 'unused', 'condemned', 'due', 'purging'] as const
export type BlobVerdict = (typeof blobVerdicts)[number]

export interface CollectionAges {
  /** A blob younger than this is not looked at, in ms. */
  readonly minAgeMs: number
  /** Between condemned and purged, in ms: time to be named again. */
  readonly holdMs: number
}

export interface JudgedBlob {
  readonly digest: Digest
  readonly bytes: number
  readonly verdict: BlobVerdict
}

export type DoomedBlob = Pick<Blob, 'digest' | 'generation' | 'partition' | 'bytes'>

/** Everything that is known of a digest. */
export interface BlobStory extends JudgedBlob {
  readonly createdAt: number
  /** Since when it is in its state. */
  readonly since: number
  /** Some of the artifacts that name it, as `repository/path`. */
  readonly references: readonly string[]
  readonly trash: readonly string[]
  readonly pins: number
}

export interface Disarmed {
  readonly reason: string
  readonly by: string
  readonly at: number
}

/** Garbage collection in the database. What changes something is fenced by the primary's token. */
export interface CollectionStore {
  /** A page of all blobs in the order of their digests; `after` is the last of the page before, '' at the beginning. Changes nothing. */
  judge(after: Digest | '', limit: number, ages: CollectionAges): Promise<readonly JudgedBlob[]>
  /** Those of the digests that are still unused, now condemned. A commit that names one makes it live again. */
  condemn(
    digests: readonly Digest[],
    minAgeMs: number,
    token: number,
  ): Promise<readonly Pick<Blob, 'digest' | 'bytes'>[]>
  /** The next ones that were condemned for `holdMs` and are still unused: no commit can name them any more. */
  purge(holdMs: number, limit: number, token: number): Promise<readonly DoomedBlob[]>
  /** Those whose deletion was begun and not finished, also if their bytes live on under another generation; in the order of their digests. */
  purging(after: Digest | '', limit: number): Promise<readonly DoomedBlob[]>
  /** No shard holds them any more: the rows go. */
  finishPurge(blobs: readonly DoomedBlob[], token: number): Promise<void>
  explain(digest: Digest, ages: CollectionAges): Promise<BlobStory | undefined>

  /** undefined: armed. */
  disarmed(): Promise<Disarmed | undefined>
  /** Garbage collection deletes nothing until it is armed again. Not fenced: anybody who doubts may stop it. */
  disarm(reason: string, by: string): Promise<void>
  arm(): Promise<void>
  /** The newest version that this database has issued: if shards know a newer one, it was restored from an older copy. */
  newestVersion(): Promise<number>
}
