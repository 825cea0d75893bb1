import { readdir } from 'node:fs/promises'
import t, { type Test } from 'tap'
import { edgeRoutes } from '../../proxy/http/edge-routes.ts'
import { basic, type Client } from '../support/client.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { seededRandom } from '../support/random.ts'
import { RawConnection, sendRaw } from '../support/raw-http.ts'
import { strangeNames } from '../support/shard-files.ts'

const authorized = (cluster: Cluster): string => `Authorization: ${basic('admin', cluster.adminPassword)}`

/** What may lie directly in the folders the cluster was given. */
async function nothingElsewhere(t: Test, cluster: Cluster): Promise<void> {
  t.strictSame(await strangeNames(cluster), [], 'I40: on disk there are only names of our own')
  t.strictSame((await readdir(cluster.folder)).sort(), ['log', 'nodes', 'proxies', 'shards'])
  t.strictSame(await readdir(`${cluster.folder}/proxies/proxy-1`), ['cluster-map.json', 'identity.sealed'])
  const shards = cluster.nodes.flatMap(node => node.shards.map(({ id }) => id as string))
  t.strictSame((await readdir(`${cluster.folder}/shards`)).sort(), shards.sort())
}

/** Raw targets, as they stand in the request line. None of them names an artifact. */
const refusedTargets = [
  '/repository/raw/../../etc/passwd',
  '/repository/raw/a/../b',
  '/repository/raw/./a',
  '/repository/raw/a/.',
  '/repository/raw/a/..',
  '/repository/../healthz',
  '/repository/raw/%2e%2e/%2e%2e/etc',
  '/repository/raw/a/%2E%2e/b',
  '/repository/raw/.%2e/b',
  '/repository/raw/..%2fetc',
  '/repository/raw/a%2fb',
  '/repository/raw/%2Fetc%2Fpasswd',
  '/repository/raw/a%5c..%5cb',
  '/repository/raw/a\\..\\b',
  '/repository/raw/a%00b',
  '/repository/raw/%00',
  '/repository/raw//a',
  '/repository/raw/a//b',
  '/repository//raw/a',
  '//repository/raw/a',
  '/%72epository/raw/a',
  '/Repository/raw/a',
  '/repository/raw%2fa/b',
  '/repository/%2e%2e/b',
  '/repository/RAW/a',
  '/repository/raw%00/a',
  // overlong forms of '.', '/' and NUL, and bytes that are no UTF-8
  '/repository/raw/%c0%ae%c0%ae/a',
  '/repository/raw/%e0%80%ae/a',
  '/repository/raw/%c0%af',
  '/repository/raw/%c0%80',
  '/repository/raw/%ff',
  '/repository/raw/%ed%a0%80',
  '/repository/raw/\xff\xfe',
  // broken or foreign encodings
  '/repository/raw/%',
  '/repository/raw/%2',
  '/repository/raw/%zz',
  '/repository/raw/%u002e%u002e/a',
  // characters that lie in a log or a listing
  '/repository/raw/a%0d%0aSet-Cookie:%20x',
  '/repository/raw/a%1b[2J',
  '/repository/raw/a%7f',
  '/repository/raw/a%e2%80%aeb',
  '/repository/raw/a%e2%80%a8b',
  `/repository/raw/${'a'.repeat(256)}`,
  `/repository/raw/${'a/'.repeat(1_001)}b`,
  '/repository/raw/a#b',
  '*',
  'ftp://h/repository/raw/a',
]

/** Look-alikes and neighbours of the above that are plain names: kept as they are, and never taken for something else. */
const plainNames = [
  '．．', // full-width full stops
  '‥', // two dot leader
  'a∕b', // division slash
  'a⁄b', // fraction slash
  '＼', // full-width backslash
  '...',
  '.hidden',
  'a..b',
  '..a',
  'é', // composed
  'e\u0301', // decomposed: another name
  'con',
  'a:b',
  '~root',
  '$(id)',
  "'; DROP TABLE artifacts; --",
  'a b',
  '%2e%2e',
  '-rf',
]

