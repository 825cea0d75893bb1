import { Type } from 'typebox'
import type { Digest } from '../../shared/ids.ts'
import { userKey } from '../access/authenticator.ts'
import type { Api } from './build-api.ts'
import { errorAnswer, nothing } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const closed = { additionalProperties: false } as const
const moment = Type.Integer({ minimum: 0, maximum: 8.64e15, description: 'Milliseconds since 1970' })
const tags = ['backups']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/restore: what `holdfast restore` needs beside the ordinary writes of artifacts. */
export function addRestoreRoutes(app: Api, { restores, announce }: ApiDeps): void {
  app.post(
    '/restore',
    {
      config: { ...admin, audit: 'restore.begin' },
      schema: {
        tags,
        summary: 'Begin, or resume, restoring a backup into this empty cluster',
        body: Type.Object({ backup: Type.String({ pattern: '^\\d{8}t\\d{6}z-\\d{1,15}$' }) }, closed),
        response: { 200: Type.Object({ state: Type.String({ description: 'begun, resumed' }) }), default: errorAnswer },
      },
    },
    async request => ({ state: await restores.begin(request.body.backup) }),
  )
  app.post(
    '/restore/users',
    {
      config: { ...admin, audit: 'restore.users' },
      schema: {
        tags,
        summary: 'Add users with the hashes of their passwords; those that are there stay as they are',
        body: Type.Object(
          {
            users: Type.Array(
              Type.Object(
                {
                  name: Type.String({ minLength: 1, maxLength: 255 }),
                  passwordHash: Type.String({ pattern: '^\\$(argon2id|scrypt)\\$', maxLength: 500 }),
                  admin: Type.Boolean(),
                },
                closed,
              ),
              { maxItems: 50 },
            ),
          },
          closed,
        ),
        response: { 200: Type.Object({ added: Type.Array(Type.String()) }), default: errorAnswer },
      },
    },
    async request => {
      const added = await restores.addUsers(request.body.users)
      await announce(added.map(userKey))
      return { added: [...added] }
    },
  )
  app.post(
    '/restore/history',
    {
      config: { ...admin, audit: 'restore.history' },
      schema: {
        tags,
        summary: 'Say when and by whom restored artifacts were written; those with other bytes stay as they are',
        body: Type.Object(
          {
            artifacts: Type.Array(
              Type.Object(
                {
                  repository: Type.String({ minLength: 1, maxLength: 255 }),
                  path: Type.String({ minLength: 1, maxLength: 4_096 }),
                  digest: Type.String({ pattern: '^[0-9a-f]{64}$' }),
                  createdBy: Type.String({ maxLength: 255 }),
                  createdAt: moment,
                  updatedAt: moment,
                },
                closed,
              ),
              { maxItems: 100 },
            ),
          },
          closed,
        ),
        response: { 200: Type.Object({ changed: Type.Integer() }), default: errorAnswer },
      },
    },
    async request => {
      const artifacts = request.body.artifacts.map(one => ({ ...one, digest: one.digest as Digest }))
      const changed = await restores.setHistory(artifacts)
      await announce(artifacts.map(({ repository, path }) => `${repository}/${path}`))
      return { changed }
    },
  )
  app.post(
    '/restore/end',
    {
      config: { ...admin, audit: 'restore.end' },
      schema: { tags, summary: 'The restore is complete', body: Type.Object({}, closed), response: { 204: nothing, default: errorAnswer } }, // prettier-ignore
    },
    async (_, reply) => {
      await restores.end()
      return reply.code(204).send(null)
    },
  )
}
