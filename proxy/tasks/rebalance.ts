/**
 * Changes of topology, online: publishes the new map, brings every partition's copies to its new owners, and lets the old ones go.
 *
 *     publish E+1 (both count) ──every proxy has it──▶ nodes refuse older writes ──all told──▶
 *     per partition: list old owners, copy what new owners lack, compare again ──▶ settled ──▶ old copies to the trash
 *
 * Many partitions move at once, few of them to any one disk, and each disk gets bytes at its own rate: the slowest one keeps none waiting.
 * What is not settled stands in the map itself, so whoever is primary goes on from there; every step may be repeated.
 */
import { atMost } from '../../shared/at-most.ts'
import { encodeClusterMap, replicasBefore, type ClusterMap } from '../../shared/cluster-map.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { TopologyChange } from '../../shared/placement/changes.ts'
import { refuseOlderWrites, settlePartitions } from '../../shared/placement/transition.ts'
import { wirePath } from '../../shared/wire.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { NodeClients } from '../routing/node-client.ts'
import type { ReferenceStore } from '../routing/types.ts'
import { abortApart, planApart } from '../topology/plan-apart.ts'
import { weightWarnings } from '../topology/weight-warnings.ts'
import { BlockSummaries } from './block-summaries.ts'
import type { Calm } from './calm.ts'
import type { ShardSummary } from './compare-sets.ts'
import type { Job, JobContext } from './job.ts'
import { type Copied, MoveCalls } from './move-calls.ts'
import type { MoveDeps } from './move-deps.ts'
import { type Leaver, movePartition, releasePartition } from './move-partition.ts'
import { inLanes, LanePace } from './move-queue.ts'
import { type Obstacle, tallyOf, waitingText } from './obstacles.ts'
import { primaryRole } from './primary.ts'
import { paramsOf, textOf, type RebalanceParams } from './rebalance-params.ts'
import { type UnnamedDeps, unwantedAmong } from './unnamed-blobs.ts'

/** Proxies poll the map every 5 s, and hear of it from the nodes within about 1 s. */
const adoptionMsDefault = 6_500
/** Each has a page of the names of all its shards in memory, about 1 MiB together. */
const partitionsAtOnce = 64
/** To one shard: what they ask goes together (move-calls.ts); with more of them at once clients felt it (I34). */
const partitionsPerShard = 4
const releasesAtOnce = 4
/** Partitions begun between two looks at whether the run goes on. */
const lookEvery = 128
const nodesAtOnce = 8
/** A new map goes to every process: with so many settled partitions, or so seldom. */
const settledAtOnce = 512
const settleMs = 3_000
/** Where clients are there, as much more seldom as steps are; but reads still ask the old owners until then. */
const settleMsMax = 6_000
/** What a new map costs each process that decodes it, about. */
const mapCostMs = 10
const retryMs = 2_000
/** What everybody waits for is said again so often, while it stays the same but for its numbers. */
const toldAgainMs = 60_000
const tellTimeoutMs = 30_000
const publishTriesMax = 8

export interface RebalanceDeps {
  readonly metadata: Pick<Metadata, 'loadClusterMap' | 'publishClusterMap'> & UnnamedDeps['metadata']
  readonly view: Pick<ClusterView, 'current' | 'replace'>
  readonly clients: Pick<NodeClients, 'get' | 'ofShard'>
  readonly references: Pick<ReferenceStore, 'appendTo'>
  readonly calm: Pick<Calm, 'share' | 'step' | 'spent'>
  /** Monotonic, ms. */
  readonly now: () => number
  /** Copies without a row that are younger may still get it, in ms. */
  readonly leftoverAgeMs: number
  /** How long proxies may take to work by a new map, in ms. */
  readonly adoptionMs?: number
}

interface Checkpoint {
  /** The changes are in the map. */
  readonly begun: boolean
  /** Checksum of the map that is being published: a later primary that finds it knows that it was. */
  readonly wanted?: string
  readonly total: number
  readonly blobs: number
  readonly bytes: number
  readonly references: number
  readonly released: number
}
const beginning: Checkpoint = { begun: false, total: 0, blobs: 0, bytes: 0, references: 0, released: 0 }

export function rebalance(deps: RebalanceDeps): Job<Checkpoint> {
  return {
    name: 'rebalance',
    title: 'Carry out a change of topology: bring copies to their new owners',
    defaultSchedule: null,
    checkParams: params => void paramsOf(params),
    run: context => new Rebalance(deps, context).run(),
  }
}

