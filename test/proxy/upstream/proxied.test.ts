import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { pino } from 'pino'
import t, { type Test } from 'tap'
import type { Repository } from '../../../proxy/metadata/types.ts'
import { UpstreamCache } from '../../../proxy/upstream/upstream-cache.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { eventually } from '../../support/eventually.ts'
import { startUpstream, type UpstreamServer } from '../../support/upstream-server.ts'
import { repositoryOf, startEdge, type EdgeWorld } from '../http/fake-edge.ts'

const MiB = 2 ** 20

async function start(
  t: Test,
  options: Parameters<typeof startEdge>[1] = {},
  change: Partial<Repository> = {},
): Promise<{ edge: EdgeWorld; upstream: UpstreamServer; get: Get }> {
  const upstream = await startUpstream(t)
  const edge = await startEdge(t, options)
  const source = { url: upstream.url, maxAgeSeconds: 60, absentMaxAgeSeconds: 30 }
  edge.repositories.push(repositoryOf('mirror', 9, { type: 'proxy', upstream: source, ...change }))
  const get: Get = async (path, init = {}) => {
    const response = await fetch(`${edge.url}/repository/mirror/${path}`, init)
    return Object.assign(response, { bytes: Buffer.from(await response.arrayBuffer()) })
  }
  return { edge, upstream, get }
}
type Get = (path: string, init?: RequestInit) => Promise<Response & { bytes: Buffer }>

t.test('what is asked for comes from the upstream once, and then from here', async t => {
  const { edge, upstream, get } = await start(t)
  for (const [path, bytes] of [
    ['app/1.0/small', 700],
    ['app/1.0/middle', 200_000],
    ['app/1.0/large', 3 * MiB],
  ] as const) {
    // prettier-ignore
    const body = randomBytes(bytes)
    upstream.files.set(path, body)
    const first = await get(path)
    t.equal(first.status, 200)
    t.ok(first.bytes.equals(body), path)
    t.equal(first.headers.get('content-type'), 'application/x-thing')
    const second = await get(path)
    t.ok(second.bytes.equals(body))
    t.match(second.headers.get('etag'), /^"[0-9a-f]{64}"$/)
    const part = await get(path, { headers: { range: 'bytes=10-19' } })
    t.equal(part.status, 206)
    t.ok(part.bytes.equals(body.subarray(10, 20)))
    t.equal(upstream.count(path), 1, 'asked once')
    edge.laterMs += 10 * 365 * 24 * 3_600_000
    t.equal((await get(path)).status, 200)
    t.equal(upstream.count(path), 1, 'a path with a version is never asked for again')
  }
  t.equal((await get('app/1.0/small.sha1')).status, 200, 'checksums of what is here')
})

t.test('what may change is asked for again when it is old: kept while the upstream says so, else replaced', async t => {
  const { edge, upstream, get } = await start(t)
  upstream.files.set('list.txt', Buffer.from('one'))
  t.equal((await get('list.txt')).bytes.toString(), 'one')
  t.equal((await get('list.txt')).bytes.toString(), 'one')
  t.equal(upstream.count('list.txt'), 1)
  edge.laterMs += 61_000
  t.equal((await get('list.txt')).bytes.toString(), 'one', 'a 304')
  t.equal((await get('list.txt')).bytes.toString(), 'one')
  t.equal(upstream.count('list.txt'), 2)
  upstream.files.set('list.txt', Buffer.from('two'))
  t.equal((await get('list.txt')).bytes.toString(), 'one', 'within its age')
  edge.laterMs += 61_000
  t.equal((await get('list.txt')).bytes.toString(), 'two')
  upstream.files.delete('list.txt')
  edge.laterMs += 61_000
  t.equal((await get('list.txt')).bytes.toString(), 'two', 'what the upstream has no more is kept')
})

