/** `holdfast task list | show | run | stop | enable | disable | schedule | log` */
import { setTimeout as sleep } from 'node:timers/promises'
import type { JobLogLine, JobRun } from '../proxy/metadata/job-types.ts'
import type { JobView } from '../proxy/tasks/job-control.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { runWordCommand, type ClientCommand, type Writer } from './client.ts'
import { textTable } from './text-table.ts'

export const taskUsage = `holdfast task list
holdfast task show <name>
holdfast task run <name> [--params <json>] [--wait]
holdfast task stop <name> [--wait]
holdfast task enable <name>
holdfast task disable <name>          (its schedule rests; 'run' still works)
holdfast task schedule <name> <cron>  (five fields in UTC such as '30 2 * * *'; 'default': its own; 'none')
holdfast task log <name> [--run <number>]
`

export const taskOptions = {
  params: { kind: 'string', doc: 'Parameters of the run, as a JSON object; what there is depends on the task.' },
  wait: { kind: 'bool', default: false, doc: 'Wait for the end of the run; exit code 1 unless it succeeded.' },
  run: {
    kind: 'string',
    pattern: [/^\d{1,15}$/, 'must be the number of a run'],
    doc: 'Which run; the last one where none is given.',
  },
} as const satisfies Options

type Command = ClientCommand<typeof taskOptions>
interface Verb {
  readonly words: number
  readonly run: (command: Command, path: string, more: readonly string[]) => Promise<number>
}

const pollMs = 300

const verbs: Readonly<Record<string, Verb>> = {
  list: {
    words: 0,
    run: async ({ client, print }) => {
      const { tasks } = (await client.call('GET', '/tasks')) as { tasks: readonly JobView[] }
      print(textTable(['TASK', 'STATE', 'SCHEDULE (UTC)', 'NEXT', 'LAST', 'WHAT IT DOES'], tasks.map(row)), tasks)
      return 0
    },
  },
  show: {
    words: 1,
    run: async ({ client, print }, path) => {
      const task = (await client.call('GET', path)) as JobView
      const { runs } = (await client.call('GET', `${path}/runs`)) as { runs: readonly JobRun[] }
      print(showText(task, runs), { ...task, runs })
      return 0
    },
  },
  run: {
    words: 1,
    run: async (command, path) => {
      const { client, config, print } = command
      const run = (await client.call('POST', `${path}/runs`, paramsOf(config.params))) as JobRun
      if (config.wait) return waitFor(command, path, run.id)
      print(`run ${run.id} of ${run.job} is queued`, run)
      return 0
    },
  },
  stop: {
    words: 1,
    run: async (command, path) => {
      const { client, config, print } = command
      const run = (await client.call('POST', `${path}/stop`, {})) as JobRun
      if (config.wait) {
        await waitFor(command, path, run.id)
        return 0
      }
      print(`run ${run.id} of ${run.job} ${run.state === 'stopped' ? 'is stopped' : 'ends after its step'}`, run)
      return 0
    },
  },
  enable: { words: 1, run: (command, path) => change(command, path, { enabled: true }) },
  disable: { words: 1, run: (command, path) => change(command, path, { enabled: false }) },
  schedule: {
    words: 2,
    run: (command, path, [cron]) => change(command, path, { schedule: cron === 'none' ? null : cron }),
  },
  log: {
    words: 1,
    run: async ({ client, config, print }, path) => {
      const { runs } =
        config.run === undefined
          ? ((await client.call('GET', `${path}/runs`)) as { runs: readonly JobRun[] })
          : { runs: [{ id: Number(config.run) }] }
      if (runs[0] === undefined) throw new HoldfastError('NOT_FOUND', 'it has never run')
      const { lines } = (await client.call('GET', `${path}/runs/${runs[0].id}/log`)) as { lines: readonly JobLogLine[] }
      print(lines.map(({ at, line }) => `${shortTime(at)}  ${line}`).join('\n'), lines)
      return 0
    },
  },
}

