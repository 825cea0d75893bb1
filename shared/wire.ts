/**
 * The internal wire between proxies and storage nodes (docs/wire.md): names and types both sides compile against.
 * HTTP/1.1, prefix /v1, authenticated by the cluster secret, JSON but for bytes and record batches.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import type { Digest, Generation, NodeId, ShardId, Zone } from './ids.ts'
import { partitionName } from './partition.ts'
import type { ErrorCode } from './errors.ts'
import type { ReferencedBlob, ReferenceRecord } from './record.ts'
import type { SetSummary } from './set-digest.ts'

export const wireVersion = 1

export const wireHeader = {
  /** Request: epoch of the sender's cluster map. Response: epoch of the node's. */
  epoch: 'holdfast-epoch',
  /** Request: leadership role and fencing token of a command of the primary, `primary:17`. */
  fence: 'holdfast-fence',
  /** Request: the id of the client request this one serves; ends up in both logs. */
  requestId: 'holdfast-request-id',
  /** Request between nodes, or of the primary to copy and compare: work in the background, `usual`, or `urgent` for the last copy of something. */
  background: 'holdfast-background',
  /** Request between nodes: who takes the blob compares its sha256, so the node need not check the blocks before it sends them. */
  unverified: 'holdfast-unverified',
  /** Request of an upload whose length is known: bytes the shard must have room for. */
  expectedBytes: 'holdfast-expected-bytes',
} as const

/** The Authorization header of the wire, derived from the cluster secret so that the secret itself never travels. */
export function wireAuthorization(clusterSecret: string): string {
  return 'Bearer ' + createHmac('sha256', clusterSecret).update('holdfast wire 1').digest('hex')
}

/** Compares in constant time. */
export function wireAuthorized(header: string | undefined, expected: Buffer): boolean {
  if (header === undefined) return false
  const given = Buffer.from(header, 'latin1')
  return given.length === expected.length && timingSafeEqual(given, expected)
}

export const wirePath = {
  status: '/v1/status',
  append: '/v1/append',
  touch: '/v1/touch',
  transfer: '/v1/transfer',
  drop: '/v1/drop',
  clusterMap: '/v1/cluster-map',
  blob: (shard: ShardId, partition: number, digest: Digest, generation: Generation) =>
    `/v1/blobs/${shard}/${partitionName(partition)}/${digest}.${generation}`,
  blobs: (shard: ShardId, partition: number) => `/v1/blobs/${shard}/${partitionName(partition)}`,
  /** A listing of all partitions. */
  allReferences: (shard: ShardId) => `/v1/references/${shard}`,
  /** One reference with `?key=<repository/path, URL-encoded>`, else a listing. */
  references: (shard: ShardId, partition: number) => `/v1/references/${shard}/${partitionName(partition)}`,
  upload: (shard: ShardId, upload: string) => `/v1/uploads/${shard}/${upload}`,
  commit: (shard: ShardId, upload: string) => `/v1/uploads/${shard}/${upload}/commit`,
  unconfirmed: (shard: ShardId) => `/v1/unconfirmed/${shard}`,
  /** Of nodes that do not know it yet, blobs are asked for one by one. */
  bundle: (shard: ShardId) => `/v1/bundle/${shard}`,
  verify: (shard: ShardId, { partition, digest, generation }: BlobKey) =>
    `/v1/verify/${shard}/${partitionName(partition)}/${digest}.${generation}`,
  summaries: (shard: ShardId) => `/v1/summaries/${shard}`,
  entries: (shard: ShardId, partition: number) => `/v1/entries/${shard}/${partitionName(partition)}`,
  entriesOf: (shard: ShardId) => `/v1/entries/${shard}`,
  versions: '/v1/versions',
  /** Of nodes that do not know it yet there is no answer. */
  folder: (shard: ShardId) => `/v1/folder/${shard}`,
  losses: (shard: ShardId) => `/v1/losses/${shard}`,
  recovered: (shard: ShardId) => `/v1/recovered/${shard}`,
  scrub: '/v1/scrub',
  scrubOf: (shard: ShardId) => `/v1/scrub/${shard}`,
} as const

