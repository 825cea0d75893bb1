import { createHash, hash } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { basic, type Client } from '../support/client.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { eventually } from '../support/eventually.ts'
import { seededRandom } from '../support/random.ts'
import { RawConnection, sendRaw, type RawAnswer } from '../support/raw-http.ts'
import { stagedFiles } from '../support/shard-files.ts'

const MiB = 1024 * 1024
/** What a proxy may take at most, whatever its clients do; it takes about 120 MiB when it has just started. */
const rssBytesMax = 400 * MiB

function putHead(cluster: Cluster, path: string, headers: readonly string[]): string {
  const authorization = basic('admin', cluster.adminPassword)
  const lines = [`PUT /repository/${path} HTTP/1.1`, 'Host: holdfast', `Authorization: ${authorization}`, ...headers]
  return lines.join('\r\n') + '\r\n\r\n'
}

function getHead(cluster: Cluster, path: string): string {
  return `GET /repository/${path} HTTP/1.1\r\nHost: holdfast\r\nAuthorization: ${basic('admin', cluster.adminPassword)}\r\n\r\n`
}

/** The body in chunks of at most `size` bytes, as chunked transfer coding. */
function chunked(body: Buffer, size: number): Buffer {
  const parts: Buffer[] = []
  for (let at = 0; at < body.length; at += size) {
    const part = body.subarray(at, at + size)
    parts.push(Buffer.from(`${part.length.toString(16)}\r\n`), part, Buffer.from('\r\n'))
  }
  return Buffer.concat([...parts, Buffer.from('0\r\n\r\n')])
}

async function nodesAreNotBlamed(t: Test, client: Client): Promise<void> {
  t.equal(await client.metric('holdfast_node_ejections_total'), 0, 'what clients do is not held against storage nodes')
}

async function memoryIsBounded(t: Test, cluster: Cluster): Promise<void> {
  const { process } = cluster.proxies[0]!
  const rss = await process.rssBytes()
  t.comment(`proxy: ${(rss / MiB).toFixed(0)} MiB resident`)
  t.ok(rss < rssBytesMax, 'I38: memory is bounded')
}

/** The cluster is as good as new. */
async function stillServes(t: Test, client: Client): Promise<void> {
  const body = Buffer.from(`still here ${Math.random()}`)
  t.equal((await client.put('raw/still', body)).body.length, 0)
  t.equal((await client.get('raw/still')).body.equals(body), true, 'everybody else is served')
}

t.test('clients that leave', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { proxyFlags: ['--hot-cache-bytes', '0'] })
  const client = cluster.client()
  const { url } = cluster.proxies[0]!

  await t.test('I8: an upload that breaks off at any byte leaves nothing', async t => {
    const paths: string[] = []
    const attempt = async (index: number): Promise<void> => {
      const path = `raw/cut/${index}`
      const body = random.bytes(random.pick([200, 30_000, 100_000, 1_500_000]))
      const inChunks = random.next() < 0.3
      const head = putHead(cluster, path, [inChunks ? 'Transfer-Encoding: chunked' : `Content-Length: ${body.length}`])
      const whole = Buffer.concat([Buffer.from(head), inChunks ? chunked(body, 40_000) : body])
      // Any byte of head or body, and more often the last ones.
      const length = random.next() < 0.3 ? whole.length - random.int(1, 8) : random.int(0, whole.length - 1)
      const connection = await RawConnection.open(url)
      await connection.send(whole.subarray(0, length))
      if (random.next() < 0.5) connection.reset()
      else {
        connection.socket.end()
        await Promise.race([once(connection.socket, 'close'), sleep(2_000, undefined, { ref: false })])
        connection.close()
      }
      paths.push(path)
    }
    for (let wave = 0; wave < 8; wave++) {
      await Promise.all(Array.from({ length: 15 }, (_, index) => attempt(wave * 15 + index)))
    }
    for (const path of paths) {
      const { status } = await client.get(path)
      if (status !== 404) t.fail(`${path}: ${status}`)
    }
    await eventually('nothing staged', async () => (await stagedFiles(cluster)).length === 0)
    await memoryIsBounded(t, cluster)
    await stillServes(t, client)
    await nodesAreNotBlamed(t, client)
  })

  await t.test('downloads that break off at any byte, three times as many as there are connections inside', async t => {
    const bodies = [random.bytes(90_000), random.bytes(900_000), random.bytes(6_000_000)]
    for (const [index, body] of bodies.entries()) t.equal((await client.put(`raw/leave/${index}`, body)).status, 201)
    const leave = async (): Promise<void> => {
      const which = random.int(0, 2)
      const connection = await RawConnection.open(url)
      const limit = random.int(1, bodies[which]!.length - 1)
      let seen = 0
      connection.socket.removeAllListeners('data')
      const enough = new Promise<void>(resolve => {
        connection.socket.on('data', (chunk: Buffer) => {
          seen += chunk.length
          if (seen >= limit) resolve()
        })
        connection.socket.once('close', () => resolve())
      })
      await connection.send(getHead(cluster, `raw/leave/${which}`))
      await enough
      if (random.next() < 0.5) connection.reset()
      else connection.close()
    }
    const counted = (): Promise<number> => client.metric('holdfast_request_seconds_count', /route="get"/)
    const before = await counted()
    for (let wave = 0; wave < 10; wave++) await Promise.all(Array.from({ length: 80 }, leave))
    await eventually('all are over', async () => (await counted()) >= before + 800)
    t.equal(await counted(), before + 800, 'each is counted once')
    for (const [index, body] of bodies.entries()) {
      for (let repeat = 0; repeat < 4; repeat++) {
        const answer = await client.get(`raw/leave/${index}`)
        t.equal(answer.body.equals(body), true, `a GET afterwards works (${answer.ms.toFixed(0)} ms)`)
      }
    }
    await memoryIsBounded(t, cluster)
    await nodesAreNotBlamed(t, client)
  })

  await t.test('I38: readers that do not read hold no memory', async t => {
    const body = random.bytes(30_000_000)
    t.equal((await client.put('raw/slow-reader', body)).status, 201)
    const connections = await Promise.all(Array.from({ length: 60 }, () => RawConnection.open(url)))
    for (const connection of connections) {
      await connection.send(getHead(cluster, 'raw/slow-reader'))
      connection.socket.pause()
    }
    await eventually('all are being answered', async () => (await client.metric('holdfast_replica_reads_total')) >= 60)
    await stillServes(t, client)
    await memoryIsBounded(t, cluster)
    for (const connection of connections) connection.close()
    await nodesAreNotBlamed(t, client)
  })
  t.strictSame(cluster.crashes(), [])
})

