import { Type } from 'typebox'
import type { Api } from './build-api.ts'
import { errorAnswer, nullable } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const progress = Type.Object({
  blobs: Type.Integer({ description: 'With fewer copies than wanted' }),
  references: Type.Integer({ description: 'With fewer copies than wanted' }),
  bytes: Type.Integer({ description: 'Of all missing copies, estimated' }),
  due: Type.Integer({ description: 'Tried as soon as there is time' }),
  failing: Type.Integer({ description: 'Tried, and to be tried again later' }),
  waiting: Type.Integer({
    description: 'Lack a copy on a shard that is away or failed; counted neither as due nor as failing',
  }),
  oldestAgeMs: nullable(Type.Integer()),
  shards: Type.Array(Type.Object({ shard: Type.String(), copies: Type.Integer() }), {
    description: 'Shards that lack most; fifty at most',
  }),
  away: Type.Array(Type.Object({ shard: Type.String(), state: Type.String(), partitions: Type.Integer() }), {
    description:
      'Owners that are down or failed: of what they held before nothing is counted, until they are back, or out',
  }),
  entriesPerSec: Type.Number({ description: 'Repaired by the primary, over the last minute' }),
  bytesPerSec: Type.Number({ description: 'The same, bytes of blobs' }),
  partitionsToCompare: Type.Integer({ description: 'May bring more to repair' }),
  lostBlobs: Type.Integer({ description: 'No owner has a good copy of them' }),
  lost: Type.Array(Type.Object({ digest: Type.String(), names: Type.Array(Type.String()) }), {
    description: 'The first ten of these, and what names them',
  }),
  remainingMs: nullable(
    Type.Integer({ description: 'At these rates; null: nothing was done, or what is left waits for shards' }),
  ),
})
const hurried = Type.Object({ hurried: Type.Integer({ description: 'Repairs that waited for another attempt' }) })

const tags = ['copies']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/repairs: what the cluster lacks, and how soon it is whole. */
export function addRepairRoutes(app: Api, { repairs }: ApiDeps): void {
  app.get(
    '/repairs',
    { config: admin, schema: { tags, summary: 'How far repairs are', response: { 200: progress, default: errorAnswer } } }, // prettier-ignore
    async () => {
      const found = await repairs.progress()
      const lost = found.lost.map(({ digest, names }) => ({ digest, names: [...names] }))
      return { ...found, shards: [...found.shards], away: [...found.away], lost }
    },
  )
  app.post(
    '/repairs/run',
    {
      config: { ...admin, audit: 'repairs.run' },
      schema: {
        tags,
        summary: 'Try again now what waits for another attempt, and compare all shards once more',
        response: { 202: hurried, default: errorAnswer },
      },
    },
    async (_, reply) => reply.code(202).send({ hurried: await repairs.runNow() }),
  )
}