/** Upload ids are made by the proxy: `u` and 25 characters of base 36. They become file names, hence the strictness. */
export const uploadIdPattern = /^u[0-9a-z]{25}$/

export type ShardState = 'ok' | 'full' | 'read-only' | 'failed'

/** GET /v1/status, answered from memory: the active health check. */
export interface NodeStatus {
  readonly version: string
  readonly wire: number
  readonly clusterId: string
  readonly node: NodeId
  readonly zone: Zone
  readonly state: 'up' | 'draining'
  /** Another one after each start of the process. Nodes of older releases do not tell. */
  readonly run?: string
  readonly epoch: number
  /** The highest fencing token the node has seen, by role. */
  readonly tokens?: Readonly<Record<string, number>>
  readonly shards: readonly ShardStatus[]
}
export interface ShardStatus {
  readonly id: ShardId
  readonly weight: number
  readonly state: ShardState
  /** Why it is not 'ok'. */
  readonly reason?: string
  /** Which disk it is: random, for the life of the disk. A new one in the place of a broken one has another. */
  readonly disk?: string
  /**
   * The disk was set up empty, or has lost a reference, and it is not known yet that it has all that its partitions should have. Another one
   * for each time that this began.
   */
  readonly recovering?: string
  readonly bytesTotal: number
  readonly bytesFree: number
  /** With less than this free it takes no blobs. */
  readonly bytesFreeMin?: number
  /** In the log, waiting for a compaction. */
  readonly deadBytes?: number
  /** Copies that were found corrupt or missing, and are not back. */
  readonly losses?: number
  /** Part of the disk's time that work in the background may take now, 0 to 1; what it has read and written since the node's start. */
  readonly background?: { readonly share: number; readonly bytes: number }
  readonly scrub?: {
    readonly state: ScrubStatus['state']
    /** Part of the pass under way that is done, 0 to 1. */
    readonly done?: number
    readonly finishedAt?: number
  }
  /** The newest version of a reference it ever had, and the database that issued it; absent: it never had any. */
  readonly newest?: { readonly incarnation: string; readonly version: number }
}

/** Error body of every non-2xx answer on the wire. */
export interface WireError {
  readonly code: ErrorCode
  readonly message: string
  readonly data?: Readonly<Record<string, unknown>>
}

export interface BlobKey {
  readonly partition: number
  readonly digest: Digest
  readonly generation: Generation
}

/**
 * POST /v1/append: a batch of records for any shards of this node, body = items one after the other,
 *   item = u8 shardIdBytes | shardId (ASCII) | frame (record.ts)
 * answered when each item is durable (or refused): results in the order of the items.
 */
export interface AppendAnswer {
  readonly results: readonly ('ok' | WireError)[]
}

/** PUT /v1/uploads/<shard>/<upload>, body = the bytes. Answered when all is written and flushed to the temporary file. */
export interface UploadAnswer {
  readonly bytes: number
  /** CRC-32 of the block CRC table (BlockCrcs.finish()). */
  readonly crc: number
}
/** POST …/commit: makes the upload a blob; answered when file, folder and record are durable. CHECKSUM_MISMATCH if the table differs. */
export interface CommitRequest extends BlobKey {
  readonly bytes: number
  /** The proxy's block CRC table, base64: the node compares it with its own. */
  readonly blockCrcs: string
}

/** POST /v1/touch: does this shard hold these blobs, verified (size, record) and durable? */
export interface TouchRequest {
  readonly items: readonly (BlobKey & { readonly shard: ShardId })[]
}
export interface TouchAnswer {
  readonly results: readonly ('held' | 'missing' | 'unavailable')[]
}

