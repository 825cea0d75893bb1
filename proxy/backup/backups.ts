/** What the rest of a worker needs to know of backups: where they are, and which there are. */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ProxyConfig } from '../config.ts'
import type { Metadata } from '../metadata/types.ts'
import type { CredentialConfig } from './credentials.ts'
import { openBackupTarget } from './open-target.ts'
import { BackupStore } from './store.ts'
import type { BackupSummary, BackupTallies } from './types.ts'

export interface Backups {
  readonly hasTarget: boolean
  readonly tallies: BackupTallies
  /**
   * The target's backups; CONFLICT if none is configured, and what `BackupStore.openOrClaim` rejects with. `anew`: the target may be
   * empty although it was used before.
   */
  readonly openStore: (anew?: boolean) => Promise<BackupStore>
  /** Complete backups, newest first. NODE_UNREACHABLE if the target does not answer in time. */
  readonly list: () => Promise<BackupList>
}

export const noTarget = (): HoldfastError =>
  new HoldfastError('CONFLICT', 'no backup target is configured: set HOLDFAST_BACKUP_TARGET on every proxy')

export interface BackupList {
  readonly backups: readonly BackupSummary[]
  /** Those whose summary cannot be read, or that have no manifest; no manifest is read for it. */
  readonly damaged: readonly { readonly id: string; readonly why: string }[]
}

/** A client of the API waits 30 s (cli/client.ts): it has to hear from us that it is the target that is silent. */
const listMsDefault = 20_000

export function backupsOf(
  config: Pick<ProxyConfig, 'backupTarget' | 'backupPassphrase'> & Partial<CredentialConfig>,
  metadata: Pick<Metadata, 'clusterId' | 'backupTargets'>,
  listMs = listMsDefault,
): Backups {
  const { backupTarget, backupPassphrase } = config
  const label = backupTarget === undefined ? 'none' : openBackupTarget(backupTarget, config).label
  let opened: BackupStore | undefined
  let opening: Promise<BackupStore> | undefined
  const open = async (anew: boolean): Promise<BackupStore> => {
    if (backupTarget === undefined) throw noTarget()
    const { clusterId, backupTargets } = metadata
    const target = openBackupTarget(backupTarget, config)
    const wasUsed = async (): Promise<boolean> => !anew && (await backupTargets.isKnown(target.label))
    const store = await BackupStore.openOrClaim(target, backupPassphrase, clusterId, wasUsed)
    await backupTargets.remember(target.label)
    return store
  }
  const openStore = async (anew = false): Promise<BackupStore> => {
    // The disk may be unmounted since.
    if (opened !== undefined && (await opened.isClaimed())) return opened
    opened = undefined
    // The key of an encrypted target takes 0.4 s to derive; whoever failed tries again.
    opening ??= open(anew).finally(() => (opening = undefined))
    return (opened = await opening)
  }
  const list = async (): Promise<BackupList> => {
    const store = await openStore()
    const manifests = new Set(await store.manifests())
    const backups: BackupSummary[] = []
    const damaged: { readonly id: string; readonly why: string }[] = []
    for (const id of (await store.ids()).toReversed()) {
      try {
        const summary = await store.summary(id)
        if (manifests.has(id)) backups.push(summary)
        else damaged.push({ id, why: `manifests/${id} is missing` })
      } catch (error) {
        if (!isHoldfastError(error, 'BACKUP_DAMAGED', 'NOT_FOUND')) throw error
        damaged.push({ id, why: error.message })
      }
    }
    return { backups, damaged }
  }
  return {
    hasTarget: backupTarget !== undefined,
    tallies: { copiedBlobs: 0, copiedBytes: 0, lastBytes: 0, lastTime: 0 },
    openStore,
    list: () => inTime(list(), listMs, label),
  }
}

/** What goes on after that ends by itself, since the target gives up, too. */
async function inTime<Result>(work: Promise<Result>, ms: number, label: string): Promise<Result> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    const error = new HoldfastError('NODE_UNREACHABLE', `backup target ${label} does not answer within ${ms / 1_000} s`)
    timer = setTimeout(() => reject(error), ms)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}
