/**
 * What operators put before the proxies, as simple as it comes: it passes bytes to one backend after the other, asks each `/readyz` every
 * now and then, and goes to the next one if a connection is refused. It repeats nothing and understands no HTTP.
 */
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import type { Test } from 'tap'
import { fetch } from 'undici'

export interface BalancerOptions {
  /** Undefined: it never asks, and only notices refused connections. */
  readonly checkMs?: number
}

export class Balancer {
  readonly #backends: readonly URL[]
  readonly #ready: boolean[]
  readonly #out = new Set<string>()
  readonly #sockets = new Set<Socket>()
  readonly #server: Server
  #timer: NodeJS.Timeout | undefined
  #turn = 0
  /** Connections that found their backend gone, and went to another one. */
  refused = 0

  constructor(backends: readonly string[], { checkMs }: BalancerOptions = {}) {
    this.#backends = backends.map(url => new URL(url))
    this.#ready = backends.map(() => true)
    this.#server = createServer({ allowHalfOpen: true }, client => this.#accept(client))
    if (checkMs !== undefined)
      this.#timer = setInterval(() => this.#backends.forEach((_, i) => void this.#check(i)), checkMs)
  }

  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  /** No new connections to this one until it is put back, as an operator does before work on it. */
  takeOut(backend: string): void {
    this.#out.add(new URL(backend).origin)
  }

  putBack(backend: string): void {
    this.#out.delete(new URL(backend).origin)
  }

  async close(): Promise<void> {
    clearInterval(this.#timer)
    for (const socket of this.#sockets) socket.destroy()
    this.#server.close()
    await once(this.#server, 'close')
  }

  async #check(index: number): Promise<void> {
    const url = new URL('/readyz', this.#backends[index])
    const answer = await fetch(url, { signal: AbortSignal.timeout(2_000) }).catch(() => undefined)
    this.#ready[index] = answer?.status === 200
    await answer?.text().catch(() => undefined)
  }

  #accept(client: Socket): void {
    this.#sockets.add(client)
    client.on('error', () => client.destroy()).on('close', () => this.#sockets.delete(client))
    client.pause()
    const first = this.#turn++
    const all = this.#backends.map((_, i) => (first + i) % this.#backends.length)
    const order = all.filter(i => !this.#out.has(this.#backends[i]?.origin ?? ''))
    // Those that are not ready come last: when nobody is, any is tried.
    this.#dial(client, [...order.filter(i => this.#ready[i]), ...order.filter(i => !this.#ready[i])])
  }

  #dial(client: Socket, order: readonly number[]): void {
    const [index, ...others] = order
    const backend = index === undefined ? undefined : this.#backends[index]
    if (backend === undefined) return void client.destroy()
    const server = connect({ host: backend.hostname, port: Number(backend.port), allowHalfOpen: true, noDelay: true })
    server.once('error', () => {
      this.refused++
      this.#dial(client, others)
    })
    server.once('connect', () => {
      server.removeAllListeners('error')
      this.#sockets.add(server)
      server.on('error', () => client.resetAndDestroy()).on('close', () => {
        this.#sockets.delete(server)
        // What came is passed on first.
        if (!client.writableEnded) client.destroySoon()
      }) // prettier-ignore
      client.on('close', () => server.destroy())
      client.setNoDelay(true).pipe(server).pipe(client)
    })
  }
}

export async function startBalancer(
  t: Test,
  backends: readonly string[],
  options?: BalancerOptions,
): Promise<Balancer> {
  const balancer = new Balancer(backends, options)
  await balancer.listen()
  t.teardown(() => balancer.close())
  return balancer
}
