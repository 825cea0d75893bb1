/**
 * The read leg between nodes: blobs over kept connections, in pieces that are read straight into buffers of ours. What undici makes of a
 * body (a parser that copies, a stream of chunks of 64 KiB) took more of the node's thread than their sha256.
 */
import assert from 'node:assert/strict'
import { HoldfastError } from '../shared/errors.ts'
import { PatientTimer } from '../shared/patient-timer.ts'
import { ReadBuffers } from '../shared/read-buffers.ts'
import { type AnswerReceiver, ReadConnection } from '../shared/read-connection.ts'
import type { AnswerHead } from '../shared/read-head.ts'
import { wireHeader } from '../shared/wire.ts'
import type { Urgency } from './background.ts'
import { BufferPool } from './buffer-pool.ts'

/** One turn of the disk that they are written to. */
const pieceBytes = 1024 * 1024
/** Of one blob in memory: one is summed and written while the others come. */
const piecesMax = 3
const pieceBuffers = new BufferPool(pieceBytes, 24)
/** Where clients keep the source's disk busy it gives a piece now and then. */
const silenceMsMax = 30_000
const sweepMs = 1_000

export interface SourceRead {
  /** Of the node. */
  readonly url: string
  readonly path: string
  readonly bytes: number
  readonly urgency: Urgency
  /** The source checks what it sends; else that is left to who takes it. */
  readonly verified: boolean
}

export class SourceReader {
  readonly #authorization: string
  readonly #silenceMs: number
  readonly #buffers = new ReadBuffers()
  /** By the URL of the node. */
  readonly #idle = new Map<string, ReadConnection[]>()
  readonly #open = new Set<ReadConnection>()
  readonly #sweep = setInterval(() => this.#closeOverdue(), sweepMs).unref()

  /** `silenceMs`: an answer that stands still for so long is given up, after twice that at the latest. */
  constructor(authorization: string, silenceMs = silenceMsMax) {
    this.#authorization = authorization
    this.#silenceMs = silenceMs
  }

