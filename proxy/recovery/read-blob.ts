import type { BlobLocation, BlobReader, ByteSink } from '../routing/types.ts'

/** A blob of any size in memory. Rejects with REPLICAS_UNREACHABLE. */
export async function readBlob(reader: BlobReader, blob: BlobLocation): Promise<Buffer> {
  const chunks: Buffer[] = []
  let broken: Error | undefined
  const sink: ByteSink = {
    write: (chunk, callback) => {
      chunks.push(Buffer.from(chunk)) // the caller uses its buffer again
      callback?.()
      return true
    },
    end: chunk => {
      if (chunk !== undefined) chunks.push(Buffer.from(chunk))
    },
    destroy: error => {
      broken = error ?? new Error('the stream was cut')
    },
    get destroyed() {
      return broken !== undefined
    },
  }
  await reader.stream(blob, undefined, sink, { onStart: () => {}, signal: new AbortController().signal })
  if (broken !== undefined) throw broken
  return Buffer.concat(chunks)
}
