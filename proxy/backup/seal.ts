/**
 * Encryption of backups: AES-256-GCM. The master key comes from a passphrase by scrypt; each object has a key of its own (HKDF over a
 * random salt and the object's name), so that nonces may count from zero and no object can take another one's place. Chunks are sealed
 * one by one, each with its number and whether it is the last: what was decrypted has been authenticated, and nothing can be cut off,
 * exchanged or put in unnoticed. What an observer of the target learns: names (the sha256 of a blob: whether a file they have is in
 * the backup), sizes, times.
 */
import { createCipheriv, createDecipheriv, hkdf, randomBytes, scrypt } from 'node:crypto'
import { promisify } from 'node:util'
import { HoldfastError } from '../../shared/errors.ts'
import { inChunksOf } from './chunks.ts'

const magic = Buffer.from('HFSEAL1\n')
const saltBytes = 32
const tagBytes = 16
/** Of plain text; the last one may be shorter, and empty. */
export const sealedChunkBytes = 64 * 1024

export interface SealParameters {
  readonly kdf: 'scrypt'
  readonly log2N: number
  readonly r: number
  readonly p: number
  /** Hex. */
  readonly salt: string
}

/** 128 MiB and about 0.4 s for each guess. */
export function newSealParameters(): SealParameters {
  return { kdf: 'scrypt', log2N: 17, r: 8, p: 1, salt: randomBytes(16).toString('hex') }
}

/** BACKUP_DAMAGED for parameters out of bounds: a planted file must not take all memory. */
export function deriveMasterKey(passphrase: string, { log2N, r, p, salt }: SealParameters): Promise<Buffer> {
  if (!(log2N >= 14 && log2N <= 20 && r === 8 && p >= 1 && p <= 4 && /^[0-9a-f]{32,128}$/.test(salt))) {
    throw new HoldfastError('BACKUP_DAMAGED', 'the parameters of the encryption make no sense')
  }
  const options = { N: 2 ** log2N, r, p, maxmem: 2 * 128 * 2 ** log2N * r }
  return new Promise((resolve, reject) => {
    scrypt(passphrase.normalize('NFKC'), Buffer.from(salt, 'hex'), 32, options, (error, key) =>
      error === null ? resolve(key) : reject(error),
    )
  })
}

/** Memory: two chunks. */
export async function* seal(body: AsyncIterable<Buffer>, key: Buffer, name: string): AsyncGenerator<Buffer> {
  const salt = randomBytes(saltBytes)
  const objectKey = await objectKeyOf(key, salt, name)
  yield Buffer.concat([magic, salt])
  let waiting: Buffer | undefined
  let number = 0
  for await (const chunk of inChunksOf(sealedChunkBytes, body)) {
    if (waiting !== undefined) yield sealChunk(objectKey, number++, false, waiting)
    waiting = chunk
  }
  yield sealChunk(objectKey, number, true, waiting ?? Buffer.alloc(0))
}

/** Yields only what has been authenticated. BACKUP_DAMAGED for whatever is not exactly what was sealed under this key and name. */
export async function* unseal(body: AsyncIterable<Buffer>, key: Buffer, name: string): AsyncGenerator<Buffer> {
  let objectKey: Buffer | undefined
  let waiting: Buffer | undefined
  let number = 0
  for await (const chunk of inChunksOf(sealedChunkBytes + tagBytes, body, magic.length + saltBytes)) {
    if (objectKey === undefined) {
      if (chunk.length < magic.length + saltBytes || !chunk.subarray(0, magic.length).equals(magic)) throw damaged(name)
      objectKey = await objectKeyOf(key, chunk.subarray(magic.length), name)
      continue
    }
    if (waiting !== undefined) yield openChunk(objectKey, number++, false, waiting, name)
    waiting = chunk
  }
  if (objectKey === undefined || waiting === undefined) throw damaged(name)
  yield openChunk(objectKey, number, true, waiting, name)
}

async function objectKeyOf(key: Buffer, salt: Buffer, name: string): Promise<Buffer> {
  return Buffer.from(await promisify(hkdf)('sha256', key, salt, `holdfast backup ${name}`, 32))
}

function sealChunk(key: Buffer, number: number, last: boolean, chunk: Buffer): Buffer {
  const cipher = createCipheriv('aes-256-gcm', key, nonceOf(number, last))
  return Buffer.concat([cipher.update(chunk), cipher.final(), cipher.getAuthTag()])
}

function openChunk(key: Buffer, number: number, last: boolean, chunk: Buffer, name: string): Buffer {
  if (chunk.length < tagBytes) throw damaged(name)
  const decipher = createDecipheriv('aes-256-gcm', key, nonceOf(number, last))
  decipher.setAuthTag(chunk.subarray(chunk.length - tagBytes))
  try {
    return Buffer.concat([decipher.update(chunk.subarray(0, chunk.length - tagBytes)), decipher.final()])
  } catch (error) {
    throw damaged(name, error)
  }
}

function nonceOf(number: number, last: boolean): Buffer {
  const nonce = Buffer.alloc(12)
  nonce.writeUIntBE(number, 5, 6)
  nonce[11] = last ? 1 : 0
  return nonce
}

function damaged(name: string, cause?: unknown): HoldfastError {
  return new HoldfastError('BACKUP_DAMAGED', `${name} is damaged, or was sealed with another passphrase`, {}, { cause })
}
