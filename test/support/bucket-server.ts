/**
 * A bucket in memory that speaks S3 and believes nothing: every signature is computed anew from what came over the wire, by code that
 * shares nothing with the product's; parts below 5 MiB are refused, lists come in pages, clocks are compared. Faults are made on request.
 */
import { createHash, createHmac, randomBytes } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Test } from 'tap'

const MiB = 2 ** 20

export interface BucketServerOptions {
  readonly bucket?: string
  readonly region?: string
  /** Names on a page of a list. */
  readonly pageNames?: number
  /** Some servers know no conditional writes. */
  readonly conditional?: 'yes' | 'no'
  /** Milliseconds its clock is ahead. */
  readonly skewMs?: number
}

/**
 * What goes wrong with a request: an error of the server before anything is done; done, but the answer is lost; the connection cut in the
 * middle of the answer; half an answer and then silence; an answer that takes so long; 200 with an error in it; the last answer on its
 * connection.
 */
export type Fault = 'error' | 'lost' | 'cut' | 'stall' | { readonly slowMs: number } | 'error-in-200' | 'close'

interface Stored {
  readonly body: Buffer
  readonly ticket: string | undefined
}
interface Upload {
  readonly key: string
  readonly ticket: string | undefined
  readonly begun: number
  readonly parts: Map<number, Buffer>
}
interface Asked {
  readonly method: string
  readonly key: string
  readonly query: URLSearchParams
  readonly body: Buffer
  readonly request: IncomingMessage
}

class Refused extends Error {
  readonly status: number
  readonly code: string
  readonly headers: Record<string, string>

  constructor(status: number, code: string, headers: Record<string, string> = {}) {
    super(code)
    this.status = status
    this.code = code
    this.headers = headers
  }
}

export class BucketServer {
  readonly accessKeyId = 'AKTEST' + randomBytes(5).toString('hex')
  readonly secretAccessKey = randomBytes(20).toString('base64')
  readonly objects = new Map<string, Stored>()
  readonly uploads = new Map<string, Upload>()
  /** `PUT blobs/3f/…`, `POST … uploads` */
  readonly asked: string[] = []
  /** Asked for each request, before it is looked at. */
  fault: (method: string, key: string, query: URLSearchParams) => Fault | undefined = () => undefined
  readonly #options: Required<BucketServerOptions>
  readonly #server: Server

