/**
 * Is this the database that issued what the shards have? Pure. Every reference on a shard names the version and the incarnation of the
 * database that issued it, and a shard tells its newest one: a database that was restored from an older copy, or is another one, has issued
 * less than the shards know.
 */
import { randomUUID } from 'node:crypto'
import type { IssuedVersions } from '../metadata/recovery.ts'

export interface ShardNews {
  readonly id: string
  readonly newest?: { readonly incarnation: string; readonly version: number }
}

/**
 * Which of two databases came later: one that was made from the shards has the next number, `r3~<uuid>`; the first one of a cluster has
 * none. Of one number, versions alone decide.
 */
export function incarnationOrder(incarnation: string): number {
  return Number(/^r(\d{1,9})~/.exec(incarnation)?.[1] ?? 0)
}

/** An incarnation that comes after all of these. */
export function nextIncarnation(known: readonly string[]): string {
  return `r${Math.max(0, ...known.map(incarnationOrder)) + 1}~${randomUUID()}`
}

/** What this shard knows and the database does not; undefined: nothing. */
export function shardDoubt(database: IssuedVersions, { id, newest }: ShardNews): string | undefined {
  if (newest === undefined) return undefined
  const { incarnation, issued } = database
  const earlier = incarnationOrder(newest.incarnation) < incarnationOrder(incarnation)
  if (newest.incarnation !== incarnation && !earlier) {
    return `shard ${id} was last written under another database (${newest.incarnation})`
  }
  if (newest.version <= issued) return undefined
  return `shard ${id} knows version ${newest.version}, the database has issued ${issued}: was it restored from an older copy?`
}

/** The first doubt of any shard. */
export function databaseDoubt(database: IssuedVersions, shards: readonly ShardNews[]): string | undefined {
  return shards.map(shard => shardDoubt(database, shard)).find(doubt => doubt !== undefined)
}
