/** Requests that break the rules, bodies that do not come, answers that nobody takes; and how a proxy takes its leave. */
import fc from 'fast-check'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { isHost } from '../../../proxy/http/broken-requests.ts'
import { patienceAfter } from '../../../proxy/http/slow-clients.ts'
import { eventually } from '../../support/eventually.ts'
import { parseAnswers, RawConnection, sendRaw, type RawAnswer } from '../../support/raw-http.ts'
import { credentials, startEdge, type EdgeWorld } from './fake-edge.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 2 ** 31)
t.comment(`seed ${seed}`)
const auth = `Authorization: ${credentials}\r\n`
const gone = ({ socket, ended }: RawConnection): boolean => ended || socket.readableEnded

const codeOf = ({ body }: RawAnswer): unknown => (JSON.parse(body) as Record<string, unknown>)['code']

const host = 'Host: h\r\n'
const malformed: Readonly<Record<string, string>> = {
  'two Host headers': `GET /repository/raw/x HTTP/1.1\r\n${host}HOST: other\r\n\r\n`,
  'two equal Host headers': `GET /repository/raw/x HTTP/1.1\r\n${host}${host}\r\n`,
  'a second Host header behind more than node would keep': `GET /repository/raw/x HTTP/1.1\r\n${host}${'a:\r\n'.repeat(2_000)}${host}\r\n`,
  'two Host headers in HTTP/1.0': `GET /repository/raw/x HTTP/1.0\r\n${host}${host}\r\n`,
  'no Host header': 'GET /repository/raw/x HTTP/1.1\r\nAccept: */*\r\n\r\n',
  'a Host header that is none': 'GET /repository/raw/x HTTP/1.1\r\nHost: a b\r\n\r\n',
  'a Host header with a path': 'GET /repository/raw/x HTTP/1.1\r\nHost: h/x\r\n\r\n',
  'no version': `GET /repository/raw/x\r\n${host}\r\n`,
  'no version and no head': 'GET /repository/raw/x\r\n\r\n',
  'another version': `GET /repository/raw/x HTTP/2.0\r\n${host}\r\n`,
  'two blanks before the target': `GET  /repository/raw/x HTTP/1.1\r\n${host}\r\n`,
  'two blanks behind the target': `GET /repository/raw/x  HTTP/1.1\r\n${host}\r\n`,
  'another protocol': `SOURCE /repository/raw/x ICE/1.0\r\n${host}\r\n`,
  'a user in the authority': `GET http://a@h/repository/raw/x HTTP/1.1\r\n${host}\r\n`,
  'half an address in the authority': `GET http://[::1/repository/raw/x HTTP/1.1\r\n${host}\r\n`,
  'a port that is none': `GET http://h:99999/repository/raw/x HTTP/1.1\r\n${host}\r\n`,
  'no authority': `GET http:///repository/raw/x HTTP/1.1\r\n${host}\r\n`,
  'a transfer coding that nobody undoes': `PUT /repository/raw/bad HTTP/1.1\r\n${host}${auth}Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n`,
  'an upload with two Host headers': `PUT /repository/raw/bad HTTP/1.1\r\n${host}${host}${auth}Content-Length: 3\r\n\r\nabc`,
}

t.test('a malformed request is refused with 400 and its connection ends, wherever on it the request comes', async t => {
  for (const fastLane of ['on', 'off'] as const) {
    const world = await startEdge(t, { fastLane })
    world.add('raw/x', 'hello')
    const fine = `GET /repository/raw/x HTTP/1.1\r\n${host}\r\n`
    const upload = `PUT /repository/raw/y HTTP/1.1\r\n${host}${auth}Content-Length: 5\r\n\r\nhello`
    for (const [what, text] of Object.entries(malformed)) {
      for (const [where, before, count] of [
        ['first', '', 0],
        ['after one of the fast lane', fine, 1],
        ['after one of node:http', upload, 1],
      ] as const) {
        for (const together of [true, false]) {
          if (before === '' && together) continue
          const connection = await RawConnection.open(world.url)
          if (together) await connection.send(before + text + (text.includes('HTTP/1.1') ? fine : ''))
          else {
            if (before !== '') {
              await connection.send(before)
              await eventually('it is answered', () => /\r\n\r\n(?:hello)?$/.test(connection.received))
            }
            await connection.send(text)
          }
          await eventually('the connection ends', () => gone(connection))
          const answers = parseAnswers(Buffer.from(connection.received, 'latin1'))
          const name = `${what}, ${where}, ${together ? 'together' : 'apart'}, lane ${fastLane}`
          if (answers.length !== count + 1 || answers.at(-1)?.status !== 400) t.fail(`${name}: ${connection.received}`)
          t.equal(codeOf(answers.at(-1)!), 'BAD_REQUEST', name)
          connection.close()
        }
      }
    }
    t.notOk(world.artifacts.has('raw/bad'), 'nothing of it was done')
    await eventually('all are over', () => world.server.requestsInFlight === 0)
    t.same(world.errors, [])
  }
})

