/**
 * The fast lane against node:http: both must understand every byte stream alike, and where the lane hands a connection over, nothing may
 * be lost, doubled or reordered.
 */
import fc from 'fast-check'
import { hash, randomBytes } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { createServer, Server, type IncomingMessage } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import t, { type Test } from 'tap'
import { Repositories } from '../../../proxy/artifacts/repositories.ts'
import { ArtifactRoutes } from '../../../proxy/http/artifact-routes.ts'
import type { Artifact } from '../../../proxy/metadata/types.ts'
import { FastLane, type LaneAnswer, type LaneDeps, type LaneRequest } from '../../../proxy/http/fast-lane.ts'
import { eventually } from '../../support/eventually.ts'
import { parseAnswers, RawConnection, type RawAnswer } from '../../support/raw-http.ts'
import { credentials, startEdge, type EdgeWorld } from './fake-edge.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 2 ** 31)
/** Byte streams that are compared. More of them: HOLDFAST_TEST_RUNS. */
const numRuns = Number(process.env['HOLDFAST_TEST_RUNS'] ?? 400)
t.comment(`seed ${seed}`)
t.setTimeout(numRuns > 400 ? 900_000 : 90_000) // a busy machine
/** On a busy machine a property is tried less often: what it tries from then on passes by itself. */
function timeLimit(ms = numRuns > 400 ? 600_000 : 8_000): () => boolean {
  const end = performance.now() + ms
  return () => performance.now() > end
}

const auth = `Authorization: ${credentials}\r\n`
const get = (target: string, headers = ''): string => `GET ${target} HTTP/1.1\r\nHost: h\r\n${headers}\r\n`
const getX = get('/repository/raw/x')

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise(resolve => setImmediate(resolve))
}

const over = ({ socket, ended }: RawConnection): boolean => ended || socket.readableEnded

/** The complete ones. */
const answersOf = (connection: RawConnection): RawAnswer[] =>
  parseAnswers(Buffer.from(connection.received, 'latin1')).filter(
    ({ head, body }) => body.length === Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0),
  )

async function answerCount(connection: RawConnection, count: number): Promise<RawAnswer[]> {
  await eventually(`${count} answers`, () => answersOf(connection).length >= count || over(connection), { everyMs: 2 })
  return answersOf(connection)
}

/** What the lane of any server in this process answered. */
const answeredByLane = { memory: 0, replicas: 0 }
const { fromMemory, fromReplicas } = ArtifactRoutes.prototype // eslint-disable-line @typescript-eslint/unbound-method -- called with `this`
ArtifactRoutes.prototype.fromMemory = function (...args) {
  const answer = fromMemory.apply(this, args)
  if (answer !== undefined) answeredByLane.memory++
  return answer
}
ArtifactRoutes.prototype.fromReplicas = async function (...args) {
  const answer = await fromReplicas.apply(this, args)
  if (answer !== undefined) answeredByLane.replicas++
  return answer
}

/** The same server, but node:http has all connections from their beginning. */
const startEdgeWithoutLane = (t: Test): Promise<EdgeWorld> => startEdge(t, { fastLane: 'off' })

const updatedAt = Date.UTC(2026, 0, 1)

const furniture = new Map<string, Buffer>([
  ['raw/x', Buffer.from('hello')],
  ['raw/a b', Buffer.from('blank')],
  ['raw/empty', Buffer.alloc(0)],
  ['raw/page.html', Buffer.from('<p>')],
  ['raw/40k', Buffer.alloc(40_000, 'k')],
  ['raw/large', Buffer.alloc(1_100_000, 'l')],
  ['once/x', Buffer.from('secret')],
])
const furnished = new WeakMap<EdgeWorld, ReadonlyMap<string, Artifact>>()

/** The same artifacts in every world, also after requests that changed them; unchanged ones stay in memory. */
function furnish(world: EdgeWorld): void {
  const before = furnished.get(world)
  for (const key of world.artifacts.keys()) if (!furniture.has(key)) world.artifacts.delete(key)
  for (const [key, body] of furniture) {
    if (before === undefined || world.artifacts.get(key) !== before.get(key)) {
      world.add(key, body, { updatedAt, createdAt: updatedAt })
    }
  }
  world.add('raw/x', 'hello', { updatedAt, createdAt: updatedAt })
  furnished.set(world, new Map(world.artifacts))
}

// ---- the differential property ----

/** Until nothing moves any more. Everything runs in this process and waits for no timer, so turns of its loop tell. */
async function quiet(connection: RawConnection, world: EdgeWorld): Promise<void> {
  let length = -1
  for (let still = 0; still < 60; still++) {
    if (connection.received.length !== length) still = 0
    length = connection.received.length
    // An upload that waits for its body stays in flight.
    if (still >= 6 && (world.server.requestsInFlight === 0 || over(connection))) return
    await turns(1)
  }
}

/** Clients, by their port, in whose bytes node:http found rubbish. */
const broken = new Set<number | undefined>()
const emit = EventEmitter.prototype.emit // eslint-disable-line @typescript-eslint/unbound-method -- called with `this`
Server.prototype.emit = function (event: string, ...args: unknown[]) {
  if (event === 'clientError') broken.add((args[1] as Socket).remotePort)
  return emit.call(this, event, ...args)
}

