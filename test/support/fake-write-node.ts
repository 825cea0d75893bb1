/** A storage node in memory that speaks the writing half of the wire and fails on command. */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { buffer } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { crc32 } from 'node:zlib'
import type { ErrorCode } from '../../shared/errors.ts'
import { BlockCrcs, decodeRecord, type ReferenceRecord } from '../../shared/record.ts'
import { partitionName } from '../../shared/partition.ts'
import { type CommitRequest, type TouchRequest, wireAuthorization } from '../../shared/wire.ts'

export const testSecret = 'a secret for tests'

export interface Faults {
  /** Appends and uploads are refused with this; uploads before their body is read. */
  refuse?: ErrorCode | undefined
  /** Shards that refuse as above, alone. */
  refuseShard?: { shard: string; code: ErrorCode } | undefined
  /** Dies (connections cut, port closed) once so many bytes of uploads have arrived. */
  dieAfterBytes?: number | undefined
  /** Stops reading and answering anything then. */
  freezeAfterBytes?: number | undefined
  bytesPerSecond?: number | undefined
  appendDelayMs?: number | undefined
  /** The upload cannot be read any more, and is not a blob yet, for so long. */
  commitDelayMs?: number | undefined
  /** The answer to an upload comes so much later than its last byte. */
  answerDelayMs?: number | undefined
  /** At the commit: the node refuses, dies before it is durable, or after, without an answer. */
  commit?: 'refuse' | 'die-before' | 'die-after' | undefined
  /** So many requests to forget an upload break off unheard. */
  deafToDiscards?: number | undefined
  /** Flips one bit of each upload. */
  corruptUploads?: boolean | undefined
}

interface Upload {
  chunks: Buffer[]
  bytes: number
  complete: boolean
}

export class FakeWriteNode {
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  #frozen = false
  #thaw: (() => void)[] = []
  #uploadedBytes = 0
  faults: Faults = {}
  readonly blobs = new Map<string, Buffer>()
  readonly references = new Map<string, ReferenceRecord>()
  readonly uploads = new Map<string, Upload>()
  readonly requests: string[] = []
  appendBatches = 0
  connections = 0
  port = 0

