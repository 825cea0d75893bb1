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
import type { Metadata, RepairEntry } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { NodeClient } from '../routing/node-client.ts'
import type { ReferenceStore } from '../routing/types.ts'
import { primaryRole, type PrimaryTask, type Term } from './primary.ts'

const batchSize = 100
/** While the target's node is known to be away, a repair costs nothing but this look, in ms. */
const awayRetryMs = 1_000
const failedRetryMsMax = 60_000
const transferTimeoutMs = 120_000
const concurrency = 4

export interface RepairDeps {
  readonly metadata: Pick<
    Metadata,
    'dueRepairs' | 'finishRepair' | 'postponeRepair' | 'listRepositories' | 'findArtifact' | 'incarnation'
  >
  readonly references: Pick<ReferenceStore, 'append'>
  readonly clients: { ofShard(shard: ShardId): Pick<NodeClient, 'requestJson'> }
  readonly view: Pick<ClusterView, 'current'>
  readonly health: Pick<HealthTable, 'state' | 'writable'>
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
    const ends = await Promise.allSettled(Array.from({ length: concurrency }, worker))
    const failed = ends.find(end => end.status === 'rejected')
    if (failed !== undefined) throw failed.reason
    return due.length === batchSize ? 'more' : 'idle'
  }

  async #repair(entry: RepairEntry, term: Term): Promise<void> {
    const { metadata, log } = this.#deps
    try {
      const { missing, tried } = await this.#complete(entry, term)
      if (missing.length === 0) {
        await this.#dropHandoffs(entry, term)
        await metadata.finishRepair(entry.id, term.token)
      } else {
        const retryMs = tried ? backoffMs(entry) : awayRetryMs
        await metadata.postponeRepair(entry.id, term.token, retryMs, missing)
      }
    } catch (error) {
      if (!isHoldfastError(error)) throw error
      log.debug({ err: error, repair: entry.id }, 'repair failed, to be repeated')
      await metadata.postponeRepair(entry.id, term.token, backoffMs(entry), entry.missing)
    }
  }

  /**
   * Brings the copies that were noted as missing home, to owners that still are. Where handoffs are to be dropped afterwards, the other
   * owners are asked too: the handoffs were spare copies, and what was noted may be old (another map, another disk); a shard that holds
   * its copy says so at no cost. Resolves with the owners that lack theirs, and whether any could be asked.
   */
  async #complete(entry: RepairEntry, term: Term): Promise<{ missing: readonly ShardId[]; tried: boolean }> {
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
    const missing = [...lacking, ...others]
    return { missing, tried: missing.some(shard => this.#writable(shard)) }
  }

  /** Resolves with those that still lack their copy. */
  async #supply(entry: RepairEntry, wanted: readonly ShardId[], term: Term): Promise<readonly ShardId[]> {
    const reachable = wanted.filter(shard => this.#writable(shard))
    const done =
      entry.kind === 'blob'
        ? await this.#copyBlob(entry, reachable, term)
        : await this.#appendReference(entry, reachable)
    return wanted.filter(shard => !done.has(shard))
  }

  #writable(shard: ShardId): boolean {
    return this.#deps.health.writable(this.#deps.view.current().node(shard).id, shard)
  }

  async #copyBlob(entry: RepairEntry, targets: readonly ShardId[], term: Term): Promise<ReadonlySet<ShardId>> {
    const done = new Set<ShardId>()
    const { blob } = entry
    if (blob === undefined) return done
    const view = this.#deps.view.current()
    const owners = view.owners(entry.partition)
    const likely = [...owners.filter(owner => !entry.missing.includes(owner)), ...this.#handoffsOf(entry)]
    const sources = [...likely, ...owners.filter(owner => !likely.includes(owner))]
      .filter(shard => this.#deps.health.state(view.node(shard).id) !== 'down')
      .map(shard => ({ url: view.node(shard).url, shard }))
    const { digest, generation, partition, bytes } = blob
    for (const shard of targets) {
      term.signal.throwIfAborted()
      const request: TransferRequest = {
        shard,
        blobs: [{ digest, generation, partition, bytes, sources: sources.filter(one => one.shard !== shard) }],
      }
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
    const { metadata } = this.#deps
    const { incarnation } = metadata
    // From PostgreSQL itself: by a list that is a moment old, a living artifact would get a tombstone.
    const repository = (await metadata.listRepositories()).find(one => one.name === name)
    const artifact = repository === undefined ? undefined : await metadata.findArtifact(repository.id, path)
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
