/**
 * Which nodes and shards are worth asking: a table without I/O that hears of active checks and of the outcome of every
 * request. It orders candidates and never forbids one: when all are down, all are tried (panic rule).
 *
 *     up ──(check failed, or requests fail)──▶ suspect ──(3 checks, or 3 connects, or 5 requests)──▶ down ──▶ up, slow start
 */
import type { NodeId, ShardId } from '../../shared/ids.ts'
import type { NodeStatus, ShardState, ShardStatus } from '../../shared/wire.ts'

export type NodeState = 'up' | 'suspect' | 'down'

/**
 * What a request to a node came to. 'ok': it answered sensibly (a clean BLOB_NOT_FOUND too). 'unreachable': no connection.
 * 'failed': reset, silence past its limit, nonsense, or an internal error of the node.
 */
export type Outcome = 'ok' | 'unreachable' | 'failed'

export interface HealthOptions {
  /** Failed checks in a row until a node is down: with one check a second and 500 ms for each, at most 4 s. */
  readonly fallCount: number
  /** Good checks in a row until it is up again. */
  readonly riseCount: number
  readonly unreachableCountMax: number
  readonly failedCountMax: number
  /** Passive ejection lasts this long, times the number of ejections so far. */
  readonly ejectionMs: number
  readonly ejectionMsMax: number
  /** A node back from down gets its share of the reads only after this time. */
  readonly slowStartMs: number
  /** Failures older than this no longer count as "in a row". */
  readonly failureMemoryMs: number
  /** So long after its last good check a node that is down is tried where nobody else is left. */
  readonly hopeMs: number
}

export const healthDefaults: HealthOptions = {
  fallCount: 3,
  riseCount: 2,
  unreachableCountMax: 3,
  failedCountMax: 5,
  ejectionMs: 5_000,
  ejectionMsMax: 60_000,
  slowStartMs: 10_000,
  failureMemoryMs: 10_000,
  hopeMs: 30_000,
}

interface Entry {
  status: NodeStatus | undefined
  checksFailed: number
  /** Of the first of them. */
  silentAt: number
  checksGood: number
  checkedDown: boolean
  unreachable: number
  failed: number
  lastFailureAt: number
  ejections: number
  /** -Infinity: never ejected. */
  ejectedUntil: number
  /** When the node came back by its checks; -Infinity: it never was down. */
  backAt: number
  /** Of the last good check. */
  goodAt: number
}

export interface NodeHealth {
  readonly node: NodeId
  readonly state: NodeState
  readonly draining: boolean
  /** Why it is not up. */
  readonly reason?: 'checks failed' | 'ejected' | 'failing'
  /** For how long all checks have failed. */
  readonly silentMs?: number
  readonly status?: NodeStatus
}

export interface HealthDeps {
  /** Monotonic milliseconds. */
  readonly now: () => number
  readonly options?: Partial<HealthOptions>
  /** Told when a check or an outcome changed a node's state, for the log and the counters. */
  readonly onChange?: (node: NodeId, state: NodeState, reason: NodeHealth['reason']) => void
}

export class HealthTable {
  readonly #now: () => number
  readonly #options: HealthOptions
  readonly #onChange: HealthDeps['onChange']
  #nodes = new Map<NodeId, Entry>()
  #shards = new Map<ShardId, ShardStatus>()
  ejectionCount = 0

  constructor(deps: HealthDeps) {
    this.#now = deps.now
    this.#options = { ...healthDefaults, ...deps.options }
    this.#onChange = deps.onChange
  }

