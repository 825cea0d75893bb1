/**
 * The task `backup`: a consistent copy of everything on a target outside the cluster, and the end of old ones. Both are one task, since
 * no two runs of a task overlap: nothing is ever pruned while a backup relies on it.
 *
 * A snapshot of the database becomes the manifest; then the blobs that the target does not have yet are copied; then the summary makes
 * it a backup. While the run goes on, garbage collection purges nothing that its snapshot names (migrations/0011-backup-hold.ts).
 */
import assert from 'node:assert/strict'
import { atMost } from '../../shared/at-most.ts'
import { HoldfastError } from '../../shared/errors.ts'
import type { Digest } from '../../shared/ids.ts'
import { noTarget } from '../backup/backups.ts'
import { blobBytes, type BlobSourceDeps, currentLocation, isUnreadable } from '../backup/blob-source.ts'
import type { ManifestBlob, ManifestEntry } from '../backup/manifest.ts'
import type { BackupStore } from '../backup/store.ts'
import { unnamedBlobs } from '../backup/sweep.ts'
import { backupId, type BackupCounts, type BackupTallies } from '../backup/types.ts'
import type { Metadata, MetadataSnapshot, Repository } from '../metadata/types.ts'
import type { Job, JobContext, JobParams } from './job.ts'

const page = 2_000
/** Repositories in which the cluster keeps things for itself: they mean nothing to another one. */
const ownPrefix = '.'
/** Blobs that are copied at once: with streams of 1 MiB each it bounds memory. */
const copiedAtOnce = 8
const removedAtOnce = 8
/** What a put of ours left behind that broke off: no run goes on so long with one blob, and none beside this one. */
const leftAgeMs = 24 * 3_600_000
const batchBlobs = 64
const batchBytes = 256 * 1024 * 1024
const readTriesMax = 3
const readPauseMs = 2_000
/** What cannot be read is told one by one only so often. */
const missingTold = 50

export interface BackupJobDeps extends BlobSourceDeps {
  readonly metadata: Pick<Metadata, 'snapshot' | 'findBlob' | 'clusterId' | 'incarnation'>
  /** CONFLICT if there is no target. */
  readonly openStore: (anew: boolean) => Promise<BackupStore>
  readonly hasTarget: boolean
  /** After each backup older ones are pruned but for so many; 0: never by itself. */
  readonly keep: number
  /** Milliseconds since 1970. */
  readonly now: () => number
  readonly version: string
  readonly tallies: BackupTallies
}

interface Amount {
  readonly blobs: number
  readonly bytes: number
}
interface Making {
  readonly phase: 'copy'
  readonly id: string
  readonly time: number
  readonly counts: BackupCounts
  /** Blobs up to this digest are dealt with. */
  readonly after: Digest | ''
  readonly done: Amount
  readonly copied: Amount
  readonly missing: number
}
/** Not yet begun: undefined. What a prune did needs no memory: the next one finds the rest. */
type Checkpoint = Making | { readonly phase: 'prune'; readonly missing: number }

interface Params {
  readonly prune: number | undefined
  /** Removes this backup, damaged or not; `last`: even if no other is good. */
  readonly remove: string | undefined
  readonly last: boolean
  /** The target may be empty although it was used before. */
  readonly anew: boolean
}

/** `defaultSchedule` null without a target. */
export function backup(deps: BackupJobDeps): Job<Checkpoint> {
  return {
    name: 'backup',
    title: 'Copy everything that is new to the backup target',
    defaultSchedule: deps.hasTarget ? '7 1 * * *' : null,
    checkParams: params => void paramsOf(params),
    checkStart: async () => {
      if (!deps.hasTarget) throw noTarget()
    },
    run: context => new BackupRun(deps, context).run(),
  }
}

class BackupRun {
  readonly #deps: BackupJobDeps
  readonly #context: JobContext<Checkpoint>
  readonly #told = new Set<Digest>()

  constructor(deps: BackupJobDeps, context: JobContext<Checkpoint>) {
    this.#deps = deps
    this.#context = context
  }

