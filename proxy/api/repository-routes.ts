import type { Repository, Upstream } from '../metadata/types.ts'
import { repositoriesKey } from '../artifacts/repositories.ts'
import { upstreamOf } from '../upstream/settings.ts'
import { HoldfastError } from '../../shared/errors.ts'
import type { Api } from './build-api.ts'
import {
  errorAnswer,
  newRepository,
  nothing,
  repositoryChange,
  repositoryList,
  repositoryParams,
  repositoryView,
} from './schemas.ts'
import type { ApiDeps } from './types.ts'

const tags = ['repositories']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/repositories. A change is known to every proxy before it is answered. */
export function addRepositoryRoutes(app: Api, { metadata, repositories, announce }: ApiDeps): void {
  const changed = (): Promise<void> => announce([repositoriesKey])
  const find = async (name: string): Promise<Repository> => {
    const repository = (await repositories.all()).get(name)
    if (repository === undefined)
      throw new HoldfastError('REPOSITORY_NOT_FOUND', `no repository '${name}'`, { repository: name })
    return repository
  }

  app.get(
    '/repositories',
    {
      config: admin,
      schema: { tags, summary: 'All repositories', response: { 200: repositoryList, default: errorAnswer } },
    },
    async () => {
      const all = [...(await repositories.all()).values()].toSorted((a, b) => (a.name < b.name ? -1 : 1))
      return { repositories: all }
    },
  )
  app.post(
    '/repositories',
    {
      config: { ...admin, audit: 'repository.create' },
      schema: {
        tags,
        summary: 'Create one',
        body: newRepository,
        response: { 201: repositoryView, default: errorAnswer },
      },
    },
    async (request, reply) => {
      request.auditSubject = request.body.name
      const repository = await metadata.createRepository(checked(request.body))
      await changed()
      reply.code(201).header('location', `/api/v1/repositories/${repository.name}`)
      return repository
    },
  )
  app.get(
    '/repositories/:name',
    {
      config: admin,
      schema: {
        tags,
        summary: 'One repository',
        params: repositoryParams,
        response: { 200: repositoryView, default: errorAnswer },
      },
    },
    async request => find(request.params.name),
  )
  app.patch(
    '/repositories/:name',
    {
      config: { ...admin, audit: 'repository.change' },
      schema: {
        tags,
        summary: 'Change what is given',
        params: repositoryParams,
        body: repositoryChange,
        response: { 200: repositoryView, default: errorAnswer },
      },
    },
    async request => {
      const { force, ...change } = request.body
      const repository = await metadata.changeRepository(request.params.name, checked(change), force)
      await changed()
      return repository
    },
  )
  app.delete(
    '/repositories/:name',
    {
      config: { ...admin, audit: 'repository.delete' },
      schema: {
        tags,
        summary: 'Delete an empty repository',
        params: repositoryParams,
        response: { 204: nothing, default: errorAnswer },
      },
    },
    async (request, reply) => {
      await metadata.deleteRepository(request.params.name)
      await changed()
      return reply.code(204).send(null)
    },
  )
}

type GivenUpstream = (Pick<Upstream, 'url'> & Partial<Upstream>) | null

/** BAD_REQUEST for an upstream that cannot be one. */
function checked<Settings extends object>(
  settings: Settings & { readonly upstream?: GivenUpstream },
): Settings & { readonly upstream?: Upstream | null } {
  const { upstream, ...others } = settings
  if (upstream === undefined) return others as Settings
  return { ...others, upstream: upstream === null ? null : upstreamOf(upstream) } as Settings & {
    upstream: Upstream | null
  }
}
