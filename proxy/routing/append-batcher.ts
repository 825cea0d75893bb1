/**
 * Records on their way to one storage node. What comes up while two batches are in flight goes into the next one, so
 * the more is written, the more records share a request and an fsync, and a single one waits for nobody.
 */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import { type AppendAnswer, type WireError, wirePath } from '../../shared/wire.ts'
import type { NodeClient } from './node-client.ts'
import type { WireAnswer, WireConnections } from './wire-connection.ts'
import { outcomeOf, wireErrorOf } from './wire-errors.ts'

const inFlightMax = 2
const batchBytesMax = 1024 * 1024
const batchItemsMax = 256
const batchTimeoutMs = 2_000
/** Without an answer for so long the node is rather frozen than slow: others are asked instead. */
const stalledAfterMs = 1_000
/** What may wait for one node: a second of its work; more would only be refused later. */
const queueBytesMax = 16 * 1024 * 1024
const queueItemsMax = 4_096
/** Up to here one copy is cheaper than a system call over many small buffers. */
const copyBytesMax = 256 * 1024

/** Called once: undefined when the record is durable on the shard. */
export type AppendDone = (error: HoldfastError | undefined) => void

interface Item {
  readonly prefix: Buffer
  readonly frame: Buffer
  readonly done: AppendDone
}

export type AppendClient = Pick<NodeClient, 'node' | 'headers' | 'unreachable' | 'report'>

export class AppendBatcher {
  readonly #client: AppendClient
  readonly #connections: WireConnections
  readonly #now: () => number
  readonly #background: 'usual' | undefined
  readonly #prefixes = new Map<ShardId, Buffer>()
  #queue: Item[] = []
  #queuedBytes = 0
  #inFlight = 0
  #scheduled = false
  #closed = false
  /** When the node last answered, or was idle. */
  #aliveAt = 0
  readonly counters = { batches: 0, items: 0, refused: 0 }

  /** `now`: monotonic milliseconds. `background`: no client waits for any of these records. */
  constructor(client: AppendClient, connections: WireConnections, now: () => number, background?: 'usual') {
    this.#client = client
    this.#connections = connections
    this.#now = now
    this.#background = background
  }

  /** How long the node has answered nothing although something is in flight. */
  get silentMs(): number {
    return this.#inFlight === 0 ? 0 : this.#now() - this.#aliveAt
  }

  get stalled(): boolean {
    return this.silentMs > stalledAfterMs
  }

  /** Appends a frame of shared/record.ts. `done` is never called before this returns; OVERLOADED when too much waits. */
  append(shard: ShardId, frame: Buffer, done: AppendDone): void {
    const refusal = this.#refusal(frame.length)
    if (refusal !== undefined) {
      this.counters.refused += 1
      queueMicrotask(() => done(refusal))
      return
    }
    this.#queue.push({ prefix: this.#prefix(shard), frame, done })
    this.#queuedBytes += frame.length
    this.#schedule()
  }

  /** Refuses what comes from now on; what waits is still sent. */
  close(): void {
    this.#closed = true
  }

  #refusal(frameBytes: number): HoldfastError | undefined {
    const { node } = this.#client
    if (this.#closed) return new HoldfastError('SHUTTING_DOWN', 'the proxy is closing', { node })
    if (this.#queue.length < queueItemsMax && this.#queuedBytes + frameBytes <= queueBytesMax) return undefined
    return new HoldfastError('OVERLOADED', 'too many records wait for this storage node', { node })
  }

  #prefix(shard: ShardId): Buffer {
    let prefix = this.#prefixes.get(shard)
    if (prefix === undefined) {
      const id = Buffer.from(shard, 'latin1')
      this.#prefixes.set(shard, (prefix = Buffer.concat([Buffer.of(id.length), id])))
    }
    return prefix
  }

  /** Not at once: everything that this turn of the event loop brings up shall share one request. */
  #schedule(): void {
    if (this.#scheduled || this.#inFlight >= inFlightMax) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      while (this.#inFlight < inFlightMax && this.#queue.length > 0) this.#send(this.#take(), false)
    })
  }

  #take(): Item[] {
    let bytes = 0
    let count = 0
    for (const { frame } of this.#queue) {
      if (count === batchItemsMax || (count > 0 && bytes + frame.length > batchBytesMax)) break
      bytes += frame.length
      count += 1
    }
    this.#queuedBytes -= bytes
    return this.#queue.splice(0, count)
  }

  #send(items: readonly Item[], fresh: boolean): void {
    if (this.#inFlight === 0) this.#aliveAt = this.#now()
    this.#inFlight += 1
    this.counters.batches += 1
    this.counters.items += items.length
    const connection = this.#connections.acquire(fresh)
    connection.begin(
      {
        onAnswer: answer => this.#answered(items, answer),
        onFail: (cause, stale) => {
          this.#inFlight -= 1
          // Appending the same record twice does no harm, so a connection that the node had just closed costs one retry.
          if (stale && !fresh) this.#send(items, true)
          else this.#failed(items, this.#client.unreachable(cause))
        },
      },
      batchTimeoutMs,
    )
    const bodyBytes = items.reduce((sum, { prefix, frame }) => sum + prefix.length + frame.length, 0)
    const parts = [this.#head(bodyBytes), ...items.flatMap(({ prefix, frame }) => [prefix, frame])]
    if (bodyBytes <= copyBytesMax) {
      connection.write(Buffer.concat(parts))
    } else {
      connection.cork()
      for (const part of parts) connection.write(part)
      connection.uncork()
    }
    connection.complete()
  }

  #head(bodyBytes: number): Buffer {
    let head = `POST ${wirePath.append} HTTP/1.1\r\nhost: ${this.#connections.host}\r\n`
    for (const [name, value] of Object.entries(this.#client.headers({ background: this.#background })))
      head += `${name}: ${value}\r\n`
    head += `content-type: application/octet-stream\r\ncontent-length: ${bodyBytes}\r\n\r\n`
    return Buffer.from(head, 'latin1')
  }

  #answered(items: readonly Item[], { status, body }: WireAnswer): void {
    this.#inFlight -= 1
    this.#aliveAt = this.#now()
    const text = body.toString('utf8')
    const results = status === 200 ? resultsOf(text, items.length) : undefined
    if (results === undefined) {
      // A 200 without a result for each item is no WireError either, and so becomes 'nonsense'.
      this.#failed(items, wireErrorOf(status === 200 ? '' : text, status, { node: this.#client.node }))
      return
    }
    this.#client.report('ok')
    this.#schedule()
    items.forEach(({ done }, index) => {
      const result = results[index]
      done(result === 'ok' ? undefined : wireErrorOf(JSON.stringify(result), status, { node: this.#client.node }))
    })
  }

  #failed(items: readonly Item[], error: HoldfastError): void {
    const outcome = outcomeOf(error)
    if (outcome !== undefined) this.#client.report(outcome)
    this.#schedule()
    for (const { done } of items) done(error)
  }
}

/** Is this a failure of the node, so that its other shards need not be tried either? */
export function isNodeFailure(error: HoldfastError): boolean {
  return isHoldfastError(error, 'NODE_UNREACHABLE', 'OVERLOADED', 'SHUTTING_DOWN', 'WIRE_UNAUTHORIZED')
}

function resultsOf(text: string, count: number): readonly ('ok' | WireError)[] | undefined {
  try {
    const { results } = JSON.parse(text) as Partial<AppendAnswer>
    return Array.isArray(results) && results.length === count ? results : undefined
  } catch {
    // Not JSON: the caller treats it as nonsense.
    return undefined
  }
}
