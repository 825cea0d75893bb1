/** The task `verify-backup`: reads what a backup names, and compares every digest. */
import { createHash } from 'node:crypto'
import { atMost } from '../../shared/at-most.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { Digest } from '../../shared/ids.ts'
import { noTarget } from '../backup/backups.ts'
import type { Throttle } from '../backup/blob-source.ts'
import type { ManifestBlob } from '../backup/manifest.ts'
import type { BackupStore } from '../backup/store.ts'
import type { Job, JobContext, JobParams } from './job.ts'

const readAtOnce = 4
const batchBlobs = 64
const batchBytes = 256 * 1024 * 1024
const badTold = 100

export interface VerifyBackupDeps {
  readonly openStore: () => Promise<BackupStore>
  readonly hasTarget: boolean
  readonly throttle: Throttle
}

interface Checkpoint {
  readonly id: string
  readonly after: Digest | ''
  readonly looked: number
  readonly read: { readonly blobs: number; readonly bytes: number }
  readonly bad: number
}

interface Params {
  readonly backup: string | undefined
  /** Only so many of a hundred blobs, chosen by their digests. */
  readonly percent: number
  /** Remove what is damaged: the next backup copies it again, if the cluster has it still. */
  readonly repair: boolean
}

export function verifyBackup(deps: VerifyBackupDeps): Job<Checkpoint> {
  return {
    name: 'verify-backup',
    title: 'Read a backup and compare every digest',
    defaultSchedule: null,
    checkParams: params => void paramsOf(params),
    checkStart: async params => {
      const { backup } = paramsOf(params)
      if (!deps.hasTarget) throw noTarget()
      if (backup === undefined || (await (await deps.openStore()).ids()).includes(backup)) return
      throw new HoldfastError('NOT_FOUND', `no backup '${backup}': holdfast backup list`, { backup })
    },
    run: context => verify(deps, context),
  }
}

async function verify({ openStore, throttle }: VerifyBackupDeps, context: JobContext<Checkpoint>): Promise<void> {
  const { percent, repair, backup } = paramsOf(context.params)
  const store = await openStore()
  const id = context.checkpoint?.id ?? (await store.idOf(backup))
  const { counts, missing } = await store.summary(id)
  let at = context.checkpoint ?? { id, after: '', looked: 0, read: { blobs: 0, bytes: 0 }, bad: 0 }
  if (at.after === '') await store.checkManifest(id)
  let batch: ManifestBlob[] = []
  let bytes = 0
  const flush = async (): Promise<void> => {
    const last = batch.at(-1)
    if (last === undefined) return
    const chosen = batch.filter(blob => Number.parseInt(blob.digest.slice(-8), 16) % 100 < percent)
    const findings = await atMost(readAtOnce, chosen, blob => surelyFound(store, blob, throttle, context.term.signal))
    let { bad } = at
    for (const [index, finding] of findings.entries()) {
      if (finding === 'good') continue
      const { digest } = chosen[index]!
      if (bad++ < badTold) context.log(`${finding}: ${digest}`)
      if (repair && finding === 'damaged') await store.removeBlob(digest)
    }
    const read = {
      blobs: at.read.blobs + chosen.length,
      bytes: chosen.reduce((sum, blob) => sum + blob.bytes, at.read.bytes),
    }
    at = { id, after: last.digest, looked: at.looked + batch.length, read, bad }
    batch = []
    bytes = 0
    context.progress({ done: at.looked, total: counts.blobs, unit: 'blobs', note: `${bad} bad` })
    await context.save(at)
  }
  for await (const entry of store.readManifest(id)) {
    if (entry.kind === 'artifact') break
    if (entry.kind !== 'blob' || entry.digest <= at.after) continue
    batch.push(entry)
    bytes += entry.bytes
    if (batch.length >= batchBlobs || bytes >= batchBytes) await flush()
  }
  await flush()
  context.log(`backup ${id}: ${at.read.blobs} of ${counts.blobs} blobs read, ${at.read.bytes} bytes, ${at.bad} bad`)
  if (at.bad === 0) return
  // What the backup itself says is not there is no news, but not good either.
  const known = missing === 0 ? '' : ` (${missing} could not be copied then)`
  throw new HoldfastError('BACKUP_DAMAGED', `${at.bad} blobs of backup ${id} are missing or damaged${known}`)
}

/** What is damaged is read once more: what `repair` removes may be nowhere else, and a mount may fail for a moment. */
async function surelyFound(...asked: Parameters<typeof findingOf>): ReturnType<typeof findingOf> {
  const finding = await findingOf(...asked)
  return finding === 'damaged' ? findingOf(...asked) : finding
}

async function findingOf(
  store: BackupStore,
  { digest, bytes }: ManifestBlob,
  throttle: Throttle,
  signal: AbortSignal,
): Promise<'good' | 'missing' | 'damaged'> {
  const sha256 = createHash('sha256')
  let found = 0
  try {
    for await (const chunk of store.getBlob(digest)) {
      sha256.update(chunk)
      found += chunk.length
      await throttle.pass(chunk.length, signal)
    }
  } catch (error) {
    if (isHoldfastError(error, 'NOT_FOUND')) return 'missing'
    if (isHoldfastError(error, 'BACKUP_DAMAGED')) return 'damaged'
    throw error
  }
  return found === bytes && sha256.digest('hex') === digest ? 'good' : 'damaged'
}

function paramsOf({ backup, percent = 100, repair = false, ...unknown }: JobParams): Params {
  const goodId = backup === undefined || typeof backup === 'string'
  const goodPercent = typeof percent === 'number' && percent > 0 && percent <= 100
  if (Object.keys(unknown).length > 0 || !goodId || !goodPercent || typeof repair !== 'boolean') {
    throw new HoldfastError(
      'BAD_REQUEST',
      'the parameters are backup (its id), percent (1 to 100) and repair (true, false)',
    )
  }
  return { backup: backup, percent, repair }
}
