/** Who we are for a bucket: from the environment, or from a file that nobody else can read. Never from arguments. */
import { open } from 'node:fs/promises'
import type { ConfigOf, Options } from '../../shared/config.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { BucketCredentials } from './sign-v4.ts'

export const credentialOptions = {
  backupAccessKeyId: { kind: 'secret', doc: 'Access key of the bucket that backups go to.' },
  backupSecretAccessKey: { kind: 'secret', doc: 'The secret that belongs to it.' },
  backupSessionToken: { kind: 'secret', doc: 'The token that goes with temporary keys.' },
  backupCredentialsFile: {
    kind: 'string',
    doc: 'In place of these: a file with lines aws_access_key_id = … and aws_secret_access_key = …, readable by its owner only.',
  },
} as const satisfies Options

export type CredentialConfig = ConfigOf<typeof credentialOptions>

const fileBytesMax = 64 * 1024

/** Asked before each request, so that a file may be replaced meanwhile. Rejects with CONFIG_INVALID, which names no value. */
export function credentialsOf(config: Partial<CredentialConfig>): () => Promise<BucketCredentials> {
  const { backupAccessKeyId, backupSecretAccessKey, backupSessionToken, backupCredentialsFile } = config
  if (backupCredentialsFile !== undefined && backupAccessKeyId === undefined)
    return () => fromFile(backupCredentialsFile)
  return async () => {
    if (backupAccessKeyId === undefined || backupSecretAccessKey === undefined) {
      throw new HoldfastError(
        'CONFIG_INVALID',
        'a bucket needs keys: set HOLDFAST_BACKUP_ACCESS_KEY_ID and HOLDFAST_BACKUP_SECRET_ACCESS_KEY, or HOLDFAST_BACKUP_CREDENTIALS_FILE',
      )
    }
    return { accessKeyId: backupAccessKeyId, secretAccessKey: backupSecretAccessKey, sessionToken: backupSessionToken }
  }
}

/** The keys of the section [default], or before any section; as in ~/.aws/credentials. Undefined if one is missing. */
export function parseCredentials(text: string): BucketCredentials | undefined {
  const values = new Map<string, string>()
  let section = 'default'
  for (const line of text.split('\n')) {
    const head = /^\s*\[\s*([^\]]*?)\s*\]/.exec(line)
    if (head !== null) section = head[1] ?? ''
    const pair = /^\s*(aws_[a-z_]+)\s*=\s*(\S+)\s*$/.exec(line)
    if (section === 'default' && pair !== null) values.set(pair[1] ?? '', pair[2] ?? '')
  }
  const accessKeyId = values.get('aws_access_key_id')
  const secretAccessKey = values.get('aws_secret_access_key')
  if (accessKeyId === undefined || secretAccessKey === undefined) return undefined
  return { accessKeyId, secretAccessKey, sessionToken: values.get('aws_session_token') }
}

async function fromFile(path: string): Promise<BucketCredentials> {
  const wrong = (why: string, cause?: unknown): HoldfastError =>
    new HoldfastError('CONFIG_INVALID', `the keys of the backup target in ${path} ${why}`, {}, { cause })
  try {
    const file = await open(path, 'r')
    try {
      const { mode, size } = await file.stat()
      if ((mode & 0o077) !== 0) throw wrong(`can be read by others (mode ${(mode & 0o777).toString(8)}): chmod 600 it`)
      if (size > fileBytesMax) throw wrong('are none: it is far too large')
      const found = parseCredentials(await file.readFile('utf8'))
      if (found === undefined) throw wrong('are not complete: aws_access_key_id and aws_secret_access_key are wanted')
      return found
    } finally {
      await file.close()
    }
  } catch (error) {
    if (isHoldfastError(error)) throw error
    throw wrong('cannot be read', error)
  }
}
