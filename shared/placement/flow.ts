/**
 * The exact part of planning: a minimum-cost flow from partitions to nodes.
 *
 *     partition --(0..max-min)--> partition in zone --1--> node --quota--> sink
 *                                        \--1, "kept"--> shard --quota--^
 *
 * Each partition must place its copies; a zone's minimum starts at "partition in zone", the rest at "partition". A copy
 * that stays on the shard that held it before is free and passes through that shard, whose quota limits it; any other
 * placement costs 1. Legal old placements are taken over as they are, surplus included. That is optimal for the supplies
 * it meets (no cost is negative), and shortest augmenting paths from what is left over keep it so: the result meets all
 * quotas exactly with the fewest copies moved. Costs are -1, 0 and 1, so distances stay tiny and each phase (one search
 * for distances, then blocking flows along shortest paths) settles many copies at once.
 */
import assert from 'node:assert/strict'
import { partitionCount } from '../partition.ts'
import type { Model } from './model.ts'
import type { Quotas } from './quotas.ts'

/** What a pair of partition and node holds: nothing, a copy new to its shard, or one kept on its shard. */
export const pairState = { free: 0, placed: 1, kept: 2 } as const

const unreached = 0x7fffffff

// Every `!` below reads an array at an index that the model or the graph's own numbering made, so a missing
// element could only be a bug of the numbering; `settle` and the verification of the table would both stop at it.

export class PlacementFlow {
  /** By `node * partitionCount + partition`: a value of `pairState`. */
  readonly state: Uint8Array
  /** Likewise: 1 + the shard of that node that held the partition before, or 0. */
  readonly before: Uint16Array
  /** Partitions that a shard held before. */
  readonly heldBy: readonly number[][]
  /** Copies a partition has yet to place anywhere, and in a zone that must have one (`partition * zones + zone`). */
  readonly holes: Uint8Array
  readonly zoneHoles: Uint8Array
  /** Kept copies of a shard above its quota. */
  readonly surplus: Int32Array
  /** Copies on a node that count against its quota. */
  readonly filled: Int32Array

  readonly #model: Model
  readonly #quotas: Quotas
  readonly #zoneCount: number
  /** By partition and zone: copies above the zone's minimum. */
  readonly #optional: Uint8Array
  readonly #spare: readonly number[]
  /** Kept copies of a shard within its quota. */
  readonly #keptWithin: Int32Array
  readonly #potential: Int32Array
  readonly #firstShard: number
  readonly #firstNode: number
  #arcCost = 0

