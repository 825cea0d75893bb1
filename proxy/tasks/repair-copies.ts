/**
 * Brings missing copies home: a blob from any shard that has it to the owners that lack it, a reference to all its owners.
 * Handoff copies go to the trash only after every owner has its own.
 */
import type { Logger } from 'pino'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionOf } from '../../shared/partition.ts'
import { wirePath, type DropRequest, type TransferAnswer, type TransferRequest } from '../../shared/wire.ts'
import { referenceOf, tombstoneOf } from '../artifacts/reference.ts'
import type { Repositories } from '../artifacts/repositories.ts'
import type { Metadata, RepairEntry } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { NodeClients } from '../routing/node-client.ts'
import type { ReferenceStore } from '../routing/types.ts'
import { primaryRole, type PrimaryTask, type Term } from './primary.ts'

const batchSize = 100
/** While the target's node is known to be away, a repair costs nothing but this look, in ms. */
const awayRetryMs = 1_000
const failedRetryMsMax = 60_000
const transferTimeoutMs = 120_000
const concurrency = 4

export interface RepairDeps {
  readonly metadata: Pick<Metadata, 'dueRepairs' | 'finishRepair' | 'postponeRepair' | 'findArtifact' | 'incarnation'>
  readonly references: Pick<ReferenceStore, 'append'>
  readonly repositories: Pick<Repositories, 'all'>
  readonly clients: NodeClients
  readonly view: ClusterView
  readonly health: HealthTable
  readonly log: Logger
}

export class RepairCopies implements PrimaryTask {
  readonly name = 'repair-copies'
  readonly pauseMs = 1_000
  readonly #deps: RepairDeps
  copied = 0

  constructor(deps: RepairDeps) {
    this.#deps = deps
  }

  readonly step = async (term: Term): Promise<'more' | 'idle'> => {
    const due = await this.#deps.metadata.dueRepairs(batchSize)
    const queue = [...due]
    const worker = async (): Promise<void> => {
      for (let entry = queue.shift(); entry !== undefined && !term.signal.aborted; entry = queue.shift()) {
        await this.#repair(entry, term)
      }
    }
    await Promise.all(Array.from({ length: concurrency }, worker))
    return due.length === batchSize ? 'more' : 'idle'
  }

  async #repair(entry: RepairEntry, term: Term): Promise<void> {
    const { metadata, log } = this.#deps
    const wanted = this.#wanted(entry)
    const reachable = wanted.filter(shard => this.#writable(shard))
    try {
      const done =
        entry.kind === 'blob'
          ? await this.#copyBlob(entry, reachable, term)
          : await this.#appendReference(entry, reachable)
      const missing = wanted.filter(shard => !done.has(shard))
      if (missing.length === 0) {
        await this.#dropHandoffs(entry, term)
        await metadata.finishRepair(entry.id, term.token)
      } else {
        await metadata.postponeRepair(
          entry.id,
          term.token,
          reachable.length === 0 ? awayRetryMs : backoffMs(entry),
          missing,
        )
      }
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      log.debug({ err: error, repair: entry.id }, 'repair failed, to be repeated')
      await metadata.postponeRepair(entry.id, term.token, backoffMs(entry), entry.missing)
    }
  }

  /** Shards that should get a copy: those noted as missing that still own the partition. */
  #wanted(entry: RepairEntry): readonly ShardId[] {
    return this.#deps.view
      .current()
      .owners(entry.partition)
      .filter(owner => entry.missing.includes(owner))
  }

  #writable(shard: ShardId): boolean {
    return this.#deps.health.writable(this.#deps.view.current().node(shard).id, shard)
  }

  async #copyBlob(entry: RepairEntry, targets: readonly ShardId[], term: Term): Promise<ReadonlySet<ShardId>> {
    const done = new Set<ShardId>()
    const { blob } = entry
    if (blob === undefined) return done
    const view = this.#deps.view.current()
    const holders = [
      ...view.owners(entry.partition).filter(owner => !entry.missing.includes(owner)),
      ...this.#handoffsOf(entry),
    ]
    const sources = holders.map(shard => ({ url: view.node(shard).url, shard }))
    const { digest, generation, partition, bytes } = blob
    for (const shard of targets) {
      term.signal.throwIfAborted()
      const request: TransferRequest = { shard, blobs: [{ digest, generation, partition, bytes, sources }] }
      const answer = await this.#command<TransferAnswer>('POST', wirePath.transfer, shard, request, term)
      const result = answer.results[0]
      if (result === 'copied' || result === 'held') done.add(shard)
      else this.#deps.log.warn({ digest, shard, result }, 'copy failed')
      if (result === 'copied') this.copied++
    }
    return done
  }

  async #appendReference(entry: RepairEntry, targets: readonly ShardId[]): Promise<ReadonlySet<ShardId>> {
    if (entry.key === undefined || targets.length === 0) return new Set()
    const slash = entry.key.indexOf('/')
    const name = entry.key.slice(0, slash)
    const path = entry.key.slice(slash + 1)
    const repository = (await this.#deps.repositories.all()).get(name)
    const { incarnation } = this.#deps.metadata
    const artifact = repository === undefined ? undefined : await this.#deps.metadata.findArtifact(repository.id, path)
    const record =
      artifact === undefined
        ? tombstoneOf(
            name,
            { path, version: entry.version ?? 0, outboxSeq: 0 },
            { incarnation, user: 'holdfast', time: Date.now() },
          )
        : referenceOf(name, artifact, incarnation)
    const { missing } = await this.#deps.references.append(record)
    const owners = this.#deps.view.current().owners(partitionOf(name, path))
    return new Set(owners.filter(owner => !missing.includes(owner)))
  }

  async #dropHandoffs(entry: RepairEntry, term: Term): Promise<void> {
    const { blob } = entry
    if (blob === undefined) return
    const { digest, generation, partition } = blob
    for (const shard of this.#handoffsOf(entry)) {
      const request: DropRequest = { shard, reason: 'moved', blobs: [{ digest, generation, partition }] }
      await this.#command('POST', wirePath.drop, shard, request, term)
    }
  }

  /** Shards noted as handoffs that exist and still do not own the partition. */
  #handoffsOf(entry: RepairEntry): readonly ShardId[] {
    const view = this.#deps.view.current()
    const owners = view.owners(entry.partition)
    return entry.handoffs.filter((shard): shard is ShardId => view.has(shard) && !owners.includes(shard))
  }

  async #command<Answer>(method: string, path: string, shard: ShardId, body: unknown, term: Term): Promise<Answer> {
    const client = this.#deps.clients.ofShard(shard)
    const fence = `${primaryRole}:${term.token}`
    return client.requestJson<Answer>(method, path, body, { fence, signal: term.signal, timeoutMs: transferTimeoutMs })
  }
}

function backoffMs(entry: RepairEntry): number {
  return Math.min(failedRetryMsMax, 1_000 * 2 ** Math.min(entry.attempts, 10))
}
