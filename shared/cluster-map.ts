/**
 * The cluster map: the one document that says which shards own which partition. It is computed once per topology
 * change (shared/placement.ts), stored, and shipped; readers look owners up in O(1) and never compute them.
 *
 *     { format, hash, partitions, clusterId, epoch, replicas, spread, copies, nodes, shards, table,
 *       writesFrom?, previous?: { since, copies, replicas?, table }, checksum }
 *
 * `table` is base64 of little-endian u16: entry `partition * copies + i` is the index in `shards` of the i-th owner.
 * `checksum` is sha256 over the document without it, in the field order above, so a store that reorders JSON fields
 * does no harm and a changed value is always found.
 */
import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { endianness } from 'node:os'
import { HoldfastError } from './errors.ts'
import { type NodeId, parseNodeId, parseShardId, parseZone, type ShardId, type Zone } from './ids.ts'
import { partitionCount } from './partition.ts'

export { PlacementView } from './placement-view.ts'

export interface MapNode {
  readonly id: NodeId
  readonly zone: Zone
  /** `http://host:port`, no path. */
  readonly url: string
}

export interface MapShard {
  readonly id: ShardId
  readonly node: NodeId
  /** Capacity relative to the other shards; 0 drains the shard. At most three decimals. */
  readonly weight: number
  /** Present: it is away, so its weight is 0 for the time being. */
  readonly out?: ShardOut
}

export interface ShardOut {
  /** What it weighs again when it is taken in; above 0. */
  readonly weight: number
  /** Milliseconds since 1970. */
  readonly since: number
  /** The primary took it out, and takes it in again when it is back; false: somebody did, and has to. */
  readonly auto: boolean
}

export interface ClusterMap {
  readonly format: 1
  readonly clusterId: string
  /** Version of the map; only grows. */
  readonly epoch: number
  /** Copies wanted of each partition. */
  readonly replicas: number
  /** 'strict': zone spread before balance. 'balanced': weights first, and some partitions may lose a zone. */
  readonly spread: 'strict' | 'balanced'
  /** Sorted by id. */
  readonly nodes: readonly MapNode[]
  /** Sorted by id. */
  readonly shards: readonly MapShard[]
  /** Entry `partition * copies + i`: index into `shards` of the i-th owner, owners in ring order. */
  readonly table: Uint16Array
  /** Owners each partition has: `replicas`, or the number of nodes with a shard of weight above 0 when that is less. */
  readonly copies: number
  /** Nodes refuse writes that were sent by an older epoch than this (I22); absent before the first change of topology. */
  readonly writesFrom?: number
  /** During a change of topology: who owned what is not settled yet. */
  readonly previous?: PreviousOwners
  /** sha256 in hex of everything above. */
  readonly checksum: string
}

/**
 * The owners before a change of topology, of the partitions whose copies have not all come home to the new ones: reads and references
 * count on both (docs/architecture.md).
 */
export interface PreviousOwners {
  /** Epoch in which the change began. */
  readonly since: number
  readonly copies: number
  /** Copies wanted then, if the change is to another number of copies and there were fewer than wanted: an abort goes back to it. */
  readonly replicas?: number
  /** As `ClusterMap.table`, by `copies` of its own; a partition that is settled has `settledEntry` in all its places. */
  readonly table: Uint16Array
}

/**
 * R by which what went to the owners before the change under way was written, and must be read: a majority of three is no majority of
 * four. The map's own where the number of copies stays.
 */
export function replicasBefore({ replicas, copies, previous }: Pick<ClusterMap, 'replicas' | 'copies' | 'previous'>) {
  return previous === undefined || previous.copies === copies ? replicas : previous.copies
}

/** No index of a shard. */
export const settledEntry = 0xffff

/** In a valid map all entries of a partition say so, or none. */
export function isSettled({ table, copies }: PreviousOwners, partition: number): boolean {
  return table[partition * copies] === settledEntry
}

