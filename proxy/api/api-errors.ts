import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest, FastifySchemaValidationError } from 'fastify'
import { HoldfastError, toHoldfastError, type ErrorCode } from '../../shared/errors.ts'
import { errorBody, errorHeaders, httpStatus } from '../http/http-errors.ts'
import type { ApiDeps } from './types.ts'

/** What fastify itself refuses, in our words. */
const ofFastify: Readonly<Record<string, ErrorCode>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'UNSUPPORTED_MEDIA_TYPE',
  FST_ERR_CTP_BODY_TOO_LARGE: 'TOO_LARGE',
  FST_ERR_CTP_EMPTY_JSON_BODY: 'BAD_REQUEST',
  FST_ERR_CTP_INVALID_JSON_BODY: 'BAD_REQUEST',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'BAD_REQUEST',
  FST_ERR_VALIDATION: 'BAD_REQUEST',
  FST_ERR_BAD_URL: 'BAD_REQUEST',
  FST_ERR_MAX_PARAM_LENGTH: 'URI_TOO_LONG',
}

/** One JSON shape for every error of the API. */
export function installErrors(app: FastifyInstance, { log }: Pick<ApiDeps, 'log'>): void {
  app.setErrorHandler<FastifyError | HoldfastError>(async (thrown, request, reply) => {
    const error = ourError(thrown)
    request.refusal = error.code
    if (error.code === 'INTERNAL') log.error({ err: error, requestId: request.id }, 'api request failed')
    return reply.code(httpStatus[error.code]).headers(errorHeaders(error)).send(errorBody(error, request.id))
  })
  app.setNotFoundHandler(async (request, reply) => {
    const path = request.url.split('?', 1)[0] ?? ''
    const allow = [...new Set(app.declaredRoutes.filter(({ url }) => matches(url, path)).map(({ method }) => method))]
    const error =
      allow.length > 0
        ? new HoldfastError('METHOD_NOT_ALLOWED', `${request.method} is not possible here`, { allow })
        : new HoldfastError('NOT_FOUND', `no ${request.method} ${path.slice(0, 200)}`)
    return reply.code(httpStatus[error.code]).headers(errorHeaders(error)).send(errorBody(error, request.id))
  })
}

/** What is refused before there is a route, and so before any hook. */
export function refuseUnrouted(thrown: FastifyError, { id }: FastifyRequest, reply: FastifyReply): void {
  const error = ourError(thrown)
  const headers = { ...errorHeaders(error), ...headersOfAll(id) }
  void reply.code(httpStatus[error.code]).headers(headers).send(errorBody(error, id))
}

/**
 * What is wrong with a request (`where`: its body, its query …), and what would be right. There is more than one error only where one of
 * several schemas would do: each value that may stand there is named, once.
 */
export function schemaError(errors: readonly FastifySchemaValidationError[], where: string): HoldfastError {
  const places = new Map<string, { allowed: Set<string>; words: Set<string> }>()
  for (const { keyword, instancePath, params, message = 'is wrong' } of errors) {
    // It says no more than that none of the others would do.
    if (keyword === 'anyOf') continue
    const place = places.get(instancePath) ?? { allowed: new Set(), words: new Set() }
    places.set(instancePath, place)
    if (keyword === 'const') place.allowed.add(String(params['allowedValue']))
    else if (keyword === 'type' && params['type'] === 'null') place.allowed.add('null')
    else if (keyword === 'additionalProperties') place.words.add(unknownField(params['additionalProperty']))
    else place.words.add(message)
  }
  const problems = [...places].map(([path, { allowed, words }]) => {
    const values = [...allowed].join(', ')
    const choice = allowed.size === 0 ? [] : [allowed.size === 1 ? `must be ${values}` : `must be one of ${values}`]
    return `${where}${path} ${[...words, ...choice].join(' or ')}`
  })
  return new HoldfastError('BAD_REQUEST', problems.join('; or '))
}

/** A name that a client made up may be long. */
const unknownField = (name: unknown): string => `must not have a field '${String(name).slice(0, 100)}'`

/** Of every answer of the API. */
export function headersOfAll(requestId: string): Record<string, string> {
  return { 'x-request-id': requestId, 'x-content-type-options': 'nosniff', 'cache-control': 'no-store' }
}

/** Is this the path of a route such as `/api/v1/users/:name/password`? */
function matches(pattern: string, path: string): boolean {
  const wanted = pattern.split('/')
  const given = path.split('/')
  return (
    wanted.length === given.length &&
    wanted.every((part, index) => (part.startsWith(':') ? given[index] !== '' : part === given[index]))
  )
}

function ourError(thrown: FastifyError | HoldfastError): HoldfastError {
  if (thrown instanceof HoldfastError) return thrown
  const code = ofFastify[thrown.code] ?? (thrown instanceof SyntaxError ? 'BAD_REQUEST' : undefined)
  return code === undefined ? toHoldfastError(thrown) : new HoldfastError(code, thrown.message, {}, { cause: thrown })
}
