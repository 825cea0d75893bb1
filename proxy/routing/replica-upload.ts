import { randomBytes } from 'node:crypto'
import { HoldfastError } from '../../shared/errors.ts'
import { type UploadAnswer, wireHeader, wirePath } from '../../shared/wire.ts'
import { outcomeOf, wireErrorOf } from './wire-errors.ts'
import type { WireAnswer, WireConnection } from './wire-connection.ts'
import type { NodeUplink } from './write-context.ts'
import type { WriteTarget } from './write-plan.ts'

/** Handed to the socket at once; the rest waits here, so that `behind` shrinks in small steps and not once in 4 MiB. */
const inSocketBytesMax = 256 * 1024
const sentKeptMax = 16
const discardTimeoutMs = 2_000
const crlf = Buffer.from('\r\n')
const lastChunk = Buffer.from('0\r\n\r\n')
const idAlphabet = '0123456789abcdefghijklmnopqrstuvwxyz'

export interface ReplicaUploadOptions {
  /** Of the whole body; undefined: sent in chunks. */
  readonly expectedBytes: number | undefined
  readonly requestId: string
  readonly now: () => number
  /** Something changed: drained, answered, failed. */
  readonly onChange: () => void
  /** It failed, for whatever reason; told once, before `onChange`. */
  readonly onFail: (reason: HoldfastError) => void
  /** The node has not heard that it may forget the upload, and must be told again. */
  readonly onUndiscarded: () => void
}

/** One replica of an upload: the body on its way to one shard, until the shard has flushed all of it. */
export class ReplicaUpload {
  readonly target: WriteTarget
  readonly id: string
  readonly uplink: NodeUplink
  readonly #options: ReplicaUploadOptions
  readonly #connection: WireConnection
  /** Chunks not yet given to the socket; `#next` is the first of them. */
  #queue: Buffer[] = []
  #next = 0
  #queuedBytes = 0
  #takenBytes = 0
  #ended = false
  /** When bytes last moved, or nothing was left to move. */
  progressAt: number
  /** Since when it has been more than its buffer behind; undefined: it keeps up. */
  laggingSince: number | undefined
  answer: UploadAnswer | undefined
  failure: HoldfastError | undefined
  /** It failed only because a kept connection broke before any answer: a new connection to the same shard may do. */
  stale = false

