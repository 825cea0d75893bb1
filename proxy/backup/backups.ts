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
  /** Complete backups, newest first; a summary that cannot be read is left out and counted. */
  readonly list: () => Promise<{ readonly backups: readonly BackupSummary[]; readonly damaged: number }>
}

export const noTarget = (): HoldfastError =>
  new HoldfastError('CONFLICT', 'no backup target is configured: set HOLDFAST_BACKUP_TARGET on every proxy')

export function backupsOf(
  config: Pick<ProxyConfig, 'backupTarget' | 'backupPassphrase'> & Partial<CredentialConfig>,
  metadata: Pick<Metadata, 'clusterId' | 'backupTargets'>,
): Backups {
  const { backupTarget, backupPassphrase } = config
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
  return {
    hasTarget: backupTarget !== undefined,
    tallies: { copiedBlobs: 0, copiedBytes: 0, lastBytes: 0, lastTime: 0 },
    openStore,
    list: async () => {
      const store = await openStore()
      const found: BackupSummary[] = []
      let damaged = 0
      for (const id of (await store.ids()).toReversed()) {
        const summary = await store.summary(id).catch((error: unknown) => {
          if (!isHoldfastError(error, 'BACKUP_DAMAGED', 'NOT_FOUND')) throw error
          return undefined
        })
        if (summary === undefined) damaged++
        else found.push(summary)
      }
      return { backups: found, damaged }
    },
  }
}
