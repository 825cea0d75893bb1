/** What the moving of a partition works with (move-partition.ts, move-references.ts). */
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { NodeClients } from '../routing/node-client.ts'
import type { ReferenceStore } from '../routing/types.ts'
import type { Calm } from './calm.ts'
import type { Term } from './primary.ts'
import type { Copy } from './unnamed-blobs.ts'

/** Rounds of comparing and copying, up to one that found nothing to copy; writers at work make a third one rare. */
export const roundsMax = 5

export interface Copied {
  readonly blobs: number
  readonly bytes: number
  readonly references: number
}

export interface MoveDeps {
  readonly clients: Pick<NodeClients, 'ofShard'>
  readonly references: Pick<ReferenceStore, 'appendTo'>
  readonly view: () => PlacementView
  readonly calm: Pick<Calm, 'step' | 'spent'>
  /** `primary:17` */
  readonly fence: string
  /** Aborts when the run has ended; read before each step. */
  readonly term: Pick<Term, 'signal'>
  /** Which of these copies nothing names any more (they leave, fenced off) and which are being purged: neither is brought anywhere. */
  readonly unwanted: <One extends Copy>(
    copies: readonly One[],
  ) => Promise<{ readonly unnamed: readonly One[]; readonly purging: readonly One[] }>
  /** Resolves when the shard may get so many bytes more; before each command that brings it blobs. */
  readonly turn: (shard: ShardId, bytes: number) => Promise<void>
  /** After each command; resolves when the next one may begin. */
  readonly onCopied: (copied: Copied) => Promise<void>
}

/** The same items, beginning elsewhere: so that the first ones are not always asked first. */
export function rotated<Item>(items: readonly Item[], by: number): Item[] {
  const turn = items.length === 0 ? 0 : by % items.length
  return [...items.slice(turn), ...items.slice(0, turn)]
}
