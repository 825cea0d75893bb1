/** Prints the map of the topology on its command line: another process with nothing shared but the code. */
import { encodeClusterMap, PlacementView } from '../../shared/cluster-map.ts'
import { buildClusterMap, type Topology } from '../../shared/placement.ts'

const [before, after] = JSON.parse(process.argv[2] ?? '[]') as [Topology, Topology]
const map = buildClusterMap(after, buildClusterMap(before))
const view = new PlacementView(map)
console.log(JSON.stringify({ map: encodeClusterMap(map), handoffs: [0, 1, 0xabc].map(p => view.handoffs(p)) }))
