/** GET and HEAD of one artifact: conditions, ranges, and the bytes from memory or from the replicas. */
import { HoldfastError } from '../../shared/errors.ts'
import type { BodyCache } from '../artifacts/body-cache.ts'
import type { MetadataSource } from '../artifacts/resolver.ts'
import type { Blob } from '../metadata/types.ts'
import type { BlobReader, ByteRange, ByteSink } from '../routing/types.ts'
import type { AnswerHead } from './answer-head.ts'
import type { Exchange } from './answers.ts'
import { contentRange, multipartRanges, parseRanges, rangeBytes } from './byte-ranges.ts'
import { evaluateConditions, ifRangeHolds } from './conditions.ts'

/** Bodies up to this size are read whole and verified before their first byte is sent. */
export const wholeBytesMax = 1024 * 1024

export interface ServeDeps {
  readonly reader: BlobReader
  readonly bodies: BodyCache
}

/** Resolves when the answer has been handed over. Rejects before the head is sent if no replica can be reached. */
export async function serveArtifact(
  deps: ServeDeps,
  exchange: Exchange,
  blob: Blob,
  head: AnswerHead,
  source: MetadataSource,
): Promise<void> {
  const { request, response, requestId } = exchange
  const extra = ['X-Request-Id', requestId, ...(source === 'current' ? [] : ['Holdfast-Metadata', source])]
  const verdict = evaluateConditions(request.method ?? 'GET', request.headers, head)
  if (verdict === 'failed')
    throw new HoldfastError('PRECONDITION_FAILED', 'the artifact does not match the condition', { etag: head.etag })
  if (verdict === 'not-modified') {
    response.writeHead(304, [...head.common, ...extra])
    response.end()
    return
  }
  if (request.method === 'HEAD') {
    response.writeHead(200, [...head.whole, ...extra])
    response.end()
    return
  }
  const asked = ifRangeHolds(request.headers['if-range'] as string | undefined, head)
    ? parseRanges(request.headers.range, blob.bytes)
    : ({ kind: 'none' } as const)
  switch (asked.kind) {
    case 'unsatisfiable':
      throw new HoldfastError('RANGE_NOT_SATISFIABLE', `the artifact has ${blob.bytes} bytes`, {
        size: blob.bytes,
      })
    case 'none':
      return sendBytes(deps, response, exchange.signal, blob, undefined, () =>
        response.writeHead(200, [...head.whole, ...extra]),
      )
    case 'ranges':
      return asked.ranges.length === 1
        ? sendOneRange(deps, exchange, blob, asked.ranges[0], [...head.common, ...extra], head.contentType)
        : sendManyRanges(deps, exchange, blob, asked.ranges, [...head.common, ...extra], head.contentType)
  }
}

async function sendOneRange(
  deps: ServeDeps,
  exchange: Exchange,
  blob: Blob,
  range: ByteRange,
  headers: string[],
  contentType: string,
): Promise<void> {
  headers.push('Content-Type', contentType, 'Content-Range', contentRange(range, blob.bytes))
  headers.push('Content-Length', String(rangeBytes(range)))
  const { response, signal } = exchange
  await sendBytes(deps, response, signal, blob, range, () => response.writeHead(206, headers))
}

async function sendManyRanges(
  deps: ServeDeps,
  exchange: Exchange,
  blob: Blob,
  ranges: readonly ByteRange[],
  headers: string[],
  contentType: string,
): Promise<void> {
  const { response, signal } = exchange
  const multipart = multipartRanges(ranges, blob.bytes, contentType)
  headers.push('Content-Type', multipart.contentType, 'Content-Length', String(multipart.contentLength))
  for (const part of multipart.parts) {
    const start = (): void => {
      if (!response.headersSent) response.writeHead(206, headers)
      response.write(part.head)
    }
    await sendBytes(deps, unended(response), signal, blob, part.range, start)
    if (response.destroyed) return
  }
  response.end(multipart.tail)
}

async function sendBytes(
  { reader, bodies }: ServeDeps,
  sink: ByteSink,
  signal: AbortSignal,
  blob: Blob,
  range: ByteRange | undefined,
  onStart: () => void,
): Promise<void> {
  if (blob.bytes > wholeBytesMax) {
    await reader.stream(blob, range, sink, { onStart, signal })
    return
  }
  const body = await wholeBody({ reader, bodies }, blob, signal)
  onStart()
  sink.end(range === undefined ? body : body.subarray(range.first, range.last + 1))
}

/** A body of at most `wholeBytesMax` bytes, verified; from memory, or from a replica and then kept. */
export async function wholeBody({ reader, bodies }: ServeDeps, blob: Blob, signal?: AbortSignal): Promise<Buffer> {
  const kept = bodies.get(blob.digest)
  if (kept !== undefined) return kept
  const body = await reader.readWhole(blob, signal)
  bodies.put(blob.digest, body)
  return body
}

/** The same sink, but `end` only writes: more parts follow. */
function unended(sink: ByteSink): ByteSink {
  return {
    write: (chunk, callback) => sink.write(chunk, callback),
    end: chunk => {
      if (chunk !== undefined) sink.write(chunk)
    },
    destroy: error => sink.destroy(error),
    get destroyed() {
      return sink.destroyed
    },
  }
}