export const replicasMax = 16
/** A table entry is 16 bits. */
export const shardCountMax = 65_535
export const weightMax = 1e9
/** What people may give a shard; 0 is what a drained one has in the map. Storage nodes take whole numbers of these. */
export const givenWeightMin = 0.001
export const givenWeightMax = 1_000_000
/** About 20 times the map of 10,000 shards; what is longer is no map, and is not parsed. */
const mapCharactersMax = 32 * 1024 * 1024

/** Tables travel little-endian; a typed array's own bytes depend on the machine. */
const isLittleEndian = endianness() === 'LE'

const clusterIdPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
const urlPattern = /^https?:\/\/(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):[1-9][0-9]{0,4}$/

/** The map with its checksum. The only way to make or change one: `sealClusterMap({ ...map, nodes })`. */
export function sealClusterMap(map: Omit<ClusterMap, 'checksum'>): ClusterMap {
  return { ...map, checksum: checksumOf(map) }
}

/** The map as stable JSON: equal maps give equal text. */
export function encodeClusterMap(map: ClusterMap): string {
  assert.equal(map.checksum, checksumOf(map), 'a cluster map is changed by sealClusterMap only')
  return JSON.stringify({ ...document(map), checksum: map.checksum })
}

/**
 * The map that `encodeClusterMap` wrote. Throws CLUSTER_MAP_INVALID naming what is wrong: fields, order of ids, sizes,
 * index ranges, two copies of a partition on one node, checksum. A text with any changed byte is refused.
 */
export function decodeClusterMap(text: string): ClusterMap {
  if (text.length > mapCharactersMax) throw invalid('longer than any map')
  const fields = record(parseJson(text), topFields, 'the map', ['writesFrom', 'previous'])
  if (fields['format'] !== 1) throw invalid('unknown format', { found: fields['format'] })
  if (fields['hash'] !== 'sha256') throw invalid('unknown hash', { found: fields['hash'] })
  if (fields['partitions'] !== partitionCount) throw invalid('wrong partition count', { found: fields['partitions'] })
  const body = {
    format: 1 as const,
    clusterId: matching(fields['clusterId'], clusterIdPattern, 'clusterId'),
    epoch: epoch(fields['epoch'], 'epoch'),
    replicas: integer(fields['replicas'], 1, replicasMax, 'replicas'),
    spread: spread(fields['spread']),
    nodes: list(fields['nodes'], 'nodes').map(decodeNode),
    shards: list(fields['shards'], 'shards').map(decodeShard),
    table: decodeTable(fields['table']),
    copies: integer(fields['copies'], 1, replicasMax, 'copies'),
    ...(fields['writesFrom'] === undefined ? {} : { writesFrom: epoch(fields['writesFrom'], 'writesFrom') }),
    ...(fields['previous'] === undefined ? {} : { previous: decodePrevious(fields['previous']) }),
  }
  const checksum = fields['checksum']
  if (checksum !== checksumOf(body)) throw invalid('checksum mismatch', { found: checksum })
  const problem = topologyProblems(body)[0] ?? tableProblem(body) ?? previousProblem(body)
  if (problem !== undefined) throw invalid(problem)
  return { ...body, checksum }
}

