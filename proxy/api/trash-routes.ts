import { Type } from 'typebox'
import { HoldfastError } from '../../shared/errors.ts'
import type { TrashCursor, TrashEntry } from '../metadata/trash-types.ts'
import { checkArtifactPath } from '../http/artifact-path.ts'
import type { Api } from './build-api.ts'
import { changedCount, errorAnswer, place, repositoryName } from './schemas.ts'
import type { ApiDeps, ArtifactPlace } from './types.ts'

const closed = { additionalProperties: false } as const
const pageSize = 500
const time = Type.Integer({ description: 'Milliseconds since 1970, by the clock of PostgreSQL' })
const entry = Type.Object({
  path: Type.String(),
  bytes: Type.Integer(),
  digest: Type.String(),
  version: Type.Integer(),
  updatedAt: time,
  deletedBy: Type.String(),
  deletedAt: time,
  expiresAt: Type.Integer({ description: 'When it may go for good, milliseconds since 1970' }),
})
const page = Type.Object({
  entries: Type.Array(entry, { description: 'By path, the newest deletion of each first' }),
  next: Type.Optional(Type.String({ description: 'Where the next page begins: its `after`; absent on the last page' })),
})
const restored = Type.Object({
  restored: Type.Integer({ description: 'How many artifacts live again' }),
  refused: Type.Integer({ description: 'How many do not' }),
  refusals: Type.Array(
    Type.Object({
      path: Type.String(),
      reason: Type.String({
        description: 'exists: something lives there; redeploy: and may not be replaced; gone: the bytes are',
      }),
    }),
    { description: 'The first hundred of those' },
  ),
})

const tags = ['trash']
type Target = { readonly repository: string; readonly path: string }

/** /api/v1/trash: what was deleted, back again or gone at once. */
export function addTrashRoutes(app: Api, { trash, repositories }: ApiDeps): void {
  const find = async ({ repository: name, path }: Target): Promise<ArtifactPlace> => {
    const repository = (await repositories.all()).get(name)
    if (repository === undefined)
      throw new HoldfastError('REPOSITORY_NOT_FOUND', `no repository '${name}'`, { repository: name })
    return { repository, path: checkArtifactPath(path) }
  }

  app.get(
    '/trash/:repository',
    {
      config: {
        access: { demands: ({ params }) => [{ action: 'delete', ...(params as Pick<Target, 'repository'>) }] },
      },
      schema: {
        tags,
        summary: 'What was deleted and can be restored',
        params: Type.Object({ repository: repositoryName }),
        querystring: Type.Object(
          {
            path: Type.Optional(Type.String({ maxLength: 2_000, description: 'Of an artifact, or of a folder with its slash' })), // prettier-ignore
            after: Type.Optional(Type.String({ maxLength: 4_000 })),
          },
          closed,
        ),
        response: { 200: page, default: errorAnswer },
      },
    },
    async request => {
      const { path = '', after } = request.query
      const found = await find({ repository: request.params.repository, path })
      const entries = await trash.list(found, after === undefined ? undefined : cursorOf(after), pageSize)
      const last = entries.length === pageSize ? entries.at(-1) : undefined
      return {
        entries: entries.map(viewOf),
        ...(last === undefined ? {} : { next: `${last.id}:${last.artifact.path}` }),
      }
    },
  )
  app.post(
    '/trash/restore',
    {
      config: {
        access: {
          demands: ({ body }) => [{ action: 'write', repository: (body as { from: Target }).from.repository }],
        },
        audit: 'trash.restore',
      },
      schema: {
        tags,
        summary: 'Restore the newest deletion of an artifact, or of each artifact below a folder',
        body: Type.Object(
          {
            from: place,
            overwrite: Type.Optional(Type.Boolean({ description: 'Also where something lives that may be replaced' })),
          },
          closed,
        ),
        response: { 200: restored, default: errorAnswer },
      },
    },
    async request => {
      const { from, overwrite = false } = request.body
      request.auditSubject = `${from.repository}/${from.path}`
      const outcome = await trash.restore(await find(from), request.principal.name, overwrite)
      if (outcome.restored + outcome.refused === 0) throw nothingOf(from)
      return { ...outcome, refusals: [...outcome.refusals] }
    },
  )
  app.post(
    '/trash/purge',
    {
      // Who may delete may not for that reason take away the way back.
      config: { access: { demands: [{ action: 'admin' }] }, audit: 'trash.purge' },
      schema: {
        tags,
        summary: 'Forget at once what the trash has of an artifact or a folder',
        description: 'Garbage collection deletes the bytes after its hold, if nothing else names them.',
        body: Type.Object({ from: place }, closed),
        response: { 200: changedCount, default: errorAnswer },
      },
    },
    async request => {
      const { from } = request.body
      request.auditSubject = `${from.repository}/${from.path}`
      const artifacts = await trash.purge(await find(from))
      if (artifacts === 0) throw nothingOf(from)
      return { artifacts }
    },
  )
}

function nothingOf({ repository, path }: Target): HoldfastError {
  return new HoldfastError('ARTIFACT_NOT_FOUND', `the trash has nothing of ${repository}/${path}`)
}

function cursorOf(text: string): TrashCursor {
  const match = /^(\d{1,15}):(.*)$/su.exec(text)
  if (match === null) throw new HoldfastError('BAD_REQUEST', 'after: as the page before said')
  return { id: Number(match[1]), path: match[2] ?? '' }
}

function viewOf({ artifact, deletedBy, deletedAt, expiresAt }: TrashEntry) {
  const { path, version, updatedAt, blob } = artifact
  return { path, bytes: blob.bytes, digest: blob.digest, version, updatedAt, deletedBy, deletedAt, expiresAt }
}
