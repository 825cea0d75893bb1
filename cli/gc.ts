/** `holdfast gc status | plan | run | disarm | arm | why`: the task `collect-garbage`, in words of its own. */
import type { BlobStory, Disarmed } from '../proxy/metadata/collection-types.ts'
import type { JobLogLine, JobRun } from '../proxy/metadata/job-types.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type ClientCommand, type Writer } from './client.ts'
import { awaitRun, runText } from './task.ts'
import { humanBytes } from './text-table.ts'

export const gcUsage = `holdfast gc status
holdfast gc plan [--full]    (of the blobs that lost a name: what would be deleted, what is kept and why; changes nothing)
holdfast gc run [--full] [--force]  (runs by itself each night; --force: also more than 5 % of everything, see docs/operations.md)
holdfast gc disarm <reason>  (deletes nothing until 'gc arm')
holdfast gc arm
holdfast gc why <digest>     (why a blob is kept, or when it goes)

--full: looks at all blobs, as the nightly run does once a week
`

export const gcOptions = {
  full: { kind: 'bool', default: false, doc: 'Look at all blobs, not only at those that lost a name since.' },
  force: { kind: 'bool', default: false, doc: 'Go on although it is more than 5 % of all blobs or bytes.' },
} as const satisfies Options

type Command = ClientCommand<typeof gcOptions>
interface Status {
  readonly armed: boolean
  readonly disarmed: Disarmed | null
  readonly minAgeMs: number
  readonly holdMs: number
  /** Absent from proxies of the release before. */
  readonly counted?: { readonly at: number; readonly blobs: number; readonly bytes: number } | null
}

const task = '/tasks/collect-garbage'

const verbs: Readonly<Record<string, (command: Command, word: string | undefined) => Promise<number>>> = {
  status: async ({ client, print }) => {
    const status = (await client.call('GET', '/gc')) as Status
    print(statusText(status), status)
    return status.armed ? 0 : 1
  },
  plan: async command => {
    const { run, lines } = await runTask(command, { plan: true, ...fullOf(command) })
    command.print([...lines, ''].join('\n') + runText(run), { run, lines })
    return run.state === 'succeeded' ? 0 : 1
  },
  run: async command => {
    const { run, lines } = await runTask(command, { force: command.config.force, ...fullOf(command) })
    command.print([...lines, ''].join('\n') + runText(run), { run, lines })
    return run.state === 'succeeded' ? 0 : 1
  },
  disarm: async ({ client, print }, reason) => {
    if (reason === undefined) throw new HoldfastError('CONFIG_INVALID', 'say why, for whoever finds it disarmed')
    const status = (await client.call('POST', '/gc/disarm', { reason })) as Status
    print(statusText(status), status)
    return 0
  },
  arm: async ({ client, print }) => {
    const status = (await client.call('POST', '/gc/arm', {})) as Status
    print(statusText(status), status)
    return 0
  },
  why: async ({ client, print }, digest) => {
    if (digest === undefined || !/^[0-9a-f]{64}$/.test(digest)) {
      throw new HoldfastError('CONFIG_INVALID', 'a digest is 64 hexadecimal digits')
    }
    const story = (await client.call('GET', `/gc/blobs/${digest}`)) as BlobStory
    print(storyText(story), story)
    return 0
  },
}

/** Resolves with the exit code. */
export function gc(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    gcOptions,
    source,
    (command, words) => {
      const [verb = '', word, ...more] = words
      const run = Object.hasOwn(verbs, verb) ? verbs[verb] : undefined
      const takesWord = verb === 'disarm' || verb === 'why'
      if (run === undefined || more.length > 0 || (word !== undefined && !takesWord)) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'gc ${words.join(' ')}' mean? Try:\n${gcUsage}`)
      }
      return run(command, word)
    },
    write,
  )
}

/** Not sent unless it is meant: a primary of the release before knows no such parameter. */
const fullOf = ({ config }: Command): { full?: true } => (config.full ? { full: true } : {})

async function runTask({ client }: Command, params: object): Promise<{ run: JobRun; lines: readonly string[] }> {
  const { id } = (await client.call('POST', `${task}/runs`, { params })) as JobRun
  const run = await awaitRun(client, task, id)
  const { lines } = (await client.call('GET', `${task}/runs/${id}/log`)) as { lines: readonly JobLogLine[] }
  return { run, lines: lines.map(({ line }) => line) }
}

/** `24 h`, `1.5 h`, `30 min`, `0 s`: of a setting, so closer than `humanTime`. */
function span(ms: number): string {
  const [size, unit] = ms >= 3_600_000 ? [3_600_000, 'h'] : ms >= 60_000 ? [60_000, 'min'] : [1_000, 's']
  return `${Number((ms / size).toFixed(unit === 's' ? 3 : 1))} ${unit}`
}

function statusText({ disarmed, minAgeMs, holdMs, counted }: Status): string {
  const state =
    disarmed === null
      ? `armed: blobs unused for ${span(minAgeMs)} are condemned, and deleted ${span(holdMs)} later`
      : `disarmed since ${new Date(disarmed.at).toISOString()} by ${disarmed.by}: ${disarmed.reason}`
  const last =
    counted == null
      ? 'all blobs will be looked at by the next run'
      : `all blobs were looked at ${new Date(counted.at).toISOString()}: at least ${counted.blobs} of them are still there, ${humanBytes(counted.bytes)}`
  return `${state}\n${last}`
}

const isLeaving: ReadonlySet<string> = new Set(['condemned', 'due', 'purging'])

function storyText({ digest, bytes, verdict, createdAt, since, references, trash, pins }: BlobStory): string {
  return [
    `${digest}: ${verdict}${isLeaving.has(verdict) ? ` since ${new Date(since).toISOString()}` : ''}`,
    `${humanBytes(bytes)}, written ${new Date(createdAt).toISOString()}, ${pins} uploads under way will name it`,
    ...references.map(name => `named by ${name}`),
    ...trash.map(name => `in the trash: ${name}`),
  ].join('\n')
}
