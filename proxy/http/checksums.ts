/**
 * Checksums that a client declares about what it uploads. They are compared before anything becomes visible.
 */
import assert from 'node:assert/strict'
import { HoldfastError } from '../../shared/errors.ts'

export const checksumAlgorithms = ['md5', 'sha1', 'sha256', 'sha512'] as const
export type ChecksumAlgorithm = (typeof checksumAlgorithms)[number]

/** Lower-case hex by algorithm. When `sha512` is there the uploader must compute it too (it does not otherwise). */
export type DeclaredChecksums = { readonly [Algorithm in ChecksumAlgorithm]?: string }

/** The request headers that matter; node:http's IncomingHttpHeaders fits. */
export type ChecksumHeaders = Readonly<Record<string, string | string[] | undefined>>

const bytesOf: Readonly<Record<ChecksumAlgorithm, number>> = { md5: 16, sha1: 20, sha256: 32, sha512: 64 }
const hexHeaders: readonly (readonly [string, ChecksumAlgorithm])[] = [
  ['x-checksum-md5', 'md5'],
  ['x-checksum-sha1', 'sha1'],
  ['x-checksum-sha256', 'sha256'],
  ['x-checksum-sha512', 'sha512'],
]
/** Names of RFC 3230 and RFC 9530. Other algorithms (unixsum, crc32c, id-sha-256…) say nothing to us and are passed over. */
const digestNames: Readonly<Record<string, ChecksumAlgorithm>> = {
  md5: 'md5',
  sha: 'sha1',
  'sha-256': 'sha256',
  'sha-512': 'sha512',
}
const nothing: DeclaredChecksums = Object.freeze({})

/**
 * Reads X-Checksum-Md5/-Sha1/-Sha256/-Sha512 (hex), Content-MD5 (base64), Digest (RFC 3230), Content-Digest and Repr-Digest
 * (RFC 9530). Throws BAD_REQUEST for values that cannot be such a checksum, and for two that contradict each other.
 */
export function parseDeclaredChecksums(headers: ChecksumHeaders): DeclaredChecksums {
  const declared: { [Algorithm in ChecksumAlgorithm]?: string } = {}
  const add = (header: string, algorithm: ChecksumAlgorithm, hex: string): void => {
    const before = declared[algorithm]
    if (before !== undefined && before !== hex) {
      throw new HoldfastError('BAD_REQUEST', `the request declares two different ${algorithm} checksums`, { header })
    }
    declared[algorithm] = hex
  }
  for (const [header, algorithm] of hexHeaders) {
    const value = one(headers[header])
    if (value !== undefined) add(header, algorithm, fromHex(header, algorithm, value))
  }
  const contentMd5 = one(headers['content-md5'])
  if (contentMd5 !== undefined) add('content-md5', 'md5', fromBase64('content-md5', 'md5', contentMd5))
  for (const header of ['digest', 'content-digest', 'repr-digest']) {
    const value = one(headers[header])
    if (value === undefined) continue
    for (const [algorithm, hex] of readDigests(header, value)) add(header, algorithm, hex)
  }
  return Object.keys(declared).length === 0 ? nothing : declared
}

/**
 * Throws CHECKSUM_MISMATCH, with both values in the message and in `data`, for the first declared checksum that differs.
 * `actual` must have every algorithm that was declared; `of` says in the message what it was computed of.
 */
export function compareChecksums(declared: DeclaredChecksums, actual: DeclaredChecksums, of = 'what arrived'): void {
  for (const algorithm of checksumAlgorithms) {
    const expected = declared[algorithm]
    if (expected === undefined) continue
    const found = actual[algorithm]
    assert(found !== undefined, `${algorithm} was declared but not computed`)
    if (found !== expected) {
      throw new HoldfastError(
        'CHECKSUM_MISMATCH',
        `the request declares the ${algorithm} ${expected}, but ${of} has ${found}`,
        { algorithm, expected, found },
      )
    }
  }
}

/** Both syntaxes are lists of name=value; RFC 9530 wraps the base64 in colons and may add parameters. */
function readDigests(header: string, value: string): [ChecksumAlgorithm, string][] {
  const found: [ChecksumAlgorithm, string][] = []
  for (const member of value.split(',')) {
    const text = member.trim()
    if (text === '') continue
    const match = /^([A-Za-z0-9*_.-]+)=([^;\s]*)\s*(?:;.*)?$/.exec(text)
    if (match === null) throw malformed(header, text)
    const algorithm = digestNames[(match[1] ?? '').toLowerCase()]
    if (algorithm === undefined) continue
    found.push([algorithm, fromBase64(header, algorithm, unwrap(header, match[2] ?? ''))])
  }
  return found
}

function unwrap(header: string, value: string): string {
  if (header === 'digest') return value
  if (value.length < 2 || !value.startsWith(':') || !value.endsWith(':')) throw malformed(header, value)
  return value.slice(1, -1)
}

function fromHex(header: string, algorithm: ChecksumAlgorithm, value: string): string {
  const hex = value.toLowerCase()
  if (hex.length !== bytesOf[algorithm] * 2 || !/^[0-9a-f]*$/.test(hex)) throw malformed(header, value)
  return hex
}

function fromBase64(header: string, algorithm: ChecksumAlgorithm, value: string): string {
  const bytes = Buffer.from(value, 'base64')
  // Buffer passes over what is no base64: only what encodes back to the same text was all base64.
  const same = bytes.toString('base64').replace(/=+$/, '') === value.replace(/={1,2}$/, '')
  if (bytes.length !== bytesOf[algorithm] || !same) throw malformed(header, value)
  return bytes.toString('hex')
}

function malformed(header: string, value: string): HoldfastError {
  return new HoldfastError('BAD_REQUEST', `the value of ${header} is malformed`, { header, value: value.slice(0, 200) })
}

const one = (value: string | string[] | undefined): string | undefined =>
  Array.isArray(value) ? value.join(',') : value?.trim()
