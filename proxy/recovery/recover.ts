/**
 * Brings a database up to what the shards know: the one way both for a database that was restored from an older copy (catch-up, I13) and
 * for an empty one (rebuild, I14). Reads every reference of every shard once, and may be repeated: what is known already stays.
 */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { partitionCount } from '../../shared/partition.ts'
import { replicasBefore } from '../../shared/cluster-map.ts'
import { referenceReadQuorum } from '../../shared/quorum.ts'
import type { ReferenceRecord } from '../../shared/record.ts'
import type { NodeStatus } from '../../shared/wire.ts'
import { openIdentity } from '../identity/sealed-identity.ts'
import { usersIn } from '../metadata/identity-tables.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { NodeClients } from '../routing/node-client.ts'
import type { BlobReader, ReferenceStore } from '../routing/types.ts'
import { identityPath, internalRepository } from '../tasks/keep-identity.ts'
import { primaryRole } from '../tasks/primary.ts'
import { LostBytes } from './lost-bytes.ts'
import { nextIncarnation } from './judge-database.ts'
import { mergeReferences } from './merge-references.ts'
import { readBlob } from './read-blob.ts'
import { referencesOf } from './shard-listing.ts'

const batchSize = 500
/** Versions that were issued, but whose references no shard that answers has seen, stay below what comes next. */
const versionMargin = 10_000

export interface RecoveryDeps {
  readonly metadata: Pick<
    Metadata,
    'recovery' | 'collection' | 'listRepositories' | 'createRepository' | 'exportIdentity' | 'putUser'
  >
  readonly view: ClusterView
  readonly clients: NodeClients
  readonly references: Pick<ReferenceStore, 'newest'>
  readonly reader: BlobReader
  /** Of all nodes that answer. */
  readonly statuses: readonly NodeStatus[]
  readonly secret: string
  /** The administrator to make if none could be restored. */
  readonly newAdmin: () => Promise<{ readonly name: string; readonly passwordHash: string }>
  readonly progress: (line: string) => void
}

export interface RecoveryOptions {
  readonly kind: 'catch-up' | 'rebuild'
  /** Go on although so many shards are away that acknowledged writes may be missing. */
  readonly force: boolean
}

export interface RecoveryReport {
  readonly kind: RecoveryOptions['kind']
  readonly shardsRead: number
  readonly paths: number
  readonly written: number
  readonly deleted: number
  /** Undefined: no copy of users and repositories was found. */
  readonly identityTakenAt?: number
  readonly repositoriesMade: readonly string[]
  readonly adminMade: boolean
  readonly incarnation: string
  readonly version: number
  readonly ms: number
  /** Shards that did not answer. */
  readonly shardsAway: readonly string[]
  /** Artifacts of which no copy was found on any shard that answers; the first thousand. */
  readonly withoutBytes: readonly string[]
  readonly withoutBytesCount: number
}

/**
 * Rejects with CONFLICT (a rebuild of a database that is not empty, or another recovery of it is under way), REPLICAS_UNREACHABLE (too many
 * shards away), or what a shard rejects with.
 */
export function recover(deps: RecoveryDeps, options: RecoveryOptions): Promise<RecoveryReport> {
  return deps.metadata.recovery.exclusively(check => recoverAlone(deps, options, check))
}

async function recoverAlone(
  deps: RecoveryDeps,
  options: RecoveryOptions,
  check: () => Promise<void>,
): Promise<RecoveryReport> {
  const startedAt = performance.now()
  const { metadata, progress } = deps
  const { recovery, collection } = metadata
  const facts = await recovery.facts()
  if (options.kind === 'rebuild' && !facts.empty) {
    throw new HoldfastError('CONFLICT', "the database is not empty: 'holdfast metadata catch-up' brings it up to date")
  }
  const { readable, away, recovering } = sortShards(deps)
  const complete = readable.filter(shard => !recovering.includes(shard))
  checkCoverage(deps, complete, { away, recovering }, options.force)
  await collection.disarm(`${options.kind} from the shards: look at 'gc plan', then arm it`, 'recovery')
  const identity = await restoreIdentity(deps, facts.issued)
  progress(identity === undefined ? 'users and repositories: no newer copy found' : 'users and repositories restored')
  const lost = new LostBytes(deps, readable)
  const merger = new Merger(deps, lost)
  for await (const record of mergeReferences(readable.map(shard => referencesOf(deps.clients, shard)))) {
    await merger.add(record)
  }
  await merger.flush()
  const adminMade = await ensureAdmin(deps)
  const incarnation = nextIncarnation([
    facts.incarnation,
    ...merger.incarnations,
    ...newestOf(deps).map(one => one.incarnation),
  ])
  const known = Math.max(facts.issued, merger.version, ...newestOf(deps).map(one => one.version))
  const version = known + versionMargin
  const token = Math.max(0, ...deps.statuses.map(({ tokens }) => tokens?.[primaryRole] ?? 0))
  await check()
  await recovery.finish({ version, incarnation, token, map: deps.view.current().map })
  return {
    kind: options.kind,
    shardsRead: readable.length,
    paths: merger.paths,
    written: merger.written,
    deleted: merger.deleted,
    ...(identity === undefined ? {} : { identityTakenAt: identity }),
    repositoriesMade: merger.repositoriesMade,
    adminMade,
    incarnation,
    version,
    ms: Math.round(performance.now() - startedAt),
    shardsAway: away,
    withoutBytes: lost.names,
    withoutBytesCount: lost.count,
  }
}

