/** What moving asks of shards, and of PostgreSQL: small questions of several partitions go together, each in its turn (calm.ts). */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import {
  type BlobKey,
  type DropAnswer,
  type DropRequest,
  type EntriesAnswer,
  type EntriesRequest,
  type EntryListing,
  type ReferenceAnswer,
  type ReferenceListing,
  type ReferencesAnswer,
  type ReferencesRequest,
  type TouchAnswer,
  type TransferAnswer,
  type TransferRequest,
  wirePath,
} from '../../shared/wire.ts'
import type { NodeClients } from '../routing/node-client.ts'
import type { ReferenceStore } from '../routing/types.ts'
import { type Calm, copyCostMs } from './calm.ts'
import { JoinedCalls } from './joined-calls.ts'
import type { Term } from './primary.ts'
import { commandLimitMs, entriesPage, type NamesPage, touchAll, touchMax } from './shard-contents.ts'
import type { Copy } from './unnamed-blobs.ts'

/** Names of one answer, about 100 bytes each; a partition of which more are expected is asked about by itself. */
const namesMax = 1_000
const recordsMax = 64
const appendsMax = 256
const judgedMax = 500
const dropsMax = 1_000
/** Of what goes together; more at once is what clients would feel of it (I34). A partition's own may be more. */
const pulledBytesMax = 2 * 1024 * 1024
/** So that one request pulls a hundred of the smallest. */
const pulledBytesMin = pulledBytesMax / 100
/** A shard reads records from its log, up to 4 MiB of it. */
const readTimeoutMs = 30_000

export interface Copied {
  readonly blobs: number
  readonly bytes: number
  readonly references: number
}

export interface MoveCallsDeps {
  readonly clients: Pick<NodeClients, 'ofShard'>
  readonly references: Pick<ReferenceStore, 'appendTo'>
  readonly calm: Pick<Calm, 'step' | 'spent'>
  /** `primary:17` */
  readonly fence: string
  /** Aborts when the run has ended; read before each call. */
  readonly term: Pick<Term, 'signal'>
  /** Which of these copies nothing names any more (they leave, fenced off) and which are being purged: neither is brought anywhere. */
  readonly unwanted: <One extends Copy>(
    copies: readonly One[],
  ) => Promise<{ readonly unnamed: readonly One[]; readonly purging: readonly One[] }>
  /** Resolves when the shard may get so many bytes more; before each command that brings it blobs. */
  readonly turn: (shard: ShardId, bytes: number) => Promise<void>
  /** After each command; resolves when the next one may begin. */
  readonly onCopied: (copied: Copied) => Promise<void>
}

export type Verdict = 'wanted' | 'unnamed' | 'purging'
export type PulledBlob = TransferRequest['blobs'][number]
export interface ReferenceName {
  readonly partition: number
  readonly key: string
}
export interface Delivery {
  readonly record: ReferenceAnswer
  readonly targets: readonly ShardId[]
}

/** All reject with the error of the shard (or of PostgreSQL), or the signal's reason. */
export class MoveCalls {
  readonly #deps: MoveCallsDeps
  readonly #names: JoinedCalls<ShardId, NamesPage, EntryListing>
  readonly #records: JoinedCalls<ShardId, ReferenceName, ReferenceAnswer | HoldfastError>
  readonly #touches: JoinedCalls<ShardId, BlobKey, TouchAnswer['results'][number]>
  readonly #drops: JoinedCalls<ShardId, BlobKey, DropAnswer['results'][number]>
  readonly #pulls: JoinedCalls<ShardId, PulledBlob, TransferAnswer['results'][number]>
  readonly #appends: JoinedCalls<'shards', Delivery, ReadonlySet<ShardId>>
  readonly #verdicts: JoinedCalls<'PostgreSQL', Copy, Verdict>

