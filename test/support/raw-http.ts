/** HTTP spoken by hand over a socket, for clients that break the rules, leave early or send rubbish. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

export interface RawAnswer {
  readonly status: number
  readonly head: string
  readonly body: string
}

export class RawConnection {
  readonly socket: Socket
  #received = Buffer.alloc(0)
  #ended = false

  private constructor(socket: Socket) {
    this.socket = socket
    socket.on('data', chunk => {
      this.#received = Buffer.concat([this.#received, chunk])
    })
    socket.on('error', () => {}) // told by 'close'
    socket.on('close', () => {
      this.#ended = true
    })
  }

  static async open(url: string): Promise<RawConnection> {
    const { hostname, port } = new URL(url)
    const socket = connect({ host: hostname, port: Number(port), noDelay: true, allowHalfOpen: true })
    await once(socket, 'connect')
    return new RawConnection(socket)
  }

  get received(): string {
    return this.#received.toString('latin1')
  }

  get ended(): boolean {
    return this.#ended || this.socket.readableEnded
  }

  /** Resolves when the bytes are with the kernel, or the connection is gone. */
  async send(data: string | Buffer): Promise<void> {
    const bytes = typeof data === 'string' ? Buffer.from(data, 'latin1') : data
    await new Promise<void>(resolve => {
      this.socket.once('close', resolve)
      this.socket.write(bytes, () => {
        this.socket.off('close', resolve)
        resolve()
      })
    })
  }

  /** Everything until the other side closes, or nothing more came for `quietMs` after something did. */
  async answers({ withinMs = 10_000, quietMs = 300 }: { withinMs?: number; quietMs?: number } = {}): Promise<
    RawAnswer[]
  > {
    const end = performance.now() + withinMs
    let length = -1
    let since = performance.now()
    while (!this.ended && performance.now() < end) {
      if (this.#received.length !== length) {
        length = this.#received.length
        since = performance.now()
      } else if (length > 0 && performance.now() - since > quietMs) break
      await new Promise(resolve => setTimeout(resolve, 10))
    }
    return parseAnswers(this.#received)
  }

  /** Ends with a reset, as a client that is killed does. */
  reset(): void {
    this.socket.resetAndDestroy()
  }

  close(): void {
    this.socket.destroy()
  }
}

/** All complete answers in the bytes; interim answers (1xx) are among them. */
export function parseAnswers(received: Buffer): RawAnswer[] {
  const answers: RawAnswer[] = []
  let rest = received
  for (;;) {
    const end = rest.indexOf('\r\n\r\n')
    if (end < 0) return answers
    const head = rest.toString('latin1', 0, end)
    const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? NaN)
    if (Number.isNaN(status)) return answers // the end of a chunked body
    const length = Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0)
    const bodyStart = end + 4
    answers.push({ status, head, body: rest.toString('latin1', bodyStart, bodyStart + length) })
    rest = rest.subarray(bodyStart + length)
  }
}

/** One request as text, on a connection of its own; what came back. */
export async function sendRaw(url: string, text: string | Buffer, options = {}): Promise<RawAnswer[]> {
  const connection = await RawConnection.open(url)
  try {
    await connection.send(text)
    return await connection.answers(options)
  } finally {
    connection.close()
  }
}
