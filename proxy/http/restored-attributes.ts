import type { IncomingHttpHeaders } from 'node:http'
import type { Principal } from '../access/principal.ts'
import { HoldfastError } from '../../shared/errors.ts'

/** base64url of a JSON object: what a restore brings along with the bytes of an artifact. */
export const attributesHeader = 'holdfast-attributes'

/** {} without the header. FORBIDDEN unless it is an administrator who sends it, BAD_REQUEST for anything but an object. */
export function restoredAttributes(headers: IncomingHttpHeaders, principal: Principal): Record<string, unknown> {
  const text = headers[attributesHeader]
  if (text === undefined) return {}
  if (!principal.admin) throw new HoldfastError('FORBIDDEN', 'only an administrator restores attributes')
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(String(text), 'base64url').toString('utf8'))
  } catch {
    value = undefined // refused below
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new HoldfastError('BAD_REQUEST', `${attributesHeader} is no JSON object in base64url`)
  }
  return value as Record<string, unknown>
}
