/**
 * What a node knows beyond its shards, in a folder of its own: the newest cluster map, the highest fencing token of each
 * role, which shards it has set up. Everything is durable before it is acted upon.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import type { Logger } from 'pino'
import { type ClusterMap, decodeClusterMap } from '../shared/cluster-map.ts'
import { HoldfastError } from '../shared/errors.ts'
import { crashPoint } from './crash-point.ts'
import { ShardIndex } from './index.ts'
import { readSmallFile, replaceFile, type StoreFs } from './store-fs.ts'

interface NodeRecord {
  readonly format: 1
  readonly clusterId: string
  readonly node: string
  /** Shards whose folder once was set up: an empty folder of one of these is a disk that is not mounted. */
  readonly shards: readonly string[]
}

const fileBytesMax = 64 * 1024 * 1024
const roleCountMax = 16
const fencePattern = /^([a-z][a-z0-9-]{0,31}):([0-9]{1,15})$/

export class NodeState {
  readonly #fs: StoreFs
  readonly #folder: string
  readonly #log: Logger
  #lock: ShardIndex | undefined
  #map: { readonly epoch: number; readonly writesFrom: number; readonly text: Buffer } | undefined
  /** undefined: unreadable. */
  #fences: ReadonlyMap<string, number> | undefined = new Map()
  #record: NodeRecord | undefined
  /** One change of the folder at a time. */
  #turn: Promise<unknown> = Promise.resolve()

  constructor(fs: StoreFs, folder: string, log: Logger) {
    this.#fs = fs
    this.#log = log
    this.#folder = folder
  }

  /** Epoch of the newest map; 0 if there is none. */
  get epoch(): number {
    return this.#map?.epoch ?? 0
  }

  /** The oldest epoch whose writes the newest map allows; 0: any. */
  get writesFrom(): number {
    return this.#map?.writesFrom ?? 0
  }

  get clusterMap(): Buffer | undefined {
    return this.#map?.text
  }

  get record(): NodeRecord | undefined {
    return this.#record
  }

  /** The highest fencing token of each role. */
  get tokens(): Readonly<Record<string, number>> {
    return Object.fromEntries(this.#fences ?? [])
  }

  /** DATA_IN_USE when another process serves this node; RECORD_DAMAGED when it cannot be known what this node is. */
  async start(): Promise<void> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 })
    // Node has no flock; LevelDB has one that the kernel gives back when the process dies, so an empty database is our lock.
    this.#lock = await ShardIndex.open(join(this.#folder, 'lock'), this.#fs)
    const record = await this.#read('node.json')
    if (record !== undefined) this.#record = openEnvelope(record, 'node.json') as NodeRecord
    await this.#readMap()
    await this.#readFences()
  }

  /** One that is damaged or of another cluster is only forgotten: proxies bring the newest one anyway. */
  async #readMap(): Promise<void> {
    const map = await this.#read('cluster-map.json')
    if (map === undefined) return
    try {
      const { epoch, writesFrom = 0 } = this.checkClusterMap(map)
      this.#map = { epoch, writesFrom, text: map }
    } catch (error) {
      this.#log.error({ err: error }, 'the stored cluster map is not used')
    }
  }

  /** With damaged tokens a deposed leader could not be told from the true one: reads and writes go on, its commands do not. */
  async #readFences(): Promise<void> {
    const fences = await this.#read('fences.json')
    if (fences === undefined) return
    try {
      this.#fences = new Map(Object.entries(openEnvelope(fences, 'fences.json')))
    } catch (error) {
      this.#fences = undefined
      this.#log.error({ err: error }, 'the stored fencing tokens are damaged')
    }
  }

  async close(): Promise<void> {
    await this.#turn.catch(() => undefined) // its caller was told
    await this.#lock?.close()
  }

  /** Decodes a map of this node's cluster. CLUSTER_MAP_INVALID if it is none. */
  checkClusterMap(text: Buffer): ClusterMap {
    const map = decodeClusterMap(text.toString('utf8'))
    const expected = this.#record?.clusterId
    if (expected !== undefined && expected !== map.clusterId) {
      const found = map.clusterId
      throw new HoldfastError('CLUSTER_MAP_INVALID', 'the map is of another cluster', { expected, found })
    }
    return map
  }

  /** Keeps a newer map. STALE_EPOCH for an older one, or another one of the same epoch. */
  storeClusterMap(text: Buffer): Promise<void> {
    return this.#inTurn(async () => {
      const { epoch, writesFrom = 0 } = this.checkClusterMap(text)
      if (this.#map?.text.equals(text) === true) return
      if (epoch <= this.epoch) {
        throw new HoldfastError('STALE_EPOCH', 'a newer cluster map is here', { expected: this.epoch, found: epoch })
      }
      await this.#write('cluster-map.json', text)
      this.#map = { epoch, writesFrom, text: Buffer.from(text) }
    })
  }

  /** Checks `role:token` and remembers the highest token of the role before anything is done in its name. STALE_TOKEN. */
  acceptFence(header: string | undefined): Promise<void> {
    const match = fencePattern.exec(header ?? '')
    if (match === null) {
      return Promise.reject(new HoldfastError('BAD_REQUEST', 'this command needs a fencing token, `role:token`'))
    }
    const role = match[1] ?? ''
    const token = Number(match[2])
    return this.#inTurn(async () => {
      if (this.#fences === undefined) throw damaged('fences.json')
      const highest = this.#fences.get(role) ?? 0
      if (token < highest) throw new HoldfastError('STALE_TOKEN', 'a newer leader was here', { role, token, highest })
      if (token === highest) return
      if (this.#fences.size >= roleCountMax && !this.#fences.has(role)) {
        throw new HoldfastError('BAD_REQUEST', 'too many roles', { role })
      }
      const fences = new Map(this.#fences).set(role, token)
      await this.#write('fences.json', sealEnvelope(Object.fromEntries(fences)))
      crashPoint('fence.afterRename')
      this.#fences = fences
    })
  }

  /** Remembers the cluster, and that these shards are set up. */
  remember(clusterId: string, node: string, shards: readonly string[]): Promise<void> {
    return this.#inTurn(async () => {
      const known = new Set([...(this.#record?.shards ?? []), ...shards])
      const record: NodeRecord = { format: 1, clusterId, node, shards: [...known].sort() }
      if (JSON.stringify(record) === JSON.stringify(this.#record)) return
      await this.#write('node.json', sealEnvelope(record))
      this.#record = record
    })
  }

  #read(name: string): Promise<Buffer | undefined> {
    return readSmallFile(this.#fs, join(this.#folder, name), fileBytesMax)
  }

  #write(name: string, content: Buffer): Promise<void> {
    return replaceFile(this.#fs, join(this.#folder, name), content)
  }

  #inTurn<Result>(action: () => Promise<Result>): Promise<Result> {
    const result = this.#turn.then(action, action)
    this.#turn = result.catch(() => undefined) // its caller is told
    return result
  }
}

/** JSON behind its own checksum: a flipped bit must not become another token. */
function sealEnvelope(value: object): Buffer {
  const text = JSON.stringify(value)
  return Buffer.from(`${crc32(text).toString(16).padStart(8, '0')} ${text}\n`)
}

function openEnvelope(content: Buffer, file: string): object {
  const text = content.toString('utf8', 9, content.length - 1)
  if (content.toString('latin1', 0, 9) !== `${crc32(text).toString(16).padStart(8, '0')} `) throw damaged(file)
  return JSON.parse(text) as object
}

function damaged(file: string): HoldfastError {
  return new HoldfastError('RECORD_DAMAGED', 'a file of the state folder is damaged', { file })
}