/** What is wrong with nodes and shards that are meant for a map; empty when nothing is. They must be sorted by id. */
export function topologyProblems(map: Pick<ClusterMap, 'clusterId' | 'replicas' | 'nodes' | 'shards'>): string[] {
  const problems: string[] = []
  if (!clusterIdPattern.test(map.clusterId)) problems.push('clusterId must be 1 to 64 of A-Z a-z 0-9 . _ -')
  if (!Number.isInteger(map.replicas) || map.replicas < 1 || map.replicas > replicasMax) {
    problems.push(`replicas must be 1 to ${replicasMax}`)
  }
  if (map.shards.length > shardCountMax) problems.push(`more than ${shardCountMax} shards`)
  problems.push(...orderProblems(map.nodes, 'node'), ...orderProblems(map.shards, 'shard'))
  for (const { id, zone, url } of map.nodes) {
    if (parseNodeId(id) === undefined) problems.push(`node id ${id} is not allowed`)
    if (parseZone(zone) === undefined) problems.push(`zone ${zone} of node ${id} is not allowed`)
    if (!urlPattern.test(url)) problems.push(`url of node ${id} must be http://host:port`)
  }
  const nodes = new Set(map.nodes.map(node => node.id))
  for (const { id, node, weight, out } of map.shards) {
    if (out !== undefined && (weight !== 0 || out.weight === 0 || !isWeight(out.weight))) {
      problems.push(`shard ${id} is out, so it must have weight 0, and one above 0 to come back with`)
    }
    if (parseShardId(id) === undefined) problems.push(`shard id ${id} is not allowed`)
    if (!nodes.has(node)) problems.push(`shard ${id} is on unknown node ${node}`)
    if (!isWeight(weight)) problems.push(`weight of shard ${id} must be 0 to ${weightMax} with three decimals at most`)
  }
  if (!map.shards.some(shard => shard.weight > 0)) problems.push('no shard has a weight above 0')
  return problems
}

/** May somebody give it to a shard? */
export const isGivenWeight = (weight: number): boolean =>
  weight >= givenWeightMin && weight <= givenWeightMax && isWeight(weight)

/** Three decimals, so that each weight has one spelling in JSON and no two texts carry the same map. */
const isWeight = (weight: number): boolean =>
  weight >= 0 && weight <= weightMax && Math.round(weight * 1000) / 1000 === weight

function orderProblems(items: readonly { readonly id: string }[], what: string): string[] {
  return items.flatMap(({ id }, index) => {
    const before = items[index - 1]?.id
    if (before === undefined || before < id) return []
    return [before === id ? `${what} ${id} is named twice` : `${what} ${id} is out of order`]
  })
}

/** For each shard a number that it shares with the shards of its node. */
function nodeNumbers(shards: readonly MapShard[]): Uint32Array {
  const numbers = new Map<string, number>()
  for (const { node } of shards) if (!numbers.has(node)) numbers.set(node, numbers.size)
  return Uint32Array.from(shards, ({ node }) => numbers.get(node) ?? 0)
}

/** Copies each partition can have: `replicas`, or one per node that has a shard to fill. */
export function copiesOf(replicas: number, shards: readonly MapShard[]): number {
  return Math.min(replicas, new Set(shards.filter(shard => shard.weight > 0).map(shard => shard.node)).size)
}

/** What makes the table unusable with these shards, whatever the rules of placement; undefined when nothing does. */
export function tableProblem(map: Pick<ClusterMap, 'replicas' | 'copies' | 'shards' | 'table'>): string | undefined {
  const { copies, shards, table } = map
  const expected = copiesOf(map.replicas, shards)
  if (copies !== expected) return `copies is ${copies} where the shards give ${expected}`
  if (table.length !== partitionCount * copies) return `table has ${table.length} entries`
  const nodes = nodeNumbers(shards)
  for (let partition = 0; partition < partitionCount; partition += 1) {
    const found = rowProblem(table, partition * copies, copies, nodes)
    if (found?.what === 'unknown')
      return `partition ${partition} is on shard index ${found.index}, which does not exist`
    if (found?.what === 'twice')
      return `partition ${partition} is twice on node ${shards[found.index]?.node ?? found.index}`
  }
  return undefined
}

