import { HoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { wirePath } from '../../shared/wire.ts'
import type { ReadCounters } from './counters.ts'
import type { BlobRead, ReadReceiver, ReadRequest } from './node-reader.ts'
import type { Replica, Replicas } from './replica-source.ts'
import type { RetryBudget } from './retry-budget.ts'
import type { SlowProbes } from './slow-probe.ts'
import type { BlobLocation, ByteRange } from './types.ts'

export interface ReadTimes {
  /** The first byte is expected within the p95 of the quickest of the nodes, clamped to these; then a second replica may be asked. */
  readonly hedgeMsMin: number
  readonly hedgeMsMax: number
  /** Silence after which another replica is asked whatever the budget says. */
  readonly stallMs: number
  /** Silence after which a replica is given up. */
  readonly dropMs: number
  /** A read without progress ends after this time. */
  readonly deadlineMs: number
}

export const readTimeDefaults: ReadTimes = {
  hedgeMsMin: 50,
  hedgeMsMax: 1_000,
  stallMs: 1_000,
  dropMs: 5_000,
  deadlineMs: 30_000,
}

/** What whole and streamed reads share. */
export interface ReadContext {
  readonly replicas: Replicas
  readonly budget: RetryBudget
  readonly probes: SlowProbes
  readonly counters: ReadCounters
  readonly times: ReadTimes
  readonly now: () => number
  /** A shard that lacks what it should hold, or holds it wrong: for the repair queue. Must not throw. */
  readonly onBadReplica: (blob: BlobLocation, shard: ShardId, reason: 'missing' | 'corrupt') => void
}

/** When to ask a second replica, rounded so that timers share their lists. */
export function hedgeDelay(p95Ms: number, { hedgeMsMin, hedgeMsMax }: ReadTimes): number {
  return Math.ceil(Math.min(hedgeMsMax, Math.max(hedgeMsMin, p95Ms)) / 10) * 10
}

export function startRead(
  context: ReadContext,
  replica: Replica,
  blob: BlobLocation,
  range: ByteRange | undefined,
  into: Buffer | 'chunks',
  receiver: ReadReceiver,
  latency: ReadRequest['latency'] = replica.latency,
): BlobRead {
  context.counters.attempts += 1
  const path = wirePath.blob(replica.id, blob.partition, blob.digest, blob.generation)
  return replica.client.reader.read({ path, total: blob.bytes, range, into, latency }, receiver)
}

/** Remembers and reports a copy that is missing or wrong; false: the failure says nothing about the copy. */
export function noteBadCopy(context: ReadContext, blob: BlobLocation, replica: Replica, error: HoldfastError): boolean {
  const reason = error.code === 'BLOB_NOT_FOUND' ? 'missing' : error.code === 'BLOB_CORRUPT' ? 'corrupt' : undefined
  if (reason === undefined) return false
  context.replicas.doubt(blob, replica.id)
  // A handoff that lacks a blob is as it should be.
  if (reason === 'corrupt' || replica.role === 'owner') context.onBadReplica(blob, replica.id, reason)
  return true
}

export function unreachable(blob: BlobLocation, failures: readonly HoldfastError[]): HoldfastError {
  const reasons = failures.slice(-8).map(({ code, data }) => ({ code, node: data['node'], reason: data['reason'] }))
  return new HoldfastError(
    'REPLICAS_UNREACHABLE',
    'no replica of the blob could be read',
    { digest: blob.digest, partition: blob.partition, failures: reasons },
    { cause: failures.at(-1) },
  )
}

/** A blob whose bytes do not have its digest, found by the proxy itself. */
export function digestMismatch(blob: BlobLocation, found: string): HoldfastError {
  return new HoldfastError('BLOB_CORRUPT', 'the bytes do not have the digest', { expected: blob.digest, found })
}
