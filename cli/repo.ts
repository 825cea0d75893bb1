/** `holdfast repo list | create | set | delete` */
import type { Repository } from '../proxy/metadata/types.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type ClientCommand, type Writer } from './client.ts'
import { humanBytes, textTable } from './text-table.ts'

export const repoUsage = `holdfast repo list
holdfast repo create <name> [--redeploy allow|once|deny] [--artifact-bytes-max <bytes>|none] [--anonymous-read on|off]
                            [--trash-days <days>] [--upstream <url>|none] [--upstream-max-age <seconds>]
                            [--upstream-absent-age <seconds>]
holdfast repo set <name> …the same [--force]   (an upstream although there are artifacts, which its own take the place of)
holdfast repo delete <name>   (only when it is empty)
`

/** The API looks closer. */
const secondsPattern = [/^\d{1,8}$/, 'must be a number of seconds from 0 to 31622400'] as const

export const repoOptions = {
  redeploy: {
    kind: 'string',
    pattern: [/^(allow|once|deny)$/, 'must be allow, once or deny'],
    doc: 'May a path be written again? once: only with the same bytes; deny: nothing may be written.',
  },
  artifactBytesMax: {
    kind: 'string',
    pattern: [
      /^([1-9]\d{0,14}(B|KiB|MiB|GiB|TiB)?|none)$/i,
      'must be a size of 1 byte or more, such as 512MiB, or none',
    ],
    doc: 'Largest artifact.',
  },
  anonymousRead: {
    kind: 'string',
    pattern: [/^(on|off)$/, 'must be on or off'],
    doc: 'May everybody read, without credentials?',
  },
  trashDays: {
    kind: 'string',
    pattern: [/^\d{1,4}$/, 'must be a number of days from 0 to 3650'],
    doc: 'For how many days what is deleted can be restored (7 unless told); 0: not at all.',
  },
  upstream: {
    kind: 'string',
    pattern: [/^(https?:\/\/\S{1,1990}|none)$/, 'must be http://… or https://…, or none'],
    doc: 'What is asked for here is fetched from there and kept; nothing else can be written. none: an ordinary repository.',
  },
  upstreamMaxAge: {
    kind: 'string',
    pattern: secondsPattern,
    doc: 'For how long a copy of what may change at the upstream is current (600 unless told); a path with a version in it never changes.',
  },
  upstreamAbsentAge: {
    kind: 'string',
    pattern: secondsPattern,
    doc: "For how long the upstream's word counts that there is nothing (300 unless told).",
  },
  force: {
    kind: 'bool',
    default: false,
    doc: "Of `set`: gives an upstream to a repository that has artifacts, which the upstream's take the place of.",
  },
} as const satisfies Options

type Repo = Omit<Repository, 'id'>
type Command = ClientCommand<typeof repoOptions>

const verbs: Readonly<Record<string, (command: Command, name: string) => Promise<number>>> = {
  list: async ({ client, print }) => {
    const { repositories } = (await client.call('GET', '/repositories')) as { repositories: readonly Repo[] }
    print(
      textTable(
        ['NAME', 'FORMAT', 'REDEPLOY', 'LARGEST', 'ANONYMOUS READ', 'TRASH', 'UPSTREAM'],
        repositories.map(row),
      ),
      repositories,
    )
    return 0
  },
  create: async ({ client, config, print }, name) => {
    const settings = { name, ...changeOf(config), ...upstreamChange(config, null) }
    const made = (await client.call('POST', '/repositories', settings)) as Repo
    print(`repository '${made.name}' created`, made)
    return 0
  },
  set: async ({ client, config, print }, name) => {
    const path = `/repositories/${encodeURIComponent(name)}`
    const { upstream = null } = asksUpstream(config) ? ((await client.call('GET', path)) as Repo) : {}
    const change = { ...changeOf(config), ...upstreamChange(config, upstream) }
    if (Object.keys(change).length === 0) throw new HoldfastError('CONFIG_INVALID', 'what shall be set? See --help')
    const forced = config.force ? { force: true } : {}
    const changed = (await client.call('PATCH', path, { ...change, ...forced })) as Repo
    print(`repository '${changed.name}' changed`, changed)
    return 0
  },
  delete: async ({ client, print }, name) => {
    await client.call('DELETE', `/repositories/${encodeURIComponent(name)}`)
    print(`repository '${name}' deleted`, { deleted: name })
    return 0
  },
}

/** Resolves with the exit code. */
export function repo(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    repoOptions,
    source,
    (command, words) => {
      const [verb = '', name = '', ...more] = words
      const run = Object.hasOwn(verbs, verb) ? verbs[verb] : undefined
      if (run === undefined || more.length > 0 || (verb === 'list') !== (name === '')) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'repo ${words.join(' ')}' mean? Try:\n${repoUsage}`)
      }
      return run(command, name)
    },
    write,
  )
}

function changeOf({
  redeploy,
  artifactBytesMax,
  anonymousRead,
  trashDays,
}: Command['config']): Record<string, unknown> {
  return {
    ...(redeploy === undefined ? {} : { redeploy }),
    ...(artifactBytesMax === undefined ? {} : { artifactBytesMax: bytesOf(artifactBytesMax) }),
    ...(anonymousRead === undefined ? {} : { anonymousRead: anonymousRead === 'on' }),
    ...(trashDays === undefined ? {} : { trashDays: Number(trashDays) }),
  }
}

const hasAges = ({ upstreamMaxAge, upstreamAbsentAge }: Command['config']): boolean =>
  upstreamMaxAge !== undefined || upstreamAbsentAge !== undefined
const asksUpstream = (config: Command['config']): boolean => config.upstream !== undefined || hasAges(config)

/** `known`: what is set now. */
function upstreamChange(config: Command['config'], known: Repo['upstream']): { upstream?: object | null } {
  const { upstream = known?.url, upstreamMaxAge, upstreamAbsentAge } = config
  if (!asksUpstream(config)) return {}
  if (upstream === undefined || upstream === 'none') {
    if (!hasAges(config)) return { upstream: null }
    throw new HoldfastError('CONFIG_INVALID', 'ages are of an upstream: name it with --upstream <url>')
  }
  const ages = {
    ...(upstreamMaxAge === undefined ? {} : { maxAgeSeconds: Number(upstreamMaxAge) }),
    ...(upstreamAbsentAge === undefined ? {} : { absentMaxAgeSeconds: Number(upstreamAbsentAge) }),
  }
  return { upstream: { ...known, url: upstream, ...ages } }
}

function bytesOf(text: string): number | null {
  const match = /^(\d+)([a-z]*)$/i.exec(text)
  if (match === null) return null
  const power = ['', 'kib', 'mib', 'gib', 'tib'].indexOf((match[2] ?? '').toLowerCase())
  return Number(match[1]) * 1024 ** Math.max(0, power)
}

function row({ name, format, redeploy, artifactBytesMax, anonymousRead, trashDays, upstream }: Repo): string[] {
  return [
    name,
    format,
    redeploy,
    artifactBytesMax === null ? '-' : humanBytes(artifactBytesMax),
    anonymousRead ? 'on' : 'off',
    trashDays === 0 ? 'off' : `${trashDays} d`,
    upstream?.url ?? '-',
  ]
}