/** What is wrong with one partition's entries, which begin there; undefined: nothing. No lists are made: there are 4,096 of these in each map. */
function rowProblem(
  table: Uint16Array,
  begin: number,
  copies: number,
  nodes: Uint32Array,
): { readonly what: 'unknown' | 'twice'; readonly index: number } | undefined {
  for (let place = begin; place < begin + copies; place += 1) {
    const index = table[place] ?? settledEntry
    const node = nodes[index]
    if (node === undefined) return { what: 'unknown', index }
    for (let other = begin; other < place; other += 1) {
      if (nodes[table[other] ?? settledEntry] === node) return { what: 'twice', index }
    }
  }
  return undefined
}

/** What makes the list of previous owners unusable; undefined when nothing does. */
export function previousProblem({ shards, epoch, previous }: Pick<ClusterMap, 'shards' | 'epoch' | 'previous'>) {
  if (previous === undefined) return undefined
  const { copies, replicas = copies, table, since } = previous
  if (since > epoch) return 'the change of topology began in a later epoch'
  if (replicas < copies) return `${copies} previous owners where ${replicas} were wanted`
  if (table.length !== partitionCount * copies) return `the previous table has ${table.length} entries`
  const nodes = nodeNumbers(shards)
  let unsettled = 0
  for (let partition = 0; partition < partitionCount; partition += 1) {
    const begin = partition * copies
    if (table.subarray(begin, begin + copies).every(index => index === settledEntry)) continue
    unsettled += 1
    const found = rowProblem(table, begin, copies, nodes)
    if (found?.what === 'unknown')
      return `partition ${partition} was on shard index ${found.index}, which does not exist`
    if (found?.what === 'twice') return `partition ${partition} was twice on a node`
  }
  return unsettled === 0 ? 'every partition is settled, yet previous owners are named' : undefined
}

const topFields = [
  ...['format', 'hash', 'partitions', 'clusterId', 'epoch', 'replicas', 'spread', 'copies'],
  ...['nodes', 'shards', 'table', 'checksum'],
]

/** The document without its checksum, fields in their fixed order. */
function document(map: Omit<ClusterMap, 'checksum'>): Record<string, unknown> {
  return {
    format: map.format,
    hash: 'sha256',
    partitions: partitionCount,
    clusterId: map.clusterId,
    epoch: map.epoch,
    replicas: map.replicas,
    spread: map.spread,
    copies: map.copies,
    nodes: map.nodes.map(({ id, zone, url }) => ({ id, zone, url })),
    shards: map.shards.map(({ id, node, weight, out }) => ({
      ...{ id, node, weight },
      ...(out === undefined ? {} : { out: { weight: out.weight, since: out.since, auto: out.auto } }),
    })),
    table: encodeTable(map.table),
    ...(map.writesFrom === undefined ? {} : { writesFrom: map.writesFrom }),
    ...(map.previous === undefined ? {} : { previous: previousDocument(map.previous) }),
  }
}

function previousDocument({ since, copies, replicas, table }: PreviousOwners): Record<string, unknown> {
  return { since, copies, ...(replicas === undefined ? {} : { replicas }), table: encodeTable(table) }
}

function decodePrevious(value: unknown): PreviousOwners {
  const fields = record(value, ['since', 'copies', 'table'], 'previous', ['replicas'])
  const { replicas } = fields
  return {
    since: epoch(fields['since'], 'since'),
    copies: integer(fields['copies'], 1, replicasMax, 'previous copies'),
    ...(replicas === undefined ? {} : { replicas: integer(replicas, 1, replicasMax, 'previous replicas') }),
    table: decodeTable(fields['table']),
  }
}

const epoch = (value: unknown, what: string): number => integer(value, 1, Number.MAX_SAFE_INTEGER, what)

function checksumOf(map: Omit<ClusterMap, 'checksum'>): string {
  return hash('sha256', JSON.stringify(document(map)))
}

/** A new map goes to every process at once, whose code for it is cold: entries are copied in bulk, not one by one. */
function encodeTable(table: Uint16Array): string {
  const bytes = Buffer.from(table.buffer, table.byteOffset, table.byteLength)
  return (isLittleEndian ? bytes : Buffer.from(bytes).swap16()).toString('base64')
}

