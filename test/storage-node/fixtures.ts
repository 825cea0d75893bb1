/** Nodes to test against: real files, real HTTP. */
import { createHash, hash, randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { type Logger, pino } from 'pino'
import type { Test } from 'tap'
import { Agent, type Dispatcher, request } from 'undici'
import {
  type Digest,
  type Generation,
  newGeneration,
  type NodeId,
  parseNodeId,
  parseShardId,
  parseZone,
  type ShardId,
} from '../../shared/ids.ts'
import { partitionOf } from '../../shared/partition.ts'
import { BlockCrcs, encodeRecord, type ReferenceRecord } from '../../shared/record.ts'
import {
  type NodeStatus,
  type AppendAnswer,
  type CommitRequest,
  type UploadAnswer,
  wireAuthorization,
  wirePath,
} from '../../shared/wire.ts'
import type { StorageNodeConfig } from '../../storage-node/config.ts'
import { type RunningStorageNode, runStorageNode } from '../../storage-node/main.ts'
import type { Clock } from '../../storage-node/shard.ts'
import type { StoreFs } from '../../storage-node/store-fs.ts'

export const secret = 'a secret for tests only'
export const clusterId = 'test-cluster'

export const quiet: Logger = pino({ level: process.env['HOLDFAST_TEST_LOG_LEVEL'] ?? 'silent' })

export const shardA = parseShardId('a-1') as ShardId
export const shardB = parseShardId('a-2') as ShardId

export function nodeConfig(folder: string, changes: Partial<StorageNodeConfig> = {}): StorageNodeConfig {
  return {
    node: parseNodeId('a') as NodeId,
    zone: parseZone('zone-a') ?? never(),
    clusterId,
    host: '127.0.0.1',
    port: 0,
    secret,
    stateFolder: join(folder, 'state'),
    shards: [shardA, shardB].map(id => ({ id, folder: join(folder, id), weight: 1 })),
    reserveBytes: 0,
    ...changes,
  }
}

/** A running node; closed with the test, and only then its folder is removed: tap's own would go before, under the node's hands. */
export async function startNode(
  t: Test,
  changes: Partial<StorageNodeConfig> = {},
  deps: { fs?: StoreFs; clock?: Clock; folder?: string } = {},
): Promise<RunningStorageNode & { client: NodeClient; folder: string }> {
  const { folder: given, ...rest } = deps
  const folder = given ?? (await mkdtemp(join(tmpdir(), 'hf-node-')))
  const running = await runStorageNode(nodeConfig(folder, changes), quiet, rest)
  const client = new NodeClient(running.url)
  t.teardown(async () => {
    await client.close()
    await running.close(0)
    if (given === undefined) await rm(folder, { recursive: true })
  })
  return { ...running, client, folder }
}

/** The shard, whose disk is new, is told that it has all that it should. */
export async function recovered(client: NodeClient, shard: ShardId): Promise<void> {
  const { shards } = (await client.call('GET', wirePath.status)).json as unknown as NodeStatus
  const recovering = shards.find(({ id }) => id === shard)?.recovering
  await client.post(wirePath.recovered(shard), { recovering }, { 'holdfast-fence': 'primary:1' })
}

export interface TestBlob {
  readonly partition: number
  readonly digest: Digest
  readonly generation: Generation
  readonly bytes: number
  readonly body: Buffer
}

export function testBlob(body: Buffer | number, partition = 0x0a3): TestBlob {
  const content = typeof body === 'number' ? randomBytes(body) : body
  const digest = hash('sha256', content) as Digest
  return { partition, digest, generation: newGeneration(), bytes: content.length, body: content }
}

export function blobFrame({ body, ...blob }: TestBlob, time = Date.now()): Buffer {
  return encodeRecord({ kind: 'blob', ...blob, crc: crc32(body), time }, body)
}

export function testReference(path: string, version: number, blob?: TestBlob): ReferenceRecord {
  const repository = 'raw'
  const common = { kind: 'reference', partition: partitionOf(repository, path), repository, path, version } as const
  const facts = { incarnation: 'one', time: 1_700_000_000_000, user: 'admin' }
  if (blob === undefined) return { ...common, op: 'delete', ...facts }
  const { partition, digest, generation, bytes, body } = blob
  const md5 = createHash('md5').update(body).digest('hex')
  const sha1 = createHash('sha1').update(body).digest('hex')
  return { ...common, op: 'put', ...facts, blob: { partition, digest, generation, bytes, md5, sha1 } }
}

export function uploadId(): string {
  return `u${randomBytes(25).toString('hex').slice(0, 25)}`
}

export function blockCrcs(body: Buffer): Buffer {
  const crcs = new BlockCrcs()
  crcs.update(body)
  return crcs.finish()
}

export interface Answer {
  readonly status: number
  readonly headers: Record<string, string | string[] | undefined>
  readonly body: Buffer
  /** The body as JSON. */
  readonly json: Record<string, unknown>
}

/** Speaks the wire as a proxy would. */
export class NodeClient {
  readonly url: string
  readonly #agent: Agent

  constructor(url: string, connections = 32) {
    this.url = url
    this.#agent = new Agent({ connections, headersTimeout: 20_000, bodyTimeout: 20_000 })
  }

  async call(
    method: string,
    path: string,
    body?: Dispatcher.RequestOptions['body'],
    headers: Record<string, string> = {},
  ): Promise<Answer> {
    const answer = await request(this.url + path, {
      method,
      headers: { authorization: wireAuthorization(secret), ...headers },
      ...(body === undefined ? {} : { body }),
      dispatcher: this.#agent,
    })
    const bytes = Buffer.from(await answer.body.arrayBuffer())
    return {
      status: answer.statusCode,
      headers: answer.headers,
      body: bytes,
      get json() {
        return JSON.parse(bytes.toString('utf8')) as Record<string, unknown>
      },
    }
  }

  post(path: string, value: unknown, headers: Record<string, string> = {}): Promise<Answer> {
    return this.call('POST', path, JSON.stringify(value), headers)
  }

  async append(...items: [ShardId, Buffer][]): Promise<AppendAnswer['results']> {
    const body = Buffer.concat(
      items.flatMap(([shard, frame]) => [Buffer.from([shard.length]), Buffer.from(shard), frame]),
    )
    const answer = await this.call('POST', wirePath.append, body)
    if (answer.status !== 200) throw new Error(`append: ${answer.status} ${answer.body.toString()}`)
    return (answer.json as unknown as AppendAnswer).results
  }

  async appendBlob(shard: ShardId, blob: TestBlob, time?: number): Promise<AppendAnswer['results'][number]> {
    return (await this.append([shard, blobFrame(blob, time)]))[0] ?? never()
  }

  async appendReference(shard: ShardId, record: ReferenceRecord): Promise<AppendAnswer['results'][number]> {
    return (await this.append([shard, encodeRecord(record)]))[0] ?? never()
  }

  get(shard: ShardId, blob: TestBlob, headers: Record<string, string> = {}): Promise<Answer> {
    return this.call('GET', wirePath.blob(shard, blob.partition, blob.digest, blob.generation), undefined, headers)
  }

  async upload(shard: ShardId, id: string, body: Buffer): Promise<UploadAnswer> {
    const answer = await this.call('PUT', wirePath.upload(shard, id), body)
    if (answer.status !== 200) throw new Error(`upload: ${answer.status} ${answer.body.toString()}`)
    return answer.json as unknown as UploadAnswer
  }

  commit(shard: ShardId, id: string, { body, ...blob }: TestBlob): Promise<Answer> {
    const order: CommitRequest = { ...blob, blockCrcs: blockCrcs(body).toString('base64') }
    return this.post(wirePath.commit(shard, id), order)
  }

  /** Upload and commit, as a proxy does for larger blobs. */
  async put(shard: ShardId, blob: TestBlob): Promise<Answer> {
    const id = uploadId()
    await this.upload(shard, id, blob.body)
    return this.commit(shard, id, blob)
  }

  close(): Promise<void> {
    return this.#agent.destroy()
  }
}

export function never(): never {
  throw new Error('cannot happen')
}