  constructor() {
    const authorization = wireAuthorization(testSecret)
    this.#server = createServer((request, response) => {
      this.requests.push(`${request.method} ${request.url}`)
      if (request.headers.authorization !== authorization) return answer(response, 401, 'WIRE_UNAUTHORIZED')
      this.#handle(request, response).catch(() => response.destroy())
    })
    this.#server.on('connection', socket => {
      this.connections += 1
      this.#sockets.add(socket)
      socket.on('close', () => this.#sockets.delete(socket))
      socket.on('error', () => undefined)
    })
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`
  }

  async start(): Promise<this> {
    this.#server.listen(this.port, '127.0.0.1')
    await once(this.#server, 'listening')
    this.port = (this.#server.address() as AddressInfo).port
    return this
  }

  /** As kill -9 does: uploads in flight and staged are gone, what is durable stays. */
  die(): void {
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
    this.uploads.clear()
  }

  /** Forgets everything and takes new faults. */
  reset(faults: Faults): void {
    this.faults = faults
    this.#uploadedBytes = 0
    this.blobs.clear()
    this.references.clear()
    this.uploads.clear()
  }

  /** As SIGSTOP does: connections come about, hardly anything is read, nothing answered. (Pausing the sockets would
   * make node:http read on without end.) */
  freeze(): void {
    this.#frozen = true
  }

  thaw(): void {
    this.#frozen = false
    for (const thaw of this.#thaw.splice(0)) thaw()
  }

  async #awake(): Promise<void> {
    while (this.#frozen) await new Promise<void>(resolve => this.#thaw.push(resolve))
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    await this.#awake()
    const [path = '', query = ''] = (request.url ?? '').split('?')
    const [, , kind = '', shard = '', third = '', fourth] = path.split('/')
    if (kind === 'append') return this.#append(await buffer(request), response)
    if (kind === 'touch') return this.#touch(await buffer(request), response)
    if (kind === 'references') return this.#reference(shard, query, response)
    if (kind === 'uploads' && request.method === 'PUT')
      return this.#receive(`${shard}/${third}`, shard, request, response)
    if (kind === 'uploads' && request.method === 'DELETE') {
      if ((this.faults.deafToDiscards ?? 0) > 0) {
        this.faults.deafToDiscards = (this.faults.deafToDiscards ?? 0) - 1
        return void request.socket.destroy()
      }
      this.uploads.delete(`${shard}/${third}`)
      return void response.writeHead(204).end()
    }
    if (kind === 'uploads' && request.method === 'GET')
      return this.#send(this.uploads.get(`${shard}/${third}`), request, response)
    if (kind === 'uploads' && fourth === 'commit')
      return this.#commit(`${shard}/${third}`, shard, await buffer(request), response)
    if (kind === 'blobs') {
      const bytes = this.blobs.get(`${shard}/${third}/${fourth}`)
      return this.#send(bytes && { chunks: [bytes], bytes: bytes.length, complete: true }, request, response)
    }
    answer(response, 404, 'NOT_FOUND')
  }

  async #append(body: Buffer, response: ServerResponse): Promise<void> {
    this.appendBatches += 1
    if (this.faults.appendDelayMs !== undefined) await sleep(this.faults.appendDelayMs)
    await this.#awake()
    const results: unknown[] = []
    for (let at = 0; at < body.length;) {
      const start = at + 1 + (body[at] as number)
      const shard = body.toString('latin1', at + 1, start)
      const frame = decodeRecord(body, start)
      if (typeof frame === 'string') return answer(response, 400, 'RECORD_DAMAGED')
      at = frame.end
      const code = this.#refusal(shard)
      if (code !== undefined) {
        results.push({ code, message: 'refused' })
        continue
      }
      const { record } = frame
      if (record.kind === 'blob') {
        this.blobs.set(
          `${shard}/${partitionName(record.partition)}/${record.digest}.${record.generation}`,
          Buffer.from(frame.payload),
        )
      } else if (record.kind === 'reference') {
        this.references.set(`${shard}/${record.repository}/${record.path}`, record)
      }
      results.push('ok')
    }
    json(response, 200, { results })
  }

  #refusal(shard: string): ErrorCode | undefined {
    const { refuse, refuseShard } = this.faults
    return refuse ?? (refuseShard?.shard === shard ? refuseShard.code : undefined)
  }

  #touch(body: Buffer, response: ServerResponse): void {
    const { items } = JSON.parse(body.toString()) as TouchRequest
    const results = items.map(({ shard, partition, digest, generation }) =>
      this.blobs.has(`${shard}/${partitionName(partition)}/${digest}.${generation}`) ? 'held' : 'missing',
    )
    json(response, 200, { results })
  }

  #reference(shard: string, query: string, response: ServerResponse): void {
    const record = this.references.get(`${shard}/${new URLSearchParams(query).get('key')}`)
    if (record === undefined) return answer(response, 404, 'REFERENCE_NOT_FOUND')
    json(response, 200, record)
  }

  async #receive(key: string, shard: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const code = this.#refusal(shard)
    if (code !== undefined) {
      request.resume()
      return answer(response, 507, code)
    }
    const upload: Upload = { chunks: [], bytes: 0, complete: false }
    this.uploads.set(key, upload)
    try {
      for await (const chunk of request as AsyncIterable<Buffer>) {
        await this.#awake()
        upload.chunks.push(chunk)
        upload.bytes += chunk.length
        await this.#suffer(chunk.length)
      }
    } catch {
      this.uploads.delete(key)
      return
    }
    await this.#awake()
    upload.complete = true
    if (this.faults.answerDelayMs !== undefined) await sleep(this.faults.answerDelayMs)
    if (this.faults.corruptUploads === true) upload.chunks[0] = flipped(upload.chunks[0] as Buffer)
    const table = tableOf(upload.chunks)
    json(response, 200, { bytes: upload.bytes, crc: crc32(table) })
  }

  async #suffer(bytes: number): Promise<void> {
    this.#uploadedBytes += bytes
    const { bytesPerSecond, dieAfterBytes, freezeAfterBytes } = this.faults
    if (bytesPerSecond !== undefined) await sleep((bytes / bytesPerSecond) * 1000)
    if (dieAfterBytes !== undefined && this.#uploadedBytes >= dieAfterBytes) this.die()
    if (freezeAfterBytes !== undefined && this.#uploadedBytes >= freezeAfterBytes) {
      this.faults.freezeAfterBytes = undefined
      this.freeze()
      await this.#awake()
    }
  }

  async #commit(key: string, shard: string, body: Buffer, response: ServerResponse): Promise<void> {
    const order = JSON.parse(body.toString()) as CommitRequest
    const upload = this.uploads.get(key)
    if (this.faults.commitDelayMs !== undefined) {
      this.uploads.delete(key)
      await sleep(this.faults.commitDelayMs)
    }
    await this.#awake()
    if (upload?.complete !== true) return answer(response, 404, 'UPLOAD_NOT_FOUND')
    if (this.faults.commit === 'refuse') return answer(response, 500, 'SHARD_FAILED')
    if (this.faults.commit === 'die-before') return this.die()
    if (tableOf(upload.chunks).toString('base64') !== order.blockCrcs || upload.bytes !== order.bytes) {
      this.uploads.delete(key)
      return answer(response, 409, 'CHECKSUM_MISMATCH')
    }
    this.blobs.set(
      `${shard}/${partitionName(order.partition)}/${order.digest}.${order.generation}`,
      Buffer.concat(upload.chunks),
    )
    this.uploads.delete(key)
    if (this.faults.commit === 'die-after') return this.die()
    json(response, 200, {})
  }

  #send(source: Upload | undefined, request: IncomingMessage, response: ServerResponse): void {
    if (source === undefined) return answer(response, 404, 'UPLOAD_NOT_FOUND')
    const [, first = '0', last = ''] = /bytes=(\d+)-(\d*)/.exec(request.headers.range ?? '') ?? []
    // Real nodes write in steps of 1 MiB: what has arrived since cannot be read back yet.
    const readable = source.complete ? source.bytes : source.bytes - (source.bytes % (1024 * 1024))
    const whole = Buffer.concat(source.chunks).subarray(0, readable)
    if (Number(first) >= whole.length) return answer(response, 416, 'RANGE_NOT_SATISFIABLE')
    const part = whole.subarray(Number(first), last === '' ? undefined : Number(last) + 1)
    response.writeHead(206, { 'content-length': part.length }).end(part)
  }
}

function tableOf(chunks: readonly Buffer[]): Buffer {
  const crcs = new BlockCrcs()
  for (const chunk of chunks) crcs.update(chunk)
  return crcs.finish()
}

function flipped(chunk: Buffer): Buffer {
  const copy = Buffer.from(chunk)
  copy[0] = (copy[0] as number) ^ 1
  return copy
}

function answer(response: ServerResponse, status: number, code: ErrorCode): void {
  json(response, status, { code, message: 'refused by the fake node' })
}

function json(response: ServerResponse, status: number, body: unknown): void {
  // Chunked, as node:http does it when the head goes out on its own: both framings are to be understood.
  response.writeHead(status, { 'content-type': 'application/json' })
  response.end(JSON.stringify(body))
}