  /**
   * The blob from its first to its last byte, in pieces of 1 MiB but for the last one; each is the caller's until it asks for the next.
   * Rejects with REPLICAS_UNREACHABLE if the source has something else or nothing, with what the connection broke with, or with the
   * signal's reason.
   */
  async *pieces(request: SourceRead, signal: AbortSignal): AsyncGenerator<Buffer, void, void> {
    signal.throwIfAborted()
    const begun = (connection: ReadConnection): Answer => {
      const answer = new Answer(connection, request.bytes, this.#silenceMs)
      connection.send(this.#requestText(request), answer)
      return answer
    }
    let answer = begun(this.#usableIdle(request.url) ?? this.#connect(request.url))
    const onAbort = (): void => answer.fail(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      for (let piece = await answer.next(); piece !== undefined; piece = await answer.next()) {
        if (piece === 'stale') {
          answer = begun(this.#connect(request.url))
          continue
        }
        yield piece
        answer.release()
      }
      answer.giveBack()
    } finally {
      signal.removeEventListener('abort', onAbort)
      answer.leave()
    }
  }

  /** Cuts every connection; reads under way reject. */
  close(): void {
    clearInterval(this.#sweep)
    for (const connection of this.#open) connection.close()
  }

  #requestText({ url, path, urgency, verified }: SourceRead): string {
    const headers = {
      host: new URL(url).host,
      authorization: this.#authorization,
      [wireHeader.background]: urgency,
      ...(verified ? {} : { [wireHeader.unverified]: 'sha256' }),
    }
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
    return `GET ${path} HTTP/1.1\r\n${lines.join('')}\r\n`
  }

  #connect(url: string): ReadConnection {
    const { protocol, hostname, port } = new URL(url)
    assert.equal(protocol, 'http:', 'nodes speak plain HTTP')
    const connection = new ReadConnection({
      host: hostname.replace(/^\[|\]$/g, ''),
      port: Number(port === '' ? 80 : port),
      buffers: this.#buffers,
      now: () => performance.now(),
      onClosed: closed => {
        this.#open.delete(closed)
        this.#forget(url, closed)
      },
      onIdle: idle => this.#idle.set(url, [...(this.#idle.get(url) ?? []), idle]),
    })
    this.#open.add(connection)
    return connection
  }

  /** The one used last: the others then age and close. */
  #usableIdle(url: string): ReadConnection | undefined {
    const connection = this.#idle.get(url)?.at(-1)
    if (connection === undefined) return undefined
    this.#forget(url, connection)
    if (connection.idleUntil > performance.now()) return connection
    connection.close()
    return undefined
  }

  #forget(url: string, connection: ReadConnection): void {
    const others = this.#idle.get(url)?.filter(one => one !== connection) ?? []
    if (others.length > 0) this.#idle.set(url, others)
    else this.#idle.delete(url)
  }

  #closeOverdue(): void {
    const now = performance.now()
    const overdue = [...this.#idle.values()].flat().filter(({ idleUntil }) => idleUntil <= now)
    for (const connection of overdue) connection.close()
  }
}

/** One answer on its way: piece by piece into the same few buffers, in turn. */
class Answer implements AnswerReceiver {
  readonly #connection: ReadConnection
  readonly #bytes: number
  readonly #silenceMs: number
  readonly #silence = new PatientTimer()
  readonly #buffers: Buffer[] = []
  #seen = 0
  /** Pieces that have come, and that the caller has had. */
  #come = 0
  #taken = 0
  #released = 0
  #end: 'open' | 'whole' | 'stale' | Error = 'open'
  #wake: (() => void) | undefined

  constructor(connection: ReadConnection, bytes: number, silenceMs: number) {
    this.#connection = connection
    this.#bytes = bytes
    this.#silenceMs = silenceMs
    this.#watch()
  }

  /** Undefined: that was all. 'stale': a kept connection had ended before; the request may go out again. */
  async next(): Promise<Buffer | 'stale' | undefined> {
    if (this.#taken === this.#come && this.#end === 'open') await new Promise<void>(resolve => (this.#wake = resolve))
    if (this.#end instanceof Error) throw this.#end
    if (this.#taken < this.#come) return this.#piece(this.#taken++)
    return this.#end === 'stale' ? this.#end : undefined
  }

  /** The oldest piece is no longer needed. */
  release(): void {
    this.#released += 1
    // Behind its end the connection may serve another one already.
    if (this.#end === 'open') this.#connection.resume()
  }

  /** Nobody looks at any of the pieces. */
  giveBack(): void {
    for (const buffer of this.#buffers) pieceBuffers.give(buffer)
  }

  /** These do nothing once it has ended. */
  fail(error: Error): void {
    if (this.#end === 'open') this.#connection.destroy()
    this.#finish(error)
  }

  leave(): void {
    if (this.#end === 'open') this.fail(unreachable('the rest is not wanted any more'))
  }

  onHead(head: AnswerHead): Buffer | 'refuse' | HoldfastError {
    if (head.status >= 300) return 'refuse'
    if (head.status === 200 && head.bytes === this.#bytes) return this.#piece(0)
    return unreachable('the source has something else', { status: head.status, bytes: head.bytes })
  }

  onFull(): { readonly target: Buffer; readonly wait: boolean } {
    this.#come += 1
    this.#wakeUp()
    return { target: this.#piece(this.#come), wait: this.#come - this.#released >= piecesMax }
  }

  onChunk(): boolean {
    return false
  }

  onEnd(): void {
    this.#come += 1
    this.#finish('whole')
  }

  onRefused(status: number): void {
    this.#finish(unreachable('the source does not have the blob', { status }))
  }

  onBroken(error: Error, stale: boolean): void {
    this.#finish(stale ? 'stale' : error)
  }

  /** Where it is, or is to go. */
  #piece(index: number): Buffer {
    const buffer = (this.#buffers[index % piecesMax] ??= pieceBuffers.take())
    return buffer.subarray(0, Math.min(pieceBytes, this.#bytes - index * pieceBytes))
  }

  #watch(): void {
    this.#silence.set(this.#silenceMs, () => {
      const { received, paused } = this.#connection
      if (!paused && received === this.#seen) return this.fail(unreachable('the source is silent'))
      this.#seen = received
      this.#watch()
    })
  }

  #finish(end: 'whole' | 'stale' | Error): void {
    if (this.#end !== 'open') return
    this.#end = end
    this.#silence.clear()
    this.#wakeUp()
  }

  #wakeUp(): void {
    this.#wake?.()
    this.#wake = undefined
  }
}

function unreachable(message: string, data: HoldfastError['data'] = {}): HoldfastError {
  return new HoldfastError('REPLICAS_UNREACHABLE', message, data)
}
