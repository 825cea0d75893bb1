import { isAbsolute } from 'node:path'
import { fileURLToPath } from 'node:url'
import { HoldfastError } from '../../shared/errors.ts'
import { BucketTarget } from './bucket-target.ts'
import { bucketUrlForm, parseBucketUrl } from './bucket-url.ts'
import { type CredentialConfig, credentialsOf } from './credentials.ts'
import { FolderTarget } from './folder-target.ts'
import type { BackupTarget } from './types.ts'

const pauseMs = 250

/** `file:///folder`, an absolute path, or a bucket (bucket-url.ts). CONFIG_INVALID for anything else; touches and asks nothing. */
export function openBackupTarget(url: string, config: Partial<CredentialConfig>): BackupTarget {
  if (url.startsWith('s3://')) {
    return new BucketTarget(parseBucketUrl(url), { credentials: credentialsOf(config), now: Date.now, pauseMs })
  }
  if (isAbsolute(url)) return new FolderTarget(url)
  if (/^file:\/\/\/./.test(url) && URL.canParse(url)) return new FolderTarget(fileURLToPath(url))
  throw new HoldfastError('CONFIG_INVALID', `the backup target must be file:///folder or ${bucketUrlForm}`)
}