interface Transcript {
  readonly answers: readonly string[]
  readonly closed: boolean
  readonly broken: boolean
}

async function converse(world: EdgeWorld, pieces: readonly string[]): Promise<Transcript> {
  const connection = await RawConnection.open(world.url)
  const port = connection.socket.localPort
  // Of an earlier client on the same port: one that is cut off in the middle of a request is found broken by its end, too.
  broken.delete(port)
  for (const piece of pieces) {
    await connection.send(piece)
    await quiet(connection, world)
  }
  const closed = over(connection)
  const isBroken = broken.delete(port)
  connection.socket.end()
  await eventually('the connection ends', () => over(connection), { everyMs: 1 })
  connection.close()
  const answers = (connection.received.match(/HTTP\/1\.1 \d{3} .*?(?=HTTP\/1\.1 \d{3} |$)/gs) ?? []).map(
    withoutVariables,
  )
  return { answers, closed, broken: isBroken }
}

/**
 * When rubbish follows in the same piece as a request whose answer is being prepared, node:http itself gives that answer or not: what it
 * reads from the stream is parsed in one turn, what it reads from the handle is not.
 */
function alike(one: Transcript, other: Transcript): boolean {
  if (!one.broken || !other.broken) return JSON.stringify(one) === JSON.stringify(other)
  const [shorter = [], longer = []] = [one, other]
    .map(({ answers }) => answers.filter((text, index) => index < answers.length - 1 || !/^.* (?:400|431) /.test(text)))
    .sort((a, b) => a.length - b.length)
  return one.closed && other.closed && shorter.every((answer, index) => answer === longer[index])
}

function withoutVariables(answer: string): string {
  const text = answer.replace(/^(?:date|x-request-id|keep-alive): .*\r\n/gim, '')
  if (!text.includes('"requestId":')) return text
  // Ids grow, and the length with them.
  return text.replace(/"requestId":"[^"]*"/, '').replace(/^content-length: .*\r\n/im, '')
}

const sometimes = <Value>(usual: Value, ...rare: Value[]): fc.Arbitrary<Value> =>
  fc.oneof({ weight: 40, arbitrary: fc.constant(usual) }, { weight: 1, arbitrary: fc.constantFrom(...rare) })

const targets = [
  '/repository/raw/x',
  '/repository/raw/40k',
  '/repository/raw/a%20b',
  '/repository/raw/x?q=1&r=/../',
  '/repository/once/x',
  '/repository/raw/none',
  '/repository/raw/empty',
  '/repository/raw/page.html',
  '/repository/raw/large',
  '/repository/raw/',
  '/repository/raw',
  '/repository/none/x',
  '/repository/raw/x.sha1',
  '/repository/raw/../raw/x',
  '/repository/raw//x',
  '/repository/raw/a b',
  '/repository/raw/x#f',
  '/repository/raw/x\t',
  '/repository/raw/\xfc',
  '/repository/raw/x"',
  '/repository/raw/x?a\nb',
  '/repository/raw/x? HTTP/1.1\nHost: h\n\nGET /repository/raw/none',
  'http://h/repository/raw/x',
  '//repository/raw/x',
  '/healthz',
  '*',
  '/repository/raw/' + 'y'.repeat(3_900),
  '/repository/raw/' + 'y'.repeat(9_000),
]

const etagOf = (body: string): string => `"${hash('sha256', body)}"`
const harmlessLines = ['Accept: */*', 'User-Agent: curl/8', 'accept-encoding: gzip', 'VIA:1.1 b', 'X-Real-IP: \t 1.2.3.4 \t', 'Accept: text/html', 'Connection: keep-alive', 'Connection:KEEP-ALIVE', 'Authorization: ' + credentials, 'If-None-Match: ' + etagOf('hello'), 'X-Forwarded-For: 10.0.0.1'] // prettier-ignore
const otherLines = ['Range: bytes=0-1', 'If-Range: "x"', 'If-Match: "x"', 'If-None-Match: *', 'If-None-Match:', `If-None-Match: ${etagOf('hello')}\xa0`, `If-None-Match: W/${etagOf('hello')}, "y"`, 'If-Modified-Since: Sat, 01 Jan 2028 00:00:00 GMT', 'Content-Length: 0', 'Content-Length: 5', 'Content-Length: 5, 5', 'Content-Length: +5', 'Content-Length : 5', 'Transfer-Encoding: chunked', 'Transfer-Encoding: identity', 'Transfer-Encoding : chunked', 'Transfer-Encoding: xchunked', 'transfer-encoding:\tchunked', 'Expect: 100-continue', 'Expect: wonders', 'Connection: close', 'Connection: keep-alive, close', 'Connection: Upgrade', 'Upgrade: websocket', 'Host: other', 'Host:', ' folded: line', '\tfolded', 'no colon', ': no name', 'Accept : blank', 'Acc\xe9pt: x', 'Accept: \xe9', 'Accept: \x00', 'Accept: a\rb', 'Accept: a\nContent-Length: 5', 'Accept: a\r\r', 'Authorization: Basic !', 'Authorization:', `Authorization: ${credentials}\xa0`, 'Authorization: Bearer x', 'X-Request-Id: mine', 'Cookie: a=b', 'TE: trailers', 'Trailer: x', 'Proxy-Connection: close', 'Keep-Alive: timeout=1', 'X-HTTP-Method-Override: DELETE', 'User-Agent: ' + 'u'.repeat(3_000), 'User-Agent: ' + 'u'.repeat(20_000)] // prettier-ignore

