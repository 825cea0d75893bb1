import { Type } from 'typebox'
import type { Api } from './build-api.ts'
import { errorAnswer } from './schemas.ts'
import { runView } from './task-routes.ts'
import type { ApiDeps } from './types.ts'

const closed = { additionalProperties: false } as const
const id = Type.String({ pattern: '^\\d{8}t\\d{6}z-\\d{1,15}$' })
/** The run says which there are, if it is none of them. */
const wanted = Type.String({ minLength: 1, maxLength: 100 })
const amount = Type.Object({ blobs: Type.Integer(), bytes: Type.Integer() })
const backupView = Type.Object({
  id,
  time: Type.Integer({ description: 'The moment it shows, milliseconds since 1970, by the clock of PostgreSQL' }),
  finishedAt: Type.Integer(),
  counts: Type.Object({
    repositories: Type.Integer(),
    users: Type.Integer(),
    artifacts: Type.Integer(),
    blobs: Type.Integer({ description: 'Distinct ones' }),
    bytes: Type.Integer(),
  }),
  copied: Type.Intersect([amount], { description: 'What the target did not have before' }),
  missing: Type.Integer({ description: 'Blobs that no replica could give' }),
  encrypted: Type.Boolean(),
})
const backupList = Type.Object({
  backups: Type.Array(backupView, { description: 'Newest first' }),
  damaged: Type.Integer({
    description: 'Backups that are left out, since their summary cannot be read or their manifest is missing',
  }),
  damagedBackups: Type.Array(Type.Object({ id, why: Type.String() }), { description: 'Which they are' }),
})

const tags = ['backups']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/backups. The work is done by the tasks `backup` and `verify-backup`. */
export function addBackupRoutes(app: Api, { backups, tasks }: ApiDeps): void {
  app.get(
    '/backups',
    {
      config: admin,
      schema: { tags, summary: 'Complete backups on the target', response: { 200: backupList, default: errorAnswer } },
    },
    async () => {
      const { backups: found, damaged } = await backups.list()
      return { backups: [...found], damaged: damaged.length, damagedBackups: [...damaged] }
    },
  )
  const start = (
    path: string,
    task: string,
    summary: string,
    body: ReturnType<typeof Type.Object>,
    paramsOf: (body: Record<string, unknown>) => Record<string, unknown>,
  ): void => {
    app.post(
      path,
      {
        config: { ...admin, audit: `backup.${path === '/backups' ? 'create' : path.slice('/backups/'.length)}` },
        schema: {
          tags,
          summary,
          description: `Queues a run of the task ${task}. 409 while one is queued or running, or without a backup target.`,
          body,
          response: { 202: runView, default: errorAnswer },
        },
      },
      async (request, reply) => {
        const run = await tasks.run(task, request.principal.name, paramsOf(request.body))
        reply.code(202).header('location', `/api/v1/tasks/${run.job}/runs/${run.id}`)
        return run
      },
    )
  }
  const anew = Type.Optional(
    Type.Boolean({ description: 'The target may be empty although it was used before; one that is not is refused' }),
  )
  start('/backups', 'backup', 'Back up now', Type.Object({ anew }, closed), body => body)
  start(
    '/backups/prune',
    'backup',
    'Remove old backups, and the blobs that none of the others names',
    Type.Object({ keep: Type.Integer({ minimum: 1, maximum: 10_000 }) }, closed),
    ({ keep }) => ({ prune: keep }),
  )
  start(
    '/backups/remove',
    'backup',
    'Remove one backup, damaged or not, and the blobs that none of the others names',
    Type.Object(
      {
        backup: wanted,
        last: Type.Optional(Type.Boolean({ description: 'Even if it is the last good one; the run fails without it' })),
      },
      closed,
    ),
    ({ backup, last }) => ({ remove: backup, ...(last === undefined ? {} : { last }) }),
  )
  start(
    '/backups/verify',
    'verify-backup',
    'Read a backup and compare every digest',
    Type.Object(
      {
        backup: Type.Optional(wanted),
        percent: Type.Optional(Type.Number({ exclusiveMinimum: 0, maximum: 100 })),
        repair: Type.Optional(
          Type.Boolean({ description: 'Remove what is damaged, so that the next backup copies it' }),
        ),
      },
      closed,
    ),
    body => body,
  )
}
