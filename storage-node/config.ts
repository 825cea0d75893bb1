import type { NodeId, ShardId, Zone } from '../shared/ids.ts'

export interface ShardConfig {
  readonly id: ShardId
  /** Normally a mount point. */
  readonly folder: string
  /** Capacity relative to other shards. */
  readonly weight: number
}

export interface StorageNodeConfig extends Partial<StorageNodeLimits> {
  readonly node: NodeId
  readonly zone: Zone
  /** Absent: adopted from the markers, or from the first cluster map that a proxy brings. */
  readonly clusterId?: string
  readonly host: string
  /** 0: any free one. */
  readonly port: number
  /** The cluster secret; only a hash of it travels. */
  readonly secret: string
  /** Newest cluster map, fencing tokens, lock. */
  readonly stateFolder: string
  readonly shards: readonly ShardConfig[]
  /** Shards whose empty folder may be set up again although this node has known them: a replaced disk. */
  readonly replacedShards?: readonly ShardId[]
}

/** Everything that bounds a storage node. Values are checked nowhere else: a caller that overrides one knows why. */
export interface StorageNodeLimits {
  readonly segmentBytesMax: number
  /** Bytes of one append request. */
  readonly appendBytesMax: number
  /** Bytes of all request bodies that are in memory at once, but for uploads; beyond it requests are refused with OVERLOADED. */
  readonly bodyBytesMax: number
  /** Bytes waiting for a shard's log; above it appends are refused with OVERLOADED. */
  readonly logQueueBytesMax: number
  readonly uploadCountMax: number
  /** Largest blob, bytes: its CRC table must fit a record. */
  readonly blobBytesMax: number
  readonly connectionCountMax: number
  /** File descriptors kept open for reading, per shard. */
  readonly openFileCountMax: number
  /** Blob locations kept in memory, per shard (about 300 bytes each). */
  readonly locationCountMax: number
  /** Of the whole node: what it pulls from other nodes at once (a large blob, or a bundle of small ones), and how fast. */
  readonly transferConcurrency: number
  readonly transferBytesPerSec: number
  /** Of each disk: what scrub, compaction and copies to and from other nodes take of it, all together (background.ts). */
  readonly backgroundPercent: number
  readonly backgroundBytesPerSecMin: number
  readonly backgroundBytesPerSecMax: number
  /** Preallocated so that references and drops go on when the disk is full; at most 2 % of the disk. */
  readonly reserveBytes: number
  /** Below this part of the disk, or `freeBytesMin` on disks above 40 GiB, whichever is more, new blobs are refused. */
  readonly freeRatioMin: number
  readonly freeBytesMin: number
  readonly diskCheckMs: number
  /** Pause between looks at the marker, and between attempts to recover a shard. */
  readonly markerCheckMs: number
  /** How much of the log a start may have to replay: the index is made durable at least this often. */
  readonly checkpointMs: number
  readonly checkpointBytes: number
  /** Pause between looks for log segments worth compacting: those of which this part is dead. */
  readonly compactPauseMs: number
  readonly compactDeadRatioMin: number
  readonly compactBytesPerSec: number
  /** How long the file of an emptied segment stays for those who looked something up in it before. */
  readonly compactHoldMs: number
  /** Everything is read once in this time. */
  readonly scrubPeriodMs: number
  /** Pause between looks whether a pass is due. */
  readonly scrubPauseMs: number
  readonly scrubBytesPerSecMin: number
  readonly scrubBytesPerSecMax: number
  /** How often its place is made durable. */
  readonly scrubSaveMs: number
  /** How long a corrupt copy is kept, when it was replaced. */
  readonly quarantineHoldMs: number
  /** How long a complete upload waits for its commit. The proxy that sent it drops it by itself unless it dies. */
  readonly stagedHoldMs: number
  readonly trashHoldMs: number
  /** A body, or a reader of one, that makes no progress for so long is cut off. */
  readonly stallMs: number
  readonly drainMs: number
}

const hourMs = 3_600_000
const MiB = 1024 * 1024

export const defaultLimits: StorageNodeLimits = {
  segmentBytesMax: 256 * MiB,
  appendBytesMax: 16 * MiB,
  bodyBytesMax: 256 * MiB,
  logQueueBytesMax: 64 * MiB,
  uploadCountMax: 256,
  blobBytesMax: 256 * 1024 * MiB,
  connectionCountMax: 4096,
  openFileCountMax: 256,
  locationCountMax: 50_000,
  transferConcurrency: 8,
  transferBytesPerSec: 1024 * MiB,
  backgroundPercent: 10,
  backgroundBytesPerSecMin: MiB,
  backgroundBytesPerSecMax: 1024 * MiB,
  reserveBytes: 256 * MiB,
  freeRatioMin: 0.05,
  freeBytesMin: 2048 * MiB,
  diskCheckMs: 5_000,
  markerCheckMs: 10_000,
  checkpointMs: 5_000,
  checkpointBytes: 32 * MiB,
  compactPauseMs: 60_000,
  compactDeadRatioMin: 0.4,
  compactBytesPerSec: 16 * MiB,
  compactHoldMs: 30_000,
  scrubPeriodMs: 14 * 24 * hourMs,
  scrubPauseMs: 30_000,
  scrubBytesPerSecMin: 4 * MiB,
  scrubBytesPerSecMax: 128 * MiB,
  scrubSaveMs: 60_000,
  quarantineHoldMs: 7 * 24 * hourMs,
  stagedHoldMs: hourMs,
  trashHoldMs: 24 * hourMs,
  stallMs: 60_000,
  drainMs: 30_000,
}
