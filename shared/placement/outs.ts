/**
 * Which shards are taken out because their node or disk stays away, and which are taken in again. Pure.
 *
 *     in ──all proxies see it down for so long, no brake──▶ out ──all see it up again──▶ in
 *
 * The brakes: never a whole zone, never below 75 % of nodes or weight in, never fewer copies than before. Room on the others is looked at
 * where sizes are known (placement/room.ts).
 */
import { type ClusterMap, copiesOf, type MapShard } from '../cluster-map.ts'

/** Of nodes, and of weight, that stay in. */
export const inShareMin = 0.75

/** How one proxy sees the nodes; those in neither list are up. */
export interface NodesSeen {
  readonly down: readonly string[]
  readonly suspect: readonly string[]
}

/** Since when all have agreed, by id of node: that it is down, or that it is up. In the caller's monotonic ms. */
export interface Agreement {
  readonly down: ReadonlyMap<string, number>
  readonly up: ReadonlyMap<string, number>
}

export const noAgreement: Agreement = { down: new Map(), up: new Map() }

/**
 * What all proxies agree on after this look. One that is not sure, or says nothing (undefined), leaves the clock as it is but keeps the
 * node from being agreed on now; one that says the opposite begins anew.
 */
export function agree(
  before: Agreement,
  nodes: readonly string[],
  reports: readonly (NodesSeen | undefined)[],
  now: number,
): { readonly all: Agreement; readonly now: Agreement } {
  const [down, up] = [new Map<string, number>(), new Map<string, number>()]
  const [downNow, upNow] = [new Map<string, number>(), new Map<string, number>()]
  const isComplete = reports.length > 0 && reports.every(report => report !== undefined)
  for (const node of nodes) {
    const words = reports.map(report => wordOn(node, report))
    follow(node, 'down', before.down, down, downNow)
    follow(node, 'up', before.up, up, upNow)
    function follow(id: string, word: 'down' | 'up', old: Agreement['down'], since: typeof down, sure: typeof down) {
      const opposite = word === 'down' ? 'up' : 'down'
      if (words.includes(opposite)) return
      const agreed = isComplete && words.every(one => one === word)
      const at = old.get(id) ?? (agreed ? now : undefined)
      if (at === undefined) return
      since.set(id, at)
      if (agreed) sure.set(id, at)
    }
  }
  return { all: { down, up }, now: { down: downNow, up: upNow } }
}

function wordOn(node: string, report: NodesSeen | undefined): 'up' | 'down' | 'unsure' {
  if (report === undefined || report.suspect.includes(node)) return 'unsure'
  return report.down.includes(node) ? 'down' : 'up'
}

export interface Away {
  /** Nodes that all see down, with for how long, in ms. */
  readonly nodes: ReadonlyMap<string, number>
  /** Shards that their nodes call failed, with for how long, in ms. */
  readonly shards: ReadonlyMap<string, number>
}

export interface Refusal {
  /** Id of a node, or of a shard that failed alone. */
  readonly subject: string
  readonly brake: 'zone' | 'share' | 'copies'
  readonly text: string
}

export interface OutDecision {
  /** Ids of shards. */
  readonly shards: readonly string[]
  readonly refusals: readonly Refusal[]
}

/** For how long something must be away, in ms; 0: it is never taken out. */
export interface OutAfter {
  readonly nodeMs: number
  /** Of a node that is up: there is nobody who could come back by himself. */
  readonly diskMs: number
}

/** The sooner of the two, ms; Infinity: nothing is taken out. */
export function soonestOutMs({ nodeMs, diskMs }: OutAfter): number {
  return Math.min(...[nodeMs, diskMs].filter(ms => ms > 0))
}

/** What is away for long enough goes out, the longest first, as far as the brakes allow. */
export function decideOuts(map: ClusterMap, away: Away, after: OutAfter): OutDecision {
  const candidates = candidatesOf(map, away, after)
  const refusals: Refusal[] = []
  let taken = new Set<string>()
  for (const { subject, shards } of candidates) {
    const wanted = new Set([...taken, ...shards])
    const refusal = brakeOn(map, away, wanted, shards)
    if (refusal === undefined) taken = wanted
    else refusals.push({ subject, ...refusal })
  }
  return { shards: [...taken].sort(), refusals }
}

