/** What there is on the public port, and what kind of request each is. Pure. */
import type { IncomingMessage } from 'node:http'
import { HoldfastError } from '../../shared/errors.ts'
import type { Route } from './metrics.ts'

/** All there is on the public port. 'public': answers carry no artifact and no secret; 'decided': the handler asks proxy/access. */
export const edgeRoutes = [
  { prefix: '/repository/', access: 'decided' },
  { prefix: '/api/v1/', access: 'decided' },
  { prefix: '/healthz', access: 'public' },
  { prefix: '/readyz', access: 'public' },
  { prefix: '/metrics', access: 'public' },
  { prefix: '/', access: 'public' },
] as const
export type EdgePrefix = (typeof edgeRoutes)[number]['prefix']

/** What `/` answers. */
export const welcome = `Holdfast. Artifacts: /repository/<repository>/<path>  API: /api/v1/openapi.json  Health: /healthz /readyz  Metrics: /metrics
`

/** Where a path belongs; '/' for whatever stands in no other place. */
export function prefixOf(path: string): EdgePrefix {
  if (path.startsWith('/repository/')) return '/repository/'
  if (path.startsWith('/api/v1/')) return '/api/v1/'
  if (path === '/healthz' || path === '/readyz' || path === '/metrics') return path
  return '/'
}

/** What a request counts as in the metrics. */
export function routeOf({ method, url = '' }: IncomingMessage): Route {
  if (url.startsWith('/api/')) return 'api'
  if (!url.startsWith('/repository/')) return 'other'
  switch (method) {
    case 'GET':
      return (url.split('?', 1)[0] ?? '').endsWith('/') ? 'list' : 'get'
    case 'HEAD':
      return 'head'
    case 'PUT':
      return 'put'
    case 'DELETE':
      return 'delete'
    default:
      return 'other'
  }
}

/** METHOD_NOT_ALLOWED for all but GET and HEAD. */
export function onlyReads({ method }: IncomingMessage): void {
  if (method !== 'GET' && method !== 'HEAD') {
    throw new HoldfastError('METHOD_NOT_ALLOWED', `${method} is not possible here`, { allow: ['GET', 'HEAD'] })
  }
}
