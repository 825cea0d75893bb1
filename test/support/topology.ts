/** The topology of a test's cluster, looked at and changed as an operator does it. */
import { topology } from '../../cli/topology.ts'
import type { TopologyView } from '../../proxy/topology/topology-control.ts'
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { Cluster } from './cluster.ts'
import { eventually } from './eventually.ts'

export interface Outcome {
  readonly code: number
  readonly text: string
  readonly json: unknown
}

export async function run(
  cluster: Cluster,
  proxy: number,
  command: typeof topology,
  ...args: string[]
): Promise<Outcome> {
  const env = { HOLDFAST_URL: cluster.proxies[proxy]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  let text = ''
  const write = { out: (part: string) => void (text += part), err: (part: string) => void (text += part) }
  const code = await command({ args: [...args, '--json'], env }, write)
  return { code, text, json: JSON.parse(text) as unknown }
}

export async function view(cluster: Cluster, proxy: number): Promise<TopologyView> {
  return (await run(cluster, proxy, topology, 'show')).json as TopologyView
}

export async function settled(cluster: Cluster, proxy: number): Promise<TopologyView> {
  return eventually(
    'the change is settled',
    async () => {
      const found = await view(cluster, proxy)
      return found.change === null && found.run === null && found
    },
    { withinMs: 120_000, everyMs: 250 },
  )
}

/** The proxy keeps the map of this epoch on its disk a moment after it works by it. */
export async function placementOf(cluster: Cluster, epoch: number): Promise<PlacementView> {
  return eventually(`the map of epoch ${epoch}`, async () => {
    const found = await cluster.placement()
    return found.map.epoch >= epoch && found
  })
}
