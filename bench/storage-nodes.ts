/** Storage nodes for a bench, as `holdfast storage-node` runs them, filled over the wire without a proxy. */
import { spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { request } from 'undici'
import { tryPort } from '../cli/cluster-folder.ts'
import type { ShardId } from '../shared/ids.ts'
import { BlockCrcs, encodeRecord, inlineBlobBytesMax } from '../shared/record.ts'
import { type AppendAnswer, type BlobKey, type CommitRequest, wireAuthorization, wirePath } from '../shared/wire.ts'

export const secret = randomBytes(24).toString('hex')
/** Nodes that belong to no other cluster. */
const benchCluster = { secret, clusterId: 'bench' }

export interface Node {
  readonly url: string
  readonly shard: ShardId
  readonly process: ChildProcess
  readonly secret: string
}

export interface BlobBody extends BlobKey {
  readonly body: Buffer
}

/** Resolves when the blobs are durable on the node. */
export async function put(node: Node, blobs: readonly BlobBody[]): Promise<void> {
  const small = blobs.filter(({ body }) => body.length <= inlineBlobBytesMax)
  const frames = small.flatMap(({ body, ...key }) => [
    Buffer.of(node.shard.length),
    Buffer.from(node.shard),
    encodeRecord({ kind: 'blob', ...key, bytes: body.length, crc: crc32(body), time: Date.now() }, body),
  ])
  if (small.length > 0) {
    const { results } = (await call(node, 'POST', wirePath.append, Buffer.concat(frames))) as AppendAnswer
    if (results.some(result => result !== 'ok')) throw new Error(`not appended: ${JSON.stringify(results[0])}`)
  }
  for (const { body, ...key } of blobs) {
    if (body.length <= inlineBlobBytesMax) continue
    const id = `u${randomBytes(25).toString('hex').slice(0, 25)}`
    const crcs = new BlockCrcs()
    crcs.update(body)
    const order: CommitRequest = { ...key, bytes: body.length, blockCrcs: crcs.finish().toString('base64') }
    await call(node, 'PUT', wirePath.upload(node.shard, id), body)
    await call(node, 'POST', wirePath.commit(node.shard, id), JSON.stringify(order))
  }
}

export async function call(
  node: Pick<Node, 'url' | 'secret'>,
  method: string,
  path: string,
  body?: string | Buffer,
): Promise<unknown> {
  const headers = { authorization: wireAuthorization(node.secret), 'holdfast-fence': 'primary:1' }
  const options = { method, headers, headersTimeout: 600_000, ...(body === undefined ? {} : { body }) }
  const answer = await request(node.url + path, options)
  const value: unknown = await answer.body.json()
  if (answer.statusCode !== 200) throw new Error(`${method} ${path}: ${answer.statusCode} ${JSON.stringify(value)}`)
  return value
}

/** Resolves when it answers. Its zone is called like itself, its shard `<id>-1`. */
export async function startNode(folder: string, id: string, cluster = benchCluster): Promise<Node> {
  const port = (await tryPort(0)) ?? 0
  const shard = `${id}-1` as ShardId
  const flags = {
    '--node': id,
    '--zone': id,
    '--cluster-id': cluster.clusterId,
    '--host': '127.0.0.1',
    '--port': String(port),
    '--state-folder': join(folder, id, 'state'),
    '--shard': `${shard}=${join(folder, id, 'shard')}`,
    '--log-level': 'warn',
  }
  const main = join(import.meta.dirname, '..', 'cli', 'main.js')
  await mkdir(join(folder, id, 'shard'), { recursive: true })
  const child = spawn(process.execPath, [main, 'storage-node', ...Object.entries(flags).flat()], {
    stdio: ['ignore', 'inherit', 'inherit'],
    // As many threads for disks as `holdfast up` gives them.
    env: { UV_THREADPOOL_SIZE: '12', ...process.env, HOLDFAST_SECRET: cluster.secret },
  })
  const node = { url: `http://127.0.0.1:${port}`, shard, process: child, secret: cluster.secret }
  const deadline = Date.now() + 20_000
  for (;;) {
    const isUp = await call(node, 'GET', wirePath.status).catch(() => undefined) // not listening yet
    if (isUp !== undefined) return node
    if (Date.now() > deadline || child.exitCode !== null) throw new Error(`node ${id} does not start`)
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

export async function stop({ process: child }: Node): Promise<void> {
  if (child.exitCode !== null) return
  child.kill('SIGTERM')
  await new Promise(resolve => child.once('exit', resolve))
}
