import { Type } from 'typebox'
import type { Api } from './build-api.ts'
import { errorAnswer } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const limitDefault = 100
const query = Type.Object(
  {
    limit: Type.Optional(
      Type.String({ pattern: '^([1-9][0-9]{0,2}|1000)$', description: '1 to 1000; 100 unless told' }),
    ),
    before: Type.Optional(Type.String({ pattern: '^[0-9]{1,15}$', description: 'Only entries with a smaller id' })),
  },
  { additionalProperties: false },
)
const page = Type.Object({
  entries: Type.Array(
    Type.Object({
      id: Type.Integer({ description: 'Of the oldest one: `before` of the next page' }),
      at: Type.Integer({ description: 'Milliseconds since 1970, by the clock of PostgreSQL' }),
      user: Type.String(),
      action: Type.String({ description: 'artifact.delete, repository.create, task.run …' }),
      subject: Type.String({ description: 'What it was done to' }),
      outcome: Type.String({ description: 'done, or why it was refused' }),
      address: Type.String({ description: 'Where it was asked from' }),
    }),
    { description: 'Newest first' },
  ),
})

/** GET /api/v1/audit: who changed what through the API, and who was refused. */
export function addAuditRoutes(app: Api, { metadata }: ApiDeps): void {
  app.get(
    '/audit',
    {
      config: { access: { demands: [{ action: 'admin' }] } },
      schema: {
        tags: ['cluster'],
        summary: 'The audit log',
        querystring: query,
        response: { 200: page, default: errorAnswer },
      },
    },
    async ({ query: { limit = limitDefault, before = Number.MAX_SAFE_INTEGER } }) => {
      return { entries: [...(await metadata.listAudit(Number(before), Number(limit)))] }
    },
  )
}
