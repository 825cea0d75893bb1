/** What operators see of the topology and do to it, through any proxy: it plans, and asks the primary's task `rebalance` to carry it out. */
import { type ClusterMap, givenWeightMax, givenWeightMin, isGivenWeight } from '../../shared/cluster-map.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { parseShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import { contradiction, type TopologyChange, type TopologyPlan } from '../../shared/placement/changes.ts'
import { byteSpread, type ByteSpread } from '../../shared/placement/bytes.ts'
import { roomProblems, type ShardRoom } from '../../shared/placement/room.ts'
import { shardPartitions } from '../../shared/placement/transition.ts'
import type { NodeStatus } from '../../shared/wire.ts'
import type { JobRun } from '../metadata/job-types.ts'
import { nodeState } from '../cluster-status.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable, NodeHealth } from '../routing/health.ts'
import type { JobControl } from '../tasks/job-control.ts'
import { bytesPerSecondDefault, textOf } from '../tasks/rebalance-params.ts'
import { summariesOf, type ContentsDeps } from '../tasks/shard-contents.ts'
import { bytesOfShards, heldBytes, swapsView, withSwaps, type Held, type SwapsView } from './by-bytes.ts'
import { estimateMoves, nodesOf, type Estimate, type MovesEstimate } from './estimate.ts'
import { abortApart, planApart } from './plan-apart.ts'
import { weightWarnings } from './weight-warnings.ts'

const task = 'rebalance'

/** A change as operators say it; the rest is found out from the nodes. */
export type WantedChange =
  | { readonly op: 'add-node'; readonly url: string }
  | { readonly op: 'drain-node' | 'remove-node' | 'out-node' | 'in-node'; readonly node: string }
  | { readonly op: 'add-shard'; readonly shard: string; readonly weight?: number }
  | { readonly op: 'reweight-shard'; readonly shard: string; readonly weight: number }
  | { readonly op: 'drain-shard' | 'remove-shard' | 'out-shard' | 'in-shard'; readonly shard: string }
  | { readonly op: 'replicas'; readonly replicas: number }

export interface PlanOptions {
  /** That each node gets. */
  readonly bytesPerSecond?: number
  /** Swap partitions where counts are even and bytes are not. */
  readonly byBytes?: boolean
}

export interface ApplyOptions extends PlanOptions {
  readonly user: string
  readonly force: boolean
}

export interface PlanView extends Omit<TopologyPlan, 'next' | 'moves' | 'report'> {
  readonly partitions: number
  readonly copies: number
  /** Fewest copies that any table for these weights must move. */
  readonly copiesMin: number
  readonly balance: { readonly max: number; readonly min: number }
  readonly estimate: Estimate
  /** Of a plan by bytes. */
  readonly byBytes?: SwapsView
}

export interface TopologyView {
  readonly epoch: number
  readonly replicas: number
  readonly copies: number
  /** The change under way; null: all is settled. */
  readonly change: {
    readonly since: number
    readonly unsettled: number
    readonly partitions: number
    /** Waiting: for PostgreSQL. */
    readonly state: 'running' | 'paused' | 'waiting'
  } | null
  /**
   * The run of the task that carries out changes; it goes on a little after the last partition was settled, for old copies. Absent:
   * PostgreSQL is away, which knows; there may be a newer map, too.
   */
  readonly run?: JobRun | null
  readonly shards: {
    readonly shard: string
    readonly node: string
    readonly zone: string
    readonly weight: number
    readonly partitions: number
    /** Partitions it has not handed over yet. */
    readonly leaving: number
    /** Out, failed, or that of its node as in `holdfast status`; since when (ms since 1970) if it is away or out. */
    readonly state: string
    readonly since?: number
    /** Of the partitions it owns, if they were asked for. */
    readonly bytes?: number
  }[]
  /** If it was asked for: how evenly bytes follow the weights in each zone, as far as owners say. */
  readonly spread?: { readonly zones: ByteSpread[]; readonly unknownPartitions: number }
  /** Weights that an aborted change has left, and the next change goes by. */
  readonly warnings: string[]
  /** Shards that nodes have, and the map has not. */
  readonly unassigned: { readonly shard: string; readonly node: string; readonly weight: number }[]
}

