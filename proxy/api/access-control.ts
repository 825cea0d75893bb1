/**
 * One gate for the whole API (I41). Every route declares what it demands; one that does not cannot be registered, and a request that reaches
 * no declaration is refused. Identity is asked before the body is read; demands that depend on the body are decided behind its validation.
 */
import type { FastifyInstance, FastifyRequest, RouteOptions } from 'fastify'
import assert from 'node:assert/strict'
import { HoldfastError } from '../../shared/errors.ts'
import { decide, type Action } from '../access/decide.ts'
import { anonymous, type Principal } from '../access/principal.ts'
import type { ApiDeps } from './types.ts'

/** Something the caller must be allowed to do: to a repository, by name, or to none in particular. */
export interface Demand {
  readonly action: Action
  readonly repository?: string
}

export type Access =
  /** Answers everybody: says nothing about what is stored. */
  | { readonly demands: 'none' }
  /** Decided before the body is read. */
  | { readonly demands: readonly [Demand, ...Demand[]] }
  /** Needs credentials; decided when the body has been validated. */
  | { readonly demands: (request: FastifyRequest) => readonly Demand[] }

export interface DeclaredRoute {
  readonly method: string
  readonly url: string
  readonly access: Access
}

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: Access
    /** Of a change: its name in the audit log. */
    audit?: string
  }
  interface FastifyRequest {
    principal: Principal
  }
  interface FastifyInstance {
    /** Every route of the API with what it demands. */
    declaredRoutes: readonly DeclaredRoute[]
  }
}

/** Installs the gate; call it before any route is added. */
export function installAccessControl(
  app: FastifyInstance,
  deps: Pick<ApiDeps, 'authenticator' | 'addressOf' | 'repositories'>,
): void {
  const routes: DeclaredRoute[] = []
  app.decorate('declaredRoutes', routes)
  app.decorateRequest('principal')
  app.addHook('onRoute', route => {
    routes.push(...declared(route))
  })
  app.addHook('onRequest', async request => {
    request.principal = anonymous
    if (request.is404) return
    const { demands } = accessOf(request)
    refuseForgery(request)
    if (demands === 'none') return
    const address = deps.addressOf(request.raw)
    request.principal = await deps.authenticator.authenticate(request.headers.authorization, address)
    if (typeof demands !== 'function') return decideAll(request.principal, demands, deps)
    if (request.principal.anonymous) throw new HoldfastError('UNAUTHORIZED', 'log in first')
  })
  app.addHook('preHandler', async request => {
    if (request.is404) return
    const { demands } = accessOf(request)
    if (typeof demands === 'function') await decideAll(request.principal, demands(request), deps)
  })
}

function declared(route: RouteOptions): DeclaredRoute[] {
  const { access, audit } = route.config ?? {}
  return [route.method].flat().map(method => {
    assert(access !== undefined, `${method} ${route.url} does not say who may use it`)
    const reads = method === 'GET' || method === 'HEAD'
    assert(reads || audit !== undefined, `${method} ${route.url} changes something without a name for the audit log`)
    return { method, url: route.url, access }
  })
}

function accessOf(request: FastifyRequest): Access {
  const { access } = request.routeOptions.config
  assert(access !== undefined, 'a route without access control')
  return access
}

async function decideAll(
  principal: Principal,
  demands: readonly Demand[],
  deps: Pick<ApiDeps, 'repositories'>,
): Promise<void> {
  assert(demands.length > 0, 'nothing demanded is nothing decided')
  for (const { action, repository: name } of demands) {
    const repository = name === undefined ? undefined : (await deps.repositories.all()).get(name)
    const verdict = decide(principal, action, repository)
    if (verdict === 'unauthorized') throw new HoldfastError('UNAUTHORIZED', 'log in first')
    if (verdict === 'forbidden') {
      const where = name === undefined ? '' : ` in repository '${name}'`
      throw new HoldfastError('FORBIDDEN', `'${principal.name}' lacks the right '${action}'${where}`)
    }
  }
}

/**
 * A browser that knows credentials sends them with whatever any page makes it send. Other methods than POST, and JSON, need a preflight
 * that we never answer; so a change must come as JSON, and never from a page of another site.
 */
function refuseForgery({ method, headers }: FastifyRequest): void {
  if (method === 'GET' || method === 'HEAD') return
  if (headers['sec-fetch-site'] === 'cross-site') {
    throw new HoldfastError('FORBIDDEN', 'a page of another site may change nothing here')
  }
  if (method === 'DELETE') return
  if (!/^application\/json *(;|$)/i.test(headers['content-type'] ?? '')) {
    throw new HoldfastError('UNSUPPORTED_MEDIA_TYPE', 'a change must come with Content-Type: application/json')
  }
}
