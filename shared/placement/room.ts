/** Is there room for what a change of topology brings to each shard? Pure. */

/** What a shard's node reports of it, in bytes. */
export interface ShardRoom {
  readonly bytesTotal: number
  readonly bytesFree: number
  /** Below this the shard is full; absent: its node is of an older release. */
  readonly bytesFreeMin?: number
}

/** Nodes of older releases do not say; this is their default. */
const keptRatio = 0.05

/**
 * One sentence for each shard that the copies would fill into its reserve, with the bytes needed and free. What a shard gives away does not
 * count: it is free only days later. A shard without a report, or one whose disk has not been
 * measured, is left out; nothing is known of it.
 */
export function roomProblems(
  needed: ReadonlyMap<string, number>,
  rooms: ReadonlyMap<string, ShardRoom>,
): readonly string[] {
  return [...needed]
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .flatMap(([shard, bytes]) => {
      const room = rooms.get(shard)
      if (room === undefined || room.bytesTotal === 0 || bytes <= 0) return []
      const kept = room.bytesFreeMin ?? Math.ceil(room.bytesTotal * keptRatio)
      if (room.bytesFree - bytes >= kept) return []
      return `shard ${shard} has no room: about ${bytes} bytes would be copied to it, ${room.bytesFree} bytes are free, of which ${kept} must stay free`
    })
}
