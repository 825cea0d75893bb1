/** What the shards of a partition hold, compared with each other. Pure: no shard, no database. */
import type { ShardId } from '../../shared/ids.ts'
import { emptySet, sameSet } from '../../shared/set-digest.ts'
import type { PartitionSummary } from '../../shared/wire.ts'

/** What one shard said about a range of partitions; a partition that is not in it is empty there. */
export type ShardSummary = ReadonlyMap<number, PartitionSummary>

export interface Suspicion {
  readonly blobs: boolean
  readonly references: boolean
  /** Shards that hold blobs of it without being owners. */
  readonly strays: readonly ShardId[]
  /** How many names the closer look has in memory at once: those of all these shards, blobs first and references after them. */
  readonly names: number
}

/**
 * Is a closer look at this partition needed? Yes where owners differ, and for blobs also where a shard that is no owner has any: what it
 * holds may be a spare copy of something an owner lacks. Shards that did not answer are no part of it.
 */
export function suspect(
  partition: number,
  owners: readonly ShardId[],
  answers: ReadonlyMap<ShardId, ShardSummary>,
): Suspicion {
  const answered = owners.filter(owner => answers.has(owner))
  const setOf = (shard: ShardId, kind: 'blobs' | 'references') => answers.get(shard)?.get(partition)?.[kind] ?? emptySet
  const differ = (kind: 'blobs' | 'references'): boolean => {
    const [first, ...others] = answered.map(shard => setOf(shard, kind))
    return first !== undefined && others.some(other => !sameSet(first, other))
  }
  const strays = [...answers.keys()].filter(shard => !owners.includes(shard) && setOf(shard, 'blobs').count > 0)
  const blobs = strays.length > 0 || differ('blobs')
  const references = differ('references')
  const namesOf = (kind: 'blobs' | 'references', shards: readonly ShardId[]): number =>
    shards.reduce((sum, shard) => sum + setOf(shard, kind).count, 0)
  const names = Math.max(
    blobs ? namesOf('blobs', [...answered, ...strays]) : 0,
    references ? namesOf('references', answered) : 0,
  )
  return { blobs, references, strays, names }
}

/** As many of the first suspects as have at most so many names together, but one in any case. */
export function fewNames<One extends Pick<Suspicion, 'names'>>(
  suspects: readonly One[],
  { namesMax, countMax }: { namesMax: number; countMax: number },
): readonly One[] {
  let names = 0
  let count = 0
  for (const one of suspects) {
    names += one.names
    if (count === countMax || (count > 0 && names > namesMax)) break
    count += 1
  }
  return suspects.slice(0, count)
}

export interface MissingBlob {
  /** `<digest>.<generation>` */
  readonly key: string
  /** Owners that answered and do not have it. */
  readonly missing: readonly ShardId[]
  /** Shards that have it without being owners. */
  readonly handoffs: readonly ShardId[]
}

/** Blobs that not every owner has, or that others have too. */
export function missingBlobs(
  owners: readonly ShardId[],
  held: ReadonlyMap<ShardId, ReadonlySet<string>>,
): readonly MissingBlob[] {
  const answered = owners.filter(owner => held.has(owner))
  const others = [...held.keys()].filter(shard => !owners.includes(shard))
  const keys = new Set([...held.values()].flatMap(set => [...set]))
  const found: MissingBlob[] = []
  for (const key of keys) {
    const missing = answered.filter(shard => held.get(shard)?.has(key) !== true)
    const handoffs = others.filter(shard => held.get(shard)?.has(key) === true)
    if (missing.length > 0 || handoffs.length > 0) found.push({ key, missing, handoffs })
  }
  return found
}

export interface DifferingReference {
  /** `<repository>/<path>` */
  readonly key: string
  /** Of each owner that answered; 0: it has none. */
  readonly versions: ReadonlyMap<ShardId, number>
}

/** Paths of which not every owner has the same version. */
export function differingReferences(
  held: ReadonlyMap<ShardId, ReadonlyMap<string, number>>,
): readonly DifferingReference[] {
  const keys = new Set([...held.values()].flatMap(versions => [...versions.keys()]))
  const found: DifferingReference[] = []
  for (const key of keys) {
    const versions = new Map([...held].map(([shard, known]) => [shard, known.get(key) ?? 0]))
    if (new Set(versions.values()).size > 1) found.push({ key, versions })
  }
  return found
}

/** Owners whose version is older than it should be. One that is newer is left alone: the database may have been restored to an older state. */
export function behind({ versions }: DifferingReference, version: number): readonly ShardId[] {
  return [...versions].filter(([, known]) => known < version).map(([shard]) => shard)
}

/** `<repository>/<path>` taken apart: names of repositories have no slash. */
export function splitKey(key: string): { readonly repository: string; readonly path: string } {
  const slash = key.indexOf('/')
  return { repository: key.slice(0, slash), path: key.slice(slash + 1) }
}
