/**
 * Brings missing copies home: a blob from any shard that has it to the owners that lack it, a reference to all its owners.
 * Handoff copies go to the trash only after every owner has its own. What has one copy left comes before everything else.
 */
import type { Logger } from 'pino'
import { atMost } from '../../shared/at-most.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { ReferenceRecord } from '../../shared/record.ts'
import { wirePath, type DropRequest, type TransferAnswer, type TransferRequest } from '../../shared/wire.ts'
import { referenceOf, tombstoneOf } from '../artifacts/reference.ts'
import type { RepairQueue } from '../metadata/repair-queue.ts'
import type { Metadata, PostponedRepair, RepairEntry, Repository } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { NodeClient, RequestOptions } from '../routing/node-client.ts'
import type { ReferenceStore } from '../routing/types.ts'
import { splitKey } from './compare-sets.ts'
import { primaryRole, type PrimaryTask, type Term } from './primary.ts'
import { RateMeter } from './repair-progress.ts'
import { isLastCopy, UrgentFirst } from './repair-urgency.ts'
import { batchesOf, commandLimitMs } from './shard-contents.ts'

/** In memory, and in one step; a step waits for its slowest copy, so a larger one waits less often. */
const batchSize = 2_000
/** What waits for a node that is away is due at once when it is back; there may be millions, and nobody looks at them in vain all the time. */
const awayRetryMs = 600_000
const failedRetryMsMax = 60_000
const concurrency = 4
const bytesPerRequest = 64 * 1024 * 1024
/** To one shard; each is pulled by a few connections of its node. */
const requestsAtOnce = 2

export interface RepairDeps {
  readonly metadata: Pick<
    Metadata,
    | 'dueRepairs'
    | 'finishRepair'
    | 'finishRepairs'
    | 'postponeRepairs'
    | 'listRepositories'
    | 'findArtifacts'
    | 'incarnation'
  > & { readonly repairQueue: Pick<RepairQueue, 'hurry'> }
  readonly references: Pick<ReferenceStore, 'appendTo'>
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'state' | 'writable'>
  readonly log: Logger
  /** Monotonic, ms. */
  readonly now: () => number
}

export class RepairCopies implements PrimaryTask {
  readonly name = 'repair-copies'
  readonly pauseMs = 1_000
  readonly #deps: RepairDeps
  readonly #queue: UrgentFirst
  readonly #meter = new RateMeter()
  /** Shards that could not be written when something was postponed for them. */
  readonly #awaited = new Set<ShardId>()
  /** Of the term in which that is known: what others postponed may wait for any shard. */
  #knownIn: number | undefined
  /** The last settled map by which it was postponed: by another one it may be due to others. */
  #knownBy: number | undefined
  copied = 0
  copiedBytes = 0
  /** References brought to shards that lacked them. */
  appended = 0

  constructor(deps: RepairDeps) {
    this.#deps = deps
    this.#queue = new UrgentFirst(deps)
  }

  /** Over the last minute. */
  get rate(): { readonly entriesPerSec: number; readonly bytesPerSec: number } {
    const { entries, bytes } = this.#meter.perSec(this.#deps.now())
    return { entriesPerSec: entries, bytesPerSec: bytes }
  }

