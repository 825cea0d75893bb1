/**
 * Garbage collection: blobs that nothing names any more leave the shards. In two steps with a hold between them: condemned, and after the
 * hold purged; whatever names a blob before that makes it live again, and uploads are never kept waiting. Each decision is one transaction
 * under the locks of the blobs (metadata/collection.ts); deletions name the generation, so one that comes late cannot hit bytes that were
 * uploaded again.
 */
import { atMost } from '../../shared/at-most.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { Digest, ShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import { type DropRequest, type NodeStatus, wirePath } from '../../shared/wire.ts'
import type { CollectionAges, CollectionStore, DoomedBlob, JudgedLoser } from '../metadata/collection-types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { NodeClient } from '../routing/node-client.ts'
import { databaseDoubt } from '../recovery/judge-database.ts'
import type { Job, JobContext, JobParams } from './job.ts'
import { type Amount, counting, type Found, isMuch, nothing, plus, tooMuch, total } from './garbage-amounts.ts'
import { primaryRole, type Term } from './primary.ts'
import { surveyBlobs } from './survey-blobs.ts'
import { sweepLeftovers, sweepLosses, type SweepDeps } from './sweep-leftovers.ts'
import { leftoverAgeMsMin } from './unnamed-blobs.ts'

/** A statement ends after 1.9 s: a page of these survives random reads of almost a millisecond. */
const judgedPage = 1_000
const purgedPage = 1_000
/** Deletions that are gathered before shards are told: of a thousand, each of thousands of shards would have one. */
const toldTogether = 10_000
/** Deletions in one request to a shard. */
const dropsPerRequest = 1_000
/** Shards that are told at once. */
const toldAtOnce = 8
const dropTimeoutMs = 120_000
/** Partitions of which the shards are asked at once, and of which every name is looked at between two checkpoints. */
const sweptAtOnce = 512
const sweptThoroughly = 16
/** All blobs are looked at when this has passed since the last time: a week, less what a nightly run may be early. */
const surveyEveryMs = 7 * 86_400_000 - 3_600_000

export interface CollectGarbageDeps {
  readonly metadata: SweepDeps['metadata']
  readonly collection: CollectionStore
  readonly incarnation: () => string
  readonly view: Pick<ClusterView, 'current'>
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
  readonly ages: CollectionAges
}

interface Checkpoint {
  readonly phase: 'survey' | 'judge' | 'condemn' | 'purge' | 'finish' | 'sweep'
  /** The last digest that was dealt with in this phase. */
  readonly after: Digest | ''
  /** The next partition to be swept. */
  readonly partition: number
  readonly found: Found
  readonly condemned: Amount
  readonly purged: Amount
  /** All blobs were looked at in this run. */
  readonly surveyed: boolean
}
const beginning: Checkpoint = {
  phase: 'judge',
  after: '',
  partition: 0,
  found: {},
  condemned: nothing,
  purged: nothing,
  surveyed: false,
}

interface Params {
  /** Only say what would be done. */
  readonly plan: boolean
  /** Go on although it is more than the brake lets pass. */
  readonly force: boolean
  /** Look at all blobs, not only at those that lost a name. */
  readonly full: boolean
}

export function collectGarbage(deps: CollectGarbageDeps): Job<Checkpoint> {
  return {
    name: 'collect-garbage',
    title: 'Delete blobs that nothing names any more',
    defaultSchedule: '37 2 * * *',
    checkParams: params => void paramsOf(params),
    run: context => new Collection(deps, context).run(),
  }
}

class Collection {
  readonly #deps: CollectGarbageDeps
  readonly #context: JobContext<Checkpoint>
  readonly #params: Params
  /** Shards that did not answer in this phase: one that is frozen costs its time limit once, not with every page. */
  readonly #away = new Set<ShardId>()
  /** Shards that had lost copies when this run, or the rest of it, began. */
  readonly #lossy = new Set<ShardId>()
  #at: Checkpoint

  constructor(deps: CollectGarbageDeps, context: JobContext<Checkpoint>) {
    this.#deps = deps
    this.#context = context
    this.#params = paramsOf(context.params)
    this.#at = checkpointOf(context) ?? beginning
  }