const headerLine = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(...harmlessLines) },
  { weight: 1, arbitrary: fc.constantFrom(...otherLines) },
)
const request = fc
  .record({
    lead: sometimes('', '\r\n', '\n', ' ', '\0'),
    method: sometimes('GET', 'get', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'CONNECT', 'GETX', 'PRI'),
    blank: sometimes(' ', '  ', '\t', ''),
    target: fc.oneof(
      { weight: 3, arbitrary: fc.constantFrom(...targets.slice(0, 5)) },
      { weight: 1, arbitrary: fc.constantFrom(...targets) },
    ),
    version: sometimes(' HTTP/1.1', ' HTTP/1.0', ' HTTP/1.1 ', ' http/1.1', ' HTTP/2.0', ' HTTP/1.2', '', '  HTTP/1.1'),
    host: sometimes('Host: h', 'host:h', 'HOST: h:80', 'Host:  ', 'X: y'),
    lines: fc.array(headerLine, { maxLength: 4 }),
    hostLast: fc.boolean(),
    lineEnd: sometimes('\r\n', '\n', '\r', '\r\r\n', '\n\r'),
    headEnd: sometimes('\r\n', '\n', '', '\r'),
    tail: sometimes('', 'hello', '5\r\nhello\r\n0\r\n\r\n', '\r\n', 'GET ', '\0'),
  })
  .map(({ lead, method, blank, target, version, host, lines, hostLast, lineEnd, headEnd, tail }) => {
    const all = hostLast ? [...lines, host] : [host, ...lines]
    const head = [method + blank + target + version, ...all].map(line => line + lineEnd).join('')
    return lead + head + headEnd + tail
  })
const defect = fc.record({
  at: fc.nat(400),
  kind: fc.constantFrom('insert', 'replace', 'delete', 'double'),
  char: fc.constantFrom(...'\r\n\0\t :;,\x0b\x7f\x85\xa0\xffGa%?#/'),
})
const mutated = fc
  .tuple(request, fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, fc.array(defect, { minLength: 1, maxLength: 2 })))
  .map(([text, defects]) => {
    for (const { at, kind, char } of defects) {
      const place = at % text.length
      const [before, here, after] = [text.slice(0, place), text[place] ?? '', text.slice(place + 1)]
      const changed = { insert: char + here, replace: char, delete: '', double: here + here }
      text = before + changed[kind] + after
    }
    return text
  })
const stream = fc
  .record({
    /** Plain requests first: the lane has begun before anything else comes. */
    plain: fc.constantFrom(0, 1, 1, 2),
    requests: fc.array(mutated, { minLength: 1, maxLength: 4 }),
    split: fc.constantFrom('requests', 'requests', 'requests', 'none', 'bytes', 'cuts'),
    cuts: fc.array(fc.nat(1_000), { maxLength: 4 }),
  })
  .map(({ plain, requests, split, cuts }) => [...Array<string>(plain).fill(getX), ...cutUp(requests, split, cuts)])

function cutUp(requests: string[], split: string, cuts: number[]): string[] {
  const all = requests.join('')
  if (split === 'requests') return requests.filter(text => text !== '')
  if (split === 'none') return [all]
  if (split === 'bytes' && all.length < 800) return [...all]
  const places = [...new Set([0, ...cuts.map(cut => cut % all.length), all.length])].sort((a, b) => a - b)
  return places.slice(1).map((place, index) => all.slice(places[index], place))
}

t.test('whatever a client sends, the lane and node:http answer the same and keep or close alike', async t => {
  const withLane = await startEdge(t)
  const without = await startEdgeWithoutLane(t)
  furnish(without)
  await converse(without, [getX, getX])
  t.same(answeredByLane, { memory: 0, replicas: 0 }, 'the server without a lane has none')
  let runs = 0
  const late = timeLimit()
  const property = fc.asyncProperty(stream, async pieces => {
    if (late()) return
    runs++
    for (const world of [withLane, without]) furnish(world)
    const [ours, nodes] = await Promise.all([converse(withLane, pieces), converse(without, pieces)])
    if (alike(ours, nodes)) return
    t.strictSame(ours, nodes, JSON.stringify(pieces).slice(0, 2_000))
    throw new Error('they differ')
  })
  await fc.assert(property, { seed, numRuns, endOnFailure: true })
  t.comment(
    `${runs} streams, answered by the lane: ${answeredByLane.memory} from memory, ${answeredByLane.replicas} from replicas`,
  )
  t.ok(Math.min(answeredByLane.memory, answeredByLane.replicas) > runs / 20, 'the lane took part')
  t.equal(withLane.errors.length, without.errors.length)
})

