/** How a bucket is named: `s3://bucket/prefix?endpoint=https://host:port&region=eu-central-1&style=path`. Pure. */
import { HoldfastError } from '../../shared/errors.ts'
import { encodeKey } from './sign-v4.ts'

export interface BucketPlace {
  readonly bucket: string
  /** In front of every name; '' or ends with '/'. */
  readonly prefix: string
  /** `https://host:port` */
  readonly endpoint: string
  readonly region: string
  /** Where the bucket's name stands: before the host or before the key. */
  readonly style: 'virtual' | 'path'
  readonly label: string
}

const bucketPattern = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/
const prefixPattern = /^[A-Za-z0-9._-]+(\/[A-Za-z0-9._-]+)*$/
const regionPattern = /^[a-z0-9-]{1,63}$/
const endpointPattern = /^https?:\/\/[A-Za-z0-9.[\]:-]+\/?$/
const known = new Set(['endpoint', 'region', 'style'])

export const bucketUrlForm = 's3://bucket[/prefix][?endpoint=https://host[:port]&region=<region>&style=path|virtual]'

/** CONFIG_INVALID, in words that repeat nothing of the URL which might be a secret. */
export function parseBucketUrl(text: string): BucketPlace {
  if (!URL.canParse(text)) throw wrong('it is no URL')
  const url = new URL(text)
  if (url.username !== '' || url.password !== '') {
    throw wrong('it has a user or a password: keys are given by HOLDFAST_BACKUP_ACCESS_KEY_ID, or in a file')
  }
  const bucket = url.host
  const prefix = url.pathname.replaceAll(/^\/+|\/+$/g, '')
  if (!bucketPattern.test(bucket))
    throw wrong('the name of the bucket has 3 to 63 lower-case letters, digits and hyphens')
  if (prefix !== '' && (!prefixPattern.test(prefix) || prefix.length > 512)) {
    throw wrong("the prefix has letters, digits, '.', '_', '-' and '/' only")
  }
  if (url.hash !== '' || [...url.searchParams.keys()].some(name => !known.has(name))) {
    throw wrong('it has other parameters than endpoint, region and style')
  }
  const region = url.searchParams.get('region') ?? 'us-east-1'
  const given = url.searchParams.get('endpoint')
  const endpoint = (given ?? `https://s3.${region}.amazonaws.com`).replace(/\/$/, '')
  // A dot in the name fits into no wildcard certificate; few who run a server of their own give each bucket a name in DNS.
  const style = url.searchParams.get('style') ?? (given === null && !bucket.includes('.') ? 'virtual' : 'path')
  if (!regionPattern.test(region)) throw wrong('the region has lower-case letters, digits and hyphens')
  if (!endpointPattern.test(endpoint) || !URL.canParse(endpoint)) throw wrong('the endpoint is https://host[:port]')
  if (style !== 'path' && style !== 'virtual') throw wrong('the style is path or virtual')
  const label = `s3://${bucket}${prefix === '' ? '' : '/' + prefix}${given === null ? '' : ` at ${endpoint}`}`
  return { bucket, prefix: prefix === '' ? '' : prefix + '/', endpoint: new URL(endpoint).origin, region, style, label }
}

/** Whom to ask for a key, or, without one, for the bucket itself. `host` as the header has it. */
export function addressOf(
  { bucket, endpoint, style }: BucketPlace,
  key: string,
): { readonly origin: string; readonly host: string; readonly path: string } {
  const url = new URL(endpoint)
  if (style === 'virtual') url.hostname = `${bucket}.${url.hostname}`
  const path = style === 'virtual' ? `/${encodeKey(key)}` : `/${bucket}/${encodeKey(key)}`
  return { origin: url.origin, host: url.host, path: key === '' && style === 'path' ? `/${bucket}` : path }
}

function wrong(why: string): HoldfastError {
  return new HoldfastError('CONFIG_INVALID', `the backup target must be ${bucketUrlForm}: ${why}`)
}