  async run(): Promise<void> {
    const { log } = this.#context
    if (this.#at === beginning && (await this.#isSurveyDue())) await this.#next('survey')
    if (this.#at.phase === 'survey') {
      await this.#survey()
      if (this.#params.plan) return
      await this.#next('judge')
    }
    if (this.#at.phase === 'judge') {
      await this.#judge()
      if (this.#params.plan) return
      if (await this.#isTooMuch()) {
        log('more than 5 % of what there was when all blobs were last counted: they are counted again')
        this.#at = { ...this.#at, found: {} }
        await this.#next('survey')
        return this.run()
      }
      await this.#next('condemn')
    }
    await this.#checkArmed()
    if (this.#at.phase === 'condemn') {
      await this.#condemn()
      log(`condemned: ${this.#at.condemned.blobs} blobs, ${this.#at.condemned.bytes} bytes`)
      await this.#next('purge')
    }
    if (this.#at.phase === 'purge') {
      await this.#purge()
      await this.#next('finish')
    }
    if (this.#at.phase === 'finish') {
      await this.#finish()
      if (this.#at.purged.blobs > 0) {
        await this.#deps.collection.takeFromCounted(this.#at.purged, this.#context.term.token)
      }
      await this.#next('sweep')
    }
    await this.#sweep()
    log(`purged: ${this.#at.purged.blobs} blobs, ${this.#at.purged.bytes} bytes`)
  }

  async #isSurveyDue(): Promise<boolean> {
    if (this.#params.full) return true
    const counted = await this.#deps.collection.counted()
    // Another incarnation: what lost its name in which database is a question that a look at everything answers.
    if (counted === undefined || counted.incarnation !== this.#deps.incarnation()) return true
    return counted.ageMs < 0 || counted.ageMs >= surveyEveryMs
  }

  async #survey(): Promise<void> {
    const { collection, ages, incarnation } = this.#deps
    const { token } = this.#context.term
    const step = async (found: Found, after: Digest): Promise<void> => {
      this.#at = { ...this.#at, found, after }
      await this.#step('looking at all blobs', total(found).blobs)
    }
    const pause = async (ms: number): Promise<void> => {
      await this.#context.pause(ms)
      this.#check()
    }
    this.#check()
    const found = await surveyBlobs({ collection, ages, token, plan: this.#params.plan, pause, step }, this.#at)
    const all = total(found)
    this.#context.log(`all blobs: ${all.blobs} blobs, ${all.bytes} bytes`)
    this.#logFound(found)
    this.#at = { ...this.#at, found: {}, surveyed: true }
    if (!this.#params.plan) await collection.noteCounted({ ...all, incarnation: incarnation() }, token)
  }

  #logFound(found: Found): void {
    for (const [verdict, { blobs, bytes }] of Object.entries(found))
      this.#context.log(`${verdict}: ${blobs} blobs, ${bytes} bytes`)
  }

  async #judge(): Promise<void> {
    for (;;) {
      this.#check()
      const page = await this.#deps.collection.judgeLosers(this.#at.after, judgedPage, this.#deps.ages)
      const last = page.at(-1)
      if (last === undefined) break
      const found = counting(this.#at.found, page)
      this.#at = { ...this.#at, found, after: last.digest }
      await this.#step('looking for unused blobs', total(found).blobs)
    }
    if (this.#at.surveyed) return
    this.#context.log('of the blobs that lost a name, or wait since they have none:')
    this.#logFound(this.#at.found)
  }

  /** Judges again, page by page: it is cheaper than to keep a list of what may be millions. */
  async #condemn(): Promise<void> {
    const { collection, ages } = this.#deps
    const { token } = this.#context.term
    const all = (await collection.counted()) ?? nothing
    for (;;) {
      await this.#checkNotDisarmed()
      const page = await collection.judgeLosers(this.#at.after, judgedPage, ages)
      const last = page.at(-1)
      if (last === undefined) return
      const unused = page.filter(blob => blob.verdict === 'unused')
      let { condemned } = this.#at
      // More may have lost their names since they were judged, and a run that is resumed here judges them for the first time.
      const wanted = unused.reduce((sum, { bytes }) => plus(sum, bytes), condemned)
      if (!this.#params.force && isMuch(wanted, all)) throw tooMuch(wanted, all)
      this.#check()
      const digests = unused.map(({ digest }) => digest)
      const done = digests.length === 0 ? [] : await collection.condemn(digests, ages.minAgeMs, token)
      for (const { bytes } of done) condemned = plus(condemned, bytes)
      const settled = page.filter(({ verdict }) => isSettled.has(verdict)).map(blob => blob.digest)
      this.#check()
      if (settled.length > 0) await collection.settleLosers(settled, token)
      this.#at = { ...this.#at, condemned, after: last.digest }
      await this.#step('condemning unused blobs', condemned.blobs)
    }
  }

  async #purge(): Promise<void> {
    for (;;) {
      const blobs = await this.#doom()
      if (blobs.length === 0) return
      await this.#delete(blobs)
    }
  }

  /** The next ones that go, from now on for good: as many full pages as are told together. */
  async #doom(): Promise<readonly DoomedBlob[]> {
    const { collection, ages } = this.#deps
    const blobs: DoomedBlob[] = []
    for (let isFull = true; isFull && blobs.length < toldTogether;) {
      await this.#checkNotDisarmed()
      const page = await collection.purge(ages.holdMs, purgedPage, this.#context.term.token)
      isFull = page.length >= purgedPage
      blobs.push(...page)
    }
    return blobs
  }

  /** What an earlier run could not finish, because a node was away or its primary ended. */
  async #finish(): Promise<void> {
    for (;;) {
      await this.#checkNotDisarmed()
      const blobs = await this.#deps.collection.purging(this.#at.after, toldTogether)
      const last = blobs.at(-1)
      if (last === undefined) return
      // First: what is saved after the deletion is where it goes on.
      this.#at = { ...this.#at, after: last.digest }
      await this.#delete(blobs)
    }
  }

  async #sweep(): Promise<void> {
    const { metadata, clients, view, ages } = this.#deps
    const deps = {
      metadata,
      clients,
      view,
      drop: (shard: ShardId, blobs: readonly DoomedBlob[]) => this.#drop(shard, blobs),
    }
    const minAgeMs = Math.max(ages.minAgeMs, leftoverAgeMsMin)
    const silent = new Set<ShardId>()
    while (this.#at.partition < partitionCount) {
      await this.#checkNotDisarmed()
      const from = this.#at.partition
      // All owners may hold the same leftover: that shows only to who looks at all names.
      const thorough = this.#at.surveyed
      const count = thorough ? sweptThoroughly : sweptAtOnce
      const begunAt = performance.now()
      const swept = await sweepLeftovers(deps, { from, count, thorough, silent }, minAgeMs, this.#context.term)
      for (const shard of swept.silent) silent.add(shard)
      if (swept.dropped.length > 0) this.#context.log(`${swept.dropped.length} copies that nothing names swept`)
      this.#at = { ...this.#at, partition: from + count }
      await this.#step('sweeping', this.#at.purged.blobs)
      // As the look at all blobs does: half of the time is for others.
      if (thorough) await this.#context.pause(performance.now() - begunAt)
    }
    if (silent.size > 0) this.#context.log(`not looked at, for they did not answer: ${[...silent].sort().join(', ')}`)
    for (const shard of this.#lossy) {
      const losses = view.current().has(shard) ? await sweepLosses(deps, shard, minAgeMs, this.#context.term) : 0
      if (losses > 0) this.#context.log(`shard ${shard}: ${losses} losses that nobody misses taken off its list`)
    }
  }

  /**
   * The shards that should have the copies are told, those from before a change of topology too. A row goes only when all of its own have
   * answered: one that is away is told by the next run. Copies elsewhere (handoffs, late repairs) nobody reads any more; the sweep takes them.
   */
  async #delete(blobs: readonly DoomedBlob[]): Promise<void> {
    const view = this.#deps.view.current()
    const perShard = new Map<ShardId, DoomedBlob[]>()
    for (const blob of blobs) {
      for (const shard of view.allOwners(blob.partition)) {
        const own = perShard.get(shard)
        if (own === undefined) perShard.set(shard, [blob])
        else own.push(blob)
      }
    }
    const remaining = new Set<DoomedBlob>()
    let away = 0
    await atMost(toldAtOnce, [...perShard], async ([shard, own]) => {
      if (await this.#drop(shard, own)) return
      away += 1
      for (const blob of own) remaining.add(blob)
    })
    if (away > 0) this.#context.log(`${away} shards cannot be reached: ${remaining.size} blobs remain to be finished`)
    await this.#forget(blobs.filter(blob => !remaining.has(blob)))
    const note = away > 0 ? `deleting blobs, ${away} shards are away` : 'deleting blobs'
    await this.#step(note, this.#at.purged.blobs)
  }

  async #forget(blobs: readonly DoomedBlob[]): Promise<void> {
    for (let start = 0; start < blobs.length; start += purgedPage) {
      this.#check()
      const page = blobs.slice(start, start + purgedPage)
      await this.#deps.collection.finishPurge(page, this.#context.term.token)
      const bytes = page.reduce((sum, blob) => sum + blob.bytes, 0)
      const { purged } = this.#at
      this.#at = { ...this.#at, purged: { blobs: purged.blobs + page.length, bytes: purged.bytes + bytes } }
    }
  }

  /** False: not reached, now or before in this phase, or it could not. */
  async #drop(shard: ShardId, blobs: readonly DoomedBlob[]): Promise<boolean> {
    if (this.#away.has(shard)) return false
    const keys = blobs.map(({ partition, digest, generation }) => ({ partition, digest, generation }))
    const { signal } = this.#context.term
    try {
      for (let start = 0; start < keys.length; start += dropsPerRequest) {
        this.#check()
        const request: DropRequest = { shard, reason: 'deleted', blobs: keys.slice(start, start + dropsPerRequest) }
        const options = { fence: fenceOf(this.#context.term), signal, timeoutMs: dropTimeoutMs }
        await this.#deps.clients.ofShard(shard).requestJson('POST', wirePath.drop, request, options)
      }
      return true
    } catch (error) {
      if (!isHoldfastError(error) || error.code === 'STALE_TOKEN') throw error
      this.#context.log(`shard ${shard}: ${error.message}`)
      this.#away.add(shard)
      return false
    }
  }

  /**
   * A database that was restored from an older copy does not know what was written since, and would have it deleted. The shards do: the
   * references on them name versions that it has not issued. A majority of owners has each reference, so with the shards of one zone
   * away the others tell as much.
   */
  async #checkArmed(): Promise<void> {
    const { collection, view } = this.#deps
    await this.#checkNotDisarmed()
    const { map } = view.current()
    const zonesAway = new Set<string>()
    for (const node of map.nodes) {
      this.#check()
      const shard = map.shards.find(one => one.node === node.id)
      if (shard === undefined) continue
      const status = await this.#statusOf(shard.id)
      if (status === undefined || status.shards.some(({ state }) => state === 'failed')) zonesAway.add(node.zone)
      for (const { id, losses = 0 } of status?.shards ?? []) if (losses > 0) this.#lossy.add(id)
      // After the shards were asked: what is written meanwhile they cannot know.
      const issued = await collection.newestVersion()
      const doubt = databaseDoubt({ incarnation: this.#deps.incarnation(), issued }, status?.shards ?? [])
      if (doubt === undefined) continue
      await collection.disarm(doubt, 'collect-garbage')
      throw new HoldfastError('CONFLICT', `garbage collection has disarmed itself: ${doubt}`, {})
    }
    if (zonesAway.size > 1) {
      throw new HoldfastError(
        'REPLICAS_UNREACHABLE',
        'shards in several zones are away: too few are left to be asked',
        {
          zones: [...zonesAway],
        },
      )
    }
  }

  /** Before every decision: the emergency stop ends a run that is under way. */
  async #checkNotDisarmed(): Promise<void> {
    this.#check()
    const disarmed = await this.#deps.collection.disarmed()
    if (disarmed === undefined) return
    throw new HoldfastError('CONFLICT', `garbage collection is disarmed (${disarmed.by}): ${disarmed.reason}`, {})
  }

  async #statusOf(shard: ShardId): Promise<NodeStatus | undefined> {
    try {
      return await this.#deps.clients.ofShard(shard).requestJson<NodeStatus>('GET', wirePath.status)
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      return undefined
    }
  }

  /**
   * Throws if it is too much of what there is. True: only of what there was when it was counted, which may be so much less than there is
   * now; it never was more, but for what was deleted since, and that is taken off.
   */
  async #isTooMuch(): Promise<boolean> {
    const unused = this.#at.found.unused ?? nothing
    if (this.#params.force) return false
    const all = (await this.#deps.collection.counted()) ?? nothing
    if (!isMuch(unused, all)) return false
    if (this.#at.surveyed) throw tooMuch(unused, all)
    return true
  }

  async #next(phase: Checkpoint['phase']): Promise<void> {
    this.#at = { ...this.#at, phase, after: '' }
    this.#away.clear()
    await this.#context.save(this.#at)
  }

  async #step(note: string, done: number): Promise<void> {
    this.#context.progress({ done, unit: 'blobs', note })
    await this.#context.save(this.#at)
    await this.#context.pause(0)
  }

  #check(): void {
    this.#context.term.signal.throwIfAborted()
  }
}

/** One of the release before is begun anew: it may stand in front of a brake that is elsewhere now. */
function checkpointOf({ checkpoint }: JobContext<Checkpoint>): Checkpoint | undefined {
  return checkpoint !== undefined && 'surveyed' in checkpoint ? checkpoint : undefined
}

const fenceOf = ({ token }: Term): string => `${primaryRole}:${token}`

/** Nothing to wait for: each leaves the list until it loses a name again. */
const isSettled: ReadonlySet<JudgedLoser['verdict']> = new Set(['referenced', 'trash', 'gone'])

function paramsOf({ plan = false, force = false, full = false, ...unknown }: JobParams): Params {
  const isKnown = Object.keys(unknown).length === 0
  if (!isKnown || typeof plan !== 'boolean' || typeof force !== 'boolean' || typeof full !== 'boolean') {
    throw new HoldfastError('BAD_REQUEST', 'the parameters are plan, force and full, each true or false')
  }
  return { plan, force, full }
}
