/**
 * Takes nodes out that stay down, and disks that stay failed, so that their copies are made anew elsewhere; and in again when they are
 * back. What all live proxies see counts, not what the primary sees alone. The task `rebalance` carries it out.
 */
import type { Logger } from 'pino'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { TopologyChange } from '../../shared/placement/changes.ts'
import {
  agree,
  type Agreement,
  decideIns,
  decideOuts,
  noAgreement,
  type OutAfter,
  type Refusal,
  soonestOutMs,
} from '../../shared/placement/outs.ts'
import { roomProblems, type ShardRoom } from '../../shared/placement/room.ts'
import type { ShardState } from '../../shared/wire.ts'
import type { Coordinator, MemberReport } from '../coordination/types.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import { estimateMoves, nodesOf } from '../topology/estimate.ts'
import { planApart } from '../topology/plan-apart.ts'
import type { PrimaryTask, Term } from './primary.ts'
import { bytesPerSecondDefault, textOf } from './rebalance-params.ts'
import type { ContentsDeps } from './shard-contents.ts'

/** What is back must stay back so long. */
const inAfterMsMax = 10_000
/** A disk that has failed must be well for so many times as long as it took to be taken out: it may only have a moment of health. */
const wellFactor = 10
/** After a decision, or one that had no room: the run, or what people do about it, takes time. */
const againMsMax = 60_000
/** In what every proxy hears each second. */
const refusalsMax = 8
const user = 'primary:node-states'

type Brake = Refusal['brake'] | 'room' | 'placement' | 'change' | 'unknown'
export const brakes: readonly Brake[] = ['zone', 'share', 'copies', 'room', 'placement', 'change', 'unknown']

interface Stop {
  readonly subject: string
  readonly brake: Brake
  readonly text: string
}

export interface NodeStatesDeps extends ContentsDeps {
  readonly coordinator: Pick<Coordinator, 'knownMembers'>
  readonly metadata: Pick<Metadata, 'loadClusterMap'> & { readonly jobs: Pick<Metadata['jobs'], 'agenda' | 'enqueue'> }
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'nodes'>
  readonly log: Pick<Logger, 'info' | 'warn'>
  /** Monotonic, ms. */
  readonly now: () => number
  /** What was taken out is still taken in where nothing is taken out any more. */
  readonly outAfter: OutAfter
}

export class NodeStates implements PrimaryTask {
  readonly name = 'node-states'
  readonly pauseMs = 1_000
  readonly #deps: NodeStatesDeps
  #agreement: Agreement = noAgreement
  readonly #failedSince = new Map<string, number>()
  /** When shards that are well by now, but not for long, were last called failed. */
  readonly #failedAt = new Map<string, number>()
  #stops: readonly Stop[] = []
  #told = ''
  #notBefore = -Infinity

  constructor(deps: NodeStatesDeps) {
    this.#deps = deps
  }

  /** Why what is away long enough is not taken out, by the last look; empty on a worker that is not primary. */
  get refusals(): readonly string[] {
    return this.#stops.slice(0, refusalsMax).map(({ subject, text }) => `${subject} is not taken out: ${text}`)
  }

  /** For metrics. */
  refusedBy(brake: Brake): number {
    return this.#stops.filter(stop => stop.brake === brake).length
  }

  readonly step = async (term: Term): Promise<'idle'> => {
    try {
      await this.#look(term)
    } catch (error) {
      // PostgreSQL was away in between: who knows what else was. The clocks begin anew.
      if (isHoldfastError(error, 'METADATA_UNAVAILABLE')) this.#forget()
      throw error
    }
    return 'idle'
  }

  readonly ended = async (): Promise<void> => {
    this.#forget()
    this.#stops = []
    this.#told = ''
    this.#notBefore = -Infinity
  }

