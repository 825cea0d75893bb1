/**
 * Requests to one origin that is not ours, over node:http. Not over undici: its version 7 ends the process when a server that announced
 * `Connection: close` ends the connection while the reader of the body pauses.
 */
import { Agent as HttpAgent, type IncomingMessage, request as httpRequest } from 'node:http'
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https'
import type { LookupFunction, Socket } from 'node:net'

/** Sooner than most servers end what is idle, where they do not say when. */
const idleMs = 4_000

export interface OriginHttpOptions {
  /** At once; what is more waits. */
  readonly connections: number
  /** But not longer than this for one of them; undefined: as long as it takes. */
  readonly queueMs?: number | undefined
  readonly connectMs: number
  /** A body that brings nothing for so long, while its reader waits, breaks off. */
  readonly silentMs: number
  /** In place of DNS. */
  readonly lookup?: LookupFunction | undefined
}

export interface HttpAsk {
  readonly method: string
  /** With the query, encoded. */
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: Buffer | undefined
  /** From the connection on, until the head of the answer is here. */
  readonly headMs: number
  readonly signal: AbortSignal | undefined
}

/** What the code of an error says: too late for the connection, the head or more of the body. */
class TooLate extends Error {
  readonly code = 'ETIMEDOUT'
}

/** All connections are in use: says nothing about the server. */
class NoneFree extends Error {
  readonly code = 'EBUSY'
}

export class OriginHttp {
  readonly #origin: URL
  readonly #options: OriginHttpOptions
  readonly #agent: HttpAgent

  /** Connects when first asked. Idle connections keep no process alive. */
  constructor(origin: string, options: OriginHttpOptions) {
    const { connections: maxSockets, lookup } = options
    const agent = { keepAlive: true, maxSockets, timeout: idleMs, ...(lookup === undefined ? {} : { lookup }) }
    this.#origin = new URL(origin)
    this.#options = options
    this.#agent = this.#origin.protocol === 'https:' ? new HttpsAgent(agent) : new HttpAgent(agent)
  }

  /**
   * Resolves with the head; the body is to be read to its end or destroyed, and may break off (an error). It is read no faster than it is
   * taken. Rejects with the error of the connection, ETIMEDOUT, EBUSY, or an AbortError.
   */
  ask({ method, path, headers, body, headMs, signal }: HttpAsk): Promise<IncomingMessage> {
    const { connectMs, silentMs, queueMs } = this.#options
    const send = this.#origin.protocol === 'https:' ? httpsRequest : httpRequest
    const length =
      body !== undefined || method === 'PUT' || method === 'POST' ? { 'content-length': body?.length ?? 0 } : {}
    const options = { agent: this.#agent, method, path, headers: { ...headers, ...length } }
    const request = send(this.#origin, signal === undefined ? options : { ...options, signal })
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined
      const limit = (ms: number, what: string): void => {
        clearTimeout(timer)
        timer = setTimeout(() => request.destroy(new TooLate(`${what} within ${ms} ms`)), ms)
      }
      if (queueMs !== undefined) {
        timer = setTimeout(() => {
          reject(new NoneFree(`no connection is free within ${queueMs} ms`)) // it would tell only when it has one
          request.destroy()
        }, queueMs)
      }
      const toHead = (): void => limit(headMs, 'no answer')
      request.once('socket', (socket: Socket) => {
        if (!socket.listeners('error').includes(toldElsewhere)) socket.on('error', toldElsewhere)
        if (!socket.connecting) return toHead()
        limit(connectMs, 'no connection')
        socket.once(this.#agent instanceof HttpsAgent ? 'secureConnect' : 'connect', toHead)
      })
      request.once('response', response => {
        clearTimeout(timer)
        endSilence(response, silentMs)
        resolve(response)
      })
      request.on('error', reject) // also after the head, where the body tells it
      request.once('close', () => {
        clearTimeout(timer)
        reject(new Error('no answer')) // unless there was one
      })
      request.end(body)
    })
  }
}

/**
 * The request is told of the errors of its connection. But node:http has left the connection a moment before it is free for the next
 * request, and an abort in that moment would be nobody's error, which ends the process.
 */
const toldElsewhere = (): void => {}

/** Destroys a body whose reader has taken all there is and gets no more for so long, and twice that at most. */
function endSilence(response: IncomingMessage, silentMs: number): void {
  const { socket } = response
  let seen = -1
  const onTimeout = (): void => {
    if (response.complete) return
    // What a reader who takes his time has just made room for may be about to come: only who waited all the time has met silence.
    const isWaiting = response.readableLength === 0
    if (isWaiting && socket.bytesRead === seen) response.destroy(new TooLate(`nothing more within ${silentMs} ms`))
    seen = isWaiting ? socket.bytesRead : -1
    socket.setTimeout(silentMs)
  }
  socket.setTimeout(silentMs)
  socket.on('timeout', onTimeout)
  response.once('close', () => socket.removeListener('timeout', onTimeout))
}
