/**
 * Paths of artifacts, normalised once, here at the edge (I40). What passes is text that means the same everywhere: in
 * the partition hash, in PostgreSQL, in a reference on a shard, in a link. So nothing is repaired: a target either
 * decodes to one normal path, or it is refused with the reason.
 *
 * Refused: '.' and '..' in every encoding, empty segments, encoded slashes, backslashes, C0 and C1 controls, line and
 * paragraph separators and the bidirectional embeddings, overrides and isolates (U+2028-202E, U+2066-2069: with those a name
 * reads as another one in a listing), lone surrogates, bytes that are not UTF-8. Everything else is kept byte by byte: no Unicode
 * normalisation, so two names that look alike are two artifacts, as on the disks they come from.
 */
import { HoldfastError } from '../../shared/errors.ts'
import { isHost } from './broken-requests.ts'

/** Longest path in UTF-8 bytes, without the repository. */
export const pathBytesMax = 2_000
/** Longest segment in UTF-8 bytes: what a file system of a client can hold. */
export const segmentBytesMax = 255
/** Longest raw request target: a path of `pathBytesMax` with every byte encoded, and 2 KiB of query. */
export const targetCharsMax = 8_192

export interface ArtifactTarget {
  readonly repository: string
  /** Decoded; no leading slash; '' is the repository itself; a trailing '/' means a folder. */
  readonly path: string
  /** As it came, without the '?'; '' when there is none. */
  readonly query: string
}

const prefix = '/repository/'
const repositoryNamePattern = /^[a-z0-9][a-z0-9._-]{0,63}$/
/** What nearly all requests look like: nothing to decode. Dot segments and '//' are looked for apart, that is cheaper. */
const plainTarget = /^\/repository\/[a-z0-9][a-z0-9._-]{0,63}\/[A-Za-z0-9_.~+@/-]*$/
const forbidden = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]|\p{Cs}/u
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** 1 to 64 characters of a-z, 0-9, '.', '_', '-', beginning with a letter or digit. */
export function isRepositoryName(name: string): boolean {
  return repositoryNamePattern.test(name)
}

/**
 * Reads a raw request target, `/repository/<repository>/<path>[?query]`, also in absolute form (RFC 9112 3.2.2). Each
 * segment is decoded exactly once. Pass what came over the wire (node:http's `request.url`), never a decoded URL.
 * Throws PATH_INVALID with `data.reason`, or URI_TOO_LONG.
 */
export function parseArtifactTarget(rawTarget: string): ArtifactTarget {
  if (plainTarget.test(rawTarget) && !rawTarget.includes('/.') && !rawTarget.includes('//')) {
    const slash = rawTarget.indexOf('/', prefix.length)
    if (rawTarget.length - slash - 1 <= segmentBytesMax) {
      return { repository: rawTarget.slice(prefix.length, slash), path: rawTarget.slice(slash + 1), query: '' }
    }
  }
  return parseSlowly(originForm(rawTarget))
}

/**
 * The origin form (`/path?query`) of a raw request target, which may be in absolute form. Throws PATH_INVALID for '*',
 * an authority, another scheme, a fragment; URI_TOO_LONG beyond `targetCharsMax`.
 */
