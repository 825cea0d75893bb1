/** What an aborted change leaves behind: the weights it had set stay in the map, and the next change goes by them. Pure. */
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { shardPartitions } from '../../shared/placement/transition.ts'

/**
 * The shards whose weight says that they are to be emptied, or filled, while no change does. `weightOf`: what its node says a shard weighs.
 */
export function weightWarnings(
  map: ClusterMap,
  weightOf: (shard: string) => number | undefined = () => undefined,
): string[] {
  const partitions = shardPartitions(map)
  return map.shards.flatMap(({ id, weight, out }) => {
    const { owned = 0, leaving = 0 } = partitions.get(id) ?? {}
    if (weight === 0 && out === undefined && owned > 0) {
      const usual = weightOf(id) ?? '<number>'
      return [`${id} has weight 0 and ${owned} partitions: the next change moves them; 'shard reweight ${id} --weight ${usual}' keeps them`] // prettier-ignore
    }
    if (weight > 0 && owned + leaving === 0) {
      return [`${id} has weight ${weight} and no partitions: the next change fills it; 'shard remove ${id}' takes it out of the cluster`] // prettier-ignore
    }
    return []
  })
}