  #forget(): void {
    this.#agreement = noAgreement
    this.#failedSince.clear()
    this.#failedAt.clear()
  }

  async #look(term: Term): Promise<void> {
    const { coordinator, view, now, outAfter } = this.#deps
    const { map } = view.current()
    const members = await coordinator.knownMembers()
    if (members === undefined) return this.#forget()
    const reports = members.map(({ report }) => report)
    const ids = map.nodes.map(({ id }) => id)
    const at = now()
    const { all, now: sure } = agree(this.#agreement, ids, reports, at)
    this.#agreement = all
    const ages = (since: ReadonlyMap<string, number>): Map<string, number> =>
      new Map([...since].map(([id, from]) => [id, at - from]))
    const states = this.#shardStates()
    const failed = ages(this.#failed(states, at))
    const inAfterMs = Math.min(inAfterMsMax, soonestOutMs(outAfter))
    const isWell = (id: string): boolean => states.has(id) && !failed.has(id) && !this.#failedAt.has(id)
    const ins = decideIns(map, ages(sure.up), isWell, inAfterMs)
    const away = { nodes: ages(sure.down), shards: failed }
    const outs = decideOuts(map, away, outAfter)
    const stops: Stop[] = [...outs.refusals]
    // What came back is taken in first: it may be what others wait for.
    const since = Date.now()
    const changes: TopologyChange[] =
      ins.length > 0
        ? ins.map(shard => ({ op: 'in', shard }))
        : outs.shards.map(shard => ({ op: 'out', shard, since, auto: true }))
    if (changes.length === 0) return this.#tell(stops)
    if (at < this.#notBefore) return this.#tell([...stops, ...this.#stops.filter(isLater)])
    const stop = await this.#change(map, changes, term)
    // Of what is taken in nobody has to hear why it takes a little longer.
    this.#tell(stop === undefined || ins.length > 0 ? stops : [...stops, stop])
  }

  /** By what nodes that are up say of their own. */
  #shardStates(): ReadonlyMap<string, ShardState> {
    const nodes = this.#deps.health.nodes().filter(({ state }) => state === 'up')
    return new Map(nodes.flatMap(({ status }) => (status?.shards ?? []).map(({ id, state }) => [id, state])))
  }

  /** Failed shards, and since when. */
  #failed(states: ReadonlyMap<string, ShardState>, at: number): ReadonlyMap<string, number> {
    for (const [id, state] of states) {
      if (state === 'failed') {
        if (!this.#failedSince.has(id)) this.#failedSince.set(id, at)
        this.#failedAt.set(id, at)
      } else {
        this.#failedSince.delete(id)
        if (at - (this.#failedAt.get(id) ?? -Infinity) >= wellFactor * this.#deps.outAfter.diskMs) {
          this.#failedAt.delete(id)
        }
      }
    }
    for (const id of this.#failedSince.keys()) if (!states.has(id)) this.#failedSince.delete(id)
    return this.#failedSince
  }

  /** Resolves with what is in the way. */
  async #change(map: ClusterMap, changes: readonly TopologyChange[], term: Term): Promise<Stop | undefined> {
    const { metadata, outAfter, log, now } = this.#deps
    const subject = subjectOf(map, changes)
    const newer = await metadata.loadClusterMap(map.epoch)
    if (newer !== undefined) return { subject, brake: 'unknown', text: 'a newer cluster map is on its way' }
    const { active } = await metadata.jobs.agenda()
    if (map.previous !== undefined || active.some(({ job }) => job === 'rebalance')) {
      const text = "another change of topology is not settled yet: see 'holdfast topology show'"
      return { subject, brake: 'change', text }
    }
    this.#notBefore = now() + Math.max(this.pauseMs, Math.min(againMsMax, soonestOutMs(outAfter)))
    const problem = await this.#problem(map, changes, term)
    if (problem !== undefined) return { subject, ...problem }
    term.signal.throwIfAborted()
    try {
      await metadata.jobs.enqueue({ job: 'rebalance', user, params: { changes, epoch: map.epoch } }, term.token)
    } catch (error) {
      if (!isHoldfastError(error, 'CONFLICT')) throw error
      return { subject, brake: 'change', text: 'another change of topology was just asked for' }
    }
    log.warn({ epoch: map.epoch, changes: changes.map(textOf) }, 'node states: the cluster map is changed')
    return undefined
  }

  async #problem(
    map: ClusterMap,
    changes: readonly TopologyChange[],
    term: Term,
  ): Promise<Pick<Stop, 'brake' | 'text'> | undefined> {
    try {
      const plan = await planApart(map, changes)
      if (plan.problems.length > 0) return { brake: 'placement', text: plan.problems.join('; ') }
      // What comes back has most of what it gets, and had room for it before.
      if (changes.every(({ op }) => op === 'in')) return undefined
      const rates = { bytesPerSecond: bytesPerSecondDefault, nodeOf: nodesOf(plan.next) }
      const { bytesTo } = await estimateMoves(this.#deps, plan.moves, rates, term.signal)
      const shards = this.#deps.health.nodes().flatMap(({ status }) => status?.shards ?? [])
      const full = roomProblems(bytesTo, new Map<string, ShardRoom>(shards.map(shard => [shard.id, shard])))
      return full.length === 0 ? undefined : { brake: 'room', text: full.join('; ') }
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code !== 'TOPOLOGY_INVALID') throw error
      return { brake: 'placement', text: error.message }
    }
  }

  #tell(stops: readonly Stop[]): void {
    this.#stops = stops
    const told = stops.map(({ subject, brake }) => `${subject} ${brake}`).sort().join() // prettier-ignore
    if (told === this.#told) return
    this.#told = told
    for (const stop of stops) this.#deps.log.warn(stop, 'a storage node or disk that is away is not taken out')
    if (stops.length === 0) this.#deps.log.info({}, 'no storage node or disk is kept from being taken out')
  }
}

/** Found out only where it is decided, so it stands until that is tried again. */
const isLater = ({ brake }: Stop): boolean => brake === 'room' || brake === 'placement'

function subjectOf(map: ClusterMap, changes: readonly TopologyChange[]): string {
  const shards = changes.flatMap(change => ('shard' in change ? [change.shard] : []))
  const nodes = new Set(map.shards.filter(({ id }) => shards.includes(id)).map(({ node }) => node))
  const whole = [...nodes].every(node =>
    map.shards.every(shard => shard.node !== node || shard.weight === 0 || shards.includes(shard.id)),
  )
  return whole ? `node ${[...nodes].join(', ')}` : `shard ${shards.join(', ')}`
}

/** What this worker tells the others, and the primary, of the nodes. */
export function reportOf(
  health: Pick<HealthTable, 'nodes'>,
  { refusals = [], repairs }: Pick<MemberReport, 'refusals' | 'repairs'> = {},
): MemberReport {
  const inState = (wanted: string): string[] =>
    health
      .nodes()
      .filter(({ state }) => state === wanted)
      .map(({ node }) => node)
  return {
    down: inState('down'),
    suspect: inState('suspect'),
    ...(refusals.length === 0 ? {} : { refusals }),
    ...(repairs === undefined ? {} : { repairs }),
  }
}
