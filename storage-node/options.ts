import { isAbsolute, normalize, relative, resolve } from 'node:path'
import { readConfig, type ConfigOf, type ConfigSource } from '../shared/config.ts'
import { parseNodeId, parseShardId, parseZone, type NodeId, type Zone } from '../shared/ids.ts'
import { defaultLimits, type ShardConfig, type StorageNodeConfig } from './config.ts'

const idPattern = [/^[a-z0-9][a-z0-9.-]{0,62}$/, "must be lower-case letters, digits, '.' and '-'"] as const
const GiB = 2 ** 30
const TiB = 2 ** 40

/** The limits an operator may want to change; the others are matters of the code (`defaultLimits`). */
export const storageNodeOptions = {
  node: { kind: 'string', required: true, pattern: idPattern, doc: 'Id of this storage node, for ever.' },
  zone: { kind: 'string', required: true, pattern: idPattern, doc: 'What fails together: rack, room, site.' },
  host: { kind: 'string', default: '0.0.0.0', doc: 'Address the wire listens on.' },
  port: { kind: 'int', min: 0, max: 65_535, default: 8090, doc: 'Port of the wire; 0 takes any free one.' },
  stateFolder: { kind: 'string', required: true, doc: 'Folder for the newest cluster map and fencing tokens.' },
  shards: {
    kind: 'list',
    flag: 'shard',
    default: [],
    required: true,
    countMax: 256,
    doc: 'The disks, each as id=folder or id=folder:weight (weight 1 to 1000000, default 100).',
  },
  replacedShards: {
    kind: 'list',
    flag: 'replaced-shard',
    default: [],
    countMax: 256,
    doc: 'Shards whose empty folder may be set up again: a new disk in the place of a broken one.',
  },
  secret: { kind: 'secret', required: true, charsMin: 16, doc: 'Secret shared by all proxies and storage nodes.' },
  clusterId: {
    kind: 'string',
    pattern: [/^[A-Za-z0-9-]{1,64}$/, "must be letters, digits and '-'"],
    doc: 'Id of the cluster; adopted from the disks or the first cluster map if not given.',
  },
  connectionCountMax: {
    kind: 'int',
    min: 16,
    max: 100_000,
    default: defaultLimits.connectionCountMax,
    doc: 'Connections from proxies and other nodes.',
  },
  uploadCountMax: {
    kind: 'int',
    min: 1,
    max: 100_000,
    default: defaultLimits.uploadCountMax,
    doc: 'Uploads being written at once.',
  },
  openFileCountMax: {
    kind: 'int',
    min: 8,
    max: 100_000,
    default: defaultLimits.openFileCountMax,
    doc: 'Files kept open for reading, per shard.',
  },
  locationCountMax: {
    kind: 'int',
    min: 100,
    max: 10_000_000,
    default: defaultLimits.locationCountMax,
    doc: 'Blob locations kept in memory, per shard (about 300 bytes each).',
  },
  freeBytesMin: {
    kind: 'int',
    unit: 'bytes',
    min: 0,
    max: TiB,
    default: defaultLimits.freeBytesMin,
    doc: 'Below this much free space a large disk takes no new blobs.',
  },
  reserveBytes: {
    kind: 'int',
    unit: 'bytes',
    min: 0,
    max: 16 * GiB,
    default: defaultLimits.reserveBytes,
    doc: 'Kept in reserve so that deletes and references go on when the disk is full.',
  },
  segmentBytesMax: {
    kind: 'int',
    unit: 'bytes',
    min: 64 * 1024,
    max: 4 * GiB,
    default: defaultLimits.segmentBytesMax,
    doc: 'A log segment of this size is sealed. What is dead in it is given back when enough of it is.',
  },
  compactPauseMs: {
    kind: 'int',
    unit: 'ms',
    min: 100,
    max: 24 * 3_600_000,
    default: defaultLimits.compactPauseMs,
    doc: 'Pause between looks for log segments that are worth compacting.',
  },
  compactHoldMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 3_600_000,
    default: defaultLimits.compactHoldMs,
    doc: 'How long the file of a compacted log segment stays for readers that were about to open it.',
  },
  compactBytesPerSec: {
    kind: 'int',
    unit: 'bytes',
    min: 64 * 1024,
    max: 16 * GiB,
    default: defaultLimits.compactBytesPerSec,
    doc: 'How fast the log is compacted, at most, per second and shard.',
  },
  transferConcurrency: {
    kind: 'int',
    min: 1,
    max: 256,
    default: defaultLimits.transferConcurrency,
    doc: 'Large blobs, and bundles of small ones, that the node pulls from other nodes at once.',
  },
  transferBytesPerSec: {
    kind: 'int',
    unit: 'bytes',
    min: 1024 * 1024,
    max: 64 * GiB,
    default: defaultLimits.transferBytesPerSec,
    doc: 'How fast the node pulls copies from other nodes, at most, per second, for all its shards.',
  },
  backgroundPercent: {
    kind: 'int',
    min: 1,
    max: 100,
    default: defaultLimits.backgroundPercent,
    doc: "How much of a disk's time scrub, compaction and copies for other disks take together while clients keep it busy.",
  },
  backgroundBytesPerSecMin: {
    kind: 'int',
    unit: 'bytes',
    min: 64 * 1024,
    max: 16 * GiB,
    default: defaultLimits.backgroundBytesPerSecMin,
    doc: 'How much they get in any case, per second and shard, also where it is more than that.',
  },
  backgroundBytesPerSecMax: {
    kind: 'int',
    unit: 'bytes',
    min: 64 * 1024,
    max: 64 * GiB,
    default: defaultLimits.backgroundBytesPerSecMax,
    doc: 'How much they get at most, per second and shard, also while no client is there.',
  },
  scrubPeriodMs: {
    kind: 'int',
    unit: 'ms',
    min: 1_000,
    max: 8_760 * 3_600_000,
    default: defaultLimits.scrubPeriodMs,
    doc: 'Everything on a shard is read and compared with its checksums once in this time.',
  },
  scrubPauseMs: {
    kind: 'int',
    unit: 'ms',
    min: 100,
    max: 24 * 3_600_000,
    default: defaultLimits.scrubPauseMs,
    doc: 'Pause between looks whether a scrub is due.',
  },
  scrubBytesPerSecMin: {
    kind: 'int',
    unit: 'bytes',
    min: 1024,
    max: 16 * GiB,
    default: defaultLimits.scrubBytesPerSecMin,
    doc: 'What a scrub reads per second and shard, if the period does not ask for more.',
  },
  scrubBytesPerSecMax: {
    kind: 'int',
    unit: 'bytes',
    min: 1024,
    max: 16 * GiB,
    default: defaultLimits.scrubBytesPerSecMax,
    doc: 'What a scrub reads per second and shard, at most.',
  },
  scrubSaveMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 3_600_000,
    default: defaultLimits.scrubSaveMs,
    doc: 'How often the place of a scrub is made durable.',
  },
  quarantineHoldMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 8_760 * 3_600_000,
    default: defaultLimits.quarantineHoldMs,
    doc: 'How long a corrupt copy is kept in quarantine after it was found, if it was replaced.',
  },
  trashHoldMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 8_760 * 3_600_000,
    default: defaultLimits.trashHoldMs,
    doc: 'How long a dropped blob can still be recovered on its shard.',
  },
  stagedHoldMs: {
    kind: 'int',
    unit: 'ms',
    min: 10_000,
    max: 720 * 3_600_000,
    default: defaultLimits.stagedHoldMs,
    doc: 'How long a complete upload that nobody commits or reads is kept.',
  },
  drainMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 600_000,
    default: defaultLimits.drainMs,
    doc: 'How long requests in flight may go on when the node is asked to end.',
  },
  logLevel: {
    kind: 'string',
    default: 'info',
    pattern: [/^(trace|debug|info|warn|error|fatal|silent)$/, 'must be a level of log, from trace to silent'],
    doc: 'Least important lines that are logged.',
  },
} as const