t.test('clients that send something else than they said', async t => {
  const random = seededRandom(t)
  const cluster = await startCluster(t, { proxyFlags: ['--idle-ms', '1500'] })
  const client = cluster.client()
  const { url } = cluster.proxies[0]!
  const lastStatus = (answers: readonly RawAnswer[]): number => answers.at(-1)?.status ?? 0

  await t.test('wrong checksums are refused with both values, and nothing becomes visible', async t => {
    for (const size of [2_000, 300_000]) {
      const body = random.bytes(size)
      const other = random.bytes(size)
      const wrong: Record<string, string> = {
        'X-Checksum-Sha256': hash('sha256', other),
        'X-Checksum-Sha1': hash('sha1', other),
        'X-Checksum-Md5': hash('md5', other),
        'Content-MD5': createHash('md5').update(other).digest('base64'),
        Digest: `SHA-256=${createHash('sha256').update(other).digest('base64')}`,
      }
      for (const [name, value] of Object.entries(wrong)) {
        const path = `raw/checksum/${name}-${size}`
        const answer = await client.request('PUT', path, { body, headers: { [name]: value } })
        t.equal(answer.status, 400, `${name}: ${answer.body.toString()}`)
        const { code, ...facts } = JSON.parse(answer.body.toString()) as Record<string, unknown>
        t.equal(code, 'CHECKSUM_MISMATCH')
        const text = JSON.stringify(facts)
        const values = [other, body].flatMap(bytes => ['sha256', 'sha1', 'md5'].map(name => hash(name, bytes)))
        t.equal(values.filter(value => text.includes(value)).length, 2, 'the answer names both values')
        t.equal((await client.get(path)).status, 404)
      }
    }
  })

  await t.test(
    'a body shorter than its length, a broken chunk, a stalled body: an error, and nothing visible',
    async t => {
      for (const size of [2_000, 300_000]) {
        const body = random.bytes(size)
        const short = await RawConnection.open(url)
        await short.send(putHead(cluster, 'raw/wrong/short', [`Content-Length: ${size + 1}`]))
        await short.send(body)
        short.socket.end()
        await short.answers()
        const broken = await sendRaw(
          url,
          Buffer.concat([
            Buffer.from(putHead(cluster, 'raw/wrong/chunk', ['Transfer-Encoding: chunked'])),
            chunked(body, 1_000).subarray(0, -5),
            Buffer.from('zz\r\nrubbish'),
          ]),
        )
        t.ok([0, 400].includes(lastStatus(broken)), 'a broken chunk ends the request')
        const stalled = await RawConnection.open(url)
        await stalled.send(putHead(cluster, 'raw/wrong/stalled', [`Content-Length: ${size}`]))
        await stalled.send(body.subarray(0, size >> 1))
        const answers = await stalled.answers({ withinMs: 15_000 })
        t.equal(lastStatus(answers), 408, 'a stalled body is given up, and its client is told so')
        t.match(answers.at(-1)?.body, '"code":"REQUEST_TIMEOUT"')
        stalled.close()
        for (const name of ['short', 'chunk', 'stalled']) {
          t.equal((await client.get(`raw/wrong/${name}`)).status, 404, `${name} of ${size} bytes is not visible`)
        }
      }
      await eventually('nothing staged', async () => (await stagedFiles(cluster)).length === 0)
    },
  )

  await t.test('a body longer than its length is no longer than that; the rest is no request', async t => {
    const body = random.bytes(70_000)
    const head = putHead(cluster, 'raw/wrong/long', ['Content-Length: 69000'])
    const answers = await sendRaw(url, Buffer.concat([Buffer.from(head), body]))
    // 0: the rest, which is no request, arrived before the answer was ready, and the connection was cut.
    t.ok([0, 201, 400].includes(answers[0]?.status ?? 0), `${answers.map(({ status }) => status).join()}`)
    const answer = await client.get('raw/wrong/long')
    if (answer.status === 200 || answers[0]?.status === 201) {
      t.equal(answer.body.equals(body.subarray(0, 69_000)), true, 'if it was taken, then as long as was said')
    }
  })

  await t.test('a slow body that goes on is patiently taken', async t => {
    const body = random.bytes(100_000)
    const connection = await RawConnection.open(url)
    await connection.send(putHead(cluster, 'raw/drip', [`Content-Length: ${body.length}`]))
    for (let at = 0; at < body.length; at += 10_000) {
      await connection.send(body.subarray(at, at + 10_000))
      await sleep(250) // the pace of this client, not a wait for something
    }
    t.equal(lastStatus(await connection.answers()), 201)
    connection.close()
    t.equal((await client.get('raw/drip')).body.equals(body), true)
  })

  await t.test('heads that are too large are told so', async t => {
    const large = `GET /repository/raw/x HTTP/1.1\r\nHost: h\r\nX-Large: ${'x'.repeat(40_000)}\r\n\r\n`
    t.equal(lastStatus(await sendRaw(url, large)), 431)
    const many = Array.from({ length: 3_000 }, (_, index) => `X-${index}: ${index}`).join('\r\n')
    t.equal(lastStatus(await sendRaw(url, `GET /repository/raw/x HTTP/1.1\r\nHost: h\r\n${many}\r\n\r\n`)), 431)
    t.equal(
      lastStatus(await sendRaw(url, `GET /repository/raw/${'x/'.repeat(5_000)}y HTTP/1.1\r\nHost: h\r\n\r\n`)),
      414,
    )
  })
  await stillServes(t, client)
  await memoryIsBounded(t, cluster)
  t.strictSame(cluster.crashes(), [])
})

