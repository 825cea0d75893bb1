/** Disks and clocks. */
import { fillDisk, resizeDisk, tamperWithDisk, type DiskFault } from '../support/disks.ts'
import { shardState } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import type { Fault, World } from './world.ts'

/** Of the disk that can be full. Room for what half an hour leaves behind; memory is taken only by what is there. */
export const smallDiskSize = '4g'

/** A node reads its disk's state every few seconds, and believes in a mended one only after a trial. */
const mendedMs = 60_000

export function diskFaults(world: World): Fault[] {
  const { cluster, random, smallDisk, flushes, t } = world
  const node = random.pick(cluster.nodes)
  const isWell = (id: string) => async () => (await shardState(cluster, cluster.node(id))) === 'ok'
  const tampered = (name: string, fault: DiskFault): Fault => {
    let mend = async (): Promise<void> => {}
    return {
      name: `${node.id}: ${name}`,
      mayRefuse: 'nothing',
      begin: async () => void (mend = await tamperWithDisk(t, node.process.pid, fault)),
      end: async () => {
        await mend()
        await eventually(`the disk of ${node.id} is used again`, isWell(node.id), { withinMs: mendedMs })
      },
    }
  }
  const faults = flushes ? [tampered('a slow disk', { delayMs: 300 }), tampered('flushes fail', { error: 'EIO' })] : []
  if (smallDisk === undefined) return faults
  const { folder, node: id } = smallDisk
  const full: Fault = {
    name: `${id}: a full disk`,
    mayRefuse: 'nothing',
    begin: () => fillDisk(folder),
    end: async () => {
      await resizeDisk(folder, smallDiskSize)
      await eventually(`the disk of ${id} is used again`, isWell(id), { withinMs: mendedMs })
    },
  }
  return [...faults, full]
}

/** Two days to and fro, of one process. */
export function clockFaults({ cluster, random, clocks }: World): Fault[] {
  if (clocks === undefined) return []
  const { id } = random.pick([...cluster.nodes, ...cluster.proxies])
  return [48, -48].map(hours => ({
    name: `${id}: clock ${hours < 0 ? '-' : '+'}48 h`,
    mayRefuse: 'nothing',
    begin: () => clocks.shift(id, hours),
    end: () => clocks.shift(id, 0),
  }))
}
