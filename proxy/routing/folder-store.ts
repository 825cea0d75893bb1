/**
 * A folder as the shards know it, while PostgreSQL cannot be asked: every shard tells its part of a page, and as far as all of them have
 * told, the newest reference of each path is the truth, provided that of each partition as many owners have answered as a single read
 * needs to say "absent". A folder in the folder is there if one path in it is: whoever names a live one is checked against the others.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { atMost } from '../../shared/at-most.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { inKeyOrder } from '../../shared/key-order.ts'
import { partitionOf } from '../../shared/partition.ts'
import { type FolderAnswer, type FolderRequest, type VersionsAnswer, wirePath } from '../../shared/wire.ts'
import type { ClusterView } from './cluster-view.ts'
import { AnsweredPartitions, isMet, ownerQuorums } from './folder-quorum.ts'
import type { HealthTable } from './health.ts'
import { type FolderChild, FolderMerge, type Witness } from './merge-folder.ts'
import type { NodeClients } from './node-client.ts'
import type { FolderContents, FolderStore, ListedChild } from './types.ts'
import { likelyHandoffs, placementsOf } from './write-plan.ts'

/** A shard looks into 4,096 partitions: a third of a second of CPU. */
const askTimeoutMs = 10_000
const versionsTimeoutMs = 3_000
/** Once enough shards have answered, the others get as long again as that took, but at least this, to tell what is newer. */
const graceMsMin = 300
const shardsAtOnce = 16
const versionsMax = 500
/** Of a page from each shard; with many shards each has only a part of the folder. */
const pageMin = 64
const pageMax = 3_000

export interface FolderLimits {
  /** References of each shard that are looked at for one listing. */
  readonly referencesMax: number
  /** Questions to all shards. */
  readonly pagesMax: number
  readonly timeMs: number
}
export const folderLimits: FolderLimits = { referencesMax: 100_000, pagesMax: 100, timeMs: 30_000 }

export interface ShardFoldersDeps {
  readonly view: ClusterView
  readonly health: Pick<HealthTable, 'state' | 'shardState'>
  readonly clients: Pick<NodeClients, 'ofShard'>
  readonly limits?: FolderLimits
}

export class ShardFolders implements FolderStore {
  readonly #deps: ShardFoldersDeps

  constructor(deps: ShardFoldersDeps) {
    this.#deps = deps
  }

  list(folder: string, start: string, limit: number, signal: AbortSignal): Promise<FolderContents> {
    return new FolderListing(this.#deps, folder, signal).run(start, limit)
  }
}

interface Page {
  readonly children: readonly FolderChild[]
  readonly next: string | undefined
  readonly answered: ReadonlySet<ShardId>
}

class FolderListing {
  readonly #deps: ShardFoldersDeps
  readonly #folder: string
  readonly #signal: AbortSignal
  readonly #limits: FolderLimits
  readonly #startedAt = performance.now()
  #references = 0
  #pages = 0

  constructor(deps: ShardFoldersDeps, folder: string, signal: AbortSignal) {
    this.#deps = deps
    this.#folder = folder
    this.#signal = signal
    this.#limits = deps.limits ?? folderLimits
  }

  async run(start: string, limit: number): Promise<FolderContents> {
    const found: ListedChild[] = []
    try {
      let size = this.#pageSize(limit + 1)
      for (let from: string | undefined = start; from !== undefined;) {
        const page: Page = await this.#page({ folder: this.#folder, start: from, limit: size })
        // No more than are needed: each folder may take questions.
        for (let at = 0; at < page.children.length && found.length <= limit; at += limit + 1) {
          await this.#settle(page.children.slice(at, at + limit + 1), page.answered, found)
        }
        if (found.length > limit) return { children: found.slice(0, limit), more: true }
        from = page.next
        // Deletes fill pages, too.
        size = Math.min(size * 2, pageMax)
      }
      return { children: found, more: false }
    } catch (error) {
      // What was found before is complete, and the next page begins behind it.
      if (error instanceof LimitReached && found.length > 0) return { children: found.slice(0, limit), more: true }
      throw error
    }
  }

