/**
 * Which shards take a write. Pure: the same map and the same health give the same plan.
 *
 * R targets on distinct nodes: the partition's owners, and for each owner that cannot take the write a handoff in ring
 * order, in the owner's zone if there is one. Two zones are covered whenever two zones have a shard that can take it.
 */
import type { PlacementView } from '../../shared/cluster-map.ts'
import { HoldfastError } from '../../shared/errors.ts'
import type { NodeId, ShardId, Zone } from '../../shared/ids.ts'
import { blobQuorum, referenceQuorum } from '../../shared/quorum.ts'

/** Can a shard take a write now? 'no-room': its node is well, but the shard is full or too small for these bytes. */
export type Writability = 'ok' | 'no-room' | 'unavailable'

export type WritePlacement = Pick<PlacementView, 'map' | 'owners' | 'handoffs' | 'siblings' | 'node'>

export interface WriteTarget {
  readonly shard: ShardId
  readonly node: NodeId
  readonly url: string
  readonly zone: Zone
}

/** What makes a write durable enough to acknowledge. */
export interface Quorum {
  readonly copiesMin: number
  /** 2 when copies are to be in two zones, else 1. */
  readonly zonesMin: number
}

export interface WritePlan {
  readonly owners: readonly ShardId[]
  /** On distinct nodes; owners first. At least `quorum.copiesMin`. */
  readonly targets: readonly WriteTarget[]
  readonly quorum: Quorum
}

export interface WriteQuestion {
  readonly placement: WritePlacement
  readonly writability: (target: WriteTarget) => Writability
  readonly partition: number
  readonly kind: 'blob' | 'reference'
}

/**
 * The targets of a new write. Throws QUORUM_NOT_REACHED when fewer nodes are up than copies are needed, and
 * INSUFFICIENT_STORAGE when enough are up but too few have room.
 */
export function planWrite(question: WriteQuestion): WritePlan {
  const { placement, partition, kind } = question
  const owners = placement.owners(partition)
  const ownerTargets = owners.map(shard => targetOf(placement, shard))
  const lost = ownerTargets.filter(target => question.writability(target) !== 'ok')
  const targets = lost.length === 0 ? ownerTargets : ownerTargets.filter(target => !lost.includes(target))
  if (lost.length > 0 || zonesOf(targets) < 2) fillUp(question, targets, lost)
  const quorum = quorumOf(kind, placement.map.replicas, zonesOf(targets))
  if (targets.length < quorum.copiesMin) throw refusal(question, quorum)
  return { owners, targets, quorum }
}

/** What a write must reach when copies can be in `zonesUsable` zones. */
export function quorumOf(kind: WriteQuestion['kind'], replicas: number, zonesUsable: number): Quorum {
  const copiesMin = kind === 'blob' ? blobQuorum(replicas) : referenceQuorum(replicas, zonesUsable)
  return { copiesMin, zonesMin: Math.max(1, Math.min(2, copiesMin, zonesUsable)) }
}

/** Do these copies (on distinct nodes) suffice? */
export function reaches(quorum: Quorum, copies: readonly WriteTarget[]): boolean {
  return copies.length >= quorum.copiesMin && zonesOf(copies) >= quorum.zonesMin
}

/**
 * Shards that could stand in for an owner now: owners (one may be back since the plan was made), handoffs in ring order, then other
 * shards of the owners' own nodes.
 */
export function spareTargets(question: WriteQuestion): WriteTarget[] {
  const { placement, partition } = question
  const owners = placement.owners(partition)
  const siblings = owners.flatMap(owner => placement.siblings(partition, owner))
  return usable(question, [...owners, ...placement.handoffs(partition), ...siblings])
}

const usable = ({ placement, writability }: WriteQuestion, shards: readonly ShardId[]): WriteTarget[] =>
  shards.map(shard => targetOf(placement, shard)).filter(target => writability(target) === 'ok')

/**
 * The spare that replaces a lost target beside those that are kept: never on a node that has one already; in the lost
 * one's zone, unless only another zone makes the copies cover two.
 */
