/**
 * Placement: from a topology and the map before it to the next cluster map. Run by the primary when the topology
 * changes, never by readers.
 *
 * In this order: zone spread is a rule, balance follows the weights exactly up to rounding, and movement is the least
 * that both allow. Quotas come first (placement/quotas.ts), old copies are kept and the rest placed in ring order
 * (placement/fill.ts), and a minimum-cost flow settles what the ring could not, so the number of moves is optimal for
 * the quotas (placement/flow.ts). The table is verified from scratch before anyone gets to see it (I18, I19). Equal
 * inputs give equal tables on every machine (I17).
 */
import { type ClusterMap, sealClusterMap, settledEntry, tableProblem, topologyProblems } from './cluster-map.ts'
import { HoldfastError } from './errors.ts'
import { partitionCount } from './partition.ts'
import { adopt, countHeld, heldBefore, type Holders, placeInRingOrder } from './placement/fill.ts'
import { PlacementFlow } from './placement/flow.ts'
import { type Model, modelOf, sortTopology, type Topology } from './placement/model.ts'
import { type Bounds, evenSpread, type Pins, type Quotas, quotasOf, withoutPins } from './placement/quotas.ts'
import { Ring } from './ring.ts'

export type { Topology } from './placement/model.ts'

/** Ring points per shard in the rings inside nodes. */
const shardPoints = 32

/** What a plan costs and how good it is; counts are copies of partitions. */
export interface PlacementReport {
  /** Copies on a shard that did not hold them before. All of them in a first map. */
  readonly moves: number
  /** Moves that no table with these quotas could avoid. */
  readonly movesMin: number
  /** Copies on a node that did not hold them before, and their bound: what crosses the network. */
  readonly nodeMoves: number
  readonly nodeMovesMin: number
  /** Partitions of which more than one copy moves. */
  readonly partitionsMovedTwice: number
  /** Partitions spread over the zones less evenly than they could be, but for pinned ones. Always 0 with `strict`. */
  readonly spreadBroken: number
  /** Fullest and emptiest member relative to its share by weight; 1 is exact. */
  readonly nodeBalance: Balance
  readonly shardBalance: Balance
}

export interface Balance {
  readonly max: number
  readonly min: number
}

export interface TablePlan {
  readonly table: Uint16Array
  readonly copies: number
  readonly report: PlacementReport
}

const nothing: ReadonlySet<number> = new Set()

/**
 * The table for a topology, with the fewest moves from `previous`. Partitions that are `pinned` keep the owners they have there, also where
 * a plan would have moved them; the others even out what can be. Throws TOPOLOGY_INVALID with `data.problems` when the topology cannot be a
 * map, or when the table fails its own verification.
 */
export function planTable(topology: Topology, previous: Holders | undefined, pinned = nothing): TablePlan {
  const sorted = sortTopology(topology)
  refuse(topologyProblems(sorted))
  const model = modelOf(sorted)
  const held = heldBefore(model, previous)
  const pins = pinsOf(model, held, pinned)
  const quotas = withoutPins(model, quotasOf(model, countHeld(model, held), pins), pins)
  const flow = new PlacementFlow(model, quotas)
  const ring = new Ring(model.nodes)
  adopt(model, quotas, held, pinned, flow)
  flow.settle(() => placeInRingOrder(model, ring, flow))
  const table = tableOf(model, ring, assignShards(model, quotas, flow))
  for (const [partition, row] of pinnedRows(sorted, model.copies, previous, pinned)) {
    table.set(row, partition * model.copies)
  }
  return { table, copies: model.copies, report: verifyTable(sorted, table, previous, pinned) }
}

function pinsOf(model: Model, held: readonly (readonly number[])[], pinned: ReadonlySet<number>): Pins {
  const shards = countHeld(model, held.filter((_, partition) => pinned.has(partition))) // prettier-ignore
  return { partitions: pinned.size, shards }
}

