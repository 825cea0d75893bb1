/**
 * What stands between a commit in PostgreSQL and the answer to the client: the reference is durable on a majority of its
 * owners (I3), and no proxy answers from an older cache entry any more (I37). The outbox entry of the commit is settled
 * afterwards, in batches: what a crash leaves there is replayed by the primary.
 */
import type { Logger } from 'pino'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ReferenceRecord } from '../../shared/record.ts'
import type { CacheLease } from '../coordination/types.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ReferenceStore } from '../routing/types.ts'

/**
 * What a committed write still gets to be told once PostgreSQL is known to be away, in ms: through Redis it can be. With the
 * 1.3 s in which that is known, and some for a busy machine, the client has its answer within 2 s.
 */
const awayPatienceMs = 300
/** Pause in which settled outbox entries are collected, in ms. */
const settlePauseMs = 100
/** More than a statement may take: by a server that answers, a commit is done by then, or never will be, in ms. */
const unknownOutcomeMs = 3_000
/** Entries beyond this are left to the primary's replay: it settles what it finds done. */
const settleQueueMax = 10_000
/** Changes of unknown outcome that are kept marked until it is known; those beyond are told at once. */
const withdrawalsMax = 1_000

export interface Publication {
  readonly record: ReferenceRecord
  readonly outboxSeq: number
}

export interface PublisherDeps {
  readonly metadata: Pick<Metadata, 'settleOutbox' | 'addRepairs' | 'available' | 'onAway'>
  readonly references: Pick<ReferenceStore, 'append'>
  readonly lease: Pick<CacheLease, 'prepare' | 'invalidate'>
  readonly invalidateLocal: (keys: readonly string[]) => void
  readonly log: Logger
}

export class Publisher {
  readonly #deps: PublisherDeps
  #settled: number[] = []
  #timer: NodeJS.Timeout | undefined
  #settling: Promise<void> = Promise.resolve()
  readonly #withdrawals = new Set<NodeJS.Timeout>()
  /** Those who wait for others to be told, each with how to give up. */
  readonly #patient = new Set<(error: HoldfastError) => void>()
  #patience: NodeJS.Timeout | undefined
  #outages = 0
  underReplicated = 0

  constructor(deps: PublisherDeps) {
    this.#deps = deps
    deps.metadata.onAway(() => {
      this.#outages++
      this.#loseWithAway()
    })
  }

  /**
   * Resolves when all proxies see the changes and the shards know them; `announced` keys that did not change after all are taken
   * back with them. Rejects with METADATA_UNAVAILABLE if PostgreSQL goes away before, or with QUORUM_NOT_REACHED if a reference is not on a majority yet: the changes are committed all the
   * same, telling goes on, and the primary will bring the references home.
   */
  async publish(publications: readonly Publication[], announced: readonly string[] = []): Promise<void> {
    const changed = publications.map(({ record }) => `${record.repository}/${record.path}`)
    const keys = announced.length === 0 ? changed : [...new Set([...announced, ...changed])]
    this.#deps.invalidateLocal(keys)
    const told = this.#deps.lease.invalidate(keys)
    await this.#whileThere(Promise.all([told, ...publications.map(one => this.#append(one))]))
  }

  /**
   * Announces changes before their commit, so that no proxy shows the older state after another has shown the newer one. Each
   * call is followed by one `publish`, `invalidate` or `withdraw` of the same keys, whatever comes of the commit.
   */
  async prepare(keys: readonly string[]): Promise<void> {
    // Without PostgreSQL there is no commit to prepare for; what was sent is not unsaid.
    await this.#whileThere(this.#deps.lease.prepare(keys)).catch(() => undefined)
  }

  /** For changes that no reference tells, such as the list of repositories. Resolves when no worker can act on the older state. */
  async invalidate(keys: readonly string[]): Promise<void> {
    this.#deps.invalidateLocal(keys)
    await this.#whileThere(this.#deps.lease.invalidate(keys))
  }

  /**
   * Ends an announcement whose commit was refused or failed; never rejects. Where nobody knows whether the commit happened, or still
   * will (`error` is METADATA_UNAVAILABLE), the others bypass their caches until it certainly has or has not: a server that
   * was frozen carries out what it was sent before when it goes on, so the time counts while it is there.
   */
  withdraw(keys: readonly string[], error: unknown): void {
    const unknown = isHoldfastError(error, 'METADATA_UNAVAILABLE')
    if (unknown && this.#withdrawals.size < withdrawalsMax) return this.#withdrawLater(keys)
    this.invalidate(keys).catch(() => {}) // tells nobody anything that was acknowledged
  }

  #withdrawLater(keys: readonly string[]): void {
    const { metadata } = this.#deps
    this.#deps.invalidateLocal(keys)
    const outagesBefore = metadata.available ? this.#outages : undefined
    const timer = setTimeout(() => {
      this.#withdrawals.delete(timer)
      const known = metadata.available && this.#outages === outagesBefore
      this.withdraw(keys, known ? undefined : new HoldfastError('METADATA_UNAVAILABLE', 'still unknown'))
    }, unknownOutcomeMs)
    timer.unref()
    this.#withdrawals.add(timer)
  }

  /** Settles what is still to be settled. */
  async close(): Promise<void> {
    clearTimeout(this.#timer)
    clearTimeout(this.#patience)
    for (const timer of this.#withdrawals) clearTimeout(timer) // the marks of a worker that is gone end by themselves
    this.#settle()
    await this.#settling
  }

  /** As `work`, which goes on in any case; rejects with METADATA_UNAVAILABLE a little after PostgreSQL is known to be away. */
  #whileThere(work: Promise<unknown>): Promise<void> {
    return new Promise((resolve, reject) => {
      const leave = (): boolean => this.#patient.delete(reject)
      this.#patient.add(reject)
      work.then(
        () => (leave(), resolve()),
        (error: unknown) => (leave(), reject(error as Error)),
      )
      if (!this.#deps.metadata.available) this.#loseWithAway()
    })
  }

  #loseWithAway(): void {
    this.#patience ??= setTimeout(() => {
      this.#patience = undefined
      if (this.#deps.metadata.available) return // back already: they are told as ever
      const text = 'the database went away before the change was known everywhere: it may have happened'
      const error = new HoldfastError('METADATA_UNAVAILABLE', text)
      for (const giveUp of this.#patient) giveUp(error)
      this.#patient.clear()
    }, awayPatienceMs)
  }

  async #append({ record, outboxSeq }: Publication): Promise<void> {
    const { missing } = await this.#deps.references.append(record)
    if (missing.length > 0) {
      this.underReplicated++
      const { partition, version } = record
      const key = `${record.repository}/${record.path}`
      try {
        await this.#deps.metadata.addRepairs([{ kind: 'reference', partition, key, version, missing, handoffs: [] }])
      } catch (error) {
        if (!isHoldfastError(error)) throw error
        return // The outbox entry stays, so the primary appends to all owners again.
      }
    }
    this.#settled.push(outboxSeq)
    if (this.#settled.length > settleQueueMax) this.#settled = []
    this.#timer ??= setTimeout(() => this.#settle(), settlePauseMs)
  }

  #settle(): void {
    this.#timer = undefined
    if (this.#settled.length === 0) return
    const seqs = this.#settled
    this.#settled = []
    this.#settling = this.#deps.metadata.settleOutbox(seqs).catch((error: unknown) => {
      this.#deps.log.debug({ err: error, entries: seqs.length }, 'outbox entries left to the primary')
    })
  }
}