  async run(): Promise<void> {
    const { prune, remove, last, anew } = paramsOf(this.#context.params)
    const store = await this.#deps.openStore(anew)
    if (remove !== undefined) return this.#remove(store, remove, last)
    if (prune !== undefined) {
      const unread = await this.#prune(store, prune)
      if (unread.length === 0) return
      throw new HoldfastError('BACKUP_DAMAGED', `no blobs were removed: ${unread.join(', ')} cannot be read`)
    }
    let at = this.#context.checkpoint ?? (await this.#snapshot(store))
    if (at.phase === 'copy') {
      const made = await this.#complete(store, await this.#copy(store, at))
      await this.#publish(store, made)
      at = { phase: 'prune', missing: made.missing }
      await this.#context.save(at)
    }
    if (this.#deps.keep > 0) await this.#prune(store, this.#deps.keep)
    if (at.missing === 0) return
    throw new HoldfastError('REPLICAS_UNREACHABLE', `${at.missing} blobs could not be read; the backup has all else`)
  }

  async #snapshot(store: BackupStore): Promise<Making> {
    const { metadata } = this.#deps
    const { runId, term } = this.#context
    const { signal } = term
    const { id, time, counts } = await metadata.snapshot(async snapshot => {
      const id = backupId(snapshot.time, runId)
      // A run that was interrupted here begins again, with another name.
      return { id, time: snapshot.time, counts: await store.writeManifest(id, this.#entries(snapshot, id), { signal }) }
    })
    this.#context.log(`backup ${id}: ${counts.artifacts} artifacts, ${counts.blobs} blobs, ${counts.bytes} bytes`)
    const none: Amount = { blobs: 0, bytes: 0 }
    const made: Making = { phase: 'copy', id, time, counts, after: '', done: none, copied: none, missing: 0 }
    await this.#context.save(made)
    return made
  }

  async *#entries(snapshot: MetadataSnapshot, id: string): AsyncGenerator<ManifestEntry> {
    const { metadata, version } = this.#deps
    const { clusterId, incarnation } = metadata
    yield { kind: 'backup', id, clusterId, incarnation, time: snapshot.time, version }
    const all = await snapshot.repositories()
    const repositories = all.filter(({ name }) => !name.startsWith(ownPrefix))
    const own = all.filter(({ name }) => name.startsWith(ownPrefix)).map(({ id }) => id)
    for (const repository of repositories) yield repositoryEntry(repository)
    for (const user of await snapshot.users()) yield { kind: 'user', ...user }
    for (const policy of await snapshot.policies()) yield { kind: 'policy', ...policy }
    for (const task of await snapshot.taskSettings()) yield { kind: 'task', ...task }
    let blobs = 0
    for (let after = ''; ;) {
      const found = await snapshot.namedBlobs(after, page, own)
      const last = found.at(-1)
      if (last === undefined) break
      for (const blob of found) yield { kind: 'blob', ...blob }
      after = last.digest
      blobs += found.length
      this.#step({ done: blobs, unit: 'blobs', note: 'listing what there is' })
    }
    const names = new Map(repositories.map(one => [one.id, one.name]))
    let artifacts = 0
    for (let after = { repositoryId: 0, path: '' }; ;) {
      const found = await snapshot.artifacts(after, page, own)
      const last = found.at(-1)
      if (last === undefined) return
      for (const { repositoryId, blob, ...artifact } of found) {
        const repository = names.get(repositoryId)
        // Of a repository that is being deleted: it was empty, or these could not be there.
        if (repository === undefined) continue
        yield { kind: 'artifact', repository, ...artifact, digest: blob.digest, bytes: blob.bytes }
      }
      after = last
      artifacts += found.length
      this.#step({ done: artifacts, unit: 'artifacts', note: 'listing what there is' })
    }
  }

  async #copy(store: BackupStore, from: Making): Promise<Making> {
    let at = from
    let batch: ManifestBlob[] = []
    let bytes = 0
    let there: ReadonlySet<Digest> = new Set()
    let prefix = ''
    const flush = async (): Promise<void> => {
      const last = batch.at(-1)
      if (last === undefined) return
      at = await this.#copyBatch(store, at, batch, there)
      batch = []
      bytes = 0
    }
    for await (const entry of store.readManifest(at.id)) {
      if (entry.kind === 'artifact') break
      if (entry.kind !== 'blob' || entry.digest <= at.after) continue
      if (entry.digest.slice(0, 2) !== prefix) {
        await flush()
        prefix = entry.digest.slice(0, 2)
        there = await store.blobs(prefix)
      }
      batch.push(entry)
      bytes += there.has(entry.digest) ? 0 : entry.bytes
      if (bytes >= batchBytes || batch.length >= (bytes === 0 ? page : batchBlobs)) await flush()
    }
    await flush()
    return at
  }

  /** `verify --repair` may have removed, as damaged, what was found on the target: it is copied once more. */
  async #complete(store: BackupStore, made: Making): Promise<Making> {
    const again = await this.#copy(store, { ...made, after: '', done: { blobs: 0, bytes: 0 }, missing: 0 })
    return { ...made, copied: again.copied, missing: again.missing }
  }

