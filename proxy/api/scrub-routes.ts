import { Type } from 'typebox'
import type { ScrubTarget } from '../tasks/scrub-control.ts'
import type { Api } from './build-api.ts'
import { errorAnswer } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const closed = { additionalProperties: false } as const
const time = Type.Integer({ description: 'Milliseconds since 1970, by the clock of the node' })
const pass = {
  startedAt: time,
  blobs: Type.Integer(),
  bytes: Type.Integer(),
  bad: Type.Integer({
    description: 'Copies that were corrupt, missing or unreadable, and references that were damaged',
  }),
  leftovers: Type.Integer({ description: 'Files without a record, moved to the trash' }),
}
const report = Type.Object({
  shards: Type.Array(
    Type.Object({
      node: Type.String(),
      shard: Type.String(),
      state: Type.String({ description: 'running, paused, waiting (for its next turn), failed, unknown' }),
      reason: Type.Optional(Type.String()),
      pass: Type.Optional(
        Type.Object({
          ...pass,
          done: Type.Number({ description: 'Part of the pass under way that is done, 0 to 1' }),
          bytesPerSec: Type.Integer({ description: 'What it may read, when nothing else is going on' }),
        }),
      ),
      last: Type.Optional(Type.Object({ ...pass, finishedAt: time })),
      losses: Type.Optional(
        Type.Integer({ description: 'Copies that were found corrupt or missing, and are not back' }),
      ),
    }),
  ),
})
const target = {
  node: Type.Optional(Type.String({ description: 'Of this node only' })),
  shard: Type.Optional(Type.String({ description: 'This one only' })),
}
const body = Type.Object({ action: Type.Union([Type.Literal('start'), Type.Literal('pause')]), ...target }, closed)

const tags = ['copies']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/scrub: how far each shard is with reading everything it holds. */
export function addScrubRoutes(app: Api, { scrubs }: ApiDeps): void {
  const response = { 200: report, default: errorAnswer }
  app.get(
    '/scrub',
    { config: admin, schema: { tags, summary: 'The scrub of each shard', querystring: Type.Object(target, closed), response } }, // prettier-ignore
    async request => ({ shards: [...(await scrubs.status(targetOf(request.query)))] }),
  )
  app.post(
    '/scrub',
    {
      config: { ...admin, audit: 'scrub' },
      schema: {
        tags,
        summary: 'Start a pass now, or go on with the one that was paused; or pause',
        body,
        response,
      },
    },
    async request => ({ shards: [...(await scrubs.command(request.body.action, targetOf(request.body)))] }),
  )
}

function targetOf({ node, shard }: { node?: string; shard?: string }): ScrubTarget {
  return { ...(node === undefined ? {} : { node }), ...(shard === undefined ? {} : { shard }) }
}
