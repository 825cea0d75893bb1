/** The heads of artifact answers, prepared once per cached path as raw header lists: the hot path only joins lists. */
import assert from 'node:assert/strict'
import type { Artifact, Repository } from '../metadata/types.ts'
import { contentTypeOf, declaredContentType, isActiveContent } from './content-types.ts'

export interface AnswerHead {
  readonly etag: string
  readonly lastModifiedMs: number
  readonly contentType: string
  /** All headers of an answer with the artifact's bytes but Content-Length and Content-Type. */
  readonly common: readonly string[]
  /** The complete head of a 200: `common`, type and length. */
  readonly whole: readonly string[]
  /** The same as text, for the memory lane; X-Request-Id, Date and Connection follow. */
  readonly lane: { readonly whole: string; readonly notModified: string }
}

export function prepareHead(repository: Repository, artifact: Artifact): AnswerHead {
  const { blob, path } = artifact
  const etag = `"${blob.digest}"`
  // HTTP dates have whole seconds; both the header and the comparison use the same cut.
  const lastModifiedMs = Math.floor(artifact.updatedAt / 1000) * 1000
  const contentType = contentTypeOf(path, artifact.contentType)
  const common = [
    'ETag',
    etag,
    'Last-Modified',
    new Date(lastModifiedMs).toUTCString(),
    'Accept-Ranges',
    'bytes',
    'Cache-Control',
    cacheControl(repository),
    'X-Checksum-Sha256',
    blob.digest,
    'X-Checksum-Sha1',
    blob.sha1,
    'X-Checksum-Md5',
    blob.md5,
    ...harmless(contentType),
  ]
  const whole = [...common, 'Content-Type', contentType, 'Content-Length', String(blob.bytes)]
  const lane = {
    whole: 'HTTP/1.1 200 OK\r\n' + lines(whole),
    notModified: 'HTTP/1.1 304 Not Modified\r\n' + lines(common),
  }
  return { etag, lastModifiedMs, contentType, common, whole, lane }
}

/** The head of a 200 with bytes that are not known yet, from an upstream. `bytes` undefined: as many as come. */
export function passedHead(
  repository: Repository,
  path: string,
  { bytes, contentType: declared }: { readonly bytes: number | undefined; readonly contentType: string | undefined },
): string[] {
  const contentType = contentTypeOf(path, declaredContentType(declared))
  const head = ['Cache-Control', cacheControl(repository), ...harmless(contentType), 'Content-Type', contentType]
  return bytes === undefined ? head : [...head, 'Content-Length', String(bytes)]
}

/** So that no artifact runs in a browser as if it were ours. */
function harmless(contentType: string): readonly string[] {
  const known = ['X-Content-Type-Options', 'nosniff']
  if (!isActiveContent(contentType)) return known
  return [...known, 'Content-Disposition', 'attachment', 'Content-Security-Policy', 'sandbox']
}

/** Values come from us, from a digest, or from a content type that was checked at its upload: none has a line break. */
function lines(headers: readonly string[]): string {
  let text = ''
  for (let index = 0; index + 1 < headers.length; index += 2) text += `${headers[index]}: ${headers[index + 1]}\r\n`
  // Beyond Latin-1 a character would be cut to its low byte, which may be a line break.
  assert(!/[^\r]\n|\r[^\n]|[^\t\r\n -~\x80-\xff]/.test(text), 'a header that cannot stand in an answer')
  return text
}

/** Under 'once' a path never changes, but by its upstream; otherwise every use must be revalidated (a 304 costs little). */
function cacheControl(repository: Repository): string {
  const scope = repository.anonymousRead ? 'public' : 'private'
  return repository.redeploy === 'once' && repository.upstream === null
    ? `${scope}, max-age=31536000, immutable`
    : `${scope}, no-cache`
}
