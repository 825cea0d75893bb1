/** How many shards must hold a thing durably before it is acknowledged. `replicas` is R of the cluster map. */

/** Copies of a blob (W): blobs are immutable, so reads and writes need no overlap; 2 is for durability alone. */
export function blobQuorum(replicas: number): number {
  return Math.min(2, replicas)
}

/**
 * Copies of a reference record (W_ref): a majority. With R even and one zone left, half of them: a 4-copy cluster in
 * two zones keeps two nodes when it loses one, and has to go on writing.
 */
export function referenceQuorum(replicas: number, zonesUsable: number): number {
  const oneZoneLeft = zonesUsable < 2 && replicas >= 4 && replicas % 2 === 0
  return oneZoneLeft ? replicas / 2 : Math.floor(replicas / 2) + 1
}

/** Of this many owners, those that must say that they have no reference before there is none (I7): with R = 2 one may have been away. */
export function referenceAbsenceQuorum(replicas: number, owners: number): number {
  return Math.min(owners, Math.max(2, referenceReadQuorum(replicas)))
}

/** Owners that must answer before the newest of their references is taken for the newest there is. */
export function referenceReadQuorum(replicas: number): number {
  return replicas - Math.floor(replicas / 2)
}
