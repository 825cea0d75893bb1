/** `holdfast cleanup list | create | set | delete | preview | run` */
import type { CleanupConditions, CleanupPolicy } from '../proxy/metadata/cleanup-types.ts'
import type { JobLogLine, JobRun } from '../proxy/metadata/job-types.ts'
import type { CleanupPreview } from '../proxy/tasks/cleanup.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type ClientCommand, type Writer } from './client.ts'
import { awaitRun, runText } from './task.ts'
import { humanBytes, textTable } from './text-table.ts'

export const cleanupUsage = `holdfast cleanup list
holdfast cleanup create <name> [--repositories <a,b>|all] <conditions> [--enabled on]
holdfast cleanup set <name> …the same      (conditions that are not named stay; 'none' takes one away)
holdfast cleanup preview <name>            (what it would delete now; changes nothing)
holdfast cleanup run [<name>]              (now, what is enabled; daily at 01:07 UTC by itself)
holdfast cleanup delete <name>             (the policy)
An artifact is deleted when all conditions of a policy hold, and can be restored: holdfast trash
`

const daysPattern = [/^([1-9]\d{0,4}|none)$/, 'must be a number of days from 1 to 36500, or none'] as const

export const cleanupOptions = {
  repositories: { kind: 'string', doc: 'Names of repositories with commas between them, or all.' },
  unchangedDays: { kind: 'string', pattern: daysPattern, doc: 'Condition: written longer ago than so many days.' },
  notDownloadedDays: { kind: 'string', pattern: daysPattern, doc: 'Condition: neither written nor downloaded for so many days.' }, // prettier-ignore
  keepNewest: {
    kind: 'string',
    pattern: [/^([1-9]\d{0,4}|none)$/, 'must be a number from 1 to 10000, or none'],
    doc: 'Condition: not among the newest so many versions of its group.',
  },
  keepNewestOf: {
    kind: 'string',
    pattern: [/^(artifacts|folders)$/, 'must be artifacts or folders'],
    doc: 'What a version is: an artifact of a folder (unless told), or a folder of the folder above.',
  },
  path: { kind: 'string', doc: "Condition: the path fits this glob, such as 'nightly/**/*.zip'; or none." },
  prerelease: {
    kind: 'string',
    pattern: [/^(only|never|none)$/, 'must be only, never or none'],
    doc: 'Condition: the path looks like a pre-release (1.0-SNAPSHOT, 2.0.0-rc.1), or never does.',
  },
  enabled: { kind: 'string', pattern: [/^(on|off)$/, 'must be on or off'], doc: 'Does it delete?' },
} as const satisfies Options

type Command = ClientCommand<typeof cleanupOptions>

const policies = '/cleanup/policies'
const one = (name: string): string => `${policies}/${encodeURIComponent(name)}`

const verbs: Readonly<Record<string, (command: Command, name: string) => Promise<number>>> = {
  list: async ({ client, print }) => {
    const found = (await client.call('GET', policies)) as { policies: readonly CleanupPolicy[] }
    print(textTable(['NAME', 'ENABLED', 'REPOSITORIES', 'CONDITIONS'], found.policies.map(rowOf)), found.policies)
    return 0
  },
  create: async ({ client, config, print }, name) => {
    const { conditions = {}, ...rest } = changeOf(config, {})
    const made = (await client.call('POST', policies, { name, ...rest, conditions })) as CleanupPolicy
    const hint = made.enabled ? '' : `; look at 'cleanup preview ${name}', then 'cleanup set ${name} --enabled on'`
    print(`policy '${name}' created${hint}`, made)
    return 0
  },
  set: async ({ client, config, print }, name) => {
    const found = (await client.call('GET', policies)) as { policies: readonly CleanupPolicy[] }
    const before = found.policies.find(policy => policy.name === name)
    if (before === undefined) throw new HoldfastError('NOT_FOUND', `no cleanup policy '${name}'`)
    const change = changeOf(config, before.conditions)
    if (Object.keys(change).length === 0) throw new HoldfastError('CONFIG_INVALID', 'what shall be set? See --help')
    print(`policy '${name}' changed`, await client.call('PATCH', one(name), change))
    return 0
  },
  delete: async ({ client, print }, name) => {
    await client.call('DELETE', one(name))
    print(`policy '${name}' deleted`, { deleted: name })
    return 0
  },
  preview: async ({ client, print }, name) => {
    const preview = (await client.call('GET', `${one(name)}/preview`)) as CleanupPreview
    print(previewText(preview), preview)
    return 0
  },
  run: async ({ client, print }, name) => {
    const params = name === '' ? {} : { policy: name }
    const { id } = (await client.call('POST', '/tasks/cleanup/runs', { params })) as JobRun
    const run = await awaitRun(client, '/tasks/cleanup', id)
    const log = (await client.call('GET', `/tasks/cleanup/runs/${id}/log`)) as { lines: readonly JobLogLine[] }
    const lines = log.lines.map(({ line }) => line)
    print([...lines, runText(run)].join('\n'), { run, lines })
    return run.state === 'succeeded' ? 0 : 1
  },
}

