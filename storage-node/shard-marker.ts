/**
 * `holdfast.json` in a shard's folder says whose it is. It is what tells an empty new disk from a disk that is not mounted,
 * and a disk from another one put into its place.
 */
import { join } from 'node:path'
import { HoldfastError } from '../shared/errors.ts'
import { readSmallFile, replaceFile, type StoreFs } from './store-fs.ts'

/**
 * How the shard is written. A release refuses a shard of a format that it does not know, rather than read it wrong.
 *
 *   1   as the first release wrote it
 *   2   its log was compacted: drops stand behind copies they do not mean (`DropRecord.before`), which a reader of format 1 would drop
 */
export type ShardFormat = 1 | 2

export interface ShardMarker {
  readonly format: ShardFormat
  readonly clusterId: string
  readonly node: string
  readonly shard: string
  /** Random, given when the disk was set up: tells a new disk from the one it replaces. */
  readonly disk?: string
  /** It was set up empty, or has lost a reference, and may lack what it should have; random, for each time that this began. */
  readonly recovering?: string
}

const markerName = 'holdfast.json'
const markerBytesMax = 4096
const newestFormat = 2

/** The marker, or undefined if there is none. SHARD_FAILED when it is not readable as one. */
export async function readMarker(fs: StoreFs, folder: string): Promise<ShardMarker | undefined> {
  const content = await readSmallFile(fs, join(folder, markerName), markerBytesMax)
  if (content === undefined) return undefined
  let found: unknown
  try {
    const marker = JSON.parse(content.toString('utf8')) as Partial<ShardMarker>
    const { format, clusterId, node, shard, disk, recovering } = marker
    found = format
    if (
      (format === 1 || format === 2) &&
      typeof clusterId === 'string' &&
      typeof node === 'string' &&
      typeof shard === 'string'
    ) {
      const known = { format, clusterId, node, shard, ...(typeof disk === 'string' ? { disk } : {}) }
      return typeof recovering === 'string' ? { ...known, recovering } : known
    }
  } catch (cause) {
    throw new HoldfastError('SHARD_FAILED', 'marker file is damaged', { folder }, { cause })
  }
  const isNewer = typeof found === 'number' && found > newestFormat
  const why = isNewer
    ? `the shard has format ${String(found)}, and this release reads up to ${newestFormat}: a newer release has written it`
    : 'marker file is of another format'
  throw new HoldfastError('SHARD_FAILED', why, { folder })
}

export async function writeMarker(fs: StoreFs, folder: string, marker: ShardMarker): Promise<void> {
  await replaceFile(fs, join(folder, markerName), Buffer.from(`${JSON.stringify(marker, null, 2)}\n`))
}

/** In what a marker differs from the expected one, or undefined. */
export function markerProblem(found: ShardMarker | undefined, expected: ShardMarker): string | undefined {
  if (found === undefined)
    return 'marker file is missing: is the disk mounted? (a new one in its place: --replaced-shard)'
  for (const field of ['clusterId', 'node', 'shard'] as const) {
    if (found[field] !== expected[field]) return `marker names ${field} ${found[field]}, not ${expected[field]}`
  }
  return undefined
}
