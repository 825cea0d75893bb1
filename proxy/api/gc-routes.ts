import { Type } from 'typebox'
import { HoldfastError } from '../../shared/errors.ts'
import { parseDigest } from '../../shared/ids.ts'
import type { Api } from './build-api.ts'
import { errorAnswer, nullable } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const closed = { additionalProperties: false } as const
const time = Type.Integer({ description: 'Milliseconds since 1970, by the clock of PostgreSQL' })
const disarmed = Type.Object({ reason: Type.String(), by: Type.String(), at: time })
const counted = Type.Object({
  at: time,
  blobs: Type.Integer({
    description:
      'Of these so many are still there at least: all that was deleted since is taken off, also what was written since',
  }),
  bytes: Type.Integer(),
})
const status = Type.Object({
  armed: Type.Boolean(),
  disarmed: nullable(disarmed),
  minAgeMs: Type.Integer({ description: 'A blob younger than this is left alone' }),
  holdMs: Type.Integer({ description: 'Between condemned and deleted' }),
  counted: nullable(counted),
})
const story = Type.Object({
  digest: Type.String(),
  bytes: Type.Integer(),
  verdict: Type.String({
    description: 'referenced, trash, pinned, young, unused, condemned, due (to be deleted by the next run), purging',
  }),
  createdAt: time,
  since: Type.Integer({
    description:
      'Since when it is live, condemned or being purged (not since when nothing names it), milliseconds since 1970',
  }),
  references: Type.Array(Type.String(), { description: 'Some artifacts that name it' }),
  trash: Type.Array(Type.String(), { description: 'Some deleted artifacts in the trash that name it' }),
  pins: Type.Integer({ description: 'Uploads under way that will name it' }),
})

const tags = ['gc']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/gc: what garbage collection thinks of a blob, and its emergency stop. It runs as the task `collect-garbage`. */
export function addGcRoutes(app: Api, { collection, collectionAges: ages }: ApiDeps): void {
  const statusNow = async () => {
    const [found = null, all] = await Promise.all([collection.disarmed(), collection.counted()])
    const last = all === undefined ? null : { at: all.at, blobs: all.blobs, bytes: all.bytes }
    return { armed: found === null, disarmed: found, ...ages, counted: last }
  }
  app.get(
    '/gc',
    { config: admin, schema: { tags, summary: 'Is garbage collection armed?', response: { 200: status, default: errorAnswer } } }, // prettier-ignore
    statusNow,
  )
  app.post(
    '/gc/disarm',
    {
      config: { ...admin, audit: 'gc.disarm' },
      schema: {
        tags,
        summary: 'Delete nothing until it is armed again',
        description: 'A run under way ends before its next decision.',
        body: Type.Object({ reason: Type.String({ minLength: 1, maxLength: 500 }) }, closed),
        response: { 200: status, default: errorAnswer },
      },
    },
    async request => {
      await collection.disarm(request.body.reason, request.principal.name)
      return statusNow()
    },
  )
  app.post(
    '/gc/arm',
    {
      config: { ...admin, audit: 'gc.arm' },
      schema: { tags, summary: 'Collect again', body: Type.Object({}, closed), response: { 200: status, default: errorAnswer } }, // prettier-ignore
    },
    async () => {
      await collection.arm()
      return statusNow()
    },
  )
  app.get(
    '/gc/blobs/:digest',
    {
      config: admin,
      schema: {
        tags,
        summary: 'Why a blob is kept, or when it goes',
        params: Type.Object({ digest: Type.String({ pattern: '^[0-9a-f]{64}$' }) }),
        response: { 200: story, default: errorAnswer },
      },
    },
    async request => {
      const digest = parseDigest(request.params.digest)
      const found = digest === undefined ? undefined : await collection.explain(digest, ages)
      if (found === undefined) throw new HoldfastError('NOT_FOUND', 'no blob has this digest', { digest })
      return { ...found, references: [...found.references], trash: [...found.trash] }
    },
  )
}
