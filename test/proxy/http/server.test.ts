import { hash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { Agent, get, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { networkInterfaces } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { HoldfastError } from '../../../shared/errors.ts'
import { eventually } from '../../support/eventually.ts'
import { parseAnswers, RawConnection, sendRaw } from '../../support/raw-http.ts'
import { credentials, startEdge, type EdgeWorld } from './fake-edge.ts'

const auth = { authorization: credentials }
const rawAuth = `Authorization: ${credentials}\r\n`

/** One request with fetch's pool; the body as text. */
async function ask(
  world: EdgeWorld,
  path: string,
  init: RequestInit = {},
): Promise<{ status: number; headers: Headers; body: Buffer }> {
  const answer = await fetch(world.url + path, { redirect: 'manual', ...init })
  return { status: answer.status, headers: answer.headers, body: Buffer.from(await answer.arrayBuffer()) }
}

const json = (body: Buffer): Record<string, unknown> => JSON.parse(body.toString()) as Record<string, unknown>

t.test('an artifact comes with its checksums, and HEAD says the same without the bytes', async t => {
  const world = await startEdge(t)
  const body = randomBytes(10_000)
  const put = await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin', { method: 'PUT', headers: auth, body })
  t.equal(put.status, 201)
  t.equal(put.headers.get('location'), '/repository/raw/a/b%20c/%C3%BC.bin')
  t.equal(put.headers.get('x-checksum-sha256'), hash('sha256', body))
  const read = await ask(world, '/repository/raw/a/b%20c/ü.bin')
  t.equal(read.status, 200)
  t.ok(read.body.equals(body))
  t.equal(read.headers.get('etag'), `"${hash('sha256', body)}"`)
  t.equal(read.headers.get('x-checksum-md5'), hash('md5', body))
  t.equal(read.headers.get('accept-ranges'), 'bytes')
  for (const turn of ['from PostgreSQL', 'from memory']) {
    const again = await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin')
    const head = await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin', { method: 'HEAD' })
    for (const name of ['etag', 'content-length', 'content-type', 'last-modified', 'cache-control']) {
      t.equal(head.headers.get(name), again.headers.get(name), `${name} ${turn}`)
    }
    t.equal(head.body.length, 0)
    t.ok(again.body.equals(body))
  }
  t.equal((await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin.md5')).body.toString(), hash('md5', body))
  t.equal(
    (await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin', { method: 'PUT', headers: auth, body: 'x' })).status,
    200,
  )
  t.equal((await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin')).body.toString(), 'x')
  t.equal((await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin', { method: 'DELETE', headers: auth })).status, 204)
  t.equal((await ask(world, '/repository/raw/a/b%20c/%C3%BC.bin')).status, 404)
  t.same(world.errors, [])
})

t.test('an artifact of no bytes is an artifact', async t => {
  const world = await startEdge(t)
  t.equal((await ask(world, '/repository/raw/empty', { method: 'PUT', headers: auth, body: '' })).status, 201)
  for (let turn = 0; turn < 2; turn++) {
    const read = await ask(world, '/repository/raw/empty')
    t.equal(read.status, 200)
    t.equal(read.headers.get('content-length'), '0')
    t.equal(read.headers.get('x-checksum-sha256'), hash('sha256', ''))
  }
  const range = await ask(world, '/repository/raw/empty', { headers: { range: 'bytes=0-' } })
  t.equal(range.status, 416)
  t.equal(range.headers.get('content-range'), 'bytes */0')
  t.same(world.errors, [])
})

t.test('conditions: 304 has the headers of the 200 and no body, 412 says what is there', async t => {
  const world = await startEdge(t)
  const { blob, updatedAt } = world.add('raw/x', 'hello')
  const etag = `"${blob.digest}"`
  const since = new Date(updatedAt).toUTCString()
  for (const headers of [
    { 'if-none-match': etag },
    { 'if-none-match': etag },
    { 'if-none-match': `"other", W/${etag}` },
    { 'if-none-match': '*' },
    { 'if-modified-since': since },
    { 'if-none-match': etag, 'if-modified-since': 'Thu, 01 Jan 1970 00:00:00 GMT' },
  ] as Record<string, string>[]) {
    const answer = await ask(world, '/repository/raw/x', { headers })
    t.equal(answer.status, 304, JSON.stringify(headers))
    t.equal(answer.headers.get('etag'), etag)
    t.equal(answer.headers.get('cache-control'), 'public, no-cache')
    t.equal(answer.headers.get('content-length'), null)
    t.equal(answer.headers.get('content-type'), null)
    t.equal(answer.body.length, 0)
  }
  const failed = await ask(world, '/repository/raw/x', { headers: { 'if-match': '"other"' } })
  t.equal(failed.status, 412)
  t.equal(json(failed.body)['etag'], etag)
  t.equal((await ask(world, '/repository/raw/x', { method: 'HEAD', headers: { 'if-match': '"o"' } })).status, 412)
  t.equal((await ask(world, '/repository/raw/x', { headers: { 'if-none-match': '"other"' } })).status, 200)
  const refused = await ask(world, '/repository/raw/x', {
    method: 'PUT',
    headers: { ...auth, 'if-none-match': '*' },
    body: 'y',
  })
  t.equal(refused.status, 412)
})

t.test('ranges, single and many, of bodies that are read whole and of those that stream', async t => {
  const world = await startEdge(t)
  for (const size of [1_000, 3_000_000]) {
    const body = randomBytes(size)
    world.add('raw/r', body)
    const range = async (text: string): Promise<{ status: number; headers: Headers; body: Buffer }> =>
      ask(world, '/repository/raw/r', { headers: { range: text } })
    const first = await range('bytes=0-9')
    t.equal(first.status, 206)
    t.equal(first.headers.get('content-range'), `bytes 0-9/${size}`)
    t.equal(first.headers.get('content-length'), '10')
    t.ok(first.body.equals(body.subarray(0, 10)))
    t.ok((await range('bytes=-10')).body.equals(body.subarray(size - 10)))
    t.ok((await range('bytes=500-')).body.equals(body.subarray(500)))
    t.ok((await range(`bytes=0-${size * 2}`)).body.equals(body))
    const past = await range(`bytes=${size}-`)
    t.equal(past.status, 416)
    t.equal(past.headers.get('content-range'), `bytes */${size}`)
    t.equal(json(past.body)['code'], 'RANGE_NOT_SATISFIABLE')
    t.equal((await range('lines=1-2')).status, 200)
    const many = await range('bytes=0-1,100-199,-5')
    t.equal(many.status, 206)
    t.equal(many.headers.get('content-length'), String(many.body.length))
    const boundary = /boundary=(.+)/.exec(many.headers.get('content-type') ?? '')?.[1] ?? '?'
    const parts = many.body
      .toString('latin1')
      .split(`--${boundary}`)
      .slice(1, -1)
      .map(part => part.slice(part.indexOf('\r\n\r\n') + 4, -2))
    const wanted = [body.subarray(0, 2), body.subarray(100, 200), body.subarray(size - 5)]
    t.same(
      parts,
      wanted.map(bytes => bytes.toString('latin1')),
    )
    const stale = await ask(world, '/repository/raw/r', { headers: { range: 'bytes=0-9', 'if-range': '"other"' } })
    t.equal(stale.status, 200, 'If-Range of another version')
  }
  t.same(world.errors, [])
})

t.test('a request id that is harmless is echoed, another one is replaced, also from memory', async t => {
  const world = await startEdge(t)
  world.add('raw/x', 'hello')
  for (const path of ['/repository/raw/x', '/repository/raw/x', '/repository/raw/none', '/healthz']) {
    t.equal((await ask(world, path, { headers: { 'x-request-id': 'build-7/a:b' } })).headers.get('x-request-id'), 'build-7/a:b') // prettier-ignore
    const own = (await ask(world, path, { headers: { 'x-request-id': '<script>' } })).headers.get('x-request-id')
    t.match(own, /^[\w-]{8,}$/)
  }
  const failed = await ask(world, '/repository/raw/none', { headers: { 'x-request-id': 'mine' } })
  t.same(json(failed.body), { code: 'ARTIFACT_NOT_FOUND', message: 'nothing at raw/none', requestId: 'mine' })
})

t.test('what cannot be answered says why, in one shape', async t => {
  const world = await startEdge(t)
  for (const [method, path, status, code] of [
    ['POST', '/repository/raw/x', 405, 'METHOD_NOT_ALLOWED'],
    ['POST', '/healthz', 405, 'METHOD_NOT_ALLOWED'],
    ['GET', '/nowhere', 404, 'NOT_FOUND'],
    ['GET', '/repository/none/x', 401, 'UNAUTHORIZED'],
    ['GET', '/repository/once/x', 401, 'UNAUTHORIZED'],
    ['PUT', '/repository/raw/x', 401, 'UNAUTHORIZED'],
    ['GET', '/repository/raw/a%2fb', 400, 'PATH_INVALID'],
    ['GET', '/repository/raw/a/../b', 404, 'ARTIFACT_NOT_FOUND'], // fetch resolves this one itself
    ['GET', '/repository/raw/' + 'x'.repeat(9_000), 414, 'URI_TOO_LONG'],
  ] as const) {
    const answer = await ask(world, path, { method })
    t.equal(answer.status, status, `${method} ${path.slice(0, 40)}`)
    t.equal(json(answer.body)['code'], code)
    if (status === 405) t.match(answer.headers.get('allow'), /^GET, HEAD/)
    if (status === 401) t.match(answer.headers.get('www-authenticate'), /^Basic /)
  }
  const [dots] = await sendRaw(world.url, 'GET /repository/raw/a/%2e%2e/b HTTP/1.1\r\nHost: h\r\n\r\n')
  t.equal(dots?.status, 400)
  const [broken] = await sendRaw(world.url, 'GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n')
  t.equal(broken?.status, 400)
  t.match(broken?.body, /"code":"BAD_REQUEST"/)
  const [large] = await sendRaw(world.url, `GET / HTTP/1.1\r\nHost: h\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`)
  t.equal(large?.status, 431)
  const expectation = 'Host: h\r\nExpect: a miracle\r\nX-Request-Id: mine\r\n'
  for (const rest of ['\r\n', 'Content-Length: 5\r\n\r\n']) {
    const [unmet] = await sendRaw(world.url, `PUT /repository/raw/x HTTP/1.1\r\n${expectation}${rawAuth}${rest}`)
    t.equal(unmet?.status, 417)
    t.match(unmet?.head, /^X-Request-Id: mine$/im)
    t.match(JSON.parse(unmet?.body ?? ''), { code: 'EXPECTATION_FAILED', message: String, requestId: 'mine' })
  }
  const denied = await ask(world, '/repository/deny/x', { method: 'PUT', headers: auth, body: 'x' })
  t.equal(denied.status, 403)
  const wrong = await ask(world, '/repository/raw/x', {
    method: 'PUT',
    headers: { ...auth, 'x-checksum-sha1': '0'.repeat(40) },
    body: 'x',
  })
  t.equal(wrong.status, 400)
  t.equal(json(wrong.body)['found'], hash('sha1', 'x'))
  t.equal((await ask(world, '/repository/raw/x')).status, 404, 'nothing became visible')
  t.same(world.errors, [])
})

t.test('an upload that is refused early costs no body: 100-continue is not given', async t => {
  const world = await startEdge(t)
  const put = (path: string, length: number, headers = rawAuth): string =>
    `PUT /repository/${path} HTTP/1.1\r\nHost: h\r\n${headers}Expect: 100-continue\r\nContent-Length: ${length}\r\n\r\n`
  for (const [text, status] of [
    [put('raw/x', 10, ''), 401],
    [put('deny/x', 10), 403],
    [put('small/x', 1_001), 413],
    [put('raw/x/', 10), 400],
    [put('raw/x', 10, rawAuth + 'Content-MD5: x\r\n'), 400],
  ] as const) {
    const connection = await RawConnection.open(world.url)
    await connection.send(text)
    await eventually('an answer', () => connection.received.includes('}\n'))
    const answers = parseAnswers(Buffer.from(connection.received, 'latin1'))
    t.same(
      answers.map(answer => answer.status),
      [status],
    )
    t.match(answers[0]?.head, /connection: close/i)
    await eventually('the server ends the connection', () => connection.socket.readableEnded || connection.ended)
    connection.close()
  }
  const welcome = await RawConnection.open(world.url)
  await welcome.send(put('small/x', 1_000))
  await eventually('100', () => welcome.received.includes('100 Continue'))
  await welcome.send('x'.repeat(1_000))
  await eventually('201', () => welcome.received.includes('HTTP/1.1 201'))
  welcome.close()
  t.equal(world.server.requestsInFlight, 0)
})

t.test('what the path would refuse is refused before the body; what may be the same bytes again is not', async t => {
  const world = await startEdge(t)
  const { blob } = world.add('raw/there', 'hello')
  world.add('once/there', 'hello')
  const put = async (path: string, headers: string): Promise<number[]> => {
    const connection = await RawConnection.open(world.url)
    await connection.send(
      `PUT /repository/${path} HTTP/1.1\r\nHost: h\r\n${rawAuth}Expect: 100-continue\r\n${headers}\r\n`,
    )
    await eventually('an answer', () => parseAnswers(Buffer.from(connection.received, 'latin1')).length > 0)
    connection.close()
    return parseAnswers(Buffer.from(connection.received, 'latin1')).map(({ status }) => status)
  }
  const length = 'Content-Length: 5\r\n'
  for (const [path, headers, status] of [
    ['raw/there', length + 'If-None-Match: *\r\n', 412],
    ['raw/none', length + 'If-None-Match: *\r\n', 100],
    ['raw/there', length + `If-Match: "${hash('sha256', 'other')}"\r\n`, 412],
    ['raw/there', length + `If-Match: "${blob.digest}"\r\n`, 100],
    ['raw/none', length + 'If-Match: *\r\n', 412],
    ['once/there', 'Content-Length: 6\r\n', 409],
    ['once/there', length + `X-Checksum-Sha1: ${hash('sha1', 'other')}\r\n`, 409],
    ['once/there', 'Transfer-Encoding: chunked\r\n' + `Content-MD5: ${hash('md5', 'x', 'base64')}\r\n`, 409],
    ['once/there', length + `X-Checksum-Sha256: ${blob.digest}\r\n`, 100],
    ['once/there', length, 100],
    ['once/none', length, 100],
  ] as const) {
    t.same(await put(path, headers), [status], path + ' ' + headers)
  }
  world.metadataFault = new HoldfastError('METADATA_UNAVAILABLE', 'away')
  t.same(await put('raw/there', length + 'If-None-Match: *\r\n'), [503])
  world.metadataFault = undefined
  await eventually('all places are free', () => world.server.requestsInFlight === 0)
  t.same(world.errors, [])
})

t.test('a part is not taken for the whole: Content-Range is refused before the body, and nothing is lost', async t => {
  const world = await startEdge(t)
  const { blob } = world.add('raw/x', '0123456789')
  for (const more of ['', 'X-Checksum-Deploy: true\r\n']) {
    const [answer, ...others] = await sendRaw(
      world.url,
      `PUT /repository/raw/x HTTP/1.1\r\nHost: h\r\n${rawAuth}${more}Expect: 100-continue\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\n`,
    )
    t.equal(answer?.status, 400)
    t.match(answer?.body, /send the whole body/)
    t.same(others, [])
  }
  t.equal(world.artifacts.get('raw/x')?.blob.digest, blob.digest)
})

t.test('a checksum deploy: all checksums hold for what is found, and it has no body', async t => {
  const world = await startEdge(t)
  const { blob } = world.add('raw/x', 'hello')
  const sha256 = { 'x-checksum-sha256': blob.digest }
  const deploy = async (headers: Record<string, string>, body: string | null = null) => {
    const deploy = { ...auth, 'x-checksum-deploy': 'true', ...headers }
    return ask(world, '/repository/raw/y', { method: 'PUT', headers: deploy, body })
  }
  for (const [headers, found] of [
    [{ ...sha256, 'x-checksum-sha1': '0'.repeat(40) }, blob.sha1],
    [{ ...sha256, 'x-checksum-md5': '0'.repeat(32) }, blob.md5],
    [{ 'x-checksum-sha1': blob.sha1, 'content-md5': hash('md5', 'x', 'base64') }, blob.md5],
  ] as const) {
    const refused = await deploy(headers)
    t.equal(refused.status, 400)
    t.match(json(refused.body), { code: 'CHECKSUM_MISMATCH', found, message: /the artifact that is here has/ })
  }
  const untold = await deploy({ ...sha256, 'x-checksum-sha512': '0'.repeat(128) })
  t.match(json(untold.body), { code: 'ARTIFACT_NOT_FOUND', message: /send the bytes/ }, 'nobody knows its sha512')
  const withBody = await deploy(sha256, 'hello')
  t.match(json(withBody.body), { code: 'BAD_REQUEST', message: /has no body/ })
  const head = `PUT /repository/raw/y HTTP/1.1\r\nHost: h\r\n${rawAuth}X-Checksum-Deploy: true\r\nX-Checksum-Sha256: ${blob.digest}\r\n`
  const [chunked] = await sendRaw(world.url, head + 'Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n')
  t.equal(chunked?.status, 400)
  t.notOk(world.artifacts.has('raw/y'), 'nothing was written')
  const all = { ...sha256, 'x-checksum-sha1': blob.sha1, 'x-checksum-md5': blob.md5 }
  t.equal((await deploy(all)).status, 201, 'Content-Length: 0')
  const [bare] = await sendRaw(world.url, head + '\r\n')
  t.equal(bare?.status, 200, 'no length')
  t.same(world.errors, [])
})

t.test('a client that sends its body without asking still reads why it was refused', async t => {
  const world = await startEdge(t)
  const head = (path: string, extra: string): string =>
    `PUT /repository/${path} HTTP/1.1\r\nHost: h\r\n${rawAuth}${extra}\r\n`
  let answeredCount = 0
  const answered = (): number => answeredCount
  world.onBegun = () => answeredCount++
  const chunk = (bytes: number): string => `${bytes.toString(16)}\r\n${'x'.repeat(bytes)}\r\n`
  for (const [what, text, status] of [
    ['too large, declared', head('small/x', 'Content-Length: 2000000\r\n') + 'x'.repeat(500_000), 413],
    ['too large, found out', head('small/x', 'Transfer-Encoding: chunked\r\n') + chunk(200_000).repeat(3), 413],
    ['not allowed', head('deny/x', 'Transfer-Encoding: chunked\r\n') + chunk(200_000).repeat(3), 403],
  ] as const) {
    // It sends all it wants to send before it looks for an answer, as many clients do.
    const connection = await RawConnection.open(world.url)
    connection.socket.pause()
    const before = answered()
    await connection.send(text)
    await eventually(`answer to ${what}`, () => answered() > before && world.server.requestsInFlight === 0)
    for (let more = 0; more < 5 && !connection.ended; more++) await connection.send(Buffer.alloc(100_000, 0x61))
    connection.socket.resume()
    await eventually('it reads', () => connection.received.includes('}\n') || connection.ended)
    t.match(connection.received, new RegExp(`^HTTP/1.1 ${status} `), what)
    connection.close()
  }
  await eventually('all is over', () => world.server.requestsInFlight === 0)
  t.same(world.errors, [])
})

t.test('a refused body without end is not read for ever', async t => {
  const world = await startEdge(t)
  const connection = await RawConnection.open(world.url)
  await connection.send(
    `PUT /repository/deny/x HTTP/1.1\r\nHost: h\r\n${rawAuth}Content-Length: 100000000000\r\n\r\nabc`,
  )
  await eventually('the connection is cut', () => connection.ended || connection.socket.readableEnded, {
    withinMs: 5_000,
  })
  t.match(connection.received, /^HTTP\/1.1 403 /)
  await eventually('nothing is left of it', () => world.server.requestsInFlight === 0)
  connection.close()
})

t.test('an upload whose client leaves is aborted, and its place is free again', async t => {
  const world = await startEdge(t, { uploadsMax: 1 })
  for (const [leave, size] of [
    ['reset', 500],
    ['reset', 500_000],
    ['close', 500],
    ['close', 500_000],
  ] as const) {
    const connection = await RawConnection.open(world.url)
    await connection.send(
      `PUT /repository/raw/x HTTP/1.1\r\nHost: h\r\n${rawAuth}Content-Length: 1000000\r\n\r\n` + 'x'.repeat(size),
    )
    await eventually('it is under way', () => world.server.requestsInFlight === 1)
    if (size > 65_536) await eventually('it is staged', () => world.store.staging === 1)
    connection[leave]()
    await eventually('it is over', () => world.server.requestsInFlight === 0 && world.store.staging === 0)
  }
  t.equal(world.store.aborted, 2)
  t.notOk(world.artifacts.has('raw/x'))
  t.equal((await ask(world, '/repository/raw/x', { method: 'PUT', headers: auth, body: 'x' })).status, 201)
  t.same(world.errors, [], 'a client that leaves is no error of ours')
})

t.test('a client that ends its half of the connection still gets its answer', async t => {
  const world = await startEdge(t)
  world.add('raw/x', 'hello')
  const connection = await RawConnection.open(world.url)
  connection.socket.end('GET /repository/raw/x HTTP/1.1\r\nHost: h\r\n\r\n')
  await eventually('the answer', () => connection.received.endsWith('hello'))
  connection.close()
})

t.test('pipelined requests of a client that leaves are all forgotten', async t => {
  const world = await startEdge(t)
  world.add('raw/large', randomBytes(20_000_000))
  const connection = await RawConnection.open(world.url)
  connection.socket.pause()
  await connection.send('GET /repository/raw/large HTTP/1.1\r\nHost: h\r\n\r\n'.repeat(5))
  await eventually('several are under way', () => world.server.requestsInFlight > 1)
  connection.reset()
  await eventually('none is', () => world.server.requestsInFlight === 0)
  t.match(await world.metrics.registry.metrics(), /outcome="aborted"/)
})

/** Asks for an artifact and does not read: the answer stays under way until `body` is called. */
async function slowReader(
  world: EdgeWorld,
  path: string,
  behind = '',
): Promise<{ socket: Socket; body: () => Promise<Buffer> }> {
  const socket = connect({ host: '127.0.0.1', port: world.server.port })
  socket.on('error', () => {}) // told by 'close'
  const closed = once(socket, 'close')
  const before = world.server.requestsInFlight
  socket.write(`GET /repository/${path} HTTP/1.1\r\nHost: h\r\n\r\n`)
  // Some bytes are read ahead, no more than the socket's buffers.
  await eventually('a download is under way', () => world.server.requestsInFlight > before && socket.bytesRead > 0)
  socket.write(behind)
  const body = async (): Promise<Buffer> => {
    const chunks: Buffer[] = []
    socket.on('data', (chunk: Buffer) => chunks.push(chunk))
    await closed
    const all = Buffer.concat(chunks)
    return all.subarray(all.indexOf('\r\n\r\n') + 4)
  }
  return { socket, body }
}

t.test('I5: garbage behind a request never gets into the answer that is under way', async t => {
  const world = await startEdge(t)
  const body = randomBytes(20_000_000)
  world.add('raw/large', body)
  const reader = await slowReader(world, 'raw/large', 'rubbish\r\n\r\n')
  const got = await reader.body()
  t.ok(got.equals(body.subarray(0, got.length)), `${got.length} right bytes, then the end`)
  t.ok(got.length < body.length)
})

t.test('an upload with too many bytes behind it is answered, then what they are', async t => {
  const world = await startEdge(t)
  const sockets = (): number => process.getActiveResourcesInfo().filter(name => name === 'TCPSocketWrap').length
  const before = sockets()
  const put = (path: string): string =>
    `PUT /repository/raw/${path} HTTP/1.1\r\nHost: h\r\n${rawAuth}Content-Length: 3\r\n\r\nabc`
  for (const [text, statuses] of [
    [put('x') + 'de', [201, 400]],
    [put('x') + 'de\r\n\r\n'.repeat(1_000), [200, 400]],
    [put('y') + put('z') + 'de\r\n\r\n', [201, 201, 400]],
    ['GET /repository/raw/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAccept: text/plain\r\n\r\nde', [200]],
  ] as const) {
    const connection = await RawConnection.open(world.url)
    await connection.send(text)
    await eventually('the connection ends', () => connection.ended)
    const answers = parseAnswers(Buffer.from(connection.received, 'latin1'))
    t.same(
      answers.map(({ status }) => status),
      statuses,
    )
    connection.close()
  }
  await eventually('nothing of them is left', () => sockets() <= before)
  t.equal(world.server.requestsInFlight, 0)
  t.same(world.errors, [])
})

t.test('beyond its limits the proxy says so early, and goes on telling that it is alive', async t => {
  const world = await startEdge(t, { requestsMax: 2, uploadsMax: 1 })
  const stuck = await RawConnection.open(world.url)
  await stuck.send(`PUT /repository/raw/x HTTP/1.1\r\nHost: h\r\n${rawAuth}Content-Length: 10\r\n\r\n`)
  await eventually('an upload is under way', () => world.server.requestsInFlight === 1)
  const second = await ask(world, '/repository/raw/y', { method: 'PUT', headers: auth, body: 'x' })
  t.equal(second.status, 503)
  t.equal(json(second.body)['code'], 'OVERLOADED')
  t.ok(Number(second.headers.get('retry-after')) > 0)
  world.add('raw/large', randomBytes(20_000_000))
  const another = await slowReader(world, 'raw/large')
  t.equal((await ask(world, '/repository/raw/none')).status, 503)
  t.equal((await ask(world, '/healthz')).status, 200)
  t.equal((await ask(world, '/readyz')).status, 200)
  t.equal((await ask(world, '/metrics')).status, 200)
  stuck.close()
  another.socket.destroy()
  await eventually('both are gone', () => world.server.requestsInFlight === 0)
  t.equal((await ask(world, '/repository/raw/none')).status, 404)
  t.same(world.errors, [])
})

t.test('I39: a proxy that ends answers what is under way and what comes on kept connections', async t => {
  const world = await startEdge(t)
  const body = randomBytes(20_000_000)
  world.add('raw/large', body)
  world.add('raw/x', 'hello')
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  const read = async (path: string): Promise<IncomingMessage> => {
    const [answer] = (await once(get(world.url + path, { agent }), 'response')) as [IncomingMessage]
    return answer
  }
  ;(await read('/repository/raw/x')).resume()
  await eventually('the connection is kept', () => Object.keys(agent.freeSockets).length === 1)
  const slow = await slowReader(world, 'raw/large')
  const upload = await RawConnection.open(world.url)
  await upload.send(`PUT /repository/raw/up HTTP/1.1\r\nHost: h\r\n${rawAuth}Content-Length: 10\r\n\r\n01234`)
  await eventually('an upload too', () => world.server.requestsInFlight === 2)

  const closed = world.server.close(20_000)
  const late = await read('/repository/raw/x')
  t.equal(late.statusCode, 200, 'a request on a kept connection')
  t.equal(late.headers.connection, 'close')
  late.resume()
  t.equal((await ask(world, '/readyz').catch(() => ({ status: 503 }))).status, 503, 'balancers are told')
  await upload.send('56789')
  await eventually('the upload is answered', () => upload.received.includes('HTTP/1.1 201'))
  t.match(upload.received, /connection: close/i)
  t.ok((await slow.body()).equals(body), 'the download is complete')
  await closed
  t.equal(world.server.requestsInFlight, 0)
  await t.rejects(fetch(world.url), 'nobody listens any more')
})

t.test('a connection whose answer was under way when the end began is not waited for afterwards', async t => {
  const world = await startEdge(t)
  const body = randomBytes(20_000_000)
  world.add('raw/large', body)
  const reader = await slowReader(world, 'raw/large')
  const startedAt = performance.now()
  const closed = world.server.close(20_000)
  t.ok((await reader.body()).equals(body))
  await closed
  t.ok(performance.now() - startedAt < 5_000, 'the kept connection ends with its answer')
})

t.test('I39: answers that are made, and wait for a slow reader, are sent to their end', async t => {
  const world = await startEdge(t)
  const body = randomBytes(1_000_000)
  world.add('raw/1m', body)
  const connection = await RawConnection.open(world.url)
  connection.socket.pause()
  // In one piece, so that node:http answers them. More than the kernel's buffers hold.
  await connection.send('GET /repository/raw/1m HTTP/1.1\r\nHost: h\r\n\r\n'.repeat(12))
  await eventually('answers arrive', () => connection.socket.bytesRead > 0)
  await sleep(200)
  t.ok(world.server.requestsInFlight > 0, 'not all of them')
  const closed = world.server.close(20_000)
  await eventually('it takes no connections', () => refuses(world.url))
  connection.socket.resume()
  await eventually('it ends', () => connection.ended)
  t.equal(
    parseAnswers(Buffer.from(connection.received, 'latin1')).filter(answer => answer.body.length === body.length)
      .length,
    12,
  )
  await closed
})

t.test('I39: a connection that is accepted gets an answer, however late it comes', async t => {
  const world = await startEdge(t)
  world.add('raw/x', 'hello')
  let over = false
  const idle = await RawConnection.open(world.url)
  const closed = world.server.close(20_000).then(() => (over = true))
  const asked: Promise<string>[] = []
  while (!over) {
    const connection = await RawConnection.open(world.url).catch(() => undefined)
    if (connection === undefined) break
    asked.push(
      // As a client does that is busy: the connection was made a while ago.
      sleep(100).then(async () => {
        await connection.send('GET /repository/raw/x HTTP/1.1\r\nHost: h\r\n\r\n')
        await eventually('it ends', () => connection.ended)
        return connection.received
      }),
    )
    await sleep(10)
  }
  await closed
  idle.close()
  const answers = await Promise.all(asked)
  t.ok(answers.length > 20)
  t.same(
    answers.filter(answer => !answer.endsWith('hello')),
    [],
    `all of ${answers.length}`,
  )
})

t.test('I39: as long as it is told to, a proxy that ends takes connections and says that it goes', async t => {
  const world = await startEdge(t, { lingerMs: 600 })
  const startedAt = performance.now()
  const closed = world.server.close(20_000)
  const statuses = new Set<number>()
  while (performance.now() - startedAt < 550) {
    statuses.add((await ask(world, '/readyz', { headers: { connection: 'close' } })).status)
    await sleep(20)
  }
  t.same([...statuses], [503])
  await closed
  t.ok(await refuses(world.url))
})

const refuses = (url: string): Promise<boolean> =>
  fetch(url).then(
    () => false,
    () => true,
  )

t.test('connections without a request, or with half a one, do not hold the end up', async t => {
  const world = await startEdge(t)
  const silent = await RawConnection.open(world.url)
  const half = await RawConnection.open(world.url)
  await half.send('GET /healthz HTTP/1.1\r\nHo')
  const startedAt = performance.now()
  await world.server.close(20_000)
  t.ok(performance.now() - startedAt < 5_000)
  silent.close()
  half.close()
})

t.test('a client that does not read its answer is cut off at the end of the time for draining', async t => {
  const world = await startEdge(t)
  world.add('raw/large', randomBytes(20_000_000))
  const reader = await slowReader(world, 'raw/large')
  await world.server.close(200)
  await eventually('it is forgotten', () => world.server.requestsInFlight === 0)
  reader.socket.destroy()
})

t.test('a connection on which nothing moves is closed', async t => {
  const world = await startEdge(t, { idleMs: 1_000 })
  const connection = await RawConnection.open(world.url)
  await connection.send(`PUT /repository/raw/x HTTP/1.1\r\nHost: h\r\n${rawAuth}Content-Length: 10\r\n\r\n01`)
  await eventually('it is closed', () => connection.ended || connection.socket.readableEnded, { withinMs: 5_000 })
  await eventually('and forgotten', () => world.server.requestsInFlight === 0)
  connection.close()
})

t.test('metrics tell requests, and bytes in both directions', async t => {
  const world = await startEdge(t)
  await ask(world, '/repository/raw/x', { method: 'PUT', headers: auth, body: 'x'.repeat(1_000) })
  for (let turn = 0; turn < 3; turn++) await ask(world, '/repository/raw/x')
  await ask(world, '/repository/raw/x', { headers: { range: 'bytes=0-9' } })
  await ask(world, '/repository/raw/x', { method: 'HEAD' })
  await ask(world, '/repository/raw/none')
  const { body, headers } = await ask(world, '/metrics')
  t.match(headers.get('content-type'), /version=0.0.4/)
  const value = (line: string): number => Number(new RegExp(`^${line} (.*)$`, 'm').exec(body.toString())?.[1] ?? NaN)
  t.equal(value('holdfast_received_bytes_total'), 1_000)
  t.ok(value('holdfast_sent_bytes_total') >= 3_010)
  t.equal(value('holdfast_request_seconds_count{route="get",outcome="ok"}'), 4)
  t.equal(value('holdfast_request_seconds_count{route="get",outcome="client-error"}'), 1)
  t.equal(value('holdfast_request_seconds_count{route="head",outcome="ok"}'), 1)
  t.equal(value('holdfast_request_seconds_count{route="put",outcome="ok"}'), 1)
})

t.test('content that a browser would run is served so that it cannot', async t => {
  const world = await startEdge(t)
  const types = ['text/html', 'image/svg+xml', 'application/rss+xml', 'application/xml;charset=utf-8', 'TEXT/XML', 'multipart/x-mixed-replace;boundary=x'] // prettier-ignore
  for (const contentType of types) {
    world.add('raw/page', '<script>1</script>', { contentType })
    const { headers } = await ask(world, '/repository/raw/page')
    t.equal(headers.get('content-disposition'), 'attachment', contentType)
    t.equal(headers.get('content-security-policy'), 'sandbox')
    t.equal(headers.get('x-content-type-options'), 'nosniff')
  }
  world.add('raw/plain', 'x', { contentType: 'text/plain' })
  t.equal((await ask(world, '/repository/raw/plain')).headers.get('content-disposition'), null)
  const bad = await ask(world, '/repository/raw/x', {
    method: 'PUT',
    headers: { ...auth, 'content-type': 'text/html ; evil' },
    body: 'x',
  })
  t.equal(bad.status, 201)
  t.equal((await ask(world, '/repository/raw/x')).headers.get('content-type'), 'application/octet-stream')
})

t.test('a listing shows names as text, and links to the next page', async t => {
  const world = await startEdge(t)
  world.folder = {
    entries: [
      { name: '<b>"&\'', kind: 'folder' },
      {
        name: 'ü x?#%.txt',
        kind: 'artifact',
        bytes: 12_345,
        updatedAt: 0,
        digest: world.add('raw/x', 'x').blob.digest,
      },
    ],
    next: 'ü x?#%.txt',
  }
  const page = (await ask(world, '/repository/raw/some/', { headers: { accept: 'text/html' } })).body.toString()
  t.notMatch(page, /<b>/)
  t.match(page, '&lt;b&gt;&quot;&amp;&#39;/')
  t.match(page, 'href="./%C3%BC%20x%3F%23%25.txt"')
  t.match(page, 'href="?after=%C3%BC%20x%3F%23%25.txt"')
  const answer = await ask(world, '/repository/raw/some/', { headers: { accept: 'application/json' } })
  t.match(json(answer.body), { repository: 'raw', path: 'some/', next: 'ü x?#%.txt' })
  t.equal(answer.headers.get('vary'), 'accept')
  world.folder = { entries: [] }
  t.equal((await ask(world, '/repository/raw/some/')).status, 404)
  t.equal((await ask(world, '/repository/raw/')).status, 200, 'an empty repository is there')
  t.equal((await ask(world, '/repository/raw/some/', { method: 'HEAD' })).body.length, 0)
})

t.test('I7: while nobody who knows can be asked, nothing is said to be absent', async t => {
  const world = await startEdge(t)
  world.add('raw/known', 'hello')
  await ask(world, '/repository/raw/known')
  world.leased = false
  world.metadataFault = new HoldfastError('METADATA_UNAVAILABLE', 'away')
  const asJson = { headers: { accept: 'application/json' } }
  const unknown = await ask(world, '/repository/raw/none')
  t.equal(unknown.status, 503)
  t.equal((await ask(world, '/repository/raw/', asJson)).status, 503)
  t.equal((await ask(world, '/repository/once/', asJson)).status, 401, 'who may not read does not learn even that')
  t.ok(Number(unknown.headers.get('retry-after')) > 0)
  const kept = await ask(world, '/repository/raw/known')
  t.equal(kept.status, 200)
  t.equal(kept.headers.get('holdfast-metadata'), 'cache')
  world.shardsAnswer = true
  t.equal((await ask(world, '/repository/raw/known.sha1')).headers.get('holdfast-metadata'), 'shards')
  t.equal((await ask(world, '/repository/raw/known')).headers.get('holdfast-metadata'), 'shards')
  t.equal((await ask(world, '/repository/raw/none')).status, 404, 'the shards know')
  const listing = await ask(world, '/repository/raw/', asJson)
  t.match(json(listing.body), { repository: 'raw', path: '', entries: [{ name: 'known', kind: 'artifact', bytes: 5 }] })
  t.equal(listing.headers.get('holdfast-metadata'), 'shards')
  t.equal((await ask(world, '/repository/raw/some/', asJson)).status, 404, 'the shards know')
  t.equal((await ask(world, '/repository/once/', asJson)).status, 401)
  const put = await ask(world, '/repository/raw/x', { method: 'PUT', headers: auth, body: 'x' })
  t.equal(put.status, 503)
  world.metadataFault = undefined
  world.shardsAnswer = false
  await eventually('it is back', async () => (await ask(world, '/repository/raw/none')).status === 404)
  t.equal((await ask(world, '/repository/raw/known')).headers.get('holdfast-metadata'), null)
  t.same(world.errors, [])
})

t.test('no replica: 503 before the first byte, a cut connection after it', async t => {
  const world = await startEdge(t)
  const body = randomBytes(3_000_000)
  world.add('raw/large', body)
  world.store.fault = new HoldfastError('REPLICAS_UNREACHABLE', 'none')
  t.equal((await ask(world, '/repository/raw/large')).status, 503)
  world.store.fault = undefined
  world.store.cutAfter = 1_000_000
  await t.rejects(ask(world, '/repository/raw/large'))
  await t.rejects(ask(world, '/repository/raw/large', { headers: { range: 'bytes=0-9,1000-2000000' } }))
  await eventually('nothing is left', () => world.server.requestsInFlight === 0)
})

t.test('what depends on Accept says so, and what is not there now is kept by no cache', async t => {
  const world = await startEdge(t)
  world.add('raw/site/index.html', 'hello')
  const index = await ask(world, '/repository/raw/site/')
  t.match([index.status, index.body.toString(), index.headers.get('vary')], [200, 'hello', 'accept'])
  const unchanged = { 'if-none-match': index.headers.get('etag') ?? '' }
  t.equal((await ask(world, '/repository/raw/site/', { headers: unchanged })).headers.get('vary'), 'accept', '304')
  world.folder = { entries: [{ name: 'index.html', kind: 'artifact' }] } as unknown as EdgeWorld['folder']
  const redirect = await ask(world, '/repository/raw/site', { headers: { accept: 'text/html' } })
  t.equal(redirect.status, 301)
  t.equal(redirect.headers.get('vary'), 'accept')
  t.equal(redirect.headers.get('cache-control'), 'no-cache')
  const none = await ask(world, '/repository/raw/none')
  t.equal(none.status, 404)
  t.equal(none.headers.get('cache-control'), 'no-store')
})

t.test('a write passes over no condition', async t => {
  const world = await startEdge(t)
  const { blob } = world.add('raw/f/a', 'hello')
  const change = async (method: string, path: string, headers: Record<string, string>): Promise<number> =>
    (await ask(world, path, { method, headers: { ...auth, ...headers }, ...(method === 'PUT' && { body: 'x' }) }))
      .status
  const past = 'Sun, 06 Nov 1994 08:49:37 GMT'
  t.equal(await change('PUT', '/repository/raw/f/a', { 'if-unmodified-since': past }), 400)
  t.equal(await change('DELETE', '/repository/raw/f/a', { 'if-unmodified-since': past }), 400)
  t.equal(await change('DELETE', '/repository/raw/f/a', { 'if-none-match': '*' }), 400)
  t.equal(await change('DELETE', '/repository/raw/f/?recursive=true', { 'if-match': '"x"' }), 400)
  t.ok(world.artifacts.get('raw/f/a'))
  const match = { 'if-match': `"${blob.digest}"`, 'if-unmodified-since': past }
  t.equal(await change('DELETE', '/repository/raw/f/a', match), 204, 'beside If-Match a date does not count')
})

t.test('a flood of refused writes is not a flood of audit entries', async t => {
  const world = await startEdge(t)
  const startedAt = performance.now()
  for (let turn = 0; turn < 200; turn += 50) {
    const batch = Array.from({ length: 50 }, () => ask(world, '/repository/raw/x', { method: 'DELETE' }))
    for (const { status } of await Promise.all(batch)) t.equal(status, 401)
  }
  const most = 101 + (performance.now() - startedAt) / 100
  t.ok(world.audits.length >= 100 && world.audits.length < most, `${world.audits.length} are written down`)
})

t.test('metrics that are asked for in a loop are made once at a time', async t => {
  const waiting: ((text: string) => void)[] = []
  const world = await startEdge(t, { metricsText: () => new Promise(resolve => waiting.push(resolve)) })
  const asked = Array.from({ length: 20 }, () => ask(world, '/metrics'))
  await eventually('all have asked', () => world.server.requestsInFlight === 20)
  t.equal(waiting.length, 1)
  waiting.pop()?.('one 1\n')
  for (const { body } of await Promise.all(asked)) t.equal(body.toString(), 'one 1\n')
  const later = ask(world, '/metrics')
  await eventually('it is made anew', () => waiting.length === 1)
  waiting.pop()?.('one 2\n')
  t.equal((await later).body.toString(), 'one 2\n')
})

t.test('the address that is told can be asked, whatever it listens on', async t => {
  for (const [host, told] of [
    ['0.0.0.0', 'http://127.0.0.1:'],
    ['127.0.0.1', 'http://127.0.0.1:'],
    ['::', 'http://[::1]:'],
    ['::1', 'http://[::1]:'],
  ] as const) {
    const hasIt = Object.values(networkInterfaces()).some(all => all?.some(one => one.address === '::1'))
    if (host.includes(':') && !hasIt) continue
    const { server } = await startEdge(t, { host })
    t.equal(server.url, `${told}${server.port}`)
    t.equal((await fetch(`${server.url}/healthz`)).status, 200)
  }
})

t.test('behind a balancer limits and audit go by the address of the client', async t => {
  const world = await startEdge(t, { trustProxy: ['127.0.0.0/8'] })
  const forwarded = (address: string): Record<string, string> => ({ 'x-forwarded-for': `9.9.9.9, ${address}` })
  await ask(world, '/repository/raw/x', { method: 'PUT', headers: forwarded('198.51.100.1'), body: 'x' })
  t.match(world.audits, [{ address: '198.51.100.1', action: 'write', outcome: 'unauthorized' }])
  const wrong = 'Basic ' + Buffer.from('admin:guess').toString('base64')
  const guess = async (address: string): Promise<number> =>
    (await ask(world, '/repository/once/x', { headers: { ...forwarded(address), authorization: wrong } })).status
  let last = 0
  for (let turn = 0; turn < 15 && last !== 429; turn++) last = await guess('198.51.100.1')
  t.equal(last, 429, 'one address is slowed down')
  t.equal(await guess('198.51.100.2'), 401, 'another one is not')
})