  /** The nodes of the newest cluster map. What is known of those that stay is kept; a new node counts as up. */
  setNodes(nodes: readonly NodeId[]): void {
    this.#nodes = new Map(nodes.map(node => [node, this.#nodes.get(node) ?? newEntry()]))
    const shards = [...this.#nodes.values()].flatMap(({ status }) => status?.shards ?? [])
    this.#shards = new Map(shards.map(shard => [shard.id, shard]))
  }

  /** The answer to an active check; undefined: none in time, or not from the node it should be. */
  checked(node: NodeId, status: NodeStatus | undefined): void {
    const entry = this.#nodes.get(node)
    if (entry === undefined) return
    const before = this.#stateOf(entry)
    if (status === undefined) {
      entry.checksGood = 0
      if (entry.checksFailed === 0) entry.silentAt = this.#now()
      entry.checksFailed += 1
      if (isLeaving(entry) || entry.checksFailed >= this.#options.fallCount) entry.checkedDown = true
    } else {
      // Whatever there was against it, it was restarted since, and on purpose.
      const isBack = isLeaving(entry) && status.state === 'up'
      this.#learn(entry, status)
      if (isBack) this.#welcome(entry)
      entry.checksFailed = 0
      entry.checksGood += 1
      entry.goodAt = this.#now()
      if (entry.checkedDown && entry.checksGood >= this.#options.riseCount) {
        entry.checkedDown = false
        entry.backAt = this.#now()
      }
    }
    this.#tell(node, entry, before)
  }

  /** What a request to this node came to. */
  observe(node: NodeId, outcome: Outcome): void {
    const entry = this.#nodes.get(node)
    if (entry === undefined) return
    if (outcome === 'ok') {
      // The hot path: one comparison for a node that is well.
      if (entry.failed + entry.unreachable > 0) this.#forgive(node, entry)
      return
    }
    const before = this.#stateOf(entry)
    const now = this.#now()
    if (isLeaving(entry) && outcome === 'unreachable') {
      // It said that it would go: no illness, and nothing that an ejection should outlast.
      entry.checkedDown = true
      entry.checksGood = 0
      this.#tell(node, entry, before)
      return
    }
    if (now - entry.lastFailureAt > this.#options.failureMemoryMs) entry.failed = entry.unreachable = 0
    entry.lastFailureAt = now
    entry.failed += 1
    if (outcome === 'unreachable') entry.unreachable += 1
    const { failedCountMax, unreachableCountMax } = this.#options
    if (entry.failed >= failedCountMax || entry.unreachable >= unreachableCountMax) this.#eject(entry, now)
    this.#tell(node, entry, before)
  }

  /** A node nobody has told of (it is not in the map) is up: a guess that only costs one try. */
  state(node: NodeId): NodeState {
    const entry = this.#nodes.get(node)
    return entry === undefined ? 'up' : this.#stateOf(entry)
  }

  /**
   * A node that is down, but was well not long ago, may be back before its checks say so (it was restarted, or ejected): worth
   * a try for a write that would fail without it.
   */
  mayBeBack(node: NodeId): boolean {
    const entry = this.#nodes.get(node)
    return entry !== undefined && this.#now() - entry.goodAt <= this.#options.hopeMs
  }

  /** It asked for no new work: used only where no other candidate is up. */
  draining(node: NodeId): boolean {
    const entry = this.#nodes.get(node)
    return entry !== undefined && isLeaving(entry)
  }

  /** Which life of its process it last answered from; undefined: unknown, or a node that does not tell. */
  run(node: NodeId): string | undefined {
    return this.#nodes.get(node)?.status?.run
  }

  /** Share of its normal reads the node should get now, above 0 and up to 1: slow start after an absence. */
  share(node: NodeId): number {
    const entry = this.#nodes.get(node)
    if (entry === undefined) return 1
    const since = Math.max(entry.backAt, entry.ejectedUntil)
    if (since === -Infinity) return 1
    return Math.min(1, Math.max(0.1, (this.#now() - since) / this.#options.slowStartMs))
  }

  /** The state the shard's node reported last; 'ok' when nothing is known. 'failed': no reads; 'full', 'read-only': no writes. */
  shardState(shard: ShardId): ShardState {
    return this.#shards.get(shard)?.state ?? 'ok'
  }

  /** What the shard's node reported last. */
  shardStatus(shard: ShardId): ShardStatus | undefined {
    return this.#shards.get(shard)
  }

  /** May this shard be expected to take `bytes` now? */
  writable(node: NodeId, shard: ShardId, bytes = 0): boolean {
    if (this.state(node) === 'down' || this.shardState(shard) !== 'ok') return false
    const free = this.#shards.get(shard)?.bytesFree
    return free === undefined || free > bytes
  }

  nodes(): readonly NodeHealth[] {
    return [...this.#nodes].map(([node, entry]) => {
      const reason = this.#reasonOf(entry)
      return {
        node,
        state: this.#stateOf(entry),
        draining: isLeaving(entry),
        ...(reason === undefined ? {} : { reason }),
        ...(entry.checksFailed === 0 ? {} : { silentMs: this.#now() - entry.silentAt }),
        ...(entry.status === undefined ? {} : { status: entry.status }),
      }
    })
  }

  #learn(entry: Entry, status: NodeStatus): void {
    for (const shard of entry.status?.shards ?? []) this.#shards.delete(shard.id)
    entry.status = status
    for (const shard of status.shards) this.#shards.set(shard.id, shard)
  }

  #welcome(entry: Entry): void {
    const now = this.#now()
    entry.checkedDown = false
    entry.failed = entry.unreachable = 0
    entry.ejectedUntil = Math.min(entry.ejectedUntil, now)
    entry.backAt = now
  }

  #forgive(node: NodeId, entry: Entry): void {
    const before = this.#stateOf(entry)
    entry.failed = entry.unreachable = 0
    this.#tell(node, entry, before)
  }

  /** At most half of the nodes are ejected at once: when more seem ill, the illness is rather on our side. */
  #eject(entry: Entry, now: number): void {
    if (entry.ejectedUntil > now) return
    let ejected = 0
    for (const other of this.#nodes.values()) if (other.ejectedUntil > now) ejected += 1
    if (ejected + 1 > Math.floor(this.#nodes.size / 2)) return
    const { ejectionMs, ejectionMsMax } = this.#options
    // A node that behaved for the longest ejection starts over.
    entry.ejections = now - entry.ejectedUntil > ejectionMsMax ? 1 : entry.ejections + 1
    entry.ejectedUntil = now + Math.min(ejectionMsMax, ejectionMs * entry.ejections)
    entry.failed = entry.unreachable = 0
    this.ejectionCount += 1
  }

  #reasonOf(entry: Entry): NodeHealth['reason'] {
    if (entry.checkedDown) return 'checks failed'
    const now = this.#now()
    if (entry.ejectedUntil > now) return 'ejected'
    if (entry.checksFailed > 0) return 'failing'
    // One failed request says nothing: connections break. Two in a row, or one refused connection, do.
    const failing = entry.failed >= 2 || entry.unreachable >= 1
    return failing && now - entry.lastFailureAt <= this.#options.failureMemoryMs ? 'failing' : undefined
  }

  #stateOf(entry: Entry): NodeState {
    const reason = this.#reasonOf(entry)
    if (reason === undefined) return 'up'
    return reason === 'failing' ? 'suspect' : 'down'
  }

  #tell(node: NodeId, entry: Entry, before: NodeState): void {
    if (this.#onChange === undefined) return
    const after = this.#stateOf(entry)
    if (after !== before) this.#onChange(node, after, this.#reasonOf(entry))
  }
}

/** The last it said is that it would go. */
const isLeaving = ({ status }: Entry): boolean => status?.state === 'draining'

function newEntry(): Entry {
  return {
    status: undefined,
    checksFailed: 0,
    silentAt: -Infinity,
    checksGood: 0,
    checkedDown: false,
    unreachable: 0,
    failed: 0,
    lastFailureAt: -Infinity,
    ejections: 0,
    ejectedUntil: -Infinity,
    backAt: -Infinity,
    goodAt: -Infinity,
  }
}
