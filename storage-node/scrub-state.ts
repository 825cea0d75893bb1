/**
 * What the scrub remembers across restarts, in `scrub.json` beside the marker: how far the pass is, what it found, and since when
 * each file has been in quarantine by the time this shard was served. Losing it costs a pass begun anew, nothing else.
 */
import { join } from 'node:path'
import { readSmallFile, replaceFile, type StoreFs } from './store-fs.ts'

export interface ScrubCounts {
  readonly startedAt: number
  readonly blobs: number
  readonly bytes: number
  /** Copies that were corrupt, missing or unreadable, and references that were damaged. */
  readonly bad: number
  /** Files without a record, moved to the trash. */
  readonly leftovers: number
}

export interface ScrubState {
  readonly paused: boolean
  /** The pass under way, and the place it has come to. */
  readonly pass?: (ScrubCounts & { readonly partition: number; readonly after?: string }) | undefined
  readonly last?: ScrubCounts & { readonly finishedAt: number }
  /** How long the shard was served since this file exists, ms. */
  readonly servedMs: number
  /** File in quarantine -> `servedMs` when it was first seen there. */
  readonly quarantined: Readonly<Record<string, number>>
}

const bytesMax = 1024 * 1024
const empty: ScrubState = { paused: false, servedMs: 0, quarantined: {} }

export async function readScrubState(fs: StoreFs, folder: string): Promise<ScrubState> {
  const content = await readSmallFile(fs, join(folder, 'scrub.json'), bytesMax)
  if (content === undefined) return empty
  try {
    const state = JSON.parse(content.toString('utf8')) as Partial<ScrubState>
    if (typeof state.servedMs !== 'number' || typeof state.quarantined !== 'object') return empty
    return { ...empty, ...state }
  } catch {
    // Rotten: the pass begins anew, and so do the holds of the quarantine.
    return empty
  }
}

export function writeScrubState(fs: StoreFs, folder: string, state: ScrubState): Promise<void> {
  return replaceFile(fs, join(folder, 'scrub.json'), Buffer.from(JSON.stringify(state)))
}

/** Bytes a second that finish a pass in time, within its bounds. The wall clock decides on nothing but this speed. */
export function scrubRate(
  { bytesLeft, elapsedMs, periodMs }: { bytesLeft: number; elapsedMs: number; periodMs: number },
  { bytesPerSecMin, bytesPerSecMax }: { bytesPerSecMin: number; bytesPerSecMax: number },
): number {
  // A part of the period is kept back for load and for nodes that are away.
  const aimMs = periodMs * 0.8
  const leftMs = Math.min(Math.max(aimMs - elapsedMs, periodMs * 0.05), aimMs)
  return Math.min(Math.max((bytesLeft / leftMs) * 1000, bytesPerSecMin), bytesPerSecMax)
}

/** Is it time for the next pass? They begin somewhat early, each shard on its own day. */
export function scrubIsDue(state: ScrubState, now: number, periodMs: number, jitter: number): boolean {
  if (state.last === undefined) return true
  const sinceMs = now - state.last.startedAt
  return sinceMs < 0 || sinceMs >= periodMs * (0.9 - 0.1 * jitter)
}