t.test('the head of an answer is that of node:http, header for header', async t => {
  const withLane = await startEdge(t)
  const without = await startEdgeWithoutLane(t)
  for (const world of [withLane, without]) {
    furnish(world)
    world.add('raw/typed', 'x', { contentType: 'text/plain; charset=utf-8', updatedAt })
  }
  const heads = async (world: EdgeWorld, text: string): Promise<string[]> => {
    const connection = await RawConnection.open(world.url)
    for (let turn = 1; turn <= 3; turn++) {
      await connection.send(text)
      await answerCount(connection, turn)
    }
    connection.close()
    return answersOf(connection).map(({ head, body }) => {
      t.match(head, /\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n/)
      t.match(head, /\r\nX-Request-Id: [\w-]{8,}\r\n/)
      return head.replace(/(Date|X-Request-Id): [^\r]*/g, '$1') + hash('sha256', body, 'hex')
    })
  }
  for (const path of ['raw/x', 'raw/empty', 'raw/page.html', 'raw/40k', 'raw/typed', 'raw/a%20b', 'once/x']) {
    for (const condition of ['', 'If-None-Match: *\r\n', `If-None-Match: ${etagOf('hello')}\r\n`]) {
      const text = get(`/repository/${path}`, auth + condition)
      const before = answeredByLane.memory + answeredByLane.replicas
      const ours = await heads(withLane, text)
      t.equal(answeredByLane.memory + answeredByLane.replicas, before + 3, 'the lane answered')
      t.same(ours, await heads(without, text), path)
      t.match(ours[0], /Connection: keep-alive\r\nKeep-Alive: timeout=75/)
    }
  }
})

// ---- the lane alone, on a server that tells what it read ----

interface LaneWorld {
  readonly lane: FastLane
  readonly url: string
  readonly sockets: Socket[]
  /** Targets the lane was asked for. */
  readonly asked: string[]
  /** What node:http took for a request: method, target, length of the body, its hash. */
  readonly read: string[]
}

const laneAnswer = (body: string | Buffer): LaneAnswer => ({
  status: 200,
  head: `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n`,
  body: Buffer.from(body),
})

async function startLane(t: Test, deps: Partial<LaneDeps> = {}): Promise<LaneWorld> {
  const sockets: Socket[] = []
  const asked: string[] = []
  const read: string[] = []
  const server = createServer((request, response) => {
    describe(request).then(
      text => {
        read.push(text)
        response.end(text)
      },
      () => {}, // the client has gone
    )
  })
  const answer = deps.answer ?? (({ target }: LaneRequest) => laneAnswer(`lane ${target}`))
  const lane = new FastLane(server, {
    answerLater: async () => undefined,
    open: () => true,
    idleMs: 60_000,
    ...deps,
    answer: (request, socket) => {
      asked.push(request.target)
      return answer(request, socket)
    },
  })
  server.on('connection', (socket: Socket) => sockets.push(socket))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    lane.destroy()
    server.closeAllConnections()
    server.close()
  })
  return { lane, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, sockets, asked, read }
}

async function describe(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  const body = Buffer.concat(chunks)
  return `node ${request.method} ${request.url} ${body.length} ${hash('sha256', body)}`
}

t.test('only a request that can be read in one way stays in the lane', async t => {
  const world = await startLane(t)
  const taken = async (text: string): Promise<string[]> => {
    const before = world.asked.length
    const connection = await RawConnection.open(world.url)
    await connection.send(Buffer.from(text, 'latin1'))
    await turns(8)
    connection.close()
    return world.asked.slice(before)
  }
  for (const text of [getX, ...harmlessLines.map(line => get('/repository/raw/x', line + '\r\n'))]) {
    t.same(await taken(text), ['/repository/raw/x'], JSON.stringify(text))
  }
  t.same(await taken(get("/repository/a/%20b~!$&'()*+,;=:@._-?q=/?")), ["/repository/a/%20b~!$&'()*+,;=:@._-?q=/?"])
  const line = '/repository/raw/x HTTP/1.1\r\n'
  const refused = [
    ...otherLines.filter(other => !/^(?:If-None-Match:|Authorization:|User-Agent: u{3000}$)/.test(other)).map(other => get('/repository/raw/x', other + '\r\n')), // prettier-ignore
    get('/repository/raw/x', `If-None-Match: "x"\r\nif-none-match: "y"\r\n`),
    get('/repository/raw/x', auth + auth),
    get('/repository/raw/x', 'X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n'),
    get('/repository/raw/x', `Authorization: ${credentials}\xa0\r\n`),
    `GET ${line}\r\n`,
    `GET ${line}Accept: x\r\n\r\n`,
    `GET ${line}Host: h\r\n`,
    `GET ${line}Host: h\r\n\r`,
    `GET ${line}Host: h\n\n`,
    `GET ${line}Host: h\r\n\n`,
    `GET ${line}Host: h\n\r\n\r\n`,
    `GET ${line}Host: h\r\r\n\r\n`,
    `GET ${line}Host: h\r\n Accept: x\r\n\r\n`,
    `GET ${line}Host: h\r\n\r\n\r\n`,
    `GET ${line}Host: h\r\n\r\nx`,
    getX + getX,
    '\r\n' + getX,
    getX.replace('GET', 'get'),
    getX.replace('GET', 'HEAD'),
    getX.replace('GET ', 'GET  '),
    getX.replace('HTTP/1.1', 'HTTP/1.0'),
    getX.replace(' HTTP/1.1', ' HTTP/1.1 '),
    getX.replace(' HTTP/1.1', ''),
    getX.replace('\r\n', '\n'),
    getX.replace('/repository', 'http://h/repository'),
    // Two requests for whoever takes a bare line feed for the end of a line.
    'GET /repository/raw/x? HTTP/1.1\nHost: a\n\nGET /repository/raw/y HTTP/1.1\r\nHost: h\r\n\r\n',
    ...[...' \t\0\n\r\x0b\x7f\x80\xa0\xff#"<>\\^`{|}'].map(char => get(`/repository/raw/x?${char}`)),
    get('/repository/raw/x', 'User-Agent: ' + 'u'.repeat(4_100) + '\r\n'),
  ]
  for (const text of refused) t.same(await taken(text), [], JSON.stringify(text).slice(0, 200))
  await eventually('all are gone', () => world.lane.size === 0)
})

