/** What really lies in the folders of a cluster's shards. */
import { open, readdir, readFile } from 'node:fs/promises'
import { join, relative } from 'node:path'
import type { Cluster, ShardHandle } from './cluster.ts'

/** Paths of all files and folders below the shard, relative to it. */
export async function shardFiles(shard: ShardHandle): Promise<string[]> {
  const entries = await readdir(shard.folder, { recursive: true, withFileTypes: true })
  return entries.map(entry => relative(shard.folder, join(entry.parentPath, entry.name))).sort()
}

/** Files of blobs of the cluster, as `<shard>/blobs/<ppp>/<digest>.<generation>`. */
export async function blobFiles(cluster: Cluster): Promise<string[]> {
  const found = await Promise.all(
    cluster.nodes
      .flatMap(node => node.shards)
      .map(async shard =>
        (await shardFiles(shard)).filter(name => /^blobs\/.+\//.test(name)).map(name => `${shard.id}/${name}`),
      ),
  )
  return found.flat()
}

/** What uploads in flight, or leftovers of them, there are. */
export async function stagedFiles(cluster: Cluster): Promise<string[]> {
  const found = await Promise.all(
    cluster.nodes
      .flatMap(node => node.shards)
      .map(async shard =>
        (await shardFiles(shard)).filter(name => /^tmp\/u/.test(name)).map(name => `${shard.id}/${name}`),
      ),
  )
  return found.flat()
}

const blobName = '[0-9a-f]{3}/[0-9a-f]{64}\\.[0-9a-z]{12}'
const known = [
  /^holdfast\.json$/,
  /^(log|blobs|index|tmp|trash|quarantine)$/,
  /^reserve$/,
  /^scrub\.json(\.new)?$/,
  /^log\/\d+\.log$/,
  /^blobs\/[0-9a-f]{3}$/,
  new RegExp(`^blobs/${blobName}$`),
  /^index\/(\d+\.(log|ldb|sst|dbtmp)|CURRENT|LOCK|LOG|LOG\.old|MANIFEST-\d+)$/,
  /^tmp\/(u[0-9a-z]{25}|\.probe)$/,
  /^trash\/\d{4}-\d\d-\d\dT\d\d:\d\d$/,
  /^(trash\/[\dT:-]+|quarantine)\/[0-9a-f]{3}[./-]?[0-9a-f]{64}\.[0-9a-z]{12}[0-9TZ:.-]*$/,
  /^(trash\/[\dT:-]+|quarantine)\/[0-9a-f]{64}\.[0-9a-z]{12}[0-9TZ:.-]*$/,
]

/** Names that no rule of the storage layout explains: something of a request became a file name (I40). */
export async function strangeNames(cluster: Cluster): Promise<string[]> {
  const strange: string[] = []
  for (const shard of cluster.nodes.flatMap(node => node.shards)) {
    for (const name of await shardFiles(shard)) {
      if (!known.some(pattern => pattern.test(name))) strange.push(`${shard.id}: ${name}`)
    }
  }
  return strange
}

/** Flips a bit of these bytes, wherever in the shard's folder they stand. False: they are not there. */
export async function flipBit(shard: ShardHandle, body: Buffer, at: number): Promise<boolean> {
  for (const part of ['blobs', 'log']) {
    for (const name of await readdir(join(shard.folder, part), { recursive: true })) {
      const path = join(shard.folder, part, name)
      const content = await readFile(path).catch(() => Buffer.alloc(0))
      const start = content.indexOf(body)
      if (start < 0) continue
      const handle = await open(path, 'r+')
      await handle.write(Buffer.from([content[start + at]! ^ (1 << (at % 8))]), 0, 1, start + at)
      await handle.close()
      return true
    }
  }
  return false
}
