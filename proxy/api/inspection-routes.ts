import { HoldfastError } from '../../shared/errors.ts'
import { checkArtifactPath } from '../http/artifact-path.ts'
import { isPageMark } from '../inspection/dispersion.ts'
import type { Api } from './build-api.ts'
import {
  dispersionQuery,
  dispersionReport,
  errorAnswer,
  fsckPage,
  fsckQuery,
  pathQuery,
  repositoryParams,
  verification,
} from './schemas.ts'
import type { ApiDeps } from './types.ts'

const tags = ['copies']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** What is really on the shards: one artifact, a sample of the blobs, or everything page by page. */
export function addInspectionRoutes(app: Api, { inspection, repositories }: ApiDeps): void {
  app.get(
    '/repositories/:name/verify',
    {
      // It reads all copies from the disks, and names the shards and nodes they are on.
      config: admin,
      schema: {
        tags,
        summary: 'Read every copy of an artifact to its end; bad ones are quarantined and queued for repair',
        params: repositoryParams,
        querystring: pathQuery,
        response: { 200: verification, default: errorAnswer },
      },
    },
    async request => {
      const { name } = request.params
      const { path } = request.query
      checkArtifactPath(path)
      const repository = (await repositories.all()).get(name)
      if (repository === undefined)
        throw new HoldfastError('REPOSITORY_NOT_FOUND', `no repository '${name}'`, { repository: name })
      return inspection.verify(repository, path)
    },
  )
  app.get(
    '/dispersion',
    {
      config: admin,
      schema: {
        tags,
        summary: 'How many copies blobs have, in how many zones: of a sample, or page by page of all',
        querystring: dispersionQuery,
        response: { 200: dispersionReport, default: errorAnswer },
      },
    },
    async request => {
      const { after } = request.query
      if (after !== undefined && !isPageMark(after)) throw new HoldfastError('BAD_REQUEST', 'after must be a digest')
      return inspection.dispersion(after)
    },
  )
  const response = { 200: fsckPage, default: errorAnswer }
  app.get(
    '/fsck',
    {
      config: admin,
      schema: {
        tags,
        summary: 'One page of the check of the database against the shards',
        querystring: fsckQuery,
        response,
      },
    },
    async request => inspection.fsck(request.query.mark ?? '', false),
  )
  app.post(
    '/fsck',
    {
      config: { ...admin, audit: 'fsck.repair' },
      schema: { tags, summary: 'The same, queueing what can be repaired', body: fsckQuery, response },
    },
    async request => inspection.fsck(request.body.mark ?? '', true),
  )
}
