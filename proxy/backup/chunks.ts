/** The same bytes in pieces of this size, of which the first may have another, and the last be shorter. Memory: twice a piece. */
export async function* inChunksOf(size: number, body: AsyncIterable<Buffer>, first = size): AsyncGenerator<Buffer> {
  let wanted = first
  let parts: Buffer[] = []
  let bytes = 0
  for await (const part of body) {
    let rest = part
    while (bytes + rest.length >= wanted) {
      const taken = rest.subarray(0, wanted - bytes)
      yield Buffer.concat([...parts, taken])
      rest = rest.subarray(taken.length)
      parts = []
      bytes = 0
      wanted = size
    }
    if (rest.length > 0) {
      parts.push(rest)
      bytes += rest.length
    }
  }
  if (bytes > 0) yield Buffer.concat(parts)
}
