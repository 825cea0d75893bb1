/** The body of an upload as it comes from a client: small ones whole, larger ones as a stream that is never buffered whole. */
import { HoldfastError } from '../../shared/errors.ts'

export type UploadBody =
  | { readonly kind: 'small'; readonly bytes: Buffer }
  /** Whoever does not read `chunks` to their end calls their `return`. */
  | { readonly kind: 'large'; readonly chunks: AsyncIterableIterator<Buffer> }

/**
 * Reads until the body has ended or is larger than `smallBytesMax`. The length, where the client declared one, is checked:
 * LENGTH_MISMATCH for more or fewer bytes, TOO_LARGE beyond `bytesMax`. `observe` sees each chunk once, in order.
 */
export async function readUpload(
  source: AsyncIterable<Buffer>,
  limits: { smallBytesMax: number; expectedBytes: number | undefined; bytesMax: number | undefined },
  observe: (chunk: Buffer) => void,
): Promise<UploadBody> {
  const chunks = counted(source, limits, observe)
  const iterator = chunks[Symbol.asyncIterator]()
  const head: Buffer[] = []
  let headBytes = 0
  while (headBytes <= limits.smallBytesMax) {
    const next = await iterator.next()
    if (next.done === true)
      return { kind: 'small', bytes: head.length === 1 ? (head[0] as Buffer) : Buffer.concat(head) }
    head.push(next.value)
    headBytes += next.value.length
  }
  return { kind: 'large', chunks: resumed(head, iterator) }
}

async function* counted(
  source: AsyncIterable<Buffer>,
  limits: { expectedBytes: number | undefined; bytesMax: number | undefined },
  observe: (chunk: Buffer) => void,
): AsyncGenerator<Buffer> {
  const { expectedBytes, bytesMax } = limits
  let bytes = 0
  for await (const chunk of source) {
    bytes += chunk.length
    if (bytesMax !== undefined && bytes > bytesMax) {
      throw new HoldfastError(
        'TOO_LARGE',
        `the artifact is larger than the ${bytesMax} bytes this repository accepts`,
        { bytesMax },
      )
    }
    observe(chunk)
    yield chunk
  }
  if (expectedBytes !== undefined && bytes !== expectedBytes) {
    throw new HoldfastError('LENGTH_MISMATCH', `the body has ${bytes} bytes, ${expectedBytes} were declared`, {
      expected: expectedBytes,
      found: bytes,
    })
  }
}

/** No generator: the `return` of one that has not begun would not reach the source. */
function resumed(head: Buffer[], rest: AsyncIterator<Buffer>): AsyncIterableIterator<Buffer> {
  return {
    async next() {
      const value = head.shift()
      return value === undefined ? rest.next() : { done: false, value }
    },
    async return() {
      head.length = 0
      await rest.return?.()
      return { done: true, value: undefined }
    },
    [Symbol.asyncIterator]() {
      return this
    },
  }
}
