/** Looks at the storage nodes directly, past every proxy: who really holds what? */
import { hash } from 'node:crypto'
import { request } from 'undici'
import type { PlacementView } from '../../shared/cluster-map.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionOf } from '../../shared/partition.ts'
import type { ReferencedBlob, ReferenceRecord } from '../../shared/record.ts'
import { wirePath, type NodeStatus, type ShardState, type UnconfirmedAnswer } from '../../shared/wire.ts'
import { replicas, type Cluster, type NodeHandle } from './cluster.ts'
import { eventually } from './eventually.ts'

export interface Copies {
  readonly path: string
  /** The newest reference any shard has; undefined: none. */
  readonly newest: ReferenceRecord | undefined
  /** Shards that have it. */
  readonly references: readonly ShardId[]
  readonly referenceOwners: readonly ShardId[]
  /** Shards from which the blob's bytes were read, complete and with the right digest. */
  readonly blobs: readonly ShardId[]
  readonly blobOwners: readonly ShardId[]
  /** Shards that have the blob, but not these bytes. */
  readonly corrupt: readonly ShardId[]
}

/** Asks every shard of every running node. `path` is `<repository>/<path>`. */
export async function verifyCopies(cluster: Cluster, path: string, known?: PlacementView): Promise<Copies> {
  const slash = path.indexOf('/')
  const partition = partitionOf(path.slice(0, slash), path.slice(slash + 1))
  const placement = known ?? (await cluster.placement())
  const found = await eachShard(cluster, (node, shard) => findReference(cluster, node, shard, partition, path))
  const newest = found.map(one => one.answer).reduce(newer, undefined)
  const references = found.filter(one => one.answer?.version === newest?.version).map(one => one.shard)
  const owners = placement.owners(partition)
  const common = { path, newest, references: newest === undefined ? [] : references, referenceOwners: owners }
  const blob = newest?.blob
  if (blob === undefined) return { ...common, blobs: [], blobOwners: [], corrupt: [] }
  const held = await eachShard(cluster, (node, shard) => readBlob(cluster, node, shard, blob))
  const blobs = held.filter(one => one.answer === 'held').map(one => one.shard)
  const corrupt = held.filter(one => one.answer === 'corrupt').map(one => one.shard)
  return { ...common, blobs, blobOwners: placement.owners(blob.partition), corrupt }
}

/** What is missing for R good copies of blob and reference on their owners; undefined: nothing. */
export function missingCopies(copies: Copies): string | undefined {
  const { path, newest, references, referenceOwners, blobs, blobOwners, corrupt } = copies
  const problems: string[] = []
  const lacking = referenceOwners.filter(owner => !references.includes(owner))
  if (newest === undefined || lacking.length > 0) problems.push(`no reference on ${lacking.join(', ')}`)
  const without = blobOwners.filter(owner => !blobs.includes(owner))
  if (without.length > 0) problems.push(`no copy on ${without.join(', ')}`)
  if (newest?.blob !== undefined && blobOwners.length < replicas) problems.push(`only ${blobOwners.length} owners`)
  if (corrupt.length > 0) problems.push(`wrong bytes on ${corrupt.join(', ')}`)
  return problems.length === 0 ? undefined : `${path}: ${problems.join('; ')}`
}

/** Resolves when every path has R good copies of its blob and its newest reference; rejects with what is missing. */
export async function waitForFullCopies(cluster: Cluster, paths: Iterable<string>, withinMs = 60_000): Promise<void> {
  let left = [...paths]
  await eventually(
    `full copies of ${left.length} paths`,
    async () => {
      const problems = await checkAll(cluster, left)
      left = [...problems.keys()]
      if (left.length === 0) return true
      throw new Error([...problems.values()].slice(0, 5).join('\n') + `\n(${left.length} paths)`)
    },
    { withinMs, everyMs: 250 },
  )
}

async function checkAll(cluster: Cluster, paths: readonly string[]): Promise<Map<string, string>> {
  const problems = new Map<string, string>()
  const queue = [...paths]
  const placement = await cluster.placement()
  const worker = async (): Promise<void> => {
    for (let path = queue.pop(); path !== undefined; path = queue.pop()) {
      const problem = missingCopies(await verifyCopies(cluster, path, placement))
      if (problem !== undefined) problems.set(path, problem)
    }
  }
  await Promise.all(Array.from({ length: 4 }, worker))
  return problems
}

