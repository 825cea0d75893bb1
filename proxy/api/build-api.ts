/** /api/v1: the administration of a cluster, for the CLI, the UI and programs. */
import swagger from '@fastify/swagger'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import fastify, { type FastifyBaseLogger, type FastifyInstance, type RawServerDefault } from 'fastify'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { requestIdOf } from '../http/request-id.ts'
import { installAccessControl } from './access-control.ts'
import { headersOfAll, installErrors, refuseUnrouted, schemaError } from './api-errors.ts'
import { addArtifactRoutes } from './artifact-routes.ts'
import { addAuditRoutes } from './audit-routes.ts'
import { installAudit } from './audit.ts'
import { addBackupRoutes } from './backup-routes.ts'
import { addCleanupRoutes } from './cleanup-routes.ts'
import { addClusterRoutes } from './cluster-routes.ts'
import { addGcRoutes } from './gc-routes.ts'
import { addInspectionRoutes } from './inspection-routes.ts'
import { addRepairRoutes } from './repair-routes.ts'
import { addRepositoryRoutes } from './repository-routes.ts'
import { addRestoreRoutes } from './restore-routes.ts'
import { addTopologyRoutes } from './topology-routes.ts'
import { addScrubRoutes } from './scrub-routes.ts'
import { addTaskRoutes } from './task-routes.ts'
import { addTrashRoutes } from './trash-routes.ts'
import type { ApiDeps } from './types.ts'

export type Api = FastifyInstance<
  RawServerDefault,
  IncomingMessage,
  ServerResponse,
  FastifyBaseLogger,
  TypeBoxTypeProvider
>

/** No document of the API is anywhere near as large. */
const bodyBytesMax = 64 * 1024

/** The name of a user has up to 255 characters, which may come as 12 each (three for each byte). */
const paramCharsMax = 255 * 12

/**
 * The API, ready to serve: hand requests for /api/v1/ to `app.routing(request, response)`. It listens nowhere itself.
 * A request id that stands in X-Request-Id is used, so the edge may set one.
 */
export async function buildApi(deps: ApiDeps): Promise<Api> {
  const app = fastify({
    logger: false,
    bodyLimit: bodyBytesMax,
    routerOptions: { maxParamLength: paramCharsMax },
    frameworkErrors: refuseUnrouted,
    schemaErrorFormatter: schemaError,
    genReqId: request => requestIdOf(request.headers['x-request-id']),
    // What a client sends is taken as it is, or refused: nothing converted, nothing dropped unsaid.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: false } },
  }).withTypeProvider<TypeBoxTypeProvider>()
  // text/plain, which any page may send, is no way in (see access-control.ts).
  app.removeContentTypeParser('text/plain')
  installErrors(app, deps)
  installAccessControl(app, deps)
  installAudit(app, deps)
  app.addHook('onSend', async (request, reply) => {
    reply.headers(headersOfAll(request.id))
  })
  await app.register(swagger, { openapi: description(deps.version) })
  await app.register(
    async (api: Api) => {
      addRepositoryRoutes(api, deps)
      addArtifactRoutes(api, deps)
      addClusterRoutes(api, deps)
      addAuditRoutes(api, deps)
      addTaskRoutes(api, deps)
      addTopologyRoutes(api, deps)
      addGcRoutes(api, deps)
      addBackupRoutes(api, deps)
      addTrashRoutes(api, deps)
      addRestoreRoutes(api, deps)
      addCleanupRoutes(api, deps)
      addInspectionRoutes(api, deps)
      addScrubRoutes(api, deps)
      addRepairRoutes(api, deps)
    },
    { prefix: '/api/v1' },
  )
  await app.ready()
  return app
}

function description(version: string) {
  return {
    openapi: '3.1.0',
    info: { title: 'Holdfast', version, description: 'Administration of a Holdfast cluster.' },
    components: { securitySchemes: { basic: { type: 'http' as const, scheme: 'basic' } } },
    security: [{ basic: [] }],
  }
}
