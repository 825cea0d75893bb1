/** A storage node: its shards, their uploads, its state folder, and what happens by itself in the background. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { Logger } from 'pino'
import { HoldfastError } from '../shared/errors.ts'
import { type NodeStatus, type ShardStatus, wireVersion } from '../shared/wire.ts'
import { BodyBudget } from './body-budget.ts'
import { defaultLimits, type ShardConfig, type StorageNodeConfig, type StorageNodeLimits } from './config.ts'
import { Compaction } from './compact.ts'
import { DiskUse } from './disk-use.ts'
import { EpochGate } from './epoch-gate.ts'
import { Every } from './every.ts'
import { Leftovers } from './leftovers.ts'
import { NodeState } from './node-state.ts'
import { ProcessorLoad } from '../shared/processor-load.ts'
import { type Clock, Shard } from './shard.ts'
import { Scrub } from './scrub.ts'
import { readMarker, type ShardMarker } from './shard-marker.ts'
import type { StoreFs } from './store-fs.ts'
import { TransferLimit } from './transfer-limit.ts'
import { Trash } from './trash.ts'
import { Uploads } from './uploads.ts'

export interface StorageNodeDeps {
  readonly fs: StoreFs
  readonly log: Logger
  readonly clock: Clock
  /** Of the package. */
  readonly version: string
}

/** A shard and what belongs to it. */
export interface ServedShard {
  readonly shard: Shard
  readonly uploads: Uploads
  readonly trash: Trash
  readonly leftovers: Leftovers
  readonly compaction: Compaction
  readonly scrub: Scrub
}

const expireMs = 600_000

export class StorageNode {
  readonly config: StorageNodeConfig
  readonly limits: StorageNodeLimits
  readonly state: NodeState
  readonly shards: ReadonlyMap<string, ServedShard>
  readonly gate = new EpochGate()
  readonly transfers: TransferLimit
  readonly bodies: BodyBudget
  /** It is about to go, and says so. */
  draining = false
  /** Ends some time after that. */
  takesUploads = true
  /** Of this life of the process: what was tried in an earlier one may be tried again. */
  readonly #run = randomBytes(8).toString('hex')
  readonly #deps: StorageNodeDeps
  #clusterId: string | undefined
  #timers: Every[] = []

  constructor(config: StorageNodeConfig, deps: StorageNodeDeps) {
    this.config = config
    this.limits = { ...defaultLimits, ...config }
    this.bodies = new BodyBudget(this.limits.bodyBytesMax)
    this.#deps = deps
    const { transferConcurrency, transferBytesPerSec } = this.limits
    this.transfers = new TransferLimit(transferConcurrency, transferBytesPerSec, () => deps.clock.monotonic())
    this.state = new NodeState(deps.fs, config.stateFolder, deps.log)
    const clients = new DiskUse()
    const shardDeps = { ...deps, limits: this.limits, node: { clients, load: new ProcessorLoad().load } }
    this.shards = new Map(
      config.shards.map(shardConfig => {
        const shard = new Shard(shardDeps, shardConfig)
        const uploads = new Uploads(deps.fs, shard)
        const compaction = new Compaction({ fs: deps.fs, shard })
        const scrub = new Scrub({ fs: deps.fs, shard })
        return [
          shard.id,
          { shard, uploads, trash: new Trash(shard), leftovers: new Leftovers(shard), compaction, scrub },
        ]
      }),
    )
  }