export function replacementFor(
  lost: WriteTarget | undefined,
  kept: readonly WriteTarget[],
  spares: readonly WriteTarget[],
): WriteTarget | undefined {
  const free = spares.filter(spare => !kept.some(({ node }) => node === spare.node))
  const sameZone = free.find(spare => spare.zone === lost?.zone)
  const onlyZone = zonesOf(kept) === 1 ? kept[0]?.zone : undefined
  if (sameZone !== undefined && sameZone.zone !== onlyZone) return sameZone
  const otherZone = onlyZone === undefined ? undefined : free.find(spare => spare.zone !== onlyZone)
  return otherZone ?? sameZone ?? free[0]
}

/** The owners, and while they are changing also those before, each as a place for references. */
export function placementsOf(view: PlacementView, partition: number): readonly WritePlacement[] {
  return view.previousOwners(partition) === undefined ? [view] : [view, view.before()]
}

const firstHandoffs = 2

/**
 * Where readers look for what writers gave to others than the owners: the first two in ring order, and of each zone as many as it can have
 * owners. `answers`: can this shard be asked now?
 */
export function likelyHandoffs(
  placement: WritePlacement,
  partition: number,
  answers: (shard: ShardId) => boolean,
): readonly ShardId[] {
  const perZone = Math.max(...counted(placement.owners(partition).map(owner => placement.node(owner).zone)).values())
  const taken = new Map<Zone, number>()
  return placement
    .handoffs(partition)
    .filter(answers)
    .filter((shard, at) => {
      const { zone } = placement.node(shard)
      const ofZone = taken.get(zone) ?? 0
      taken.set(zone, ofZone + 1)
      return at < firstHandoffs || ofZone < perZone
    })
}

function counted(zones: readonly Zone[]): ReadonlyMap<Zone, number> {
  const counts = new Map<Zone, number>()
  for (const zone of zones) counts.set(zone, (counts.get(zone) ?? 0) + 1)
  return counts
}

/** Number of zones the targets are in. */
export function zonesOf(targets: readonly WriteTarget[]): number {
  let count = 0
  for (let i = 0; i < targets.length; i += 1) {
    const zone = targets[i]?.zone
    if (targets.findIndex(target => target.zone === zone) === i) count += 1
  }
  return count
}

function targetOf(placement: WritePlacement, shard: ShardId): WriteTarget {
  const { id, url, zone } = placement.node(shard)
  return { shard, node: id, url, zone }
}

/** Adds a handoff for each lost owner to `targets`; swaps the last target when all are in one zone and need not be. */
function fillUp(question: WriteQuestion, targets: WriteTarget[], lost: readonly WriteTarget[]): void {
  const { placement, partition } = question
  // Siblings of owners cost a walk of the ring and are never in another zone: only for owners that are lost.
  const spares = lost.length > 0 ? spareTargets(question) : usable(question, placement.handoffs(partition))
  for (const owner of lost) {
    const spare = replacementFor(owner, targets, spares)
    if (spare !== undefined) targets.push(spare)
  }
  const onlyZone = targets[0]?.zone
  if (targets.length < 2 || zonesOf(targets) > 1) return
  const elsewhere = spares.find(spare => spare.zone !== onlyZone)
  if (elsewhere !== undefined) targets[targets.length - 1] = elsewhere
}

function refusal(question: WriteQuestion, { copiesMin }: Quorum): HoldfastError {
  const { placement, partition, writability } = question
  const owners = placement.owners(partition)
  const siblings = owners.flatMap(owner => placement.siblings(partition, owner))
  const nodesUp = new Set<NodeId>()
  for (const shard of [...owners, ...placement.handoffs(partition), ...siblings]) {
    const target = targetOf(placement, shard)
    if (writability(target) !== 'unavailable') nodesUp.add(target.node)
  }
  return nodesUp.size >= copiesMin
    ? new HoldfastError('INSUFFICIENT_STORAGE', 'too few shards have room', { partition, copiesMin })
    : new HoldfastError('QUORUM_NOT_REACHED', 'too few storage nodes are up', {
        partition,
        copiesMin,
        nodesUp: nodesUp.size,
      })
}