  constructor(deps: MoveCallsDeps) {
    this.#deps = deps
    const one = (): number => 1
    const stepOf = <Result>(shard: ShardId, work: () => Promise<Result>): Promise<Result> => this.#step([shard], work)
    this.#names = new JoinedCalls({
      call: (shard, pages) => this.#listNames(shard, pages),
      turn: stepOf,
      costOf: ({ expected = Infinity }) => Math.max(1, expected),
      costMax: namesMax,
    })
    this.#records = new JoinedCalls({
      call: (shard, names) => this.#readRecords(shard, names),
      turn: stepOf,
      costOf: one,
      costMax: recordsMax,
    })
    this.#touches = new JoinedCalls({
      call: (shard, blobs) => touchAll(deps, shard, blobs, this.#signal),
      turn: stepOf,
      costOf: one,
      costMax: touchMax,
    })
    this.#drops = new JoinedCalls({
      call: (shard, blobs) => this.#drop(shard, blobs, 'moved'),
      turn: stepOf,
      costOf: one,
      costMax: dropsMax,
    })
    this.#pulls = new JoinedCalls({
      call: (shard, blobs) => this.#pull(shard, blobs),
      // Not a step: a node that holds back takes its time, and the others need not wait for it.
      turn: (_shard, work) => work(),
      costOf: ({ bytes }) => Math.max(bytes, pulledBytesMin),
      costMax: pulledBytesMax,
    })
    this.#appends = new JoinedCalls({
      call: (_key, deliveries) =>
        Promise.all(deliveries.map(({ record, targets }) => deps.references.appendTo(record, targets))),
      // Their disks hold them back by themselves.
      turn: (_key, work) => this.#step([], work),
      costOf: one,
      costMax: appendsMax,
    })
    this.#verdicts = new JoinedCalls({
      call: async (_key, copies) => {
        const { unnamed, purging } = await deps.unwanted(copies)
        const [isUnnamed, isPurging] = [new Set(unnamed), new Set(purging)]
        return copies.map(copy => (isUnnamed.has(copy) ? 'unnamed' : isPurging.has(copy) ? 'purging' : 'wanted'))
      },
      turn: (_key, work) => this.#step([], work),
      costOf: one,
      costMax: judgedMax,
    })
  }

  async names(shard: ShardId, page: NamesPage): Promise<EntryListing> {
    const [listing] = await this.#names.ask(shard, [page])
    return listing as EntryListing
  }

  /** The newest reference of each path; rejects with the error of the first that cannot be had. */
  async records(shard: ShardId, names: readonly ReferenceName[]): Promise<readonly ReferenceAnswer[]> {
    const answers = await this.#records.ask(shard, names)
    return answers.map(answer => {
      if (answer instanceof HoldfastError) throw answer
      return answer
    })
  }

  /** One page of a partition's references behind `after`. */
  referencesPage(
    shard: ShardId,
    partition: number,
    { after, limit }: { readonly after: string | undefined; readonly limit: number },
  ): Promise<ReferenceListing> {
    const query = new URLSearchParams({ limit: String(limit), ...(after === undefined ? {} : { after }) })
    const path = `${wirePath.references(shard, partition)}?${query.toString()}`
    const options = { signal: this.#signal, timeoutMs: readTimeoutMs, unlessDown: true }
    return this.#step([shard], () => this.#deps.clients.ofShard(shard).requestJson('GET', path, undefined, options))
  }

  touch(shard: ShardId, blobs: readonly BlobKey[]): Promise<TouchAnswer['results']> {
    return this.#touches.ask(shard, blobs)
  }

  async drop(shard: ShardId, blobs: readonly BlobKey[], reason: DropRequest['reason']): Promise<void> {
    if (reason === 'moved') await this.#drops.ask(shard, blobs)
    else if (blobs.length > 0) await this.#step([shard], () => this.#drop(shard, blobs, reason))
  }

  /** Each blob is durable on the shard when this resolves, or its answer says why not. */
  pull(shard: ShardId, blobs: readonly PulledBlob[]): Promise<TransferAnswer['results']> {
    return this.#pulls.ask(shard, blobs)
  }

  /** Where each is durable by now. */
  append(deliveries: readonly Delivery[]): Promise<readonly ReadonlySet<ShardId>[]> {
    return this.#appends.ask('shards', deliveries)
  }

  judge(copies: readonly Copy[]): Promise<readonly Verdict[]> {
    return this.#verdicts.ask('PostgreSQL', copies)
  }

  get #signal(): AbortSignal {
    return this.#deps.term.signal
  }

  #step<Result>(shards: readonly ShardId[], work: () => Promise<Result>): Promise<Result> {
    return this.#deps.calm.step(shards, this.#signal, work)
  }

  async #listNames(shard: ShardId, pages: readonly NamesPage[]): Promise<readonly EntryListing[]> {
    const { clients } = this.#deps
    const one = (page: NamesPage): Promise<EntryListing> => entriesPage({ clients }, shard, page, this.#signal)
    const [first] = pages
    if (first === undefined || pages.length === 1) return Promise.all(pages.map(one))
    const request: EntriesRequest = {
      lists: pages.map(({ partition, of }) => ({ partition, of })),
      limit: first.limit,
    }
    const { lists } = await this.#orNothing(
      () => clients.ofShard(shard).requestJson<EntriesAnswer>('POST', wirePath.entriesOf(shard), request, { signal: this.#signal, timeoutMs: readTimeoutMs, repeatable: true, unlessDown: true }),
      { lists: [] },
    ) // prettier-ignore
    return Promise.all(pages.map(async (page, index) => lists[index] ?? one(page)))
  }

  /** What is wrong with one record is nothing to the others. */
  async #readRecords(
    shard: ShardId,
    names: readonly ReferenceName[],
  ): Promise<readonly (ReferenceAnswer | HoldfastError)[]> {
    const client = this.#deps.clients.ofShard(shard)
    const options = { signal: this.#signal, timeoutMs: readTimeoutMs, unlessDown: true, background: 'usual' } as const
    const one = ({ partition, key }: ReferenceName): Promise<ReferenceAnswer | HoldfastError> => {
      const path = `${wirePath.references(shard, partition)}?key=${encodeURIComponent(key)}`
      return client.requestJson<ReferenceAnswer>('GET', path, undefined, options).catch((error: unknown) => {
        if (!isHoldfastError(error)) throw error
        return error
      })
    }
    if (names.length === 1) return Promise.all(names.map(one))
    const request: ReferencesRequest = { references: names.map(({ partition, key }) => ({ partition, key })) }
    const { references } = await this.#orNothing(
      () => client.requestJson<ReferencesAnswer>('POST', wirePath.allReferences(shard), request, { ...options, repeatable: true }),
      { references: [] },
    ) // prettier-ignore
    return Promise.all(names.map(async (name, index) => references[index] ?? one(name)))
  }

  /** A node of the release before is asked about each by itself. */
  async #orNothing<Answer>(ask: () => Promise<Answer>, nothing: Answer): Promise<Answer> {
    try {
      return await ask()
    } catch (error) {
      if (!isHoldfastError(error, 'METHOD_NOT_ALLOWED')) throw error
      return nothing
    }
  }

  async #drop(
    shard: ShardId,
    blobs: readonly BlobKey[],
    reason: DropRequest['reason'],
  ): Promise<DropAnswer['results']> {
    const { clients, fence } = this.#deps
    this.#signal.throwIfAborted()
    const keys = blobs.map(({ partition, digest, generation }) => ({ partition, digest, generation }))
    const request: DropRequest = { shard, reason, blobs: keys }
    const options = { fence, timeoutMs: commandLimitMs(), signal: this.#signal }
    const { results } = await clients.ofShard(shard).requestJson<DropAnswer>('POST', wirePath.drop, request, options)
    return results
  }

  async #pull(shard: ShardId, blobs: readonly PulledBlob[]): Promise<TransferAnswer['results']> {
    const { clients, fence, calm, turn, onCopied } = this.#deps
    const bytes = blobs.reduce((sum, blob) => sum + blob.bytes, 0)
    await turn(shard, bytes)
    this.#signal.throwIfAborted()
    const request: TransferRequest = { shard, blobs }
    const options = { fence, timeoutMs: commandLimitMs(bytes), signal: this.#signal }
    const { results } = await clients.ofShard(shard).requestJson<TransferAnswer>('POST', wirePath.transfer, request, options) // prettier-ignore
    const copied = blobs.filter((_, index) => results[index] === 'copied')
    const copiedBytes = copied.reduce((sum, blob) => sum + blob.bytes, 0)
    calm.spent([shard], copyCostMs({ blobs: copied.length, bytes: copiedBytes }))
    await onCopied({ blobs: copied.length, bytes: copiedBytes, references: 0 })
    return results
  }
}
