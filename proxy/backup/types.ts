/** Where backups are kept, and what one is. */
import type { SealParameters } from './seal.ts'

/** Names have two or three parts of lower-case letters, digits, '.', '_' and '-': nothing of a request ever gets into one (I40). */
export const objectNamePattern = /^[a-z]+(\/[0-9a-f]{2})?\/[0-9a-z][0-9a-z._-]{0,127}$/

/** Last parts of names: what else lies on a target is not ours. */
export const isObjectName = (folder: string, last: string): boolean => objectNamePattern.test(`${folder}/${last}`)

export interface PutOptions {
  /** About how many bytes are to come, where that is known; a bucket cuts large ones into parts of a fitting size. */
  readonly bytes?: number
  /** Its reason is what `put` then rejects with; nothing has the name. */
  readonly signal?: AbortSignal
}

/**
 * A store of immutable objects outside the cluster: folder-target.ts, bucket-target.ts. Everything rejects with a HoldfastError (but for
 * what a body fails with, which is passed through); what has to do with a name that is not there with NOT_FOUND.
 */
export interface BackupTarget {
  /** For people; carries no secret. */
  readonly label: string
  /** Durable and complete when it resolves. false: the name is taken already, and what is there stays as it is. */
  put(name: string, body: AsyncIterable<Buffer>, options?: PutOptions): Promise<boolean>
  /** BACKUP_DAMAGED if it is there, and its bytes cannot be had any more. */
  get(name: string): AsyncIterable<Buffer>
  /** Last parts of the names below a folder such as 'manifests' or 'blobs/3f', in no order; none if it is not there. */
  list(folder: string): Promise<readonly string[]>
  /** It is not there when this resolves. */
  remove(name: string): Promise<void>
  /** Removes what puts left behind that ended half-way, and so long ago. Resolves with how many there were. */
  tidy(olderThanMs: number): Promise<number>
}

export interface BackupCounts {
  readonly repositories: number
  readonly users: number
  readonly artifacts: number
  /** Distinct ones, and their bytes. */
  readonly blobs: number
  readonly bytes: number
}

/** What, beside the passphrase, the key of a target needs. */
export type BackupEncryption = SealParameters & { /** Sealed with that key. */ readonly proof: string }

/** What stands in `backups/<id>`: it is written last, and a backup without it is none. */
export interface BackupSummary {
  readonly format: 1
  readonly id: string
  readonly clusterId: string
  readonly incarnation: string
  /** Of the snapshot, milliseconds since 1970 by PostgreSQL's clock: what was acknowledged before is in it. */
  readonly time: number
  /** When everything was copied, by the primary's clock. */
  readonly finishedAt: number
  readonly counts: BackupCounts
  /** What was not in the target before. */
  readonly copied: { readonly blobs: number; readonly bytes: number }
  /** Blobs that no replica could give: their artifacts are in the manifest, their bytes nowhere. */
  readonly missing: number
  readonly encrypted: boolean
  /** As in the claim of the target, which may get lost. Without it in those of earlier releases. */
  readonly encryption?: BackupEncryption | null
}

export const backupIdPattern = /^\d{8}t\d{6}z-\d{1,15}$/

/** Sorts by time: `20260301t023000z-17`. */
export function backupId(time: number, runId: number): string {
  const stamp = new Date(time).toISOString().slice(0, 19).replaceAll(/[-:]/g, '').toLowerCase()
  return `${stamp}z-${runId}`
}

/** For the metrics. */
export interface BackupTallies {
  copiedBlobs: number
  copiedBytes: number
  /** Of the last backup that this worker made: everything in it. */
  lastBytes: number
  lastTime: number
}
