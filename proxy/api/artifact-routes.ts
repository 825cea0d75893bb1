import type { FastifyRequest } from 'fastify'
import { HoldfastError } from '../../shared/errors.ts'
import { checkArtifactPath } from '../http/artifact-path.ts'
import type { Demand } from './access-control.ts'
import type { Api } from './build-api.ts'
import { changedCount, deleteRequest, errorAnswer, transferRequest } from './schemas.ts'
import type { ApiDeps, ArtifactPlace } from './types.ts'

const tags = ['artifacts']

interface Place {
  readonly repository: string
  readonly path: string
}
interface Body {
  readonly from: Place
  readonly to?: Place
  readonly recursive?: boolean
}

/** POST /api/v1/artifacts/copy, move and delete: for one artifact, or for a folder with `recursive`. */
export function addArtifactRoutes(app: Api, { artifacts, repositories }: ApiDeps): void {
  const find = async ({ repository: name, path }: Place, recursive: boolean | undefined): Promise<ArtifactPlace> => {
    const repository = (await repositories.all()).get(name)
    if (repository === undefined)
      throw new HoldfastError('REPOSITORY_NOT_FOUND', `no repository '${name}'`, { repository: name })
    return { repository, path: normalPath(path, recursive === true) }
  }

  for (const kind of ['copy', 'move'] as const) {
    const demands = (request: FastifyRequest): readonly Demand[] => transferDemands(kind, request.body as Body)
    app.post(
      `/artifacts/${kind}`,
      {
        config: { access: { demands }, audit: `artifact.${kind}` },
        schema: {
          tags,
          summary: kind === 'copy' ? 'Copy without moving bytes' : 'Move without moving bytes',
          body: transferRequest,
          response: { 200: changedCount, default: errorAnswer },
        },
      },
      async request => {
        const { from, to, recursive } = request.body
        request.auditSubject = `${from.repository}/${from.path} -> ${to.repository}/${to.path}`
        const [source, target] = [await find(from, recursive), await find(to, recursive)]
        return { artifacts: await artifacts.transfer(kind, source, target, request.principal.name) }
      },
    )
  }
  app.post(
    '/artifacts/delete',
    {
      config: {
        access: { demands: request => [{ action: 'delete', repository: (request.body as Body).from.repository }] },
        audit: 'artifact.delete',
      },
      schema: {
        tags,
        summary: 'Delete, into the trash',
        body: deleteRequest,
        response: { 200: changedCount, default: errorAnswer },
      },
    },
    async request => {
      const { from, recursive, confirm } = request.body
      request.auditSubject = `${from.repository}/${from.path}`
      const place = await find(from, recursive)
      if (recursive === true) return { artifacts: await artifacts.deleteFolder(place, request.principal.name, confirm) }
      await artifacts.deleteArtifact(place, request.principal.name)
      return { artifacts: 1 }
    },
  )
}

/** The body has been validated before these are asked for. */
function transferDemands(kind: 'copy' | 'move', { from, to }: Body): readonly Demand[] {
  const read: Demand = { action: 'read', repository: from.repository }
  const write: Demand = { action: 'write', repository: to?.repository ?? '' }
  return kind === 'copy' ? [read, write] : [read, { action: 'delete', repository: from.repository }, write]
}

/** `recursive` speaks of folders, with or without their slash; an artifact must not look like one. */
function normalPath(path: string, recursive: boolean): string {
  checkArtifactPath(path)
  const isFolder = path === '' || path.endsWith('/')
  if (!recursive && isFolder) {
    throw new HoldfastError('BAD_REQUEST', 'this is a folder: say "recursive": true to mean everything below it')
  }
  return recursive && !isFolder ? path + '/' : path
}