  /** Begins at once. `fresh`: not over a kept connection. */
  constructor(target: WriteTarget, uplink: NodeUplink, options: ReplicaUploadOptions, fresh = false) {
    this.target = target
    this.id = newUploadId()
    this.uplink = uplink
    this.#options = options
    this.progressAt = options.now()
    this.#connection = uplink.connections.acquire(fresh)
    this.#connection.begin(
      {
        onAnswer: answer => this.#onAnswer(answer),
        onFail: (cause, stale) => {
          this.stale = stale
          this.fail(uplink.client.unreachable(cause))
        },
        onDrain: () => {
          this.progressAt = options.now()
          this.#pump()
          options.onChange()
        },
      },
      0,
    )
    this.#connection.write(this.#head())
  }

  /** Path of the upload on its node, also where its bytes so far can be read. */
  get path(): string {
    return wirePath.upload(this.target.shard, this.id)
  }

  /** Bytes taken over that are not with the kernel yet. */
  get behind(): number {
    return this.#queuedBytes + this.#connection.unsentBytes
  }

  get failed(): boolean {
    return this.failure !== undefined
  }

  /** The body is complete and the shard has not answered yet. */
  get awaitingAnswer(): boolean {
    return this.#ended && this.answer === undefined && !this.failed
  }

  /** Takes over a chunk of the body; never blocks, `behind` tells when to stop. The chunk must not change any more. */
  write(chunk: Buffer): void {
    if (this.failed || chunk.length === 0) return
    const { expectedBytes, now } = this.#options
    if (this.behind === 0) this.progressAt = now()
    if (expectedBytes === undefined) {
      this.#push(Buffer.from(chunk.length.toString(16) + '\r\n', 'latin1'))
      this.#push(chunk)
      this.#push(crlf)
    } else {
      this.#push(chunk)
    }
    this.#takenBytes += chunk.length
    // The node knows the length too: it may answer while the end of the body waits for a slower replica.
    if (this.#takenBytes === expectedBytes) this.end()
    else this.#pump()
  }

  /** The body is complete. */
  end(): void {
    if (this.failed || this.#ended) return
    this.#ended = true
    if (this.#options.expectedBytes === undefined) this.#push(lastChunk)
    this.#pump()
  }

  /** Gives this replica up; `reason` is for the report. The node is told to forget the bytes. */
  fail(reason: HoldfastError): void {
    if (this.failed) return
    this.failure = reason
    const outcome = outcomeOf(reason)
    // A commit has reported by itself, and a connection that was just being closed says nothing of the node.
    if (outcome !== undefined && this.answer === undefined && !this.stale) this.uplink.client.report(outcome)
    void this.discard()
    this.#options.onFail(reason)
    this.#options.onChange()
  }

  /**
   * Drops what the shard has of this upload; never rejects. A node that does not hear it in time is told again in the background: it may
   * have all bytes, and would hold them until it gives up waiting for a commit.
   */
  async discard(): Promise<void> {
    this.failure ??= new HoldfastError('UPLOAD_NOT_FOUND', 'upload dropped', { shard: this.target.shard })
    this.#queue = []
    this.#queuedBytes = 0
    if (this.answer === undefined) this.#connection.destroy()
    try {
      await this.uplink.client.requestJson('DELETE', this.path, undefined, { timeoutMs: discardTimeoutMs })
    } catch {
      this.#options.onUndiscarded()
    }
  }

  #head(): Buffer {
    const { expectedBytes, requestId } = this.#options
    let head = `PUT ${this.path} HTTP/1.1\r\nhost: ${this.uplink.connections.host}\r\n`
    for (const [name, value] of Object.entries(this.uplink.client.headers({ requestId })))
      head += `${name}: ${value}\r\n`
    head += 'content-type: application/octet-stream\r\n'
    if (expectedBytes === undefined) head += 'transfer-encoding: chunked\r\n\r\n'
    else head += `${wireHeader.expectedBytes}: ${expectedBytes}\r\ncontent-length: ${expectedBytes}\r\n\r\n`
    return Buffer.from(head, 'latin1')
  }

  #push(bytes: Buffer): void {
    this.#queue.push(bytes)
    this.#queuedBytes += bytes.length
  }

  #pump(): void {
    if (this.failed) return
    this.#connection.cork()
    while (this.#next < this.#queue.length && this.#connection.unsentBytes < inSocketBytesMax) {
      const bytes = this.#queue[this.#next] as Buffer // within bounds
      this.#next += 1
      this.#queuedBytes -= bytes.length
      this.#connection.write(bytes)
    }
    this.#connection.uncork()
    if (this.#next === this.#queue.length) {
      this.#queue = []
      this.#next = 0
      if (this.#ended) this.#connection.complete()
    } else if (this.#next >= sentKeptMax) {
      // One that is never quite up to date must not keep all it was ever given.
      this.#queue.splice(0, this.#next)
      this.#next = 0
    }
  }

  #onAnswer({ status, body }: WireAnswer): void {
    const text = body.toString('utf8')
    const answer = status === 200 || status === 201 ? parseUploadAnswer(text) : undefined
    // A 2xx before the end of the body can only be nonsense.
    if (answer === undefined || !this.#ended || this.#queuedBytes > 0) {
      this.fail(wireErrorOf(answer === undefined ? text : '', status, { node: this.target.node }))
      return
    }
    this.answer = answer
    this.uplink.client.report('ok')
    this.#options.onChange()
  }
}

function newUploadId(): string {
  let id = 'u'
  for (const byte of randomBytes(25)) id += idAlphabet.charAt(byte % 36)
  return id
}

function parseUploadAnswer(text: string): UploadAnswer | undefined {
  try {
    const { bytes, crc } = JSON.parse(text) as Partial<UploadAnswer>
    return typeof bytes === 'number' && typeof crc === 'number' ? { bytes, crc } : undefined
  } catch {
    // Not JSON: the caller treats it as nonsense.
    return undefined
  }
}
