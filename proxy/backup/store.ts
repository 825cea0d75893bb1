/**
 * The backups of one cluster on one target:
 *
 *   target/cluster            whose it is, and how it is encrypted; written once
 *   blobs/<aa>/<sha256>       one for each distinct blob of all backups; written once, so every backup copies only what is new
 *   manifests/<id>            what is in a backup (manifest.ts)
 *   backups/<id>              its summary, written last: a backup is there once this is
 */
import { atMost } from '../../shared/at-most.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { type Digest, parseDigest } from '../../shared/ids.ts'
import { encodeDocument, parseDocument } from './document.ts'
import { decodeManifest, encodeManifest, type ManifestEntry } from './manifest.ts'
import { deriveMasterKey, newSealParameters, seal, unseal } from './seal.ts'
import {
  backupIdPattern,
  type BackupCounts,
  type BackupEncryption,
  type BackupSummary,
  type BackupTarget,
  type PutOptions,
} from './types.ts'

const claimName = 'target/cluster'
const proof = Buffer.from('holdfast')
/** Small documents: a claim, a summary. */
const documentBytesMax = 1024 * 1024
/** Folders that are listed at once. */
const listedAtOnce = 16
/** Backups that are named where another one was asked for. */
const namedMax = 20

interface Claim {
  readonly format: 1
  readonly clusterId: string
  readonly encryption: BackupEncryption | null
}

/** How a target's objects are read, once that is proved. */
interface Access {
  readonly encryption: BackupEncryption | null
  readonly key: Buffer | undefined
}

export const prefixes: readonly string[] = Array.from({ length: 256 }, (_, index) =>
  index.toString(16).padStart(2, '0'),
)
const blobFolder = (prefix: string): string => `blobs/${prefix}`
const blobName = (digest: Digest): string => `blobs/${digest.slice(0, 2)}/${digest}`

export class BackupStore {
  readonly target: BackupTarget
  readonly #clusterId: string | undefined
  readonly #access: Access
  /** Undefined: it is missing or damaged, and the summaries of the backups stood in for it. */
  readonly #claim: Buffer | undefined

  private constructor(target: BackupTarget, clusterId: string | undefined, access: Access, claim: Buffer | undefined) {
    this.target = target
    this.#clusterId = clusterId
    this.#access = access
    this.#claim = claim
  }

  /**
   * The backups on a target; without its claim, too, where the summaries of the backups say what it said. NOT_FOUND if there are none;
   * CONFIG_INVALID if the passphrase is wrong, missing, or one too many; BACKUP_DAMAGED if nothing says how they are read; CONFLICT if
   * they are another cluster's than `clusterId`.
   */
  static async open(target: BackupTarget, passphrase: string | undefined, clusterId?: string): Promise<BackupStore> {
    const { state, claim, bytes, checked } = await readClaim(target)
    if (claim !== undefined) {
      if (clusterId !== undefined && claim.clusterId !== clusterId) throw foreign(target, claim.clusterId)
      try {
        const key = await keyOf(target, claim.encryption, passphrase)
        return new BackupStore(target, clusterId, { encryption: claim.encryption, key }, bytes)
      } catch (error) {
        // Without a checksum it may be the claim that is wrong, not the passphrase: its salt, its proof. The first error is the one to
        // tell if the summaries know no better.
        if (checked || !isHoldfastError(error, 'CONFIG_INVALID', 'BACKUP_DAMAGED')) throw error
        const access = await accessBySummaries(target, passphrase, clusterId).catch(() => undefined)
        if (access === undefined) throw error
        return new BackupStore(target, clusterId, access, undefined)
      }
    }
    const access = await accessBySummaries(target, passphrase, clusterId)
    if (access !== undefined) return new BackupStore(target, clusterId, access, undefined)
    const found = await contentsOf(target)
    if (found === '' && state === 'missing') throw noBackups(target)
    throw lostClaim(target, state, found)
  }