  constructor(model: Model, quotas: Quotas) {
    this.#model = model
    this.#quotas = quotas
    this.#zoneCount = model.zones.length
    this.#spare = quotas.bounds.map(({ min, max }) => max - min)
    this.state = new Uint8Array(model.nodes.length * partitionCount)
    this.before = new Uint16Array(model.nodes.length * partitionCount)
    this.heldBy = model.shards.map(() => [])
    this.holes = new Uint8Array(partitionCount)
    this.zoneHoles = new Uint8Array(partitionCount * this.#zoneCount)
    this.#optional = new Uint8Array(partitionCount * this.#zoneCount)
    this.surplus = new Int32Array(model.shards.length)
    this.#keptWithin = new Int32Array(model.shards.length)
    this.filled = new Int32Array(model.nodes.length)
    this.#firstShard = partitionCount * (1 + this.#zoneCount)
    this.#firstNode = this.#firstShard + model.shards.length
    this.#potential = new Int32Array(this.#firstNode + model.nodes.length)
  }

  /** Takes over one partition's old copies: `held` on distinct nodes, `kept` those of them that break no rule. */
  adopt(partition: number, held: readonly number[], kept: readonly number[]): void {
    const { bounds } = this.#quotas
    const perZone = bounds.map(() => 0)
    for (const shard of held) {
      this.before[this.#cell(this.#nodeOf(shard), partition)] = shard + 1
      this.heldBy[shard]?.push(partition)
    }
    for (const shard of kept) {
      const node = this.#nodeOf(shard)
      this.state[this.#cell(node, partition)] = pairState.kept
      const zone = this.#zoneOf(node)
      perZone[zone] = (perZone[zone] ?? 0) + 1
      if (this.#keptWithin[shard]! < this.#quotas.shards[shard]!) {
        this.#keptWithin[shard]! += 1
        this.filled[node]! += 1
      } else this.surplus[shard]! += 1
    }
    let holes = this.#model.copies
    bounds.forEach(({ min }, zone) => {
      const copies = perZone[zone] ?? 0
      this.#optional[partition * this.#zoneCount + zone] = Math.max(0, copies - min)
      this.zoneHoles[partition * this.#zoneCount + zone] = Math.max(0, min - copies)
      holes -= Math.max(min, copies)
    })
    assert.ok(holes >= 0, 'kept copies leave room for the zones that must have one')
    this.holes[partition] = holes
  }

  /** Room left on a node. */
  room(node: number): number {
    return this.#quotas.nodes[node]! - this.filled[node]!
  }

  /** Fills one hole of the partition on the node if the rules allow it. */
  place(partition: number, node: number): boolean {
    const pair = partition * this.#zoneCount + this.#zoneOf(node)
    const cell = this.#cell(node, partition)
    if (this.state[cell] !== pairState.free || this.room(node) <= 0) return false
    if (this.zoneHoles[pair]! > 0) this.zoneHoles[pair]! -= 1
    else if (this.holes[partition]! > 0 && this.#optional[pair]! < this.#spare[this.#zoneOf(node)]!) {
      this.holes[partition]! -= 1
      this.#optional[pair]! += 1
    } else return false
    this.state[cell] = pairState.placed
    this.filled[node]! += 1
    return true
  }

  /** Moves a partition from a shard with surplus to the node (which may be the shard's own) if the rules allow it. */
  move(shard: number, partition: number, node: number): boolean {
    const from = this.#nodeOf(shard)
    const cell = this.#cell(from, partition)
    if (this.surplus[shard]! <= 0 || this.state[cell] !== pairState.kept || this.room(node) <= 0) return false
    if (node !== from) {
      if (this.state[this.#cell(node, partition)] !== pairState.free) return false
      if (!this.#changeZone(partition, this.#zoneOf(from), this.#zoneOf(node))) return false
      this.state[cell] = pairState.free
    }
    this.state[this.#cell(node, partition)] = pairState.placed
    this.surplus[shard]! -= 1
    this.filled[node]! += 1
    return true
  }

  /**
   * Places everything still open. `atFirstMoves` is called at most once, when no copy can be placed for free any more and
   * the next ones cost one move each: then, and only then, direct calls of `place` and `move` follow shortest paths too.
   */
  settle(atFirstMoves: () => void): void {
    let distance = 0
    let called = false
    while (this.#open()) {
      const step = this.#measure()
      assert.ok(step !== undefined, 'quotas can always be met')
      distance += step
      if (distance === 1 && !called) {
        called = true
        atFirstMoves()
      }
      while (this.#augmentAlongShortest()) continue
    }
  }

  /** What the node holds of the partition once settled: nothing, a copy for any shard with room, or one kept on a shard. */
  result(node: number, partition: number): 'free' | 'placed' | number {
    const cell = this.#cell(node, partition)
    if (this.state[cell] === pairState.kept) return this.before[cell]! - 1
    return this.state[cell] === pairState.placed ? 'placed' : 'free'
  }

  #cell(node: number, partition: number): number {
    return node * partitionCount + partition
  }

  #nodeOf(shard: number): number {
    return this.#model.shards[shard]!.node
  }

  #zoneOf(node: number): number {
    return this.#model.nodes[node]!.zone
  }

  #changeZone(partition: number, from: number, to: number): boolean {
    if (from === to) return true
    const base = partition * this.#zoneCount
    if (this.#optional[base + from]! === 0 || this.#optional[base + to]! >= this.#spare[to]!) return false
    this.#optional[base + from]! -= 1
    this.#optional[base + to]! += 1
    return true
  }

  #open(): boolean {
    const some = (counts: Uint8Array | Int32Array) => counts.some(count => count > 0)
    return some(this.holes) || some(this.zoneHoles) || some(this.surplus)
  }

  // Vertices: partitions, then partitions in zones, then shards, then nodes. Arcs of a vertex are numbered, and those
  // without residual capacity have no target; nothing of the graph but the arrays above is stored.

  #supply(vertex: number): number {
    if (vertex < partitionCount) return this.holes[vertex]!
    if (vertex < this.#firstShard) return this.zoneHoles[vertex - partitionCount]!
    return vertex < this.#firstNode ? this.surplus[vertex - this.#firstShard]! : 0
  }

  #takeSupply(vertex: number): void {
    if (vertex < partitionCount) this.holes[vertex]! -= 1
    else if (vertex < this.#firstShard) this.zoneHoles[vertex - partitionCount]! -= 1
    else this.surplus[vertex - this.#firstShard]! -= 1
  }

  #arcs(vertex: number): number {
    if (vertex < partitionCount) return this.#zoneCount
    if (vertex < this.#firstShard) {
      return 1 + 2 * this.#model.zones[(vertex - partitionCount) % this.#zoneCount]!.nodes.length
    }
    if (vertex < this.#firstNode) return 1 + 2 * this.heldBy[vertex - this.#firstShard]!.length
    return this.#model.nodes[vertex - this.#firstNode]!.shards.length + 2 * partitionCount
  }

  /** The vertex that the arc leads to, or -1 when nothing more can pass it; its cost is left in `#arcCost`. */
  #follow(vertex: number, arc: number): number {
    this.#arcCost = 0
    if (vertex < partitionCount) return this.#followPartition(vertex, arc)
    if (vertex < this.#firstShard) return this.#followZone(vertex - partitionCount, arc)
    if (vertex < this.#firstNode) return this.#followShard(vertex - this.#firstShard, arc)
    return this.#followNode(vertex - this.#firstNode, arc)
  }

  #followPartition(partition: number, zone: number): number {
    const pair = partition * this.#zoneCount + zone
    return this.#optional[pair]! < this.#spare[zone]! ? partitionCount + pair : -1
  }

  #followZone(pair: number, arc: number): number {
    const partition = Math.floor(pair / this.#zoneCount)
    if (arc === 0) return this.#optional[pair]! > 0 ? partition : -1
    const node = this.#model.zones[pair - partition * this.#zoneCount]!.nodes[(arc - 1) >> 1]!
    const cell = this.#cell(node, partition)
    if (this.state[cell] !== pairState.free) return -1
    if (arc % 2 === 0) return this.before[cell]! > 0 ? this.#firstShard + this.before[cell]! - 1 : -1
    this.#arcCost = 1
    return this.#firstNode + node
  }

  #followShard(shard: number, arc: number): number {
    const node = this.#nodeOf(shard)
    if (arc === 0) return this.#keptWithin[shard]! < this.#quotas.shards[shard]! ? this.#firstNode + node : -1
    const partition = this.heldBy[shard]![(arc - 1) >> 1]!
    if (this.state[this.#cell(node, partition)] !== pairState.kept) return -1
    if (arc % 2 === 1) return partitionCount + partition * this.#zoneCount + this.#zoneOf(node)
    this.#arcCost = 1
    return this.#firstNode + node
  }

  #followNode(node: number, arc: number): number {
    const { shards, zone } = this.#model.nodes[node]!
    if (arc < shards.length) return this.#keptWithin[shards[arc]!]! > 0 ? this.#firstShard + shards[arc]! : -1
    const partition = (arc - shards.length) >> 1
    const cell = this.#cell(node, partition)
    if (this.state[cell] !== pairState.placed) return -1
    this.#arcCost = -1
    if ((arc - shards.length) % 2 === 0) return partitionCount + partition * this.#zoneCount + zone
    return this.before[cell]! > 0 ? this.#firstShard + this.before[cell]! - 1 : -1
  }

  /** Sends one copy along an arc that `#follow` just allowed. */
  #send(vertex: number, arc: number): void {
    if (vertex < partitionCount) {
      this.#optional[vertex * this.#zoneCount + arc]! += 1
    } else if (vertex < this.#firstShard) {
      const pair = vertex - partitionCount
      const partition = Math.floor(pair / this.#zoneCount)
      if (arc === 0) this.#optional[pair]! -= 1
      else {
        const node = this.#model.zones[pair - partition * this.#zoneCount]!.nodes[(arc - 1) >> 1]!
        this.state[this.#cell(node, partition)] = arc % 2 === 0 ? pairState.kept : pairState.placed
      }
    } else if (vertex < this.#firstNode) {
      const shard = vertex - this.#firstShard
      if (arc === 0) this.#keptWithin[shard]! += 1
      else {
        const cell = this.#cell(this.#nodeOf(shard), this.heldBy[shard]![(arc - 1) >> 1]!)
        this.state[cell] = arc % 2 === 1 ? pairState.free : pairState.placed
      }
    } else {
      const node = vertex - this.#firstNode
      const { shards } = this.#model.nodes[node]!
      if (arc < shards.length) this.#keptWithin[shards[arc]!]! -= 1
      else {
        const back = (arc - shards.length) % 2 === 0
        this.state[this.#cell(node, (arc - shards.length) >> 1)] = back ? pairState.free : pairState.kept
      }
    }
  }

  #isSink(vertex: number): boolean {
    return vertex >= this.#firstNode && this.room(vertex - this.#firstNode) > 0
  }

  /**
   * Reduced distances from all supplies by buckets (Dial), stopped at the nearest node with room, and added to the
   * potentials. Returns that node's distance, undefined when none can be reached.
   */
  #measure(): number | undefined {
    const potential = this.#potential
    const distance = new Int32Array(potential.length).fill(unreached)
    const buckets: number[][] = [[]]
    for (let vertex = 0; vertex < this.#firstNode; vertex += 1) {
      if (this.#supply(vertex) === 0) continue
      distance[vertex] = 0
      buckets[0]!.push(vertex)
    }
    for (let near = 0; near < buckets.length; near += 1) {
      const bucket = (buckets[near] ??= [])
      for (let vertex = bucket.pop(); vertex !== undefined; vertex = bucket.pop()) {
        if (distance[vertex] !== near) continue
        if (this.#isSink(vertex)) {
          for (let i = 0; i < potential.length; i += 1) potential[i]! += Math.min(distance[i]!, near)
          return near
        }
        for (let arc = this.#arcs(vertex) - 1; arc >= 0; arc -= 1) {
          const next = this.#follow(vertex, arc)
          if (next < 0) continue
          const far = near + this.#arcCost + potential[vertex]! - potential[next]!
          if (far >= distance[next]!) continue
          distance[next] = far
          ;(buckets[far] ??= []).push(next)
        }
      }
    }
    return undefined
  }

  /** One blocking flow along the arcs without reduced cost; false when no supply reaches a node with room that way. */
  #augmentAlongShortest(): boolean {
    const level = this.#levels()
    if (level === undefined) return false
    const current = new Int32Array(level.length)
    for (let vertex = 0; vertex < this.#firstNode; vertex += 1) {
      if (level[vertex] !== 0) continue
      while (this.#supply(vertex) > 0 && this.#augment(vertex, level, current)) this.#takeSupply(vertex)
    }
    return true
  }

  /** Hops from the supplies along arcs without reduced cost, as far as the first node with room. */
  #levels(): Int32Array | undefined {
    const potential = this.#potential
    const level = new Int32Array(potential.length).fill(-1)
    let front: number[] = []
    for (let vertex = 0; vertex < this.#firstNode; vertex += 1) {
      if (this.#supply(vertex) === 0) continue
      level[vertex] = 0
      front.push(vertex)
    }
    for (let hops = 1; front.length > 0; hops += 1) {
      const next: number[] = []
      for (const vertex of front) {
        for (let arc = this.#arcs(vertex) - 1; arc >= 0; arc -= 1) {
          const to = this.#follow(vertex, arc)
          if (to < 0 || level[to] !== -1 || this.#arcCost + potential[vertex]! !== potential[to]!) continue
          level[to] = hops
          next.push(to)
        }
      }
      if (next.some(vertex => this.#isSink(vertex))) return level
      front = next
    }
    return undefined
  }

  /** Finds a path to a node with room, each step one level up, and sends one copy along it. */
  #augment(vertex: number, level: Int32Array, current: Int32Array): boolean {
    if (this.#isSink(vertex)) {
      this.filled[vertex - this.#firstNode]! += 1
      return true
    }
    for (const arcs = this.#arcs(vertex); current[vertex]! < arcs; current[vertex]! += 1) {
      const arc = current[vertex]!
      const next = this.#follow(vertex, arc)
      if (next < 0 || level[next] !== level[vertex]! + 1) continue
      if (this.#arcCost + this.#potential[vertex]! !== this.#potential[next]!) continue
      if (!this.#augment(next, level, current)) continue
      this.#send(vertex, arc)
      return true
    }
    return false
  }
}