t.test('I40: hostile paths', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { shardsPerNode: 1 })
  const client = cluster.client()
  const { url } = cluster.proxies[0]!

  await t.test('are refused in every method', async t => {
    for (const target of refusedTargets) {
      for (const method of ['PUT', 'GET', 'DELETE', 'HEAD']) {
        const body = method === 'PUT' ? 'hostile' : ''
        const head = `${method} ${target} HTTP/1.1\r\nHost: h\r\n${authorized(cluster)}\r\nContent-Length: ${body.length}\r\n\r\n`
        const [answer] = await sendRaw(url, head + body, { quietMs: 30 })
        const status = answer?.status ?? 0
        // 404 and 405: not below /repository/, so no path at all.
        if (![400, 404, 405, 414].includes(status)) t.fail(`${method} ${target}: ${status}`)
      }
    }
    const listing = await client.request('GET', 'raw/', { headers: { accept: 'application/json' } })
    t.notMatch(listing.body.toString(), /hostile|passwd|Cookie/, 'nothing was stored')
    await nothingElsewhere(t, cluster)
  })

  await t.test('that only look hostile are kept as they are', async t => {
    const bodies = plainNames.map((name, index) => ({ name, body: Buffer.from(`${index} ${name}`) }))
    for (const { name, body } of bodies) {
      const answer = await client.put(`raw/names/${encodeURIComponent(name)}`, body)
      t.equal(answer.status, 201, name)
    }
    for (const { name, body } of bodies) {
      const answer = await client.get(`raw/names/${encodeURIComponent(name)}`)
      t.equal(answer.body.equals(body), true, `${name} is itself and nothing else`)
    }
    await nothingElsewhere(t, cluster)
  })

  await t.test('made of any mixture of bad parts never end in a 5xx or outside the repository', async t => {
    const parts = ['..', '.', '/', '//', '%2e', '%2f', '%5c', '\\', '%00', 'a', 'B', '%', '%c0%ae', '\xe2\x80\xae', ';', '?', '&', '+', '%25', '%2e%2e%2f', '~', '\xff', 'é'] // prettier-ignore
    for (let index = 0; index < 400; index++) {
      const mixture = Array.from({ length: random.int(1, 8) }, () => random.pick(parts)).join('')
      const target = random.pick(['/repository/raw/', '/repository/', '/']) + mixture
      const text = `PUT ${target} HTTP/1.1\r\nHost: h\r\n${authorized(cluster)}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok`
      const [answer] = await sendRaw(url, Buffer.from(text, 'latin1'))
      const status = answer?.status ?? 0
      if (![200, 201, 400, 403, 404, 405, 414].includes(status)) t.fail(`PUT ${target}: ${status}`)
    }
    await nothingElsewhere(t, cluster)
  })
  t.strictSame(cluster.crashes(), [])
})

