/** What a bucket's answer, or the lack of one, means: once more, or words for whoever set it up. Pure. */
import { HoldfastError, type ErrorCode } from '../../shared/errors.ts'
import type { BucketPlace } from './bucket-url.ts'

export interface Refusal {
  readonly status: number
  /** `<Code>` of the answer; '' where it has none. */
  readonly code: string
  /** Header `x-amz-bucket-region`. */
  readonly region?: string | undefined
  /** Header `date`, milliseconds since 1970. */
  readonly date?: number | undefined
}

/** It may go well a moment later. */
export const isPassing = ({ status, code }: Refusal): boolean =>
  status === 408 ||
  status === 429 ||
  (status >= 500 && status !== 501) ||
  ['RequestTimeout', 'SlowDown', 'ConditionalRequestConflict', 'OperationAborted'].includes(code)

/** `what`: 'blobs/3f/… cannot be written'. `now`: milliseconds since 1970 on this machine. */
export function refusalOf(place: BucketPlace, what: string, refusal: Refusal, now: number): HoldfastError {
  const { status, code } = refusal
  const [kind, why] = meaningOf(place, refusal, now)
  const answer = code === '' ? `${status}` : `${status} ${code}`
  return new HoldfastError(kind, `backup target ${place.label}: ${what}: ${why} (${answer})`, { status, code })
}

function meaningOf(
  { bucket, endpoint, region }: BucketPlace,
  refusal: Refusal,
  now: number,
): readonly [ErrorCode, string] {
  const { status, code, date } = refusal
  switch (code) {
    case 'NoSuchBucket':
      return ['CONFIG_INVALID', `there is no bucket '${bucket}' at ${endpoint}`]
    case 'NoSuchKey':
      return ['NOT_FOUND', 'it is not there']
    case 'InvalidAccessKeyId':
    case 'XAdminUserNotFound':
    case 'InvalidToken':
    case 'ExpiredToken':
      return ['CONFIG_INVALID', 'the access key is unknown there, or has expired']
    case 'SignatureDoesNotMatch':
      return ['CONFIG_INVALID', 'the secret does not belong to the access key']
    case 'AccessDenied':
    case 'AllAccessDisabled':
      return ['FORBIDDEN', 'the access key may not do that']
    case 'RequestTimeTooSkewed':
    case 'RequestExpired':
      return ['CONFIG_INVALID', skewText(date, now)]
    case 'EntityTooLarge':
      return ['TOO_LARGE', 'it is too large for one object']
    case 'QuotaExceeded':
    case 'XMinioStorageFull':
      return ['INSUFFICIENT_STORAGE', 'the bucket is full']
  }
  const elsewhere = refusal.region !== undefined && refusal.region !== region
  if (elsewhere && (status === 301 || status === 307 || status === 400)) {
    return [
      'CONFIG_INVALID',
      `the bucket is in the region ${refusal.region}, not ${region}: say &region=${refusal.region}`,
    ]
  }
  if (code === 'AuthorizationHeaderMalformed') return ['CONFIG_INVALID', `is '${region}' the region of the bucket?`]
  if (status >= 300 && status < 400)
    return ['CONFIG_INVALID', 'the bucket is elsewhere: are endpoint, region and style right?']
  if (status === 403) return ['FORBIDDEN', 'refused']
  if (status === 507) return ['INSUFFICIENT_STORAGE', 'the bucket is full']
  if (isPassing(refusal)) return ['NODE_UNREACHABLE', 'it has failed again and again']
  // Not NOT_FOUND: an object that is not there says so by NoSuchKey; this may be any web server.
  return ['CONFLICT', 'refused']
}

function skewText(date: number | undefined, now: number): string {
  const text = 'the clock of this machine is wrong'
  if (date === undefined || Number.isNaN(date)) return text
  return `${text}: ${Math.round(Math.abs(now - date) / 1_000)} s ${now > date ? 'ahead of' : 'behind'} the target's`
}

/** No answer at all: `error` as it came from the socket. */
export function silenceOf({ label, endpoint }: BucketPlace, what: string, error: unknown): HoldfastError {
  const code = codeOf(error)
  const why = isCertificate(code)
    ? `the certificate of ${endpoint} is not trusted (NODE_EXTRA_CA_CERTS names one's own authority)`
    : code === 'ENOTFOUND' || code === 'EAI_AGAIN'
      ? `the name in ${endpoint} is not known, or there is no network`
      : `${endpoint} does not answer`
  const kind = isCertificate(code) ? 'CONFIG_INVALID' : 'NODE_UNREACHABLE'
  return new HoldfastError(kind, `backup target ${label}: ${what}: ${why} (${code})`, { code }, { cause: error })
}

/** That does not pass by itself. */
export const isCertificate = (code: string): boolean => /CERT|SELF_SIGNED|UNABLE_TO_VERIFY|ERR_TLS|ERR_SSL/.test(code)

export function codeOf(error: unknown): string {
  let at = error
  for (let depth = 0; depth < 5 && at instanceof Error; depth++) {
    if ('code' in at && typeof at.code === 'string') return at.code
    at = at instanceof AggregateError ? (at.errors as unknown[])[0] : at.cause
  }
  return 'no answer'
}
