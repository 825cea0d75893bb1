import { Type, type Static } from 'typebox'
import { HoldfastError } from '../../shared/errors.ts'
import type { CleanupPolicy } from '../metadata/cleanup-types.ts'
import { checkConditions } from '../tasks/cleanup-selection.ts'
import type { Api } from './build-api.ts'
import { errorAnswer, nothing, nullable, repositoryName } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const closed = { additionalProperties: false } as const
const days = (description: string) => Type.Optional(Type.Integer({ minimum: 1, maximum: 36_500, description }))
const conditions = Type.Object(
  {
    unchangedDays: days('Written longer ago than this'),
    notDownloadedDays: days('Neither written nor downloaded for so long'),
    keepNewest: Type.Optional(
      Type.Object(
        {
          count: Type.Integer({ minimum: 1, maximum: 10_000 }),
          of: Type.Union([Type.Literal('artifacts'), Type.Literal('folders')], {
            description: 'What a version is: an artifact of a folder, or a folder of the folder above',
          }),
        },
        { ...closed, description: 'Not among the newest of its group' },
      ),
    ),
    path: Type.Optional(Type.String({ minLength: 1, maxLength: 500, description: 'Glob of the path: *, ?, and ** for folders' })), // prettier-ignore
    prerelease: Type.Optional(Type.Union([Type.Literal('only'), Type.Literal('never')])),
  },
  { ...closed, description: 'All that are given must hold for an artifact to be deleted' },
)
const name = Type.String({ pattern: '^[a-z0-9][a-z0-9._-]{0,63}$' })
const repositories = nullable(Type.Array(repositoryName, { minItems: 1, maxItems: 1_000, description: 'null: all' }))
const enabled = Type.Boolean({ description: 'Does it delete? A policy can be previewed before' })
const policy = Type.Object({ name, repositories, conditions, enabled })
const newPolicy = Type.Object(
  { name, repositories: Type.Optional(repositories), conditions, enabled: Type.Optional(enabled) },
  closed,
)
const policyChange = Type.Object(
  {
    repositories: Type.Optional(repositories),
    conditions: Type.Optional(conditions),
    enabled: Type.Optional(enabled),
  },
  { ...closed, minProperties: 1 },
)
const preview = Type.Object({
  artifacts: Type.Integer({ description: 'How many would be deleted' }),
  bytes: Type.Integer(),
  first: Type.Array(Type.String(), { description: 'Some of them' }),
  examined: Type.Integer({ description: 'How many artifacts were looked at' }),
  complete: Type.Boolean({ description: 'false: there are more than were looked at' }),
})

const tags = ['cleanup']
const admin = { access: { demands: [{ action: 'admin' }] } } as const
const params = Type.Object({ name })

/** /api/v1/cleanup/policies. They are carried out by the task `cleanup`. */
export function addCleanupRoutes(app: Api, { cleanup, previewCleanup, repositories: known }: ApiDeps): void {
  const find = async (wanted: string): Promise<CleanupPolicy> => {
    const found = (await cleanup.listPolicies()).find(one => one.name === wanted)
    if (found === undefined) throw new HoldfastError('NOT_FOUND', `no cleanup policy '${wanted}'`, { name: wanted })
    return found
  }
  /** A name that is misspelt would be a policy that deletes nothing, and says nothing. */
  const checkRepositories = async (names: readonly string[] | null | undefined): Promise<void> => {
    const all = await known.all()
    const unknown = (names ?? []).filter(one => !all.has(one))
    if (unknown.length === 0) return
    throw new HoldfastError('BAD_REQUEST', `no repository '${unknown.join("', '")}'`, { unknown })
  }

  app.get(
    '/cleanup/policies',
    {
      config: admin,
      schema: {
        tags,
        summary: 'All policies',
        response: { 200: Type.Object({ policies: Type.Array(policy) }), default: errorAnswer },
      },
    },
    async () => ({ policies: (await cleanup.listPolicies()).map(viewOf) }),
  )
  app.post(
    '/cleanup/policies',
    {
      config: { ...admin, audit: 'cleanup.create' },
      schema: { tags, summary: 'Create one', body: newPolicy, response: { 201: policy, default: errorAnswer } },
    },
    async (request, reply) => {
      const made = { repositories: null, enabled: false, ...request.body }
      request.auditSubject = made.name
      checkConditions(made.conditions)
      await checkRepositories(made.repositories)
      await cleanup.createPolicy(made, request.principal.name)
      return reply.code(201).send(viewOf(made))
    },
  )
  app.patch(
    '/cleanup/policies/:name',
    {
      config: { ...admin, audit: 'cleanup.change' },
      schema: {
        tags,
        summary: 'Change what is given; the conditions as a whole',
        params,
        body: policyChange,
        response: { 200: policy, default: errorAnswer },
      },
    },
    async request => {
      const changed = { ...(await find(request.params.name)), ...request.body }
      checkConditions(changed.conditions)
      await checkRepositories(request.body.repositories)
      await cleanup.changePolicy(changed, request.principal.name)
      return viewOf(changed)
    },
  )
  app.delete(
    '/cleanup/policies/:name',
    {
      config: { ...admin, audit: 'cleanup.delete' },
      schema: { tags, summary: 'Delete a policy', params, response: { 204: nothing, default: errorAnswer } },
    },
    async (request, reply) => {
      if (!(await cleanup.deletePolicy(request.params.name))) await find(request.params.name)
      return reply.code(204).send(null)
    },
  )
  app.get(
    '/cleanup/policies/:name/preview',
    {
      config: admin,
      schema: {
        tags,
        summary: 'What it would delete now, switched on or not',
        params,
        response: { 200: preview, default: errorAnswer },
      },
    },
    async request => {
      const found = await previewCleanup(await find(request.params.name))
      return { ...found, first: [...found.first] }
    },
  )
}

function viewOf({
  name: called,
  repositories: of,
  conditions: all,
  enabled: on,
}: CleanupPolicy): Static<typeof policy> {
  return { name: called, repositories: of === null ? null : [...of], conditions: all, enabled: on }
}
