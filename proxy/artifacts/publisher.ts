/**
 * What stands between a commit in PostgreSQL and the answer to the client: the reference is durable on a majority of its
 * owners (I3), and no proxy answers from an older cache entry any more (I37). The outbox entry of the commit is settled
 * afterwards, in batches: what a crash leaves there is replayed by the primary.
 */
import type { Logger } from 'pino'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ReferenceRecord } from '../../shared/record.ts'
import type { CacheLease } from '../coordination/types.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ReferenceStore } from '../routing/types.ts'

/** Pause in which settled outbox entries are collected, in ms. */
const settlePauseMs = 100
/** More than a statement may take: a commit without an answer has happened by then, or never will, in ms. */
const unknownOutcomeMs = 3_000
/** Entries beyond this are left to the primary's replay: it settles what it finds done. */
const settleQueueMax = 10_000

export interface Publication {
  readonly record: ReferenceRecord
  readonly outboxSeq: number
}

export interface PublisherDeps {
  readonly metadata: Pick<Metadata, 'settleOutbox' | 'addRepairs'>
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
  underReplicated = 0

  constructor(deps: PublisherDeps) {
    this.#deps = deps
  }

  /**
   * Resolves when all proxies see the changes and the shards know them; `announced` keys that did not change after all are taken
   * back with them. Rejects with QUORUM_NOT_REACHED if a reference is not on a majority yet: the changes are committed all the
   * same, and the primary will bring the references home.
   */
  async publish(publications: readonly Publication[], announced: readonly string[] = []): Promise<void> {
    const changed = publications.map(({ record }) => `${record.repository}/${record.path}`)
    const keys = announced.length === 0 ? changed : [...new Set([...announced, ...changed])]
    this.#deps.invalidateLocal(keys)
    await Promise.all([this.#deps.lease.invalidate(keys), ...publications.map(one => this.#append(one))])
  }

  /**
   * Announces changes before their commit, so that no proxy shows the older state after another has shown the newer one. Each
   * call is followed by one `publish`, `invalidate` or `withdraw` of the same keys, whatever comes of the commit.
   */
  async prepare(keys: readonly string[]): Promise<void> {
    await this.#deps.lease.prepare(keys)
  }

  /** For changes that no reference tells, such as the list of repositories. Resolves when no worker can act on the older state. */
  async invalidate(keys: readonly string[]): Promise<void> {
    this.#deps.invalidateLocal(keys)
    await this.#deps.lease.invalidate(keys)
  }

  /**
   * Ends an announcement whose commit was refused or failed; never rejects. Where nobody knows whether the commit happened, or still
   * will (`error` is METADATA_UNAVAILABLE), the others bypass their caches until it certainly has or has not.
   */
  withdraw(keys: readonly string[], error: unknown): void {
    const tell = (): void => void this.invalidate(keys).catch(() => {}) // tells nobody anything that was acknowledged
    if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) return tell()
    this.#deps.invalidateLocal(keys)
    const timer = setTimeout(() => {
      this.#withdrawals.delete(timer)
      tell()
    }, unknownOutcomeMs)
    timer.unref()
    this.#withdrawals.add(timer)
  }

  /** Settles what is still to be settled. */
  async close(): Promise<void> {
    clearTimeout(this.#timer)
    for (const timer of this.#withdrawals) clearTimeout(timer) // the marks of a worker that is gone end by themselves
    this.#settle()
    await this.#settling
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