/** POST /v1/transfer (fenced): this node pulls blobs from other nodes onto one of its shards, verifying each digest. */
export interface TransferRequest {
  readonly shard: ShardId
  readonly blobs: readonly (BlobKey & {
    readonly bytes: number
    readonly sources: readonly { readonly url: string; readonly shard: ShardId }[]
  })[]
}
export interface TransferAnswer {
  /** 'held' = was there already. */
  readonly results: readonly ('copied' | 'held' | WireError)[]
}

/** POST /v1/bundle/<shard>: small blobs, as one stream (bundle.ts). Larger ones are refused in it with TOO_LARGE. */
export interface BundleRequest {
  readonly blobs: readonly BlobKey[]
}

/** POST /v1/drop (fenced): moves blobs of this shard to its trash. */
export interface DropRequest {
  readonly shard: ShardId
  readonly reason: 'deleted' | 'moved'
  readonly blobs: readonly BlobKey[]
}

export interface DropAnswer {
  /** 'missing' = was not there. */
  readonly results: readonly ('dropped' | 'missing')[]
}

/** GET /v1/unconfirmed/<shard>?olderThanMs=…&limit=…&after=…: blobs no reference record ever named on this shard, oldest first. */
export interface UnconfirmedAnswer {
  readonly blobs: readonly (BlobKey & { readonly bytes: number; readonly ageMs: number })[]
  /** Pass as `after` for the next page; absent on the last one. */
  readonly next?: string
}

/** GET /v1/references/<shard>/<ppp>?key=<repository/path>: the newest reference of that path on this shard, or REFERENCE_NOT_FOUND. */
export type ReferenceAnswer = ReferenceRecord

/**
 * GET /v1/references/<shard>?after=…&limit=…: the same of all partitions, in the order of `<ppp>/<repository/path>` as bytes of UTF-8.
 * GET /v1/references/<shard>/<ppp>?after=…&limit=…: the newest reference of each path, in the order of their keys.
 */
export interface ReferenceListing {
  readonly references: readonly ReferenceRecord[]
  /** Pass as `after` for the next page; absent on the last one. */
  readonly next?: string
}

/** GET /v1/blobs/<shard>/<ppp>?after=…&limit=… */
export interface BlobListing {
  readonly blobs: readonly (BlobKey & { readonly bytes: number })[]
  /** Pass as `after` for the next page; absent on the last one. */
  readonly next?: string
}

/** GET /v1/verify/<shard>/<ppp>/<digest>.<gen>: the copy read to its end; a corrupt one is in quarantine when this is answered. */
export interface VerifyAnswer {
  readonly state: 'good' | 'corrupt' | 'missing'
  readonly bytes?: number
  /** Of a corrupt copy: what did not match. */
  readonly reason?: string
}

/** GET /v1/summaries/<shard>?from=…&count=…: what the shard holds of these partitions; those with nothing are left out. */
export interface SummaryAnswer {
  readonly partitions: readonly PartitionSummary[]
}
export interface PartitionSummary {
  readonly partition: number
  /** Of the texts `<digest>.<generation>`. */
  readonly blobs: SetSummary
  /** Of the texts `<repository/path>@<version>`. */
  readonly references: SetSummary
  /** Of the blobs. Nodes of older releases do not tell. */
  readonly bytes?: number
}

/** GET /v1/entries/<shard>/<ppp>?of=blobs|references&after=…&limit=…: names only, from the index, in the order of their keys. */
export interface EntryListing {
  readonly entries: readonly Entry[]
  /** Pass as `after` for the next page; absent on the last one. */
  readonly next?: string
}
/** POST /v1/entries/<shard>: the first pages of several partitions. */
export interface EntriesRequest {
  readonly lists: readonly { readonly partition: number; readonly of: 'blobs' | 'references' }[]
  /** Of each. */
  readonly limit: number
}
export interface EntriesAnswer {
  /** In the order asked; null: there was no room in this answer. */
  readonly lists: readonly (EntryListing | null)[]
}