  async #copyBatch(
    store: BackupStore,
    at: Making,
    batch: readonly ManifestBlob[],
    there: ReadonlySet<Digest>,
  ): Promise<Making> {
    const wanted = batch.filter(blob => !there.has(blob.digest))
    const outcomes = await atMost(copiedAtOnce, wanted, async blob => this.#copyOne(store, blob))
    const copied = wanted.filter((_, index) => outcomes[index] === 'copied')
    const missing = wanted.filter((_, index) => outcomes[index] === 'missing')
    for (const { digest, bytes } of missing) {
      if (this.#told.size >= missingTold || this.#told.has(digest)) continue
      this.#told.add(digest)
      this.#context.log(`no replica gives ${digest} (${bytes} bytes)`)
    }
    const next: Making = {
      ...at,
      after: batch.at(-1)!.digest,
      done: plus(at.done, batch),
      copied: plus(at.copied, copied),
      missing: at.missing + missing.length,
    }
    const { tallies } = this.#deps
    tallies.copiedBlobs += copied.length
    tallies.copiedBytes += plus({ blobs: 0, bytes: 0 }, copied).bytes
    this.#step({ done: next.done.bytes, total: next.counts.bytes, unit: 'bytes', note: `${next.copied.bytes} new` })
    await this.#context.save(next)
    return next
  }

  async #copyOne(store: BackupStore, blob: ManifestBlob): Promise<'copied' | 'there' | 'missing'> {
    const { signal } = this.#context.term
    for (let tries = 1; ; tries++) {
      signal.throwIfAborted()
      try {
        const location = tries === 1 ? blob : await currentLocation(this.#deps, blob)
        const body = blobBytes(this.#deps, location, signal)
        const copied = await store.putBlob(blob.digest, body, { bytes: blob.bytes, signal })
        return copied ? 'copied' : 'there'
      } catch (error) {
        if (signal.aborted || !isUnreadable(error)) throw error
        if (tries === readTriesMax) return 'missing'
        await this.#context.pause(readPauseMs)
      }
    }
  }

  async #publish(store: BackupStore, { id, time, counts, copied, missing }: Making): Promise<void> {
    const { metadata, now, tallies } = this.#deps
    const { clusterId, incarnation } = metadata
    const { encrypted } = store
    await store.publish({ format: 1, id, clusterId, incarnation, time, finishedAt: now(), counts, copied, missing, encrypted }) // prettier-ignore
    tallies.lastBytes = counts.bytes
    tallies.lastTime = time
    this.#context.log(`backup ${id} is complete: ${copied.blobs} blobs, ${copied.bytes} bytes were new`)
  }

  /**
   * Old backups, leftovers of backups that were never finished, and then every blob that none of the others names. Only good ones count
   * as kept; a damaged one among them stays until it is as old as what is pruned, or is removed by name. Resolves with those that stay
   * and whose manifest cannot be read: with any, no blob is removed, since it may name all of them.
   */
  async #prune(store: BackupStore, keep: number): Promise<readonly string[]> {
    const ids = await store.ids()
    if (ids.length === 0) throw new HoldfastError('NOT_FOUND', 'there is no backup yet: nothing is pruned')
    const kept: string[] = []
    const unread: string[] = []
    let good = 0
    // What is damaged is found before anything is gone.
    for (const id of ids.toReversed()) {
      if (good === keep) break
      const { summary, manifest } = await store.damageOf(id)
      if (summary === undefined && manifest === undefined) good++
      else this.#warn(id, summary ?? manifest!)
      ;(manifest === undefined ? kept : unread).push(id)
    }
    const staying = new Set([...kept, ...unread])
    let forgotten = 0
    for (const id of ids) {
      if (staying.has(id)) continue
      await this.#forget(store, id)
      forgotten++
    }
    await this.#sweep(store, kept, unread, forgotten)
    return unread
  }

  /** One backup by its name, and what only it named. */
  async #remove(store: BackupStore, id: string, last: boolean): Promise<void> {
    // A run that was taken over may have removed it already.
    if (this.#context.checkpoint === undefined) {
      const ids = await store.ids()
      if (!ids.includes(id)) throw store.noSuch(id, ids)
      if (!last) await this.#mustNotBeLast(store, id, ids)
      await this.#forget(store, id)
      await this.#context.save({ phase: 'prune', missing: 0 })
    }
    const kept: string[] = []
    const unread: string[] = []
    for (const other of await store.ids()) {
      const { summary, manifest } = await store.damageOf(other)
      if (summary !== undefined || manifest !== undefined) this.#warn(other, summary ?? manifest!)
      ;(manifest === undefined ? kept : unread).push(other)
    }
    await this.#sweep(store, kept, unread, 1)
  }

  async #mustNotBeLast(store: BackupStore, id: string, ids: readonly string[]): Promise<void> {
    const isGood = async (one: string): Promise<boolean> => Object.keys(await store.damageOf(one)).length === 0
    if (!(await isGood(id))) return
    for (const other of ids.toReversed()) if (other !== id && (await isGood(other))) return
    throw new HoldfastError('CONFLICT', `${id} is the last good backup: --last removes it all the same`)
  }

  async #forget(store: BackupStore, id: string): Promise<void> {
    this.#context.term.signal.throwIfAborted()
    await store.forget(id)
    this.#context.log(`backup ${id} removed`)
  }

  #warn(id: string, damage: HoldfastError): void {
    this.#context.log(`WARNING: backup ${id} is damaged: ${damage.message}; 'holdfast backup remove ${id}' removes it`)
  }

  /** `kept`: all backups there are but for `unread`, whose manifests cannot be read. */
  async #sweep(
    store: BackupStore,
    kept: readonly string[],
    unread: readonly string[],
    forgotten: number,
  ): Promise<void> {
    const unfinished = (await store.manifests()).filter(id => !kept.includes(id) && !unread.includes(id))
    for (const id of unfinished) await this.#forget(store, id)
    let removed = 0
    let left = 0
    if (unread.length > 0) {
      this.#context.log(
        `WARNING: no blobs are removed while ${unread.join(', ')} cannot be read: they may be named there`,
      )
    } else {
      for await (const { prefix, unnamed, found } of unnamedBlobs(store, kept)) {
        await atMost(removedAtOnce, unnamed, async digest => {
          this.#context.term.signal.throwIfAborted()
          await store.removeBlob(digest)
        })
        removed += unnamed.length
        left += found - unnamed.length
        const done = Number.parseInt(prefix, 16) + 1
        this.#step({ done, total: 256, unit: 'folders', note: `${removed} unnamed blobs removed` })
        await this.#context.pause(0)
      }
    }
    const tidied = await store.target.tidy(leftAgeMs)
    if (tidied > 0) this.#context.log(`${tidied} leftovers of broken copies removed`)
    const blobs = unread.length > 0 ? '' : ` with ${left} blobs`
    const gone = forgotten + unfinished.length
    this.#context.log(`kept ${kept.length + unread.length} backups${blobs}; removed ${gone} backups, ${removed} blobs`)
  }

  #step(progress: Parameters<JobContext['progress']>[0]): void {
    this.#context.term.signal.throwIfAborted()
    this.#context.progress(progress)
  }
}

/** Ids are the database's own. */
function repositoryEntry(repository: Repository): ManifestEntry {
  const { id, ...settings } = repository
  assert(id > 0, 'a repository has an id')
  return { kind: 'repository', ...settings }
}

function plus(amount: Amount, blobs: readonly { readonly bytes: number }[]): Amount {
  return {
    blobs: amount.blobs + blobs.length,
    bytes: blobs.reduce((sum, { bytes }) => sum + bytes, amount.bytes),
  }
}

function paramsOf({ prune, remove, last = false, anew = false, ...unknown }: JobParams): Params {
  const goodPrune = prune === undefined || (typeof prune === 'number' && Number.isInteger(prune) && prune >= 1)
  const goodRemove = remove === undefined || (typeof remove === 'string' && prune === undefined)
  const goodFlags = typeof anew === 'boolean' && typeof last === 'boolean'
  if (Object.keys(unknown).length > 0 || !goodPrune || !goodRemove || !goodFlags) {
    throw new HoldfastError(
      'BAD_REQUEST',
      'the parameters are prune (how many backups are kept, 1 at least), or remove (the id of one) and last (true, false), or anew (true, false)',
    )
  }
  return { prune, remove, last, anew }
}
