/**
 * A TCP relay that behaves as bad networks do. It stands between a client and a server that know nothing of it: between
 * proxy and storage node, or between proxy and Redis or PostgreSQL.
 */
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import type { Test } from 'tap'

export type ChaosMode =
  /** Bytes pass. */
  | 'pass'
  /** No connection lives and none is made: they end with a reset. */
  | 'cut'
  /** Connections are accepted and stay, nothing passes: a partition. */
  | 'blackhole'
  /** What the client says arrives; the answers never do: a partition of one direction. */
  | 'half-open'

export class ChaosRelay {
  readonly #target: { readonly host: string; readonly port: number }
  readonly #server: Server
  readonly #pairs = new Set<{ client: Socket; server: Socket }>()
  #mode: ChaosMode = 'pass'
  /** Milliseconds that each piece of an answer is held back. */
  latencyMs = 0
  /** Bytes a second of answers, per connection; 0: as fast as it goes. */
  dripBytes = 0
  #cutAfter: number | undefined

  constructor(target: { host: string; port: number }) {
    this.#target = target
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, client => this.#accept(client))
  }

  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  get connections(): number {
    return this.#pairs.size
  }

  get mode(): ChaosMode {
    return this.#mode
  }

  set mode(mode: ChaosMode) {
    this.#mode = mode
    for (const pair of this.#pairs) {
      if (mode === 'cut') this.#reset(pair)
      else this.#flow(pair)
    }
  }

  /** The next connection that has carried this many bytes of answers is reset in the middle. */
  cutOnceAfter(bytes: number): void {
    this.#cutAfter = bytes
  }

  /** Resets all connections there are; new ones pass. */
  resetAll(): void {
    for (const pair of this.#pairs) this.#reset(pair)
  }

  async close(): Promise<void> {
    this.resetAll()
    this.#server.close()
    await once(this.#server, 'close')
  }

  #accept(client: Socket): void {
    if (this.#mode === 'cut') {
      client.resetAndDestroy()
      return
    }
    const server = connect({ ...this.#target, allowHalfOpen: true, noDelay: true })
    client.setNoDelay(true)
    const pair = { client, server }
    this.#pairs.add(pair)
    for (const socket of [client, server]) {
      socket.on('error', () => this.#reset(pair)) // told to the other side by the reset
      socket.on('close', () => this.#reset(pair))
    }
    client.on('data', chunk => this.#pass(client, server, chunk))
    client.on('end', () => server.end())
    let carried = 0
    server.on('data', chunk => {
      carried += chunk.length
      if (this.#cutAfter !== undefined && carried >= this.#cutAfter) {
        this.#cutAfter = undefined
        this.#reset(pair)
        return
      }
      this.#answer(pair, chunk)
    })
    server.on('end', () => client.end())
    this.#flow(pair)
  }

  #flow({ client, server }: { client: Socket; server: Socket }): void {
    const toServer = this.#mode === 'pass' || this.#mode === 'half-open'
    if (toServer) client.resume()
    else client.pause()
    if (this.#mode === 'pass') server.resume()
    else server.pause()
  }

  #pass(from: Socket, to: Socket, chunk: Buffer): void {
    if (to.destroyed || to.write(chunk)) return
    from.pause()
    to.once('drain', () => {
      if (this.#mode === 'pass' || (this.#mode === 'half-open' && to !== from)) from.resume()
    })
  }

  #answer(pair: { client: Socket; server: Socket }, chunk: Buffer): void {
    const waitMs = this.latencyMs + (this.dripBytes === 0 ? 0 : (chunk.length / this.dripBytes) * 1000)
    if (waitMs === 0) {
      this.#pass(pair.server, pair.client, chunk)
      return
    }
    pair.server.pause()
    setTimeout(() => {
      if (!pair.client.destroyed) pair.client.write(chunk)
      if (this.#mode === 'pass') pair.server.resume()
    }, waitMs)
  }

  #reset(pair: { client: Socket; server: Socket }): void {
    if (!this.#pairs.delete(pair)) return
    for (const socket of [pair.client, pair.server]) {
      // A reset of a socket that has begun to close fails, and would leave it open for ever.
      if (socket.writableEnded || socket.connecting) socket.destroy()
      else if (!socket.destroyed) socket.resetAndDestroy()
    }
  }
}

/** A relay to `url`'s host and port; ends with the test. `url` of the result is that of the relay. */
export async function startChaos(t: Pick<Test, 'teardown'>, url: string): Promise<{ relay: ChaosRelay; url: string }> {
  const { hostname, port } = new URL(url)
  const relay = new ChaosRelay({ host: hostname, port: Number(port) })
  await relay.listen()
  t.teardown(() => relay.close())
  const relayed = new URL(url)
  relayed.hostname = '127.0.0.1'
  relayed.port = String(relay.port)
  return { relay, url: relayed.href.replace(/\/$/, '') }
}