  /** DATA_IN_USE, CONFIG_INVALID. A shard that cannot be opened is 'failed', and the others serve. */
  async start(): Promise<void> {
    await this.state.start()
    await this.gate.raise(this.state.writesFrom)
    try {
      const clusterId = await this.#findClusterId()
      if (clusterId !== undefined) await this.#openShards(clusterId)
      // Whoever plans with this node wants to know what room there is, before it is a member of any cluster.
      else await this.#forEachShard('measuring a disk', ({ shard }) => shard.measureFolder())
    } catch (error) {
      await this.close()
      throw error
    }
    const { diskCheckMs, markerCheckMs, checkpointMs, compactPauseMs, scrubPauseMs } = this.limits
    this.#timers = [
      new Every(diskCheckMs, () => this.#forEachShard('measuring a disk', measure)),
      new Every(markerCheckMs, () => this.#forEachShard('recovering a shard', recover)),
      new Every(checkpointMs, () => this.#forEachShard('flushing an index', ({ shard }) => shard.checkpoint())),
      new Every(
        Math.min(expireMs, this.limits.trashHoldMs, this.limits.stagedHoldMs, this.limits.quarantineHoldMs),
        () => this.#forEachShard('removing what expired', expire),
      ),
      // Each shard at its own pace.
      ...[...this.shards.values()].flatMap(served => [
        new Every(compactPauseMs, () => this.#attempt('compacting the log', served, one => one.compaction.run())),
        new Every(scrubPauseMs, () => this.#attempt('scrubbing', served, one => one.scrub.run())),
      ]),
    ]
  }

  get status(): NodeStatus {
    return {
      version: this.#deps.version,
      wire: wireVersion,
      clusterId: this.#clusterId ?? '',
      node: this.config.node,
      zone: this.config.zone,
      state: this.draining ? 'draining' : 'up',
      run: this.#run,
      epoch: this.state.epoch,
      tokens: this.state.tokens,
      shards: [...this.shards.values()].map(({ shard, compaction, scrub }) => ({
        ...shard.status,
        deadBytes: compaction.deadBytes,
        losses: shard.lossCount,
        scrub: scrubOf(scrub),
      })),
    }
  }

  get uploadCount(): number {
    let count = 0
    for (const { uploads } of this.shards.values()) count += uploads.count
    return count
  }

  /** Some that are being received, or will be committed any moment. */
  get hasUploads(): boolean {
    return [...this.shards.values()].some(({ uploads }) => uploads.isAwaited)
  }

  /**
   * Keeps a newer map; the first one makes a node without a cluster a member of it. Resolves when no write by a map that the newest one
   * refuses is under way any more.
   */
  async storeClusterMap(text: Buffer): Promise<void> {
    if (this.#clusterId === undefined) {
      const { clusterId } = this.state.checkClusterMap(text)
      await this.#openShards(clusterId)
    }
    await this.state.storeClusterMap(text)
    await this.gate.raise(this.state.writesFrom)
  }

  /** Lets what is being written become durable, then frees everything. Safe to call twice. */
  async close(): Promise<void> {
    for (const { compaction, leftovers, scrub } of this.shards.values()) {
      compaction.stop()
      leftovers.stop()
      scrub.stop()
    }
    for (const timer of this.#timers) await timer.stop()
    this.#timers = []
    const closing = [...this.shards.values()].map(async ({ shard, uploads }) => {
      await uploads.abortAll()
      await shard.close()
    })
    const failed = (await Promise.allSettled(closing)).filter(result => result.status === 'rejected')
    await this.state.close()
    if (failed.length > 0)
      throw new AggregateError(
        failed.map(({ reason }) => reason as unknown),
        'closing shards',
      )
  }

  async #findClusterId(): Promise<string | undefined> {
    const known = [this.config.clusterId, this.state.record?.clusterId].filter(id => id !== undefined)
    for (const { folder } of this.config.shards) {
      // An unreadable marker fails its shard when it is opened.
      const marker = await readMarker(this.#deps.fs, folder).catch(() => undefined)
      if (marker !== undefined && known.length === 0) known.push(marker.clusterId)
    }
    const [first, second] = known
    if (second !== undefined && first !== second) {
      throw new HoldfastError('CONFIG_INVALID', 'this node belongs to another cluster', {
        expected: first,
        found: second,
      })
    }
    return first
  }

  async #openShards(clusterId: string): Promise<void> {
    this.#clusterId = clusterId
    const { node, shards } = this.config
    // All of them, before the first problem is reported: nothing is left half-open behind a caller's back.
    const opened = await Promise.allSettled(shards.map(config => this.#openShard(config, clusterId)))
    const known: string[] = []
    for (const result of opened) {
      if (result.status === 'rejected') throw result.reason
      if (result.value.health.state !== 'failed') known.push(result.value.id)
    }
    await this.state.remember(clusterId, node, known)
  }

  async #openShard({ id }: ShardConfig, clusterId: string): Promise<Shard> {
    const { node, replacedShards = [] } = this.config
    const served = this.shards.get(id)
    assert(served !== undefined, 'every configured shard is served')
    const marker: ShardMarker = { format: 1, clusterId, node, shard: id }
    const isNew = this.state.record?.shards.includes(id) !== true
    await served.shard.start(marker, isNew || replacedShards.includes(id))
    // What cannot be read now is read, or complained about, with the first pass.
    if (served.shard.health.state !== 'failed') await served.scrub.open().catch(() => undefined)
    return served.shard
  }

  /** One shard after the other; a failure is logged and keeps no other shard from its turn. */
  async #forEachShard(what: string, action: (served: ServedShard) => Promise<void>): Promise<void> {
    for (const served of this.shards.values()) await this.#attempt(what, served, action)
  }

  async #attempt(what: string, served: ServedShard, action: (served: ServedShard) => Promise<void>): Promise<void> {
    try {
      await action(served)
    } catch (error) {
      this.#deps.log.warn({ err: error, shard: served.shard.id }, `${what} failed`)
    }
  }
}

async function measure({ shard }: ServedShard): Promise<void> {
  if (shard.health.state === 'failed') return
  await shard.health.measure()
  await shard.health.fillReserve()
}

async function recover({ shard }: ServedShard): Promise<void> {
  if (shard.health.state === 'failed') return shard.reopen()
  await shard.checkMarker()
  if (shard.health.state === 'read-only') await shard.probe()
  await shard.retryQuarantine()
}

async function expire({ uploads, trash, leftovers, scrub }: ServedShard): Promise<void> {
  await uploads.expire()
  await leftovers.clear()
  await trash.empty()
  await scrub.expireQuarantine()
}

function scrubOf(scrub: Scrub): NonNullable<ShardStatus['scrub']> {
  const { state, pass, last } = scrub.status
  return {
    state,
    ...(pass === undefined ? {} : { done: pass.done }),
    ...(last === undefined ? {} : { finishedAt: last.finishedAt }),
  }
}
