import pg from 'pg'
import { HoldfastError, isHoldfastError, type ErrorCode } from '../../shared/errors.ts'

/** Classes and codes of SQLSTATE that speak of the server, not of the statement. */
const serverStates = /^(08|57P|53|58|XX|25006|25P03|42P01|42703|42883|3D000)/
/** The transaction was rolled back for the sake of others: deadlock, serialization, lock and statement timeouts. */
const contentionStates = new Set(['40001', '40P01', '55P03', '57014'])
/** The server will not answer anybody now; more than this connection is lost. */
const downStates = /^(57P|25006)/

/** PostgreSQL's own error, which proves that the statement was rolled back. */
export function sqlState(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.code : undefined
}

/** Worth trying again at once: chosen as the victim among transactions that waited for each other. */
export function isRetryable(error: unknown): boolean {
  const state = error instanceof HoldfastError ? error.data['sqlState'] : sqlState(error)
  return state === '40001' || state === '40P01'
}

/** Says that the whole server is away: standby, shutdown, start-up. */
export function saysServerDown(error: unknown): boolean {
  return downStates.test(sqlState(error) ?? '')
}

/**
 * PostgreSQL quotes whole rows and statements in these, a user's with the hash of the password: nobody may meet them, in no log, answer
 * or debugger. The message and the constraint's name say enough.
 */
function forgetRow(error: unknown): void {
  if (!(error instanceof pg.DatabaseError)) return
  for (const quoted of ['detail', 'where', 'hint', 'internalQuery', 'internalPosition'] as const) delete error[quoted]
}

/** What a failed statement means to the rest of the proxy. What PostgreSQL quotes of the data is gone from `error`, too. */
export function translateError(error: unknown, statement: string): HoldfastError {
  if (error instanceof HoldfastError) return error
  forgetRow(error)
  const state = sqlState(error)
  const code = codeOf(state)
  const message = error instanceof Error ? error.message : String(error)
  return new HoldfastError(
    code,
    isLoginRefused(state) ? loginText(message) : messageOf(code, message),
    { statement, ...(state && { sqlState: state }) },
    { cause: error },
  )
}

function codeOf(state: string | undefined): ErrorCode {
  if (state === undefined || contentionStates.has(state) || serverStates.test(state)) return 'METADATA_UNAVAILABLE'
  if (isLoginRefused(state)) return 'CONFIG_INVALID'
  if (state === '54000') return 'PATH_INVALID' // longer than an index entry may be
  // A NUL or half a surrogate pair: such text never came from a valid request.
  if (state === '22021' || state === '22P05' || state === '22P02') return 'BAD_REQUEST'
  return 'INTERNAL'
}

/** Invalid authorization: the password, the user, or what pg_hba.conf says of both. */
const isLoginRefused = (state: string | undefined): boolean => state?.startsWith('28') === true

/** PostgreSQL names the user, and no password. */
const loginText = (message: string): string =>
  `PostgreSQL refuses the login (${message}): look at the user and the password in HOLDFAST_POSTGRES_URL`

function messageOf(code: ErrorCode, message: string): string {
  if (code === 'METADATA_UNAVAILABLE') return `the database did not do it: ${message}`
  if (code === 'INTERNAL') return 'the database refused a statement'
  return message
}

/** Nothing was heard in this time; anything else that is METADATA_UNAVAILABLE was said by somebody. */
export function noAnswer(
  message: string,
  waitedMs: number,
  data: Readonly<Record<string, unknown>> = {},
): HoldfastError {
  return new HoldfastError('METADATA_UNAVAILABLE', message, { ...data, waitedMs: Math.round(waitedMs) })
}

export function isNoAnswer(error: unknown): boolean {
  return isHoldfastError(error, 'METADATA_UNAVAILABLE') && error.data['waitedMs'] !== undefined
}

export function unavailable(message: string, cause?: unknown): HoldfastError {
  return new HoldfastError('METADATA_UNAVAILABLE', message, {}, cause === undefined ? {} : { cause })
}
