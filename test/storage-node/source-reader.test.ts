/** Blobs from another node in pieces: what comes, in how much memory, and what happens when the source does not do its part. */
import { randomBytes } from 'node:crypto'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { SourceReader } from '../../storage-node/source-reader.ts'

const MiB = 1024 * 1024

/** A source that says what it likes; `answer` gets the socket and how many requests came before, over all connections. */
async function source(t: Test, answer: (socket: Socket, turn: number) => void) {
  const requests: string[] = []
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.on('data', (chunk: Buffer) => {
      requests.push(chunk.toString('latin1'))
      answer(socket, requests.length - 1)
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, requests, sockets }
}

function readerFor(t: Test, silenceMs?: number): SourceReader {
  const reader = new SourceReader('Bearer secret', silenceMs)
  t.teardown(() => reader.close())
  return reader
}

const headOf = (bytes: number, more = ''): string => `HTTP/1.1 200 OK\r\nContent-Length: ${bytes}\r\n${more}\r\n`
const { signal } = new AbortController()
const readOf = (url: string, bytes: number) =>
  ({ url, path: '/v1/blobs/x', bytes, urgency: 'usual', verified: false }) as const

async function collected(pieces: AsyncIterable<Buffer>): Promise<{ bytes: Buffer; lengths: number[] }> {
  const copies: Buffer[] = []
  for await (const piece of pieces) copies.push(Buffer.from(piece))
  return { bytes: Buffer.concat(copies), lengths: copies.map(({ length }) => length) }
}

t.test(
  'a blob comes whole, in pieces of 1 MiB, however it is cut on the way, and connections are used again',
  async t => {
    const bodies = [0, 1, MiB - 1, MiB, MiB + 1, 3 * MiB, 7 * MiB + 12_345].map(length => randomBytes(length))
    const { url, requests, sockets } = await source(t, (socket, turn) => {
      const body = bodies[turn] as Buffer
      socket.write(Buffer.concat([Buffer.from(headOf(body.length)), body.subarray(0, 50_000)]))
      for (let at = 50_000; at < body.length;) {
        const length = 1 + Math.floor(Math.random() * 300_000)
        socket.write(body.subarray(at, (at += length)))
      }
    })
    const reader = readerFor(t)
    for (const body of bodies) {
      const { bytes, lengths } = await collected(reader.pieces(readOf(url, body.length), signal))
      t.ok(bytes.equals(body), `${body.length} bytes`)
      t.ok(lengths.slice(0, -1).every(length => length === MiB))
    }
    t.equal(sockets.size, 1)
    t.match(requests[0], /^GET \/v1\/blobs\/x HTTP\/1\.1\r\n/)
    t.match(
      requests[0],
      /\r\nauthorization: Bearer secret\r\nholdfast-background: usual\r\nholdfast-unverified: sha256\r\n/,
    )
  },
)

t.test('I38: of a blob that nobody takes three pieces are read, and the others wait at the source', async t => {
  const body = randomBytes(64 * MiB)
  const { url, sockets } = await source(t, socket => {
    socket.write(headOf(body.length))
    socket.write(body)
  })
  const reader = readerFor(t, 100)
  const pieces = reader.pieces(readOf(url, body.length), signal)
  const first = (await pieces.next()).value as Buffer
  const kept = Buffer.from(first)
  await new Promise(resolve => setTimeout(resolve, 500))
  const [socket] = [...sockets] as [Socket]
  // What the kernel holds for the two of them, besides.
  t.ok(socket.writableLength > 16 * MiB, `${socket.writableLength} bytes wait, and the source is not taken for silent`)
  t.ok(first.equals(kept), 'a piece stays as it is until the next is asked for')
  const { bytes } = await collected(pieces)
  t.ok(Buffer.concat([kept, bytes]).equals(body))
})

t.test('several at once share nothing, also over connections that others used before', async t => {
  const bodies = Array.from({ length: 24 }, (_, index) => randomBytes(5 * MiB + index))
  const { url, requests } = await source(t, (socket, turn) => {
    const body = bodies[Number(/x(\d+) /.exec(requests[turn] ?? '')?.[1])] as Buffer
    socket.write(headOf(body.length))
    socket.write(body)
  })
  const reader = readerFor(t)
  const waiting = [...bodies.entries()]
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
        const [index, body] = next
        let at = 0
        for await (const piece of reader.pieces({ ...readOf(url, body.length), path: `/x${index}` }, signal)) {
          if (Math.random() < 0.5) await new Promise(resolve => setTimeout(resolve, Math.random() * 5))
          if (!piece.equals(body.subarray(at, at + piece.length))) t.fail(`blob ${index} at ${at}`)
          at += piece.length
        }
        t.equal(at, body.length)
      }
    }),
  )
})

