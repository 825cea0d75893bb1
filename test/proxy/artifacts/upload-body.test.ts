import assert from 'node:assert/strict'
import t from 'tap'
import { readUpload } from '../../../proxy/artifacts/upload-body.ts'

/** The stream of a body that is larger than `smallBytesMax`. */
async function largeBody(body: AsyncIterable<Buffer>): Promise<AsyncIterableIterator<Buffer>> {
  const read = await readUpload(body, limits, () => {})
  assert(read.kind === 'large')
  return read.chunks
}

const limits = { smallBytesMax: 10, expectedBytes: undefined, bytesMax: undefined }

interface Source {
  readonly body: AsyncIterable<Buffer>
  readonly state: { pulled: number; returned: boolean }
}

function source(...chunks: string[]): Source {
  const state = { pulled: 0, returned: false }
  async function* body(): AsyncGenerator<Buffer> {
    try {
      for (const chunk of chunks) {
        state.pulled++
        yield Buffer.from(chunk)
      }
    } finally {
      state.returned = true
    }
  }
  return { body: body(), state }
}

t.test('a small body comes whole, a larger one as a stream that is pulled on demand', async t => {
  const seen: string[] = []
  const observe = (chunk: Buffer): void => void seen.push(chunk.toString())
  const small = await readUpload(source('abc', 'def', 'ghij').body, limits, observe)
  t.equal(small.kind === 'small' && small.bytes.toString(), 'abcdefghij', 'up to the limit')
  t.same(seen, ['abc', 'def', 'ghij'])
  const empty = await readUpload(source().body, limits, observe)
  t.equal(empty.kind === 'small' && empty.bytes.length, 0)

  const { body, state } = source('0123456789', 'a', 'b', 'c')
  const chunks = await largeBody(body)
  t.equal(state.pulled, 2, 'no more than it takes to know')
  const text: string[] = []
  for await (const chunk of chunks) text.push(chunk.toString())
  t.same(text, ['0123456789', 'a', 'b', 'c'])
  t.ok(state.returned)
})

t.test('the declared length must be right, and the limit is kept whatever was declared', async t => {
  const read = async (chunks: string[], change: Partial<typeof limits> & object): Promise<void> => {
    const body = await readUpload(source(...chunks).body, { ...limits, ...change }, () => {})
    if (body.kind === 'large') for await (const chunk of body.chunks) void chunk
  }
  const expectedBytes = 12 as never
  await read(['0123456789', 'ab'], { expectedBytes })
  await t.rejects(read(['abc'], { expectedBytes }), { code: 'LENGTH_MISMATCH', data: { expected: 12, found: 3 } })
  await t.rejects(read(['0123456789', 'abc'], { expectedBytes }), { code: 'LENGTH_MISMATCH' })
  const bytesMax = 12 as never
  await read(['0123456789', 'ab'], { bytesMax })
  await t.rejects(read(['0123456789', 'ab', 'c'], { bytesMax }), { code: 'TOO_LARGE' })
  await t.rejects(read(['0123456789abcdef'], { bytesMax }), { code: 'TOO_LARGE' })
})

t.test('whoever gives up before the first chunk still lets go of the source', async t => {
  const { body, state } = source('0123456789', 'a', 'b')
  const chunks = await largeBody(body)
  await chunks.return?.()
  t.ok(state.returned)
  t.same(await chunks.next(), { done: true, value: undefined })
})

t.test('what the source throws comes through', async t => {
  async function* broken(): AsyncGenerator<Buffer> {
    yield Buffer.from('0123456789ab')
    throw new Error('the client left')
  }
  const chunks = await largeBody(broken())
  await chunks.next()
  await t.rejects(chunks.next(), /the client left/)
})
