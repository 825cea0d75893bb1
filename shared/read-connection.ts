/**
 * One kept connection of the read leg: HTTP/1.1 on a plain socket whose `onread` fills buffers of ours, so that a body
 * costs no allocation per chunk. Measured against undici's dispatch: half the CPU, small or large (bench/read-leg.ts).
 *
 *     connecting ──▶ idle ◀──▶ head ──▶ body ──▶ idle          any surprise ──▶ closed, for good
 */
import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { HoldfastError } from './errors.ts'
import { PatientTimer } from './patient-timer.ts'
import { BufferPair, type ReadBuffers } from './read-buffers.ts'
import { type AnswerHead, headBytesMax, parseHead } from './read-head.ts'

const headEnd = Buffer.from('\r\n\r\n')
/** Error answers are short JSON. */
const errorBytesMax = 64 * 1024
const connectTimeoutMs = 1_000
/** Used when the node does not say how long it keeps an idle connection; node:http closes after 5 s. */
const keepAliveDefaultMs = 4_000
const keepAliveMsMax = 30_000

/** What happens to one answer. After `onEnd`, `onRefused` or `onBroken` nothing more is called. */
export interface AnswerReceiver {
  /**
   * The head. A Buffer: read the body into it (exactly `head.bytes` long, or else there is `onFull`, and it is longer than any head).
   * 'chunks': hand it on by `onChunk`. 'refuse': collect a short body for `onRefused`. An error: the answer is not what was asked for;
   * the connection is given up.
   */
  onHead(head: AnswerHead): Buffer | 'chunks' | 'refuse' | HoldfastError
  /** The buffer is full, and the body goes on: in which one. With `wait` nothing is read into it before `resume`. */
  onFull?(): { readonly target: Buffer; readonly wait: boolean }
  /** True: the chunk is held until `release()`, in order; with two held the connection does not read. False: done with it. */
  onChunk(chunk: Buffer): boolean
  onEnd(): void
  onRefused(status: number, body: string): void
  /** `stale`: a kept connection that ended before any byte of the answer; the request may go out again at once. */
  onBroken(error: Error, stale: boolean): void
}

export interface ConnectionDeps {
  readonly host: string
  readonly port: number
  readonly buffers: ReadBuffers
  readonly now: () => number
  /** Called once, whatever the reason. */
  readonly onClosed: (connection: ReadConnection) => void
  /** The answer in flight ended well and the connection can serve another. */
  readonly onIdle: (connection: ReadConnection) => void
}

/** An error with a reason in `code`, as the system's have. */
export class ReadFault extends Error {
  readonly code: string

  constructor(code: string) {
    super(code)
    this.code = code
  }
}

export class ReadConnection {
  readonly #deps: ConnectionDeps
  readonly #socket: Socket
  readonly #connectTimer = new PatientTimer()
  #state: 'idle' | 'head' | 'body' | 'closed' = 'idle'
  #receiver: AnswerReceiver | undefined
  #served = 0
  /** Bytes of the answer in flight, head included. */
  #received = 0
  #headPart: Buffer | undefined
  #head: AnswerHead | undefined
  #left = 0
  /** Exactly one of these says where the body goes. */
  #target: Buffer | undefined
  /** Bytes of the body in the target. */
  #filled = 0
  #pair: BufferPair | undefined
  #refusal: Buffer | undefined
  #paused = false
  #reading: Buffer
  /** Until when it may be used again. */
  idleUntil = 0

  constructor(deps: ConnectionDeps) {
    this.#deps = deps
    this.#reading = deps.buffers.shared
    const onread = {
      buffer: () => this.#reading,
      callback: (bytes: number, buffer: Uint8Array) => this.#onRead(bytes, buffer as Buffer),
    }
    this.#socket = connect({ host: deps.host, port: deps.port, noDelay: true, onread })
    this.#connectTimer.set(connectTimeoutMs, () => this.#fail(new ReadFault('CONNECT_TIMEOUT')))
    this.#socket.on('connect', () => this.#connectTimer.clear())
    this.#socket.on('error', error => this.#fail(error))
    this.#socket.on('end', () => this.#fail(new ReadFault(this.#received === 0 ? 'ECONNRESET' : 'SHORT_ANSWER')))
    this.#socket.on('close', () => this.#fail(new ReadFault('ECONNRESET')))
  }