t.test('at the hand-over no byte is lost, doubled or reordered', async t => {
  const world = await startLane(t, {
    answer: ({ target }) => (target.includes('wait') ? undefined : laneAnswer(`lane ${target}`)),
    answerLater: async ({ target }) => {
      await turns(Number(/wait(\d+)/.exec(target)?.[1] ?? 0))
      return target.includes('none') ? undefined : laneAnswer(`lane ${target}`)
    },
  })
  const late = timeLimit()
  const piece = fc.oneof(
    { weight: 2, arbitrary: fc.constantFrom('now', 'wait0', 'wait1', 'wait3', 'wait9', 'wait0none', 'wait4none').map(name => ({ name, body: undefined })) },
    { weight: 1, arbitrary: fc
      .record({
        size: fc.constantFrom(0, 1, 100, 5_000, 70_000, 300_000),
        chunked: fc.boolean(),
        fill: fc.constantFrom(getX, '\r\n\r\n', 'x', '0\r\n\r\n'),
      })
      .map(({ size, chunked, fill }) => ({ name: chunked ? 'chunked' : 'put', body: Buffer.alloc(size, fill) })) },
  ) // prettier-ignore
  const property = fc.asyncProperty(
    fc.array(piece, { minLength: 1, maxLength: 8 }),
    fc.array(fc.tuple(fc.nat(400_000), fc.nat(12)), { maxLength: 8 }),
    fc.constantFrom(true, true, false),
    async (pieces, cuts, byRequest) => {
      if (late()) return
      const requests = pieces.map(({ name, body }, index) => {
        const target = `/repository/${index}/${name}`
        if (body === undefined) return Buffer.from(get(target))
        const size = body.length.toString(16)
        return name === 'put'
          ? Buffer.concat([Buffer.from(`PUT ${target} HTTP/1.1\r\nHost: h\r\nContent-Length: ${body.length}\r\n\r\n`), body]) // prettier-ignore
          : Buffer.concat([Buffer.from(`PUT ${target} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n${body.length === 0 ? '' : size + '\r\n'}`), body, Buffer.from(`${body.length === 0 ? '' : '\r\n'}0\r\n\r\n`)]) // prettier-ignore
      })
      const connection = await RawConnection.open(world.url)
      const all = Buffer.concat(requests)
      let end = 0
      const places: (readonly [number, number])[] = byRequest
        ? requests.map((text, index) => [(end += text.length), cuts[index]?.[1] ?? 8])
        : cuts.map(([cut, pause]) => [cut % all.length, pause])
      places.sort(([one], [other]) => one - other)
      let sent = 0
      for (const [place, pause] of [...places, [all.length, 0] as const]) {
        if (place > sent) connection.socket.write(all.subarray(sent, place))
        sent = place
        await turns(pause)
      }
      const bodies = (await answerCount(connection, pieces.length)).map(({ body }) => body)
      connection.close()
      pieces.forEach(({ name, body }, index) => {
        const target = `/repository/${index}/${name}`
        const seen = `${body === undefined ? 'GET' : 'PUT'} ${target} ${body?.length ?? 0} ${hash('sha256', body ?? '')}`
        const right = bodies[index] === `node ${seen}` || (body === undefined && bodies[index] === `lane ${target}`)
        if (!right) throw new Error(`answer ${index} is '${bodies[index]}', not of ${seen}`)
      })
      if (bodies.length !== pieces.length) throw new Error(`${bodies.length} answers to ${pieces.length} requests`)
    },
  )
  await fc.assert(property, { seed, numRuns: 300 })
  t.comment(`${world.asked.length} in the lane, ${world.read.length} by node:http`)
  t.ok(Math.min(world.asked.length, world.read.length) > 20)
  await eventually('all are gone', () => world.lane.size === 0)
})

t.test('a connection that was handed over has the listeners of one that node:http had from the start', async t => {
  let open = false
  const world = await startLane(t, { open: () => open })
  const listenersAfter = async (texts: string[]): Promise<Record<string, number>> => {
    const connection = await RawConnection.open(world.url)
    for (const [index, text] of texts.entries()) {
      await connection.send(text)
      await answerCount(connection, index + 1)
    }
    const socket = world.sockets.at(-1) as Socket
    const counts = socket.eventNames().map(name => [String(name), socket.listenerCount(name)])
    connection.close()
    return Object.fromEntries(counts) as Record<string, number>
  }
  const head = getX.replace('GET', 'HEAD')
  const nodes = await listenersAfter([head])
  open = true
  t.same(await listenersAfter([getX, getX, head]), nodes)
  t.equal(world.asked.length, 2)
})

