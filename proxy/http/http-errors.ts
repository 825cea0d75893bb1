/**
 * How errors look from outside. One table, kept complete by the compiler; formats with error bodies of their own take the
 * status from here and the words from their protocol.
 */
import type { ErrorCode, HoldfastError } from '../../shared/errors.ts'

/**
 * 404 only for what is known not to exist (I7): whatever goes wrong between proxy and storage nodes is a 5xx, also when
 * one node said "not found".
 */
export const httpStatus = {
  BAD_REQUEST: 400,
  PATH_INVALID: 400,
  CHECKSUM_MISMATCH: 400,
  LENGTH_MISMATCH: 400,
  UNAUTHORIZED: 401,
  FORBIDDEN: 403,
  NOT_FOUND: 404,
  REPOSITORY_NOT_FOUND: 404,
  ARTIFACT_NOT_FOUND: 404,
  METHOD_NOT_ALLOWED: 405,
  REQUEST_TIMEOUT: 408,
  CONFLICT: 409,
  REDEPLOY_REFUSED: 409,
  PRECONDITION_FAILED: 412,
  TOO_LARGE: 413,
  URI_TOO_LONG: 414,
  UNSUPPORTED_MEDIA_TYPE: 415,
  RANGE_NOT_SATISFIABLE: 416,
  EXPECTATION_FAILED: 417,
  TOO_MANY_REQUESTS: 429,
  OVERLOADED: 503,
  METADATA_UNAVAILABLE: 503,
  COORDINATION_UNAVAILABLE: 503,
  REPLICAS_UNREACHABLE: 503,
  QUORUM_NOT_REACHED: 503,
  INSUFFICIENT_STORAGE: 507,
  UPSTREAM_UNAVAILABLE: 503,
  UPSTREAM_FAILED: 502,
  SHUTTING_DOWN: 503,
  WIRE_UNAUTHORIZED: 502,
  NODE_UNREACHABLE: 503,
  SHARD_UNKNOWN: 503,
  SHARD_FAILED: 503,
  SHARD_READ_ONLY: 503,
  SHARD_RECOVERING: 503,
  BLOB_NOT_FOUND: 503,
  BLOB_CORRUPT: 503,
  REFERENCE_NOT_FOUND: 503,
  UPLOAD_NOT_FOUND: 503,
  RECORD_DAMAGED: 500,
  STALE_EPOCH: 503,
  STALE_TOKEN: 503,
  CLUSTER_MAP_INVALID: 500,
  TOPOLOGY_INVALID: 409,
  CONFIG_INVALID: 500,
  SCHEMA_UNSUPPORTED: 503,
  POSTGRES_START_FAILED: 500,
  DATA_IN_USE: 500,
  BACKUP_DAMAGED: 500,
  LEASE_LOST: 503,
  INTERNAL: 500,
} as const satisfies Record<ErrorCode, number>

/** The one JSON shape of errors. Data of the error may stand beside these three, never over them. */
export interface ErrorBody {
  readonly code: ErrorCode
  readonly message: string
  readonly requestId: string
  readonly [fact: string]: unknown
}

/**
 * The body of an error answer. Only errors that speak of the request itself (4xx) show their data: that of the others
 * names nodes, shards and addresses, which belong in the log. An INTERNAL error shows not even its message.
 */
export function errorBody(error: HoldfastError, requestId: string): ErrorBody {
  const data = httpStatus[error.code] < 500 ? error.data : {}
  const message = error.code === 'INTERNAL' ? 'internal error' : error.message
  return { ...data, code: error.code, message, requestId }
}

export const basicChallenge = 'Basic realm="Holdfast", charset="UTF-8"'

/** Seconds to wait when the error does not say (`data.retryAfterSeconds`): most faults end with an ejection or a lease, in 1 to 4 s. */
const retryAfterSeconds: Readonly<Record<number, number>> = { 429: 60, 503: 2 }

/**
 * Headers the status asks for, lower-case: Retry-After (429, 503; from `data.retryAfterSeconds`), WWW-Authenticate
 * (401), Allow (405; from `data.allow`, a list of methods), Content-Range (416; from `data.size`).
 */
export function errorHeaders(error: HoldfastError): Record<string, string> {
  const status = httpStatus[error.code]
  const headers: Record<string, string> = {}
  const wait = error.data['retryAfterSeconds'] ?? retryAfterSeconds[status]
  if (typeof wait === 'number') headers['retry-after'] = String(Math.max(1, Math.ceil(wait)))
  if (status === 401) headers['www-authenticate'] = basicChallenge
  const allow = error.data['allow']
  if (status === 405 && Array.isArray(allow)) headers['allow'] = allow.join(', ')
  const size = error.data['size']
  if (status === 416 && typeof size === 'number') headers['content-range'] = `bytes */${size}`
  return headers
}