export interface TopologyControlDeps extends ContentsDeps {
  readonly view: Pick<ClusterView, 'current'>
  /** Makes the view the newest there is; never rejects. */
  readonly renewMap: () => Promise<void>
  readonly health: Pick<HealthTable, 'nodes'>
  readonly jobs: Pick<JobControl, 'run' | 'stop' | 'get'>
  readonly askNode: (url: string) => Promise<NodeStatus | undefined>
}

export class TopologyControl {
  readonly #deps: TopologyControlDeps

  constructor(deps: TopologyControlDeps) {
    this.#deps = deps
  }

  async show(byBytes = false): Promise<TopologyView> {
    const map = await this.#newestMap()
    const held = byBytes ? await heldBytes(this.#deps, map) : undefined
    const bytes = held && bytesOfShards(map, held)
    const zones = new Map<string, string>(map.nodes.map(({ id, zone }) => [id, zone]))
    const run = await this.#run()
    const unsettled = this.#deps.view.current().unsettled().length
    const partitions = shardPartitions(map)
    const known = new Set<string>(map.shards.map(({ id }) => id))
    const healths = this.#deps.health.nodes()
    const nodes = new Map<string, NodeHealth>(healths.map(one => [one.node, one]))
    const reported = healths.flatMap(({ node, status }) =>
      (status?.shards ?? []).map(({ id, weight }) => ({ shard: id, node: node, weight })),
    )
    return {
      epoch: map.epoch,
      replicas: map.replicas,
      copies: map.copies,
      change:
        map.previous === undefined
          ? null
          : {
              since: map.previous.since,
              unsettled,
              partitions: partitionCount,
              state: run === undefined ? 'waiting' : run === null ? 'paused' : 'running',
            },
      ...(run === undefined ? {} : { run }),
      shards: map.shards.map(shard => {
        const { id, node, weight, out } = shard
        const { owned = 0, leaving = 0 } = partitions.get(id) ?? {}
        const state = out === undefined ? shardState(nodes.get(node), map, shard) : { state: 'out', since: out.since }
        const own = bytes === undefined ? {} : { bytes: bytes.get(id) ?? 0 }
        return { shard: id, node, zone: zones.get(node) ?? '', weight, partitions: owned, leaving, ...state, ...own }
      }),
      ...(held && { spread: { zones: byteSpread(map, held.bytes), unknownPartitions: held.unknown } }),
      warnings: weightWarnings(map, this.#weightOf),
      unassigned: reported.filter(({ shard }) => !known.has(shard)),
    }
  }

  /** What its node says that a shard weighs. */
  readonly #weightOf = (shard: string): number | undefined => {
    const reported = this.#deps.health.nodes().flatMap(({ status }) => status?.shards ?? [])
    return reported.find(({ id }) => id === shard)?.weight
  }

  /** Undefined: nobody knows. */
  async #run(): Promise<JobRun | null | undefined> {
    try {
      return (await this.#deps.jobs.get(task)).run
    } catch (error) {
      if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
      return undefined
    }
  }

  /** What would move. Throws what `apply` would be refused with, but for problems that can be forced. */
  async plan(wanted: readonly WantedChange[], { bytesPerSecond, byBytes }: PlanOptions = {}): Promise<PlanView> {
    const { map, changes, held } = await this.#changesOf(wanted, byBytes)
    const plan = await planApart(map, changes)
    const { bytesTo, ...estimate } = await this.#estimate(plan, held, bytesPerSecond)
    const view = viewOf(plan, estimate, [...plan.problems, ...(await this.#withoutRoom(plan, bytesTo))])
    return held === undefined ? view : { ...view, byBytes: swapsView(map, plan.next, changes, held) }
  }

  /**
   * Starts the change: CONFLICT while another one is not settled, or if there is nothing to swap; TOPOLOGY_INVALID for one with problems
   * (fewer copies or zones, blobs on a shard that is removed, no room on one that gets copies) unless it is forced. Resolves with the run
   * of the task that carries it out.
   */
  async apply(wanted: readonly WantedChange[], options: ApplyOptions): Promise<JobRun> {
    const { user, force, bytesPerSecond, byBytes = false } = options
    if (wanted.length === 0 && !byBytes) throw new HoldfastError('BAD_REQUEST', 'no change is named')
    const { map, changes, held } = await this.#changesOf(wanted, byBytes)
    if (changes.length === 0) throw new HoldfastError('CONFLICT', 'no swap would spread the bytes better')
    const plan = await planApart(map, changes)
    if (!force) {
      const { bytesTo } = await this.#estimate(plan, held)
      const more = await Promise.all([this.#leftOn(map, changes), this.#withoutRoom(plan, bytesTo)])
      const problems = [...plan.problems, ...more.flat()]
      if (problems.length > 0) {
        throw new HoldfastError('TOPOLOGY_INVALID', `${problems.join('; ')} (--force does it nevertheless)`, { problems }) // prettier-ignore
      }
    }
    const rate = bytesPerSecond === undefined ? {} : { bytesPerSecond }
    return this.#deps.jobs.run(task, user, { changes, epoch: map.epoch, force, ...rate })
  }

  async #changesOf(
    wanted: readonly WantedChange[],
    byBytes = false,
  ): Promise<{ readonly map: ClusterMap; readonly changes: TopologyChange[]; readonly held: Held | undefined }> {
    const map = await this.#newestMap()
    const changes = await this.#resolve(map, wanted)
    const contrary = contradiction(changes)
    if (contrary !== undefined) {
      throw new HoldfastError('BAD_REQUEST', `changes that contradict each other: ${contrary.map(textOf).join(', and ')}`) // prettier-ignore
    }
    const held = byBytes ? await heldBytes(this.#deps, map) : undefined
    return { map, changes: held === undefined ? changes : await withSwaps(map, changes, held), held }
  }

  /** CONFLICT if it does not run. */
  pause(user: string): Promise<JobRun> {
    return this.#deps.jobs.stop(task, user)
  }

  /** CONFLICT if no change is under way, or it runs already, or still: pausing takes until its step is over. */
  async resume(user: string, bytesPerSecond?: number): Promise<JobRun> {
    await this.#underWay()
    const run = await this.#run()
    if (isPausing(run))
      throw new HoldfastError('CONFLICT', `${pausingText}: 'topology resume' it then`, { run: run.id })
    return this.#deps.jobs.run(task, user, bytesPerSecond === undefined ? {} : { bytesPerSecond })
  }

  /**
   * What is not settled goes back, and the number of copies as well. CONFLICT while the change runs (pause it first), or if none is under
   * way; TOPOLOGY_INVALID if there are not the nodes for as many copies as before, or more than that. Weights stay as the change has set
   * them, for the map does not know those from before: what that means comes with the run.
   */
  async abort(user: string, bytesPerSecond?: number): Promise<JobRun & { readonly warnings: readonly string[] }> {
    const map = await this.#underWay()
    const { run } = await this.#deps.jobs.get(task)
    if (run !== null) {
      const text = isPausing(run)
        ? `${pausingText}: 'topology abort' it then`
        : "the change is being carried out: 'topology pause' it first, and abort it when its step is over"
      throw new HoldfastError('CONFLICT', text, { run: run.id })
    }
    const aborted = await abortApart(map)
    const rate = bytesPerSecond === undefined ? {} : { bytesPerSecond }
    const queued = await this.#deps.jobs.run(task, user, { abort: true, epoch: map.epoch, ...rate })
    return { ...queued, warnings: weightWarnings(aborted, this.#weightOf) }
  }

  /** Another proxy may have published one a moment ago: whichever is asked, the answer is the same. */
  async #newestMap(): Promise<ClusterMap> {
    await this.#deps.renewMap()
    return this.#deps.view.current().map
  }

  async #underWay(): Promise<ClusterMap> {
    const map = await this.#newestMap()
    if (map.previous === undefined) throw new HoldfastError('CONFLICT', 'no change of topology is under way')
    return map
  }

  #estimate(
    { moves, next }: TopologyPlan,
    held: Held | undefined,
    bytesPerSecond = bytesPerSecondDefault,
  ): Promise<MovesEstimate> {
    const rates = { bytesPerSecond, nodeOf: nodesOf(next) }
    return estimateMoves(this.#deps, moves, rates, new AbortController().signal, held?.summaries)
  }

  /** By what the nodes reported last, and new ones say now. */
  async #withoutRoom({ next }: TopologyPlan, bytesTo: ReadonlyMap<string, number>): Promise<readonly string[]> {
    const reported = this.#deps.health.nodes()
    const known = new Set<string>(reported.map(({ node }) => node))
    const added = next.nodes.filter(({ id }) => !known.has(id)).map(({ url }) => this.#deps.askNode(url))
    const statuses = [...reported.map(({ status }) => status), ...(await Promise.all(added))]
    const rooms = new Map<string, ShardRoom>(statuses.flatMap(status => status?.shards ?? []).map(one => [one.id, one]))
    return roomProblems(bytesTo, rooms)
  }

  async #resolve(map: ClusterMap, wanted: readonly WantedChange[]): Promise<TopologyChange[]> {
    const lists = await Promise.all(wanted.map(change => this.#resolveOne(map, change)))
    return lists.flat()
  }

  async #resolveOne(map: ClusterMap, change: WantedChange): Promise<TopologyChange[]> {
    switch (change.op) {
      case 'add-node':
        return this.#nodeAt(map, change.url)
      case 'add-shard': {
        const { shard, weight } = change
        if (weight !== undefined) mustBeWeight(shard, weight)
        const found = this.#deps.health.nodes().find(({ status }) => status?.shards.some(({ id }) => id === shard))
        const status = found?.status?.shards.find(({ id }) => id === shard)
        if (found === undefined || status === undefined) {
          const text = `no storage node reports a shard '${shard}': name it in the configuration of its node (--shard) and restart that`
          throw new HoldfastError('NOT_FOUND', text, { shard })
        }
        if (status.state === 'failed') {
          throw new HoldfastError('SHARD_FAILED', `shard ${shard} has failed: ${status.reason ?? 'no reason'}`, {
            shard,
          })
        }
        return [{ op: 'add-shard', shard, node: found.node, weight: weight ?? status.weight }]
      }
      case 'drain-node': {
        const own = map.shards.filter(({ node }) => node === change.node)
        if (own.length === 0) throw new HoldfastError('NOT_FOUND', `no shard of a node '${change.node}' in the cluster`)
        return own.map(({ id }) => ({ op: 'weight', shard: id, weight: 0 }))
      }
      case 'out-node': {
        const own = map.shards.filter(({ node, weight }) => node === change.node && weight > 0)
        if (own.length === 0) throw new HoldfastError('NOT_FOUND', `no shard of a node '${change.node}' is in`)
        return own.map(({ id }) => outByHand(id))
      }
      case 'in-node': {
        const own = map.shards.filter(({ node, out }) => node === change.node && out !== undefined)
        if (own.length === 0) throw new HoldfastError('NOT_FOUND', `no shard of a node '${change.node}' is out`)
        return own.map(({ id }) => ({ op: 'in', shard: id }))
      }
      case 'out-shard':
        return [outByHand(change.shard)]
      case 'in-shard':
        return [{ op: 'in', shard: change.shard }]
      case 'drain-shard':
        return [{ op: 'weight', shard: change.shard, weight: 0 }]
      case 'reweight-shard':
        mustBeWeight(change.shard, change.weight)
        return [{ op: 'weight', shard: change.shard, weight: change.weight }]
      case 'remove-shard':
        return [{ op: 'remove-shard', shard: change.shard }]
      case 'remove-node':
        return [{ op: 'remove-node', node: change.node }]
      case 'replicas':
        return [change]
    }
  }

  async #nodeAt(map: ClusterMap, url: string): Promise<TopologyChange[]> {
    const status = await this.#deps.askNode(url)
    if (status === undefined) {
      throw new HoldfastError('NODE_UNREACHABLE', `no storage node with this cluster's secret answers at ${url}`, {
        url,
      })
    }
    if (status.clusterId !== '' && status.clusterId !== map.clusterId) {
      throw new HoldfastError('CONFLICT', `the node at ${url} belongs to another cluster (${status.clusterId})`, {
        url,
      })
    }
    const { node, zone, shards } = status
    return [
      { op: 'add-node', node, zone, url },
      ...shards.map(({ id, weight }): TopologyChange => ({ op: 'add-shard', shard: id, node, weight })),
    ]
  }

  /** What is still on shards that are to be removed. */
  async #leftOn(map: ClusterMap, changes: readonly TopologyChange[]): Promise<string[]> {
    const going = map.shards.filter(({ id, node }) =>
      changes.some(
        change =>
          (change.op === 'remove-shard' && change.shard === id) ||
          (change.op === 'remove-node' && change.node === node),
      ),
    )
    const found = await Promise.all(going.map(({ id }) => this.#leftOnShard(id)))
    return found.filter(problem => problem !== undefined)
  }

  async #leftOnShard(id: string): Promise<string | undefined> {
    const shard = parseShardId(id)
    if (shard === undefined) return undefined
    try {
      const range = { from: 0, count: partitionCount }
      const summary = await summariesOf(this.#deps, shard, range, new AbortController().signal)
      const blobs = [...summary.values()].reduce((sum, { blobs: { count } }) => sum + count, 0)
      if (blobs === 0) return undefined
      return `shard ${id} still holds ${blobs} blobs that nobody has taken over yet: wait for anti-entropy and garbage collection, or force it`
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      return `shard ${id} cannot be asked what it still holds (${error.message}): force it if its disk is lost`
    }
  }
}

const pausingText = 'the change is still pausing, until its step in hand is over'

const isPausing = (run: JobRun | null | undefined): run is JobRun => (run?.stoppedBy ?? null) !== null

/** A shard that has lost its disk is not what its node is. */
function shardState(
  node: NodeHealth | undefined,
  map: ClusterMap,
  shard: ClusterMap['shards'][number],
): { readonly state: string; readonly since?: number } {
  const ofNode = nodeState(node, map, shard.node)
  const reported = node?.status?.shards.find(({ id }) => id === shard.id)
  return ofNode.state !== 'down' && reported?.state === 'failed' ? { state: 'failed' } : ofNode
}

/** Weight 0 is how a drained shard stands in the map; by hand it would more often be a slip. */
function mustBeWeight(shard: string, weight: number): void {
  if (isGivenWeight(weight)) return
  const text =
    weight === 0
      ? `weight 0 would drain shard ${shard}: if that is meant, use 'shard drain ${shard}'`
      : `a weight must be ${givenWeightMin} to ${givenWeightMax}, with three decimals at most`
  throw new HoldfastError('BAD_REQUEST', text, { shard, weight })
}

const outByHand = (shard: string): TopologyChange => ({ op: 'out', shard, since: Date.now(), auto: false })

function viewOf(
  { epoch, moves, report, shards, replicas, zones }: TopologyPlan,
  estimate: Estimate,
  problems: string[],
): PlanView {
  const { max, min } = report.shardBalance
  return {
    epoch,
    shards,
    replicas,
    zones,
    problems,
    partitions: moves.length,
    copies: report.moves,
    copiesMin: report.movesMin,
    balance: { max, min },
    estimate,
  }
}
