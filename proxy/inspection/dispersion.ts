/** How well spread the blobs are: how many have R copies, in how many zones. A page at a time, by digest. */
import { randomBytes } from 'node:crypto'
import { parseDigest } from '../../shared/ids.ts'
import { replicasBefore } from '../../shared/cluster-map.ts'
import { countCopies } from './census.ts'
import type { InspectionDeps } from './types.ts'

const pageSize = 1_000
/** Digests are spread evenly, so short runs from random starts are a fair sample. */
const sampleStarts = 10
const sampleRun = 100

export interface Dispersion {
  readonly replicas: number
  readonly blobs: number
  /**
   * How many blobs have 0, 1, … copies on their owners (old and new ones together while these change, but no more than wanted); of those
   * that could not all be asked, as many as answered.
   */
  readonly byCopies: number[]
  /** How many blobs have their copies in 0, 1, … zones. */
  readonly byZones: number[]
  /** Blobs of which an owner could not be asked. */
  readonly unknown: number
  /** Blobs with copies in as many zones as there can be. */
  readonly spread: number
  /** Blobs with as many copies as wanted; where owners change: as both the old and the new ones are to have. */
  readonly whole: number
  /** Partitions that are not settled, while a change of topology is under way. */
  readonly unsettled: number
  /** Pass as `after` for the next page; absent on the last one, and for a sample. */
  readonly next?: string
}

/** One page of all blobs with `after` ('' for the first), about a thousand at random without it. */
export async function dispersion(deps: InspectionDeps, after: string | undefined): Promise<Dispersion> {
  const blobs = after === undefined ? await sample(deps) : await deps.metadata.pageOfBlobs(after, pageSize)
  const view = deps.view.current()
  const { map } = view
  const zonesMax = Math.min(map.replicas, new Set(map.nodes.map(({ zone }) => zone)).size)
  const byCopies = Array.from({ length: map.copies + 1 }, () => 0)
  const byZones = Array.from({ length: map.copies + 1 }, () => 0)
  let [unknown, spread, whole] = [0, 0, 0]
  const wantedMoving = Math.min(map.replicas, replicasBefore(map))
  for (const copies of await countCopies(deps, blobs)) {
    const zones = Math.min(copies.zones, map.copies)
    byCopies[Math.min(copies.held.length, map.copies)]! += 1
    byZones[zones]! += 1
    if (copies.unknown.length > 0) unknown += 1
    if (copies.held.length >= (copies.moving ? wantedMoving : map.replicas)) whole += 1
    if (copies.zones >= (copies.moving ? Math.min(zonesMax, copies.zonesWanted) : zonesMax)) spread += 1
  }
  const last = blobs.at(-1)
  const isLast = after === undefined || last === undefined || blobs.length < pageSize
  return {
    replicas: map.replicas,
    blobs: blobs.length,
    byCopies,
    byZones,
    unknown,
    spread,
    whole,
    unsettled: view.unsettled().length,
    ...(isLast ? {} : { next: last.digest }),
  }
}

async function sample({ metadata }: Pick<InspectionDeps, 'metadata'>) {
  const first = await metadata.pageOfBlobs('', sampleStarts * sampleRun)
  if (first.length < sampleStarts * sampleRun) return first
  const starts = Array.from({ length: sampleStarts }, () => randomBytes(32).toString('hex'))
  const runs = await Promise.all(starts.map(start => metadata.pageOfBlobs(start, sampleRun)))
  return [...new Map(runs.flat().map(blob => [blob.digest, blob])).values()]
}

/** Is this what `next` may be? */
export const isPageMark = (text: string): boolean => text === '' || parseDigest(text) !== undefined
