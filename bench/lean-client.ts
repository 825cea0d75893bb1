/**
 * A load generator that costs almost nothing: one buffer per connection for what is read and one for all that is sent. For large bodies,
 * where autocannon ends at some 70 MB/s whatever the server, and for bodies that must all differ.
 */
import net from 'node:net'

export interface LeanRequest {
  readonly method: 'GET' | 'PUT'
  readonly path: string
  /** Sent one after the other as the body. */
  readonly body: readonly Buffer[]
}

export interface LeanResult {
  /** Answers with 2xx whose body had the announced length. */
  readonly total: number
  readonly seconds: number
  readonly p50Ms: number
  readonly p99Ms: number
}

export interface LeanLoad {
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
  readonly connections: number
  readonly seconds: number
  /** Called for each request anew. */
  readonly next: () => LeanRequest
}

const readBytes = 256 * 1024
const writeBytes = 1024 * 1024
const headEnd = Buffer.from('\r\n\r\n')

/** Rejects with the first answer that is no 2xx, or the first connection that breaks. */
export async function runLean(load: LeanLoad): Promise<LeanResult> {
  const startedAt = performance.now()
  const endsAt = startedAt + load.seconds * 1000
  const latencies: number[] = []
  const drive = async (): Promise<void> => {
    const connection = await LeanConnection.open(new URL(load.url))
    try {
      while (performance.now() < endsAt) {
        const sentAt = performance.now()
        await connection.exchange(load.next(), load.headers)
        latencies.push(performance.now() - sentAt)
      }
    } finally {
      connection.close()
    }
  }
  await Promise.all(Array.from({ length: load.connections }, drive))
  latencies.sort((a, b) => a - b)
  const quantile = (share: number): number => Math.round(latencies[Math.floor(latencies.length * share)] ?? 0)
  // The last answers come behind the end, and count with their time.
  const seconds = (performance.now() - startedAt) / 1000
  return { total: latencies.length, seconds, p50Ms: quantile(0.5), p99Ms: quantile(0.99) }
}

class LeanConnection {
  readonly #host: string
  readonly #socket: net.Socket
  #head = Buffer.alloc(0)
  /** Bytes of the answer's body to come; undefined: its head is not complete. */
  #missing: number | undefined
  #settle: { resolve: () => void; reject: (error: Error) => void } | undefined

  private constructor(url: URL) {
    this.#host = url.host
    this.#socket = net.connect({
      host: url.hostname,
      port: Number(url.port),
      noDelay: true,
      onread: { buffer: Buffer.allocUnsafeSlow(readBytes), callback: (bytes, buffer) => this.#read(buffer, bytes) },
    })
    this.#socket.on('error', error => this.#settle?.reject(error))
    this.#socket.on('close', () => this.#settle?.reject(new Error('the server closed the connection')))
  }

  static async open(url: URL): Promise<LeanConnection> {
    const connection = new LeanConnection(url)
    await new Promise<void>((resolve, reject) => {
      connection.#settle = { resolve, reject }
      connection.#socket.once('connect', resolve)
    })
    return connection
  }

  close(): void {
    this.#settle = undefined
    this.#socket.destroy()
  }

  exchange(request: LeanRequest, headers: Readonly<Record<string, string>>): Promise<void> {
    const answered = new Promise<void>((resolve, reject) => {
      this.#settle = { resolve, reject }
    })
    void this.#send(request, headers).catch((error: unknown) => this.#settle?.reject(error as Error))
    return answered
  }

  async #send({ method, path, body }: LeanRequest, headers: Readonly<Record<string, string>>): Promise<void> {
    let head = `${method} ${path} HTTP/1.1\r\nhost: ${this.#host}\r\n`
    for (const [name, value] of Object.entries(headers)) head += `${name}: ${value}\r\n`
    if (method === 'PUT') head += `content-length: ${body.reduce((sum, part) => sum + part.length, 0)}\r\n`
    this.#socket.cork()
    this.#socket.write(head + '\r\n', 'latin1')
    for (const part of body) {
      for (let at = 0; at < part.length; at += writeBytes) {
        if (this.#socket.write(part.subarray(at, at + writeBytes))) continue
        this.#socket.uncork()
        await new Promise(resolve => this.#socket.once('drain', resolve))
        this.#socket.cork()
      }
    }
    this.#socket.uncork()
  }

  /** True: go on reading. */
  #read(buffer: Uint8Array, bytes: number): boolean {
    if (this.#missing === undefined) {
      this.#head = Buffer.concat([this.#head, buffer.subarray(0, bytes)])
      const end = this.#head.indexOf(headEnd)
      if (end < 0) return true
      const head = this.#head.toString('latin1', 0, end)
      const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1]
      if (!/^HTTP\/1\.1 2\d\d /.test(head) || length === undefined) {
        this.#settle?.reject(new Error(`unexpected answer: ${head.slice(0, 200)}`))
        return true
      }
      this.#missing = Number(length) - (this.#head.length - end - headEnd.length)
      this.#head = Buffer.alloc(0)
    } else {
      this.#missing -= bytes
    }
    if (this.#missing < 0) this.#settle?.reject(new Error('more bytes than announced'))
    if (this.#missing === 0) {
      this.#missing = undefined
      this.#settle?.resolve()
    }
    return true
  }
}