/** Resolves with the exit code. */
export function task(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    taskOptions,
    source,
    (command, words) => {
      const [name = '', ...rest] = words
      // A cron expression that no shell quoted is five words.
      const more = name === 'schedule' && rest.length === 6 ? [rest[0]!, rest.slice(1).join(' ')] : rest
      const verb = Object.hasOwn(verbs, name) ? verbs[name] : undefined
      if (verb === undefined || more.length !== verb.words) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'task ${words.join(' ')}' mean? Try:\n${taskUsage}`)
      }
      return verb.run(command, `/tasks/${encodeURIComponent(more[0] ?? '')}`, more.slice(1))
    },
    write,
  )
}

async function change({ client, print }: Command, path: string, body: unknown): Promise<number> {
  const changed = (await client.call('PATCH', path, body)) as JobView
  const { name, enabled, schedule } = changed
  print(`${name}: ${enabled ? 'enabled' : 'disabled'}, schedule ${schedule ?? 'none'}`, changed)
  return 0
}

async function waitFor({ client, print }: Command, path: string, id: number): Promise<number> {
  const run = await awaitRun(client, path, id)
  print(runText(run), run)
  return run.state === 'succeeded' ? 0 : 1
}

/**
 * Resolves with the run when it has ended, however it did. A proxy that is restarted, or PostgreSQL that is away, ends no task, and so not the
 * waiting either, unless nobody has answered for `patienceMs`.
 */
export async function awaitRun(
  client: Pick<Command['client'], 'call'>,
  path: string,
  id: number,
  patienceMs = 60_000,
): Promise<JobRun> {
  for (let answeredAt = performance.now(); ;) {
    try {
      const run = (await client.call('GET', `${path}/runs/${id}`)) as JobRun
      if (run.state !== 'queued' && run.state !== 'running') return run
      answeredAt = performance.now()
    } catch (error) {
      if (!mayPass(error) || performance.now() - answeredAt > patienceMs) throw error
    }
    await sleep(pollMs)
  }
}

/** Nobody answered, or what did (a proxy, a balancer) says that it cannot right now. */
function mayPass(error: unknown): boolean {
  if (!isHoldfastError(error)) return false
  const { status } = error.data
  return error.code === 'NODE_UNREACHABLE' || status === 429 || status === 502 || status === 503 || status === 504
}

/** `run 7 of tidy: succeeded, 120 blobs` */
export const runText = (run: JobRun): string => `run ${run.id} of ${run.job}: ${endText(run)}`

function paramsOf(text: string | undefined): { params?: unknown } {
  if (text === undefined) return {}
  try {
    return { params: JSON.parse(text) as unknown }
  } catch (error) {
    throw new HoldfastError('CONFIG_INVALID', '--params is no JSON', {}, { cause: error })
  }
}

function row(view: JobView): string[] {
  const { name, title, state, schedule, enabled, nextRunAt, lastState, lastFinishedAt, run } = view
  const last = lastState === null || lastFinishedAt === null ? '-' : `${lastState} ${shortTime(lastFinishedAt)}`
  return [
    name,
    [state, run === null ? '' : progressText(run)].join(' ').trim(),
    (schedule ?? '-') + (enabled ? '' : ' (disabled)'),
    nextRunAt === null ? '-' : shortTime(nextRunAt),
    last,
    title,
  ]
}

function showText(view: JobView, runs: readonly JobRun[]): string {
  const history = runs.map(run => [
    String(run.id),
    run.state,
    run.origin === 'user' ? (run.user ?? '-') : run.origin,
    shortTime(run.startedAt ?? run.queuedAt),
    run.startedAt === null ? '-' : humanTime((run.finishedAt ?? Date.now()) - run.startedAt),
    String(run.takeovers),
    run.error?.message ?? progressText(run),
  ])
  return [
    `${view.name}: ${view.title}`,
    `schedule ${view.schedule ?? 'none'}${view.enabled ? '' : ' (disabled)'}, next ${view.nextRunAt === null ? '-' : shortTime(view.nextRunAt)}`,
    `last success ${view.lastSuccessAt === null ? 'never' : shortTime(view.lastSuccessAt)}`,
    '',
    textTable(['RUN', 'STATE', 'BY', 'BEGUN', 'TOOK', 'TAKEOVERS', 'HOW FAR'], history),
  ].join('\n')
}

function endText(run: JobRun): string {
  if (run.error !== null) return `failed: ${run.error.message} [${run.error.code}]`
  const far = progressText(run)
  return far === '' ? run.state : `${run.state}, ${far}`
}

/** `120 of 400 blobs (30 %), 12/s, 23 s left, partition 7` */
export function progressText({ progress, estimatedEndAt, state }: JobRun): string {
  if (progress === null) return ''
  const { done, total, unit, note, rate } = progress
  const parts = [
    total === undefined
      ? `${done} ${unit}`
      : `${done} of ${total} ${unit}${total > 0 ? ` (${Math.floor((100 * done) / total)} %)` : ''}`,
  ]
  if (state === 'running' && rate !== undefined) parts.push(`${rate}/s`)
  if (state === 'running' && estimatedEndAt !== null) parts.push(`${humanTime(estimatedEndAt - Date.now())} left`)
  if (note !== undefined) parts.push(note)
  return parts.join(', ')
}

/** `2026-03-01 02:30:00` UTC */
export function shortTime(ms: number): string {
  return new Date(ms).toISOString().slice(0, 19).replace('T', ' ')
}

/** `850 ms`, `12 s`, `3 min`, `5 h`, `2 d` */
export function humanTime(ms: number): string {
  const steps = [
    [48 * 3_600_000, 24 * 3_600_000, 'd'],
    [120 * 60_000, 3_600_000, 'h'],
    [120_000, 60_000, 'min'],
    [1_000, 1_000, 's'],
  ] as const
  for (const [from, size, unit] of steps) if (ms >= from) return `${Math.round(ms / size)} ${unit}`
  return `${Math.max(0, Math.round(ms))} ms`
}
