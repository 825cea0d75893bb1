/** `holdfast trash list | restore | purge` */
import type { RestoreOutcome } from '../proxy/artifacts/trash.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type ClientCommand, type Writer } from './client.ts'
import { placeOf, type Place } from './place.ts'
import { shortTime } from './task.ts'
import { humanBytes, textTable } from './text-table.ts'

export const trashUsage = `holdfast trash list <repository>[/<path or folder/>]
holdfast trash restore <repository>/<path or folder/> [--overwrite]   (the newest deletion of each path)
holdfast trash purge <repository>/<path or folder/>                   (at once and for good)
A folder ends in '/'; '<repository>/' is all of it.
`

export const trashOptions = {
  overwrite: { kind: 'bool', default: false, doc: 'Restore also where something else lives by now.' },
} as const satisfies Options

interface Entry {
  readonly path: string
  readonly bytes: number
  readonly deletedBy: string
  readonly deletedAt: number
  readonly expiresAt: number
}
interface Page {
  readonly entries: readonly Entry[]
  readonly next?: string
}
type Command = ClientCommand<typeof trashOptions>

/** What a terminal can bear, and a script should ask for by folder. */
const listedMax = 10_000

const verbs: Readonly<Record<string, (command: Command, place: Place) => Promise<number>>> = {
  list: async ({ client, print }, { repository, path }) => {
    const entries: Entry[] = []
    let after: string | undefined
    do {
      const query = new URLSearchParams({ path, ...(after === undefined ? {} : { after }) })
      const page = (await client.call('GET', `/trash/${encodeURIComponent(repository)}?${query.toString()}`)) as Page
      entries.push(...page.entries)
      after = page.next
    } while (after !== undefined && entries.length < listedMax)
    const table = textTable(['SIZE', 'DELETED', 'BY', 'UNTIL', 'PATH'], entries.map(rowOf))
    const more = after === undefined ? '' : `\nand more: name a folder`
    print(entries.length === 0 ? 'nothing' : table + more, { entries, complete: after === undefined })
    return 0
  },
  restore: async ({ client, config, print }, from) => {
    const body = { from, overwrite: config.overwrite }
    const outcome = (await client.call('POST', '/trash/restore', body)) as RestoreOutcome
    print(outcomeText(outcome), outcome)
    return outcome.refused === 0 ? 0 : 1
  },
  purge: async ({ client, print }, from) => {
    const answer = (await client.call('POST', '/trash/purge', { from })) as { artifacts: number }
    print(`${answer.artifacts} forgotten`, answer)
    return 0
  },
}

/** Resolves with the exit code. */
export function trash(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    trashOptions,
    source,
    (command, words) => {
      const [verb = '', what, ...more] = words
      const run = Object.hasOwn(verbs, verb) ? verbs[verb] : undefined
      // Without its slash a repository could be a slip of who wanted to name a path in it.
      const vague = verb !== 'list' && what?.includes('/') !== true
      if (run === undefined || what === undefined || vague || more.length > 0) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'trash ${words.join(' ')}' mean? Try:\n${trashUsage}`)
      }
      return run(command, placeOf(what))
    },
    write,
  )
}

/** The path, which may be long, comes last, where it makes no other row wider. */
function rowOf({ path, bytes, deletedBy, deletedAt, expiresAt }: Entry): string[] {
  return [humanBytes(bytes), shortTime(deletedAt), deletedBy, shortTime(expiresAt), path]
}

const reasons: Readonly<Record<RestoreOutcome['refusals'][number]['reason'], string>> = {
  exists: 'something lives there (--overwrite replaces it)',
  redeploy: 'something lives there, and the repository does not let it be replaced',
  gone: 'its bytes are gone',
}

function outcomeText({ restored, refused, refusals }: RestoreOutcome): string {
  return [
    `${restored} restored, ${refused} refused`,
    ...refusals.map(({ path, reason }) => `${path}: ${reasons[reason]}`),
    ...(refused > refusals.length ? [`and ${refused - refusals.length} more`] : []),
  ].join('\n')
}
