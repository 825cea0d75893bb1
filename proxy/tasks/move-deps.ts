/** What the moving of a partition works with (move-partition.ts, move-references.ts). */
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { Copied, MoveCalls } from './move-calls.ts'

/** Rounds of comparing and copying, up to one that found nothing to copy; writers at work make a third one rare. */
export const roundsMax = 5

export interface MoveDeps {
  readonly calls: Pick<
    MoveCalls,
    'names' | 'records' | 'referencesPage' | 'touch' | 'drop' | 'pull' | 'append' | 'judge'
  >
  readonly view: () => PlacementView
  /** After references were brought; resolves when the next ones may be. */
  readonly onCopied: (copied: Copied) => Promise<void>
}

/** The same items, beginning elsewhere: so that the first ones are not always asked first. */
export function rotated<Item>(items: readonly Item[], by: number): Item[] {
  const turn = items.length === 0 ? 0 : by % items.length
  return [...items.slice(turn), ...items.slice(0, turn)]
}
