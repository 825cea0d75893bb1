/**
 * Who may do what, as it travels outside of PostgreSQL: a copy of the tables of repositories and users, compressed, encrypted and
 * authenticated (AES-256-GCM) under a key that is derived from the cluster secret. Whoever changes a byte of it makes it unreadable.
 *
 *     'HFI' | u8 version | 12 bytes nonce | 16 bytes tag | ciphertext of gzip(JSON)
 */
import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes } from 'node:crypto'
import { gunzipSync, gzipSync } from 'node:zlib'
import { HoldfastError } from '../../shared/errors.ts'
import type { IdentityTables } from '../metadata/identity-tables.ts'

export interface IdentitySnapshot {
  readonly clusterId: string
  /** Of the database it was taken from. */
  readonly incarnation: string
  /** Milliseconds since 1970, by the clock of the proxy that took it. */
  readonly takenAt: number
  readonly tables: IdentityTables
}

const head = Buffer.from([0x48, 0x46, 0x49, 1])
const nonceBytes = 12
const tagBytes = 16
const textBytesMax = 256 * 1024 * 1024

export function sealIdentity(secret: string, snapshot: IdentitySnapshot): Buffer {
  const nonce = randomBytes(nonceBytes)
  const cipher = createCipheriv('aes-256-gcm', keyOf(secret, 'seal'), nonce)
  cipher.setAAD(head)
  const body = Buffer.concat([cipher.update(gzipSync(JSON.stringify(snapshot))), cipher.final()])
  return Buffer.concat([head, nonce, cipher.getAuthTag(), body])
}

/** Throws RECORD_DAMAGED: changed, cut off, of another version, or sealed under another secret. Never says what is in it. */
export function openIdentity(secret: string, sealed: Buffer): IdentitySnapshot {
  const bodyStart = head.length + nonceBytes + tagBytes
  if (sealed.length <= bodyStart || !sealed.subarray(0, head.length).equals(head)) throw damaged()
  const nonce = sealed.subarray(head.length, head.length + nonceBytes)
  try {
    const decipher = createDecipheriv('aes-256-gcm', keyOf(secret, 'seal'), nonce, { authTagLength: tagBytes })
    decipher.setAAD(head)
    decipher.setAuthTag(sealed.subarray(head.length + nonceBytes, bodyStart))
    const packed = Buffer.concat([decipher.update(sealed.subarray(bodyStart)), decipher.final()])
    // What opens was sealed by one of us.
    return JSON.parse(gunzipSync(packed, { maxOutputLength: textBytesMax }).toString('utf8')) as IdentitySnapshot
  } catch {
    throw damaged() // without the cause: its text may quote what was decrypted
  }
}

/** Tells two states of the tables apart without telling anything about them. */
export function fingerprintOf(secret: string, tables: IdentityTables): string {
  return createHmac('sha256', keyOf(secret, 'fingerprint')).update(JSON.stringify(tables)).digest('hex')
}

function keyOf(secret: string, purpose: string): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, '', `holdfast identity 1 ${purpose}`, 32))
}

function damaged(): HoldfastError {
  return new HoldfastError('RECORD_DAMAGED', 'the copy of users and repositories is damaged, or of another cluster')
}