t.test('what comes while an answer is being prepared is answered after it', async t => {
  for (const outcome of ['answered', 'left to node:http']) {
    let open = (): void => {}
    const gate = new Promise<void>(resolve => (open = resolve))
    const world = await startLane(t, {
      answer: ({ target }) => (target.endsWith('slow') ? undefined : laneAnswer(`lane ${target}`)),
      answerLater: async ({ target }) => {
        await gate
        return outcome === 'answered' ? laneAnswer(`lane ${target}`) : undefined
      },
    })
    const connection = await RawConnection.open(world.url)
    await connection.send(get('/repository/slow'))
    await eventually('it is asked', () => world.asked.length === 1, { everyMs: 1 })
    await connection.send(get('/repository/2'))
    await turns(5)
    await connection.send('PUT /repository/3 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab')
    await turns(5)
    await connection.send('cd' + get('/repository/4'))
    await turns(5)
    t.same(answersOf(connection), [], 'nothing overtakes')
    open()
    const bodies = (await answerCount(connection, 4)).map(({ body }) => body.replace(/ \d+ \w{64}$/, ''))
    const first = outcome === 'answered' ? 'lane /repository/slow' : 'node GET /repository/slow'
    t.equal(bodies[0], first)
    t.match(bodies[1], /^(?:lane|node GET) \/repository\/2$/)
    t.same(bodies.slice(2), ['node PUT /repository/3', 'node GET /repository/4'])
    connection.close()
  }
})

t.test('a client that ends its half gets the answers to what it asked, then the end', async t => {
  let open = (): void => {}
  const gate = new Promise<void>(resolve => (open = resolve))
  const world = await startLane(t, {
    answer: ({ target }) => (target.includes('slow') ? undefined : laneAnswer(`lane ${target}`)),
    answerLater: async ({ target }) => {
      await gate
      return target.includes('none') ? undefined : laneAnswer(`lane ${target}`)
    },
  })
  const [now, slow, none, silent] = await Promise.all(
    ['now', 'slow', 'slow-none', ''].map(async name => {
      const connection = await RawConnection.open(world.url)
      connection.socket.end(name === '' ? '' : get(`/repository/${name}`))
      return connection
    }),
  )
  await eventually('two ends came', () => over(now as RawConnection) && over(silent as RawConnection))
  await eventually('the others came too', () => world.sockets.every(socket => socket.readableEnded))
  t.equal(world.lane.size, 2)
  broken.clear()
  open()
  await eventually(
    'all have gone',
    () => world.lane.size === 0 && over(slow as RawConnection) && over(none as RawConnection),
  )
  t.match(now?.received, /lane \/repository\/now$/)
  t.match(slow?.received, /Connection: close\r\n\r\nlane \/repository\/slow$/)
  t.equal(silent?.received, '')
  t.equal(none?.received, '', 'as with node:http')
  t.equal(broken.size, 0, 'which is not given what it cannot read')
})

t.test('a client that asks and does not read costs one answer beyond the buffers of the kernel', async t => {
  const body = Buffer.alloc(2 ** 20, 'm')
  const world = await startLane(t, { answer: () => laneAnswer(body) })
  const connection = await RawConnection.open(world.url)
  connection.socket.pause()
  for (let asked = 0; asked < 50; asked++) {
    await connection.send(getX)
    await turns(3)
  }
  const [socket] = world.sockets as [Socket]
  t.ok(socket.isPaused(), 'it is not read from')
  t.ok(socket.writableLength <= 1.1 * 2 ** 20, `${socket.writableLength} bytes wait`)
  const before = world.asked.length
  t.ok(before < 30, `${before} answers`)
  // A flood stays with the kernel, and with the client.
  for (let more = 0; more < 100; more++) connection.socket.write(Buffer.alloc(100_000, getX))
  await turns(200)
  t.equal(world.asked.length, before)
  t.ok(socket.readableLength < 200_000, `${socket.readableLength} bytes are unread`)
  connection.reset()
  await eventually('it is forgotten', () => world.lane.size === 0)
})

t.test('a slow reader gets everything it asked for, in order', async t => {
  const bodyOf = (target: string): Buffer => Buffer.alloc(700_000, target)
  const world = await startLane(t, { answer: ({ target }) => laneAnswer(bodyOf(target)) })
  const connection = await RawConnection.open(world.url)
  connection.socket.pause()
  for (let asked = 0; asked < 12; asked++) {
    await connection.send(get(`/repository/${asked}`))
    await turns(3)
  }
  const taken = world.asked.length
  connection.socket.resume()
  const answers = await answerCount(connection, 12)
  answers.forEach(({ body }, index) => {
    const whole = body === bodyOf(`/repository/${index}`).toString()
    t.ok(whole || (index >= taken && body.startsWith(`node GET /repository/${index} `)), `answer ${index}`)
  })
  t.equal(answers.length, 12)
  connection.close()
})