  #pageSize(children: number): number {
    const { map } = this.#deps.view.current()
    const share = Math.min(1, (4 * map.copies) / map.shards.length)
    return Math.min(Math.max(Math.ceil(children * share), pageMin), pageMax)
  }

  /** Adds those of the children that are there, in their order. */
  async #settle(children: readonly FolderChild[], answered: ReadonlySet<ShardId>, found: ListedChild[]): Promise<void> {
    const first = children.flatMap(child => (child.kind === 'folder' ? child.witnesses.slice(0, 1) : []))
    const live = await this.#confirm(first, answered)
    for (const child of children) {
      if (child.kind === 'artifact') {
        const { blob, time } = child.newest
        if (blob !== undefined) found.push({ key: child.key, ...blob, time })
      } else if (await this.#isLive(child, live, answered)) found.push({ key: child.key })
    }
  }

  async #isLive(
    { key, witnesses }: Extract<FolderChild, { kind: 'folder' }>,
    live: ReadonlySet<string>,
    answered: ReadonlySet<ShardId>,
  ): Promise<boolean> {
    if (witnesses.some(witness => live.has(witness.key))) return true
    const others = await this.#confirm(witnesses.slice(1), answered)
    if (others.size > 0) return true
    // Whoever named a live path had missed its deletion, or there were too many deletions: path by path.
    let size = pageMin
    for (let start: string | undefined = key; start !== undefined; size = Math.min(size * 4, pageMax)) {
      const page: Page = await this.#page({ folder: key, start, limit: size, deep: true })
      if (page.children.some(child => child.kind === 'artifact' && child.newest.blob !== undefined)) return true
      start = page.next
    }
    return false
  }

  /** What all shards together say from `start` on, as far as all of them that answered have told. Rejects with REPLICAS_UNREACHABLE. */
  async #page(request: FolderRequest): Promise<Page> {
    this.#signal.throwIfAborted()
    this.#heedLimits()
    this.#pages += 1
    const view = this.#deps.view.current()
    const merge = new FolderMerge(request.folder, request.limit, request.deep)
    const answered = new Set<ShardId>()
    const partitions = new AnsweredPartitions(view)
    const away = new AbortController()
    const signal = AbortSignal.any([this.#signal, away.signal])
    const begun = performance.now()
    let graced: Promise<void> | undefined
    let longest = 0
    let onEnough = (): void => {}
    const enough = new Promise<void>(resolve => (onEnough = resolve))
    const shards = [...view.map.shards].sort((a, b) => this.#rank(a.id) - this.#rank(b.id))
    const all = atMost(shardsAtOnce, shards, async ({ id }) => {
      const answer = await this.#ask(id, request, signal)
      if (answer === undefined || away.signal.aborted) return
      longest = Math.max(longest, answer.references.length)
      merge.add(id, answer)
      answered.add(id)
      if (graced !== undefined || partitions.lacking(answered) !== undefined) return
      const graceMs = Math.max(graceMsMin, performance.now() - begun)
      graced = sleep(graceMs, undefined, { signal }).then(onEnough, onEnough)
    })
    await Promise.race([all, enough])
    away.abort()
    this.#references += longest
    this.#signal.throwIfAborted()
    const partition = partitions.lacking(answered)
    if (partition !== undefined) {
      throw new HoldfastError('REPLICAS_UNREACHABLE', 'too few shards answered to list a folder without the database', {
        answered: answered.size,
        partition,
      })
    }
    return { children: merge.children(), next: merge.next, answered }
  }

  async #ask(shard: ShardId, request: FolderRequest, signal: AbortSignal): Promise<FolderAnswer | undefined> {
    try {
      const answer = await this.#deps.clients
        .ofShard(shard)
        .requestJson<FolderAnswer>('POST', wirePath.folder(shard), request, {
          timeoutMs: askTimeoutMs,
          signal,
          repeatable: true,
        })
      // A page that begins before itself would never end.
      return answer.next !== undefined && inKeyOrder(answer.next, request.start) <= 0 ? undefined : answer
    } catch {
      // Unreachable, failed, of an older release, cancelled: no word of this shard. The health table has heard of it.
      return undefined
    }
  }

  /** Those that are down come last: they may be up again. */
  #rank(shard: ShardId): number {
    return this.#readable(shard) ? 0 : 1
  }

  #readable(shard: ShardId): boolean {
    const { view, health } = this.#deps
    return health.state(view.current().node(shard).id) !== 'down' && health.shardState(shard) !== 'failed'
  }

  /** The keys of those witnesses of whom no owner or handoff knows a newer version. Rejects with REPLICAS_UNREACHABLE. */
  async #confirm(witnesses: readonly Witness[], answered: ReadonlySet<ShardId>): Promise<ReadonlySet<string>> {
    const view = this.#deps.view.current()
    const quorumsOf = ownerQuorums(view)
    const items = witnesses.map(({ key, version, words }) => {
      const slash = key.indexOf('/')
      const partition = partitionOf(key.slice(0, slash), key.slice(slash + 1))
      return { key, version, partition, words: new Map(words) }
    })
    const questions = new Map<ShardId, typeof items>()
    for (const item of items) {
      const handoffs = placementsOf(view, item.partition).flatMap(one =>
        likelyHandoffs(one, item.partition, shard => answered.has(shard)),
      )
      for (const shard of new Set([...view.allOwners(item.partition), ...handoffs])) {
        if (item.words.has(shard) || !answered.has(shard)) continue
        const asked = questions.get(shard)
        if (asked === undefined) questions.set(shard, [item])
        else asked.push(item)
      }
    }
    await atMost(shardsAtOnce, [...questions], async ([shard, asked]) => {
      const versions = await this.#versionsOf(shard, asked)
      versions?.forEach((version, at) => asked[at]?.words.set(shard, version ?? 0))
    })
    for (const { partition, words } of items) {
      if (quorumsOf(partition).every(quorum => isMet(quorum, words))) continue
      throw new HoldfastError('REPLICAS_UNREACHABLE', 'too few owners answered', { partition })
    }
    return new Set(items.filter(({ version, words }) => Math.max(...words.values()) === version).map(({ key }) => key))
  }

  /** undefined: no word of this shard. */
  async #versionsOf(
    shard: ShardId,
    items: readonly { readonly partition: number; readonly key: string }[],
  ): Promise<readonly (number | null)[] | undefined> {
    const versions: (number | null)[] = []
    const options = { timeoutMs: versionsTimeoutMs, signal: this.#signal, repeatable: true }
    try {
      for (let at = 0; at < items.length; at += versionsMax) {
        const references = items.slice(at, at + versionsMax).map(({ partition, key }) => ({ partition, key }))
        const client = this.#deps.clients.ofShard(shard)
        const answer = await client.requestJson<VersionsAnswer>(
          'POST',
          wirePath.versions,
          { shard, references },
          options,
        )
        versions.push(...answer.versions)
      }
      return versions
    } catch (error) {
      if (!isHoldfastError(error)) this.#signal.throwIfAborted()
      return undefined
    }
  }

  #heedLimits(): void {
    const { referencesMax, pagesMax, timeMs } = this.#limits
    const spent = performance.now() - this.#startedAt
    if (this.#references < referencesMax && this.#pages < pagesMax && spent < timeMs) return
    throw new LimitReached(this.#limits)
  }
}

/** Too many deletes stand where the page begins. */
class LimitReached extends HoldfastError {
  constructor({ referencesMax, timeMs }: FolderLimits) {
    super(
      'METADATA_UNAVAILABLE',
      `without the database a listing looks at ${referencesMax} references of each shard in ${timeMs / 1_000} s at most: too much was deleted here`,
      { referencesMax, timeMs },
    )
  }
}