t.test('what stands behind a refused request on its connection is not done', async t => {
  const world = await startEdge(t)
  const remove = `DELETE /repository/raw/x HTTP/1.1\r\n${host}${auth}\r\n`
  for (const text of [`GET  /repository/raw/x HTTP/1.1\r\n${host}\r\n`, `GET /healthz HTTP/1.1\r\n\r\n`]) {
    world.add('raw/x', 'hello')
    t.same((await sendRaw(world.url, text + remove)).map(({ status }) => status), [400]) // prettier-ignore
    t.ok(world.artifacts.has('raw/x'))
  }
  // In a body everything may stand: what looks like the next request there is no excuse for the one behind it.
  const decoy = `DELETE /repository/raw/x HTTP/1.1\r\n`
  const bad = `DELETE  /repository/raw/x HTTP/1.1\r\n${host}${auth}\r\n`
  const put = `PUT /repository/raw/y HTTP/1.1\r\n${host}${auth}`
  const answers = await sendRaw(world.url, `${put}Content-Length: ${decoy.length}\r\n\r\n${decoy}${bad}`)
  t.same(answers.map(({ status }) => status), [201, 400]) // prettier-ignore
  const chunks = `${put}Transfer-Encoding: chunked\r\n\r\n${decoy.length.toString(16)}\r\n${decoy}\r\n0\r\n\r\n${bad}`
  t.equal((await sendRaw(world.url, chunks)).at(-1)?.status, 400)
  t.ok(world.artifacts.has('raw/x'))
})

t.test('well-formed requests are understood however their bytes are cut', async t => {
  const world = await startEdge(t)
  world.add('raw/x', 'hello')
  const requests = [
    [`HEAD /repository/raw/x HTTP/1.1\r\n${host}\r\n`, 200],
    [`GET http://h:8080/repository/raw/x HTTP/1.1\r\n${host}Range: bytes=0-1\r\n\r\n`, 206],
    [`\r\n\r\nGET /repository/raw/none HTTP/1.1\r\nhost: [::1]:80\r\n\r\n`, 404],
    [`PUT /repository/raw/y HTTP/1.1\r\n${host}${auth}Content-Length: 9\r\n\r\n\r\n\r\nGET  `, 0],
    [`PUT /repository/raw/y HTTP/1.1\r\n${host}${auth}Content-Length: 0\r\n\r\n`, 0],
    [`OPTIONS * HTTP/1.1\r\n${host}\r\n`, 400],
    [`PUT /repository/raw/z HTTP/1.1\r\n${host}${auth}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n`, 0],
    [`PUT /repository/raw/z HTTP/1.1\r\n${host}${auth}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\na: b\r\n\r\n`, 0], // prettier-ignore
  ] as const
  const end = performance.now() + 6_000
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.constantFrom(...requests), fc.array(fc.nat({ max: 200 }), { maxLength: 4 })), {
        minLength: 1,
        maxLength: 5,
      }),
      async sequence => {
        if (performance.now() > end) return
        const connection = await RawConnection.open(world.url)
        let expected = 0
        for (const [[text, status], cuts] of sequence) {
          const places = [0, ...cuts.map(cut => cut % text.length).sort((a, b) => a - b), text.length]
          for (let at = 0; at + 1 < places.length; at++) {
            const piece = text.slice(places[at], places[at + 1])
            if (piece === '') continue
            await connection.send(piece)
            await new Promise(resolve => setImmediate(resolve))
          }
          expected++
          const heads = (): string[] => connection.received.match(/HTTP\/1\.1 \d{3}/g) ?? []
          await eventually('an answer', () => heads().length >= expected || gone(connection), { everyMs: 1 })
          const answered = Number(heads()[expected - 1]?.slice(-3))
          if (gone(connection) || (status === 0 ? ![200, 201].includes(answered) : answered !== status)) {
            throw new Error(`${JSON.stringify(text)} -> ${connection.received}`)
          }
        }
        connection.close()
      },
    ),
    { seed, numRuns: 150 },
  )
})

t.test('hosts: names, addresses, ports', t => {
  for (const text of ['h', 'a.b:80', '127.0.0.1', '[::1]', '[2001:db8::1]:8080', 'under_score', 'h:', '', '%41'])
    t.ok(isHost(text), text)
  for (const text of ['a b', 'a@b', 'h/x', '[::1', '::1', 'h:65536', 'h:x', 'ü', '%4', 'h#', 'h?x', 'a\\b'])
    // prettier-ignore
    t.notOk(isHost(text), text)
  t.end()
})

