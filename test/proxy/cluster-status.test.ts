import t from 'tap'
import { clusterStatus, type StatusParts } from '../../proxy/cluster-status.ts'
import { buildClusterMap } from '../../shared/placement.ts'
import { evenSpec, topologyOf } from '../shared/topologies.ts'

t.test('a database that is kept out of use is told from one that does not answer', async t => {
  const told = async (problem: string | undefined) => {
    const parts = {
      metadata: { countRepairs: async () => Promise.reject(new Error('away')) },
      coordinator: {
        members: async () => Promise.resolve([]),
        holder: async () => Promise.resolve(undefined),
        state: () => ({ up: true }),
        driver: 'redis',
      },
      view: { current: () => ({ map: buildClusterMap(topologyOf(evenSpec(3, 1))) }) },
      health: { nodes: () => [] },
      resolver: { metadataAvailable: false },
      jobControl: { list: async () => Promise.resolve([]) },
      gate: { problem },
    } as unknown as StatusParts
    return (await clusterStatus(parts)).postgres
  }
  t.same(await told('it is older than the shards'), { up: false, reason: 'it is older than the shards' })
  t.same(await told(undefined), { up: false, reason: 'no answer' })
})
