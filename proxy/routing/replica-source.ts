/** The replicas of one blob in the order in which to ask them: owners, handoffs, then whoever says to hold it. */
import type { NodeId, ShardId, Zone } from '../../shared/ids.ts'
import { type TouchAnswer, type TouchRequest, wirePath } from '../../shared/wire.ts'
import type { ClusterView } from './cluster-view.ts'
import type { ReadCounters } from './counters.ts'
import type { HealthTable } from './health.ts'
import { LatencyMean } from './latency.ts'
import type { NodeClient, NodeClients } from './node-client.ts'
import { chooseReplica, passedOver, type ReplicaFacts } from './replica-choice.ts'
import type { BlobLocation } from './types.ts'

/** Handoffs asked without knowing that they hold the blob; writes take them in the same order. */
const handoffCountMax = 3
/** How long a shard that lacked a blob, or had a bad copy, is asked last for it. */
const doubtMs = 30_000
const doubtCountMax = 4_096
/** What a search of the whole cluster found is good for requests right after it. */
const searchMemoryMs = 2_000
const searchCountMax = 256
const searchNodesAtOnce = 16
const searchTimeoutMs = 1_500

const nobody: readonly Replica[] = []

export interface Replica extends ReplicaFacts {
  readonly id: ShardId
  readonly client: NodeClient
  readonly latency: LatencyMean
  /** 'owner': should have the blob, so that lacking it is worth a report. */
  readonly role: 'owner' | 'handoff' | 'found'
}

export interface ReplicasDeps {
  readonly view: ClusterView
  readonly clients: NodeClients
  readonly health: HealthTable
  readonly counters: ReadCounters
  /** Zone of this proxy; undefined: none is nearer. */
  readonly zone: Zone | undefined
  readonly now: () => number
  readonly random: () => number
}

/** What this worker knows about replicas beyond the map and their health. */
export class Replicas {
  readonly deps: ReplicasDeps
  /** `digest.generation shard` -> until when it is asked last. */
  readonly #doubts = new Map<string, number>()
  /** One for each shard that was ever asked. */
  readonly #latencies = new Map<ShardId, LatencyMean>()
  readonly #searches = new Map<string, { readonly found: Promise<readonly ShardId[]>; startedAt: number }>()

  constructor(deps: ReplicasDeps) {
    this.deps = deps
  }

  of(blob: BlobLocation): ReplicaSource {
    return new ReplicaSource(this, blob)
  }

  doubt(blob: BlobLocation, shard: ShardId): void {
    if (this.#doubts.size >= doubtCountMax) {
      for (const oldest of this.#doubts.keys()) {
        this.#doubts.delete(oldest)
        break
      }
    }
    this.#doubts.set(`${blob.digest}.${blob.generation} ${shard}`, this.deps.now() + doubtMs)
  }

  doubtful(blob: BlobLocation, shard: ShardId): boolean {
    if (this.#doubts.size === 0) return false
    const key = `${blob.digest}.${blob.generation} ${shard}`
    const until = this.#doubts.get(key)
    if (until === undefined) return false
    if (until > this.deps.now()) return true
    this.#doubts.delete(key)
    return false
  }

  facts(blob: BlobLocation, id: ShardId, role: Replica['role']): Replica {
    const { view, clients, health, zone } = this.deps
    const node = view.current().node(id)
    const client = clients.get(node)
    const latency = this.#latencyOf(id)
    return {
      id,
      client,
      latency,
      role,
      state: health.state(node.id),
      draining: health.draining(node.id),
      shard: health.shardState(id),
      doubtful: this.doubtful(blob, id),
      local: node.zone === zone,
      inFlight: client.inFlight,
      share: health.share(node.id),
      latencyMs: latency.ms,
    }
  }

  #latencyOf(id: ShardId): LatencyMean {
    let latency = this.#latencies.get(id)
    if (latency === undefined) this.#latencies.set(id, (latency = new LatencyMean()))
    return latency
  }