  constructor(options: BucketServerOptions = {}) {
    this.#options = {
      bucket: 'backups',
      region: 'eu-test-1',
      pageNames: 1_000,
      conditional: 'yes',
      skewMs: 0,
      ...options,
    }
    this.#server = createServer((request, response) => void this.#serve(request, response))
  }

  static async start(t: Pick<Test, 'teardown'>, options?: BucketServerOptions): Promise<BucketServer> {
    const server = new BucketServer(options)
    await new Promise<void>(done => server.#server.listen(0, '127.0.0.1', done))
    t.teardown(() => {
      server.#server.closeAllConnections()
      return new Promise<void>(done => server.#server.close(() => done()))
    })
    return server
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** As the backup target. */
  url(prefix = 'some/prefix'): string {
    const { bucket, region } = this.#options
    return `s3://${bucket}/${prefix}?endpoint=http://127.0.0.1:${this.port}&region=${region}`
  }

  get keys(): { backupAccessKeyId: string; backupSecretAccessKey: string } {
    return { backupAccessKeyId: this.accessKeyId, backupSecretAccessKey: this.secretAccessKey }
  }

  get env(): Record<string, string> {
    return {
      HOLDFAST_BACKUP_ACCESS_KEY_ID: this.accessKeyId,
      HOLDFAST_BACKUP_SECRET_ACCESS_KEY: this.secretAccessKey,
    }
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    request.on('error', () => {})
    response.on('error', () => {})
    const body: Buffer[] = []
    try {
      for await (const chunk of request) body.push(chunk as Buffer)
    } catch {
      return // the client went away
    }
    const { method = '' } = request
    const now = Date.now() + this.#options.skewMs
    response.sendDate = false
    response.setHeader('date', new Date(now).toUTCString())
    const [rawPath = '', rawQuery = ''] = (request.url ?? '').split('?')
    const { bucket, key } = this.#addressed(request, decodeURIComponent(rawPath))
    const query = new URLSearchParams(rawQuery)
    this.asked.push([method, key, ...query.keys()].join(' '))
    const fault = this.fault(method, key, query)
    if (fault === 'error') return answer(response, 503, errorXml('SlowDown'))
    if (typeof fault === 'object') await new Promise(done => setTimeout(done, fault.slowMs).unref())
    if (fault === 'error-in-200') return answer(response, 200, errorXml('InternalError'))
    try {
      this.#verify(request, rawPath, rawQuery, Buffer.concat(body), now)
      if (bucket !== this.#options.bucket) throw new Refused(404, 'NoSuchBucket')
      const done = this.#act({ method, key, query, body: Buffer.concat(body), request })
      if (fault === 'lost') request.socket.destroy()
      else if (fault === 'cut') half(response, done, () => request.socket.destroy())
      else if (fault === 'stall') half(response, done)
      else if (fault === 'close') answer(response, done.status, done.body, { ...done.headers, connection: 'close' })
      else answer(response, done.status, done.body, done.headers)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      answer(response, error.status, method === 'HEAD' ? '' : errorXml(error.code), error.headers)
    }
  }

  #addressed(request: IncomingMessage, path: string): { bucket: string; key: string } {
    const virtual = /^([a-z0-9.-]+)\.s3\.test(:\d+)?$/.exec(request.headers.host ?? '')?.[1]
    if (virtual !== undefined) return { bucket: virtual, key: path.slice(1) }
    const [, bucket = '', ...key] = path.split('/')
    return { bucket, key: key.join('/') }
  }

  /** AWS Signature Version 4, from the bytes of the request. */
  #verify(request: IncomingMessage, rawPath: string, rawQuery: string, body: Buffer, now: number): void {
    const fields = /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/.exec(request.headers.authorization ?? '') // prettier-ignore
    if (fields === null) throw new Refused(403, 'AccessDenied')
    const [, accessKeyId, day = '', region = '', signedNames = '', signature] = fields
    if (accessKeyId !== this.accessKeyId) throw new Refused(403, 'InvalidAccessKeyId')
    if (region !== this.#options.region) throw new Refused(400, 'AuthorizationHeaderMalformed', { 'x-amz-bucket-region': this.#options.region }) // prettier-ignore
    const stamp = String(request.headers['x-amz-date'])
    const time = Date.parse(stamp.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, '$1-$2-$3T$4:$5:$6Z'))
    if (!(Math.abs(time - now) < 900_000)) throw new Refused(403, 'RequestTimeTooSkewed')
    const names = signedNames.split(';')
    const mustBeSigned = Object.keys(request.headers).filter(name => name === 'host' || name.startsWith('x-amz-'))
    if (!stamp.startsWith(day) || mustBeSigned.some(name => !names.includes(name)))
      throw new Refused(403, 'AccessDenied')
    const declared = String(request.headers['x-amz-content-sha256'])
    if (declared !== sha256(body)) throw new Refused(400, 'XAmzContentSHA256Mismatch')
    const sortedQuery = rawQuery.split('&').filter(pair => pair !== '').map(pair => (pair.includes('=') ? pair : pair + '=')).sort().join('&') // prettier-ignore
    let canonical = `${request.method}\n${rawPath}\n${sortedQuery}\n`
    for (const name of names) canonical += `${name}:${String(request.headers[name]).trim()}\n`
    canonical += `\n${signedNames}\n${declared}`
    const scope = [day, region, 's3', 'aws4_request']
    let key: Buffer = Buffer.from(`AWS4${this.secretAccessKey}`)
    for (const part of scope) key = createHmac('sha256', key).update(part).digest()
    const toSign = `AWS4-HMAC-SHA256\n${stamp}\n${scope.join('/')}\n${sha256(canonical)}`
    if (createHmac('sha256', key).update(toSign).digest('hex') !== signature) throw new Refused(403, 'SignatureDoesNotMatch') // prettier-ignore
  }

  #act(asked: Asked): Done {
    const { method, key, query } = asked
    const kind = `${method}${key === '' ? ' bucket' : ''}${query.has('uploads') ? ' uploads' : ''}${query.has('uploadId') ? ' upload' : ''}`
    switch (kind) {
      case 'GET bucket':
        return this.#list(query)
      case 'GET bucket uploads':
        return this.#listUploads(query)
      case 'GET':
      case 'HEAD':
        return this.#get(asked)
      case 'PUT':
        this.#checkCondition(asked)
        this.objects.set(key, { body: asked.body, ticket: ticketOf(asked.request) })
        return { status: 200, body: '', headers: { etag: etagOf(asked.body) } }
      case 'DELETE':
        this.objects.delete(key)
        return { status: 204, body: '' }
      case 'POST uploads': {
        const id = randomBytes(8).toString('base64')
        this.uploads.set(id, { key, ticket: ticketOf(asked.request), begun: Date.now(), parts: new Map() })
        return {
          status: 200,
          body: `<InitiateMultipartUploadResult><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`,
        }
      }
      case 'PUT upload':
        return this.#putPart(asked)
      case 'POST upload':
        return this.#complete(asked)
      case 'DELETE upload':
        if (!this.uploads.delete(query.get('uploadId') ?? '')) throw new Refused(404, 'NoSuchUpload')
        return { status: 204, body: '' }
      default:
        throw new Refused(405, 'MethodNotAllowed')
    }
  }

  #checkCondition({ key, request }: Asked): void {
    if (request.headers['if-none-match'] !== '*') return
    if (this.#options.conditional === 'no') throw new Refused(501, 'NotImplemented')
    if (this.objects.has(key)) throw new Refused(412, 'PreconditionFailed')
  }

  #get({ key, request }: Asked): Done {
    const found = this.objects.get(key)
    if (found === undefined) throw new Refused(404, 'NoSuchKey')
    const etag = etagOf(found.body)
    const wanted = request.headers['if-match']
    if (wanted !== undefined && wanted !== etag) throw new Refused(412, 'PreconditionFailed')
    const from = /^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1]
    if (from !== undefined && Number(from) >= found.body.length) throw new Refused(416, 'InvalidRange')
    const ticket = found.ticket === undefined ? {} : { 'x-amz-meta-holdfast-ticket': found.ticket }
    const body = found.body.subarray(Number(from ?? 0))
    return {
      status: from === undefined ? 200 : 206,
      body: request.method === 'HEAD' ? '' : body,
      headers: { etag, ...ticket },
    }
  }

  #uploadOf({ key, query }: Asked): Upload {
    const upload = this.uploads.get(query.get('uploadId') ?? '')
    if (upload?.key !== key) throw new Refused(404, 'NoSuchUpload')
    return upload
  }

  #putPart(asked: Asked): Done {
    const number = Number(asked.query.get('partNumber'))
    if (!(number >= 1 && number <= 10_000)) throw new Refused(400, 'InvalidArgument')
    this.#uploadOf(asked).parts.set(number, asked.body)
    return { status: 200, body: '', headers: { etag: etagOf(asked.body) } }
  }

  #complete(asked: Asked): Done {
    const { parts, ticket } = this.#uploadOf(asked)
    this.#checkCondition(asked)
    const named = [...asked.body.toString().matchAll(/<Part><PartNumber>(\d+)<\/PartNumber><ETag>&quot;([0-9a-f]+)&quot;<\/ETag><\/Part>/g)] // prettier-ignore
    if (named.length === 0) throw new Refused(400, 'MalformedXML')
    const bodies = named.map(([, number, etag], index) => {
      const body = parts.get(Number(number))
      if (body === undefined || etagOf(body) !== `"${etag}"`) throw new Refused(400, 'InvalidPart')
      if (index > 0 && Number(named[index - 1]![1]) >= Number(number)) throw new Refused(400, 'InvalidPartOrder')
      if (index < named.length - 1 && body.length < 5 * MiB) throw new Refused(400, 'EntityTooSmall')
      // Some real servers want that, so we do.
      if (index < named.length - 1 && body.length !== parts.get(1)?.length) throw new Refused(400, 'InvalidPart')
      return body
    })
    this.objects.set(asked.key, { body: Buffer.concat(bodies), ticket })
    this.uploads.delete(asked.query.get('uploadId') ?? '')
    return { status: 200, body: '<CompleteMultipartUploadResult></CompleteMultipartUploadResult>' }
  }

  #list(query: URLSearchParams): Done {
    if (query.get('list-type') !== '2') throw new Refused(400, 'InvalidArgument')
    const prefix = query.get('prefix') ?? ''
    const after = Buffer.from(query.get('continuation-token') ?? '', 'base64').toString()
    const all = [...this.objects.keys()].filter(key => key.startsWith(prefix) && key > after).sort()
    const flat = all.filter(key => query.get('delimiter') !== '/' || !key.slice(prefix.length).includes('/'))
    const page = flat.slice(0, this.#options.pageNames)
    const more = flat.length > page.length
    const token = more ? `<NextContinuationToken>${Buffer.from(page.at(-1)!).toString('base64')}</NextContinuationToken>` : '' // prettier-ignore
    const entries = page.map(key => `<Contents><Key>${xml(key)}</Key><Size>1</Size></Contents>`).join('')
    return { status: 200, body: `<?xml version="1.0"?><ListBucketResult><IsTruncated>${more}</IsTruncated>${token}${entries}</ListBucketResult>` } // prettier-ignore
  }

  #listUploads(query: URLSearchParams): Done {
    const prefix = query.get('prefix') ?? ''
    const marker = `${query.get('key-marker') ?? ''} ${query.get('upload-id-marker') ?? ''}`
    const all = [...this.uploads]
      .filter(([id, { key }]) => key.startsWith(prefix) && `${key} ${id}` > marker)
      .sort(([a, { key: keyA }], [b, { key: keyB }]) => (`${keyA} ${a}` < `${keyB} ${b}` ? -1 : 1))
    const page = all.slice(0, this.#options.pageNames)
    const more = all.length > page.length
    const [lastId, last] = page.at(-1) ?? []
    const next = more ? `<NextKeyMarker>${xml(last!.key)}</NextKeyMarker><NextUploadIdMarker>${lastId}</NextUploadIdMarker>` : '' // prettier-ignore
    const entries = page.map(
      ([id, { key, begun }]) =>
        `<Upload><Key>${xml(key)}</Key><UploadId>${id}</UploadId><Initiated>${new Date(begun).toISOString()}</Initiated></Upload>`,
    )
    return { status: 200, body: `<ListMultipartUploadsResult><IsTruncated>${more}</IsTruncated>${next}${entries.join('')}</ListMultipartUploadsResult>` } // prettier-ignore
  }
}

interface Done {
  readonly status: number
  readonly body: string | Buffer
  readonly headers?: Record<string, string>
}

function answer(
  response: ServerResponse,
  status: number,
  body: string | Buffer,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { 'x-amz-request-id': 'test', ...headers })
  response.end(body)
}

function half(response: ServerResponse, { status, body, headers = {} }: Done, afterwards?: () => void): void {
  response.writeHead(status, { ...headers, 'content-length': String(body.length) })
  response.write(body.slice(0, Math.floor(body.length / 2)), afterwards)
}

const ticketOf = (request: IncomingMessage): string | undefined => {
  const ticket = request.headers['x-amz-meta-holdfast-ticket']
  return typeof ticket === 'string' ? ticket : undefined
}
const errorXml = (code: string): string => `<?xml version="1.0"?><Error><Code>${code}</Code><Message>made up</Message></Error>` // prettier-ignore
const etagOf = (body: Buffer): string => `"${createHash('md5').update(body).digest('hex')}"`
const sha256 = (data: string | Buffer): string => createHash('sha256').update(data).digest('hex')
const xml = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