/** GET of a path of the wire, straight from the node; a node that does not answer counts as 0. */
export async function askNode(
  cluster: Cluster,
  node: NodeHandle,
  path: string,
): Promise<{ status: number; body: Buffer }> {
  try {
    const answer = await request(node.url + path, {
      headers: { authorization: cluster.authorization },
      signal: AbortSignal.timeout(10_000),
    })
    return { status: answer.statusCode, body: Buffer.from(await answer.body.arrayBuffer()) }
  } catch {
    return { status: 0, body: Buffer.alloc(0) }
  }
}

/** Of the node's first shard; undefined: the node does not say. */
export async function shardState(cluster: Cluster, node: NodeHandle): Promise<ShardState | undefined> {
  const { status, body } = await askNode(cluster, node, wirePath.status)
  return status === 200 ? (JSON.parse(body.toString()) as NodeStatus).shards[0]?.state : undefined
}

/** Of all nodes that answer: shards of which it is not known yet that they have all that they should. */
export async function recoveringShards(cluster: Cluster): Promise<readonly ShardId[]> {
  const statuses = await Promise.all(cluster.nodes.map(async node => askNode(cluster, node, wirePath.status)))
  return statuses
    .filter(({ status }) => status === 200)
    .flatMap(({ body }) => (JSON.parse(body.toString()) as NodeStatus).shards)
    .flatMap(({ id, recovering }) => (recovering === undefined ? [] : [id]))
}

/** Until then what is absent is 503 without PostgreSQL, which only a cluster's first seconds show. */
export async function waitUntilWhole(cluster: Cluster): Promise<void> {
  await eventually('no shard is recovering', async () => (await recoveringShards(cluster)).length === 0, {
    withinMs: 60_000,
  })
}

async function eachShard<Answer>(
  cluster: Cluster,
  ask: (node: NodeHandle, shard: ShardId) => Promise<Answer>,
): Promise<{ shard: ShardId; answer: Answer }[]> {
  const shards = cluster.nodes
    .filter(({ process }) => process.running)
    .flatMap(node => node.shards.map(shard => ({ node, shard })))
  return Promise.all(shards.map(async ({ node, shard }) => ({ shard: shard.id, answer: await ask(node, shard.id) })))
}

async function findReference(
  cluster: Cluster,
  node: NodeHandle,
  shard: ShardId,
  partition: number,
  key: string,
): Promise<ReferenceRecord | undefined> {
  const url = `${wirePath.references(shard, partition)}?key=${encodeURIComponent(key)}`
  const { status, body } = await askNode(cluster, node, url)
  return status === 200 ? (JSON.parse(body.toString()) as ReferenceRecord) : undefined
}

async function readBlob(
  cluster: Cluster,
  node: NodeHandle,
  shard: ShardId,
  { digest, generation, partition }: ReferencedBlob,
): Promise<'held' | 'corrupt' | 'missing'> {
  const { status, body } = await askNode(cluster, node, wirePath.blob(shard, partition, digest, generation))
  if (status !== 200) return 'missing'
  return hash('sha256', body) === digest ? 'held' : 'corrupt'
}

function newer(a: ReferenceRecord | undefined, b: ReferenceRecord | undefined): ReferenceRecord | undefined {
  if (a === undefined || b === undefined) return a ?? b
  return b.version > a.version ? b : a
}

/** Blobs that no reference ever named, over all shards. */
export async function unconfirmed(cluster: Cluster): Promise<readonly { digest: string }[]> {
  const pages = await Promise.all(
    cluster.nodes.flatMap(node =>
      node.shards.map(async ({ id }) => {
        const { status, body } = await askNode(cluster, node, `${wirePath.unconfirmed(id)}?olderThanMs=0&limit=1000`)
        if (status !== 200) throw new Error(`${id}: ${status}`)
        return (JSON.parse(body.toString()) as UnconfirmedAnswer).blobs
      }),
    ),
  )
  return pages.flat()
}