  /**
   * The shards, of all in the cluster, that say they hold the blob: one short request to each node. Concurrent searches for
   * one blob share it, and so do those within two seconds; past 256 remembered ones nobody searches until some are old.
   */
  async search(blob: BlobLocation): Promise<readonly ShardId[]> {
    const key = `${blob.digest}.${blob.generation}`
    const now = this.deps.now()
    for (const [other, { startedAt }] of this.#searches) {
      if (now - startedAt > searchMemoryMs) this.#searches.delete(other)
    }
    const known = this.#searches.get(key)
    if (known !== undefined) return known.found
    if (this.#searches.size >= searchCountMax) return []
    this.deps.counters.searches += 1
    const found = this.#askAll(blob)
    this.#searches.set(key, { found, startedAt: now })
    return found
  }

  async #askAll(blob: BlobLocation): Promise<readonly ShardId[]> {
    const byNode = new Map<NodeId, ShardId[]>()
    for (const { id, node } of this.deps.view.current().map.shards) {
      const shards = byNode.get(node)
      if (shards === undefined) byNode.set(node, [id])
      else shards.push(id)
    }
    const lists = [...byNode.values()]
    const holders: ShardId[] = []
    const worker = async (): Promise<void> => {
      for (let shards = lists.pop(); shards !== undefined; shards = lists.pop()) {
        holders.push(...(await this.#ask(blob, shards)))
      }
    }
    await Promise.all(Array.from({ length: Math.min(searchNodesAtOnce, lists.length) }, worker))
    return holders
  }

  async #ask({ partition, digest, generation }: BlobLocation, shards: readonly ShardId[]): Promise<ShardId[]> {
    const [first] = shards
    const view = this.deps.view.current()
    if (first === undefined || !view.has(first)) return []
    const request: TouchRequest = { items: shards.map(shard => ({ shard, partition, digest, generation })) }
    try {
      const client = this.deps.clients.ofShard(first)
      const options = { timeoutMs: searchTimeoutMs, repeatable: true }
      const { results } = await client.requestJson<TouchAnswer>('POST', wirePath.touch, request, options)
      return shards.filter((_, index) => results[index] === 'held')
    } catch {
      // A node that cannot be asked holds nothing that could be read now; its client has told the health table.
      return []
    }
  }
}

/** Replicas of one blob for one read: each at most once, until it is given back, or `again`. */
export class ReplicaSource {
  readonly #replicas: Replicas
  readonly #blob: BlobLocation
  #stage: 'owners' | 'handoffs' | 'found' = 'owners'
  #role: Replica['role'] = 'owner'
  #left: ShardId[]
  readonly #slower: ShardId[] = []
  readonly #seen = new Set<ShardId>()
  #expectedMs = Infinity
  #slow: readonly Replica[] = nobody

  constructor(replicas: Replicas, blob: BlobLocation) {
    this.#replicas = replicas
    this.#blob = blob
    this.#left = [...replicas.deps.view.current().sources(blob.partition)]
  }

  /** The replica to ask next, by what is known at this moment; undefined: search, or start again. */
  next(): Replica | undefined {
    if (this.#left.length === 0) this.#left = this.#slower.splice(0)
    if (this.#left.length === 0 && this.#stage === 'owners') this.#addHandoffs()
    const view = this.#replicas.deps.view.current()
    const known = this.#left.filter(shard => view.has(shard))
    const facts = known.map(shard => this.#replicas.facts(this.#blob, shard, this.#role))
    const chosen = chooseReplica(facts, this.#replicas.deps.random)
    const replica = facts[chosen]
    if (replica === undefined) return undefined
    const slow = passedOver(facts, chosen)
    this.#slow = slow.length === 0 ? nobody : slow.flatMap(index => facts[index] ?? [])
    for (const { client } of facts) this.#expectedMs = Math.min(this.#expectedMs, client.reader.latency.p95Ms)
    this.#left = known.filter(shard => shard !== replica.id)
    this.#seen.add(replica.id)
    return replica
  }

  /** Within so many ms one of the replicas that were to be had would answer, 19 times of 20: the quickest of them. */
  get expectedMs(): number {
    return this.#expectedMs
  }

  /** Those that the last one was preferred to for being slow. */
  get slow(): readonly Replica[] {
    return this.#slow
  }

  /** It was asked, and its copy is not to blame: another one was quicker, or its node failed a while ago. It may be asked again, behind those not asked yet. */
  giveBack({ id }: Replica): void {
    this.#slower.push(id)
  }

  /** Asks all nodes who holds the blob; true when that brought replicas not asked before. */
  async search(): Promise<boolean> {
    if (this.#stage === 'found') return false
    this.#stage = 'found'
    const found = await this.#replicas.search(this.#blob)
    this.#role = 'found'
    this.#left = found.filter(shard => !this.#seen.has(shard))
    return this.#left.length > 0
  }

  /** All over again, by the newest map. */
  again(): void {
    this.#stage = 'owners'
    this.#role = 'owner'
    this.#left = [...this.#replicas.deps.view.current().sources(this.#blob.partition)]
    this.#slower.length = 0
    this.#seen.clear()
  }

  #addHandoffs(): void {
    const view = this.#replicas.deps.view.current()
    const { partition } = this.#blob
    this.#stage = 'handoffs'
    this.#role = 'handoff'
    const siblings = view.owners(partition).flatMap(owner => view.siblings(partition, owner).slice(0, 1))
    const handoffs = view.handoffs(partition).slice(0, handoffCountMax)
    // During a change of topology, owners that may not have it yet, and those that were owners before, come first.
    const others = view.allOwners(partition)
    this.#left = [...new Set([...others, ...handoffs, ...siblings])].filter(id => !this.#seen.has(id))
  }
}