export interface StorageNodeSettings {
  readonly config: StorageNodeConfig
  readonly logLevel: string
}

/** Throws CONFIG_INVALID with all problems. Folders come out absolute. */
export function readStorageNodeConfig(source: ConfigSource): StorageNodeSettings {
  const read = readConfig(storageNodeOptions, source, ({ node, zone, shards, replacedShards, stateFolder }) => {
    const parsed = shards.map(parseShard)
    const problems = shards
      .filter((_, i) => parsed[i] === undefined)
      .map(text => `--shard '${text}' is no id=folder[:weight]`)
    if (parseNodeId(node) === undefined) problems.push(`'${node}' cannot be the id of a node`)
    if (parseZone(zone) === undefined) problems.push(`'${zone}' cannot be the name of a zone`)
    const known = parsed.filter(shard => shard !== undefined)
    for (const text of replacedShards) {
      if (!known.some(shard => shard.id === text)) problems.push(`--replaced-shard '${text}' is no shard of this node`)
    }
    return [...problems, ...conflicts(known, resolve(stateFolder))]
  })
  return { config: toConfig(read), logLevel: read.logLevel }
}

function toConfig(read: ConfigOf<typeof storageNodeOptions>): StorageNodeConfig {
  const { clusterId, shards, replacedShards, stateFolder, node, zone, ...rest } = read
  return {
    ...rest,
    ...(clusterId === undefined ? {} : { clusterId }),
    // The check has parsed them before.
    node: parseNodeId(node) as NodeId,
    zone: parseZone(zone) as Zone,
    stateFolder: resolve(stateFolder),
    shards: shards.map(parseShard).filter(shard => shard !== undefined),
    replacedShards: replacedShards.map(parseShardId).filter(id => id !== undefined),
  }
}

/** `id=folder` or `id=folder:weight`; a colon that no number follows belongs to the folder. */
export function parseShard(text: string): ShardConfig | undefined {
  const match = /^([^=]+)=(.+?)(?::(\d{1,7}))?$/.exec(text)
  const id = parseShardId(match?.[1] ?? '')
  const weight = match?.[3] === undefined ? 100 : Number(match[3])
  if (match === null || id === undefined || weight < 1 || weight > 1_000_000) return undefined
  return { id, folder: resolve(match[2] ?? ''), weight }
}

/** Two shards in one folder, or one inside another, would be one disk that counts twice. */
function conflicts(shards: readonly ShardConfig[], stateFolder: string): string[] {
  const problems: string[] = []
  shards.forEach((shard, index) => {
    for (const other of shards.slice(index + 1)) {
      if (shard.id === other.id) problems.push(`shard '${shard.id}' is given twice`)
      if (contains(shard.folder, other.folder) || contains(other.folder, shard.folder)) {
        problems.push(`shards '${shard.id}' and '${other.id}' share a folder`)
      }
    }
    if (contains(shard.folder, stateFolder)) problems.push(`the state folder lies in shard '${shard.id}'`)
  })
  return problems
}

function contains(outer: string, inner: string): boolean {
  const path = relative(normalize(outer), normalize(inner))
  return path === '' || (path !== '..' && !path.startsWith('../') && !isAbsolute(path))
}