t.test(
  'a copy that another worker has stored lately is not asked about; an older one, or of elsewhere, is',
  async t => {
    const { edge, upstream, get } = await start(t)
    upstream.files.set('list.txt', Buffer.from('new'))
    const stored = (ageMs: number, from = upstream.url): void => {
      const attributes = { upstream: { from } }
      edge.add('mirror/list.txt', 'copy', { attributes, updatedAt: Date.now() + edge.laterMs - ageMs })
    }
    stored(30_000)
    for (const what of ['first', 'from memory']) t.equal((await get('list.txt')).bytes.toString(), 'copy', what)
    t.equal(upstream.asked.length, 0)
    edge.laterMs += 20_000
    t.equal((await get('list.txt')).bytes.toString(), 'copy')
    edge.laterMs += 20_000
    t.equal((await get('list.txt')).bytes.toString(), 'new', 'by now it is older than a minute')
    t.equal(upstream.asked.length, 1)
    for (const [ageMs, from] of [
      [61_000, upstream.url],
      [-61_000, upstream.url],
      [1_000, 'http://other/'],
    ] as const) {
      edge.laterMs += 61_000
      stored(ageMs, from)
      const before = upstream.asked.length
      t.equal((await get('list.txt')).bytes.toString(), 'new', `${ageMs} ms old, from ${from}`)
      t.equal(upstream.asked.length, before + 1)
    }
  },
)

t.test('an upstream that fails takes nothing away: the copy is served, and said to be old', async t => {
  const { edge, upstream, get } = await start(t)
  upstream.files.set('list.txt', Buffer.from('one'))
  await get('list.txt')
  edge.laterMs += 61_000
  upstream.answer = (_, response) => {
    response.writeHead(503).end()
    return true
  }
  const stale = await get('list.txt')
  t.equal(stale.status, 200)
  t.equal(stale.bytes.toString(), 'one')
  t.match(stale.headers.get('warning'), /^110 /)
  t.match((await get('list.txt')).headers.get('warning'), /^110 /)
  t.equal(upstream.count('list.txt'), 2, 'and it is not asked with every read')
  const missing = await get('other.txt')
  t.equal(missing.status, 503, 'unknown is not absent (I7)')
  t.match(JSON.parse(missing.bytes.toString()), { code: 'UPSTREAM_UNAVAILABLE' })
  t.ok(missing.headers.get('retry-after'))
  upstream.answer = () => false
  edge.laterMs += 61_000
  t.equal((await get('list.txt')).headers.get('warning'), null, 'back')
})

t.test('after some failures an upstream is left alone for a while', async t => {
  const { edge, upstream, get } = await start(t)
  upstream.answer = request => {
    request.socket.destroy()
    return true
  }
  for (let count = 0; count < 20; count += 1) t.equal((await get(`x${count}`)).status, 503)
  t.ok(upstream.asked.length <= 6, `${upstream.asked.length} requests`)
  upstream.answer = () => false
  upstream.files.set('x1', Buffer.from('here'))
  edge.laterMs += 60_000
  t.equal((await get('x1')).status, 200)
})

t.test("the upstream's word that there is nothing counts for a while; a refusal is no such word", async t => {
  const { edge, upstream, get } = await start(t)
  for (let count = 0; count < 3; count += 1) t.equal((await get('none.txt')).status, 404)
  t.equal(upstream.count('none.txt'), 1)
  upstream.files.set('none.txt', Buffer.from('now'))
  edge.laterMs += 31_000
  t.equal((await get('none.txt')).status, 200)
  upstream.answer = (_, response) => {
    response.writeHead(403).end()
    return true
  }
  const refused = await get('secret.txt')
  t.equal(refused.status, 502)
  t.match(JSON.parse(refused.bytes.toString()), { code: 'UPSTREAM_FAILED', message: /403/ })
})

