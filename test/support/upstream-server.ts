/** An upstream in a few lines: files with ETags, and whatever goes wrong with one. */
import { hash } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Test } from 'tap'

export class UpstreamServer {
  readonly files = new Map<string, Buffer>()
  /** `GET /app/1.0/a.bin` */
  readonly asked: string[] = []
  /** Answers in place of the files; false: the files do. */
  answer: (request: IncomingMessage, response: ServerResponse) => boolean = () => false
  url = ''

  /** Requests for this path. */
  count(path: string): number {
    return this.asked.filter(line => line.endsWith(` /${path}`)).length
  }

  readonly serve = (request: IncomingMessage, response: ServerResponse): void => {
    this.asked.push(`${request.method} ${request.url}`)
    if (this.answer(request, response)) return
    const body = this.files.get((request.url ?? '').slice(1))
    if (body === undefined) return void response.writeHead(404).end('nothing here')
    const etag = `"${hash('sha1', body)}"`
    if (request.headers['if-none-match'] === etag) return void response.writeHead(304, { etag }).end()
    response.writeHead(200, { etag, 'content-length': body.length, 'content-type': 'application/x-thing' })
    response.end(request.method === 'HEAD' ? undefined : body)
  }
}

/** Ends with the test. */
export async function startUpstream(t: Pick<Test, 'teardown'>): Promise<UpstreamServer> {
  const upstream = new UpstreamServer()
  const server = createServer(upstream.serve)
  await new Promise<void>(done => server.listen({ port: 0, host: '127.0.0.1' }, done))
  upstream.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return upstream
}