  /** Bytes of the current answer so far: a watchdog compares two looks. */
  get received(): number {
    return this.#received
  }

  /** Not reading, because the receiver holds two chunks, or waits with its next buffer: silence is then not the node's. */
  get paused(): boolean {
    return this.#paused
  }

  get closed(): boolean {
    return this.#state === 'closed'
  }

  /** Sends a request; only on an idle connection. */
  send(request: string, receiver: AnswerReceiver): void {
    this.#receiver = receiver
    this.#state = 'head'
    this.#received = 0
    this.#socket.write(request, 'latin1')
  }

  /** The oldest chunk handed on is no longer needed. */
  release(pair: BufferPair): void {
    pair.release()
    if (!this.#paused || pair !== this.#pair || this.#state === 'closed') return
    this.#paused = false
    this.#socket.resume()
  }

  /** The buffer that `onFull` gave with `wait` may be read into. */
  resume(): void {
    if (!this.#paused || this.#state === 'closed') return
    this.#paused = false
    this.#socket.resume()
  }

  /** The buffers of the answer in flight, once it comes in chunks. */
  get pair(): BufferPair | undefined {
    return this.#pair
  }

  /** Closes at once; an answer in flight is broken off. */
  close(): void {
    this.#fail(new ReadFault('CLOSED'))
  }

  /** Closes at once; an answer in flight is dropped without a word to its receiver. */
  destroy(): void {
    this.#receiver = undefined
    this.#fail(new ReadFault('ABORTED'))
  }

  #onRead(bytes: number, buffer: Buffer): boolean {
    if (this.#state === 'idle') {
      this.#fail(new ReadFault('UNASKED'))
      return false
    }
    this.#received += bytes
    if (this.#state === 'head') this.#onHeadBytes(buffer.subarray(0, bytes))
    else this.#onBodyBytes(buffer, 0, bytes)
    return this.#readOn()
  }

  /** Decides after each read where the next one goes, or that there is none for now. */
  #readOn(): boolean {
    // The callbacks above may have closed the connection; the compiler cannot see that.
    if ((this.#state as string) === 'closed') return false
    if (this.#pair !== undefined && this.#state === 'body') {
      this.#reading = this.#pair.next()
      this.#paused = this.#pair.held >= 2
      return !this.#paused
    }
    // Also while it waits: where the next read goes is settled here, before it is known when that will be.
    this.#reading = this.#target?.subarray(this.#filled) ?? this.#deps.buffers.shared
    return !this.#paused
  }

  #onHeadBytes(bytes: Buffer): void {
    const all = this.#headPart === undefined ? bytes : Buffer.concat([this.#headPart, bytes])
    const end = all.indexOf(headEnd)
    if (end === -1 || end > headBytesMax) {
      if (all.length > headBytesMax) this.#fail(new ReadFault('HEAD_TOO_LONG'))
      else this.#headPart = all === bytes ? Buffer.from(bytes) : all
      return
    }
    this.#headPart = undefined
    const head = parseHead(all.toString('latin1', 0, end))
    if (head === undefined) {
      this.#fail(new ReadFault('MALFORMED_HEAD'))
      return
    }
    this.#begin(head, all, end + headEnd.length)
  }

  #begin(head: AnswerHead, bytes: Buffer, bodyStart: number): void {
    this.#head = head
    this.#left = head.bytes
    this.#state = 'body'
    this.#filled = 0
    const choice = this.#receiver?.onHead(head)
    // Undefined: the receiver has let go while it looked at the head.
    if (choice === undefined || this.closed) return
    if (choice instanceof HoldfastError) {
      this.#fail(choice)
      return
    }
    if (choice === 'refuse') {
      if (head.bytes > errorBytesMax) {
        this.#fail(new ReadFault('REFUSAL_TOO_LONG'))
        return
      }
      this.#refusal = this.#target = Buffer.allocUnsafe(head.bytes)
    } else if (choice === 'chunks') this.#pair = new BufferPair(this.#deps.buffers)
    else this.#target = choice
    const bodyBytes = bytes.length - bodyStart
    if (bodyBytes > 0 || this.#left === 0) this.#onBodyBytes(bytes, bodyStart, bodyBytes)
  }

  #onBodyBytes(buffer: Buffer, offset: number, bytes: number): void {
    if (bytes > this.#left) {
      this.#fail(new ReadFault('LONG_ANSWER'))
      return
    }
    this.#left -= bytes
    if (this.#target !== undefined && bytes > 0) this.#fill(this.#target, buffer, offset, bytes)
    if (this.#pair !== undefined && bytes > 0) this.#handOn(this.#pair, buffer, offset, bytes)
    if (this.#left === 0 && !this.closed) this.#finish()
  }

  #fill(target: Buffer, buffer: Buffer, offset: number, bytes: number): void {
    assert(bytes <= target.length - this.#filled, 'a target that the body is longer than is longer than any head')
    // A read straight into the target needs no copy: then `buffer` is a view of it at just this place.
    if (buffer !== this.#reading || buffer === this.#deps.buffers.shared)
      buffer.copy(target, this.#filled, offset, offset + bytes)
    this.#filled += bytes
    if (this.#filled < target.length || this.#left === 0) return
    const next = this.#receiver?.onFull?.()
    // Undefined: the receiver has let go while it looked at the last one.
    if (next === undefined) return
    this.#target = next.target
    this.#filled = 0
    this.#paused = next.wait
  }

  #handOn(pair: BufferPair, buffer: Buffer, offset: number, bytes: number): void {
    const view = buffer.subarray(offset, offset + bytes)
    // What came with the head lies in the shared buffer, or in one made for the head: it gets a copy of its own.
    const copied = !pair.isNext(buffer)
    pair.hold(copied)
    const kept = this.#receiver?.onChunk(copied ? Buffer.from(view) : view) ?? false
    if (!kept) pair.unhold(copied)
  }

  #finish(): void {
    const { head, refusal, receiver } = { head: this.#head, refusal: this.#refusal, receiver: this.#receiver }
    this.#pair?.finish()
    this.#pair = this.#target = this.#refusal = this.#head = this.#receiver = undefined
    this.#paused = false
    this.#received = 0
    this.#served += 1
    this.#state = 'idle'
    if (head === undefined || head.closes) this.#fail(new ReadFault('CLOSES'))
    else {
      // A second less than the node's own patience: a request on its way must not meet the end.
      const keepMs = head.keepAliveMs === undefined ? keepAliveDefaultMs : head.keepAliveMs - 1_000
      this.idleUntil = this.#deps.now() + Math.min(keepAliveMsMax, keepMs)
      // Before the receiver: what it asks for next may then use this connection.
      this.#deps.onIdle(this)
    }
    if (refusal === undefined) receiver?.onEnd()
    else receiver?.onRefused(head?.status ?? 0, refusal.toString('utf8'))
  }

  #fail(error: Error): void {
    if (this.#state === 'closed') return
    const stale = this.#state === 'head' && this.#received === 0 && this.#served > 0
    const receiver = this.#receiver
    this.#state = 'closed'
    this.#receiver = undefined
    this.#connectTimer.clear()
    this.#pair?.finish()
    this.#pair = this.#target = undefined
    this.#socket.destroy()
    this.#deps.onClosed(this)
    receiver?.onBroken(error, stale)
  }
}