class Rebalance {
  readonly #deps: RebalanceDeps
  readonly #context: JobContext<Checkpoint>
  readonly #params: RebalanceParams
  readonly #move: MoveDeps
  #at: Checkpoint
  #settled: number[] = []
  /** Of these, who may hold what is to go then. */
  readonly #leaving = new Map<number, readonly Leaver[]>()
  #settledAt: number
  #isSettling = false
  /** Ends the run. */
  #failure: { readonly error: unknown } | undefined
  /** Of settled partitions, one batch after the other; the copying goes on meanwhile. */
  #releasing: Promise<void> = Promise.resolve()
  #begunCount = 0
  /** Why partitions were not settled in the last pass, with their number; empty again as soon as a pass gets on. */
  #waiting = ''
  /** They are all that is left. */
  #allWait = false
  #told = { reasons: '', at: 0 }

  constructor(deps: RebalanceDeps, context: JobContext<Checkpoint>) {
    this.#deps = deps
    this.#context = context
    this.#params = paramsOf(context.params)
    this.#at = context.checkpoint ?? beginning
    this.#settledAt = deps.now()
    const pace = new LanePace(this.#params.bytesPerSecond, deps.now)
    const onCopied = (copied: Copied): Promise<void> => this.#noteCopied(copied)
    const calls = new MoveCalls({
      clients: deps.clients,
      references: deps.references,
      calm: deps.calm,
      fence: `${primaryRole}:${context.term.token}`,
      term: context.term,
      unwanted: copies => unwantedAmong(deps, copies, deps.leftoverAgeMs, context.term),
      turn: (shard, bytes) => context.pause(pace.charge(shard, bytes)),
      onCopied,
    })
    this.#move = { calls, view: () => deps.view.current(), onCopied }
  }

  async #noteCopied(copied: Copied): Promise<void> {
    const { blobs, bytes, references } = this.#at
    this.#at = {
      ...this.#at,
      blobs: blobs + copied.blobs,
      bytes: bytes + copied.bytes,
      references: references + copied.references,
    }
    this.#getsOn()
    this.#report(this.#deps.view.current().unsettled().length)
    // A partition that takes hours keeps none of the others from being settled; what goes wrong there is not its error.
    await this.#settleInTime().catch((error: unknown) => (this.#failure ??= { error }))
    this.#check()
  }

  async run(): Promise<void> {
    if (!this.#at.begun) await this.#begin()
    let map = await this.#publish(newest => newest)
    if (map.previous === undefined) return this.#context.log('nothing is to be moved')
    map = await this.#announce(map)
    for (;;) {
      const left = this.#deps.view.current().unsettled()
      if (left.length === 0) break
      this.#report(left.length)
      const obstacles = await this.#pass(left)
      this.#allWait = obstacles.length > 0
      this.#tell(obstacles)
      if (obstacles.length > 0) await this.#context.pause(retryMs)
    }
    const { blobs, bytes, references, released } = this.#at
    this.#context.log(
      `settled in epoch ${this.#deps.view.current().map.epoch}: ${blobs} blobs (${bytes} bytes) and ${references} references copied, ${released} old copies in the trash`,
    )
  }

  /** The changes become the newest map, unless an earlier primary got so far already. */
  async #begin(): Promise<void> {
    const { changes, epoch, abort, force } = this.#params
    const { log } = this.#context
    if (abort || changes.length > 0) {
      const prepare = async (map: ClusterMap, next: ClusterMap): Promise<void> => {
        await this.#welcome(map, next, changes)
        this.#at = { ...this.#at, wanted: next.checksum }
        await this.#context.save(this.#at)
      }
      const map = await this.#publish(async newest => {
        // By its checksum also where nothing moves, so that the map has no previous owners.
        if (newest.previous?.since === epoch + 1 || newest.checksum === this.#at.wanted) return newest
        if (newest.epoch !== epoch) {
          throw new HoldfastError('CONFLICT', 'the cluster map has changed since this was planned: plan it again', {
            planned: epoch,
            found: newest.epoch,
          })
        }
        if (abort) return abortApart(newest)
        const { next, problems } = await planApart(newest, changes)
        if (problems.length > 0 && !force)
          throw new HoldfastError('TOPOLOGY_INVALID', problems.join('; '), { problems })
        return next
      }, prepare)
      log(`epoch ${map.epoch}: ${abort ? abortText(map) : changes.map(textOf).join(', ')}`)
      if (abort) for (const warning of weightWarnings(map)) log(warning)
    }
    this.#at = { ...this.#at, begun: true, total: this.#deps.view.current().unsettled().length }
    await this.#context.save(this.#at)
  }

  /** From its end on, nothing is written any more by a map from before the change (I22). */
  async #announce(begun: ClusterMap): Promise<ClusterMap> {
    const { pause, log } = this.#context
    let map = begun
    await this.#tellAll(map)
    if (map.writesFrom !== map.previous?.since) {
      await pause(this.#deps.adoptionMs ?? adoptionMsDefault)
      map = await this.#publish(refuseOlderWrites)
    }
    for (let told = ''; ;) {
      const away = awaited(map, await this.#tellAll(map))
      // A quorum of nodes that have not heard could still take a write by the old map.
      if (away.length === 0 || (away.length === 1 && replicasBefore(map) > 1)) return map
      if (told !== away.join(', ')) log(`waiting for nodes: ${(told = away.join(', '))}`)
      await pause(retryMs)
    }
  }

  /** Resolves with the nodes that could not be told. */
  async #tellAll(map: ClusterMap): Promise<string[]> {
    const body = Buffer.from(encodeClusterMap(map))
    const { token, signal } = this.#context.term
    const told = await atMost(nodesAtOnce, map.nodes, async node => {
      try {
        const options = { fence: `${primaryRole}:${token}`, signal, timeoutMs: tellTimeoutMs }
        await this.#deps.clients.get(node).requestJson('PUT', wirePath.clusterMap, body, options)
        return undefined
      } catch (error) {
        if (!isHoldfastError(error)) throw error
        return node.id
      }
    })
    return told.filter(node => node !== undefined)
  }

  /** Once through all that is left; resolves with what kept partitions from being settled, for each of them. */
  async #pass(left: readonly number[]): Promise<readonly Obstacle[]> {
    const obstacles: Obstacle[] = []
    const known = new Set<string>()
    const summaries = new BlockSummaries(this.#deps, left, this.#context.term)
    const limits = { atOnce: partitionsAtOnce, perLane: partitionsPerShard }
    const move = async (partition: number): Promise<void> => {
      if (++this.#begunCount % lookEvery === 0) await this.#context.pause(0)
      this.#check()
      const said = await summaries.of(partition)
      const obstacle = await this.#moveOne(partition, said, known)
      if (obstacle === undefined) {
        this.#getsOn()
        this.#settled.push(partition)
        this.#leaving.set(partition, this.#holders(partition, said))
      } else obstacles.push(obstacle)
      await this.#settleInTime()
    }
    try {
      await inLanes(limits, left, partition => this.#targets(partition), move)
      await this.#settle()
    } catch (error) {
      // Nothing of this run is under way when it has ended.
      await this.#releasing.catch(() => {})
      throw error
    }
    await this.#releasing
    return obstacles
  }

  /** The old owners that may hold blobs of it: what has said that it holds none gets none any more. */
  #holders(partition: number, said: ReadonlyMap<ShardId, ShardSummary>): readonly Leaver[] {
    const before = this.#deps.view.current().previousOwners(partition) ?? []
    return before
      .map(shard => {
        const own = said.get(shard)
        return own === undefined ? { shard } : { shard, expected: own.get(partition)?.blobs.count ?? 0 }
      })
      .filter(({ expected }) => expected !== 0)
  }

  /** Those that get copies. */
  #targets(partition: number): readonly ShardId[] {
    const view = this.#deps.view.current()
    const before = view.previousOwners(partition) ?? []
    return view.owners(partition).filter(shard => !before.includes(shard))
  }

  /** Who waits for whom: in the progress always, in the log when it is news. */
  #tell(obstacles: readonly Obstacle[]): void {
    const tally = tallyOf(obstacles)
    this.#waiting = waitingText(tally)
    this.#report(this.#deps.view.current().unsettled().length)
    const reasons = tally.map(({ reason, shards }) => `${reason} ${shards.join()}`).sort().join('; ') // prettier-ignore
    const isNews = reasons !== this.#told.reasons || this.#deps.now() - this.#told.at > toldAgainMs
    if (this.#waiting === '' || !isNews) return
    this.#told = { reasons, at: this.#deps.now() }
    this.#context.log(this.#waiting)
  }

  /** Whom the last pass had to wait for is no news any more. */
  #getsOn(): void {
    this.#waiting = ''
    this.#allWait = false
  }

  /** Undefined: moved. `known`: errors that this pass has met before, and logged. */
  async #moveOne(
    partition: number,
    summaries: ReadonlyMap<ShardId, ShardSummary>,
    known: Set<string>,
  ): Promise<Obstacle | undefined> {
    try {
      return await movePartition(this.#move, partition, summaries)
    } catch (error) {
      this.#check()
      if (!isHoldfastError(error) || error.code === 'STALE_TOKEN') throw error
      if (!known.has(error.code)) this.#context.log(`partition ${partition}: ${error.message} [${error.code}]`)
      known.add(error.code)
      return { reason: error.code, shards: [] }
    }
  }

  /** Not after each partition, for the map goes to every process; the copying goes on meanwhile. */
  async #settleInTime(): Promise<void> {
    const { calm, now, view } = this.#deps
    const waitMs = Math.min(settleMsMax, settleMs / calm.share(view.current().map.shards.map(({ id }) => id)))
    const isDue = this.#settled.length >= settledAtOnce || now() - this.#settledAt > waitMs
    if (isDue && !this.#isSettling) await this.#settle()
  }

  /** The new owners own what was compared, alone; then the copies of the others go. */
  async #settle(): Promise<void> {
    this.#settledAt = this.#deps.now()
    const settled = this.#settled
    if (settled.length === 0) return
    this.#settled = []
    // Most partitions of a small cluster are empty: nothing is asked about these.
    const leaving = settled
      .map(partition => ({ partition, shards: this.#leaving.get(partition) ?? [] }))
      .filter(({ shards }) => shards.length > 0)
    for (const partition of settled) this.#leaving.delete(partition)
    this.#isSettling = true
    try {
      await this.#publish(map => settlePartitions(map, settled))
      this.#report(this.#deps.view.current().unsettled().length)
      await this.#context.save(this.#at)
    } finally {
      this.#isSettling = false
    }
    this.#releasing = this.#releasing.then(() => this.#releaseAll(leaving))
    // Looked at when the pass is over; without this it would count as nobody's.
    this.#releasing.catch(() => {})
  }

  async #releaseAll(leaving: readonly { partition: number; shards: readonly Leaver[] }[]): Promise<void> {
    await atMost(releasesAtOnce, leaving, async ({ partition, shards }) => {
      const count = await this.#release(partition, shards)
      this.#at = { ...this.#at, released: this.#at.released + count }
    })
  }

  /** What cannot be released now is found by anti-entropy: copies where no owner is. */
  async #release(partition: number, leaving: readonly Leaver[]): Promise<number> {
    try {
      return await releasePartition(this.#move, partition, leaving)
    } catch (error) {
      this.#check()
      if (!isHoldfastError(error) || error.code === 'STALE_TOKEN') throw error
      return 0
    }
  }

  /** Compare-and-set on the newest map, fenced; `change` may return it as it is, and `prepare` runs before each attempt otherwise. */
  async #publish(
    change: (map: ClusterMap) => ClusterMap | Promise<ClusterMap>,
    prepare: (map: ClusterMap, next: ClusterMap) => Promise<void> = () => Promise.resolve(),
  ): Promise<ClusterMap> {
    const { metadata, view } = this.#deps
    for (let tries = 1; tries <= publishTriesMax; tries += 1) {
      this.#check()
      const map = await metadata.loadClusterMap()
      if (map === undefined) throw new HoldfastError('NOT_FOUND', 'there is no cluster map yet')
      const next = await change(map)
      if (next !== map) await prepare(map, next)
      if (next === map || (await metadata.publishClusterMap(next, this.#context.term.token))) {
        view.replace(next)
        if (next !== map) this.#deps.calm.spent([], mapCostMs)
        return next
      }
    }
    throw new HoldfastError('CONFLICT', 'the cluster map changes all the time')
  }

  /** New nodes become members of the cluster, and open their disks, before anybody sends them anything. */
  async #welcome(map: ClusterMap, next: ClusterMap, changes: readonly TopologyChange[]): Promise<void> {
    for (const change of changes) {
      const node = change.op === 'add-node' ? next.nodes.find(({ id }) => id === change.node) : undefined
      if (node === undefined) continue
      const { token, signal } = this.#context.term
      const options = { fence: `${primaryRole}:${token}`, signal, timeoutMs: tellTimeoutMs }
      const body = Buffer.from(encodeClusterMap(map))
      await this.#deps.clients.get(node).requestJson('PUT', wirePath.clusterMap, body, options)
    }
  }

  #report(left: number): void {
    const { total, bytes, blobs } = this.#at
    const all = Math.max(total, left)
    const note = `${blobs} blobs, ${bytes} bytes copied${this.#waiting === '' ? '' : `; ${this.#waiting}`}`
    this.#context.progress({ done: all - left, total: all, unit: 'partitions', note, ...(this.#allWait ? { waits: true } : {}) }) // prettier-ignore
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure.error
    this.#context.term.signal.throwIfAborted()
  }
}

function abortText({ replicas, copies, previous }: ClusterMap): string {
  const text = 'aborted, the old owners own again what was not settled'
  return previous === undefined || previous.copies === copies ? text : `${text}; ${replicas} copies of everything again`
}

/**
 * Without nodes that are out: every proxy saw them down for minutes, or somebody gave them up. They take no write before they are up
 * again, and are told within a second or two then; a writer with a map from before could complete one there only if it reached no
 * other node, for the others refuse it.
 */
function awaited(map: ClusterMap, away: readonly string[]): readonly string[] {
  const isOut = (node: string): boolean => {
    const own = map.shards.filter(shard => shard.node === node)
    return own.some(({ out }) => out !== undefined) && own.every(({ weight }) => weight === 0)
  }
  return away.filter(node => !isOut(node))
}
