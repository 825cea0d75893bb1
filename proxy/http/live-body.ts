/**
 * The answer to whoever asked first for what is just being fetched from an upstream: it gets the bytes as they come, not when all are stored.
 * A client that is slower than the upstream holds nobody up: once too much of it waits here it gets no more of the fetch, and the rest from
 * the replicas when they have it. So does everybody with the last part, which is held back until all bytes are durable.
 */
import type { ServerResponse } from 'node:http'
import type { Artifact, Repository } from '../metadata/types.ts'
import type { BlobReader } from '../routing/types.ts'
import type { Watcher } from '../upstream/upstream-cache.ts'
import type { UpstreamBody } from '../upstream/upstream-client.ts'
import { passedHead } from './answer-head.ts'
import type { Exchange } from './answers.ts'
import { wholeBytesMax } from './serve-artifact.ts'

const heldBackBytes = 256 * 1024
/** More than this may not wait in memory for one client. */
const waitingBytesMax = 4 * 1024 * 1024

export class LiveBody implements Watcher {
  readonly #exchange: Exchange
  readonly #repository: Repository
  readonly #path: string
  /** Sent so far; from here on the replicas have it. */
  #position = 0
  /** Up to here bytes are sent as they come. */
  #end = 0
  #artifact: Artifact | undefined
  #left = false

  constructor(exchange: Exchange, repository: Repository, path: string) {
    this.#exchange = exchange
    this.#repository = repository
    this.#path = path
  }

  /** What was sent, or the rest of it, is this artifact. Undefined: nothing was sent, or it is not stored. */
  get artifact(): Artifact | undefined {
    return this.#end > 0 ? this.#artifact : undefined
  }

  /** Small ones are sooner stored than sent; of an unknown length the last part cannot be held back. */
  begin(body: UpstreamBody): void {
    const { response, requestId } = this.#exchange
    if (body.bytes === undefined || body.bytes <= wholeBytesMax || this.#left || gone(response)) return
    this.#end = body.bytes - heldBackBytes
    response.writeHead(200, [...passedHead(this.#repository, this.#path, body), 'X-Request-Id', requestId])
  }

  leave(): boolean {
    if (this.#end > 0) return false
    this.#left = true
    return true
  }

  take(chunk: Buffer): void {
    const { response } = this.#exchange
    const free = Math.min(chunk.length, this.#end - this.#position)
    if (free <= 0 || gone(response)) return
    this.#position += free
    response.write(free === chunk.length ? chunk : chunk.subarray(0, free))
    if (response.writableLength > waitingBytesMax) this.#end = this.#position
  }

  stored(artifact: Artifact): void {
    this.#artifact = artifact
  }

  /** Sends the rest. Resolves when the client has all of it, or has left. */
  async finish(reader: BlobReader, { blob }: Artifact): Promise<void> {
    const { response, signal } = this.#exchange
    if (gone(response)) return
    const rest = { first: this.#position, last: blob.bytes - 1 }
    await reader.stream(blob, rest, response, { onStart: () => undefined, signal })
  }
}

const gone = (response: ServerResponse): boolean => response.destroyed || response.writableEnded