/** The owners that the pinned partitions have, as places in the topology's list of shards. */
function pinnedRows(
  { shards }: Topology,
  copies: number,
  previous: Holders | undefined,
  pinned: ReadonlySet<number>,
): [number, number[]][] {
  const places = new Map<string, number>(shards.map(({ id }, place) => [id, place]))
  return [...pinned].map(partition => {
    const width = previous?.copies ?? 0
    const entries = previous?.table.subarray(partition * width, (partition + 1) * width) ?? []
    const row = Array.from(entries).filter(entry => entry !== settledEntry)
    if (row.length !== copies) refuse([`partition ${partition} has ${row.length} owners where ${copies} are wanted`])
    return [partition, row.map(entry => placeOf(previous?.shards[entry]?.id ?? ''))]
  })

  function placeOf(id: string): number {
    return places.get(id) ?? refuse([`shard ${id} still owns partitions, and is in the topology no more`])
  }
}

/**
 * The next cluster map, of the epoch after `previous` (1 without one). Verified by `planTable`; throws as it does, and
 * TOPOLOGY_INVALID when `previous` is of another cluster.
 */
export function buildClusterMap(topology: Topology, previous?: ClusterMap): ClusterMap {
  if (previous !== undefined && previous.clusterId !== topology.clusterId) {
    refuse([`the map before is of cluster ${previous.clusterId}`])
  }
  const { table, copies } = planTable(topology, previous)
  const { clusterId, replicas, spread, nodes, shards } = sortTopology(topology)
  const epoch = (previous?.epoch ?? 0) + 1
  return sealClusterMap({ format: 1, clusterId, epoch, replicas, spread, nodes, shards, table, copies })
}

/**
 * Checks a table against the rules without trusting how it was made: as many copies as possible on distinct nodes,
 * zone spread, exact quotas, nothing on shards of weight 0; of partitions that are `pinned`, that they are where they were. Throws
 * TOPOLOGY_INVALID with `data.problems`; what it returns describes a table fit to publish.
 */
export function verifyTable(
  topology: Topology,
  table: Uint16Array,
  previous: Holders | undefined,
  pinned = nothing,
): PlacementReport {
  const sorted = sortTopology(topology)
  refuse(topologyProblems(sorted))
  const model = modelOf(sorted)
  const problem = tableProblem({ ...sorted, copies: model.copies, table })
  if (problem !== undefined) refuse([problem])

  const rowOf = (partition: number) => table.subarray(partition * model.copies, (partition + 1) * model.copies)
  for (const [partition, row] of pinnedRows(sorted, model.copies, previous, pinned)) {
    if (row.join() !== rowOf(partition).join()) refuse([`partition ${partition} must stay where it is`])
  }

  const held = heldBefore(model, previous)
  const quotas = quotasOf(model, countHeld(model, held), pinsOf(model, held, pinned))
  const modelShard = new Map(model.shards.map((shard, index) => [shard.index, index]))
  const owners = Array.from({ length: partitionCount }, (_, partition) =>
    Array.from(rowOf(partition)).flatMap(entry => {
      const shard = modelShard.get(entry)
      if (shard === undefined && pinned.has(partition)) return []
      return shard ?? refuse([`partition ${partition} is on a shard of weight 0`])
    }),
  )
  const counts = countHeld(model, owners)
  const report = describe(model, quotas, held, owners, pinned)
  const problems = model.shards
    .filter((_, shard) => counts[shard] !== quotas.shards[shard])
    .map(({ id }) => `shard ${id} does not meet its quota`)
  if (model.spread === 'strict' && report.spreadBroken > 0)
    problems.push(`${report.spreadBroken} partitions lose spread`)
  if (report.moves < report.movesMin) problems.push('fewer moves than the least possible: the count is wrong')
  refuse(problems)
  return report
}

/** A shard for each copy: the one that kept it, or a shard of its node with room, in the ring order of that node. */
function assignShards(model: Model, quotas: Quotas, flow: PlacementFlow): number[][] {
  const owners = Array.from({ length: partitionCount }, (): number[] => [])
  model.nodes.forEach((node, index) => {
    const placed: number[] = []
    const room = new Map(node.shards.map(shard => [shard, quotas.shards[shard] ?? 0]))
    const take = (shard: number, partition: number) => {
      room.set(shard, (room.get(shard) ?? 0) - 1)
      owners[partition]?.push(shard)
    }
    owners.forEach((_, partition) => {
      const kept = flow.result(index, partition)
      if (kept === 'placed') placed.push(partition)
      else if (kept !== 'free') take(kept, partition)
    })
    const ring = new Ring(
      node.shards.map(shard => model.shards[shard] ?? refuse([`shard ${shard} is missing`])),
      shardPoints,
    )
    for (const partition of placed) {
      const shard = ring
        .order(partition)
        .map(rank => node.shards[rank] ?? -1)
        .find(shard => (room.get(shard) ?? 0) > 0)
      take(shard ?? refuse([`node ${node.id} has no room for partition ${partition}`]), partition)
    }
  })
  return owners
}