t.test('HEAD fetches nothing', async t => {
  const { upstream, edge } = await start(t)
  upstream.files.set('big-1.0.bin', randomBytes(2 * MiB))
  const head = await fetch(`${edge.url}/repository/mirror/big-1.0.bin`, { method: 'HEAD' })
  t.equal(head.status, 200)
  t.equal(head.headers.get('content-length'), String(2 * MiB))
  t.equal(head.headers.get('holdfast-metadata'), 'upstream')
  t.equal((await fetch(`${edge.url}/repository/mirror/none`, { method: 'HEAD' })).status, 404)
  t.strictSame(upstream.asked, ['HEAD /big-1.0.bin', 'HEAD /none'])
  t.equal(edge.artifacts.size, 0)
})

t.test('many who ask for the same at once cause one request to the upstream', async t => {
  const { upstream, get } = await start(t)
  const body = randomBytes(300_000)
  upstream.files.set('a-1.0', body)
  const all = await Promise.all(Array.from({ length: 30 }, () => get('a-1.0')))
  for (const { bytes } of all) if (!bytes.equals(body)) t.fail('other bytes')
  t.equal(upstream.count('a-1.0'), 1)
})

t.test('nobody but the upstream writes: 405; what was fetched can be deleted, and comes again', async t => {
  const { upstream, edge, get } = await start(t)
  const url = `${edge.url}/repository/mirror/a-1.0`
  const headers = { authorization: 'Basic ' + Buffer.from('admin:secret').toString('base64') }
  const put = await fetch(url, { method: 'PUT', body: 'x', headers })
  t.equal(put.status, 405)
  t.equal(put.headers.get('allow'), 'GET, HEAD, DELETE')
  upstream.files.set('a-1.0', Buffer.from('bytes'))
  await get('a-1.0')
  t.equal((await fetch(url, { method: 'DELETE', headers })).status, 204)
  t.equal((await get('a-1.0')).status, 200)
  t.equal(upstream.count('a-1.0'), 2)
})

t.test('a redirect is followed, but not in circles, nor from https to http', async t => {
  const { upstream, get } = await start(t)
  upstream.files.set('there', Buffer.from('found'))
  upstream.answer = (request, response) => {
    const to = { '/here': '/there', '/round': '/round', '/file': 'file:///etc/passwd' }[request.url ?? '']
    if (to !== undefined) response.writeHead(302, { location: to }).end()
    return to !== undefined
  }
  t.equal((await get('here')).bytes.toString(), 'found')
  t.equal((await get('round')).status, 502)
  t.equal((await get('file')).status, 502)
})

t.test('bytes that are not what the upstream declares are neither kept nor served', async t => {
  const { upstream, edge, get } = await start(t)
  upstream.answer = (request, response) => {
    const sha1 = { '/wrong-1.0': '0'.repeat(40), '/right-1.0': 'a94a8fe5ccb19ba61c4c0873d391e987982fbbd3' }[
      request.url ?? ''
    ]
    response.writeHead(200, { 'x-checksum-sha1': sha1 }).end('test')
    return true
  }
  t.equal((await get('wrong-1.0')).status, 502)
  t.equal(edge.artifacts.size, 0)
  t.equal((await get('right-1.0')).status, 200)
})

t.test('an answer that breaks off is not kept, and no client takes what it has for all of it (I5)', async t => {
  const { upstream, edge, get } = await start(t)
  const body = randomBytes(3 * MiB)
  upstream.answer = (_, response) => {
    response.writeHead(200, { 'content-length': body.length })
    response.write(body.subarray(0, 2 * MiB), () => response.destroy())
    return true
  }
  await t.rejects(get('broken-1.0'))
  t.equal(edge.artifacts.size, 0)
  await eventually('nothing is staged', () => edge.store.staging === 0)
})