t.test('requests that two parsers could read in two ways', async t => {
  const cluster = await startCluster(t, { shardsPerNode: 1 })
  const client = cluster.client()
  const { url } = cluster.proxies[0]!
  const auth = authorized(cluster)
  t.equal((await client.put('raw/public', Buffer.from('public'))).status, 201)
  await client.get('raw/public')
  /** What an attacker would like to get past a balancer: it must never be read as a request. */
  const inner = `PUT /repository/raw/smuggled HTTP/1.1\r\nHost: h\r\n${auth}\r\nContent-Length: 3\r\n\r\nbad`
  const put = (headers: string, body: string): string =>
    `PUT /repository/raw/outer HTTP/1.1\r\nHost: h\r\n${auth}\r\n${headers}\r\n\r\n${body}`
  const chunk = `0\r\n\r\n${inner}`

  const ambiguous: Record<string, string> = {
    'length and chunks': put('Content-Length: 4\r\nTransfer-Encoding: chunked', chunk),
    'chunks and length': put('Transfer-Encoding: chunked\r\nContent-Length: 4', chunk),
    'two lengths': put(`Content-Length: 3\r\nContent-Length: ${3 + inner.length}`, `abc${inner}`),
    'a list of lengths': put(`Content-Length: 3, ${3 + inner.length}`, `abc${inner}`),
    'a signed length': put('Content-Length: +3', `abc${inner}`),
    'a negative length': put('Content-Length: -1', inner),
    'a hexadecimal length': put('Content-Length: 0x3', `abc${inner}`),
    'a length with a space inside': put('Content-Length: 1 3', `abc${inner}`),
    'an endless length': put(`Content-Length: ${'9'.repeat(40)}`, inner),
    'an unknown coding': put('Transfer-Encoding: xchunked', chunk),
    'chunked not last': put('Transfer-Encoding: chunked, identity', chunk),
    'chunked twice': put('Transfer-Encoding: chunked\r\nTransfer-Encoding: identity', chunk),
    'a space before the colon': put('Transfer-Encoding : chunked\r\nContent-Length: 5', chunk),
    'a tab before the colon': put('Content-Length\t: 3', `abc${inner}`),
    'an empty header name': put(': x\r\nContent-Length: 3', `abc${inner}`),
    'a folded header': put(`X-Fold: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 4`, chunk),
    'a folded length': put('Content-Length:\r\n 3', `abc${inner}`),
    'bare line feeds': put('Content-Length: 3', `abc${inner}`).replaceAll('\r\n', '\n'),
    'one bare line feed': put('X: a\nTransfer-Encoding: chunked\r\nContent-Length: 4', chunk),
    'a bare carriage return': put('X: a\rTransfer-Encoding: chunked\r\nContent-Length: 4', chunk),
    'NUL in a value': put('X: a\0b\r\nContent-Length: 3', `abc${inner}`),
    'NUL in a name': put('X\0: a\r\nContent-Length: 3', `abc${inner}`),
    'a chunk size that overflows': put('Transfer-Encoding: chunked', `ffffffffffffffff1\r\n${inner}`),
    'a negative chunk size': put('Transfer-Encoding: chunked', `-1\r\n${inner}`),
    'a prefixed chunk size': put('Transfer-Encoding: chunked', `0x3\r\nabc\r\n0\r\n\r\n${inner}`),
    'a chunk size ended by a line feed': put('Transfer-Encoding: chunked', `3\nabc\n0\n\n${inner}`),
    'a chunk longer than its size': put('Transfer-Encoding: chunked', `3\r\nabcdef\r\n0\r\n\r\n${inner}`),
    'a line feed in a chunk extension': put('Transfer-Encoding: chunked', `3;a\nb\r\nabc\r\n0\r\n\r\n${inner}`),
    'an endless chunk extension': put('Transfer-Encoding: chunked', `3;${'x'.repeat(100_000)}\r\nabc\r\n0\r\n\r\n`),
    'endless trailers': put('Transfer-Encoding: chunked', `3\r\nabc\r\n0\r\n${'X: y\r\n'.repeat(20_000)}\r\n`),
    'no host': `GET /repository/raw/public HTTP/1.1\r\n${auth}\r\n\r\n`,
    'a space in the target': `GET /repository/raw/public HTTP/1.1 HTTP/1.1\r\nHost: h\r\n${auth}\r\n\r\n`,
    'a tab for a space': `GET\t/repository/raw/public HTTP/1.1\r\nHost: h\r\n${auth}\r\n\r\n`,
    'another version': `GET /repository/raw/public HTTP/3.7\r\nHost: h\r\n${auth}\r\n\r\n`,
    'HTTP/2 in the clear': `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`,
    'a TLS handshake': '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
    'a lower-case method': `get /repository/raw/public HTTP/1.1\r\nHost: h\r\n${auth}\r\n\r\n`,
    'a tunnel': `CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: h\r\n\r\n`,
  }
  for (const [name, text] of Object.entries(ambiguous)) {
    const answers = await sendRaw(url, text, { quietMs: 60, withinMs: 5_000 })
    const accepted = answers.filter(({ status }) => status >= 200 && status < 300)
    if (accepted.length > 0) t.fail(`${name}: ${accepted.map(({ head }) => head.slice(0, 20)).join()}`)
    else t.pass(`${name}: ${answers.map(({ status }) => status).join() || 'cut off'}`)
    t.equal((await client.get('raw/smuggled')).status, 404, 'the inner request was not read as one')
  }

  await t.test('a body of a GET is no request, and headers that promise another method are nothing', async t => {
    const text = `GET /repository/raw/public HTTP/1.1\r\nHost: h\r\n${auth}\r\nContent-Length: ${inner.length}\r\n\r\n${inner}`
    t.strictSame(
      (await sendRaw(url, text)).map(({ status }) => status),
      [200],
    )
    const override = `GET /repository/raw/public HTTP/1.1\r\nHost: h\r\n${auth}\r\nX-HTTP-Method-Override: DELETE\r\nX-Original-URL: /api/v1/status\r\n\r\n`
    t.equal((await sendRaw(url, override))[0]?.body, 'public')
    t.equal((await client.get('raw/public')).status, 200)
    t.equal((await client.get('raw/smuggled')).status, 404)
  })

  await t.test('requests one behind the other, cut anywhere, are each answered once and in order', async t => {
    const get = `GET /repository/raw/public HTTP/1.1\r\nHost: h\r\n${auth}\r\n\r\n`
    const missing = get.replace('/public', '/missing')
    const ranged = get.replace('\r\n\r\n', '\r\nRange: bytes=0-2\r\n\r\n')
    const stranger = get.replace(auth, 'X: y')
    const requests = [get, get, missing, ranged, get, stranger, put('Content-Length: 3', 'abc'), get]
    const wanted = [200, 200, 404, 206, 200, 401, 201, 200]
    const text = requests.join('')
    for (const step of [text.length, 1_000, 333, 61]) {
      const connection = await RawConnection.open(url)
      for (let at = 0; at < text.length; at += step) await connection.send(text.slice(at, at + step))
      const statuses = (await connection.answers()).map(({ status }) => status)
      const again = step === text.length ? wanted : wanted.map(status => (status === 201 ? 200 : status))
      t.strictSame(statuses, again, `in pieces of ${step} bytes`)
      connection.close()
    }
  })
  await nothingElsewhere(t, cluster)
  t.strictSame(cluster.crashes(), [])
})

