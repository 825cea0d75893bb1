/**
 * The backups of one cluster on one target:
 *
 *   target/cluster            whose it is, and how it is encrypted; written once
 *   blobs/<aa>/<sha256>       one for each distinct blob of all backups; written once, so every backup copies only what is new
 *   manifests/<id>            what is in a backup (manifest.ts)
 *   backups/<id>              its summary, written last: a backup is there once this is
 */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { type Digest, parseDigest } from '../../shared/ids.ts'
import { decodeManifest, encodeManifest, type ManifestEntry } from './manifest.ts'
import { deriveMasterKey, newSealParameters, seal, type SealParameters, unseal } from './seal.ts'
import { backupIdPattern, type BackupCounts, type BackupSummary, type BackupTarget, type PutOptions } from './types.ts'

const claimName = 'target/cluster'
const proof = Buffer.from('holdfast')
/** Small documents: a claim, a summary. */
const documentBytesMax = 1024 * 1024

interface Claim {
  readonly format: 1
  readonly clusterId: string
  readonly encryption: (SealParameters & { /** `proof`, sealed. */ readonly proof: string }) | null
}

export const blobFolder = (prefix: string): string => `blobs/${prefix}`
const blobName = (digest: Digest): string => `blobs/${digest.slice(0, 2)}/${digest}`

export class BackupStore {
  readonly target: BackupTarget
  readonly clusterId: string
  readonly #claim: Buffer
  readonly #key: Buffer | undefined

  private constructor(target: BackupTarget, clusterId: string, claim: Buffer, key: Buffer | undefined) {
    this.#claim = claim
    this.target = target
    this.clusterId = clusterId
    this.#key = key
  }

  /**
   * The backups on a target. NOT_FOUND if there are none; CONFIG_INVALID if the passphrase is wrong, missing, or one too many;
   * CONFLICT if they are another cluster's than `clusterId`.
   */
  static async open(target: BackupTarget, passphrase: string | undefined, clusterId?: string): Promise<BackupStore> {
    const bytes = await readDocument(target, claimName)
    const claim = parseDocument<Claim>(bytes, claimName)
    if (clusterId !== undefined && claim.clusterId !== clusterId) {
      throw new HoldfastError('CONFLICT', `${target.label} has the backups of another cluster (${claim.clusterId})`)
    }
    return new BackupStore(target, claim.clusterId, bytes, await keyOf(target, claim, passphrase))
  }

  /**
   * The same; an empty target becomes this cluster's, encrypted if there is a passphrase. CONFLICT if it `wasUsed` and is empty now: its
   * disk is not mounted, or somebody emptied it, which only they can tell apart.
   */
  static async openOrClaim(
    target: BackupTarget,
    passphrase: string | undefined,
    clusterId: string,
    wasUsed: () => Promise<boolean> = async () => false,
  ): Promise<BackupStore> {
    const taken = await target.list('target')
    if (!taken.includes('cluster')) {
      if (await wasUsed()) {
        throw new HoldfastError(
          'CONFLICT',
          `${target.label} had backups of this cluster, and now has none: is it mounted? If it is meant to be empty: backup create --anew`,
        )
      }
      const claim: Claim = { format: 1, clusterId, encryption: await newEncryption(passphrase) }
      await target.put(claimName, one(Buffer.from(JSON.stringify(claim) + '\n')))
    }
    return BackupStore.open(target, passphrase, clusterId)
  }

  /** Costs one small read. False: it is gone, unmounted, or another one's by now. */
  async isClaimed(): Promise<boolean> {
    try {
      return (await readDocument(this.target, claimName)).equals(this.#claim)
    } catch (error) {
      if (!isHoldfastError(error, 'NOT_FOUND')) throw error
      return false
    }
  }

  get encrypted(): boolean {
    return this.#key !== undefined
  }

  /** Ids of complete backups, oldest first. */
  async ids(): Promise<readonly string[]> {
    return (await this.target.list('backups')).filter(id => backupIdPattern.test(id)).toSorted()
  }

  /** Also those of backups that were never finished. */
  async manifests(): Promise<readonly string[]> {
    return (await this.target.list('manifests')).filter(id => backupIdPattern.test(id)).toSorted()
  }

  /** NOT_FOUND. */
  async summary(id: string): Promise<BackupSummary> {
    return parseDocument<BackupSummary>(await readDocument(this.target, `backups/${checkedId(id)}`), `backups/${id}`)
  }

  async publish(summary: BackupSummary): Promise<void> {
    await this.target.put(`backups/${checkedId(summary.id)}`, one(Buffer.from(JSON.stringify(summary) + '\n')))
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
  readManifest(id: string): AsyncGenerator<ManifestEntry, void> {
    const name = `manifests/${checkedId(id)}`
    return decodeManifest(this.#opened(name))
  }

  /** Reads it to its end, so that it can be relied upon from its first line. */
  async checkManifest(id: string): Promise<void> {
    for await (const entry of this.readManifest(id)) {
      if (entry.kind === 'backup' && (entry.id !== id || entry.clusterId !== this.clusterId)) {
        throw new HoldfastError('BACKUP_DAMAGED', `manifests/${id} is the manifest of another backup (${entry.id})`)
      }
    }
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
    return this.#key === undefined ? body : seal(body, this.#key, name)
  }

  #opened(name: string): AsyncIterable<Buffer> {
    const body = this.target.get(name)
    return this.#key === undefined ? body : unseal(body, this.#key, name)
  }
}

async function newEncryption(passphrase: string | undefined): Promise<Claim['encryption']> {
  if (passphrase === undefined) return null
  const parameters = newSealParameters()
  const key = await deriveMasterKey(passphrase, parameters)
  return { ...parameters, proof: (await gather(seal(one(proof), key, claimName))).toString('base64') }
}

async function keyOf(
  { label }: BackupTarget,
  { encryption }: Claim,
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

function parseDocument<Document extends { readonly format: 1 }>(bytes: Buffer, name: string): Document {
  let document: { readonly format?: unknown } | null
  try {
    document = JSON.parse(bytes.toString('utf8')) as typeof document
  } catch (error) {
    throw new HoldfastError('BACKUP_DAMAGED', `${name} is damaged`, {}, { cause: error })
  }
  if (document?.format !== 1) throw new HoldfastError('BACKUP_DAMAGED', `${name} is damaged, or of a later release`)
  return document as Document
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