t.test('I8: a body that stalls is answered 408, whatever its size, and leaves nothing', async t => {
  const world = await startEdge(t, {
    idleMs: 1_000,
    api: request => void request.resume(), // as one that waits for its body
  })
  const head = (path: string, extra: string): string => `PUT ${path} HTTP/1.1\r\n${host}${auth}${extra}\r\n\r\n`
  for (const [what, text] of [
    ['a small body', head('/repository/raw/s', 'Content-Length: 10') + '01234'],
    ['a body without a byte', head('/repository/raw/s', 'Content-Length: 10')],
    ['a large body', head('/repository/raw/s', 'Content-Length: 1000000') + 'x'.repeat(500_000)],
    ['a chunked body', head('/repository/raw/s', 'Transfer-Encoding: chunked') + 'ff\r\nabc'],
    ['a body that was asked for', head('/repository/raw/s', 'Expect: 100-continue\r\nContent-Length: 10')],
    ['a body of the API', head('/api/v1/users/x', 'Content-Length: 10') + '{'],
  ] as const) {
    const connection = await RawConnection.open(world.url)
    await connection.send(text)
    await eventually(`${what} is given up`, () => gone(connection), { withinMs: 8_000 })
    const answer = parseAnswers(Buffer.from(connection.received, 'latin1')).at(-1)
    t.equal(answer?.status, 408, what)
    t.equal(answer && codeOf(answer), 'REQUEST_TIMEOUT')
    t.match(answer?.head, /connection: close/i)
    connection.close()
    await eventually('nothing is left', () => world.server.requestsInFlight === 0 && world.store.staging === 0)
  }
  t.notOk(world.artifacts.has('raw/s'))
  t.equal(world.metrics.slowClients.upload, 6)
  t.same(world.errors, [])
})

/** Sends a byte again and again, until the connection ends. */
async function drip(connection: RawConnection, everyMs: number): Promise<void> {
  while (!gone(connection)) {
    await Promise.race([connection.send('x'), sleep(everyMs)])
    await sleep(everyMs) // the pace of this client, not a wait for something
  }
}

t.test('an upload that drips is answered 408 when its grace is over; one that keeps the rate is taken', async t => {
  const world = await startEdge(t, { clientGraceMs: 1_000, clientBytesPerSecondMin: 1_000 })
  for (const sent of [10, 200_000]) {
    const slow = await RawConnection.open(world.url)
    await slow.send(
      `PUT /repository/raw/s HTTP/1.1\r\n${host}${auth}Content-Length: 1000000\r\n\r\n${'x'.repeat(sent)}`,
    )
    await drip(slow, 50)
    t.match(slow.received, /^HTTP\/1\.1 408 /, `after ${sent} bytes`)
    slow.close()
    await eventually('nothing is left', () => world.server.requestsInFlight === 0 && world.store.staging === 0)
  }
  t.notOk(world.artifacts.has('raw/s'))
  const honest = await RawConnection.open(world.url)
  await honest.send(`PUT /repository/raw/h HTTP/1.1\r\n${host}${auth}Content-Length: 10000\r\n\r\n`)
  for (let at = 0; at < 20; at++) {
    await honest.send('x'.repeat(500))
    await sleep(100) // 5,000 bytes/s for 2 s: twice its grace
  }
  await eventually('it is taken', () => honest.received.includes('HTTP/1.1 201'))
  honest.close()
  t.match(await world.metrics.registry.metrics(), 'holdfast_slow_clients_total{direction="upload"} 2')
  t.same(world.errors, [])
})

async function reader(world: EdgeWorld, path: string): Promise<ReturnType<typeof connect>> {
  const socket = connect({ host: '127.0.0.1', port: world.server.port })
  socket.on('error', () => {}) // told by 'close'
  socket.pause()
  await once(socket, 'connect')
  socket.write(`GET /repository/${path} HTTP/1.1\r\n${host}\r\n`)
  return socket
}