t.test('the first client has the bytes of a large artifact while they come, and another one afterwards', async t => {
  const { upstream, edge, get } = await start(t)
  const body = randomBytes(8 * MiB)
  let goOn: (() => void) | undefined
  upstream.answer = (_, response) => {
    response.writeHead(200, { 'content-length': body.length })
    response.write(body.subarray(0, 2 * MiB))
    goOn = () => response.end(body.subarray(2 * MiB))
    return true
  }
  const first = await open(edge, 'live-1.0')
  t.equal(first.statusCode, 200)
  const chunks: Buffer[] = []
  const ended = once(first, 'end')
  first.on('data', (chunk: Buffer) => chunks.push(chunk))
  const received = (): number => chunks.reduce((sum, { length }) => sum + length, 0)
  await eventually('what has come is there', () => received() === 2 * MiB)
  goOn?.()
  await ended
  t.ok(Buffer.concat(chunks).equals(body))
  t.ok((await get('live-1.0')).bytes.equals(body))
  t.equal(upstream.asked.length, 1)
})

t.test('a client that reads slowly, or leaves, keeps nothing from being stored', async t => {
  const { upstream, edge, get } = await start(t)
  const bodies = { 'slow-1.0': randomBytes(24 * MiB), 'gone-1.0': randomBytes(8 * MiB) }
  for (const [path, body] of Object.entries(bodies)) upstream.files.set(path, body)
  const slow = await open(edge, 'slow-1.0')
  const gone = await open(edge, 'gone-1.0')
  gone.destroy()
  await eventually('both are stored', () => edge.artifacts.size === 2)
  const chunks: Buffer[] = []
  for await (const chunk of slow as AsyncIterable<Buffer>) chunks.push(chunk)
  t.ok(Buffer.concat(chunks).equals(bodies['slow-1.0']), 'the rest comes from the replicas')
  t.ok((await get('gone-1.0')).bytes.equals(bodies['gone-1.0']))
  t.equal(upstream.asked.length, 2)
})

t.test('without a database, or room, clients get what the upstream has all the same', async t => {
  const { upstream, edge, get } = await start(t)
  const body = randomBytes(2 * MiB)
  upstream.files.set('a-1.0', body)
  upstream.files.set('kept-1.0', randomBytes(2 * MiB))
  await get('kept-1.0')
  edge.store.fault = new HoldfastError('INSUFFICIENT_STORAGE', 'full')
  const passed = await get('a-1.0')
  t.equal(passed.status, 200)
  t.ok(passed.bytes.equals(body))
  t.equal(passed.headers.get('holdfast-metadata'), 'upstream')
  t.equal(edge.artifacts.size, 1, 'nothing is kept')
  edge.store.fault = new HoldfastError('REPLICAS_UNREACHABLE', 'two zones are away')
  edge.laterMs += 1
  const unread = await get('a-1.0')
  t.ok(unread.bytes.equals(body))
  upstream.files.set('kept-1.0', randomBytes(2 * MiB))
  await t.rejects(get('kept-1.0'), 'not with other bytes than those that are known (I5)')
})

t.test(
  'a new copy that breaks off: the client with a part of it is cut off, the next one gets the old copy',
  async t => {
    const { upstream, edge, get } = await start(t)
    const old = randomBytes(2 * MiB)
    upstream.files.set('big.bin', old)
    await get('big.bin')
    edge.laterMs += 61_000
    upstream.answer = (_, response) => {
      response.writeHead(200, { 'content-length': 3 * MiB })
      response.write(randomBytes(2 * MiB), () => response.destroy())
      return true
    }
    await t.rejects(get('big.bin'))
    const next = await get('big.bin')
    t.ok(next.bytes.equals(old))
    t.match(next.headers.get('warning'), /^110 /)
    t.strictSame(edge.errors, [], 'which is no error of ours')
  },
)

t.test('a new copy that does not come keeps nobody from the old one', async t => {
  const { upstream, edge, get } = await start(t)
  upstream.files.set('list.txt', Buffer.from('one'))
  await get('list.txt')
  edge.laterMs += 61_000
  upstream.answer = (_, response) => {
    response.writeHead(200, { 'content-length': 100 })
    const drip = setInterval(() => response.write('x'), 500)
    response.on('close', () => clearInterval(drip))
    return true
  }
  const began = performance.now()
  const stale = await get('list.txt')
  t.equal(stale.bytes.toString(), 'one')
  t.match(stale.headers.get('warning'), /^110 /)
  t.ok(performance.now() - began < 10_000)
})

