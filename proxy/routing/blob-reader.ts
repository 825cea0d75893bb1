/** Reads blobs from whichever replica serves them: the read half of routing (types.ts, BlobReader). */
import assert from 'node:assert/strict'
import { abortable } from '../../shared/abortable.ts'
import { HoldfastError } from '../../shared/errors.ts'
import type { ShardId, Zone } from '../../shared/ids.ts'
import type { ClusterView } from './cluster-view.ts'
import { newReadCounters, type ReadCounters } from './counters.ts'
import type { HealthTable } from './health.ts'
import type { NodeClients } from './node-client.ts'
import { type ReadContext, readTimeDefaults, type ReadTimes } from './read-deps.ts'
import { Replicas } from './replica-source.ts'
import { RetryBudget } from './retry-budget.ts'
import { SlowProbes } from './slow-probe.ts'
import { StreamRead } from './stream-read.ts'
import type { BlobLocation, BlobReader, ByteRange, ByteSink } from './types.ts'
import { WholeRead } from './whole-read.ts'

/** Larger blobs are streamed (I38). */
export const wholeBytesMax = 1024 * 1024

export interface BlobReaderDeps {
  readonly view: ClusterView
  readonly clients: NodeClients
  readonly health: HealthTable
  /** Zone of this proxy. */
  readonly zone?: Zone | undefined
  readonly onBadReplica: (blob: BlobLocation, shard: ShardId, reason: 'missing' | 'corrupt') => void
  readonly counters?: ReadCounters
  /** Monotonic milliseconds. */
  readonly now?: () => number
  readonly random?: () => number
  readonly times?: Partial<ReadTimes>
  /** Bytes of whole reads under way at once; more wait. */
  readonly wholeBytesAtOnceMax?: number
  /** Whole reads that may wait for that; past it they are refused with OVERLOADED. */
  readonly waitingMax?: number
}

export class ReplicatedBlobReader implements BlobReader {
  readonly counters: ReadCounters
  readonly #context: ReadContext
  readonly #shared = new Map<string, Promise<Buffer>>()
  readonly #bytesMax: number
  readonly #waitingMax: number
  readonly #waiting: { readonly bytes: number; readonly admit: () => void }[] = []
  #bytes = 0

  constructor(deps: BlobReaderDeps) {
    const now = deps.now ?? (() => performance.now())
    this.counters = deps.counters ?? newReadCounters()
    this.#bytesMax = deps.wholeBytesAtOnceMax ?? 128 * 1024 * 1024
    this.#waitingMax = deps.waitingMax ?? 4_096
    const { view, clients, health, zone, random = Math.random } = deps
    this.#context = {
      replicas: new Replicas({ view, clients, health, counters: this.counters, zone, now, random }),
      budget: new RetryBudget(now),
      probes: new SlowProbes(now),
      counters: this.counters,
      times: { ...readTimeDefaults, ...deps.times },
      now,
      onBadReplica: deps.onBadReplica,
    }
  }

  /** OVERLOADED when too many reads wait already; an abort of `signal` leaves the read to those who share it. */
  readWhole(blob: BlobLocation, signal?: AbortSignal): Promise<Buffer> {
    assert.ok(blob.bytes <= wholeBytesMax, 'larger blobs are streamed')
    this.#count()
    // The generation names the incarnation, the partition where it is; all three make it the same read.
    const key = `${blob.digest}.${blob.generation}.${blob.partition}`
    let reading = this.#shared.get(key)
    if (reading === undefined) {
      reading = this.#readWhole(blob).finally(() => this.#shared.delete(key))
      this.#shared.set(key, reading)
    } else this.counters.sharedReads += 1
    return signal === undefined ? reading : abortable(reading, signal)
  }

  stream(
    blob: BlobLocation,
    range: ByteRange | undefined,
    sink: ByteSink,
    options: { onStart: () => void; signal: AbortSignal },
  ): Promise<void> {
    this.#count()
    return new StreamRead(this.#context, blob, range, sink, options).run()
  }

  #count(): void {
    this.counters.reads += 1
    this.#context.budget.request()
  }

  async #readWhole(blob: BlobLocation): Promise<Buffer> {
    if (this.#waiting.length > 0 || !this.#fits(blob.bytes)) await this.#wait(blob.bytes)
    else this.#bytes += blob.bytes
    try {
      return await new WholeRead(this.#context, blob).run()
    } finally {
      this.#bytes -= blob.bytes
      this.#admit()
    }
  }

  /** One alone always fits. */
  #fits(bytes: number): boolean {
    return this.#bytes === 0 || this.#bytes + bytes <= this.#bytesMax
  }

  #wait(bytes: number): Promise<void> {
    if (this.#waiting.length >= this.#waitingMax)
      throw new HoldfastError('OVERLOADED', 'too many reads wait for memory')
    return new Promise(admit => void this.#waiting.push({ bytes, admit }))
  }

  /** First come, first served: a large read is not passed by small ones for ever. */
  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift()
      this.#bytes += next.bytes
      next.admit()
    }
  }
}
