import { isAbsolute } from 'node:path'
import { fileURLToPath } from 'node:url'
import { HoldfastError } from '../../shared/errors.ts'
import { FolderTarget } from './folder-target.ts'
import type { BackupTarget } from './types.ts'

/** `file:///folder`, or an absolute path. CONFIG_INVALID for anything else; touches nothing. */
export function openBackupTarget(url: string): BackupTarget {
  if (isAbsolute(url)) return new FolderTarget(url)
  if (/^file:\/\/\/./.test(url) && URL.canParse(url)) return new FolderTarget(fileURLToPath(url))
  throw new HoldfastError('CONFIG_INVALID', `the backup target must be file:///folder, not '${url}'`)
}
