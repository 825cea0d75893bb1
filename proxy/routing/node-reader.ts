/** The read leg to one node: blobs over kept connections. Everything else on the wire goes through undici. */
import assert from 'node:assert/strict'
import { HoldfastError } from '../../shared/errors.ts'
import type { BufferPair, ReadBuffers } from '../../shared/read-buffers.ts'
import { type AnswerReceiver, type ConnectionDeps, ReadConnection } from '../../shared/read-connection.ts'
import type { AnswerHead } from '../../shared/read-head.ts'
import type { Outcome } from './health.ts'
import { LatencyDigest, type LatencyMean } from './latency.ts'
import type { ByteRange } from './types.ts'
import { outcomeOf, wireErrorOf } from './wire-errors.ts'

export interface ReadLimits {
  /** Connections to one node: past this, reads wait. */
  readonly openMax: number
  /** Kept while unused. */
  readonly idleMax: number
  /** Connections that long bodies for slow clients leave to the short reads. */
  readonly reservedForWhole: number
  readonly queueMax: number
}

export const readLimitDefaults: ReadLimits = { openMax: 256, idleMax: 64, reservedForWhole: 32, queueMax: 1_024 }

export interface NodeReaderDeps {
  readonly node: string
  readonly url: string
  /** `name: value\r\n` for each header of a request but Host and Range. */
  readonly headers: () => string
  readonly buffers: ReadBuffers
  readonly now: () => number
  readonly report: (outcome: Outcome) => void
  readonly limits?: Partial<ReadLimits>
}

/** What is read: all `total` bytes at `path`, or a part of them. */
export interface ReadRequest {
  readonly path: string
  readonly total: number
  readonly range: ByteRange | undefined
  /** Where the body goes: a buffer of just its length, or chunk by chunk. */
  readonly into: Buffer | 'chunks'
  /** Of the shard: how long its first byte takes is added. */
  readonly latency: Pick<LatencyMean, 'add' | 'addAtLeast'>
}

/** Exactly one of `onEnd` and `onError` comes, unless the read was aborted. Neither comes before `read` has returned. */
export interface ReadReceiver {
  /** The answer is what was asked for; its bytes follow. */
  onStart?(): void
  /** True: the chunk is held until `release()`, in order; with two held the connection does not read. False: done with it. */
  onChunk?(chunk: Buffer): boolean
  onEnd(): void
  /** NODE_UNREACHABLE, OVERLOADED (the queue here is full), BLOB_CORRUPT (other length), or what the node said. */
  onError(error: HoldfastError): void
}

export class NodeReader {
  readonly latency = new LatencyDigest()
  readonly #deps: NodeReaderDeps
  readonly #limits: ReadLimits
  readonly #connectionDeps: ConnectionDeps
  readonly #hostHeader: string
  readonly #idle: ReadConnection[] = []
  readonly #open = new Set<ReadConnection>()
  readonly #waiting = new Set<BlobRead>()
  readonly #waitingStreams = new Set<BlobRead>()
  readonly #sweep: NodeJS.Timeout
  readonly #busy = new Set<BlobRead>()
  #busyStreams = 0
  #closed = false