t.test('I41: nothing is answered without an access decision', async t => {
  const cluster = await startCluster(t, { shardsPerNode: 1 })
  const admin = cluster.client()
  t.equal((await admin.put('raw/secret', Buffer.from('secret'))).status, 201)
  await admin.get('raw/secret')
  const { url } = cluster.proxies[0]!
  const strangers: Record<string, string> = {
    'without credentials': '',
    'with a wrong password': `Authorization: ${basic('admin', 'wrong-password')}\r\n`,
    'with an unknown user': `Authorization: ${basic('nobody', cluster.adminPassword)}\r\n`,
    'with an unknown scheme': `Authorization: Bearer ${cluster.adminPassword}\r\n`,
    'with the secret of the inner wire': `Authorization: ${cluster.authorization}\r\n`,
    'with rubbish': 'Authorization: Basic %%%\r\n',
  }
  const routes = await everyRoute(admin)
  t.ok(routes.length > 20, `${routes.length} routes`)
  for (const [name, header] of Object.entries(strangers)) {
    for (const { method, path } of routes) {
      const text = `${method} ${path} HTTP/1.1\r\nHost: h\r\n${header}Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}`
      const [answer] = await sendRaw(url, text)
      // 429: after some wrong passwords, an address has to wait.
      if (![401, 403, 429].includes(answer?.status ?? 0)) t.fail(`${name}: ${method} ${path}: ${answer?.status}`)
    }
    t.pass(name)
  }
  for (const { prefix, access } of edgeRoutes) {
    if (access !== 'public') continue
    const [answer] = await sendRaw(url, `GET ${prefix} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n`)
    t.equal(answer?.status, 200, `${prefix} is declared public`)
    t.notMatch(`${answer?.head}${answer?.body}`, /secret|admin/, 'and tells nothing of what is stored')
  }

  await t.test('the inner wire refuses everybody without the secret of the cluster', async t => {
    const { url } = cluster.nodes[0]!
    for (const path of ['/v1/status', '/v1/append', '/v1/cluster-map', '/v1/blobs/node-a-1/000', '/', '/healthz']) {
      for (const header of ['', `${authorized(cluster)}\r\n`, 'Authorization: Bearer x\r\n']) {
        const [answer] = await sendRaw(url, `GET ${path} HTTP/1.1\r\nHost: h\r\n${header}Connection: close\r\n\r\n`)
        if (answer?.status !== 401) t.fail(`${path}: ${answer?.status}`)
      }
    }
    t.pass('401 everywhere')
  })
  t.strictSame(cluster.crashes(), [])
})

/** All there is: artifacts in every method, and every path of the API's own description. */
async function everyRoute(admin: Client): Promise<{ method: string; path: string }[]> {
  const routes = ['GET', 'HEAD', 'PUT', 'DELETE', 'POST', 'PATCH', 'OPTIONS'].flatMap(method =>
    ['/repository/raw/secret', '/repository/raw/', '/repository/none/x'].map(path => ({ method, path })),
  )
  const { body } = await admin.request('GET', '/api/v1/openapi.json')
  const { paths } = JSON.parse(body.toString()) as { paths: Record<string, Record<string, unknown>> }
  for (const [path, methods] of Object.entries(paths)) {
    if (path.endsWith('/openapi.json')) continue
    for (const method of Object.keys(methods)) {
      routes.push({ method: method.toUpperCase(), path: path.replaceAll(/\{[^}]+\}/g, 'raw') })
    }
  }
  return routes
}