export function originForm(rawTarget: string): string {
  if (rawTarget.length > targetCharsMax) {
    throw new HoldfastError('URI_TOO_LONG', 'the request target is too long', { charsMax: targetCharsMax })
  }
  if (rawTarget.includes('#')) throw invalid('fragment', 'a request target has no fragment')
  if (rawTarget.startsWith('/')) return rawTarget
  const authority = /^https?:\/\/([^/?#]+)/i.exec(rawTarget)
  if (authority === null || !isHost(authority[1] ?? '')) throw invalid('target-form', 'the request target is no path')
  const rest = rawTarget.slice(authority[0].length)
  return rest.startsWith('/') ? rest : '/' + rest
}

/**
 * Checks a path that is decoded already (from a JSON body, say) against the same rules and returns it. Throws
 * PATH_INVALID or URI_TOO_LONG.
 */
export function checkArtifactPath(path: string): string {
  if (Buffer.byteLength(path) > pathBytesMax) {
    throw new HoldfastError('URI_TOO_LONG', 'the path is too long', { bytesMax: pathBytesMax })
  }
  if (path === '') return path
  const segments = path.split('/')
  segments.forEach((segment, index) => checkSegment(segment, index, index === segments.length - 1))
  return path
}

/**
 * The path for a link or a Location header: UTF-8, percent-encoded but for unreserved characters, '@' and '/'. Decoding it
 * with `parseArtifactTarget` gives the same path again.
 */
export function encodeArtifactPath(path: string): string {
  return encodeURIComponent(path).replaceAll('%2F', '/').replaceAll('%40', '@')
}

/** The request target of an artifact: what `parseArtifactTarget` reads. */
export function artifactTarget(repository: string, path: string): string {
  return prefix + repository + '/' + encodeArtifactPath(path)
}

function parseSlowly(target: string): ArtifactTarget {
  const mark = target.indexOf('?')
  const raw = mark < 0 ? target : target.slice(0, mark)
  if (!raw.startsWith(prefix)) throw invalid('prefix', 'the path does not begin with /repository/')
  const [rawRepository = '', ...rawSegments] = raw.slice(prefix.length).split('/')
  const repository = decodeSegment(rawRepository)
  if (!isRepositoryName(repository)) throw invalid('repository-name', 'this cannot be the name of a repository')
  const segments = rawSegments.map(decodeSegment)
  const encodedSlash = segments.findIndex(segment => segment.includes('/'))
  if (encodedSlash >= 0) throw invalid('encoded-slash', 'a segment contains an encoded slash', encodedSlash)
  return {
    repository,
    path: checkArtifactPath(segments.join('/')),
    query: mark < 0 ? '' : target.slice(mark + 1),
  }
}

function checkSegment(segment: string, index: number, last: boolean): void {
  if (segment === '') {
    if (last) return
    throw invalid('empty-segment', 'a segment is empty', index)
  }
  if (segment === '.' || segment === '..') throw invalid('dot-segment', "a segment is '.' or '..'", index)
  if (segment.includes('\\')) throw invalid('backslash', 'a segment contains a backslash', index)
  if (forbidden.test(segment)) throw invalid('control-character', 'a segment contains a control character', index)
  if (Buffer.byteLength(segment) > segmentBytesMax) {
    throw invalid('segment-too-long', `a segment is longer than ${segmentBytesMax} bytes`, index)
  }
}

/**
 * node:http hands bytes over as Latin-1 characters, so a character above 0x7f is one raw byte of UTF-8 that the client
 * did not encode (curl does that); above 0xff it cannot have come over the wire.
 */
function decodeSegment(raw: string): string {
  if (!raw.includes('%') && /^[\u0000-\u007f]*$/.test(raw)) return raw
  const bytes = Buffer.allocUnsafe(raw.length)
  let length = 0
  for (let at = 0; at < raw.length; at++) {
    let byte = raw.charCodeAt(at)
    if (byte > 0xff) throw invalid('encoding', 'the request target is no sequence of bytes')
    if (byte === 0x25) {
      const hex = raw.slice(at + 1, at + 3)
      if (!/^[0-9A-Fa-f]{2}$/.test(hex)) throw invalid('percent-encoding', "a '%' is not followed by two hex digits")
      byte = Number.parseInt(hex, 16)
      at += 2
    }
    bytes[length++] = byte
  }
  try {
    return utf8.decode(bytes.subarray(0, length))
  } catch (error) {
    throw invalid('utf-8', 'a segment is not valid UTF-8', undefined, error)
  }
}

function invalid(reason: string, message: string, segment?: number, cause?: unknown): HoldfastError {
  return new HoldfastError('PATH_INVALID', message, segment === undefined ? { reason } : { reason, segment }, { cause })
}