function decodeTable(value: unknown): Uint16Array {
  if (typeof value !== 'string') throw invalid('table must be a text')
  const bytes = Buffer.from(value, 'base64')
  // Base64 has several spellings of some bytes, and the decoder skips what it does not know; only ours is accepted.
  if (bytes.length % 2 !== 0 || bytes.toString('base64') !== value) throw invalid('table is not base64 of u16 entries')
  if (!isLittleEndian) bytes.swap16()
  const table = new Uint16Array(bytes.length / 2)
  bytes.copy(new Uint8Array(table.buffer))
  return table
}

function decodeNode(value: unknown): MapNode {
  const fields = record(value, ['id', 'zone', 'url'], 'a node')
  const id = parseNodeId(string(fields['id'], 'node id'))
  const zone = parseZone(string(fields['zone'], 'zone'))
  if (id === undefined || zone === undefined) throw invalid('node id or zone not allowed', fields)
  return { id, zone, url: matching(fields['url'], urlPattern, 'node url') }
}

function decodeShard(value: unknown): MapShard {
  const fields = record(value, ['id', 'node', 'weight'], 'a shard', ['out'])
  const id = parseShardId(string(fields['id'], 'shard id'))
  const node = parseNodeId(string(fields['node'], 'node of a shard'))
  if (id === undefined || node === undefined) throw invalid('shard id or its node not allowed', fields)
  const weight = fields['weight']
  if (typeof weight !== 'number' || !isWeight(weight))
    throw invalid('weight out of range', { shard: id, found: weight })
  return { id, node, weight, ...(fields['out'] === undefined ? {} : { out: decodeOut(fields['out']) }) }
}

function decodeOut(value: unknown): ShardOut {
  const { weight, since, auto } = record(value, ['weight', 'since', 'auto'], 'out of a shard')
  if (typeof weight !== 'number' || !isWeight(weight) || typeof auto !== 'boolean') {
    throw invalid('weight of a shard that is out, or who took it out, not allowed')
  }
  return { weight, since: integer(since, 0, Number.MAX_SAFE_INTEGER, 'since when a shard is out'), auto }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new HoldfastError('CLUSTER_MAP_INVALID', 'cluster map: not JSON', {}, { cause })
  }
}

function record(
  value: unknown,
  names: readonly string[],
  what: string,
  optional: readonly string[] = [],
): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid(`${what} must be an object`)
  const found = Object.keys(value)
  const missing = names.find(name => !found.includes(name))
  if (missing !== undefined) throw invalid(`${what} lacks ${missing}`)
  if (found.some(name => !names.includes(name) && !optional.includes(name)))
    throw invalid(`${what} has unknown fields`, { found })
  return value as Record<string, unknown>
}

function list(value: unknown, what: string): unknown[] {
  if (!Array.isArray(value) || value.length > shardCountMax) throw invalid(`${what} must be a list`)
  return value
}

function string(value: unknown, what: string): string {
  if (typeof value !== 'string') throw invalid(`${what} must be a text`)
  return value
}

function matching(value: unknown, pattern: RegExp, what: string): string {
  const text = string(value, what)
  if (!pattern.test(text)) throw invalid(`${what} not allowed`, { found: text })
  return text
}

function integer(value: unknown, min: number, max: number, what: string): number {
  if (Number.isInteger(value) && (value as number) >= min && (value as number) <= max) return value as number
  throw invalid(`${what} must be a whole number from ${min} to ${max}`, { found: value })
}

function spread(value: unknown): 'strict' | 'balanced' {
  if (value !== 'strict' && value !== 'balanced') throw invalid('unknown spread', { found: value })
  return value
}

function invalid(problem: string, data: Record<string, unknown> = {}): HoldfastError {
  return new HoldfastError('CLUSTER_MAP_INVALID', `cluster map: ${problem}`, data)
}