  /**
   * The same; an empty target becomes this cluster's, encrypted if there is a passphrase, and a claim that got lost is written again
   * where the summaries say what it said. CONFLICT if it `wasUsed` and is empty now: its disk is not mounted, or somebody emptied it,
   * which only they can tell apart.
   */
  static async openOrClaim(
    target: BackupTarget,
    passphrase: string | undefined,
    clusterId: string,
    wasUsed: () => Promise<boolean> = async () => false,
  ): Promise<BackupStore> {
    const store = await BackupStore.open(target, passphrase, clusterId).catch((error: unknown) => {
      if (!isHoldfastError(error, 'NOT_FOUND')) throw error
      return undefined
    })
    if (store !== undefined && store.#claim !== undefined) return store
    if (store === undefined && (await wasUsed())) {
      throw new HoldfastError(
        'CONFLICT',
        `${target.label} had backups of this cluster, and now has none: is it mounted? If it is meant to be empty: backup create --anew`,
      )
    }
    const encryption = store === undefined ? await newEncryption(passphrase) : store.#access.encryption
    const claim: Claim = { format: 1, clusterId, encryption }
    if (store !== undefined) await target.remove(claimName)
    await target.put(claimName, one(encodeDocument(claim)))
    return BackupStore.open(target, passphrase, clusterId)
  }

  /** Costs one small read. False: it is gone, unmounted, damaged, or another one's by now. */
  async isClaimed(): Promise<boolean> {
    try {
      return this.#claim?.equals(await readDocument(this.target, claimName)) === true
    } catch (error) {
      if (!isHoldfastError(error, 'NOT_FOUND', 'BACKUP_DAMAGED')) throw error
      return false
    }
  }

  get encrypted(): boolean {
    return this.#access.key !== undefined
  }

  /** Ids of complete backups, oldest first. */
  async ids(): Promise<readonly string[]> {
    return completeIds(this.target)
  }

  /** Also those of backups that were never finished. */
  async manifests(): Promise<readonly string[]> {
    return (await this.target.list('manifests')).filter(id => backupIdPattern.test(id)).toSorted()
  }

  /** The backup of this name, or the newest. NOT_FOUND, and which there are. */
  async idOf(wanted: string | undefined): Promise<string> {
    const ids = await this.ids()
    const newest = ids.at(-1)
    if (newest === undefined) throw noBackups(this.target)
    if (wanted === undefined || ids.includes(wanted)) return wanted ?? newest
    throw this.noSuch(wanted, ids)
  }

  noSuch(wanted: string, ids: readonly string[]): HoldfastError {
    const named = ids.slice(-namedMax).join(', ')
    const older = ids.length > namedMax ? `, and ${ids.length - namedMax} older ones` : ''
    const there = ids.length === 0 ? 'no backups' : `${named}${older}`
    return new HoldfastError(
      'NOT_FOUND',
      `there is no backup '${wanted.slice(0, 100)}' on ${this.target.label}, but ${there}`,
    )
  }

  /** NOT_FOUND, BACKUP_DAMAGED. */
  async summary(id: string): Promise<BackupSummary> {
    const summary = await readSummary(this.target, checkedId(id))
    if (this.#clusterId !== undefined && summary.clusterId !== this.#clusterId) {
      throw new HoldfastError('BACKUP_DAMAGED', `backups/${id} is the summary of another cluster's backup`)
    }
    return summary
  }

  /** With what reads it should the claim get lost. */
  async publish(summary: BackupSummary): Promise<void> {
    const published: BackupSummary = { ...summary, encryption: this.#access.encryption }
    await this.target.put(`backups/${checkedId(summary.id)}`, one(encodeDocument(published)))
  }

  /** Its summary first: from then on it is no backup any more. Its blobs stay until a sweep. */
  async forget(id: string): Promise<void> {
    await this.target.remove(`backups/${checkedId(id)}`)
    await this.target.remove(`manifests/${id}`)
  }

  async writeManifest(
    id: string,
    entries: AsyncIterable<ManifestEntry>,
    options: PutOptions = {},
  ): Promise<BackupCounts> {
    const name = `manifests/${checkedId(id)}`
    let counts: BackupCounts | undefined
    const written = await this.target.put(
      name,
      this.#sealed(
        name,
        encodeManifest(entries, found => (counts = found)),
      ),
      options,
    )
    if (!written || counts === undefined) throw new HoldfastError('CONFLICT', `there is a ${name} already`)
    return counts
  }

  /** BACKUP_DAMAGED, perhaps only at the end. */
  async *readManifest(id: string): AsyncGenerator<ManifestEntry, void> {
    const name = `manifests/${checkedId(id)}`
    try {
      yield* decodeManifest(this.#opened(name))
    } catch (error) {
      if (!isHoldfastError(error, 'BACKUP_DAMAGED')) throw error
      throw new HoldfastError('BACKUP_DAMAGED', `backup ${id}: ${error.message}`, error.data, { cause: error })
    }
  }

  /** Reads it to its end, so that it can be relied upon from its first line. */
  async checkManifest(id: string): Promise<void> {
    for await (const entry of this.readManifest(id)) {
      if (entry.kind !== 'backup') continue
      if (entry.id !== id || (this.#clusterId !== undefined && entry.clusterId !== this.#clusterId)) {
        throw new HoldfastError('BACKUP_DAMAGED', `manifests/${id} is the manifest of another backup (${entry.id})`)
      }
    }
  }

  /** What is wrong with a backup as far as its summary and manifest say; its blobs are not looked at. */
  async damageOf(id: string): Promise<{ readonly summary?: HoldfastError; readonly manifest?: HoldfastError }> {
    const summary = await damageMet(this.summary(id))
    const manifest = await damageMet(this.checkManifest(id))
    return { ...(summary && { summary }), ...(manifest && { manifest }) }
  }

  /** Digests that are there, of those that begin with two hex digits. */
  async blobs(prefix: string): Promise<ReadonlySet<Digest>> {
    const names = await this.target.list(blobFolder(prefix))
    return new Set(names.map(parseDigest).filter(digest => digest !== undefined))
  }

  /** False if it is there already. */
  putBlob(digest: Digest, body: AsyncIterable<Buffer>, options: PutOptions = {}): Promise<boolean> {
    const name = blobName(digest)
    return this.target.put(name, this.#sealed(name, body), options)
  }

  /** Its bytes, not compared with the digest; NOT_FOUND, BACKUP_DAMAGED. */
  getBlob(digest: Digest): AsyncIterable<Buffer> {
    return this.#opened(blobName(digest))
  }

  removeBlob(digest: Digest): Promise<void> {
    return this.target.remove(blobName(digest))
  }

  #sealed(name: string, body: AsyncIterable<Buffer>): AsyncIterable<Buffer> {
    return this.#access.key === undefined ? body : seal(body, this.#access.key, name)
  }

  #opened(name: string): AsyncIterable<Buffer> {
    const body = this.target.get(name)
    return this.#access.key === undefined ? body : unseal(body, this.#access.key, name)
  }
}

/** The claim, if it can be read; `checked`: it has a checksum, which earlier releases did not write. */
async function readClaim(target: BackupTarget): Promise<{
  readonly state: 'there' | 'missing' | 'damaged'
  readonly claim?: Claim
  readonly bytes?: Buffer
  readonly checked?: boolean
}> {
  try {
    const bytes = await readDocument(target, claimName)
    const { document: claim, checked } = parseDocument<Claim>(bytes, claimName)
    if (typeof claim.clusterId !== 'string' || claim.encryption === undefined) return { state: 'damaged' }
    return { state: 'there', claim, bytes, checked }
  } catch (error) {
    if (isHoldfastError(error, 'NOT_FOUND')) return { state: 'missing' }
    if (isHoldfastError(error, 'BACKUP_DAMAGED')) return { state: 'damaged' }
    throw error
  }
}

/**
 * Undefined if no summary that can be read says it. A key is proved by what it opens. CONFLICT if any of them is of another cluster than
 * `clusterId`.
 */
async function accessBySummaries(
  target: BackupTarget,
  passphrase: string | undefined,
  clusterId: string | undefined,
): Promise<Access | undefined> {
  const known = new Map<string, BackupEncryption | null>()
  for (const id of await completeIds(target)) {
    const summary = await readSummary(target, id).catch((error: unknown) => {
      if (!isHoldfastError(error, 'NOT_FOUND', 'BACKUP_DAMAGED')) throw error
      return undefined
    })
    if (summary === undefined) continue
    if (clusterId !== undefined && summary.clusterId !== clusterId) throw foreign(target, summary.clusterId)
    const encryption = summary.encryption ?? (summary.encrypted ? undefined : null)
    if (encryption !== undefined) known.set(JSON.stringify(encryption), encryption)
  }
  let failure: HoldfastError | undefined
  for (const encryption of known.values()) {
    try {
      return { encryption, key: await keyOf(target, encryption, passphrase) }
    } catch (error) {
      if (!isHoldfastError(error, 'CONFIG_INVALID', 'BACKUP_DAMAGED')) throw error
      failure = error
    }
  }
  if (failure !== undefined) throw failure
  return undefined
}

/** `3 backups, 4 manifests, 90 blobs`; '' if there is nothing of a backup. */
async function contentsOf(target: BackupTarget): Promise<string> {
  const backups = await target.list('backups')
  const manifests = await target.list('manifests')
  const blobs = await atMost(listedAtOnce, prefixes, async prefix => (await target.list(blobFolder(prefix))).length)
  const counts = {
    backups: backups.length,
    manifests: manifests.length,
    blobs: blobs.reduce((sum, one) => sum + one, 0),
  }
  return Object.entries(counts)
    .filter(([, found]) => found > 0)
    .map(([what, found]) => `${found} ${what}`)
    .join(', ')
}

async function completeIds(target: BackupTarget): Promise<readonly string[]> {
  return (await target.list('backups')).filter(id => backupIdPattern.test(id)).toSorted()
}

async function readSummary(target: BackupTarget, id: string): Promise<BackupSummary> {
  const name = `backups/${id}`
  const { document } = parseDocument<BackupSummary>(await readDocument(target, name), name)
  if (document.id !== id || !isSummary(document)) throw new HoldfastError('BACKUP_DAMAGED', `${name} is damaged`)
  return document
}

/** Of what lies in backups/ anything may be no summary, though it is JSON. */
function isSummary({
  clusterId,
  time,
  finishedAt,
  counts,
  copied,
  missing,
  encrypted,
}: Partial<BackupSummary>): boolean {
  const { repositories, users, artifacts, blobs, bytes } = counts ?? {}
  const numbers = [
    time,
    finishedAt,
    missing,
    repositories,
    users,
    artifacts,
    blobs,
    bytes,
    copied?.blobs,
    copied?.bytes,
  ]
  return typeof clusterId === 'string' && typeof encrypted === 'boolean' && numbers.every(Number.isFinite)
}

async function damageMet(work: Promise<unknown>): Promise<HoldfastError | undefined> {
  try {
    await work
    return undefined
  } catch (error) {
    if (isHoldfastError(error, 'NOT_FOUND', 'BACKUP_DAMAGED')) return error
    throw error
  }
}

function foreign({ label }: BackupTarget, clusterId: string): HoldfastError {
  return new HoldfastError('CONFLICT', `${label} has the backups of another cluster (${clusterId})`)
}

function noBackups({ label }: BackupTarget): HoldfastError {
  return new HoldfastError('NOT_FOUND', `there are no backups on ${label}`)
}

/** A new claim would be a new salt, so another key: what is there could not be read any more, and yet be taken for backed up. */
function lostClaim({ label }: BackupTarget, state: 'there' | 'missing' | 'damaged', found: string): HoldfastError {
  const there = found === '' ? '' : `, though there are ${found},`
  return new HoldfastError(
    'BACKUP_DAMAGED',
    `${claimName} on ${label} is ${state}${there} and no summary of a backup says what it said (whose they are, the salt of their key): put it back from a copy of the target. To begin anew, take another folder or prefix, or empty this one`,
  )
}

async function newEncryption(passphrase: string | undefined): Promise<BackupEncryption | null> {
  if (passphrase === undefined) return null
  const parameters = newSealParameters()
  const key = await deriveMasterKey(passphrase, parameters)
  return { ...parameters, proof: (await gather(seal(one(proof), key, claimName))).toString('base64') }
}

async function keyOf(
  { label }: BackupTarget,
  encryption: BackupEncryption | null,
  passphrase: string | undefined,
): Promise<Buffer | undefined> {
  if (encryption === null) {
    if (passphrase === undefined) return undefined
    throw new HoldfastError('CONFIG_INVALID', `the backups on ${label} are not encrypted: use another target`)
  }
  if (passphrase === undefined) {
    throw new HoldfastError('CONFIG_INVALID', `the backups on ${label} are encrypted: set HOLDFAST_BACKUP_PASSPHRASE`)
  }
  const key = await deriveMasterKey(passphrase, encryption)
  try {
    await gather(unseal(one(Buffer.from(encryption.proof, 'base64')), key, claimName))
  } catch (error) {
    throw new HoldfastError(
      'CONFIG_INVALID',
      `this is not the passphrase of the backups on ${label}`,
      {},
      { cause: error },
    )
  }
  return key
}

async function readDocument(target: BackupTarget, name: string): Promise<Buffer> {
  const taken: Buffer[] = []
  let bytes = 0
  for await (const chunk of target.get(name)) {
    bytes += chunk.length
    if (bytes > documentBytesMax) throw new HoldfastError('BACKUP_DAMAGED', `${name} is far too large`)
    taken.push(chunk)
  }
  return Buffer.concat(taken)
}

function checkedId(id: string): string {
  if (!backupIdPattern.test(id)) throw new HoldfastError('BAD_REQUEST', `'${id.slice(0, 100)}' is no backup`)
  return id
}

async function* one(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes
}

async function gather(chunks: AsyncIterable<Buffer>): Promise<Buffer> {
  const taken: Buffer[] = []
  for await (const chunk of chunks) taken.push(chunk)
  return Buffer.concat(taken)
}