t.test('a client that leaves while its answer is being prepared is forgotten', async t => {
  const opened: (() => void)[] = []
  const world = await startLane(t, {
    answer: () => undefined,
    answerLater: async ({ target }) => {
      await new Promise<void>(resolve => opened.push(resolve))
      return target.endsWith('none') ? undefined : laneAnswer('late')
    },
  })
  for (const leave of ['reset', 'close'] as const) {
    for (const path of ['x', 'none']) {
      const connection = await RawConnection.open(world.url)
      await connection.send(get(`/repository/${path}`))
      await eventually('it is asked', () => opened.length === 1, { everyMs: 1 })
      connection[leave]()
      await eventually('the end is seen', () => world.sockets.at(-1)?.readableEnded === true || world.lane.size === 0)
      opened.pop()?.()
      await eventually('it is forgotten', () => world.lane.size === 0)
    }
  }
  t.same(world.read, [], 'node:http hears nothing of them')
  t.ok(
    world.sockets.every(socket => socket.listenerCount('resume') === 0),
    'and was never attached to them',
  )
})

t.test('a thousand connections come, ask or not, and go: none is left', async t => {
  const world = await startLane(t)
  const visits = ['', getX, getX + getX, 'GET /repo', 'rubbish\r\n\r\n', 'PUT /repository/x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc'] // prettier-ignore
  for (let batch = 0; batch < 10; batch++) {
    const connections = await Promise.all(Array.from({ length: 100 }, () => RawConnection.open(world.url)))
    await Promise.all(connections.map((connection, index) => connection.send(visits[index % visits.length] ?? '')))
    connections.forEach((connection, index) => {
      if (index % 3 === 0) connection.reset()
      else if (index % 3 === 1) connection.close()
      else connection.socket.end()
    })
    await eventually('they are over', () => connections.every(over))
    for (const connection of connections) connection.close()
  }
  await eventually('all are gone', () => world.lane.size === 0 && world.sockets.every(socket => socket.closed))
  t.equal(world.sockets.length, 1_000)
})

t.test('an idle connection is closed after the time that was told', async t => {
  const world = await startLane(t, { idleMs: 1_000 })
  const idle = await RawConnection.open(world.url)
  const used = await RawConnection.open(world.url)
  const handed = await RawConnection.open(world.url)
  const startedAt = performance.now()
  await handed.send(getX.replace('GET', 'HEAD'))
  await used.send(getX)
  await eventually('both have ended', () => over(idle) && over(used), { withinMs: 5_000 })
  t.ok(performance.now() - startedAt > 900)
  t.match(used.received, /Keep-Alive: timeout=1\r\n/)
  t.notOk(over(handed), 'the time of the lane counts in the lane only')
  t.equal(world.lane.size, 0)
  handed.close()
})

// ---- in the proxy ----

/** From now on shards answer when `open` is called. */
function holdReads(world: EdgeWorld): { reading: () => number; open: () => void } {
  let reading = 0
  let open = (): void => {}
  const gate = new Promise<void>(resolve => (open = resolve))
  const readWhole = world.store.readWhole.bind(world.store)
  world.store.readWhole = async blob => {
    reading++
    await gate
    return readWhole(blob)
  }
  return { reading: () => reading, open }
}

t.test('I39: an answer that is prepared while draining begins is delivered, the next one is the last', async t => {
  const world = await startEdge(t)
  furnish(world)
  const held = holdReads(world)
  const connection = await RawConnection.open(world.url)
  await connection.send(getX)
  await eventually('it is asked', () => held.reading() === 1, { everyMs: 1 })
  t.equal(world.server.requestsInFlight, 1)
  world.server.drain()
  held.open()
  await answerCount(connection, 1)
  await connection.send(getX)
  const [first, last] = await answerCount(connection, 2)
  t.same([first?.body, last?.body], ['hello', 'hello'])
  t.match(last?.head, /connection: close/i)
  await eventually('it ends', () => over(connection))
  connection.close()
})

t.test(
  'I39: connections between two requests do not hold up the end, those being answered get their answer',
  async t => {
    const world = await startEdge(t)
    furnish(world)
    const idle = await RawConnection.open(world.url)
    const silent = await RawConnection.open(world.url)
    await idle.send(getX)
    await answerCount(idle, 1)
    const held = holdReads(world)
    const waiting = await RawConnection.open(world.url)
    await waiting.send(get('/repository/raw/40k'))
    await eventually('it is asked', () => held.reading() === 1, { everyMs: 1 })
    const startedAt = performance.now()
    const closed = world.server.close(20_000)
    await eventually('the idle ones are ended', () => over(idle) && over(silent), { withinMs: 5_000 })
    t.notOk(over(waiting))
    held.open()
    await closed
    t.ok(performance.now() - startedAt < 5_000, 'in time')
    await eventually('the last one ends', () => over(waiting))
    t.match(waiting.received, /Connection: close\r\n\r\nk{40000}$/)
  },
)

t.test('what never gets its answer, or never reads it, is cut at the end of the time for draining', async t => {
  const world = await startEdge(t)
  furnish(world)
  world.add('raw/1m', randomBytes(1_000_000))
  const stuck = await RawConnection.open(world.url)
  stuck.socket.pause()
  for (let asked = 0; asked < 20; asked++) {
    await stuck.send(get('/repository/raw/1m'))
    await turns(4)
  }
  holdReads(world)
  const waiting = await RawConnection.open(world.url)
  await waiting.send(getX)
  await eventually('it is asked', () => world.server.requestsInFlight > 0, { everyMs: 1 })
  const startedAt = performance.now()
  await world.server.close(300)
  t.ok(performance.now() - startedAt < 3_000)
  await eventually('it is cut', () => over(waiting))
  stuck.close()
})

