/** Asks shards what they hold: summaries, names, versions, and whether they have certain blobs. In pages, one shard at a time. */
import type { ShardId } from '../../shared/ids.ts'
import { inKeyOrder } from '../../shared/key-order.ts'
import {
  wirePath,
  type BlobKey,
  type Entry,
  type EntryListing,
  type SummaryAnswer,
  type TouchAnswer,
  type TouchRequest,
  type VersionsAnswer,
  type VersionsRequest,
} from '../../shared/wire.ts'
import type { NodeClient } from '../routing/node-client.ts'
import type { Calm } from './calm.ts'
import type { ShardSummary } from './compare-sets.ts'

const pageSize = 2_000
/** Of each of several shards whose names are compared; about 160 bytes each in memory. */
const pageInStep = 1_000
/** A shard that has to read its whole index first takes its time. */
const timeoutMs = 30_000
/** Items of one request: small blobs are read for the answer. */
export const touchMax = 200
const versionsMax = 500
const commandTimeoutMs = 120_000
/** Of a disk that clients keep busy, 4 MiB/s are left for all copies together. */
const bytesPerMsMin = 1_000
/** Blobs that one shard is asked to pull with one request. */
const pulledMax = 1_000

export interface ContentsDeps {
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
  /** Holds back what is asked page by page in the background; without it nothing does. */
  readonly calm?: Pick<Calm, 'step'>
}

/** How long a shard may take for a command that moves so many bytes. */
export function commandLimitMs(bytes = 0): number {
  return commandTimeoutMs + bytes / bytesPerMsMin
}

/** Of the partitions `from` to `from + count`. All of these reject with the node's error, or the signal's reason. */
export async function summariesOf(
  { clients }: ContentsDeps,
  shard: ShardId,
  { from, count }: { from: number; count: number },
  signal: AbortSignal,
): Promise<ShardSummary> {
  const path = `${wirePath.summaries(shard)}?from=${from}&count=${count}`
  const { partitions } = await clients
    .ofShard(shard)
    .requestJson<SummaryAnswer>('GET', path, undefined, { signal, timeoutMs, unlessDown: true })
  return new Map(partitions.map(one => [one.partition, one]))
}

export interface NamesPage {
  readonly partition: number
  readonly of: 'blobs' | 'references'
  readonly after?: string
  readonly limit: number
  /** How many there will be, about; absent: nobody knows. */
  readonly expected?: number
}

/** One page of a partition's names. */
export function entriesPage(
  { clients }: ContentsDeps,
  shard: ShardId,
  { partition, of, after, limit }: NamesPage,
  signal?: AbortSignal,
): Promise<EntryListing> {
  const query = new URLSearchParams({ of, limit: String(limit), ...(after === undefined ? {} : { after }) })
  const path = `${wirePath.entries(shard, partition)}?${query.toString()}`
  return clients
    .ofShard(shard)
    .requestJson<EntryListing>('GET', path, undefined, { signal, timeoutMs, unlessDown: true })
}

export async function entriesOf(
  deps: ContentsDeps,
  shard: ShardId,
  partition: number,
  of: 'blobs' | 'references',
  signal: AbortSignal,
): Promise<readonly Entry[]> {
  const found: Entry[] = []
  for (let after: string | undefined, more = true; more;) {
    const page = { partition, of, limit: pageSize, ...(after === undefined ? {} : { after }) }
    const ask = () => entriesPage(deps, shard, page, signal)
    const { entries, next } = deps.calm === undefined ? await ask() : await deps.calm.step([shard], signal, ask)
    found.push(...entries)
    after = next
    more = next !== undefined
  }
  return found
}

export type Names = ReadonlyMap<ShardId, ReadonlyMap<string, Entry>>

/** What all of these shards hold of the same stretch of a partition's names. */
export interface NamesStretch {
  /** The last name before it. */
  readonly after: string | undefined
  readonly held: Names
}

/**
 * A partition's names on several shards, stretch by stretch: at no time more of them are in memory than one page of each shard. Every
 * name that a shard has all the time is in exactly one stretch. Rejects with the error of a shard.
 */
export async function* namesInStep(
  namesOf: (shard: ShardId, page: NamesPage) => Promise<EntryListing>,
  shards: readonly ShardId[],
  { expected, limit = pageInStep, ...what }: Omit<NamesPage, 'limit' | 'after'> & { readonly limit?: number },
): AsyncGenerator<NamesStretch> {
  for (let after: string | undefined, more = true; more;) {
    const hint = expected === undefined ? {} : { expected }
    const page = { ...what, limit, ...(after === undefined ? hint : { after }) }
    const pages = await Promise.all(shards.map(async shard => ({ shard, ...(await namesOf(shard, page)) })))
    // As far as the shortest of the pages goes: behind that, a name that is not in it may be on its shard all the same.
    const ends = pages.flatMap(({ next }) => next ?? [])
    const end = ends.length === 0 ? undefined : ends.reduce((least, one) => (inKeyOrder(one, least) < 0 ? one : least))
    const isIn = ({ key }: Entry): boolean => end === undefined || inKeyOrder(key, end) <= 0
    const held = pages.map(({ shard, entries }) => {
      return [shard, new Map(entries.filter(isIn).map(entry => [entry.key, entry]))] as const
    })
    yield { after, held: new Map(held) }
    after = end
    more = end !== undefined
  }
}

/** Newest versions that the shard has, in the order asked; null: none. */
export async function versionsOf(
  { clients }: ContentsDeps,
  shard: ShardId,
  references: VersionsRequest['references'],
  signal?: AbortSignal,
): Promise<readonly (number | null)[]> {
  const found: (number | null)[] = []
  for (let at = 0; at < references.length; at += versionsMax) {
    const request: VersionsRequest = { shard, references: references.slice(at, at + versionsMax) }
    const answer = await clients.ofShard(shard).requestJson<VersionsAnswer>('POST', wirePath.versions, request, {
      signal,
      timeoutMs,
      repeatable: true,
      unlessDown: true,
    })
    found.push(...answer.versions)
  }
  return found
}

/** Which of these blobs the shard has, as its disk says just now. */
export async function touchAll(
  { clients }: ContentsDeps,
  shard: ShardId,
  blobs: readonly BlobKey[],
  signal?: AbortSignal,
): Promise<TouchAnswer['results']> {
  const found: TouchAnswer['results'][number][] = []
  for (let at = 0; at < blobs.length; at += touchMax) {
    const items = blobs
      .slice(at, at + touchMax)
      .map(({ partition, digest, generation }) => ({ shard, partition, digest, generation }))
    const request: TouchRequest = { items }
    const options = { signal, timeoutMs, repeatable: true, unlessDown: true, background: 'usual' } as const
    const answer = await clients.ofShard(shard).requestJson<TouchAnswer>('POST', wirePath.touch, request, options)
    found.push(...answer.results)
  }
  return found
}

/** Cut so that one request to pull them is short: a number of small ones, or one large one. In their order, none is left out. */
export function batchesOf<Item>(items: readonly Item[], bytesOf: (item: Item) => number, bytesMax: number): Item[][] {
  const batches: Item[][] = []
  let bytes = Infinity
  for (const item of items) {
    const size = bytesOf(item)
    const last = batches.at(-1)
    if (last === undefined || last.length >= pulledMax || bytes + size > bytesMax) {
      batches.push([item])
      bytes = size
    } else {
      last.push(item)
      bytes += size
    }
  }
  return batches
}
