import { decodeClusterMap, encodeClusterMap, type ClusterMap } from '../../shared/cluster-map.ts'
import type { Database } from './database.ts'
import { fenced } from './leaders.ts'
import { statement } from './statement.ts'

/** Older maps are kept for people to look at. */
const mapsKept = 100

const load = statement<{ map: string }>(
  'load-newer-cluster-map',
  'SELECT map FROM cluster_maps WHERE epoch > $1 ORDER BY epoch DESC LIMIT 1',
)
const publish = statement<{ epoch: number }>(
  'publish-cluster-map',
  `WITH forgotten AS (DELETE FROM cluster_maps WHERE epoch <= $1::bigint - ${mapsKept})
  INSERT INTO cluster_maps (epoch, map) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM cluster_maps WHERE epoch >= $1)
  RETURNING epoch`,
)

/** Only one that is newer than this epoch is fetched and decoded: every worker asks every few seconds. */
export async function loadClusterMap(database: Database, newerThan: number): Promise<ClusterMap | undefined> {
  const [row] = await database.query(load, [newerThan])
  return row && decodeClusterMap(row.map)
}

export function publishClusterMap(database: Database, map: ClusterMap, token: number): Promise<boolean> {
  return fenced(
    database,
    token,
    async transaction => (await transaction.query(publish, [map.epoch, encodeClusterMap(map)])).length > 0,
    'exclusive',
  )
}
