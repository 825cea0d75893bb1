/** Cluster maps on the disks of nodes and proxies that are damaged, or of another cluster: none is believed. */
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { decodeClusterMap, encodeClusterMap, sealClusterMap } from '../../shared/cluster-map.ts'
import { wirePath, type NodeStatus } from '../../shared/wire.ts'
import { startCluster } from '../support/cluster.ts'
import { askNode, waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { seededRandom } from '../support/random.ts'

type Harm = (text: string) => string

t.test(
  'a cluster map on a disk that is damaged or of another cluster is refused, and replaced by the newest',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t, { shardsPerNode: 1 })
    const client = cluster.client()
    const paths: string[] = []
    const write = async (): Promise<void> => {
      for (const size of [300, 70_000, 300_000]) {
        const path = `raw/map/${paths.length}`
        t.equal((await client.put(path, random.bytes(size))).status, 201)
        paths.push(path)
      }
    }
    await write()
    const { map } = await cluster.placement()
    const harms: readonly [string, RegExp, Harm][] = [
      [
        'a byte changed',
        /CLUSTER_MAP_INVALID/,
        text => text.replace(`"epoch":${map.epoch}`, `"epoch":${map.epoch + 1}`),
      ],
      ['cut off', /CLUSTER_MAP_INVALID/, text => text.slice(0, random.int(0, text.length - 1))],
      [
        'of another cluster, and newer',
        /another cluster/,
        text =>
          encodeClusterMap(sealClusterMap({ ...decodeClusterMap(text), clusterId: 'another', epoch: map.epoch + 50 })),
      ],
    ]
    for (const [name, said, harm] of harms) {
      const node = random.pick(cluster.nodes)
      const file = join(cluster.folder, 'nodes', node.id, 'cluster-map.json')
      const log = join(cluster.folder, 'log', `${node.id}.log`)
      await eventually('it has the map', async () => (await epochOf(node)) === map.epoch)
      await node.process.kill()
      await writeFile(file, harm(await readFile(file, 'utf8')))
      const before = (await readFile(log, 'utf8')).length
      await node.process.start()
      const startedAt = performance.now()
      await eventually(`${name}: it has the true map again`, async () => (await epochOf(node)) === map.epoch)
      figure(t, 'map-files.mended', performance.now() - startedAt, 'ms')
      t.match((await readFile(log, 'utf8')).slice(before), said, `${name}: ${node.id} says so`)
      t.equal(decodeClusterMap(await readFile(file, 'utf8')).clusterId, cluster.clusterId)
      await cluster.allNodesUp()
      await write()
    }
    const [proxy] = cluster.proxies
    const file = join(proxy!.stateFolder, 'cluster-map.json')
    for (const [name, , harm] of harms) {
      await proxy!.process.kill()
      await writeFile(file, harm(await readFile(file, 'utf8')))
      await proxy!.process.start()
      await write()
      t.equal((await cluster.placement()).map.clusterId, cluster.clusterId, `${name}: the proxy has the true one`)
    }
    for (const path of paths) t.equal((await client.get(path)).status, 200, path)
    await waitForFullCopies(cluster, paths)
    t.strictSame(cluster.crashes(), [])

    async function epochOf(node: (typeof cluster.nodes)[number]): Promise<number | undefined> {
      const { status, body } = await askNode(cluster, node, wirePath.status)
      return status === 200 ? (JSON.parse(body.toString()) as NodeStatus).epoch : undefined
    }
  },
)