t.test('I38: a reader that takes less than the rate is cut off, one that keeps it gets all', async t => {
  const world = await startEdge(t, { clientGraceMs: 1_000, clientBytesPerSecondMin: 100_000 })
  const body = randomBytes(30_000_000)
  world.add('raw/large', body)
  world.add('raw/1m', body.subarray(0, 1_000_000))
  const slow = await reader(world, 'raw/large')
  await eventually('it is cut off', () => world.metrics.slowClients.download === 1, { withinMs: 8_000 })
  await eventually('and forgotten', () => world.server.requestsInFlight === 0)
  slow.destroy()
  const steady = await reader(world, 'raw/large')
  let bytes = 0
  steady.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    steady.pause()
    setTimeout(() => steady.resume(), 4)
  })
  steady.resume()
  await eventually('all of it', () => bytes > body.length, { withinMs: 20_000 })
  steady.destroy()
  t.equal(world.metrics.slowClients.download, 1)
  // In the fast lane: many answers that nobody takes.
  const socket = connect({ host: '127.0.0.1', port: world.server.port })
  socket.on('error', () => {})
  socket.pause()
  const closed = once(socket, 'close')
  for (let turn = 0; turn < 40; turn++) {
    socket.write(`GET /repository/raw/1m HTTP/1.1\r\n${host}\r\n`)
    await sleep(10) // each in a packet of its own
  }
  await eventually('the lane is rid of it too', () => world.metrics.slowClients.download === 2, { withinMs: 8_000 })
  socket.resume()
  await closed
  t.same(world.errors, [])
})

t.test('patience: what is moved gives back, never more than at the start', t => {
  const limits = { clientGraceMs: 10_000, clientBytesPerSecondMin: 100 }
  t.equal(patienceAfter(10_000, 1_000, 0, limits), 9_000)
  t.equal(patienceAfter(9_000, 1_000, 50, limits), 8_500)
  t.equal(patienceAfter(9_000, 1_000, 1_000_000, limits), 10_000)
  fc.assert(
    fc.property(fc.array(fc.nat({ max: 500 }), { maxLength: 200 }), bytes => {
      let patience = limits.clientGraceMs
      for (const [at, moved] of bytes.entries()) {
        patience = patienceAfter(patience, 1_000, moved, limits)
        if (patience >= 0) continue
        // Given up: there is a time, longer than the grace, over which it was below the rate.
        let sum = 0
        let seconds = 0
        let found = false
        for (let from = at; from >= 0; from--) {
          sum += bytes[from] ?? 0
          seconds++
          if (seconds * 1_000 > limits.clientGraceMs && sum < seconds * limits.clientBytesPerSecondMin) found = true
        }
        return found
      }
      return true
    }),
    { seed },
  )
  t.end()
})

t.test('a proxy that ends leaves as soon as its connections are quiet', async t => {
  const world = await startEdge(t)
  const idle = await RawConnection.open(world.url)
  await idle.send(`GET /healthz HTTP/1.1\r\n${host}\r\n`)
  await eventually('it is answered', () => idle.received.endsWith('alive\n'))
  let startedAt = performance.now()
  await world.server.close(20_000)
  t.ok(performance.now() - startedAt < 900, 'a kept connection costs less than the whole linger')
  idle.close()

  const busy = await startEdge(t)
  const kept = await Promise.all(Array.from({ length: 6 }, () => RawConnection.open(busy.url)))
  for (const connection of kept) await connection.send(`GET /healthz HTTP/1.1\r\n${host}\r\n`)
  await eventually('all are kept', () => kept.every(({ received }) => received.endsWith('alive\n')))
  startedAt = performance.now()
  const closed = busy.server.close(20_000)
  for (const connection of kept.slice(0, 4)) {
    await connection.send(`GET /healthz HTTP/1.1\r\n${host}\r\n`)
    await eventually('I39: it is answered', () => /alive\n[^]*alive\n$/.test(connection.received))
    await sleep(100) // shorter than the quiet that is waited for
  }
  await closed
  t.ok(performance.now() - startedAt < 1_900, 'and there is a bound')
  for (const connection of kept) connection.close()
  const empty = await startEdge(t)
  startedAt = performance.now()
  await empty.server.close(20_000)
  t.ok(performance.now() - startedAt < 200, 'without connections at once')
})

t.test('answers of the fast lane are in the log, if it is that detailed', async t => {
  for (const logLevel of ['debug', 'info']) {
    const world = await startEdge(t, { logLevel })
    world.add('raw/x', 'hello')
    const get = `GET /repository/raw/x HTTP/1.1\r\n${host}\r\n`
    const ids: (string | undefined)[] = []
    for (let turn = 0; turn < 2; turn++) {
      const [answer] = await sendRaw(world.url, get, { quietMs: 30 })
      ids.push(/x-request-id: (.*)/i.exec(answer?.head ?? '')?.[1])
    }
    const lines = world.errors as Record<string, unknown>[]
    if (logLevel === 'info') t.same(lines, [])
    else {
      const facts = { msg: 'request', method: 'GET', url: '/repository/raw/x', status: 200, lane: true }
      t.match(lines, [
        { ...facts, requestId: ids[0] },
        { ...facts, requestId: ids[1] },
      ]) // from a replica, from memory
    }
  }
})
