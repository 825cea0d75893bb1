/**
 * Routing moves bytes between clients and replicas. It knows partitions, shards and health; no artifact, no SQL.
 */
import type { Digest, Generation, ShardId } from '../../shared/ids.ts'
import type { ReferenceRecord } from '../../shared/record.ts'

/** Where a blob was born, and what it must be. */
export interface BlobLocation {
  readonly digest: Digest
  readonly generation: Generation
  readonly partition: number
  readonly bytes: number
}

/** Inclusive byte positions. */
export interface ByteRange {
  readonly first: number
  readonly last: number
}

/** The writable side of a client's answer; node:http's ServerResponse fits. */
export interface ByteSink {
  write(chunk: Buffer, callback?: (error?: Error | null) => void): boolean
  end(chunk?: Buffer): void
  destroy(error?: Error): void
  readonly destroyed: boolean
}

export interface BlobReader {
  /**
   * The whole blob (at most 1 MiB) in memory, its sha256 checked (I5); another replica is tried for whatever goes wrong.
   * Concurrent calls for one blob share one read. Rejects with REPLICAS_UNREACHABLE.
   */
  readWhole(blob: BlobLocation, signal?: AbortSignal): Promise<Buffer>
  /**
   * Streams a blob, or a part of it. `onStart` is called once, before the first byte is written, when a replica
   * answers: the caller writes its head there. A replica that dies, freezes or is corrupt is replaced from the exact byte (I6);
   * for a full body the last block is held back until the digest matches (I5), else the sink is destroyed.
   * Resolves when the sink took everything (after `end`). Rejects with REPLICAS_UNREACHABLE only before `onStart`.
   */
  stream(
    blob: BlobLocation,
    range: ByteRange | undefined,
    sink: ByteSink,
    options: { onStart: () => void; signal: AbortSignal },
  ): Promise<void>
}

/** What a write reached. */
export interface WrittenBlob {
  readonly digest: Digest
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
  readonly generation: Generation
  readonly partition: number
  /** Owners without a durable copy. */
  readonly missing: readonly ShardId[]
  /** Shards that have a durable copy without being owners. */
  readonly handoffs: readonly ShardId[]
}

/** Bytes that are on the shards but not yet durable blobs; digest and checksums are known. */
export interface StagedUpload {
  readonly digest: Digest
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
  /**
   * Makes them durable on W shards in two zones; QUORUM_NOT_REACHED otherwise (and nothing stays). Under a new generation, or
   * as further copies of `under`, a blob whose row exists but has too few copies. Called at most once more after a failure.
   */
  commit(under?: { readonly generation: Generation; readonly partition: number }): Promise<WrittenBlob>
  /** Drops them; never rejects. */
  abort(): Promise<void>
}

export interface BlobWriter {
  /**
   * Refuses early (INSUFFICIENT_STORAGE, QUORUM_NOT_REACHED) when fewer than W shards in the required zones could take
   * `bytes` (undefined: unknown) for this partition now.
   */
  admit(partition: number, bytes: number | undefined): void
  /**
   * A blob of at most inlineBlobBytesMax bytes: one append to each owner, durable on at least W. Under a new generation unless one
   * is given (further copies of a blob whose row exists).
   */
  writeSmall(
    partition: number,
    body: Buffer,
    checksums: { digest: Digest; md5: string; sha1: string },
    generation?: Generation,
  ): Promise<WrittenBlob>
  /**
   * Streams a body of any length to all owners at once. `body` yields buffers (backpressure by not pulling).
   * Rejects with TOO_LARGE beyond `bytesMax`, with whatever `body` throws, with QUORUM_NOT_REACHED; nothing stays then.
   */
  stage(
    partition: number,
    body: AsyncIterable<Buffer>,
    options: {
      expectedBytes: number | undefined
      bytesMax: number | undefined
      signal: AbortSignal
      requestId: string
    },
  ): Promise<StagedUpload>
  /** How many shards verified that they hold this blob durably (I24), and which owners do not. */
  touch(blob: BlobLocation): Promise<{ held: readonly ShardId[]; missing: readonly ShardId[]; quorum: boolean }>
}

export interface ReferenceStore {
  /**
   * Appends to the owners of each record's partition (handoffs where an owner is down); resolves when each is durable on a
   * majority of R (I3), with the owners that lack it. QUORUM_NOT_REACHED otherwise. Concurrent calls are batched per node.
   */
  append(record: ReferenceRecord): Promise<{ readonly missing: readonly ShardId[] }>
  /**
   * Appends to exactly these shards, whoever owns the partition, as work in the background; resolves with those that have it durably. Never
   * rejects for one that has not.
   */
  appendTo(record: ReferenceRecord, shards: readonly ShardId[]): Promise<ReadonlySet<ShardId>>
  /**
   * The newest reference of a path as the shards know it (PostgreSQL down): asks all reachable owners and two handoffs; at
   * least two owners (or all, if fewer) must answer, else REPLICAS_UNREACHABLE. undefined: deleted, or never there.
   */
  newest(repository: string, path: string): Promise<ReferenceRecord | undefined>
}

/** Of a folder: an artifact in it, or, with a key that ends in '/', a folder in which something is. */
export interface ListedChild {
  /** `<repository>/<path>` */
  readonly key: string
  readonly digest?: Digest
  readonly bytes?: number
  readonly time?: number
}

export interface FolderContents {
  /** In the order of their keys as bytes. */
  readonly children: readonly ListedChild[]
  /** There is more behind the last of them, or may be. */
  readonly more: boolean
}

export interface FolderStore {
  /**
   * Up to `limit` children of `folder` (`<repository>/`, or with a path, ending in '/') from the key `start` on, which begins with it, as
   * the shards know them (PostgreSQL down). Never less than there is: of each partition as many owners must answer as it takes to say that
   * a path is absent, else REPLICAS_UNREACHABLE. METADATA_UNAVAILABLE where so much was deleted that it would take too long.
   */
  list(folder: string, start: string, limit: number, signal: AbortSignal): Promise<FolderContents>
}