/** Resolves with the exit code. */
export function cleanup(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    cleanupOptions,
    source,
    (command, words) => {
      const [verb = '', name = '', ...more] = words
      const run = Object.hasOwn(verbs, verb) ? verbs[verb] : undefined
      const named = verb === 'run' || (verb === 'list') === (name === '')
      if (run === undefined || more.length > 0 || !named) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'cleanup ${words.join(' ')}' mean? Try:\n${cleanupUsage}`)
      }
      return run(command, name)
    },
    write,
  )
}

function changeOf(config: Command['config'], before: CleanupConditions): Partial<Omit<CleanupPolicy, 'name'>> {
  const { repositories, enabled } = config
  const conditions = conditionsOf(config, before)
  const given = Object.keys(conditions).length > 0
  const merged = Object.fromEntries(Object.entries({ ...before, ...conditions }).filter(([, value]) => value !== null))
  return {
    ...(repositories === undefined ? {} : { repositories: repositories === 'all' ? null : repositories.split(',') }),
    ...(given ? { conditions: merged } : {}),
    ...(enabled === undefined ? {} : { enabled: enabled === 'on' }),
  }
}

/** null: taken away. */
function conditionsOf(config: Command['config'], before: CleanupConditions): Record<string, unknown> {
  const { unchangedDays, notDownloadedDays, keepNewest, keepNewestOf, path, prerelease } = config
  const given = {
    unchangedDays: unchangedDays === undefined ? undefined : (Number(unchangedDays) || null), // prettier-ignore
    notDownloadedDays: notDownloadedDays === undefined ? undefined : (Number(notDownloadedDays) || null), // prettier-ignore
    keepNewest: keepNewest === 'none' ? null : newestOf(keepNewest, keepNewestOf, before.keepNewest),
    path: path === 'none' ? null : path,
    prerelease: prerelease === 'none' ? null : prerelease,
  } // prettier-ignore
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
}

/** What is not named stays as it was: five folders must not become ten artifacts. */
function newestOf(
  count: string | undefined,
  of: string | undefined,
  before: CleanupConditions['keepNewest'],
): Record<string, unknown> | undefined {
  if (count === undefined && of === undefined) return undefined
  const kept = count === undefined ? before?.count : Number(count)
  if (kept === undefined) throw new HoldfastError('CONFIG_INVALID', '--keep-newest-of needs --keep-newest: how many?')
  return { count: kept, of: of ?? before?.of ?? 'artifacts' }
}

function rowOf({ name, enabled, repositories, conditions }: CleanupPolicy): string[] {
  return [name, enabled ? 'on' : 'off', repositories?.join(',') ?? 'all', conditionsText(conditions)]
}

function conditionsText({ unchangedDays, notDownloadedDays, keepNewest, path, prerelease }: CleanupConditions): string {
  return [
    ...(path === undefined ? [] : [path]),
    ...(prerelease === undefined ? [] : [prerelease === 'only' ? 'pre-releases' : 'no pre-releases']),
    ...(unchangedDays === undefined ? [] : [`unchanged for ${unchangedDays} d`]),
    ...(notDownloadedDays === undefined ? [] : [`not downloaded for ${notDownloadedDays} d`]),
    ...(keepNewest === undefined ? [] : [`not the newest ${keepNewest.count} ${keepNewest.of}`]),
  ].join(', ')
}

function previewText({ artifacts, bytes, first, examined, complete }: CleanupPreview): string {
  return [
    `would delete ${artifacts} of ${examined} artifacts, ${humanBytes(bytes)}`,
    ...(complete ? [] : ['and more: only the first artifacts were looked at']),
    ...first,
    ...(artifacts > first.length ? [`and ${artifacts - first.length} more`] : []),
  ].join('\n')
}
