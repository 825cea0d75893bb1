/** The body of an upload as it comes from a client: small ones whole, larger ones as a stream that is never buffered whole. */
import { HoldfastError } from '../../shared/errors.ts'

export type UploadBody =
  | { readonly kind: 'small'; readonly bytes: Buffer }
  /** Whoever does not read `chunks` to their end calls their `return`. */
  | { readonly kind: 'large'; readonly chunks: AsyncIterableIterator<Buffer> }

/**
 * Reads until the body has ended or is larger than `smallBytesMax`. The length, where the client declared one, is checked:
 * LENGTH_MISMATCH for more or fewer bytes, TOO_LARGE beyond `bytesMax`. `observe` sees each chunk once, in order. Rejects with the
 * signal's reason if it aborts meanwhile; what is left in `chunks` does not look at it.
 */
export async function readUpload(
  source: AsyncIterable<Buffer>,
  limits: { smallBytesMax: number; expectedBytes: number | undefined; bytesMax: number | undefined },
  observe: (chunk: Buffer) => void,
  signal?: AbortSignal,
): Promise<UploadBody> {
  signal?.throwIfAborted()
  const iterator = counted(source, limits, observe)
  let leave: (() => void) | undefined
  const left = new Promise<never>((_, reject) => {
    leave = () => reject(signal?.reason as Error)
    signal?.addEventListener('abort', leave, { once: true })
  })
  try {
    return await readHead(iterator, limits.smallBytesMax, left)
  } catch (error) {
    // Not awaited: one that waits for a silent client returns only when that client does something.
    void iterator.return(undefined).catch(() => undefined)
    throw error
  } finally {
    if (leave !== undefined) signal?.removeEventListener('abort', leave)
  }
}

/** `left` rejects when nobody waits any more; it is raced for a few chunks only, and then forgotten with them. */
async function readHead(
  iterator: AsyncGenerator<Buffer>,
  smallBytesMax: number,
  left: Promise<never>,
): Promise<UploadBody> {
  const head: Buffer[] = []
  let headBytes = 0
  while (headBytes <= smallBytesMax) {
    const next = await Promise.race([iterator.next(), left])
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
