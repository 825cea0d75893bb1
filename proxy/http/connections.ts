/** The connections of clients, and when those of a proxy that ends may be closed: no request on its way on one of them shall be lost (I39). */
import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

/** How long a proxy that ends listens for requests that its clients sent before they could know, in ms. */
export const quietWithinMs = 1_000
/** It leaves earlier when none has come for so long: what was sent to it before is here by then, from anywhere in a continent. */
const quietMs = 250
/** A connection that was accepted last brings its first request within so long, unless its client has none yet. */
const firstRequestMs = 1_000
const lookMs = 10

export class Connections {
  /** With the time they were accepted; by performance.now(). */
  readonly #open = new Map<Socket, number>()
  #requestedAt = 0
  /** Called when the last connection has gone. */
  #onDeserted: (() => void) | undefined

  add(socket: Socket): void {
    this.#open.set(socket, performance.now())
    socket.once('close', () => {
      this.#open.delete(socket)
      if (this.#open.size === 0) this.#onDeserted?.()
    })
  }

  [Symbol.iterator](): IterableIterator<Socket> {
    return this.#open.keys()
  }

  /** A request has come in on one of them. */
  requested(): void {
    this.#requestedAt = performance.now()
  }

  /** Resolves when no connection is left or no request has come for `quietMs`, after `withinMs` at the latest. */
  async quiet(withinMs: number): Promise<void> {
    const until = performance.now() + withinMs
    this.requested()
    while (this.#open.size > 0) {
      const leftMs = Math.min(until, this.#requestedAt + quietMs) - performance.now()
      if (leftMs <= 0) return
      await this.#deserted(leftMs)
      // What came in while this process did something else is read before it counts as not come.
      await new Promise(resolve => setImmediate(resolve))
    }
  }

  /** Resolves when no new connection is left whose client has not had the time to say what it wants. */
  async heard(): Promise<void> {
    const isExpected = ([socket, acceptedAt]: [Socket, number]): boolean =>
      socket.bytesWritten === 0 && performance.now() - acceptedAt < firstRequestMs
    while ([...this.#open].some(isExpected)) await sleep(lookMs)
  }

  /** Resolves when no connection is left, after `withinMs` at the latest. */
  #deserted(withinMs: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, withinMs)
      this.#onDeserted = () => {
        clearTimeout(timer)
        resolve()
      }
      if (this.#open.size === 0) this.#onDeserted()
    })
  }
}