t.test('a kept connection that has ended costs a second request, not the blob', async t => {
  const body = randomBytes(2 * MiB)
  const { url, requests, sockets } = await source(t, (socket, turn) => {
    if (turn === 1) socket.destroy()
    else socket.write(Buffer.concat([Buffer.from(headOf(body.length)), body]))
  })
  const reader = readerFor(t)
  await collected(reader.pieces(readOf(url, body.length), signal))
  t.ok((await collected(reader.pieces(readOf(url, body.length), signal))).bytes.equals(body))
  t.equal(requests.length, 3)
  t.equal(sockets.size, 2)
})

t.test('a source that has something else, or nothing, is told from one that breaks off', async t => {
  const answers = [
    'HTTP/1.1 404 Not Found\r\nContent-Length: 25\r\n\r\n{"code":"BLOB_NOT_FOUND"}',
    headOf(2 * MiB - 1),
    `HTTP/1.1 206 Partial Content\r\nContent-Length: ${2 * MiB}\r\nContent-Range: bytes 0-${2 * MiB - 1}/${4 * MiB}\r\n\r\n`,
  ]
  const { url } = await source(t, (socket, turn) => {
    const answer = answers[turn]
    if (answer === undefined) socket.end(Buffer.concat([Buffer.from(headOf(2 * MiB)), Buffer.alloc(MiB + 7)]))
    else socket.write(answer)
  })
  const reader = readerFor(t)
  const read = () => collected(reader.pieces(readOf(url, 2 * MiB), signal))
  for (const answer of answers) await t.rejects(read(), { code: 'REPLICAS_UNREACHABLE' }, answer.slice(0, 50))
  await t.rejects(read(), { code: 'SHORT_ANSWER' })
})

t.test('nobody waits for ever: not for a source that is silent, nor behind an order to stop', async t => {
  const { url, sockets } = await source(t, (socket, turn) => {
    if (turn === 0) return
    socket.write(headOf(8 * MiB))
    socket.write(Buffer.alloc(MiB + 100))
  })
  const reader = readerFor(t, 100)
  const read = (by: AbortSignal) => collected(reader.pieces(readOf(url, 8 * MiB), by))
  const closed = (): Promise<unknown> =>
    Promise.all(
      [...sockets].map(async socket => socket.destroyed || new Promise(resolve => socket.once('close', resolve))),
    )
  await t.rejects(read(signal), { code: 'REPLICAS_UNREACHABLE', message: 'the source is silent' }, 'before the answer')
  await t.rejects(read(signal), { code: 'REPLICAS_UNREACHABLE', message: 'the source is silent' }, 'in the middle')
  await closed()
  const patient = readerFor(t)
  const aborter = new AbortController()
  const cut = collected(patient.pieces(readOf(url, 8 * MiB), aborter.signal))
  setTimeout(() => aborter.abort(new Error('no more')), 50)
  await t.rejects(cut, { message: 'no more' })
  await t.rejects(collected(patient.pieces(readOf(url, 8 * MiB), aborter.signal)), { message: 'no more' })
  for await (const piece of patient.pieces(readOf(url, 8 * MiB), signal)) {
    t.equal(piece.length, MiB)
    break
  }
  await closed()
})
