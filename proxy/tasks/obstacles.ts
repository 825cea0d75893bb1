/** Why partitions on the move cannot be settled yet, counted for the people who wait. Pure. */
import type { ShardId } from '../../shared/ids.ts'

/** What keeps one partition from being settled in this pass. */
export interface Obstacle {
  /** One of few: partitions are counted by it. */
  readonly reason: string
  /** Shards that it is about; none where it is nobody's fault. */
  readonly shards: readonly ShardId[]
}

/** Names in one line; a whole zone may be away. */
const namedMax = 8

export interface WaitingReason {
  readonly reason: string
  readonly partitions: number
  readonly shards: readonly ShardId[]
}

/** The commonest reason first. */
export function tallyOf(obstacles: readonly Obstacle[]): readonly WaitingReason[] {
  const found = new Map<string, { partitions: number; shards: Set<ShardId> }>()
  for (const { reason, shards } of obstacles) {
    const one = found.get(reason) ?? { partitions: 0, shards: new Set() }
    found.set(reason, one)
    one.partitions += 1
    for (const shard of shards) one.shards.add(shard)
  }
  return [...found]
    .map(([reason, { partitions, shards }]) => ({ reason, partitions, shards: [...shards].sort() }))
    .sort((one, other) => other.partitions - one.partitions || (one.reason < other.reason ? -1 : 1))
}

/** `12 partitions wait: 10 old owners do not answer (n1-0, n2-0), 2 …`; empty when none waits. */
export function waitingText(tally: readonly WaitingReason[]): string {
  if (tally.length === 0) return ''
  const all = tally.reduce((sum, { partitions }) => sum + partitions, 0)
  const parts = tally.map(({ reason, partitions, shards }) => {
    const more = shards.length > namedMax ? `, ${shards.length - namedMax} more` : ''
    const names = shards.length === 0 ? '' : ` (${shards.slice(0, namedMax).join(', ')}${more})`
    return `${tally.length > 1 ? `${partitions} ` : ''}${reason}${names}`
  })
  return `${all} ${all === 1 ? 'partition waits' : 'partitions wait'}: ${parts.join('; ')}`
}
