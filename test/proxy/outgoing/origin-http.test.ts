import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { OriginHttp, type OriginHttpOptions } from '../../../proxy/outgoing/origin-http.ts'

const ask = { method: 'GET', path: '/', headers: {}, body: undefined, headMs: 5_000, signal: undefined } as const

async function start(t: Test, options: Partial<OriginHttpOptions> = {}): Promise<OriginHttp> {
  const server = createServer((_, response) => void response.end('hello')).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return new OriginHttp(origin, { connections: 1, connectMs: 5_000, silentMs: 5_000, ...options })
}

t.test('who gives up at the very moment at which the answer ends harms nobody', async t => {
  const http = await start(t)
  for (const method of ['GET', 'HEAD']) {
    for (let ticks = 0; ticks < 5; ticks += 1) {
      const given = new AbortController()
      const response = await http.ask({ ...ask, method, signal: given.signal })
      response.on('error', () => {}).resume()
      let left = ticks
      const giveUp = (): void => (left-- > 0 ? process.nextTick(giveUp) : given.abort())
      giveUp()
      await new Promise(setImmediate)
    }
  }
  const response = await http.ask(ask)
  t.equal(response.statusCode, 200)
  response.resume()
})

t.test('a request waits for a connection only so long', async t => {
  const http = await start(t, { queueMs: 200 })
  const first = await http.ask(ask)
  await t.rejects(http.ask(ask), { code: 'EBUSY' })
  first.resume()
  await once(first, 'close')
  const next = await http.ask(ask)
  t.equal(next.statusCode, 200)
  next.resume()
})