export interface Entry {
  /** `<digest>.<generation>` or `<repository/path>`. */
  readonly key: string
  /** Of a reference. */
  readonly version?: number
  /** Of a blob, and when it was written, ms: by the clock of whoever wrote the record. */
  readonly bytes?: number
  readonly time?: number
  /** Of a blob: for how long, at least, the shard has had it, in ms by the node's monotonic clock. Nodes of older releases do not tell. */
  readonly heldMs?: number
}

/** POST /v1/references/<shard>: the newest reference of each of these paths on this shard. */
export interface ReferencesRequest {
  readonly references: readonly { readonly partition: number; readonly key: string }[]
}
export interface ReferencesAnswer {
  /** In the order asked; null: ask for it by itself, there was no room in this answer, or something is wrong with it. */
  readonly references: readonly (ReferenceAnswer | null)[]
}

/** POST /v1/versions: the newest version this shard has of each path. */
export interface VersionsRequest {
  readonly shard: ShardId
  readonly references: readonly { readonly partition: number; readonly key: string }[]
}
export interface VersionsAnswer {
  /** null: it has none. */
  readonly versions: readonly (number | null)[]
}

/** POST /v1/folder/<shard>: what the shard knows of a folder, in all partitions, from a key on. */
export interface FolderRequest {
  /** `<repository>/`, or `<repository/path>/`. */
  readonly folder: string
  /** Begins with `folder`; what stands before it is passed over. */
  readonly start: string
  /** Children of the answer, at most; the node may give fewer. */
  readonly limit: number
  /** Every path in the folder is a child of it, however deep: folders in it are not folded. */
  readonly deep?: boolean
}
export interface FolderAnswer {
  /**
   * Of each artifact in the folder the newest reference, deletes too; of each folder in it one that is live on this shard, if there is
   * any. In no order.
   */
  readonly references: readonly FolderReference[]
  /** Folders (with their '/') of which only deletes were looked at, and not everything. */
  readonly undecided: readonly string[]
  /** What stands before this key is complete; pass it as `start` for more. Absent: everything is. */
  readonly next?: string
}
export interface FolderReference {
  /** `<repository/path>` */
  readonly key: string
  readonly version: number
  readonly time: number
  /** Absent: deleted. */
  readonly blob?: Pick<ReferencedBlob, 'digest' | 'bytes'>
}

/** GET /v1/losses/<shard>?after=…&limit=…: copies that were found corrupt or missing on this shard, and are not back. */
export interface LossListing {
  readonly losses: readonly (BlobKey & {
    readonly time: number
    readonly why: string
    /** For how long, at least, it has been on the list, in ms by the node's monotonic clock. Nodes of older releases do not tell. */
    readonly heldMs?: number
  })[]
  /** Pass as `after` for the next page; absent on the last one. */
  readonly next?: string
}

/** GET /v1/scrub: of each shard of this node. */
export interface ScrubAnswer {
  readonly shards: readonly ScrubStatus[]
}
export interface ScrubStatus {
  readonly shard: ShardId
  readonly state: 'running' | 'paused' | 'waiting'
  readonly pass?: ScrubPass & {
    /** 0 to 1. */
    readonly done: number
    /** What it may read, when nothing else is going on. */
    readonly bytesPerSec: number
  }
  readonly last?: ScrubPass & { readonly finishedAt: number }
  /** Copies that were found corrupt or missing, by whomever, and are not back. */
  readonly losses: number
}
export interface ScrubPass {
  readonly startedAt: number
  readonly blobs: number
  readonly bytes: number
  /** Copies that were corrupt, missing or unreadable, and references that were damaged. */
  readonly bad: number
  /** Files without a record, moved to the trash. */
  readonly leftovers: number
}

/** POST /v1/scrub/<shard>: `start` begins a pass now, or goes on with the one that was paused. */
export type ScrubAction = 'start' | 'pause'
export interface ScrubRequest {
  readonly action: ScrubAction
}