  constructor(deps: NodeReaderDeps) {
    const url = new URL(deps.url)
    // TLS between the parts would need another connection class: node:tls has no onread.
    assert.equal(url.protocol, 'http:', 'the read leg speaks plain HTTP')
    this.#deps = deps
    this.#limits = { ...readLimitDefaults, ...deps.limits }
    this.#hostHeader = `host: ${url.host}\r\n`
    this.#connectionDeps = {
      host: url.hostname.replace(/^\[|\]$/g, ''),
      port: Number(url.port === '' ? 80 : url.port),
      buffers: deps.buffers,
      now: deps.now,
      onClosed: connection => this.#onClosed(connection),
      onIdle: connection => this.#onIdle(connection),
    }
    this.#sweep = setInterval(() => this.#closeOverdue(), 1_000).unref()
  }

  /** Reads under way or waiting. */
  get inFlight(): number {
    return this.#busy.size + this.#waiting.size + this.#waitingStreams.size
  }

  /** Open connections, idle ones included. */
  get openCount(): number {
    return this.#open.size
  }

  /** Begins a read. It has no time limit of its own: whoever asks watches `received` and aborts. */
  read(request: ReadRequest, receiver: ReadReceiver): BlobRead {
    const read = new BlobRead(this, request, receiver)
    if (this.#closed) queueMicrotask(() => read.refuse(new HoldfastError('SHUTTING_DOWN', 'the read leg is closed')))
    else if (this.#hasRoom(read)) this.#start(read, this.#usableIdle())
    else if (this.#waiting.size + this.#waitingStreams.size >= this.#limits.queueMax) {
      queueMicrotask(() =>
        read.refuse(new HoldfastError('OVERLOADED', 'too many reads wait', { node: this.#deps.node })),
      )
    } else (read.isStream ? this.#waitingStreams : this.#waiting).add(read)
    return read
  }

  /** Cuts every connection; reads under way end with NODE_UNREACHABLE. */
  close(): void {
    this.#closed = true
    clearInterval(this.#sweep)
    for (const connection of this.#open) connection.close()
    for (const read of [...this.#waiting, ...this.#waitingStreams]) {
      read.refuse(new HoldfastError('SHUTTING_DOWN', 'the read leg is closed'))
    }
    this.#waiting.clear()
    this.#waitingStreams.clear()
  }

  /** Only `BlobRead` calls these. */
  requestText(request: ReadRequest): string {
    const { path, range } = request
    const rangeHeader = range === undefined ? '' : `range: bytes=${range.first}-${range.last}\r\n`
    return `GET ${path} HTTP/1.1\r\n${this.#hostHeader}${this.#deps.headers()}${rangeHeader}\r\n`
  }

  restart(read: BlobRead): boolean {
    if (this.#closed) return false
    // The failed connection has left #open, so there is room; a kept one might be as stale as that.
    this.#start(read, undefined)
    return true
  }

  done(read: BlobRead): void {
    if (this.#waiting.delete(read) || this.#waitingStreams.delete(read)) return
    if (!this.#busy.delete(read)) return
    if (read.isStream) this.#busyStreams -= 1
    if (this.#waiting.size + this.#waitingStreams.size > 0) this.#next()
  }

  now(): number {
    return this.#deps.now()
  }

  report(outcome: Outcome | undefined): void {
    if (outcome !== undefined) this.#deps.report(outcome)
  }

  get node(): string {
    return this.#deps.node
  }

  #hasRoom(read: BlobRead): boolean {
    const { openMax, reservedForWhole } = this.#limits
    return this.#busy.size < openMax && (!read.isStream || this.#busyStreams < openMax - reservedForWhole)
  }

  #start(read: BlobRead, connection: ReadConnection | undefined): void {
    if (!this.#busy.has(read)) {
      this.#busy.add(read)
      if (read.isStream) this.#busyStreams += 1
    }
    let chosen = connection
    if (chosen === undefined) {
      chosen = new ReadConnection(this.#connectionDeps)
      this.#open.add(chosen)
    }
    read.begin(chosen)
  }

  /** The one used last: the others then age and close, so that a quiet proxy keeps few. */
  #usableIdle(): ReadConnection | undefined {
    const now = this.#deps.now()
    for (let connection = this.#idle.pop(); connection !== undefined; connection = this.#idle.pop()) {
      if (!connection.closed && connection.idleUntil > now) return connection
      connection.close()
    }
    return undefined
  }

  #onIdle(connection: ReadConnection): void {
    if (this.#closed || this.#idle.length >= this.#limits.idleMax) connection.close()
    else this.#idle.push(connection)
  }

  #onClosed(connection: ReadConnection): void {
    this.#open.delete(connection)
    const index = this.#idle.indexOf(connection)
    if (index !== -1) this.#idle.splice(index, 1)
  }

  #next(): void {
    for (const queue of [this.#waiting, this.#waitingStreams]) {
      for (const read of queue) {
        if (!this.#hasRoom(read)) break
        queue.delete(read)
        this.#start(read, this.#usableIdle())
      }
    }
  }

  #closeOverdue(): void {
    const now = this.#deps.now()
    for (const connection of this.#idle.filter(({ idleUntil }) => idleUntil <= now)) connection.close()
  }
}

/** One read of one blob from one node, whichever connections it takes. */
export class BlobRead implements AnswerReceiver {
  readonly #reader: NodeReader
  readonly #request: ReadRequest
  readonly #receiver: ReadReceiver
  readonly #createdAt: number
  #connection: ReadConnection | undefined
  /** Kept after the answer ended: its last chunks may still be held. */
  #pair: BufferPair | undefined
  #repeated = false
  #over = false

  constructor(reader: NodeReader, request: ReadRequest, receiver: ReadReceiver) {
    this.#reader = reader
    this.#request = request
    this.#receiver = receiver
    this.#createdAt = reader.now()
  }

  get isStream(): boolean {
    return this.#request.into === 'chunks'
  }

  /** Bytes of the answer so far; a watchdog compares two looks. */
  get received(): number {
    return this.#connection?.received ?? 0
  }

  /** The receiver holds two chunks, so nothing is read: silence is not the node's. */
  get paused(): boolean {
    return this.#connection?.paused ?? false
  }

  /** The oldest chunk is no longer needed. Also after the end, and after an abort. */
  release(): void {
    const pair = this.#pair
    if (pair === undefined) return
    if (this.#connection !== undefined && this.#connection.pair === pair) this.#connection.release(pair)
    else pair.release()
  }

  /** Gives the read up; nothing is called any more, and buffers that may still be looked at are not used again. */
  abort(): void {
    const connection = this.#connection
    if (!this.#over) {
      this.#over = true
      // A replica that lost the race was at least this slow: without it the digest would know only the quick answers.
      if (connection?.received === 0) {
        const waitedMs = this.#reader.now() - this.#createdAt
        this.#reader.latency.add(waitedMs)
        this.#request.latency.addAtLeast(waitedMs)
      }
      connection?.destroy()
      this.#end()
    }
    this.#pair?.abandon()
  }

  /** Only `NodeReader` calls these. */
  begin(connection: ReadConnection): void {
    this.#connection = connection
    connection.send(this.#reader.requestText(this.#request), this)
  }

  refuse(error: HoldfastError): void {
    if (this.#over) return
    this.#over = true
    this.#receiver.onError(error)
  }

  onHead(head: AnswerHead): Buffer | 'chunks' | 'refuse' | HoldfastError {
    const tookMs = this.#reader.now() - this.#createdAt
    this.#reader.latency.add(tookMs)
    this.#request.latency.add(tookMs)
    if (head.status !== 200 && head.status !== 206) return 'refuse'
    const problem = headProblem(head, this.#request)
    if (problem !== undefined) return this.#mistake(head, problem)
    this.#receiver.onStart?.()
    return this.#request.into
  }

  onChunk(chunk: Buffer): boolean {
    this.#pair = this.#connection?.pair
    return this.#receiver.onChunk?.(chunk) ?? false
  }

  onEnd(): void {
    if (this.#over) return
    this.#over = true
    this.#reader.report('ok')
    this.#end()
    this.#receiver.onEnd()
  }

  onRefused(status: number, body: string): void {
    this.#failed(wireErrorOf(body, status, { node: this.#reader.node }))
  }

  onBroken(error: Error, stale: boolean): void {
    if (stale && !this.#repeated && !this.#over) {
      this.#repeated = true
      if (this.#reader.restart(this)) return
    }
    if (error instanceof HoldfastError) {
      this.#failed(error)
      return
    }
    const { code } = error as { code?: unknown }
    const reason = typeof code === 'string' ? code : error.name
    const data = { node: this.#reader.node, reason }
    this.#failed(new HoldfastError('NODE_UNREACHABLE', 'storage node did not answer', data, { cause: error }))
  }

  #failed(error: HoldfastError): void {
    if (this.#over) return
    this.#over = true
    this.#reader.report(outcomeOf(error))
    this.#end()
    this.#receiver.onError(error)
  }

  #end(): void {
    this.#connection = undefined
    this.#reader.done(this)
  }

  #mistake(head: AnswerHead, reason: string): HoldfastError {
    const data = { node: this.#reader.node, reason, found: head.bytes, expected: this.#request.total }
    // Another length under the same digest and generation is a bad copy; all else is no answer of ours.
    const code = reason === 'LENGTH' ? 'BLOB_CORRUPT' : 'NODE_UNREACHABLE'
    return new HoldfastError(code, 'storage node sent another answer than was asked for', data)
  }
}

function headProblem(head: AnswerHead, { range, total }: ReadRequest): string | undefined {
  if (range === undefined) {
    if (head.status !== 200 || head.range !== undefined) return 'STATUS'
    return head.bytes === total ? undefined : 'LENGTH'
  }
  if (head.status !== 206 || head.range === undefined) return 'STATUS'
  if (head.range.total !== total) return 'LENGTH'
  const { first, last } = head.range
  return first === range.first && last === range.last && head.bytes === last - first + 1 ? undefined : 'RANGE'
}
