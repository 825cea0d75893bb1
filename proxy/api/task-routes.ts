import { Type } from 'typebox'
import { cronCharsMax } from '../tasks/cron.ts'
import type { Api } from './build-api.ts'
import { errorAnswer, nullable } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const closed = { additionalProperties: false } as const
const time = Type.Integer({ description: 'Milliseconds since 1970, by the clock of PostgreSQL' })
const name = Type.String({ pattern: '^[a-z][a-z0-9-]{0,62}$' })
const numberPattern = '^[0-9]{1,15}$'
const number = Type.String({ pattern: numberPattern })

export const runView = Type.Object({
  id: Type.Integer(),
  job: Type.String(),
  origin: Type.String({ description: 'schedule or user' }),
  user: nullable(Type.String()),
  params: Type.Record(Type.String(), Type.Unknown()),
  state: Type.String({ description: 'queued, running, succeeded, failed, stopped' }),
  stoppedBy: nullable(Type.String({ description: 'Who asked for its end' })),
  token: nullable(Type.Integer({ description: 'Fencing token of the primary that runs it, or ran it last' })),
  takeovers: Type.Integer({ description: 'How often another primary resumed it' }),
  progress: nullable(
    Type.Object({
      done: Type.Number(),
      total: Type.Optional(Type.Number()),
      unit: Type.String(),
      note: Type.Optional(Type.String()),
      waits: Type.Optional(Type.Boolean({ description: 'All that is left waits for something else than time' })),
      rate: Type.Optional(Type.Number({ description: 'Units a second, lately' })),
    }),
  ),
  estimatedEndAt: nullable(time),
  error: nullable(Type.Object({ code: Type.String(), message: Type.String() })),
  queuedAt: time,
  startedAt: nullable(time),
  finishedAt: nullable(time),
})
const taskView = Type.Object({
  name,
  title: Type.String(),
  schedule: nullable(Type.String({ description: 'The schedule in force: five cron fields, UTC' })),
  defaultSchedule: nullable(Type.String()),
  enabled: Type.Boolean({ description: 'Does the schedule start runs?' }),
  state: Type.String({ description: 'idle, queued, running' }),
  run: nullable(runView),
  nextRunAt: nullable(time),
  lastState: nullable(Type.String({ description: 'succeeded, failed, stopped' })),
  lastFinishedAt: nullable(time),
  lastSuccessAt: nullable(time),
  lastDurationMs: nullable(Type.Integer()),
  lastError: nullable(Type.String()),
})
const taskChange = Type.Object(
  {
    enabled: Type.Optional(Type.Boolean()),
    schedule: Type.Optional(
      nullable(
        Type.String({
          maxLength: cronCharsMax,
          description: "Five cron fields in UTC; 'default': the task's own; null: none",
        }),
      ),
    ),
  },
  { ...closed, minProperties: 1 },
)
const runRequest = Type.Object(
  { params: Type.Optional(Type.Record(Type.String(), Type.Unknown(), { description: 'Depends on the task' })) },
  closed,
)
const logQuery = Type.Object(
  { after: Type.Optional(Type.String({ pattern: numberPattern, description: 'Number of the last line known' })) },
  closed,
)
const logPage = Type.Object({
  lines: Type.Array(Type.Object({ seq: Type.Integer(), at: time, line: Type.String() })),
})
const ofTask = Type.Object({ name })
const ofRun = Type.Object({ name, run: number })

const tags = ['tasks']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/tasks: any proxy takes the requests, the primary acts on them. */
export function addTaskRoutes(app: Api, deps: ApiDeps): void {
  addTasks(app, deps)
  addRuns(app, deps)
}

function addTasks(app: Api, { tasks }: ApiDeps): void {
  app.get(
    '/tasks',
    {
      config: admin,
      schema: {
        tags,
        summary: 'All tasks of the cluster, and what they do',
        response: { 200: Type.Object({ tasks: Type.Array(taskView) }), default: errorAnswer },
      },
    },
    async () => ({ tasks: [...(await tasks.list())] }),
  )
  app.get(
    '/tasks/:name',
    {
      config: admin,
      schema: { tags, summary: 'One task', params: ofTask, response: { 200: taskView, default: errorAnswer } },
    },
    async request => tasks.get(request.params.name),
  )
  app.patch(
    '/tasks/:name',
    {
      config: { ...admin, audit: 'task.change' },
      schema: {
        tags,
        summary: 'Enable, disable, set the schedule',
        description: 'Times that have passed are not caught up on. A disabled task still runs when asked to.',
        params: ofTask,
        body: taskChange,
        response: { 200: taskView, default: errorAnswer },
      },
    },
    async request => tasks.change(request.params.name, request.body),
  )
  app.post(
    '/tasks/:name/stop',
    {
      config: { ...admin, audit: 'task.stop' },
      schema: {
        tags,
        summary: 'Ask the run to end after its step',
        params: ofTask,
        body: Type.Object({}, closed),
        response: { 202: runView, default: errorAnswer },
      },
    },
    async (request, reply) => {
      const run = await tasks.stop(request.params.name, request.principal.name)
      reply.code(202)
      return run
    },
  )
}

function addRuns(app: Api, { tasks }: ApiDeps): void {
  app.post(
    '/tasks/:name/runs',
    {
      config: { ...admin, audit: 'task.run' },
      schema: {
        tags,
        summary: 'Run now',
        description:
          'The primary begins within about a second. 409 while a run is queued or running, 404 or 409 also for one that could only fail.',
        params: ofTask,
        body: runRequest,
        response: { 202: runView, default: errorAnswer },
      },
    },
    async (request, reply) => {
      const run = await tasks.run(request.params.name, request.principal.name, request.body.params)
      reply.code(202).header('location', `/api/v1/tasks/${run.job}/runs/${run.id}`)
      return run
    },
  )
  app.get(
    '/tasks/:name/runs',
    {
      config: admin,
      schema: {
        tags,
        summary: 'The last runs, newest first',
        params: ofTask,
        response: { 200: Type.Object({ runs: Type.Array(runView) }), default: errorAnswer },
      },
    },
    async request => ({ runs: [...(await tasks.runs(request.params.name))] }),
  )
  app.get(
    '/tasks/:name/runs/:run',
    {
      config: admin,
      schema: { tags, summary: 'One run', params: ofRun, response: { 200: runView, default: errorAnswer } },
    },
    async request => tasks.findRun(request.params.name, Number(request.params.run)),
  )
  app.get(
    '/tasks/:name/runs/:run/log',
    {
      config: admin,
      schema: {
        tags,
        summary: 'What a run has said, oldest line first; up to 500 lines',
        params: ofRun,
        querystring: logQuery,
        response: { 200: logPage, default: errorAnswer },
      },
    },
    async request => {
      const { name: task, run } = request.params
      return { lines: [...(await tasks.log(task, Number(run), Number(request.query.after ?? 0)))] }
    },
  )
}