interface Candidate {
  readonly subject: string
  readonly ms: number
  readonly shards: readonly string[]
}

function candidatesOf(map: ClusterMap, away: Away, { nodeMs, diskMs }: OutAfter): Candidate[] {
  const due = <One extends { readonly ms: number }>(some: readonly One[], afterMs: number): readonly One[] =>
    afterMs === 0 ? [] : some.filter(({ ms }) => ms >= afterMs)
  const isIn = ({ weight }: MapShard): boolean => weight > 0
  const ofNodes = [...away.nodes].map(([node, ms]) => ({
    subject: `node ${node}`,
    ms,
    shards: map.shards.filter(shard => shard.node === node && isIn(shard)).map(({ id }): string => id),
  }))
  const alone = map.shards.filter(shard => isIn(shard) && away.shards.has(shard.id) && !away.nodes.has(shard.node))
  const ofShards = alone.map(({ id }) => ({ subject: `shard ${id}`, ms: away.shards.get(id) ?? 0, shards: [id] }))
  return [...due(ofNodes, nodeMs), ...due(ofShards, diskMs)]
    .filter(({ shards }) => shards.length > 0)
    .sort((one, other) => other.ms - one.ms || (one.subject < other.subject ? -1 : 1))
}

function brakeOn(
  map: ClusterMap,
  away: Away,
  wanted: ReadonlySet<string>,
  shards: readonly string[],
): Omit<Refusal, 'subject'> | undefined {
  // What is away counts too, however briefly: the nodes of a zone that fails are not seen to fail in one moment.
  const isThere = (shard: MapShard): boolean =>
    shard.weight > 0 && !wanted.has(shard.id) && !away.nodes.has(shard.node) && !away.shards.has(shard.id)
  const zones = new Map<string, string>(map.nodes.map(({ id, zone }) => [id, zone]))
  const zoneOf = ({ node }: MapShard): string => zones.get(node) ?? ''
  const own = new Set(map.shards.filter(({ id }) => shards.includes(id)).map(zoneOf))
  for (const zone of own) {
    if (map.shards.some(shard => zoneOf(shard) === zone && isThere(shard))) continue
    const text = `nothing else is up in zone ${zone}, and a zone is never taken out as a whole`
    return { brake: 'zone', text }
  }
  const after = map.shards.map(shard => (wanted.has(shard.id) ? { ...shard, weight: 0 } : shard))
  const share = inShare(map.shards, after)
  if (share < inShareMin) {
    const text = `only ${Math.floor(share * 100)} % of the nodes or their weight would be left in, and ${inShareMin * 100} % have to stay`
    return { brake: 'share', text }
  }
  const copies = copiesOf(map.replicas, after)
  if (copies >= map.copies) return undefined
  return { brake: 'copies', text: `only ${copies} nodes would be left for ${map.copies} copies of everything` }
}

/** Part of the nodes, or of the weight if that is less, that stays in. What was drained counts for nothing. */
export function inShare(before: readonly MapShard[], after: readonly MapShard[]): number {
  const whole = before.map(shard => ({ ...shard, weight: shard.out?.weight ?? shard.weight }))
  const weight = (shards: readonly MapShard[]): number => shards.reduce((sum, one) => sum + one.weight, 0)
  const nodes = (shards: readonly MapShard[]): number =>
    new Set(shards.filter(one => one.weight > 0).map(({ node }) => node)).size
  return Math.min(nodes(after) / nodes(whole), weight(after) / weight(whole))
}

/** Shards that the primary took out, and that are back: their nodes are up for `inAfterMs`, and no node calls them failed. */
export function decideIns(
  map: ClusterMap,
  up: ReadonlyMap<string, number>,
  isWell: (shard: string) => boolean,
  inAfterMs: number,
): readonly string[] {
  return map.shards
    .filter(({ id, node, out }) => out?.auto === true && (up.get(node) ?? -1) >= inAfterMs && isWell(id))
    .map(({ id }) => id)
}
