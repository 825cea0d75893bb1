/**
 * Every error of the world (a client, a disk, a peer) that Holdfast reports has one of these codes. Codes are stable:
 * clients, logs, metrics and tests match on them, never on message text. Our own mistakes are `assert`ed instead.
 */
export const errorCodes = [
  // what a client asked
  'BAD_REQUEST',
  'PATH_INVALID',
  'CHECKSUM_MISMATCH',
  'LENGTH_MISMATCH',
  'UNAUTHORIZED',
  'FORBIDDEN',
  'NOT_FOUND',
  'REPOSITORY_NOT_FOUND',
  'ARTIFACT_NOT_FOUND',
  'METHOD_NOT_ALLOWED',
  'REQUEST_TIMEOUT',
  'CONFLICT',
  'REDEPLOY_REFUSED',
  'PRECONDITION_FAILED',
  'TOO_LARGE',
  'URI_TOO_LONG',
  'UNSUPPORTED_MEDIA_TYPE',
  'RANGE_NOT_SATISFIABLE',
  'EXPECTATION_FAILED',
  'TOO_MANY_REQUESTS',
  // what the cluster cannot do right now
  'OVERLOADED',
  'METADATA_UNAVAILABLE',
  'COORDINATION_UNAVAILABLE',
  'REPLICAS_UNREACHABLE',
  'QUORUM_NOT_REACHED',
  'INSUFFICIENT_STORAGE',
  'UPSTREAM_UNAVAILABLE',
  'UPSTREAM_FAILED',
  'SHUTTING_DOWN',
  // between proxy and storage node
  'WIRE_UNAUTHORIZED',
  'NODE_UNREACHABLE',
  'SHARD_UNKNOWN',
  'SHARD_FAILED',
  'SHARD_READ_ONLY',
  'SHARD_RECOVERING',
  'BLOB_NOT_FOUND',
  'BLOB_CORRUPT',
  'REFERENCE_NOT_FOUND',
  'UPLOAD_NOT_FOUND',
  'RECORD_DAMAGED',
  'STALE_EPOCH',
  'STALE_TOKEN',
  // start-up and operation
  'CLUSTER_MAP_INVALID',
  'TOPOLOGY_INVALID',
  'CONFIG_INVALID',
  'SCHEMA_UNSUPPORTED',
  'POSTGRES_START_FAILED',
  'DATA_IN_USE',
  'BACKUP_DAMAGED',
  'LEASE_LOST',
  'INTERNAL',
] as const
export type ErrorCode = (typeof errorCodes)[number]

/** An expected failure: `code` says which, `data` carries the facts (never secrets), `cause` what lies beneath. */
export class HoldfastError extends Error {
  override readonly name = 'HoldfastError'
  readonly code: ErrorCode
  readonly data: Readonly<Record<string, unknown>>

  constructor(
    code: ErrorCode,
    message: string,
    data: Readonly<Record<string, unknown>> = {},
    options: { cause?: unknown } = {},
  ) {
    super(message, options)
    this.code = code
    this.data = data
  }
}

/** Is this an error of the world, and, if codes are given, one of these? */
export function isHoldfastError(error: unknown, ...codes: ErrorCode[]): error is HoldfastError {
  return error instanceof HoldfastError && (codes.length === 0 || codes.includes(error.code))
}

/** Makes anything thrown a HoldfastError; what is unknown becomes INTERNAL with the original as its cause. */
export function toHoldfastError(thrown: unknown): HoldfastError {
  if (thrown instanceof HoldfastError) return thrown
  return new HoldfastError('INTERNAL', 'internal error', {}, { cause: thrown })
}