  readonly step = async (term: Term): Promise<'more' | 'idle'> => {
    await this.#heedReturns(term)
    const due = await this.#queue.due(batchSize)
    const urgent = new Set(due.filter(this.#isUrgent))
    await this.#work([...urgent], term)
    const others = due.filter(entry => !urgent.has(entry))
    await this.#work(others, term)
    // What is postponed is not due: as long as something is, more of it may come (a lost disk is found piece by piece).
    return due.length > 0 ? 'more' : 'idle'
  }

  /** What waited for shards that are back is due. */
  async #heedReturns({ token }: Term): Promise<void> {
    const { repairQueue } = this.#deps.metadata
    if (this.#knownIn !== token) {
      await repairQueue.hurry()
      this.#awaited.clear()
      this.#knownIn = token
    }
    const { map } = this.#deps.view.current()
    const isOther = map.previous === undefined && map.epoch !== this.#knownBy
    const back = [...this.#awaited].filter(shard => isOther || this.#writable(shard))
    if (back.length > 0) await repairQueue.hurry(back)
    for (const shard of back) this.#awaited.delete(shard)
    if (isOther) this.#knownBy = map.epoch
  }

  readonly #isUrgent = (entry: RepairEntry): boolean => {
    const view = this.#deps.view.current()
    const isThere = (shard: ShardId): boolean =>
      view.has(shard) && this.#deps.health.state(view.node(shard).id) !== 'down'
    return isLastCopy(entry, view.allOwners(entry.partition), isThere)
  }

  async #work(due: readonly RepairEntry[], term: Term): Promise<void> {
    const isPlain = (entry: RepairEntry): boolean => entry.kind === 'blob' && this.#handoffsOf(entry).length === 0
    const ends = await Promise.allSettled([
      this.#copyMany(due.filter(isPlain), term),
      this.#appendMany(
        due.filter(entry => entry.kind === 'reference'),
        term,
      ),
      this.#oneByOne(
        due.filter(entry => entry.kind === 'blob' && !isPlain(entry)),
        term,
      ),
    ])
    const failed = ends.find(end => end.status === 'rejected')
    if (failed !== undefined) throw failed.reason
  }

  /** Blobs without handoffs, many in one request: a lost disk is mostly small ones. */
  async #copyMany(entries: readonly RepairEntry[], term: Term): Promise<void> {
    const lacking = new Map<RepairEntry, Set<ShardId>>()
    const batches = new Map<ShardId, RepairEntry[]>()
    for (const entry of entries) {
      const wanted = this.#wantedOf(entry)
      lacking.set(entry, new Set(wanted))
      for (const shard of wanted) {
        if (this.#writable(shard)) batches.set(shard, [...(batches.get(shard) ?? []), entry])
      }
    }
    const copied = await Promise.allSettled(
      [...batches].map(([shard, wanted]) => this.#fill(shard, wanted, lacking, term)),
    )
    await this.#settle(entries, lacking, term)
    const failed = copied.find(end => end.status === 'rejected')
    if (failed !== undefined && !isHoldfastError(failed.reason)) throw failed.reason
  }

  /** Takes from `lacking` what the shard has afterwards. */
  async #fill(
    shard: ShardId,
    entries: readonly RepairEntry[],
    lacking: ReadonlyMap<RepairEntry, Set<ShardId>>,
    term: Term,
  ): Promise<void> {
    const batches = batchesOf(entries, ({ blob }) => blob?.bytes ?? 0, bytesPerRequest)
    await atMost(requestsAtOnce, batches, async batch => {
      if (term.signal.aborted) return
      const done = await this.#transfer(shard, batch, term)
      for (const entry of done) lacking.get(entry)?.delete(shard)
    })
  }

  /**
   * The owners to be supplied: those noted as missing. Where one of these owns the partition no more, its copy is due to whoever came in
   * its place, and which of the owners that is the entry cannot tell: all of them are asked, and those that have theirs say so.
   */
  #wantedOf({ partition, missing }: RepairEntry): readonly ShardId[] {
    const owners: readonly ShardId[] = this.#deps.view.current().owners(partition)
    const hasMoved = missing.some(shard => !owners.some(owner => owner === shard))
    return hasMoved ? owners : owners.filter(owner => missing.includes(owner))
  }

  async #transfer(shard: ShardId, batch: readonly RepairEntry[], term: Term): Promise<readonly RepairEntry[]> {
    const wanted = batch.flatMap(entry => (entry.blob === undefined ? [] : [{ entry, blob: entry.blob }]))
    const blobs = wanted.map(({ entry, blob: { digest, generation, partition, bytes } }) => {
      return { digest, generation, partition, bytes, sources: this.#sourcesOf(entry, shard) }
    })
    const bytes = blobs.reduce((sum, blob) => sum + blob.bytes, 0)
    const request: TransferRequest = { shard, blobs }
    const background = batch.some(this.#isUrgent) ? 'urgent' : 'usual'
    const options = { background, timeoutMs: commandLimitMs(bytes) } as const
    const { results } = await this.#command<TransferAnswer>(wirePath.transfer, shard, request, term, options)
    return wanted.flatMap(({ entry, blob }, index) => {
      const result = results[index]
      if (result === 'copied') {
        this.copied++
        this.copiedBytes += blob.bytes
        this.#meter.add(this.#deps.now(), 0, blob.bytes)
      }
      if (result === 'copied' || result === 'held') return entry
      this.#deps.log.warn({ digest: blob.digest, shard, result }, 'copy failed')
      return []
    })
  }

  /** Shards that should have the blob, likely ones first; which of those is first changes, so that all of them share the work. */
  #sourcesOf(entry: RepairEntry, target: ShardId): TransferRequest['blobs'][number]['sources'] {
    const view = this.#deps.view.current()
    const owners = view.allOwners(entry.partition)
    const good = owners.filter(owner => !entry.missing.includes(owner))
    const turn = good.length === 0 ? 0 : entry.id % good.length
    const likely = [...good.slice(turn), ...good.slice(0, turn), ...this.#handoffsOf(entry)]
    return [...likely, ...owners.filter(owner => !likely.includes(owner))]
      .filter(shard => shard !== target && this.#deps.health.state(view.node(shard).id) !== 'down')
      .map(shard => ({ url: view.node(shard).url, shard }))
  }

  async #appendMany(entries: readonly RepairEntry[], term: Term): Promise<void> {
    if (entries.length === 0) return
    const lacking = new Map<RepairEntry, Set<ShardId>>()
    // From PostgreSQL itself: by a list that is a moment old, a living artifact would get a tombstone.
    const records = await this.#recordsOf(entries, await this.#deps.metadata.listRepositories())
    const ends = await Promise.allSettled(
      entries.map(async (entry, index) => {
        const wanted = this.#wantedOf(entry)
        lacking.set(entry, new Set(wanted))
        const reachable = wanted.filter(shard => this.#writable(shard))
        const record = records[index]
        if (reachable.length === 0 || record === undefined) return
        const done = await this.#deps.references.appendTo(record, reachable)
        lacking.set(entry, new Set(wanted.filter(shard => !done.has(shard))))
        this.appended += done.size
      }),
    )
    await this.#settle(entries, lacking, term)
    const failed = ends.find(end => end.status === 'rejected' && !isHoldfastError(end.reason))
    if (failed?.status === 'rejected') throw failed.reason
  }

  /** As PostgreSQL knows them now, in the order of the entries. */
  async #recordsOf(
    entries: readonly RepairEntry[],
    repositories: readonly Repository[],
  ): Promise<readonly ReferenceRecord[]> {
    const { metadata } = this.#deps
    const { incarnation } = metadata
    const ids = new Map(repositories.map(({ name, id }) => [name, id]))
    const wanted = entries.map(entry => ({ entry, ...splitKey(entry.key ?? '') }))
    const known = wanted.flatMap(({ repository, path }, index) => {
      const repositoryId = ids.get(repository)
      return repositoryId === undefined ? [] : [{ index, repositoryId, path }]
    })
    const artifacts = await metadata.findArtifacts(known.map(({ repositoryId, path }) => ({ repositoryId, path })))
    const found = new Map(known.map(({ index }, at) => [index, artifacts[at]]))
    return wanted.map(({ entry, repository, path }, index) => {
      const artifact = found.get(index)
      if (artifact !== undefined) return referenceOf(repository, artifact, incarnation)
      const facts = { incarnation, user: 'holdfast', time: Date.now() }
      return tombstoneOf(repository, { path, version: entry.version ?? 0, outboxSeq: 0 }, facts)
    })
  }

  /** What lacks nothing any more is finished, in one transaction; the rest is postponed. */
  async #settle(
    entries: readonly RepairEntry[],
    lacking: ReadonlyMap<RepairEntry, ReadonlySet<ShardId>>,
    term: Term,
  ): Promise<void> {
    // What a deposed primary saw is not its to write down.
    if (term.signal.aborted) return
    const { metadata } = this.#deps
    const open = entries.filter(entry => (lacking.get(entry)?.size ?? 1) > 0)
    const done = entries.filter(entry => lacking.get(entry)?.size === 0)
    if (done.length > 0) {
      await metadata.finishRepairs(
        done.map(({ id }) => id),
        term.token,
      )
      this.#meter.add(this.#deps.now(), done.length, 0)
    }
    const later = open.map(entry => this.#postponed(entry, [...(lacking.get(entry) ?? entry.missing)] as ShardId[]))
    await metadata.postponeRepairs(later, term.token)
  }

  /** What waits for a node that is away has not failed: when the node is back it is tried as if for the first time. */
  #postponed(entry: RepairEntry, missing: readonly ShardId[], hasFailed = false): PostponedRepair {
    const { id, attempts } = entry
    const away = missing.filter(shard => !this.#writable(shard))
    for (const shard of away) this.#awaited.add(shard)
    if (!hasFailed && away.length === missing.length) return { id, missing, attempts: 0, retryMs: awayRetryMs }
    const retryMs = Math.min(failedRetryMsMax, 1_000 * 2 ** Math.min(attempts, 10))
    return { id, missing, attempts: attempts + 1, retryMs }
  }

  async #oneByOne(entries: readonly RepairEntry[], term: Term): Promise<void> {
    await atMost(concurrency, entries, async entry => {
      if (!term.signal.aborted) await this.#repair(entry, term)
    })
  }

  async #repair(entry: RepairEntry, term: Term): Promise<void> {
    const { metadata, log } = this.#deps
    try {
      const missing = await this.#complete(entry, term)
      if (missing.length === 0) {
        await this.#dropHandoffs(entry, term)
        await metadata.finishRepair(entry.id, term.token)
        this.#meter.add(this.#deps.now(), 1, 0)
      } else {
        await metadata.postponeRepairs([this.#postponed(entry, missing)], term.token)
      }
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      log.debug({ err: error, repair: entry.id }, 'repair failed, to be repeated')
      await metadata.postponeRepairs([this.#postponed(entry, entry.missing as readonly ShardId[], true)], term.token)
    }
  }

  /**
   * Brings the copies that were noted as missing home, to owners that still are. Where handoffs are to be dropped afterwards, the other
   * owners are asked too: the handoffs were spare copies, and what was noted may be old (another map, another disk); a shard that holds
   * its copy says so at no cost. Resolves with the owners that lack theirs.
   */
  async #complete(entry: RepairEntry, term: Term): Promise<readonly ShardId[]> {
    const owners = this.#deps.view.current().owners(entry.partition)
    const noted = owners.filter(owner => entry.missing.includes(owner))
    const lacking = await this.#supply(entry, noted, term)
    const all = lacking.length === 0 && this.#handoffsOf(entry).length > 0
    const others = all
      ? await this.#supply(
          entry,
          owners.filter(owner => !noted.includes(owner)),
          term,
        )
      : []
    return [...lacking, ...others]
  }

  /** Resolves with those that still lack their copy. */
  async #supply(entry: RepairEntry, wanted: readonly ShardId[], term: Term): Promise<readonly ShardId[]> {
    const reachable = wanted.filter(shard => this.#writable(shard))
    const done = await this.#copyBlob(entry, reachable, term)
    return wanted.filter(shard => !done.has(shard))
  }

  #writable(shard: ShardId): boolean {
    const view = this.#deps.view.current()
    return view.has(shard) && this.#deps.health.writable(view.node(shard).id, shard)
  }

  async #copyBlob(entry: RepairEntry, targets: readonly ShardId[], term: Term): Promise<ReadonlySet<ShardId>> {
    const done = new Set<ShardId>()
    for (const shard of targets) {
      term.signal.throwIfAborted()
      if ((await this.#transfer(shard, [entry], term)).length > 0) done.add(shard)
    }
    return done
  }

  async #dropHandoffs(entry: RepairEntry, term: Term): Promise<void> {
    const { blob } = entry
    if (blob === undefined) return
    const { digest, generation, partition } = blob
    for (const shard of this.#handoffsOf(entry)) {
      const request: DropRequest = { shard, reason: 'moved', blobs: [{ digest, generation, partition }] }
      await this.#command(wirePath.drop, shard, request, term, { timeoutMs: commandLimitMs() })
    }
  }

  /** Shards noted as handoffs that exist and still do not own the partition. */
  #handoffsOf(entry: RepairEntry): readonly ShardId[] {
    const view = this.#deps.view.current()
    const owners = view.allOwners(entry.partition)
    return entry.handoffs.filter((shard): shard is ShardId => view.has(shard) && !owners.includes(shard))
  }

  async #command<Answer>(
    path: string,
    shard: ShardId,
    body: unknown,
    { token, signal }: Term,
    options: Pick<RequestOptions, 'background' | 'timeoutMs'>,
  ): Promise<Answer> {
    const fence = `${primaryRole}:${token}`
    const client = this.#deps.clients.ofShard(shard)
    return client.requestJson<Answer>('POST', path, body, { ...options, fence, signal })
  }
}