t.test(
  'whoever may not read is refused, also on a connection that was served, and a wrong login counts once',
  async t => {
    const world = await startEdge(t)
    furnish(world)
    const attempts: string[] = []
    const begin = world.limiter.begin.bind(world.limiter)
    world.limiter.begin = (address, user) => (attempts.push(user), begin(address, user))
    const wrong = (user: string): string =>
      `Authorization: Basic ${Buffer.from(user + ':guess').toString('base64')}\r\n`
    const statuses = async (...texts: string[]): Promise<number[]> => {
      const connection = await RawConnection.open(world.url)
      for (const [index, text] of texts.entries()) {
        await connection.send(text)
        await answerCount(connection, index + 1)
      }
      connection.close()
      return answersOf(connection).map(({ status }) => status)
    }
    const secret = (headers = ''): string => get('/repository/once/x', headers)
    t.same(await statuses(secret(auth), secret(auth), secret()), [200, 200, 401], 'a login is of one request')
    t.same(attempts.splice(0), ['admin'])
    t.same(await statuses(getX, secret(wrong('eve'))), [200, 401])
    t.same(attempts.splice(0), ['eve'], 'one attempt')
    t.same(await statuses(secret(wrong('eve')), secret(wrong('eve')), secret(auth)), [401, 401, 200])
    t.same(attempts.splice(0), ['eve', 'eve'], 'each attempt')
    t.same(await statuses(getX, get('/repository/raw/x', wrong('eve'))), [200, 401], 'also where anybody may read')
    t.same(await statuses(getX, get('/repository/none/x')), [200, 401])
    t.same(await statuses(getX, get('/repository/none/x', auth)), [200, 404])
    t.same(await statuses(getX, get('/repository/raw/none'), getX), [200, 404, 200])
    attempts.length = 0
    let guesses = 0
    for (; guesses < 20; guesses++) if ((await statuses(secret(wrong('mallory'))))[0] === 429) break
    t.equal(guesses, 10, 'as many guesses as by node:http')
  },
)

t.test('a change counts for the next request of every connection', async t => {
  const lists = new Set<Repositories>()
  const { peek } = Repositories.prototype // eslint-disable-line @typescript-eslint/unbound-method -- called with `this`
  Repositories.prototype.peek = function (name) {
    lists.add(this)
    return peek.call(this, name)
  }
  t.teardown(() => (Repositories.prototype.peek = peek))
  const world = await startEdge(t)
  furnish(world)
  const connection = await RawConnection.open(world.url)
  let count = 0
  const ask = async (text = getX): Promise<RawAnswer | undefined> => {
    await connection.send(text)
    return (await answerCount(connection, ++count)).at(-1)
  }
  for (let turn = 0; turn < 3; turn++) t.equal((await ask())?.body, 'hello')
  world.add('raw/x', 'changed')
  for (let turn = 0; turn < 3; turn++) t.equal((await ask())?.body, 'changed')
  t.equal((await ask(get('/repository/raw/x', `If-None-Match: ${etagOf('hello')}\r\n`)))?.status, 200)
  t.equal((await ask(get('/repository/raw/x', `If-None-Match: ${etagOf('changed')}\r\n`)))?.status, 304)
  const before = answeredByLane.memory + answeredByLane.replicas
  const [raw] = world.repositories
  if (raw === undefined) throw new Error('no repository')
  world.repositories[0] = { ...raw, anonymousRead: false }
  for (const list of lists) list.invalidate()
  t.equal((await ask())?.status, 401, 'nobody reads without a login from now on')
  t.equal(answeredByLane.memory + answeredByLane.replicas, before)
  connection.close()
})

t.test('rubbish behind a request whose answer is being prepared is not answered in its place', async t => {
  const world = await startEdge(t)
  furnish(world)
  for (const [what, request] of [
    ['begun in the lane', getX],
    ['handed over', get('/repository/raw/x', 'X-Request-Id: mine\r\n')],
  ] as const) {
    world.add('raw/x', what)
    const held = holdReads(world)
    const connection = await RawConnection.open(world.url)
    await connection.send(request)
    await eventually('it is asked', () => held.reading() === 1, { everyMs: 1 })
    await connection.send('rubbish\r\n\r\n')
    await turns(10)
    held.open()
    await eventually('it ends', () => over(connection))
    const statuses = answersOf(connection).map(({ status }) => status)
    t.same(statuses, [200, 400], what)
    connection.close()
  }
})

t.test('an artifact whose type cannot stand in a header is an error of one request, and splits no answer', async t => {
  const world = await startEdge(t)
  // Cut to Latin-1 this is a line feed.
  world.add('raw/bad', 'x', { contentType: 'text/plain\u010aX-Injected: 1' })
  for (let turn = 0; turn < 3; turn++) {
    const connection = await RawConnection.open(world.url)
    await connection.send(get('/repository/raw/bad'))
    const [answer] = await answerCount(connection, 1)
    t.equal(answer?.status, 500)
    t.notMatch(connection.received, /x-injected/i)
    connection.close()
  }
  t.equal(world.errors.length, 3)
})