t.test('I7: the upstream has it no more, and nobody knows whether it is kept here: 503, not 404', async t => {
  const { upstream, edge, get } = await start(t)
  upstream.files.set('other-1.0', Buffer.from('other'))
  await get('other-1.0')
  edge.add('mirror/kept-1.0', 'kept')
  edge.metadataFault = new HoldfastError('METADATA_UNAVAILABLE', 'away')
  t.equal((await get('kept-1.0')).status, 503)
  edge.shardsAnswer = true
  t.equal((await get('kept-1.0')).status, 200)
  t.equal((await get('none-1.0')).status, 404, 'the shards know that there is none')
  edge.metadataFault = undefined
})

t.test('I7: a 304 that nobody asked for is no word that there is nothing', async t => {
  const { upstream, edge, get } = await start(t)
  upstream.answer = (_, response) => {
    response.writeHead(304).end()
    return true
  }
  t.equal((await get('a-1.0')).status, 502)
  t.equal((await fetch(`${edge.url}/repository/mirror/a-1.0`, { method: 'HEAD' })).status, 502)
})

t.test('what somebody else writes while it is fetched stands', async t => {
  const { upstream, edge, get } = await start(t)
  let goOn: (() => void) | undefined
  upstream.answer = (_, response) => {
    goOn = () => response.end('of the upstream')
    return true
  }
  for (const path of ['a-1.0', 'list.txt']) {
    goOn = undefined
    const first = get(path)
    await eventually('the upstream is asked', () => goOn !== undefined)
    edge.add(`mirror/${path}`, 'of another worker, or of a client since the upstream was taken away')
    goOn!()
    t.match((await first).bytes.toString(), /^of another/)
    t.match((await get(path)).bytes.toString(), /^of another/)
  }
})

t.test('two workers fetch the same at once: both of their clients get all of it', async t => {
  const { upstream, edge, get } = await start(t)
  const body = randomBytes(3 * MiB)
  let goOn: (() => void) | undefined
  upstream.answer = (_, response) => {
    response.writeHead(200, { 'content-length': body.length })
    response.write(body.subarray(0, MiB))
    goOn = () => response.end(body.subarray(MiB))
    return true
  }
  const first = get('a-1.0')
  await eventually('the upstream is asked', () => goOn !== undefined)
  edge.add('mirror/a-1.0', body)
  goOn!()
  t.ok((await first).bytes.equals(body))
})

t.test('who waits for what another client is getting is not idle', async t => {
  const { upstream, edge, get } = await start(t, { idleMs: 1_000 })
  const body = randomBytes(2 * MiB)
  upstream.answer = (_, response) => {
    response.writeHead(200, { 'content-length': body.length })
    let at = 0
    const timer = setInterval(() => {
      response.write(body.subarray(at, (at += MiB / 4)))
      if (at < body.length) return
      clearInterval(timer)
      response.end()
    }, 300)
    return true
  }
  const first = await open(edge, 'a-1.0')
  first.resume()
  t.ok((await get('a-1.0')).bytes.equals(body))
})

t.test('what passes through is logged as what it is: complete, or its client has left', async t => {
  const { upstream, edge, get } = await start(t, { logLevel: 'debug' }, { artifactBytesMax: MiB })
  const body = randomBytes(8 * MiB)
  upstream.files.set('huge-1.0', body)
  for (let turn = 0; turn < 3; turn += 1) t.ok((await get('huge-1.0')).bytes.equals(body))
  const gone = await open(edge, 'huge-1.0')
  gone.destroy()
  await eventually('all are logged', () => edge.errors.length >= 4 && edge.server.requestsInFlight === 0)
  const whole = { msg: 'request', status: 200, complete: true }
  t.match(edge.errors, [whole, whole, whole, { msg: 'request', status: 200, complete: false }])
  t.equal(edge.errors.length, 4, 'and nothing else')
  t.match(await edge.metrics.registry.metrics(), /outcome="aborted"[^\n]*\} 1\n/)
})

