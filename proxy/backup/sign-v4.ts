/** AWS Signature Version 4 in a header, as S3 and everything that speaks like it wants it. Pure. */
import { createHash, createHmac } from 'node:crypto'

export interface BucketCredentials {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string | undefined
}

export interface RequestToSign {
  readonly method: string
  readonly host: string
  /** As it is sent: `encodeKey` made it. */
  readonly path: string
  readonly query: readonly (readonly [name: string, value: string])[]
  /** All are signed. Names in lower case, without host. */
  readonly headers: Readonly<Record<string, string>>
  /** Hex. */
  readonly bodySha256: string
}

/** The headers to send, the signature among them. `now`: milliseconds since 1970. */
export function signV4(
  { method, host, path, query, headers, bodySha256 }: RequestToSign,
  { accessKeyId, secretAccessKey, sessionToken }: BucketCredentials,
  region: string,
  now: number,
): Record<string, string> {
  const time = new Date(now).toISOString().replaceAll(/[-:]|\.\d+/g, '')
  const sent: Record<string, string> = {
    ...headers,
    host,
    'x-amz-content-sha256': bodySha256,
    'x-amz-date': time,
    ...(sessionToken === undefined ? {} : { 'x-amz-security-token': sessionToken }),
  }
  const names = Object.keys(sent).sort()
  const signed = names.join(';')
  const canonical = [
    method,
    path,
    encodeQuery(query),
    ...names.map(name => `${name}:${(sent[name] ?? '').trim().replaceAll(/ +/g, ' ')}`),
    '',
    signed,
    bodySha256,
  ].join('\n')
  const scope = `${time.slice(0, 8)}/${region}/s3/aws4_request`
  const text = ['AWS4-HMAC-SHA256', time, scope, sha256(canonical)].join('\n')
  const key = [time.slice(0, 8), region, 's3', 'aws4_request'].reduce<Buffer>(
    hmac,
    Buffer.from('AWS4' + secretAccessKey),
  )
  const signature = hmac(key, text).toString('hex')
  return {
    ...sent,
    authorization: `AWS4-HMAC-SHA256 Credential=${accessKeyId}/${scope},SignedHeaders=${signed},Signature=${signature}`,
  }
}

/** In the order in which it is signed. */
export function encodeQuery(query: RequestToSign['query']): string {
  const pairs = query.map(([name, value]) => `${encode(name)}=${encode(value)}`)
  return pairs.sort().join('&')
}

/** `/` stays. */
export const encodeKey = (key: string): string => key.split('/').map(encode).join('/')

/** RFC 3986: encodeURIComponent leaves five characters alone that must be encoded. */
const encode = (text: string): string =>
  encodeURIComponent(text).replaceAll(/[!'()*]/g, char => '%' + char.charCodeAt(0).toString(16).toUpperCase())

export const sha256 = (data: string | Buffer): string => createHash('sha256').update(data).digest('hex')

const hmac = (key: Buffer, text: string): Buffer => createHmac('sha256', key).update(text).digest()