function sortShards({ view, statuses }: RecoveryDeps) {
  const found = new Map(statuses.flatMap(({ shards }) => shards).map(shard => [shard.id, shard]))
  const ids = view.current().map.shards.map(({ id }) => id)
  const isReadable = (id: ShardId): boolean => found.has(id) && found.get(id)?.state !== 'failed'
  return {
    readable: ids.filter(isReadable),
    away: ids.filter(id => !isReadable(id)),
    recovering: ids.filter(id => isReadable(id) && found.get(id)?.recovering !== undefined),
  }
}

/**
 * A majority of owners has each acknowledged reference: with as many owners as tell the newest one, none is missed. While a partition gets
 * other owners, that takes as many of the old ones too: the new ones may not have been told yet. One that is recovering, its disk being
 * new or having lost something, does not count.
 */
export function checkCoverage(
  { view }: Pick<RecoveryDeps, 'view'>,
  complete: readonly ShardId[],
  { away, recovering }: { readonly away: readonly ShardId[]; readonly recovering: readonly ShardId[] },
  force: boolean,
): void {
  if (force) return
  const current = view.current()
  const there = new Set(complete)
  const enough = (owners: readonly ShardId[], replicas: number): boolean =>
    owners.filter(owner => there.has(owner)).length >= Math.min(referenceReadQuorum(replicas), owners.length)
  const [now, before] = [current.map.replicas, replicasBefore(current.map)]
  for (let partition = 0; partition < partitionCount; partition++) {
    if (enough(current.owners(partition), now) && enough(current.previousOwners(partition) ?? [], before)) continue
    const news = recovering.length === 0 ? '' : ` or recovering from a loss (${recovering.join(', ')})`
    throw new HoldfastError(
      'REPLICAS_UNREACHABLE',
      `too many shards are away (${away.join(', ')})${news}: acknowledged writes would be missing; bring them back, or use --force`,
      { away, recovering },
    )
  }
}

function newestOf({ statuses }: RecoveryDeps) {
  return statuses.flatMap(({ shards }) => shards).flatMap(({ newest }) => newest ?? [])
}

/** The copy that the primary kept on the shards, if it is newer than the database. Resolves with when it was taken. */
async function restoreIdentity(deps: RecoveryDeps, issued: number): Promise<number | undefined> {
  const record = await deps.references.newest(internalRepository, identityPath)
  if (record?.blob === undefined || record.version <= issued) return undefined
  try {
    const { takenAt, tables } = openIdentity(deps.secret, await readBlob(deps.reader, record.blob))
    await deps.metadata.recovery.restoreIdentity(tables)
    return takenAt
  } catch (error) {
    if (!isHoldfastError(error, 'RECORD_DAMAGED', 'REPLICAS_UNREACHABLE')) throw error
    deps.progress(`users and repositories cannot be restored: ${error.message}`)
    return undefined
  }
}

/** Without anybody who may administer, one is made. */
async function ensureAdmin({ metadata, newAdmin }: RecoveryDeps): Promise<boolean> {
  if (usersIn(await metadata.exportIdentity()).some(({ admin }) => admin)) return false
  await metadata.putUser({ ...(await newAdmin()), admin: true })
  return true
}

/** Takes the newest reference of each path, and writes them in batches. */
class Merger {
  readonly incarnations = new Set<string>()
  readonly repositoriesMade: string[] = []
  paths = 0
  written = 0
  deleted = 0
  version = 0
  readonly #deps: RecoveryDeps
  readonly #lost: LostBytes
  #repositories: Map<string, number> | undefined
  #batch: ReferenceRecord[] = []

  constructor(deps: RecoveryDeps, lost: LostBytes) {
    this.#deps = deps
    this.#lost = lost
  }

  async add(record: ReferenceRecord): Promise<void> {
    this.paths++
    this.version = Math.max(this.version, record.version)
    this.incarnations.add(record.incarnation)
    this.#batch.push(record)
    if (this.#batch.length >= batchSize) await this.flush()
  }

  async flush(): Promise<void> {
    const { metadata, progress } = this.#deps
    const batch = this.#batch
    this.#batch = []
    const placed = []
    for (const record of batch) {
      const repositoryId = await this.#repositoryId(record)
      if (repositoryId !== undefined) placed.push({ repositoryId, record })
    }
    const [merged] = await Promise.all([metadata.recovery.merge(placed), this.#lost.look(batch)])
    this.written += merged.written
    this.deleted += merged.deleted
    progress(`${this.paths} paths read, ${this.written} artifacts and ${this.deleted} deletions written`)
  }

  /** A repository nobody remembers comes back closed: only administrators read it, and nothing in it is overwritten. */
  async #repositoryId({ repository: name, op }: ReferenceRecord): Promise<number | undefined> {
    const { metadata } = this.#deps
    this.#repositories ??= new Map((await metadata.listRepositories()).map(one => [one.name, one.id]))
    const known = this.#repositories.get(name)
    if (known !== undefined || op === 'delete') return known
    const { id } = await metadata.createRepository({
      name,
      anonymousRead: false,
      redeploy: name === internalRepository ? 'allow' : 'once',
    })
    this.#repositories.set(name, id)
    if (name !== internalRepository) this.repositoriesMade.push(name)
    return id
  }
}