t.test('slow clients of what passes through keep nobody from what is to be stored', async t => {
  const { upstream, edge, get } = await start(t, {}, { artifactBytesMax: 4 * MiB })
  upstream.files.set('huge-1.0', randomBytes(16 * MiB))
  upstream.files.set('a-1.0', Buffer.from('a'))
  const slow = await Promise.all(Array.from({ length: 32 }, () => open(edge, 'huge-1.0')))
  t.equal(slow[0]!.statusCode, 200)
  t.equal((await get('a-1.0')).status, 200)
  const late = await Promise.race([get('huge-1.0'), sleep(15_000)])
  t.equal(late?.status, 503, 'one more is told to come again')
  for (const client of slow) client.destroy()
})

t.test('answers that nobody reads hold no connection', async t => {
  const { upstream, get } = await start(t)
  let open = 0
  upstream.answer = (_, response) => {
    open += 1
    const drip = setInterval(() => response.write('x'), 200)
    response.on('close', () => {
      open -= 1
      clearInterval(drip)
    })
    response.writeHead(404).write('nothing')
    return true
  }
  t.equal((await get('a-1.0')).status, 404)
  await eventually('its connection is closed', () => open === 0)
})

t.test('many fetches at once are no leak', async t => {
  const warnings: unknown[] = []
  const note = (warning: Error): void => void warnings.push(warning)
  process.on('warning', note)
  const { upstream, get } = await start(t)
  upstream.answer = (_, response) => {
    setTimeout(() => response.end('late'), 300)
    return true
  }
  await Promise.all(Array.from({ length: 15 }, (_, count) => get(`a-1.${count}`)))
  process.off('warning', note)
  t.strictSame(warnings, [])
})

t.test("what may change at the upstream is no client's for ever, whatever the policy", async t => {
  const { upstream, get } = await start(t, {}, { redeploy: 'once' })
  upstream.files.set('list.txt', Buffer.from('one'))
  t.match((await get('list.txt')).headers.get('cache-control'), /no-cache/)
  t.match((await get('list.txt')).headers.get('cache-control'), /no-cache/)
})

t.test('I38: what is remembered of long paths is bounded', async t => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const cache = new UpstreamCache({
    resolver: { resolve: async () => ({ entry: { artifact: null }, source: 'current' }) },
    writer: { admit: () => undefined, put: () => Promise.reject(new Error('nothing is stored')) },
    client: { ask: async () => ({ kind: 'absent' }) },
    fetchesMax: 1,
    now: () => 0,
    time: () => 0,
    log: pino({ level: 'silent' }),
  })
  const source = { url: 'http://host/', maxAgeSeconds: 60, absentMaxAgeSeconds: 30 }
  const mirror = { ...repositoryOf('mirror', 9), upstream: source }
  const { signal } = new AbortController()
  collect()
  const before = process.memoryUsage().heapUsed
  for (let count = 0; count < 50_000; count += 1) {
    // As it comes over the wire: with memory of its own.
    const path = Buffer.from(`${count}/${'x'.repeat(1_990)}`).toString('latin1')
    await cache.current(mirror, path, { method: 'GET', signal })
  }
  collect()
  const grown = process.memoryUsage().heapUsed - before
  t.ok(grown < 64 * MiB, `${Math.round(grown / MiB)} MiB`)
  await cache.close()
})

function open(edge: EdgeWorld, path: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    httpRequest(`${edge.url}/repository/mirror/${path}`, resolve).on('error', reject).end()
  })
}