t.test('I38: ten thousand idle connections, as many as this machine allows, harm nobody', async t => {
  const cluster = await startCluster(t)
  const client = cluster.client({ connections: 4 })
  await stillServes(t, client)
  const limits = await readFile('/proc/self/limits', 'latin1')
  const openFilesMax = Number(/Max open files\s+(\d+)/.exec(limits)?.[1] ?? 1024)
  // The proxy's own limit is 10,000 connections; some are ours.
  const count = Math.min(9_900, openFilesMax - 500)
  const { hostname, port } = new URL(cluster.proxies[0]!.url)
  const before = await cluster.proxies[0]!.process.rssBytes()
  const sockets: Socket[] = []
  t.teardown(() => sockets.forEach(socket => socket.destroy()))
  while (sockets.length < count) {
    const wave = Array.from({ length: Math.min(200, count - sockets.length) }, () =>
      connect({ host: hostname, port: Number(port) }),
    )
    await Promise.all(wave.map(socket => once(socket, 'connect')))
    for (const socket of wave) socket.on('error', () => {}) // the proxy may close idle ones
    // Some have asked something before and keep their connection.
    for (const socket of wave.slice(0, 50)) socket.write('GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n')
    sockets.push(...wave)
  }
  await stillServes(t, client)
  const after = await cluster.proxies[0]!.process.rssBytes()
  t.comment(`${count} connections: ${(before / MiB).toFixed(0)} -> ${(after / MiB).toFixed(0)} MiB`)
  await memoryIsBounded(t, cluster)
  t.strictSame(cluster.crashes(), [])
})
