import { encodeClusterMap } from '../../shared/cluster-map.ts'
import { HoldfastError } from '../../shared/errors.ts'
import { userKey } from '../access/authenticator.ts'
import type { Api } from './build-api.ts'
import { clusterMapView, clusterStatus, errorAnswer, nothing, passwordChange, userParams } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** Status, cluster map, users, and the description of all this. */
export function addClusterRoutes(app: Api, deps: ApiDeps): void {
  app.get(
    '/status',
    {
      config: admin,
      schema: {
        tags: ['cluster'],
        summary: 'The cluster as this proxy sees it',
        response: { 200: clusterStatus, default: errorAnswer },
      },
    },
    async () => deps.status(),
  )
  app.get(
    '/cluster-map',
    {
      config: admin,
      schema: {
        tags: ['cluster'],
        summary: 'The newest cluster map, as it is stored',
        response: { 200: clusterMapView, default: errorAnswer },
      },
    },
    async (_request, reply) => {
      const map = deps.clusterMap()
      if (map === undefined) throw new HoldfastError('NOT_FOUND', 'there is no cluster map yet')
      // Text is sent as it is; the schema only describes it.
      return reply.type('application/json; charset=utf-8').send(encodeClusterMap(map) as never)
    },
  )
  app.put(
    '/users/:name/password',
    {
      config: { ...admin, audit: 'user.password' },
      schema: {
        tags: ['users'],
        summary: 'Set a password',
        params: userParams,
        body: passwordChange,
        response: { 204: nothing, default: errorAnswer },
      },
    },
    async (request, reply) => {
      const { name } = request.params
      const user = await deps.metadata.findUser(name)
      if (user === undefined) throw new HoldfastError('NOT_FOUND', `no user '${name}'`)
      await deps.metadata.putUser({ ...user, passwordHash: await deps.passwords.hash(request.body.password) })
      await deps.announce([userKey(name)])
      return reply.code(204).send(null)
    },
  )
  app.get('/openapi.json', { config: { access: { demands: 'none' } }, schema: { hide: true } }, async () =>
    app.swagger(),
  )
}
