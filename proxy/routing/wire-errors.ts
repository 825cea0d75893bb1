import { errorCodes, type ErrorCode, HoldfastError } from '../../shared/errors.ts'
import type { Outcome } from './health.ts'

const knownCodes: ReadonlySet<string> = new Set(errorCodes)

/** The error a node's answer stands for. What is no WireError is nonsense, and as good as no answer. */
export function wireErrorOf(text: string, status: number, data: Readonly<Record<string, unknown>>): HoldfastError {
  let body: unknown
  try {
    body = JSON.parse(text)
  } catch {
    // Not JSON: falls through to NODE_UNREACHABLE below.
  }
  const {
    code,
    message,
    data: more,
  } = (typeof body === 'object' && body !== null ? body : {}) as Record<string, unknown>
  if (typeof code !== 'string' || typeof message !== 'string' || !knownCodes.has(code)) {
    return new HoldfastError('NODE_UNREACHABLE', 'storage node answered nonsense', {
      ...data,
      status,
      reason: 'nonsense',
    })
  }
  const facts = typeof more === 'object' && more !== null ? more : {}
  return new HoldfastError(code as ErrorCode, message, { ...facts, ...data, status })
}

/** What an error says about the node's health; undefined: nothing (it is busy, or refuses for good reason). */
export function outcomeOf(error: HoldfastError): Outcome | undefined {
  if (error.code === 'OVERLOADED' || error.code === 'SHUTTING_DOWN') return undefined
  if (error.code === 'NODE_UNREACHABLE')
    return connectReasons.has(String(error.data['reason'])) ? 'unreachable' : 'failed'
  return error.code === 'INTERNAL' ? 'failed' : 'ok'
}

/** Reasons that mean that no connection came about. */
const connectReasons: ReadonlySet<string> = new Set([
  'ECONNREFUSED',
  'UND_ERR_CONNECT_TIMEOUT',
  'CONNECT_TIMEOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ETIMEDOUT',
])

/** Which kind of failure lies beneath: its code, else its name. */
export function reasonOf(cause: unknown): string {
  if (typeof cause !== 'object' || cause === null) return 'unknown'
  const { code, name } = cause as { code?: unknown; name?: unknown }
  return typeof code === 'string' ? code : typeof name === 'string' ? name : 'unknown'
}
