/** Which replica to ask next. Pure: facts and randomness come in. It orders and never forbids (panic rule). */
import type { NodeState } from './health.ts'
import type { ShardState } from '../../shared/wire.ts'

export interface ReplicaFacts {
  readonly state: NodeState
  readonly draining: boolean
  readonly shard: ShardState
  /** This shard lately did not have the blob, or had a bad copy of it. */
  readonly doubtful: boolean
  /** In the zone of this proxy. */
  readonly local: boolean
  /** Requests of this worker under way at its node. */
  readonly inFlight: number
  /** Of its normal load, above 0 and up to 1: slow start. */
  readonly share: number
  /** Mean time to the first byte of its answers, in ms; 0: not known yet. */
  readonly latencyMs: number
}

/** So little load says nothing about an imbalance; below it reads stay in their zone. */
const localLoadMin = 8
const localLoadRatio = 1.5
/** A shard is slow, its disk failing perhaps or its node overloaded, when it takes so long and so many times as long as the quickest. */
const slowMsMin = 50
const slowRatio = 4

/** 0 is best. Full and read-only shards serve reads as well as others. */
export function replicaTier({ state, draining, shard, doubtful }: ReplicaFacts): number {
  if (doubtful) return 5
  if (shard === 'failed') return 4
  if (state === 'down') return 3
  if (state === 'suspect') return 2
  return draining ? 1 : 0
}

/**
 * Index of the replica to ask, -1 of none. `replicas` stand in ring order, `random` gives [0, 1). Of the best tier: those in the
 * own zone unless they carry too much or are much slower than others, then the less loaded of two drawn at random, the earlier in ring order where equal
 * (so that quiet clusters find their blobs in one node's page cache). A slow one is asked by clients only where all are.
 */
export function chooseReplica(replicas: readonly ReplicaFacts[], random: () => number): number {
  if (replicas.length < 2) return replicas.length - 1
  let best = Infinity
  for (const replica of replicas) best = Math.min(best, replicaTier(replica))
  let pool: number[] = []
  for (let index = 0; index < replicas.length; index += 1) {
    const replica = replicas[index]
    if (replica !== undefined && replicaTier(replica) === best) pool.push(index)
  }
  pool = narrowed(pool, index => share(replicas, index) >= 1 || random() < share(replicas, index))
  const quickestMs = quickest(replicas, pool)
  pool = narrowed(pool, index => !isSlow(replicas[index], quickestMs))
  if (localsCarryTheirPart(replicas, pool)) pool = narrowed(pool, index => replicas[index]?.local === true)
  return lessLoadedOfTwo(replicas, pool, random)
}

/**
 * Indexes of those that are as good as the chosen one but for being slow: who is not asked by clients could not be seen to be quick again
 * (slow-probe.ts).
 */
export function passedOver(replicas: readonly ReplicaFacts[], chosen: number): readonly number[] {
  // Nearly always none is: one comparison for each, in the path of every read.
  if (!replicas.some(({ latencyMs }) => latencyMs > slowMsMin)) return none
  const best = replicas[chosen]
  if (best === undefined) return none
  const tier = replicaTier(best)
  const peers = [...replicas.keys()].filter(index => replicaTier(replicas[index] ?? best) === tier)
  const quickestMs = quickest(replicas, peers)
  return isSlow(best, quickestMs) ? none : peers.filter(index => isSlow(replicas[index], quickestMs))
}

const none: readonly number[] = []

const share = (replicas: readonly ReplicaFacts[], index: number): number => replicas[index]?.share ?? 1

function quickest(replicas: readonly ReplicaFacts[], pool: readonly number[]): number {
  let least = Infinity
  for (const index of pool) least = Math.min(least, replicas[index]?.latencyMs ?? Infinity)
  return least
}

function isSlow(replica: ReplicaFacts | undefined, quickestMs: number): boolean {
  const { latencyMs } = replica ?? { latencyMs: 0 }
  return latencyMs > slowMsMin && latencyMs > slowRatio * quickestMs
}

/** Those that pass, or all where none does. */
function narrowed(pool: number[], passes: (index: number) => boolean): number[] {
  if (pool.length < 2) return pool
  const passing = pool.filter(passes)
  return passing.length > 0 ? passing : pool
}

function localsCarryTheirPart(replicas: readonly ReplicaFacts[], pool: readonly number[]): boolean {
  let locals = 0
  let localLoad = 0
  let load = 0
  for (const index of pool) {
    const replica = replicas[index]
    if (replica === undefined) continue
    load += replica.inFlight
    if (!replica.local) continue
    locals += 1
    localLoad += replica.inFlight
  }
  if (locals === 0) return false
  const mean = load / pool.length
  return localLoad / locals <= Math.max(localLoadMin, localLoadRatio * mean)
}

function lessLoadedOfTwo(replicas: readonly ReplicaFacts[], pool: readonly number[], random: () => number): number {
  const count = pool.length
  if (count < 2) return pool[0] ?? -1
  const first = Math.floor(random() * count)
  // Two different ones: the second draw leaves the first out.
  const second = (first + 1 + Math.floor(random() * (count - 1))) % count
  const [one, other] = [pool[Math.min(first, second)] ?? -1, pool[Math.max(first, second)] ?? -1]
  return (replicas[other]?.inFlight ?? 0) < (replicas[one]?.inFlight ?? 0) ? other : one
}