/** The table, each partition's owners in the ring order of their nodes: which zone comes first varies by partition. */
function tableOf(model: Model, ring: Ring, owners: readonly (readonly number[])[]): Uint16Array {
  const table = new Uint16Array(partitionCount * model.copies)
  owners.forEach((shards, partition) => {
    const byNode = new Map(shards.map(shard => [model.shards[shard]?.node ?? -1, shard]))
    const ordered = ring
      .sort(partition, [...byNode.keys()])
      .map(node => model.shards[byNode.get(node) ?? -1]?.index ?? 0)
    table.set(ordered, partition * model.copies)
  })
  return table
}

function describe(
  model: Model,
  quotas: Quotas,
  held: readonly (readonly number[])[],
  owners: readonly (readonly number[])[],
  pinned: ReadonlySet<number>,
): PlacementReport {
  const nodeOf = (shard: number) => model.shards[shard]?.node ?? -1
  const shardMoves = owners.map((shards, partition) => newIn(shards, held[partition] ?? []))
  const nodeMoves = owners.map((shards, partition) => newIn(shards.map(nodeOf), (held[partition] ?? []).map(nodeOf)))
  const heldOnShards = countHeld(model, held)
  const onNodes = (counts: readonly number[]) =>
    model.nodes.map(node => sum(node.shards.map(shard => counts[shard] ?? 0)))
  const counts = countHeld(model, owners)
  const even = evenSpread(model)
  return {
    moves: sum(shardMoves),
    movesMin: missing(quotas.shards, heldOnShards),
    nodeMoves: sum(nodeMoves),
    nodeMovesMin: missing(quotas.nodes, onNodes(heldOnShards)),
    partitionsMovedTwice: shardMoves.filter(moves => moves > 1).length,
    spreadBroken: owners.filter((shards, partition) => !pinned.has(partition) && !isWithin(model, even, shards)).length,
    nodeBalance: balance(model.nodes, onNodes(counts)),
    shardBalance: balance(model.shards, counts),
  }
}

const newIn = (now: readonly number[], before: readonly number[]): number =>
  now.filter(member => !before.includes(member)).length

const missing = (quotas: readonly number[], held: readonly number[]): number =>
  sum(quotas.map((quota, index) => Math.max(0, quota - (held[index] ?? 0))))

function isWithin(model: Model, bounds: readonly Bounds[], shards: readonly number[]): boolean {
  const perZone = model.zones.map(() => 0)
  for (const shard of shards) {
    const zone = model.nodes[model.shards[shard]?.node ?? -1]?.zone ?? -1
    perZone[zone] = (perZone[zone] ?? 0) + 1
  }
  return bounds.every(({ min, max }, zone) => min <= (perZone[zone] ?? 0) && (perZone[zone] ?? 0) <= max)
}

function balance(members: readonly { readonly weight: number }[], counts: readonly number[]): Balance {
  const perWeight = sum(counts) / sum(members.map(({ weight }) => weight))
  const ratios = members.map(({ weight }, index) => (counts[index] ?? 0) / (weight * perWeight))
  return {
    max: ratios.reduce((most, ratio) => Math.max(most, ratio), 0),
    min: ratios.reduce((least, ratio) => Math.min(least, ratio), Infinity),
  }
}

const sum = (numbers: readonly number[]): number => numbers.reduce((total, number) => total + number, 0)

function refuse(problems: readonly [string, ...string[]]): never
function refuse(problems: readonly string[]): undefined
function refuse(problems: readonly string[]): undefined {
  if (problems.length === 0) return undefined
  throw new HoldfastError('TOPOLOGY_INVALID', `topology refused: ${problems.slice(0, 5).join('; ')}`, { problems })
}
