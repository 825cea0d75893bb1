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

/** A blob that lost a name, once at least. 'gone': it has no row any more. */
export interface JudgedLoser extends Omit<JudgedBlob, 'verdict'> {
  readonly verdict: BlobVerdict | 'gone'
}

/** What there was when all blobs were last looked at, less what was deleted since, also of what was written since. */
export interface CountedBlobs {
  readonly blobs: number
  readonly bytes: number
  /** When that was, by the clock of PostgreSQL. */
  readonly at: number
  /** How long ago, by the same clock; below 0 if that was set back. */
  readonly ageMs: number
  /** Of the database in which they were counted. */
  readonly incarnation: string
}

export type DoomedBlob = Pick<Blob, 'digest' | 'generation' | 'partition' | 'bytes'>

/** Everything that is known of a digest. */
export interface BlobStory extends JudgedBlob {
  readonly createdAt: number
  /** Since when it is live, condemned or being purged; not since when nothing names it. */
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
  /**
   * A page of those that may be unused, as `judge`: each blob that nothing names is one of them, but for what only a look at all blobs
   * finds (from before names were followed, or by a mistake of ours).
   */
  judgeLosers(after: Digest | '', limit: number, ages: CollectionAges): Promise<readonly JudgedLoser[]>
  /** Those of the digests that are named, by an artifact or in the trash, or gone, need not be looked at again until they lose a name. */
  settleLosers(digests: readonly Digest[], token: number): Promise<void>
  /** They may be unused, whatever is known of them. */
  addLosers(digests: readonly Digest[], token: number): Promise<void>
  /** undefined: never looked at all of them. */
  counted(): Promise<CountedBlobs | undefined>
  /** All were looked at, just now. */
  noteCounted(counted: Pick<CountedBlobs, 'blobs' | 'bytes' | 'incarnation'>, token: number): Promise<void>
  /** So many of those that were counted are gone. */
  takeFromCounted(gone: Pick<CountedBlobs, 'blobs' | 'bytes'>, token: number): Promise<void>
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
